"""Wrong paths on the command line: what is there, or what may be meant."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hbr_fast import cli
from hbr_fast.data.convert import convert

pytestmark = pytest.mark.usefixtures("one_thread")
Fails = Callable[[str], str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, an ensemble, and what looks like a study."""
    place = tmp_path_factory.mktemp("place")
    convert("synthetic", place / "toy.hbr", classes=2, train_per_class=4, test_per_class=2, shape=(1, 8, 8))
    small = ["--set", "model=cnn-4", "epochs=1", "batch_size=4", "augment.pad=0", "precision=float32"]
    cli.main(["train", str(place / "toy.hbr"), str(place / "runs" / "ens"), "--members-at-once", "1", *small])
    (place / "runs" / "grid").mkdir()
    (place / "runs" / "grid" / "study.json").write_text("{}")
    return place


@pytest.fixture
def fails(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Run a command in that folder that must fail; return its message."""
    monkeypatch.chdir(place)

    def command(line: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            cli.main(line.split())
        return capsys.readouterr().err.splitlines()[-1].removeprefix("hbr-fast: ")

    return command


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "hardness runs/enss",
            "there is no run directory runs/enss (did you mean runs/ens?): make one with "
            "hbr-fast train DATASET runs/enss",
        ),
        (
            "hardness toy.hbr",
            "toy.hbr is a dataset, not a run directory: give one made with hbr-fast train toy.hbr RUN",
        ),
        (
            "hardness runs/grid",
            "runs/grid is a study, not a run directory: its hardness is in samples.csv and on its page, and "
            "`hbr-fast evaluate` takes its baseline; for this, train into another directory",
        ),
        (
            "info toy",
            "there is no dataset at toy (did you mean toy.hbr?): make one with hbr-fast convert SOURCE toy.hbr",
        ),
        (
            "verify tooy.hbr",
            "there is no dataset at tooy.hbr (did you mean toy.hbr?): make one with hbr-fast convert SOURCE tooy.hbr",
        ),
        (
            "info nowhere/toy",
            "there is no dataset at nowhere/toy: make one with hbr-fast convert SOURCE nowhere/toy.hbr",
        ),
        ("info runs/ens", "runs/ens is a trained ensemble, not a dataset: give the dataset that it was made of"),
        ("report runs/ens", "runs/ens is a trained ensemble, not a study: give a directory that hbr-fast study wrote"),
        ("report toy.hbr", "toy.hbr is a dataset, not a study: give a directory that hbr-fast study wrote"),
        ("report runs/gird", "there is no study at runs/gird (did you mean runs/grid?): make one with hbr-fast study"),
    ],
)
def test_a_wrong_path_is_said_to_be_what_it_is(fails: Fails, line: str, message: str) -> None:
    assert fails(line) == message


def test_the_dataset_of_a_run_is_named_without_detours(place: Path, fails: Fails) -> None:
    assert fails("evaluate runs/ens --split tset") == (
        f"{place.resolve() / 'toy.hbr'} has no split 'tset': choose one of train, test (did you mean 'test'?)"
    )


def test_a_near_class_is_suggested(fails: Fails) -> None:
    assert fails("hardness runs/ens --top 1 --class clas_1").endswith(
        "the classes are class_0, class_1 (did you mean 'class_1'?)"
    )
