"""The named studies: their grids, tiny runs of each through the command line, previews, and choosing alpha."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.plan import Plan
from hbr_fast.evaluation.statistics import paired_difference
from hbr_fast.files import read_json
from hbr_fast.members.store import open_member
from hbr_fast.report.answers import answers, choice_answer
from hbr_fast.report.reading import read_study
from hbr_fast.resampling import smote
from hbr_fast.studies import choice
from hbr_fast.studies import preview as preview_of
from hbr_fast.studies.choice import logits_of
from hbr_fast.studies.plans import baseline_plan, study_rows
from hbr_fast.studies.preview import images_per_second, preview
from hbr_fast.studies.recipes import STUDIES, TINY_RECIPE, named_study
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Arm, Choice, Pruning, Study
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.recipes import named_recipe

DATA: dict[str, Any] = {"classes": 4, "train_per_class": 80, "test_per_class": 40, "shape": (1, 8, 8)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every tiny study runs, so that they share the data and the baseline."""
    return tmp_path_factory.mktemp("tiny") / "studies"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return convert("synthetic", tmp_path_factory.mktemp("data") / "small.hbr", **DATA)


def run(name: str, out: Path, *words: str) -> dict[str, Any]:
    cli.main(["study", name, "--tiny", "--out", str(out), "--members-at-once", "1", *words])
    meta: dict[str, Any] = read_json(out / "study.json")
    return meta


# --- grids


def test_grids_match_the_paper() -> None:
    one = named_study("case-study-1")
    assert len(one.arms) == 6 * 4
    assert {arm.prune.rate for arm in one.arms if arm.prune} == {0.33, 0.42, 0.5, 0.58, 0.66, 0.75}
    assert [arm.name for arm in one.arms[:4]] == [
        "pruned-33",
        "pruned-33-random-1",
        "pruned-33-smote-1",
        "pruned-33-holdout-1",
    ]
    assert [arm.against for arm in one.arms[:4]] == ["baseline", "pruned-33", "pruned-33", "pruned-33"]
    two = named_study("case-study-2")
    assert {arm.alpha for arm in two.arms} == {1.0, 3.0, 5.0}
    assert {arm.alpha for arm in named_study("case-study-2", num_classes=100).arms} == {1.0, 2.0}
    assert {arm.oversample for arm in two.arms} == {"random", "smote", "pool-random", "pool-average", "pool-hard"}
    assert {arm.undersample for arm in two.arms} == {"easy"}
    pruning = named_study("pruning")
    assert {(arm.prune.level, arm.prune.rate) for arm in pruning.arms if arm.prune} == {
        (level, rate / 10) for level in ("class", "dataset") for rate in range(1, 9)
    }
    for study in (one, two, pruning):
        assert (study.variants, study.members, study.hardness_members) == (4, 4, 10)
        assert study.recipe.name == "paper-resnet18"
    assert named_study("baseline").trainings == named_study("robustness").trainings == 16
    assert named_study("alpha-path").trainings == 16 * 7


def test_grid_sizes_are_options() -> None:
    study = named_study(
        "case-study-2", alphas=(0.25,), oversamplers=("smote",), variants=3, members=2, overrides=["epochs=5"]
    )
    assert [(arm.name, arm.alpha) for arm in study.arms] == [("smote-0.25", 0.25)]
    assert (study.variants, study.members, study.recipe.epochs) == (3, 2, 5)
    with pytest.raises(
        ValueError, match=r"unknown study 'case-study-3': available are quickstart, balance, remedies, baseline, case-"
    ):
        named_study("case-study-3")
    with pytest.raises(ValueError, match="study baseline takes no option 'rates': it takes recipe, members, variants"):
        named_study("baseline", rates=(0.5,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a finite number above 0, got 0.0"),
        ({"oversample": "holdout"}, "the holdout consists of pruned samples"),
    ],
)
def test_arm_refuses_invalid_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arm(**{"name": "a", "alpha": 0.3, **change})


# --- tiny runs: data to page


def test_case_study_1(tiny: Path) -> None:
    meta = run("case-study-1", tiny)
    assert (tiny / "report" / "index.html").is_file()
    data = open_dataset(tiny / "tiny.hbr")
    arms = {arm["name"]: arm for arm in meta["arms"]}
    assert len(arms) == 9
    assert arms["pruned-50"]["counts"] == [40] * 4
    assert (arms["pruned-66"]["prune_level"], arms["pruned-66"]["prune_by"], arms["pruned-66"]["prune_rate"]) == (
        "class",
        "random",
        0.66,
    )
    assert sum(arms["pruned-66-smote-0.3"]["counts"]) == 4 * (80 - 53)
    kept = {v: Plan.load(tiny / "plans" / f"pruned-50-variant-{v}.safetensors").index for v in (0, 1)}
    assert set(kept[0]) != set(kept[1]), "a variant prunes by a seed of its own"
    for variant in (0, 1):
        held = Plan.load(tiny / "plans" / f"pruned-50-holdout-0.3-variant-{variant}.safetensors")
        added = set(held.index) - set(kept[variant])
        assert added, "the holdout's samples are those that pruning set aside"
        same = Plan.load(tiny / "plans" / f"pruned-50-random-0.3-variant-{variant}.safetensors")
        assert set(same.index) <= set(kept[variant])
        made = Plan.load(tiny / "plans" / f"pruned-50-smote-0.3-variant-{variant}.safetensors")
        assert (made.partner >= 0).sum() == len(added)
        assert set(made.partner[made.partner >= 0]) <= set(kept[variant])
        assert (data.train.labels[made.partner] == data.train.labels[made.index])[made.partner >= 0].all()
        counts = np.bincount(data.train.labels[held.index], minlength=4)
        assert counts.tolist() == arms["pruned-50-holdout-0.3"]["counts_by_variant"][variant]


def test_grid_comparisons_use_reference_arm_and_pairs(tiny: Path) -> None:
    run("case-study-1", tiny)  # done already: nothing is trained
    table = pl.read_csv(tiny / "comparisons.csv")
    members = pl.read_csv(tiny / "per_member.csv")
    row = table.row(
        by_predicate=(pl.col("arm") == "pruned-50-smote-0.3") & (pl.col("quantity") == "recall_max_min"), named=True
    )
    assert row["against"] == "pruned-50"

    def values(arm: str) -> np.ndarray:
        return members.filter(pl.col("arm") == arm).sort("variant", "member")["recall_max_min"].to_numpy()[:, None]

    paired = paired_difference(values("pruned-50"), values("pruned-50-smote-0.3"))
    assert row["difference"] == pytest.approx(paired.difference)
    assert (row["low"], row["high"], row["p"]) == pytest.approx((paired.low, paired.high, paired.p_value))
    assert row["smallest_p"] == 0.5
    assert row["p_holm"] >= row["p"]
    assert row["direction"] == paired.direction
    assert table.height == 8 * 33
    assert set(table["arm"]) == {arm["name"] for arm in read_json(tiny / "study.json")["arms"]} - {"baseline"}


def test_case_study_2_with_a_pool(tiny: Path) -> None:
    meta = run("case-study-2", tiny)
    arms = {arm["name"]: arm for arm in meta["arms"]}
    assert len(arms) == 11
    for name, arm in arms.items():
        assert sum(arm["counts"]) == 320, name
    for kind in ("random", "average", "hard"):
        plan = Plan.load(tiny / "plans" / f"pool-{kind}-0.4-variant-0.safetensors")
        assert 0 < (plan.store == 1).sum() < 160
        assert plan.stores == (open_dataset(tiny / "tiny-pool.hbr").fingerprint,)
    assert len(list((tiny / "cache").glob("confidence-*.safetensors"))) == 2, (
        "the pool's and the real images': ranked once"
    )
    assert (tiny / "report" / "index.html").is_file()


def test_pruning_by_hardness_study(tiny: Path) -> None:
    meta = run("pruning", tiny)
    data = open_dataset(tiny / "tiny.hbr")
    aum = pl.read_csv(tiny / "samples.csv")["aum"].to_numpy()
    kept = Plan.load(tiny / "plans" / "dataset-hardness-50-variant-0.safetensors").index
    gone = np.setdiff1d(np.arange(320), kept)
    assert len(kept) == 160
    assert aum[gone].min() >= aum[kept].max(), "the easiest go"
    arms = {arm["name"]: arm for arm in meta["arms"]}
    assert arms["class-hardness-50"]["counts"] == [40] * 4
    assert arms["dataset-hardness-50"]["counts"] == np.bincount(data.train.labels[kept]).tolist()


def test_robustness_study(tiny: Path) -> None:
    meta = run("robustness", tiny)
    table = pl.read_csv(tiny / "ensemble_size.csv")
    assert table.columns == ["estimator", "measure", "size", "mean", "low", "high"]
    aum = table.filter(pl.col("estimator") == "aum")
    assert set(aum["measure"]) == {
        *("class_spearman", "class_kendall", "sample_spearman", "sample_kendall", "pruned_jaccard", "counts_change"),
    }
    for measure in ("sample_spearman", "sample_kendall", "pruned_jaccard"):
        means = aum.filter(pl.col("measure") == measure).sort("size")["mean"].to_list()
        assert means[-1] == pytest.approx(1.0), "all members agree with all members"
        assert means == sorted(means)
        assert means[0] < 0.99
    changes = aum.filter(pl.col("measure") == "counts_change").sort("size")
    assert changes["size"].to_list() == [2, 3, 4]
    assert changes["mean"][2] < changes["mean"][0]
    assert (table["low"] <= table["high"]).all()
    assert set(meta["enough_members"]) == set(table["estimator"])
    pairs = pl.read_csv(tiny / "estimators.csv")
    same = pairs.filter(pl.col("estimator") == pl.col("other"))
    assert (same["jaccard"] == 1).all()
    loss = pairs.row(by_predicate=(pl.col("estimator") == "aum") & (pl.col("other") == "loss"), named=True)
    assert loss["spearman"] > 0.5, "each by its own hard end"


def test_baseline_and_quickstart_studies(tiny: Path) -> None:
    assert [arm["name"] for arm in run("baseline", tiny)["arms"]] == ["baseline"]
    assert [arm["name"] for arm in run("quickstart", tiny, "--alpha", "0.3")["arms"]] == ["baseline", "hbr"]


# --- choosing alpha


def test_alpha_path_ends_at_largest_feasible_alpha(tiny: Path) -> None:
    meta = run("alpha-path", tiny)
    alphas = [arm["alpha"] for arm in meta["arms"]]
    assert alphas[0] == 0
    assert alphas == sorted(alphas)
    largest = meta["arms"][1]["max_alpha"]
    assert largest * 0.99 < alphas[-1] <= largest
    ratios = np.diff(np.log(alphas[1:]))
    assert ratios[0] == pytest.approx(ratios[1], abs=0.02)
    assert min(meta["arms"][-1]["counts"]) >= 1
    assert meta["evaluated_on"] == "test"
    assert "choice" not in meta


def test_choose_alpha_uses_held_out_samples_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "choose"
    meta = run("alpha-path", out, "--choose", "--validation", "0.25", "--tolerance", "0.05")
    data = open_dataset(out / "tiny.hbr")
    study = named_study("alpha-path", tiny=True, choose=True, validation=0.25, tolerance=0.05)
    rows = study_rows(study, data)
    assert np.bincount(data.train.labels[rows.validation]).tolist() == [20] * 4
    for arm in meta["arms"]:
        for member in arm["members"]:
            stored = open_member(out, member["key"])
            assert stored.scores().observations[0, rows.validation].sum() == 0
            assert stored.scores().observations.sum() == TINY_RECIPE.epochs * 240
    chosen = meta["choice"]
    assert (chosen["tolerance"], meta["evaluated_on"]) == (5.0, "validation")
    by_arm = {row["arm"]: row for row in chosen["validation"]}
    assert set(by_arm) == {arm["name"] for arm in meta["arms"]}
    allowed = [row for row in chosen["validation"] if row["accuracy"] >= by_arm["baseline"]["accuracy"] - 5]
    assert chosen["arm"] == min(allowed, key=lambda row: row["gap"])["arm"]
    # The files hold the validation split for all; the test split is in the choice alone, for one arm and the baseline.
    members = pl.read_csv(out / "per_member.csv")
    for name, row in by_arm.items():
        own = members.filter(pl.col("arm") == name)
        assert row["accuracy"] == pytest.approx(100 * np.mean(own["accuracy"].to_numpy()))
        assert row["gap"] == pytest.approx(100 * np.mean(own["recall_max_min"].to_numpy()))
    for name, key in (("baseline", "accuracy_baseline"), (chosen["arm"], "accuracy")):
        arm = next(one for one in meta["arms"] if one["name"] == name)
        right = [(np.load(out / m["path"] / "logits.npy").argmax(1) == data.test.labels).mean() for m in arm["members"]]
        assert chosen["test"][key] == pytest.approx(100 * np.mean(right))
    printed = capsys.readouterr()
    last, test = json.loads(printed.out.splitlines()[-1]), chosen["test"]
    assert (last["evaluated_on"], last["evaluated_samples"]) == ("held-out training samples", 80)
    assert (last["chosen"], last["alpha"]) == (chosen["arm"], chosen["alpha"])
    for key in ("gap", "accuracy", "gap_baseline", "accuracy_baseline"):
        assert last[f"test_{key}"] == pytest.approx(test[key] / 100)
    decision = choice_answer(read_study(out))
    assert printed.err.splitlines()[-1] == decision
    assert decision.startswith("Chosen on 25 % of each class held out of training: ")
    assert any(text.startswith(f"{decision} ") for text in answers(read_study(out)))
    assert "the noise of held-out training samples" in printed.out
    assert "test samples" not in printed.out


def test_choose_alpha_uses_the_datasets_validation_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for names, count in (
        (("images", "labels"), 40),
        (("test_images", "test_labels"), 20),
        (("val_images", "val_labels"), 8),
    ):
        labels = np.arange(count) % 2
        arrays |= {names[0]: (rng.integers(0, 99, (count, 8, 8)) + 100 * labels[:, None, None]).astype(np.uint8)}
        arrays |= {names[1]: labels}
    np.savez(tmp_path / "mine.npz", **arrays)
    data = convert("npz", tmp_path / "mine.hbr", root=tmp_path / "mine.npz")
    study = named_study(
        "alpha-path", tiny=True, choose=True, alphas=(0.1,), variants=1, overrides=["epochs=1", "batch_size=8"]
    )
    rows = study_rows(study, data)
    assert (rows.of, rows.train.tolist(), rows.validation.tolist()) == ("validation", [*range(40)], [*range(8)])
    assert baseline_plan(study, data, rows) is None, "every sample of train, as without a choice"
    out = run_study(study, data, out=tmp_path / "study")
    meta = json.loads((out / "study.json").read_text())
    assert (meta["evaluated_on"], meta["evaluated_samples"]) == ("validation", [4, 4])
    assert meta["choice"]["validation_share"] is None
    stored = open_member(out, meta["arms"][0]["members"][0]["key"])
    predicted = logits_of(stored, data, rows.validation, split="validation").argmax(1)
    assert data.validation is not None
    accuracy = 100 * (predicted == data.validation.labels).mean()
    assert meta["choice"]["validation"][0]["accuracy"] == pytest.approx(accuracy)
    share = dataclasses.replace(study, choose=Choice(0.25))
    assert study_rows(share, data).of == "train", "a share that is asked for is held out"
    only = {**data.splits, "validation": dataclasses.replace(data.validation, labels=np.ones(8, np.int64))}
    with pytest.raises(ValueError, match=r"class '0' has no sample in the validation split .* --validation 0.1"):
        study_rows(study, dataclasses.replace(data, splits=only))


def test_choose_alpha_falls_back_to_baseline() -> None:
    def evaluation(gap: float, accuracy: float) -> Any:
        from types import SimpleNamespace

        return [SimpleNamespace(recall=np.array([1.0, 1.0 - gap]), accuracy=accuracy)]

    evaluations = {"baseline": evaluation(0.2, 0.9), "a": evaluation(0.1, 0.88), "b": evaluation(0.15, 0.897)}
    alphas = {"baseline": 0.0, "b": 0.1, "a": 0.5}
    assert choice.choose(Choice(tolerance=0.005), evaluations, alphas).arm == "b"
    assert choice.choose(Choice(tolerance=0.02), evaluations, alphas).arm == "a"
    assert choice.choose(Choice(tolerance=0.0), evaluations, alphas).arm == "baseline"
    with pytest.raises(ValueError, match=r"share of accuracy in \[0, 1\], got -1"):
        Choice(tolerance=-1)
    with pytest.raises(ValueError, match=r"share in \(0, 1\) of each class, got 0"):
        Choice(validation=0)
    with pytest.raises(ValueError, match="one of max_min, quantile, std, mad, got 'mean'"):
        Choice(gap="mean")


# --- before and after running


def test_preview_searches_no_neighbours(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a large set their search takes minutes, and the study repeats it."""
    study = Study(name="s", recipe=TINY_RECIPE, arms=(), variants=1, members=1)
    run_study(study, small, out=tmp_path / "s")
    arms = (Arm("mixed", 0.2, "easy", "smote"),)
    study = Study(name="s", recipe=TINY_RECIPE, arms=arms, variants=1, members=1)
    with monkeypatch.context() as patch:
        patch.setattr(smote, "_search", lambda *_: pytest.fail("searched"))
        before = preview(study, small, out=tmp_path / "s")
    assert [(arm.trainings, arm.done) for arm in before.arms] == [(1, 1), (1, 0)]
    assert before.images == TINY_RECIPE.epochs * 320
    assert before.arms[1].note == "neighbours are not searched yet"
    run_study(study, small, out=tmp_path / "s")
    assert preview(study, small, out=tmp_path / "s").missing == 0


def test_preview_counts_finished_work_and_trains_nothing(small: Dataset, tmp_path: Path) -> None:
    study = Study(
        name="s",
        recipe=TINY_RECIPE,
        arms=(Arm("half", 0, "none", "none", Pruning(0.5)), Arm("more", 0.2)),
        variants=2,
        members=1,
    )
    before = preview(study, small, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert [(arm.trainings, arm.done) for arm in before.arms] == [(2, 0), (2, 0), (2, 0)]
    assert before.images == TINY_RECIPE.epochs * (2 * 320 + 2 * 160 + 2 * 320)
    run_study(study, small, out=tmp_path / "s")
    after = preview(study, small, out=tmp_path / "s")
    assert (after.missing, after.images) == (0, 0)
    shutil.rmtree(tmp_path / "s" / read_json(tmp_path / "s" / "study.json")["arms"][1]["members"][1]["path"])
    some = preview(study, small, out=tmp_path / "s")
    assert [(arm.name, arm.done) for arm in some.arms] == [("baseline", 2), ("half", 1), ("more", 2)]
    assert some.images == TINY_RECIPE.epochs * 160
    assert images_per_second(small, TINY_RECIPE) > 100


@pytest.mark.parametrize(
    ("constant_s", "image_s", "measured"),
    [
        (0.0, 2.0, [2, 4]),
        (0.4, 0.0, [2, 4]),  # processes that wait for each other: no time of an image
        (0.01, 0.025, [2, 16]),
        (1e-4, 1e-5, [2, 16, 8 * 20]),
    ],
)
def test_speed_is_measured_on_few_images_where_training_is_slow(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, constant_s: float, image_s: float, measured: list[int]
) -> None:
    rows: list[int] = []
    threads: set[int] = set()

    def train(_: Dataset, recipe: Recipe, *, plan: Plan, **__: Any) -> Any:
        rows.append(len(plan))
        threads.add(torch.get_num_threads())
        rate = recipe.batch_size / (constant_s + recipe.batch_size * image_s)
        return SimpleNamespace(history=[SimpleNamespace(images_per_second=rate)])

    monkeypatch.setattr(preview_of, "train_member", train)
    recipe = named_recipe("small-cnn", ["batch_size=20", "accumulate=20", "precision=float32"])
    rate = preview_of.images_per_second(small, recipe, at_once=2)
    assert rate == pytest.approx(20 / (constant_s + 20 * image_s))
    assert rows == measured
    assert threads == {1}


def test_preview_names_arms_that_lack_a_pool_before_the_baseline_is_trained(small: Dataset, tmp_path: Path) -> None:
    arms = (Arm("generated", 0.2, oversample="pool-random"), Arm("copies", 0.2))
    found = preview(Study(name="s", recipe=TINY_RECIPE, arms=arms, variants=1, members=1), small, out=tmp_path / "s")
    assert [(arm.name, arm.trainings) for arm in found.arms] == [("baseline", 1), ("generated", 0), ("copies", 1)]
    assert "takes images from a pool, and none was given" in found.arms[1].note
    assert found.images == TINY_RECIPE.epochs * 2 * 320


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_study_refuses_a_network_that_fails_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    code = "import torch\n\ndef network(image_shape, num_classes):\n    return torch.nn.Conv2d(7, num_classes, 3)\n"
    (tmp_path / "of_seven_channels.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["study", "alpha-path", "--tiny", "--out", str(tmp_path / "a"), "--members-at-once", "1", *words]
    with pytest.raises(SystemExit):
        cli.main([*command, "--model", "of_seven_channels:network"])
    said = capsys.readouterr().err
    assert "of_seven_channels:network' in evaluation fails on images [4, " in said
    assert "Traceback" not in said
    assert not (tmp_path / "a" / "study.json").exists()


def test_a_slow_rate_is_printed_with_a_decimal() -> None:
    found = preview_of.Preview((preview_of.ArmPreview("baseline", 1, 0),), images=100)
    assert "100 images at 0.4 per second" in preview_of.time_line(found, rate=0.4, at_once=1)
    assert "100 images at 1,234 per second" in preview_of.time_line(found, rate=1234.0, at_once=1)


@pytest.mark.parametrize(
    ("images", "took"), [(40, "40 s"), (600, "10 min"), (3600, "1 h 00 min"), (7290, "2 h 02 min")]
)
def test_time_line_in_hours_minutes_or_seconds(images: int, took: str) -> None:
    found = preview_of.Preview((preview_of.ArmPreview("baseline", 1, 0),), images=images)
    assert f"about {took} (" in preview_of.time_line(found, rate=1.0, at_once=1)


def test_dry_run_prints_and_leaves_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "alpha-path", "--tiny", "--dry-run", "--out", str(tmp_path / "a"), "--members-at-once", "1"]
    cli.main(words)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert "measuring how fast" in captured.err  # which takes longest
    assert lines[0].split() == ["baseline", "2", "trainings,", "0", "done"]
    assert lines[1].startswith("random, 3 alphas     6 trainings,    0 done  (rows follow from the baseline")
    assert lines[-1].startswith("8 trainings, 0 done, 8 to do: about ")
    assert not (tmp_path / "a" / "members").exists()
    assert not (tmp_path / "a" / "study.json").exists()


def test_copied_study_is_read_and_resumed(tiny: Path, tmp_path: Path) -> None:
    run("quickstart", tiny)
    copy = Path(shutil.copytree(tiny, tmp_path / "moved" / "studies"))
    study = read_study(copy)
    assert study.arms == ("baseline", "hbr")
    shutil.rmtree(copy / "report")
    cli.main(["report", str(copy)])
    assert (copy / "report" / "index.html").is_file()
    for arm in read_json(copy / "study.json")["arms"]:
        for member in arm["members"]:
            assert (copy / member["path"] / "weights.safetensors").is_file()
    found = preview(named_study("quickstart", tiny=True), open_dataset(copy / "tiny.hbr"), out=copy)
    assert found.missing == 0


def test_study_refuses_results_of_older_schema(tiny: Path, tmp_path: Path) -> None:
    run("quickstart", tiny)
    copy = Path(shutil.copytree(tiny, tmp_path / "old"))
    meta = read_json(copy / "study.json")
    del meta["sha256"]  # those had none
    (copy / "study.json").write_text(json.dumps({**meta, "schema": 2}))
    with pytest.raises(ValueError, match=r"study\.json is not a study of schema 4: run the study again"):
        read_study(copy)
    assert run("quickstart", copy)["schema"] == 4, "running it again finds the trainings and writes the new files"


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            Arm("h", 0.9, oversample="holdout", prune=Pruning(0.05), nonpositive="shift"),
            r"arm 'h': class '.*' wants \d+ more .* has 4",
        ),
        (Arm("p", 0.3, oversample="pool-hard"), "arm 'p': the images come from a pool, and none was given"),
        (
            Arm("s", 0.3, oversample="smote", prune=Pruning(0.95), nonpositive="shift"),
            "wants 5 neighbours each but has 3 other samples",
        ),
        (Arm("a", 50.0), "arm 'a': alpha 50.0 would put class 'class_0' below the floor of 1"),
    ],
)
def test_infeasible_study_names_arm_class_and_numbers(
    small: Dataset, tmp_path_factory: pytest.TempPathFactory, arm: Arm, message: str
) -> None:
    out = tmp_path_factory.getbasetemp() / "impossible"  # one baseline for all
    study = Study(name="s", recipe=TINY_RECIPE, arms=(arm,), variants=1, members=1)
    with pytest.raises(ValueError, match=message):
        run_study(study, small, out=out)
    assert not (out / "study.json").exists()


def test_a_study_with_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="oversamplers has no value: give it at least one"):
        named_study("case-study-2", oversamplers=())
    with pytest.raises(ValueError, match="alphas has no value"):
        named_study("alpha-path", alphas=[])


def test_infeasible_arms_are_named_together_and_the_others_run(
    small: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = (
        Arm("far", 50.0),
        Arm("near", 0.2, nonpositive="shift"),
        Arm("after", 0.2, nonpositive="shift", against="far"),
        Arm("pool", 0.2, oversample="pool-random", nonpositive="shift"),
    )
    study = Study(name="s", recipe=TINY_RECIPE, arms=arms, variants=1, members=1)
    run_study(study, small, out=tmp_path / "s")
    told = capsys.readouterr().err.splitlines()
    first = told.index("3 of 4 arms are infeasible and left out:")
    assert told[first + 1].startswith("  arm 'far': ")
    assert told[first + 2] == "  arm 'pool': oversampler pool-random takes images from a pool, and none was given"
    assert not any("no arm that resamples" in line for line in told), "one does"
    about = read_json(tmp_path / "s" / "study.json")
    assert [arm["name"] for arm in about["arms"]] == ["baseline", "near"]
    assert list(about["infeasible"]) == ["far", "pool", "after"]
    assert about["infeasible"]["after"] == "it is compared with 'far'"
    assert any(text.startswith("Infeasible and left out: far (") for text in answers(read_study(tmp_path / "s")))
    assert about["arms"][1]["shifted"] is None, "allowed, and not needed"
    assert not any("the same amount was added" in text for text in answers(read_study(tmp_path / "s")))
    found = preview(study, small, out=tmp_path / "s")
    assert [(arm.name, arm.trainings) for arm in found.arms] == [
        ("baseline", 1), ("near", 1), ("far", 0), ("pool", 0), ("after", 0)
    ]  # fmt: skip
    assert found.missing == 0


def test_command_line_errors_speak_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("quickstart", tmp_path, "--alpha", "50")
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the largest feasible alpha is" in said
    assert "or --clip to hold such classes at the floor" in said
    assert cli.command_words('positive with nonpositive="shift", or nonpositive="authors"', ["--nonpositive"]) == (
        "positive with --nonpositive shift, or --nonpositive authors"
    )


def test_every_study_has_a_tiny_variant() -> None:
    for name in STUDIES:
        assert named_study(name, tiny=True).recipe == TINY_RECIPE
        assert named_study(name, tiny=True).trainings <= 24
