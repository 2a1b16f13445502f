"""Reading the words of a command line, and saying in one line what is wrong with them.

tyro decides what is accepted. Its own messages are boxes of many lines that differ from version to version, so the
words it refused are looked at once more, by the signatures of the commands.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from hbr_fast.arguments import did_you_mean, near_names
from hbr_fast.cli.accepted import Accepted, accepted_by
from hbr_fast.cli.options import whole_lines, words_of_options

PROGRAM = "hbr-fast"
Commands = Mapping[str, Callable[..., None]]


def command_of(words: Sequence[str], commands: Commands, *, description: str) -> Callable[[], None]:
    """The command that these words ask for, ready to run.

    Raises
    ------
    ValueError
        If they are refused; one line says why.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), words_of_options():
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(whole_lines(command)) for name, command in commands.items()},
                prog=PROGRAM,
                description=description,
                args=list(words),
                # Help without the word None, and --flag without --no-flag, which is the default of all of them.
                config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise ValueError(mistake(words, commands) or _one_line(said.getvalue())) from None
    sys.stderr.write(said.getvalue())  # warnings
    return command


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same signature, but what it returns runs the command: then errors of the parser are those of the words."""

    @functools.wraps(command)
    def bound(*values: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *values, **options)

    return bound


def _one_line(box: str) -> str:
    lines = (re.sub(r"[\u2500-\u257f]", "", line).strip() for line in box.splitlines())
    return " ".join(line for line in lines if line)


def mistake(words: Sequence[str], commands: Commands) -> str | None:
    """What is wrong with these words, in one line; None if nothing is found."""
    if not words:
        return f"name a command: {', '.join(commands)}; see {PROGRAM} --help"
    name = words[0]
    if name not in commands:
        if name.startswith("-"):
            return f"the command comes first, e.g. {PROGRAM} info DATASET, got {name!r}; see {PROGRAM} --help"
        meant = did_you_mean(commands, name)
        return f"there is no command {name!r}{meant}: the commands are {', '.join(commands)}; see {PROGRAM} --help"
    taken = accepted_by(commands[name])
    options = {one.name: one for one in taken if one.is_option}
    positional = [one for one in taken if not one.is_option]
    given, rest = _grouped(words[1:], options)
    wrong = (
        _unknown(name, given, options, positional, commands)
        or _values(given, options)
        or _count(name, rest, given, options, positional)
    )
    return None if wrong is None else f"{wrong}; see {PROGRAM} {name} --help"


def _grouped(words: Sequence[str], options: Mapping[str, Accepted]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The options as given, each with its values, and the words that belong to none."""
    given: list[tuple[str, list[str]]] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not _is_option(word):
            rest.append(word)
            continue
        option, attached, value = word.partition("=")
        option = option.replace("_", "-") if option.replace("_", "-") in options else option
        known = options.get(option)
        values = [value] if attached else []
        # The word after an unknown option is taken for its value.
        most = (1 if known is None else len(left) if known.count is None else known.count) - len(values)
        while left and most > 0 and not _is_option(left[0]):
            values.append(left.pop(0))
            most -= 1
        given.append((option, values))
    return given, rest


def _is_option(word: str) -> bool:
    return word.startswith("-") and word.lstrip("-")[:1].isalpha() and word.lower() not in ("-inf", "-nan")


def _unknown(
    command: str,
    given: list[tuple[str, list[str]]],
    options: Mapping[str, Accepted],
    positional: list[Accepted],
    commands: Commands,
) -> str | None:
    for option, values in given:
        if option in options or option in ("-h", "--help"):
            continue
        value = values[0] if values else "VALUE"
        fields = _recipe_fields() if "--set" in options else {}
        refused = f"{command} has no option {option}"
        if field := fields.get(option):
            return f"{refused}: it is a field of the recipe, given as --set {field}={value}"
        words = {f"--{one.name.replace('_', '-')}": one.metavar for one in positional}
        others = [name for name, other in commands.items() if any(one.name == option for one in accepted_by(other))]
        near = [option] if option in words else near_names(option, [*words, *options, *fields])
        if near and near[0] in words:
            return f"{refused}: {words[near[0]]} has no option before it, as in {_form(command, positional)}"
        if others:
            return f"{refused}: it is an option of {' and '.join(others)}"
        if near:
            meant = f"--set {fields[near[0]]}={value}" if near[0] in fields else near[0]
            return f"{refused} (did you mean {meant}?)"
        return refused
    return None


def _recipe_fields() -> dict[str, str]:
    """Every field of a recipe by the option that one would expect, `--clip-norm`, `--augment.pad` or `--pad`."""
    import dataclasses

    from hbr_fast.loaders.augment import Augment
    from hbr_fast.training.recipe import Recipe

    names = {field.name: f"augment.{field.name}" for field in dataclasses.fields(Augment)}
    names |= {name: name for name in list(names.values())}
    names |= {field.name: field.name for field in dataclasses.fields(Recipe)}
    return {f"--{shown}": field for name, field in names.items() for shown in (name, name.replace("_", "-"))}


def _values(given: list[tuple[str, list[str]]], options: Mapping[str, Accepted]) -> str | None:
    fixed = [one for one in given if one[0] in options and options[one[0]].count is not None]
    lists = [one for one in given if one[0] in options and options[one[0]].count is None]
    for option, values in [*fixed, *lists]:  # words after a list may be others than its values
        known = options[option]
        if not known.accepts(values):
            wrong = [value for value in values if not known.accepts_one(value)] or values
            got = " ".join(map(repr, wrong)) if values else "nothing"
            choices = did_you_mean(known.choices, *wrong)
            return f"{option} takes {known.form}, got {got}{choices}"
    return None


def _count(
    command: str,
    rest: list[str],
    given: list[tuple[str, list[str]]],
    options: Mapping[str, Accepted],
    positional: list[Accepted],
) -> str | None:
    if len(rest) > len(positional):
        extra = rest[len(positional)]
        return f"{command} does not know what {extra!r} is for: its form is {_form(command, positional)}"
    missing = [one.metavar for one in positional[len(rest) :]]
    named = {option for option, _ in given}
    missing += [f"{one.name} {one.metavar}" for one in options.values() if one.required and one.name not in named]
    required = [one for one in options.values() if one.required]
    return f"{command} needs {' and '.join(missing)}: {_form(command, [*positional, *required])}" if missing else None


def _form(command: str, words: list[Accepted]) -> str:
    shown = " ".join(f"{one.name} {one.metavar}" if one.is_option else one.metavar for one in words)
    return f"{PROGRAM} {command} {shown}"
