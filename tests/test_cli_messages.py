"""Messages of the library as the command line says them: options by their names, and what would work."""

from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import write_photographs

from hbr_fast import cli, progress
from hbr_fast.cli.messages import command_words
from hbr_fast.data.convert import convert
from hbr_fast.members import telemetry
from hbr_fast.studies.preview import ArmPreview, Preview, arm_lines

STUDY = ["--clip", "--nonpositive", "--oversamplers", "--pool", "--set", "--size"]
Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail; return the last line that it printed."""

    def command(*words: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main([str(word) for word in words])
        return capsys.readouterr().err.splitlines()[-1].removeprefix("hbr-fast: ")

    return command


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("use at most that, or clip=True to hold", "use at most that, or --clip to hold"),
        ('positive with nonpositive="shift"', "positive with --nonpositive shift"),
        ('give oversample="smote", strict=True', 'give oversample="smote", strict=True'),
        ("size must be 1 or 2, got 3", "--size must be 1 or 2, got 3"),
        ("arm 'a': oversamplers cannot be 3", "arm 'a': --oversamplers cannot be 3"),
        ("lr must be above 0", "lr must be above 0"),
        (
            "study a takes no option 'alphas': it takes recipe, clip, pool",
            "study a does not take --alphas, but --clip, --pool",
        ),
        ("takes images from a pool: give pool", "takes images from a pool: give --pool FILE"),
        (
            "from a pool, and none was given",
            "from a pool, and none was given: --pool FILE gives one, --oversamplers random smote does without",
        ),
        ("choose one, e.g. split.at_size(224), Loader(size=224) or --set size=224", "choose one, e.g. --set size=224"),
        ("choose one, e.g. split.at_size(224)", "choose one, e.g. --set size=224"),
    ],
)
def test_arguments_become_options_of_the_command(line: str, words: str) -> None:
    assert command_words(line, STUDY) == words
    assert command_words(line, []) == line or "takes no option" in line


def test_status_lines_of_a_command_speak_its_words_too(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.spoken(lambda line: command_words(line, STUDY)):
        progress.say("infeasible: or clip=True")
    progress.say("or clip=True")
    assert capsys.readouterr().err == "infeasible: or --clip\nor clip=True\n"


def test_the_words_of_a_study_are_set_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(path: object) -> None:
        progress.say('clip=True, nonpositive="shift"')
        raise ValueError("count must be 3, alpha must be 4")

    monkeypatch.setattr("hbr_fast.members.ensemble.open_ensemble", said)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["resample", "run", "out"])
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "--clip, --nonpositive shift",
        "hbr-fast: count must be 3, --alpha must be 4",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "foldr", "x.hbr"], "synthetic (did you mean 'folder'?)"),
        (["convert", "synthetic", "x.hbr", "--test-fraction", "2"], "--test-fraction must be between 0 and 1, got 2.0"),
        (
            ["convert", "synthetic", "x.hbr", "--size", "8", "8"],
            "does not take --size, but --classes, --train-per-class",
        ),
        (["study", "quickstart", "--alphas", "1"], "study quickstart does not take --alphas, but --recipe, --alpha, "),
        (["study", "quickstart", "--members", "0"], "--members must be at least 1, got 0"),
        (["study", "case-study-2", "--variants", "0"], "--variants must be at least 1, got 0"),
        (
            ["study", "case-study-2", "--oversamplers", "smot"],
            "--oversamplers must be among random, weighted-easy, weighted-hard, smote, holdout, pool-random, "
            "pool-average, pool-hard, none; got 'smot' (did you mean 'smote'?)",
        ),
        (["study", "quickstart", "--model-args", "{a:2}"], """it takes a JSON object, e.g. '{"width": 2}'"""),
        (["study", "quickstart", "--set", "epochs=three"], "'epochs' cannot be 'three': it takes a whole number"),
        (["study", "quickstart", "--set", "epochs=0"], "epochs cannot be 0: it is at least 1"),
        (["study", "quickstart", "--set", "milestones=x"], "it takes whole numbers with commas between them"),
        (["study", "quickstart", "--set", "augment.alternating_flip=x"], "it takes true or false"),
        (["study", "quickstart", "--set", "augment.scale=x"], "it takes numbers with commas between them, or none"),
    ],
)
def test_mistakes_are_named_with_what_would_work(fails: Fails, words: list[str], message: str) -> None:
    assert message in fails(*words)


def test_a_dry_run_refuses_pictures_without_a_size_before_it_lists_arms(
    tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(tmp_path / "photos")
    convert("folder", tmp_path / "photos.hbr", root=tmp_path / "photos", store="encoded")
    capsys.readouterr()
    message = fails(
        "study", "quickstart", "--dry-run", "--dataset", tmp_path / "photos.hbr", "--out", tmp_path / "study"
    )
    assert message == "images of split 'train' vary in size: choose one, e.g. --set size=224"
    assert "trainings" not in capsys.readouterr().out


def test_a_reason_is_written_once() -> None:
    reason = "infeasible: oversampler pool-hard takes images from a pool, and none was given"
    found = Preview((ArmPreview("a", 0, 0, reason), ArmPreview("b", 0, 0, reason), ArmPreview("c", 1, 0)), 0)
    assert [line.partition("done")[2] for line in arm_lines(found)] == [f"  ({reason})", "  (infeasible: as a)", ""]


@pytest.mark.usefixtures("one_thread")
def test_a_study_of_hours_says_so_and_what_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forecast counts the arms as well, and does not advise what was chosen already."""
    monkeypatch.setattr(telemetry, "FORECAST_AFTER_S", 0.0)
    monkeypatch.setattr(telemetry, "LONG_S", 0.0)
    ahead = "baseline: 1 member: these trainings and those that follow take about "
    study = ["study", "alpha-path", "--tiny", "--points", "1", "--variants", "1", "--members", "1"]
    words = [*study, "--out", str(tmp_path / "study"), "--members-at-once", "1", "--device", "cpu"]
    cli.main([*words, "--nonpositive", "shift"])
    said = [line for line in capsys.readouterr().err.splitlines() if "these trainings" in line]
    assert said[0].startswith(ahead)
    advice = ": --dry-run lists them and trains nothing"
    assert said[0].endswith(f"{advice}; --recipe small-cnn trains a smaller network")
    assert said[1].startswith("arms: 1 member: these trainings take about ")
    small = ["--recipe", "small-cnn", "--set", "epochs=2", "batch_size=20", "model=cnn-4", "augment.pad=0"]
    cli.main([*words, *small, "--nonpositive", "shift", "--out", str(tmp_path / "other")])
    said = [line for line in capsys.readouterr().err.splitlines() if "these trainings" in line]
    assert said[0].endswith(advice)
