"""What the command line says about words that it does not accept: one line of its own, with what would be accepted."""

from collections.abc import Callable

import pytest
import tyro

from hbr_fast import cli
from hbr_fast.cli import usage
from hbr_fast.cli.accepted import accepted_by
from hbr_fast.studies.recipes import STUDIES

Refused = Callable[[str], str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command line that must be refused; return the one line that it prints."""

    def command(line: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main(line.split())
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("hbr-fast: ")
        return printed.err.removeprefix("hbr-fast: ").rstrip("\n")

    return command


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name a command: convert, verify, "),
        ("stduy alpha-path", "there is no command 'stduy' (did you mean 'study'?): the commands are convert, verify, "),
        ("--members 3 train", "the command comes first, e.g. hbr-fast info DATASET, got '--members'"),
        ("train a b --epochs 3", "train has no option --epochs: it is a field of the recipe, given as --set epochs=3"),
        ("train a b --clip-norm=1", "a field of the recipe, given as --set clip_norm=1"),
        ("train a b --pad 2", "a field of the recipe, given as --set augment.pad=2"),
        ("train a b --augment.pad", "a field of the recipe, given as --set augment.pad=VALUE"),
        ("train a b --epoch 3", "train has no option --epoch (did you mean --set epochs=3?)"),
        ("evaluate a --datset b", "evaluate has no option --datset (did you mean --dataset?)"),
        ("train --datset a b", "--datset: DATASET has no option before it, as in hbr-fast train DATASET OUT"),
        ("train a b --alphas 3", "train has no option --alphas: it is an option of study"),
        ("verify a --wibble", "verify has no option --wibble; see hbr-fast verify --help"),
        ("convert npz a --size 64", "--size takes two whole numbers (HEIGHT WIDTH), e.g. --size 32 32, got '64'"),
        (
            "convert npz a --formats hbr betn",
            "takes hbr or beton, e.g. --formats hbr, got 'betn' (did you mean 'beton'?)",
        ),
        ("study alpha-path --alphas 1 one", "--alphas takes numbers, e.g. --alphas 0.2 0.4, got 'one'"),
        (
            "study balance --nonpositive shfit",
            "--nonpositive takes shift or authors, e.g. --nonpositive shift, got 'shfit'",
        ),
        ("study balance --nonpositive shfit", "(did you mean 'shift'?); see hbr-fast study --help"),
        ("study balance --clip=3", "--clip takes no value, got '3'"),
        ("train a b --members", "--members takes a whole number, e.g. --members 3, got nothing"),
        ("train a b --members x", "--members takes a whole number, e.g. --members 3, got 'x'"),
        ("train a b --members-at-once x", "takes a whole number or auto, e.g. --members-at-once 2, got 'x'"),
        ("resample a b --base x", "--base takes own or balanced or a number, e.g. --base own, got 'x'"),
        ("train a", "train needs OUT: hbr-fast train DATASET OUT; see hbr-fast train --help"),
        ("import a b", "import needs --labels PATH: hbr-fast import TABLE OUT --labels PATH"),
        ("study balance extra", "study does not know what 'extra' is for: its form is hbr-fast study STUDY"),
    ],
)
def test_refused_words_get_one_line(refused: Refused, line: str, message: str) -> None:
    assert message in (said := refused(line))
    command = f"{line.split()[0]} " if line.split()[:1] and line.split()[0] in cli.COMMANDS else ""
    assert said.endswith(f"; see hbr-fast {command}--help")


def test_what_the_parser_alone_refuses_is_one_line_too(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "mistake", lambda words, commands: None)
    assert "Unrecognized options: --wibble" in refused("verify a --wibble")


def test_the_parser_accepts_what_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options with the values of their own examples are accepted, so the signatures are read as tyro reads them."""
    for name, command in cli.COMMANDS.items():
        taken = accepted_by(command)
        words = [name]
        for one in taken:
            words += [one.metavar] if not one.is_option else []
        for one in taken:
            example = one.form.partition(f"e.g. {one.name} ")[2].split()
            words += [one.name, *example] if one.is_option and one.name != "--classes" else []
        usage.command_of(words, cli.COMMANDS, description="")


def test_warnings_of_the_parser_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def warned(*given: object, **options: object) -> Callable[[], None]:
        print("a warning", file=sys.stderr)
        return lambda: None

    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", warned)
    cli.main(["verify", "x.hbr"])
    assert capsys.readouterr().err == "a warning\n"


def test_help_of_studies_says_what_each_does_and_whose_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["study", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(f"{name}: " in shown for name in STUDIES)
    for option in ("--variants INT", "--members INT", "--alphas FLOAT ...", "--rates FLOAT ..."):
        about = shown.partition(f" {option} ")[2].partition(" --")[0]
        assert about.endswith("(default: the study's own)")
