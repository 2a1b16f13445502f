import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax
from scipy.stats import spearmanr

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.files import read_json, sha256_of_file
from hbr_fast.hardness import ESTIMATORS, RECORDED, stack_scores
from hbr_fast.members import store
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.obtain import MembersDiverged
from hbr_fast.members.store import open_member
from hbr_fast.report.answers import answers
from hbr_fast.report.reading import read_study
from hbr_fast.resampling import resample
from hbr_fast.resampling.allocation import allocate
from hbr_fast.seeding import member_seed
from hbr_fast.studies import choice
from hbr_fast.studies.recipes import STUDIES
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Arm, Study
from hbr_fast.studies.summary import failed_trainings, summary
from hbr_fast.training.member import Diverged
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.recipes import named_recipe

from .conftest import RECIPE, STUDY

METRICS = ("recall", "precision", "f1", "mcc", "auroc", "ece")
MEASURES = ("max_min", "quantile", "easy_hard", "std", "mad", "mean", "worst", "worst_k")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the members that are actually trained, in order."""
    seeds: list[int] = []
    real = store.train_member

    def counting(*args: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(store, "train_member", counting)
    return seeds


def logits_of(finished: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """Test logits by (arm, variant, member), read without the code under test."""
    return {
        (arm["name"], member["variant"], member["member"]): np.load(finished / member["path"] / "logits.npy")
        for arm in read_json(finished / "study.json")["arms"]
        for member in arm["members"]
    }


# --- definition of a study


def test_study_seeds_are_distinct_by_training_and_variant() -> None:
    study = Study(name="s", recipe=RECIPE, arms=(), variants=3, members=4, seed=9)
    assert study.members_per_arm == 12 == len(study.cells())
    seeds = [study.training_seed(*cell) for cell in study.cells()]
    assert seeds == [member_seed(9, number) for number in range(12)]
    variants = [study.resampling_seed(variant) for variant in range(3)]
    assert len({*seeds, *variants}) == 15
    elsewhere = dataclasses.replace(study, seed=10)
    assert not {*variants, *seeds} & {elsewhere.resampling_seed(v) for v in range(3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": 0}, "variants and members of a study must be at least 1, got 0 and 1"),
        ({"members": 0}, "variants and members of a study must be at least 1, got 2 and 0"),
        ({"arms": (Arm("a", 0.1), Arm("a", 0.2))}, "distinct names, 'a' occurs twice"),
        ({"arms": (Arm("baseline", 0.1),)}, "distinct names, 'baseline' occurs twice"),
    ],
)
def test_study_refuses_invalid_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDY, **change)


def test_quickstart_is_one_arm_with_at_least_three_members() -> None:
    quickstart = STUDIES["quickstart"]()
    assert quickstart.recipe == named_recipe("quickstart")
    assert [arm.name for arm in quickstart.arms] == ["hbr"]
    assert quickstart.members_per_arm >= 3
    assert 0 < quickstart.arms[0].alpha < 1
    assert (quickstart.arms[0].undersample, quickstart.arms[0].oversample) == ("easy", "random")
    changed = STUDIES["quickstart"](alpha=0.5, members=2, seed=8)
    assert (changed.arms[0].alpha, changed.members_per_arm, changed.seed) == (0.5, 2, 8)


# --- output of a finished study


def test_study_writes_documented_files(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "class_intervals.csv",
        "comparisons.csv",
        "confusion.csv",
        "history.csv",
        "members",
        "per_class.csv",
        "per_member.csv",
        "plans",
        "samples.csv",
        "study.json",
    ]
    assert sorted(path.name for path in (finished / "plans").iterdir()) == [
        "hbr-variant-0.safetensors",
        "hbr-variant-1.safetensors",
    ]
    assert len(list((finished / "members").iterdir())) == 4
    listed = read_json(finished / "study.json")["files"]
    assert sorted(listed) == [
        "class_intervals.csv",
        "comparisons.csv",
        "confusion.csv",
        "history.csv",
        "per_class.csv",
        "per_member.csv",
        "plans/hbr-variant-0.safetensors",
        "plans/hbr-variant-1.safetensors",
        "samples.csv",
    ]
    assert listed == {name: sha256_of_file(finished / name) for name in listed}


def test_study_columns_match_those_read_by_report(finished: Path) -> None:
    who = ["arm", "variant", "member", "seed"]
    assert pl.read_csv(finished / "per_class.csv").columns == [
        *who,
        *("class_index", "class_name", "samples", "hardness", *METRICS, "never_predicted"),
    ]
    assert pl.read_csv(finished / "per_member.csv").columns == [
        *who,
        *("accuracy", "calibration", "train_seconds", "images_per_second"),
        *(f"{metric}_{measure}" for metric in METRICS for measure in MEASURES),
    ]
    samples = pl.read_csv(finished / "samples.csv")
    assert samples.columns[:4] == ["sample_id", "class_index", "class_name", "source"]
    assert sorted(samples.columns[4:-4]) == sorted(RECORDED)
    assert samples.columns[-4:] == ["observations", "never_learnt", "predicted", "changed"]


def test_study_csvs_have_a_row_per_training_and_class(finished: Path) -> None:
    rows = pl.read_csv(finished / "per_class.csv").rows(named=True)
    cells = [(arm, variant, 0) for arm in ("baseline", "hbr") for variant in (0, 1)]
    assert [(r["arm"], r["variant"], r["member"], r["class_index"]) for r in rows] == [
        (*cell, c) for cell in cells for c in range(3)
    ]
    members = pl.read_csv(finished / "per_member.csv").rows(named=True)
    assert [(r["arm"], r["variant"], r["member"]) for r in members] == cells


def test_study_pairs_baseline_and_arm_by_seed(finished: Path) -> None:
    arms = {arm["name"]: arm["members"] for arm in read_json(finished / "study.json")["arms"]}
    assert [m["seed"] for m in arms["baseline"]] == [m["seed"] for m in arms["hbr"]]
    assert [m["seed"] for m in arms["hbr"]] == [member_seed(4, 0), member_seed(4, 1)]
    assert len({m["key"] for members in arms.values() for m in members}) == 4


def test_study_json_records_settings_and_environment(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    assert (about["schema"], about["study"], about["seed"], about["estimator"]) == (4, "small", 4, "aum")
    assert (about["metric"], about["evaluated_samples"]) == ("recall", [20] * 3)
    assert about["hardware"].keys() >= {"processor", "usable_cpus", "memory_gb"}
    assert about["dataset"]["fingerprint"] == data.fingerprint
    assert (about["dataset"]["samples"], about["dataset"]["classes"]) == (240, list(data.classes))
    assert (finished / about["dataset"]["path"]).resolve() == data.path.resolve()
    assert Recipe.from_json(about["recipe"]) == RECIPE
    baseline, hbr = about["arms"]
    assert (baseline["alpha"], baseline["undersample"], baseline["oversample"]) == (0.0, "none", "none")
    assert baseline["counts"] == [80, 80, 80]
    assert (hbr["alpha"], hbr["undersample"], hbr["oversample"]) == (0.3, "easy", "random")
    for arm in about["arms"]:
        for member in arm["members"]:
            assert open_member(finished, member["key"]).path == finished / member["path"]


def test_study_class_hardness_and_counts_are_those_of_baseline(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    scores = stack_scores([open_member(finished, m["key"]).scores() for m in about["arms"][0]["members"]])
    hardness = [scores.per_sample("aum")[data.train.labels == c].mean() for c in range(3)]
    assert about["class_hardness"] == pytest.approx(hardness, rel=1e-12)
    wanted = allocate(np.array(about["class_hardness"]), hard_is="low", alpha=0.3, total=240)
    hbr = about["arms"][1]
    assert hbr["counts"] == hbr["counts_wanted"] == wanted.counts.tolist()
    assert sum(hbr["counts"]) == 240
    assert len(set(hbr["counts"])) > 1
    assert hbr["max_alpha"] == wanted.max_alpha


def test_study_says_how_many_members_define_hardness(finished: Path, data: Dataset, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "study")
    run_study(dataclasses.replace(STUDY, arms=(), hardness_members=1), data, out=out)
    about = read_json(out / "study.json")
    first = open_member(out, about["arms"][0]["members"][0]["key"]).scores()
    hardness = [first.per_sample("aum")[data.train.labels == c].mean() for c in range(3)]
    assert about["class_hardness"] == pytest.approx(hardness, rel=1e-12)
    assert about["hardness_members"] == 1
    assert read_study(out).class_hardness() == pytest.approx(hardness, rel=1e-12)
    assert read_study(out).hardness_from == "the first 1 of the baseline's 2 members"
    assert read_json(finished / "study.json")["hardness_members"] == 2, "all where the study does not say"


def test_study_variants_are_resampled_by_their_own_seeds(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    scores = stack_scores([open_member(finished, m["key"]).scores() for m in about["arms"][0]["members"]])
    plans = [Plan.load(finished / "plans" / f"hbr-variant-{variant}.safetensors") for variant in (0, 1)]
    assert plans[0].content_hash() != plans[1].content_hash()
    for variant, plan in enumerate(plans):
        expected = resample(
            data.train.labels,
            np.array(about["arms"][1]["counts"]),
            scores_n=scores.per_sample("aum"),
            hard_is="low",
            seed=STUDY.resampling_seed(variant),
        )
        assert plan.content_hash() == expected.content_hash()
        assert (plan.provenance["dataset"], plan.provenance["alpha"]) == (data.fingerprint, 0.3)
        stored = open_member(finished, about["arms"][1]["members"][variant]["key"])
        assert Plan.load(stored.path / "plan.safetensors").content_hash() == plan.content_hash()
        visits = RECIPE.epochs * np.bincount(plan.index, minlength=240)
        np.testing.assert_array_equal(stored.scores().observations[0], visits)


def test_trap_15_easiest_samples_of_easy_class_are_dropped(finished: Path, data: Dataset) -> None:
    counts = read_json(finished / "study.json")["arms"][1]["counts"]
    aum = pl.read_csv(finished / "samples.csv")["aum"].to_numpy()
    kept = np.unique(Plan.load(finished / "plans" / "hbr-variant-0.safetensors").index)
    c = int(np.argmin(counts))
    own = np.flatnonzero(data.train.labels == c)
    dropped = np.setdiff1d(own, kept)
    assert len(dropped) == 80 - counts[c] > 0
    assert aum[dropped].min() >= aum[np.intersect1d(own, kept)].max()


def test_per_class_csv_by_hand(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    counts = {arm["name"]: arm["counts"] for arm in about["arms"]}
    keys = {(arm["name"], m["variant"]): m["key"] for arm in about["arms"] for m in arm["members"]}
    predicted = {cell: logits.argmax(1) for cell, logits in logits_of(finished).items()}
    labels = data.test.labels
    for row in pl.read_csv(finished / "per_class.csv").rows(named=True):
        c, guess = row["class_index"], predicted[row["arm"], row["variant"], row["member"]]
        assert row["class_name"] == data.classes[c]
        assert row["samples"] == counts[row["arm"]][c]
        hits = ((guess == c) & (labels == c)).sum()
        assert row["recall"] == pytest.approx(hits / 20)
        assert row["precision"] == pytest.approx(hits / max((guess == c).sum(), 1))
        assert row["never_predicted"] == (not (guess == c).any())
        own = open_member(finished, keys[row["arm"], row["variant"]]).scores().values["aum"][0]
        assert row["hardness"] == pytest.approx(np.nanmean(own[data.train.labels == c]))


def test_per_member_csv_by_hand(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    counts = np.array(about["arms"][1]["counts"])
    hard = counts > counts.mean()
    assert hard.any()
    assert not hard.all()
    labels, logits = data.test.labels, logits_of(finished)
    for row in pl.read_csv(finished / "per_member.csv").rows(named=True):
        guess = logits[row["arm"], row["variant"], row["member"]].argmax(1)
        recall = np.array([(guess[labels == c] == c).mean() for c in range(3)])
        assert row["accuracy"] == pytest.approx((guess == labels).mean())
        assert row["recall_max_min"] == pytest.approx(recall.max() - recall.min())
        assert row["recall_quantile"] == pytest.approx(recall.max() - recall.min())  # k = 1 of 3 classes
        # The baseline is evaluated with the treatment's counts: its own are all equal.
        assert row["recall_easy_hard"] == pytest.approx(recall[~hard].mean() - recall[hard].mean())
        assert row["recall_std"] == pytest.approx(recall.std())
        assert row["recall_mad"] == pytest.approx(np.median(np.abs(recall - np.median(recall))))
        assert row["recall_mean"] == pytest.approx(recall.mean())
        assert row["train_seconds"] > 0


def test_confusion_and_class_intervals_by_hand(finished: Path, data: Dataset) -> None:
    labels = data.test.labels
    predicted = {cell: logits.argmax(1) for cell, logits in logits_of(finished).items()}
    table = pl.read_csv(finished / "confusion.csv")
    intervals = pl.read_csv(finished / "class_intervals.csv")
    for arm in ("baseline", "hbr"):
        of_arm = [guess for (name, _, _), guess in predicted.items() if name == arm]
        for true, guess in itertools.product(range(3), repeat=2):
            cell = table.filter(arm=arm, true_index=true, predicted_index=guess)
            assert cell["samples"].sum() == sum(((one == guess) & (labels == true)).sum() for one in of_arm)
        for c in range(3):
            row = intervals.row(
                by_predicate=(pl.col("arm") == arm) & (pl.col("metric") == "recall") & (pl.col("class_index") == c),
                named=True,
            )
            recalls = np.array([(one[labels == c] == c).mean() for one in of_arm])
            assert (row["mean"], row["test_samples"]) == (pytest.approx(recalls.mean()), 20)
            if np.ptp(recalls) > 0:
                half = 12.7062 * recalls.std(ddof=1) / np.sqrt(2)
                assert (row["low"], row["high"]) == pytest.approx(
                    (recalls.mean() - half, recalls.mean() + half), rel=1e-4
                )
            else:
                assert np.isnan(row["low"])


def test_samples_csv_names_predictions_of_the_hardest(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    table = pl.read_csv(finished / "samples.csv")
    members = [open_member(finished, m["key"]) for m in about["arms"][0]["members"]]
    probability = sum(softmax(choice.logits_of(one, data, np.arange(240)), axis=1) for one in members)
    for c, name in enumerate(data.classes):
        own = table.filter(class_index=c).sort("aum", "sample_id")
        assert own["predicted"].is_not_null().to_list() == [True] * 20 + [False] * 60
        guesses = [data.classes[np.argmax(probability[sample])] for sample in own["sample_id"][:20].to_list()]
        assert own["predicted"][:20].to_list() == guesses
        assert name in table["predicted"].to_list()
    # The same of the other arm, where it differs.
    others = [open_member(finished, m["key"]) for m in about["arms"][1]["members"]]
    other = sum(softmax(choice.logits_of(one, data, np.arange(240)), axis=1) for one in others)
    looked_at = table.filter(pl.col("predicted").is_not_null())
    for sample, changed in looked_at.select("sample_id", pl.col("changed").fill_null("")).rows():
        first, second = (data.classes[np.argmax(of[sample])] for of in (probability, other))
        assert changed == ("" if first == second else f"hbr: {second}")
    assert 0 < (looked_at["changed"].fill_null("") != "").sum() < 60


def test_history_csv_has_every_epoch(finished: Path) -> None:
    table = pl.read_csv(finished / "history.csv")
    assert table.columns[:4] == ["arm", "variant", "member", "epoch"]
    assert table.height == 4 * RECIPE.epochs
    assert table.filter(arm="hbr", variant=1)["epoch"].to_list() == list(range(RECIPE.epochs))
    assert table["train_loss"].is_finite().all()


def test_samples_csv_holds_means_over_baseline_members(finished: Path, data: Dataset) -> None:
    about = read_json(finished / "study.json")
    members = [open_member(finished, m["key"]).scores() for m in about["arms"][0]["members"]]
    table = pl.read_csv(finished / "samples.csv")
    np.testing.assert_array_equal(table["sample_id"].to_numpy(), np.arange(240))
    np.testing.assert_array_equal(table["class_index"].to_numpy(), data.train.labels)
    np.testing.assert_array_equal(table["observations"].to_numpy(), np.full(240, 2 * RECIPE.epochs))
    for name in RECORDED:
        expected = np.mean([scores.values[name][0] for scores in members], axis=0)
        np.testing.assert_allclose(table[name].to_numpy(), expected, rtol=1e-12, atol=1e-15, err_msg=name)


def test_summary_is_the_mean_over_members(finished: Path) -> None:
    rows = pl.read_csv(finished / "per_member.csv").rows(named=True)

    def mean(arm: str, column: str) -> float:
        return float(np.mean([row[column] for row in rows if row["arm"] == arm]))

    assert summary(finished) == {
        "evaluated_on": "test set",
        "evaluated_samples": 60,
        "baseline_accuracy": pytest.approx(mean("baseline", "accuracy")),
        "hbr_accuracy": pytest.approx(mean("hbr", "accuracy")),
        "recall_gap_baseline": pytest.approx(mean("baseline", "recall_max_min")),
        "recall_gap_hbr": pytest.approx(mean("hbr", "recall_max_min")),
        "members_per_arm": 2,
    }


# --- reruns, extensions and infeasible requests


def test_study_rerun_trains_nothing_and_writes_same_files(
    finished: Path, data: Dataset, tmp_path: Path, trained: list[int]
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    csvs = {path: path.read_bytes() for path in copy.glob("*.csv")}
    assert len(csvs) == 7
    for path in csvs:
        path.unlink()
    run_study(STUDY, data, out=copy)
    assert trained == []
    assert {path: path.read_bytes() for path in csvs} == csvs


def test_study_plans_and_scores_are_reproducible(finished: Path, tmp_path: Path) -> None:
    """`Same input, same bytes` (design): eight writes, so that chance does not hide it."""
    plan = Plan.load(finished / "plans" / "hbr-variant-0.safetensors")
    scores = open_member(finished, read_json(finished / "study.json")["arms"][0]["members"][0]["key"]).scores()
    for saved in (plan, scores):
        contents = set()
        for _ in range(8):
            saved.save(tmp_path / "file.safetensors")
            contents.add((tmp_path / "file.safetensors").read_bytes())
        assert len(contents) == 1


def test_study_in_another_directory_gives_same_numbers(finished: Path, data: Dataset, tmp_path: Path) -> None:
    again = run_study(STUDY, data, out=tmp_path / "again")
    for name in ("per_class.csv", "samples.csv"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()
    timing = ["train_seconds", "images_per_second"]
    a, b = (pl.read_csv(path / "per_member.csv").drop(timing) for path in (again, finished))
    assert a.equals(b)


def test_study_reuses_baseline_for_second_arm_and_alpha(
    finished: Path, data: Dataset, tmp_path: Path, trained: list[int]
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    run_study(dataclasses.replace(STUDY, arms=(Arm("hbr", 0.3), Arm("less", 0.1))), data, out=copy)
    assert trained == [member_seed(4, 0), member_seed(4, 1)]
    about = read_json(copy / "study.json")
    assert [arm["name"] for arm in about["arms"]] == ["baseline", "hbr", "less"]
    spread = [np.ptp(arm["counts"]) for arm in about["arms"]]
    assert spread[0] == 0 < spread[2] < spread[1]


def test_study_writes_tensorboard_epochs_on_request(data: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_study(STUDY, data, out=tmp_path, execution=Execution(tensorboard=True))
    written = {path.name for path in (tmp_path / "tensorboard").iterdir() if any(path.glob("events.*"))}
    assert written == {path.name for path in (tmp_path / "members").iterdir()}
    assert len(written) == 4


def test_study_members_of_a_variant_share_plan_but_not_seed(data: Dataset, tmp_path: Path) -> None:
    quick = dataclasses.replace(RECIPE, epochs=5)
    study = dataclasses.replace(STUDY, recipe=quick, variants=2, members=2)
    about = read_json(run_study(study, data, out=tmp_path / "nested") / "study.json")
    members = about["arms"][1]["members"]
    assert [(m["variant"], m["member"]) for m in members] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({m["seed"] for m in members}) == 4
    plans = [Plan.load(tmp_path / "nested" / m["path"] / "plan.safetensors").content_hash() for m in members]
    assert plans[0] == plans[1] != plans[2] == plans[3]


def test_study_infeasible_alpha_names_largest_in_one_line(
    finished: Path, data: Dataset, tmp_path: Path, trained: list[int]
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    largest = read_json(copy / "study.json")["arms"][1]["max_alpha"]
    with pytest.raises(ValueError, match=f"largest feasible alpha is {largest}") as caught:
        run_study(dataclasses.replace(STUDY, arms=(Arm("hbr", 50.0),)), data, out=copy)
    assert "\n" not in str(caught.value)
    assert "class 'class_0'" in str(caught.value)
    assert trained == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -0.3}, "alpha must be a finite number above 0"),
        ({"undersample": "easiest"}, "undersample must be one of .*'easiest'"),
        ({"oversample": "smot"}, "oversample must be one of .*'smot'"),
    ],
)
def test_study_refuses_unknown_strategy_before_training(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arm(**{"name": "hbr", "alpha": 0.3, **change})


def test_study_refuses_unsupported_estimator() -> None:
    with pytest.raises(ValueError, match="unknown estimator 'aumm'"):
        dataclasses.replace(STUDY, estimator="aumm")
    with pytest.raises(ValueError, match="ssft needs a second training, which a study does not do: choose another"):
        dataclasses.replace(STUDY, estimator="ssft")


def test_study_refuses_members_at_once_below_one(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="members_at_once must be at least 1, got 0"):
        run_study(STUDY, data, out=tmp_path / "study", execution=Execution(members_at_once=0))


@pytest.mark.parametrize(("undersample", "oversample"), [("none", "random"), ("easy", "none"), ("none", "none")])
def test_trap_05_none_keeps_every_class_and_reports_total(
    finished: Path, data: Dataset, tmp_path: Path, undersample: str, oversample: str
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    arm = Arm("half", 0.3, undersample=undersample, oversample=oversample)
    run_study(dataclasses.replace(STUDY, arms=(arm,)), data, out=copy)
    entry = read_json(copy / "study.json")["arms"][1]
    wanted, counts = np.array(entry["counts_wanted"]), np.array(entry["counts"])
    lower = 80 if undersample == "none" else 0
    upper = 80 if oversample == "none" else 240
    np.testing.assert_array_equal(counts, wanted.clip(lower, upper))
    assert counts.min() > 0
    plan = Plan.load(copy / "plans" / "half-variant-0.safetensors")
    np.testing.assert_array_equal(np.bincount(data.train.labels[plan.index], minlength=3), counts)
    assert plan.provenance["constant_size"] == (counts.sum() == 240)
    rows = pl.read_csv(copy / "per_class.csv").filter(pl.col("arm") == "half")
    assert rows["samples"].to_list() == counts.tolist() * 2


# --- validity on known hardness


def test_trap_13_every_estimator_finds_known_hardness_at_its_own_end(tmp_path: Path) -> None:
    """On data whose hardness is known, by class and by sample. Variability is not monotone in it: it is left out."""
    data = convert(
        "synthetic", tmp_path / "known.hbr", classes=5, train_per_class=400, test_per_class=20, shape=(1, 8, 8)
    )
    ensemble = train_ensemble(data, RECIPE, members=2, out=tmp_path / "run")
    scores, truth, labels = ensemble.scores(), data.train.truth, data.train.labels
    assert truth is not None
    truth_c = [truth[labels == c].mean() for c in range(5)]
    for estimator in [ESTIMATORS[name] for name in RECORDED]:
        sign = -1 if estimator.hard_is == "low" else 1
        by_class = spearmanr(scores.class_means(estimator.name, labels, 5), truth_c).statistic
        by_sample = spearmanr(scores.per_sample(estimator.name), truth).statistic
        if estimator.name != "variability":
            assert sign * by_class > 0.75, estimator.name
            assert sign * by_sample > 0.35, estimator.name
    assert spearmanr(scores.class_means("aum", labels, 5), truth_c).statistic < -0.95
    assert spearmanr(scores.per_sample("aum"), truth).statistic < -0.7


def test_study_names_and_leaves_out_diverged_training(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = STUDY.training_seed(1, 0)
    real = store.train_member

    def diverging(*args: Any, seed: int, plan: Any, **options: Any) -> Any:
        if seed == lost and plan is not None:
            raise Diverged(2, 3, float("nan"), 0.05)
        return real(*args, seed=seed, plan=plan, **options)

    monkeypatch.setattr(store, "train_member", diverging)
    run_study(STUDY, data, out=tmp_path)
    (failure,) = failed_trainings(tmp_path)
    assert (failure.arm, failure.variant, failure.member) == ("hbr", 1, 0)
    assert "diverged at epoch 2, step 3: the loss is nan" in failure.error
    rows = pl.read_csv(tmp_path / "per_member.csv")
    assert rows.group_by("arm").len().sort("arm")["len"].to_list() == [2, 1]
    first, few, second, *_ = answers(read_study(tmp_path))
    assert few.startswith("Few test samples: "), "before the answer that rests on them"
    assert "left out" in first
    assert "epoch 2, step 3" in first
    assert "no interval" in second or "interval" in second
    monkeypatch.setattr(store, "train_member", lambda *a, **k: diverging(*a, **{**k, "seed": lost}))
    with pytest.raises(MembersDiverged, match="hbr: 2 of 2 members failed"):
        run_study(dataclasses.replace(STUDY, arms=(Arm("hbr", 0.2),)), data, out=tmp_path)
