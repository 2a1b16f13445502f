"""The command line as a user sees it: a whole session, and one line for every mistake."""

import dataclasses
import functools
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tyro
from tyro.constructors import PrimitiveConstructorSpec

import hbr_fast
from hbr_fast import cli
from hbr_fast.cli.accepted import accepted_by
from hbr_fast.cli.options import LISTS, whole_lines
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import open_dataset
from hbr_fast.data.plan import Plan
from hbr_fast.studies import recipes
from hbr_fast.studies.study import Study
from hbr_fast.training.recipe import Recipe

PLAIN = ["augment.flip=0", "augment.pad=0", "precision=float32"]
SMALL = ["--set", "model=cnn-8-16", "epochs=5", "batch_size=50", "lr=0.05", *PLAIN]
ONE = ["--members-at-once", "1"]

Fails = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 train and 60 test images of 1x8x8 in 3 classes."""
    path = tmp_path_factory.mktemp("data") / "small.hbr"
    convert("synthetic", path, classes=3, train_per_class=80, test_per_class=20, shape=(1, 8, 8))
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ensemble of two members; tests read it and do not write to it."""
    path = tmp_path_factory.mktemp("run") / "run"
    cli.main(["train", str(data), str(path), "--members", "2", *ONE, *SMALL])
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail with a user error; return its one-line message."""

    def command(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(word) for word in words])
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if line.startswith("hbr-fast: ")]
        assert len(lines) == 1
        assert printed.err.endswith(lines[0] + "\n"), "the error is the last line"
        assert "Traceback" not in printed.err
        return lines[0].removeprefix("hbr-fast: ")

    return command


def files_under(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def entry_point(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(hbr_fast.__path__[0]).parent)
    script = shutil.which("hbr-fast", path=str(Path(sys.executable).parent))
    assert script is not None, "hbr-fast is not installed beside this Python"
    return subprocess.run(
        [script, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )


# --- the program itself


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_speaks_of_words_and_files(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert "None" not in shown, "Python's word for what was not given"
    assert "--no-" not in shown
    assert not re.search(r"\{\[|\[\w+ \[|\{\w+ \w+\}", shown), "how values are given, not how tyro nests them"
    positional = shown.splitlines()[0].split("OPTIONS]")[-1].split()
    assert not {"STR", "PATH"} & set(positional)


def documented() -> None:
    """A command.

    Args:
        one: A description that goes on
            in a second line.
        two: Another.
    """


def test_help_breaks_no_line_where_a_docstring_does() -> None:
    assert "one: A description that goes on in a second line.\n        two: Another.\n" in str(
        whole_lines(documented).__doc__
    )


def test_none_is_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["study", "quickstart", "--nonpositive", "None"])
    assert "--nonpositive takes shift or authors, e.g. " in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "numba", "triton", "ray", "ffcv", "polars", "matplotlib"}
    program = f"import sys, hbr_fast.cli; sys.exit(', '.join({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr == "\n"


def test_help_lists_commands(tmp_path: Path) -> None:
    done = entry_point("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for command in cli.COMMANDS:
        assert command in done.stdout
    assert "--debug" in done.stdout


def test_entry_point_reports_mistakes_in_one_line(tmp_path: Path) -> None:
    words = ["convert", "synthetic", "toy.hbr", "--classes", 3, "--train-per-class", 4, "--test-per-class", 2]
    done = entry_point(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "toy.hbr: 12 train and 6 test images of synthetic\n")
    before = files_under(tmp_path)
    again = entry_point(*words, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == ("hbr-fast: toy.hbr exists already: choose another name or replace it with --force\n")
    debug = entry_point("--debug", *words, cwd=tmp_path)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "FileExistsError: toy.hbr exists already" in debug.stderr
    assert files_under(tmp_path) == before


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"hbr-fast {hbr_fast.__version__}\n"


def test_completion_script_has_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--tyro-print-completion", "bash"])
    assert not caught.value.code
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*cli.COMMANDS, "--members-at-once", "--test-fraction"))


def test_cli_runs_as_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hbr_fast", "verify", "nothing.hbr"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(hbr_fast.__path__[0]).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("hbr-fast: there is no dataset at nothing.hbr: make one with")
    assert done.stderr.count("\n") == 1


def test_cli_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(path: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hbr_fast.data.verify.verify_dataset", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", "x.hbr"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "hbr-fast: interrupted; run the same command again to resume\n"


def test_debug_shows_traceback_in_any_position() -> None:
    for words in (["--debug", "verify", "x.hbr"], ["verify", "x.hbr", "--debug"]):
        with pytest.raises(FileNotFoundError, match=r"there is no dataset at x\.hbr"):
            cli.main(words)


# --- a session, command by command


def test_convert_verify_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.hbr"
    words = ["convert", "synthetic", str(out), "--classes", "3", "--train-per-class", "4", "--test-per-class", "2"]
    cli.main([*words, "--seed", "5"])
    assert open_dataset(out).meta["source"]["options"]["seed"] == 5
    first = files_under(out)
    cli.main([*words, "--force"])
    assert files_under(out) != first
    capsys.readouterr()
    cli.main(["verify", str(out)])
    dataset = open_dataset(out)
    assert f"{out}: good (6 files, " in (line := capsys.readouterr().out)
    assert f"18 samples, fingerprint {dataset.fingerprint[:12]})" in line
    cli.main(["info", str(out)])
    about = capsys.readouterr().out
    assert dataset.fingerprint in about
    assert "12 images of 3x32x32, hardness known" in about
    assert "6 images of 3x32x32" in about
    assert "from train[0] to train[11]" in about
    assert ", ".join(f"{value:.4f}" for value in dataset.mean) in about
    assert [line.split() for line in about.splitlines()[-3:]] == [[str(c), f"class_{c}", "4", "2"] for c in range(3)]


def test_train_prints_a_line_per_member_and_reuses_members(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    before = files_under(copy)
    capsys.readouterr()
    cli.main(["train", str(data), str(copy), "--members", "2", *ONE, *SMALL])
    printed = capsys.readouterr()
    assert "train: 2 of 2 members finished already" in printed.err
    labels = open_dataset(data).test.labels
    keys = [entry["key"] for entry in json.loads((copy / "ensemble.json").read_text())["members"]]
    for number, (line, key) in enumerate(zip(printed.out.splitlines(), keys, strict=True)):
        guess = np.load(copy / "members" / key / "logits.npy").argmax(1)
        recall = [(guess[labels == c] == c).mean() for c in range(3)]
        assert line.startswith(
            f"member {number}: accuracy {(guess == labels).mean():.4f}, recall gap {max(recall) - min(recall):.4f}, "
        )
        assert line.endswith(str(copy / "members" / key))
    assert files_under(copy) == before


def test_train_recipe_json_includes_overrides(run: Path) -> None:
    recipe = Recipe.from_json(json.loads((run / "recipe.json").read_text()))
    assert (recipe.name, recipe.model, recipe.epochs, recipe.lr) == ("small-cnn", "cnn-8-16", 5, 0.05)


def test_hardness_prints_hardest_class_first_and_writes_scores(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for estimator, hardest_first in (("aum", 1), ("loss", -1)):
        capsys.readouterr()
        cli.main(["hardness", str(run), "--estimator", estimator, "--csv", str(tmp_path / "scores.csv"), "--force"])
        lines = capsys.readouterr().out.splitlines()
        table = pl.read_csv(tmp_path / "scores.csv")
        labels = open_dataset(data).train.labels
        means = {f"class_{c}": table[estimator].to_numpy()[labels == c].mean() for c in range(3)}
        order = sorted(means, key=lambda name: hardest_first * means[name])
        assert [line.split()[1] for line in lines[1:4]] == order
        assert [float(line.split()[0]) for line in lines[1:4]] == pytest.approx([means[c] for c in order], abs=1e-4)
        assert "2 members" in lines[0]
        assert "240 samples" in lines[4]
        assert table.height == 240


def test_evaluate_prints_the_worst_class_first_and_writes_metrics(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "metrics.csv"
    capsys.readouterr()
    cli.main(["evaluate", str(run), "--csv", str(csv)])
    lines = capsys.readouterr().out.splitlines()
    ensemble, _ = hbr_fast.open_ensemble(run)
    opened = open_dataset(data)
    results = [hbr_fast.evaluate(member.test_logits(), opened.test.labels) for member in ensemble.members]
    accuracies = [100 * result.accuracy for result in results]
    assert lines[0] == "split test: 60 images; percent, mean and range of 2 members"
    assert lines[1].startswith("Few test samples: class_0 20, class_1 20, class_2 20. One sample moves the recall of ")
    assert lines[2].split(maxsplit=1)[1] == (
        f"{np.mean(accuracies):.2f} ({min(accuracies):.2f} to {max(accuracies):.2f})"
    )
    recall = np.mean([result.recall for result in results], axis=0)
    assert [line.split()[0] for line in lines[6:9]] == [f"class_{c}" for c in np.argsort(recall, kind="stable")]
    assert [float(line.split()[2]) for line in lines[6:9]] == pytest.approx(sorted(100 * recall), abs=0.01)
    table = pl.read_csv(csv)
    assert table.height == 6
    assert table.filter(member=1)["precision"].to_list() == pytest.approx(results[1].precision.tolist())
    assert table["images"].sum() == 120


def test_evaluate_draws_the_recall_of_each_class(run: Path, tmp_path: Path, fails: Fails) -> None:
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        figure = tmp_path / f"recall.{kind}"
        cli.main(["evaluate", str(run), "--figure", str(figure)])
        assert figure.read_bytes().startswith(begins)
    drawn = (tmp_path / "recall.svg").read_text()
    for part in ('id="member 0"', 'id="member 1"', 'id="mean"', ", 60 test images: accuracy "):
        assert part in drawn, part
    assert "exists already" in fails("evaluate", run, "--figure", tmp_path / "recall.png")
    assert "does not end in .png, .svg, .pdf" in fails("evaluate", run, "--figure", tmp_path / "recall.bmp")


def test_evaluate_other_images_runs_the_models(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same test images in another dataset, whose own statistics differ, give the stored results."""
    other = tmp_path / "other.hbr"
    opened = open_dataset(data)
    images, labels = opened.test.images, opened.test.labels
    np.savez(
        tmp_path / "other.npz",
        images=images,
        labels=labels,
        test_images=images,
        test_labels=labels,
        classes=np.array(opened.classes),
    )
    convert("npz", other, root=tmp_path / "other.npz")
    capsys.readouterr()
    cli.main(["evaluate", str(run)])
    stored = capsys.readouterr().out.splitlines()
    cli.main(["evaluate", str(run), "--dataset", str(other)])
    computed = capsys.readouterr().out.splitlines()
    assert computed[0].startswith(f"{other}, split test: 60 images")
    assert computed[1:] == stored[1:]
    cli.main(["evaluate", str(run), "--split", "train"])
    assert "split train: 240 images" in capsys.readouterr().out


def test_evaluate_rejects_other_classes_shapes_and_splits(data: Path, run: Path, tmp_path: Path, fails: Fails) -> None:
    assert fails("evaluate", run, "--split", "val").endswith("small.hbr has no split 'val': choose one of train, test")
    more, larger = tmp_path / "more.hbr", tmp_path / "larger.hbr"
    convert("synthetic", more, classes=4, train_per_class=4, test_per_class=2, shape=(1, 8, 8))
    assert "has other classes than" in (message := fails("evaluate", run, "--dataset", more))
    assert "(differing: class_3)" in message
    convert("synthetic", larger, classes=3, train_per_class=4, test_per_class=2, shape=(1, 9, 8))
    assert "are 1x9x8, the ensemble was trained on 1x8x8" in fails("evaluate", run, "--dataset", larger)


def test_resample_and_train_with_plan(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.safetensors"
    capsys.readouterr()
    cli.main(["resample", str(run), str(out), "--alpha", "0.2", "--seed", "3"])
    lines = capsys.readouterr().out.splitlines()
    plan = Plan.load(out)
    assert lines[0].startswith(f"{out}: 240 rows, base balanced; the largest feasible alpha is ")
    counts = np.bincount(open_dataset(data).train.labels[plan.index], minlength=3)
    assert [line.split() for line in lines[1:]] == [["80", "->", str(counts[c]), f"class_{c}"] for c in range(3)]
    assert counts.sum() == 240
    assert counts.min() < 80 < counts.max()
    assert (plan.provenance["seed"], plan.provenance["alpha"]) == (3, 0.2)
    assert plan.provenance["dataset"] == open_dataset(data).fingerprint

    cli.main(["train", str(data), str(tmp_path / "again"), "--plan", str(out), *ONE, *SMALL])
    about = json.loads((tmp_path / "again" / "ensemble.json").read_text())
    assert about["plan"] == plan.content_hash()
    assert about["members"][0]["seed"] == json.loads((run / "ensemble.json").read_text())["members"][0]["seed"]


def test_resample_alpha_0_and_0_0_give_the_same_plan(run: Path, tmp_path: Path) -> None:
    for name, alpha in (("a", "0"), ("b", "0.0")):
        cli.main(["resample", str(run), str(tmp_path / name), "--alpha", alpha])
    assert Plan.load(tmp_path / "a").content_hash() == Plan.load(tmp_path / "b").content_hash()


def test_resample_prunes_interpolates_and_uses_pool(data: Path, run: Path, tmp_path: Path, fails: Fails) -> None:
    labels = open_dataset(data).train.labels
    common = ["--alpha", "0.2", "--seed", "3", "--nonpositive", "shift"]
    pruned = [*common, "--prune-rate", "0.25"]
    for name, words in {
        "smote": [*common, "--oversample", "smote"],
        "holdout": [*pruned, "--oversample", "holdout"],
        "pool": [*common, "--oversample", "pool-hard", "--pool", str(data)],
    }.items():
        cli.main(["resample", str(run), str(tmp_path / name), *words])
    assert (Plan.load(tmp_path / "smote").partner >= 0).any()
    held = Plan.load(tmp_path / "holdout")
    assert len(held) == 180
    assert len(set(held.index)) == 180, "every one of them a real sample, once"
    assert len(np.unique(labels[held.index])) == 3
    pooled = Plan.load(tmp_path / "pool")
    assert (pooled.store == 1).any()
    train = ["train", str(data), str(tmp_path / "run"), "--plan", str(tmp_path / "pool"), *ONE, *SMALL]
    assert "this plan takes images from 1 pools" in fails(*train)
    cli.main([*train, "--pool", str(data)])


# --- the main job


@pytest.fixture
def quick_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickstart with a recipe that takes a tenth of a second per member."""
    small = dataclasses.replace(recipes.TINY_RECIPE, precision="auto")
    real = recipes.STUDIES["quickstart"]

    @functools.wraps(real)  # keeps the real signature, for the options
    def quickstart(**options: Any) -> Study:
        return dataclasses.replace(real(**options), recipe=small)

    monkeypatch.setattr(recipes, "STUDIES", {"quickstart": quickstart})


@pytest.mark.usefixtures("quick_study")
def test_study_ends_with_table_report_and_json_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "quickstart", "--dataset", str(data), "--out", str(tmp_path / "study"), "--members", "2", *ONE]
    cli.main(words)
    printed = capsys.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert set(last) == {
        "evaluated_on",
        "evaluated_samples",
        "baseline_accuracy",
        "hbr_accuracy",
        "recall_gap_baseline",
        "recall_gap_hbr",
        "members_per_arm",
        "seconds",
        "training_seconds",
        "report",
    }
    assert last["members_per_arm"] == 2
    assert last["seconds"] > last["training_seconds"] > 0
    page = Path(last["report"])
    recorded = json.loads((tmp_path / "study" / "study.json").read_text())["seconds"]
    assert last["training_seconds"] == round(recorded, 1)
    assert f"<dt>seconds to train and resample, in the last run</dt><dd>{recorded:.6g}</dd>" in page.read_text()
    assert page == tmp_path / "study" / "report" / "index.html"
    assert "class_0" in page.read_text()
    rows = pl.read_csv(tmp_path / "study" / "per_member.csv").rows(named=True)
    for key, arm, column in (
        ("baseline_accuracy", "baseline", "accuracy"),
        ("hbr_accuracy", "hbr", "accuracy"),
        ("recall_gap_baseline", "baseline", "recall_max_min"),
        ("recall_gap_hbr", "hbr", "recall_max_min"),
    ):
        assert last[key] == pytest.approx(np.mean([row[column] for row in rows if row["arm"] == arm]))
    assert "class_2" in printed.out
    assert f"report: {page}" in printed.out.splitlines()
    assert "verify: " in printed.err, "the dataset is verified before anything is trained"

    cli.main(words)  # the second run reuses everything
    again = capsys.readouterr()
    assert again.err.count("2 of 2 members finished already") == 2
    timeless = {"seconds": 0, "training_seconds": 0}
    assert {**json.loads(again.out.splitlines()[-1]), **timeless} == {**last, **timeless}

    picture = next(page.parent.rglob("*.svg"))
    picture.unlink()
    cli.main(["report", str(tmp_path / "study")])
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert picture.exists()


@pytest.mark.usefixtures("quick_study")
def test_evaluate_takes_the_baseline_of_a_study(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    out = tmp_path / "study"
    cli.main(["study", "quickstart", "--dataset", str(data), "--out", str(out), "--members", "2", *ONE])
    accuracy = 100 * json.loads(capsys.readouterr().out.splitlines()[-1])["baseline_accuracy"]
    cli.main(["evaluate", str(out), "--figure", str(tmp_path / "recall.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "split test: 60 images; percent, mean and range of 2 members of the study's baseline"
    assert next(line for line in lines if line.startswith("accuracy")).split()[1] == f"{accuracy:.2f}"
    assert (tmp_path / "recall.png").stat().st_size > 1000
    assert "is a study, not a run directory: its hardness is in samples.csv" in fails("hardness", out)
    runs = [hbr_fast.ImportedRun("baseline", np.array([0, 1, 1]))]
    imported = hbr_fast.import_runs(runs, np.array([0, 1, 1]), out=tmp_path / "imported")
    assert "imported runs, without trained members" in fails("evaluate", imported)


@pytest.mark.usefixtures("quick_study")
def test_study_on_changed_dataset_trains_nothing(data: Path, tmp_path: Path, fails: Fails) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy.hbr"))
    flip_a_bit(copy / "train.images.npy")
    message = fails("study", "quickstart", "--dataset", copy, "--out", tmp_path / "study", *ONE)
    assert message.startswith(f"{copy / 'train.images.npy'} was changed after conversion")
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("quick_study")
def test_study_infeasible_alpha_names_the_largest(data: Path, tmp_path: Path, fails: Fails) -> None:
    study = ["study", "quickstart", "--dataset", data, "--out", tmp_path / "study", "--members", 1, *ONE]
    message = fails(*study, "--alpha", 99)
    assert "alpha 99.0 would put class 'class_0' below the floor of 1: the largest feasible alpha is" in message
    assert not (tmp_path / "study" / "study.json").exists()


@pytest.mark.usefixtures("quick_study", "no_pictures")
def test_study_uses_requested_device(data: Path, tmp_path: Path, fails: Fails) -> None:
    words = ["study", "quickstart", "--dataset", data, "--out", tmp_path / "study", "--members", 1, *ONE]
    assert "device must be auto, cpu, cuda or cuda:N, got 'abacus'" in fails(*words, "--device", "abacus")
    assert "compile is for one process on a GPU" in fails(*words, "--device", "cpu", "--compile")
    assert not (tmp_path / "study").exists()
    message = "each node of a cluster computes on what it has: leave out the cluster, or device and compile"
    assert message in fails(*words, "--device", "cpu", "--cluster", "local")
    cli.main([*map(str, words), "--device", "cpu"])
    described = [json.loads(path.read_text()) for path in (tmp_path / "study").glob("members/*/member.json")]
    assert [one["device"] for one in described] == ["cpu", "cpu"]


# --- paths


def leaves(hint: Any) -> Iterator[Any]:
    """The types in an annotation, and what is annotated to them."""
    if not typing.get_args(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from leaves(part)


def path_options(command: Any) -> dict[str, bool]:
    """Options of a command that take a path, those of its groups of flags too -> whether they are positional."""
    found: dict[str, bool] = {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        parts = list(leaves(hint))
        for group in parts:
            if isinstance(group, type) and dataclasses.is_dataclass(group):
                found |= path_options(group)
        if any(part is Path or isinstance(part, PrimitiveConstructorSpec) for part in parts):
            found[name] = typing.get_args(tyro.conf.Positional[int])[1] in parts
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_paths_expand_the_home_directory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every option of every command, also in `--root=~/data`, which shells leave alone."""
    given: dict[str, Any] = {}
    command = cli.COMMANDS[name]

    def take(**named: Any) -> None:
        for option, value in named.items():
            given.update(vars(value) if dataclasses.is_dataclass(value) else {option: value})

    monkeypatch.setitem(cli.COMMANDS, name, functools.wraps(command)(take))
    monkeypatch.setenv("HOME", "/home/of/somebody")
    options = path_options(command)
    first = [f"~/{option}" for option, positional in options.items() if positional]
    required = [
        option
        for option, parameter in inspect.signature(command).parameters.items()
        if parameter.default is parameter.empty and option not in options
    ]
    flags = [f"--{option.replace('_', '-')}=~/{option}" for option, positional in options.items() if not positional]
    assert options
    cli.main([name, *(["alpha-path"] if required else []), *first, *flags])
    assert {option: str(given[option]) for option in options} == {
        option: f"/home/of/somebody/{option}" for option in options
    }
    unknown = [word.replace("~/", "~nobody-here/") for word in first + flags]
    cli.main([name, *(["alpha-path"] if required else []), *unknown])
    assert {str(given[option]) for option in options} == {f"~nobody-here/{option}" for option in options}


# --- bad input


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("source", ["fashion-mnist", "mnist", "cifar10", "cifar100", "folder", "npz"])
def test_convert_names_missing_files_and_leaves_nothing(source: str, tmp_path: Path, fails: Fails) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    size = ["--size", 8, 8] if source == "folder" else []
    given = root / "missing.npz" if source == "npz" else root
    message = fails("convert", source, tmp_path / "x.hbr", "--root", given, *size)
    assert str(root) in message
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "synthetik", "x.hbr"], "unknown source 'synthetik': choose one of fashion-mnist"),
        (["convert", "synthetic", "x"], "x does not end in .hbr: name the dataset x.hbr"),
        (
            ["convert", "synthetic", "x.hbr", "--size", "8", "8"],
            "source synthetic does not take --size, but --classes, ",
        ),
        (["convert", "synthetic", "x.hbr", "--classes", "1"], "synthetic: --classes must be in 2..256, got 1"),
        (["verify", "x.hbr"], "there is no dataset at x.hbr: make one with hbr-fast convert SOURCE x.hbr"),
        (["info", "x.hbr"], "there is no dataset at x.hbr"),
        (
            ["info", "."],
            ". is a plain folder, not a dataset (it has no meta.json): give the dataset that hbr-fast convert folder ",
        ),
        (["train", "x.hbr", "run"], "there is no dataset at x.hbr"),
        (["train", "x.hbr", "run", "--recipe", "quick"], "unknown recipe 'quick': available are quickstart, "),
        (["train", "x.hbr", "run", "--set", "epoch=1"], "unknown recipe field 'epoch': the fields are name, model, "),
        (["train", "x.hbr", "run", "--set", "epochs=x"], "recipe field 'epochs' cannot be 'x'"),
        (["train", "x.hbr", "run", "--set", "epochs"], "a recipe field is changed by field=value, got 'epochs'"),
        (["train", "x.hbr", "run", "--set", "lr=-1"], "recipe 'small-cnn': lr cannot be -1.0"),
        (
            ["train", "x.hbr", "run", "--set", "lr=1", "--set", "epochs=1"],
            "--set is given twice: give it once, with all ",
        ),
        (["study", "quickstart", "--alphas=1", "--alphas", "2"], "--alphas is given twice: give it once, with all "),
        (["study", "alpha-path", "--alphas"], "--alphas has no value: give it at least one, or leave it out"),
        (["study", "case-study-2", "--oversamplers", "--tiny"], "--oversamplers has no value: give it at least one"),
        (["study", "pruning", "--rates=", "--tiny"], "--rates has no value: give it at least one"),
        (["convert", "folder", "x.hbr", "--more_splits", "--force"], "--more-splits has no value: give it at least "),
        (["train", "x.hbr", "run", "--set", "--members", "2"], "--set has no value: give it at least one"),
        (["train", "x.hbr", "run", "--seed", "1", "--seed", "2"], "there is no dataset at x.hbr"),
        (["hardness", "run"], "there is no run directory run: make one with hbr-fast train DATASET run"),
        (["hardness", "run", "--estimator", "amu"], "unknown estimator 'amu': available are aum, "),
        (["resample", "run", "plan"], "there is no run directory run"),
        (["resample", "run", "plan", "--estimator", "amu"], "unknown estimator 'amu': available are aum, "),
        (["relabel", "x.hbr", "y.hbr"], "give one of --noise RATE, --labels FILE and --threshold-samples"),
        (["relabel", "x.hbr", "y.hbr", "--noise", "0.1"], "there is no dataset at x.hbr"),
        (["suspects", "run", "plan", "--count", "3"], "there is no run directory run"),
        (["study", "quickstrat"], "unknown study 'quickstrat': available are quickstart"),
        (["study", "quickstart", "--estimator", "ssft"], "ssft needs a second training, which a study does not do"),
        (["study", "quickstart", "--retries", "1", "--members-at-once", "0"], "at least 1, got 0; cpus_per_member"),
        (["study", "quickstart", "--dataset", "x.hbr"], "there is no dataset at x.hbr"),
        (["study", "quickstart", "--members", "0"], "--members must be at least 1, got 0"),
        (["report", "study"], "there is no study at study: make one with hbr-fast study"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_cli_mistake_is_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "hardness", "report"])
def test_commands_that_load_for_seconds_say_so_first(
    command: str, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("hbr_fast.progress.say", said.append)
    fails(command, tmp_path / "nothing.hbr", *([tmp_path / "run"] if command == "train" else []))
    assert said[0] == f"{command}: loading"


def test_convert_does_not_overwrite_without_force(data: Path, fails: Fails) -> None:
    before = files_under(data)
    message = fails("convert", "synthetic", data)
    assert message == f"{data} exists already: choose another name or replace it with --force"
    assert files_under(data) == before


@pytest.mark.parametrize("name", ["train.images.npy", "train.labels.npy", "test.images.npy", "test.labels.npy"])
def test_verify_names_changed_file(data: Path, tmp_path: Path, fails: Fails, name: str) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy.hbr"))
    flip_a_bit(copy / name)
    message = fails("verify", copy)
    assert message.startswith(f"{copy / name} was changed after conversion")
    assert message.endswith("convert it again with --force")


@pytest.mark.parametrize("command", ["verify", "info", "train"])
def test_commands_name_truncated_dataset(data: Path, tmp_path: Path, fails: Fails, command: str) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy.hbr"))
    images = copy / "train.images.npy"
    images.write_bytes(images.read_bytes()[:-1])
    message = fails(command, copy, *([tmp_path / "run"] if command == "train" else []))
    size = (data / "train.images.npy").stat().st_size
    assert message == f"{images} has {size - 1} bytes instead of {size}: convert it again with --force"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=100000", "batch_size must be in [1, 240], the rows of an epoch of split 'train', got 100000"),
        ("model=cnn", "unknown model 'cnn': there are resnet18"),
        ("model=cnn-4-4-4-4", "images of 8x8 are too small, it needs at least 16 pixels a side"),
    ],
)
def test_train_mismatched_recipe_is_one_line(
    data: Path, tmp_path: Path, fails: Fails, override: str, message: str
) -> None:
    assert message in fails("train", data, tmp_path / "run", *ONE, *SMALL, override)
    assert not list(tmp_path.glob("run/members/*"))


def test_train_mismatched_recipe_leaves_nothing(data: Path, tmp_path: Path, fails: Fails) -> None:
    fails("train", data, tmp_path / "run", *ONE, *SMALL, "batch_size=100000")
    assert list(tmp_path.iterdir()) == []


def test_train_divergence_is_one_line(data: Path, tmp_path: Path, fails: Fails) -> None:
    message = fails("train", data, tmp_path / "run", *ONE, *SMALL, "lr=1e25")
    assert message.startswith("train: 1 of 1 member failed")
    assert message.endswith("diverged at epoch 0, step 1: the loss is nan; lower the learning rate (1e+25)")
    assert not (tmp_path / "run" / "ensemble.json").exists()
    assert not list(tmp_path.glob("run/members/*"))


@pytest.mark.parametrize("at_once", [1, 2])
def test_train_sigterm_saves_and_exits_with_75_under_lock(
    data: Path, tmp_path: Path, fails: Fails, at_once: int
) -> None:
    run = tmp_path / "run"
    words = ["train", str(data), str(run), "--members", "2", "--members-at-once", str(at_once)]
    words += ["--checkpoint-minutes", "0.001", *SMALL, "epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hbr_fast", *words],
        env={**os.environ, "PYTHONPATH": str(Path(hbr_fast.__path__[0]).parent), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(run.glob("checkpoints/*.safetensors"))) < at_once:
        assert process.poll() is None
        time.sleep(0.02)
    message = fails("train", data, run, *ONE, *SMALL, "epochs=100000")
    assert message == f"{run} is in use by another process: wait for it to end, or choose another directory"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 75
    assert errors.splitlines()[-1].startswith("hbr-fast: ended by SIGTERM; what was trained is saved")
    assert "Traceback" not in errors
    assert len(list(run.glob("checkpoints/*.safetensors"))) == at_once
    assert not list(run.glob("checkpoints/.*")), "nothing half-written"
    assert "another recipe (lr 0.05, not 0.01)" in fails("train", data, run, *ONE, *SMALL, "epochs=100000", "lr=0.01")


def test_convert_sigterm_leaves_nothing(tmp_path: Path) -> None:
    words = ["convert", "synthetic", str(tmp_path / "large.hbr"), "--classes", "100", "--train-per-class", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "hbr_fast", *words], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".large.hbr.*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=1500)
    assert process.returncode == 75
    assert said.splitlines()[-1] == "hbr-fast: ended by SIGTERM; run the same command again"
    assert list(tmp_path.iterdir()) == []


def test_train_rejects_zero_members_or_members_at_once(data: Path, tmp_path: Path, fails: Fails) -> None:
    assert "an ensemble has at least 1 member, got 0" in fails("train", data, tmp_path / "run", "--members", 0)
    assert not (tmp_path / "run").exists()
    assert "--members-at-once must be at least 1, got 0" in fails(
        "train", data, tmp_path / "run", "--members-at-once", 0
    )


@pytest.mark.slow  # starts Ray
def test_train_on_cluster(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    cli.main(["train", str(data), str(tmp_path / "run"), "--members", "2", "--cluster", "local", *SMALL])
    assert capsys.readouterr().out.count("accuracy") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus-per-member", "1"], "gpus_per_member and retries are of members on a cluster: name the cluster too"),
        (["--cluster", "local", "--cpus-per-member", "999"], "a member asks for 999 processors, but no node"),
        (["--cluster", "nowhere"], "a cluster's address is local, auto or HOST:PORT"),
        (["--cluster", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--cluster", "local", "--gpus-per-member", "1.5"], "gpus_per_member is a fraction of one GPU"),
        (["--cluster", "local", "--device", "cpu"], "each node of a cluster computes on what it has"),
    ],
)
def test_train_rejects_infeasible_cluster(
    data: Path, tmp_path: Path, fails: Fails, words: list[str], message: str
) -> None:
    pytest.importorskip("ray")
    assert message in fails("train", data, tmp_path / "run", *words, *SMALL)


def test_train_rejects_plan_of_larger_dataset(data: Path, tmp_path: Path, fails: Fails) -> None:
    Plan.of_rows(np.arange(100, 400)).save(tmp_path / "plan.safetensors")
    message = fails("train", data, tmp_path / "run", *ONE, *SMALL, "--plan", tmp_path / "plan.safetensors")
    assert message == (
        "plan row 140 has index 240, outside split 'train' of 240 samples: was the plan made for another dataset?"
    )


def test_train_rejects_plan_of_another_dataset(data: Path, run: Path, tmp_path: Path, fails: Fails) -> None:
    cli.main(["resample", str(run), str(tmp_path / "plan"), "--alpha", "0.1"])
    convert("synthetic", tmp_path / "o.hbr", classes=3, train_per_class=80, test_per_class=20, shape=(1, 8, 8), seed=9)
    message = fails("train", tmp_path / "o.hbr", tmp_path / "run", *ONE, *SMALL, "--plan", tmp_path / "plan")
    assert message.startswith("this plan was made for dataset ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a plan at all"])
def test_train_names_invalid_plan_file(data: Path, tmp_path: Path, fails: Fails, content: bytes | None) -> None:
    plan = tmp_path / "plan.safetensors"
    if content is not None:
        plan.write_bytes(content)
    assert str(plan) in fails("train", data, tmp_path / "run", "--plan", plan)
    assert not (tmp_path / "run").exists()


def test_resample_does_not_overwrite_without_force(run: Path, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "plan.safetensors"
    out.write_bytes(b"precious")
    message = fails("resample", run, out, "--alpha", 0.1)
    assert message == f"{out} exists already: choose another name or replace it with --force"
    message = fails("resample", run, out, "--alpha", 0.1, "--force")
    assert message == f"{out} is no plan, and --force replaces nothing else: move it away or choose another name"
    assert out.read_bytes() == b"precious"
    Plan.of_rows(np.arange(3)).save(out)
    cli.main(["resample", str(run), str(out), "--alpha", "0.1", "--force"])
    assert len(Plan.load(out)) == 240


def test_hardness_prints_extremes_overall_or_of_a_class(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def samples(*words: str) -> list[tuple[float, int, str]]:
        capsys.readouterr()
        cli.main(["hardness", str(run), *words])
        lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        assert [source for *_, source in lines] == [f"train[{sample}]" for _, _, sample, *_ in lines]
        return [(float(value), int(sample), name) for value, _, sample, name, _ in lines]

    dataset = open_dataset(data)
    hardest, easiest = samples("--top", "5"), samples("--top", "5", "--easiest")
    assert [value for value, *_ in hardest] == sorted(value for value, *_ in hardest)
    assert hardest[-1][0] < easiest[-1][0] <= easiest[0][0]
    for _, sample, name in [*hardest, *easiest]:
        assert dataset.classes[dataset.train.labels[sample]] == name
    second = dataset.classes[1]
    of_class = samples("--top", "3", "--class", second, "--estimator", "loss")
    assert {name for *_, name in of_class} == {second}
    assert of_class == samples("--top", "3", "--class", "1", "--estimator", "loss")
    assert [value for value, *_ in of_class] == sorted((value for value, *_ in of_class), reverse=True)


def test_hardness_of_final_models_is_computed_once(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    about = json.loads((copy / "ensemble.json").read_text())
    about["dataset"]["path"] = os.path.relpath(data, copy)
    (copy / "ensemble.json").write_text(json.dumps(about))
    cli.main(["hardness", str(copy), "--estimator", "loss_final", "--csv", str(tmp_path / "scores.csv")])
    said = capsys.readouterr().out
    assert "loss_final: loss of the trained model; high is hard; 2 members, hardest class first" in said
    assert len(list(copy.rglob("final.safetensors"))) == 2
    assert {"aum", "aum_final", "loss_final"} <= set(pl.read_csv(tmp_path / "scores.csv").columns)
    cli.main(["hardness", str(copy), "--estimator", "loss_final"])
    assert capsys.readouterr().out.splitlines() == said.splitlines()[:-1]
    cli.main(["resample", str(copy), str(tmp_path / "plan"), "--estimator", "loss_final", "--alpha", "0.2"])
    assert Plan.load(tmp_path / "plan").provenance["estimator"] == "loss_final"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "0"], "--class and --easiest select the samples that --top prints: give --top too"),
        (["--easiest"], "--class and --easiest select the samples that --top prints: give --top too"),
        (["--top", "0"], "cannot give 0 samples: 240 were observed"),
        (["--top", "81", "--class", "2"], "cannot give 81 samples of class 2: 80 were observed"),
        (["--top", "1", "--class", "cat"], "no class 'cat': the classes are "),
        (["--top", "1", "--class", "3"], "no class '3': the classes are "),
        (
            ["--estimator", "ssft"],
            "ssft needs a second training: see hbr_fast.second_split_forgetting",
        ),
    ],
)
def test_hardness_rejects_invalid_options(run: Path, fails: Fails, words: list[str], message: str) -> None:
    assert message in fails("hardness", run, *words)


def test_hardness_does_not_overwrite_without_force(run: Path, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "scores.csv"
    out.write_bytes(b"precious")
    assert str(out) in fails("hardness", run, "--csv", out)
    assert "is no table, and --force" in fails("hardness", run, "--csv", out, "--force")
    assert out.read_bytes() == b"precious"
    out.unlink()
    cli.main(["hardness", str(run), "--csv", str(out)])
    cli.main(["hardness", str(run), "--csv", str(out), "--force"])
    assert pl.read_csv(out).height == 240


def test_resample_names_missing_output_directory(run: Path, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "nowhere" / "plan.safetensors"
    message = fails("resample", run, out, "--alpha", 0.1)
    assert ".partial" not in message
    assert str(out.parent) in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", 99], "the largest feasible alpha is"),
        (["--alpha", -1], "alpha must be a finite number >= 0, got -1.0"),
        (["--alpha", "nan"], "alpha must be a finite number >= 0, got nan"),
        (
            ["--alpha", 0.1, "--undersample", "easiest"],
            "undersample must be one of easy, hard, extreme, random, none; got 'easiest'",
        ),
        (["--alpha", 0.1, "--oversample", "smoat"], "oversample must be one of"),
        (["--alpha", 0.1, "--seed", -1], "seed must be in [0, 2**63), got -1"),
    ],
)
def test_resample_infeasible_plan_is_one_line(
    run: Path, tmp_path: Path, fails: Fails, options: list[object], message: str
) -> None:
    assert message in fails("resample", run, tmp_path / "plan", *options)
    assert list(tmp_path.iterdir()) == []


def test_train_rejects_run_of_another_recipe_or_dataset(data: Path, run: Path, tmp_path: Path, fails: Fails) -> None:
    before = files_under(run)
    message = fails("train", data, run, *ONE, *SMALL, "lr=0.07")
    assert message == f"{run} is the run directory of another recipe (lr 0.05, not 0.07): choose another one"
    convert("synthetic", tmp_path / "o.hbr", classes=3, train_per_class=80, test_per_class=20, shape=(1, 8, 8), seed=9)
    assert f"{run} is the run directory of another dataset" in fails("train", tmp_path / "o.hbr", run, *ONE, *SMALL)
    assert files_under(run) == before


@pytest.mark.parametrize("command", ["hardness", "resample", "evaluate"])
def test_commands_reject_run_with_replaced_dataset(tmp_path: Path, fails: Fails, command: str) -> None:
    path = tmp_path / "d.hbr"
    options: dict[str, Any] = {"classes": 3, "train_per_class": 80, "test_per_class": 20, "shape": (1, 8, 8)}
    convert("synthetic", path, **options)
    cli.main(["train", str(path), str(tmp_path / "run"), *ONE, *SMALL, "epochs=1"])
    convert("synthetic", path, force=True, seed=9, **options)
    message = fails(command, tmp_path / "run", *([tmp_path / "plan"] if command == "resample" else []))
    assert message.endswith(f"d.hbr is not the dataset that {tmp_path / 'run'} was trained on: it has changed since")
    assert not (tmp_path / "plan").exists()


def test_train_with_relative_path_works_from_another_directory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    cli.main(["train", data.name, str(tmp_path / "run"), *ONE, *SMALL, "epochs=1"])
    monkeypatch.chdir(tmp_path)
    cli.main(["hardness", "run"])


def test_hardness_names_damaged_member(run: Path, tmp_path: Path, fails: Fails) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    damaged = sorted(copy.rglob("hardness.safetensors"))[0]
    flip_a_bit(damaged)
    assert fails("hardness", copy).startswith(f"{damaged} is missing or damaged: remove {damaged.parent} and")


def test_report_does_not_replace_other_folder(data: Path, tmp_path: Path, fails: Fails) -> None:
    fails("report", tmp_path, "--out", data)
    assert (data / "meta.json").exists()


def test_options_lists_match_command_signatures() -> None:
    found = {one.name for command in cli.COMMANDS.values() for one in accepted_by(command) if one.count is None}
    assert found == set(LISTS)
