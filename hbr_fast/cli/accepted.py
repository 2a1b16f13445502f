"""What a command accepts, read from its signature: names, numbers of values, choices."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

NUMBERS = {2: "two", 3: "three"}
# Values that make sense, where a number of the kind would not.
EXAMPLES = {
    "--size": "32 32",
    "--background": "255 255 255",
    "--alphas": "0.2 0.4",
    "--rates": "0.1 0.3",
    "--oversamplers": "random smote",
    "--set": "epochs=3 lr=0.05",
    "--members-at-once": "2",
    "--seed": "1",
}


@dataclass(frozen=True)
class Accepted:
    """One word or option of a command.

    Attributes
    ----------
    name : str
        As given: --alphas; of a word without option that of its parameter.
    kind : type
        Of the value, or of each of several.
    count : int or None
        Number of values; None stands for any number.
    metavar : str
        How the help shows the values.
    required : bool
        Whether it must be given.
    is_option : bool
        Whether its name is given before it.
    """

    name: str
    kind: Any
    count: int | None
    metavar: str
    required: bool
    is_option: bool

    @property
    def choices(self) -> list[str]:
        """The words that it can be, if these can be listed."""
        return [word for kind in _kinds(self.kind) if get_origin(kind) is Literal for word in get_args(kind)]

    @property
    def form(self) -> str:
        """What to give, with an example."""
        if self.count == 0:
            return "no value"
        words = _described(self.kind, plural=self.count != 1)
        words = f"{NUMBERS[self.count]} {words}" if self.count in NUMBERS else words
        example = EXAMPLES.get(self.name, _example(self.kind) or self.metavar)
        names = f" ({self.metavar})" if self.count in NUMBERS else ""
        return f"{words}{names}, e.g. {self.name} {example}"

    def accepts(self, values: Sequence[str]) -> bool:
        """Whether these values are as many as it takes, and each is one of its kind."""
        return self.count in (None, len(values)) and all(map(self.accepts_one, values))

    def accepts_one(self, value: str) -> bool:
        """Whether this value is of its kind."""
        return any(_is(value, kind) for kind in _kinds(self.kind))


def accepted_by(command: Callable[..., Any]) -> list[Accepted]:
    """What a command takes; options of its groups, as those of recipes, are its own."""
    hints = typing.get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        group = get_args(hint)[0] if get_origin(hint) is typing.Annotated else hint
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            of_group = typing.get_type_hints(group, include_extras=True)
            found += [_accepted(one.name, of_group[one.name]) for one in dataclasses.fields(group)]
            continue
        option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        needed = parameter.default is inspect.Parameter.empty
        found.append(_accepted(name, hint, required=needed, is_option=option))
    return found


def _accepted(name: str, hint: Any, *, required: bool = False, is_option: bool = True) -> Accepted:
    metavar = ""
    if get_origin(hint) is typing.Annotated:
        for about in hint.__metadata__:
            name = getattr(about, "name", None) or name
            metavar = getattr(about, "metavar", None) or metavar
        hint = get_args(hint)[0]
    kind = _without_none(hint)
    count: int | None = 0 if kind is bool else 1
    if get_origin(kind) is tuple:
        of_each = get_args(kind)
        kind, count = of_each[0], None if of_each[-1] is Ellipsis else len(of_each)
    metavar = metavar or ("PATH" if kind is Path else getattr(kind, "__name__", "value").upper())
    shown = f"--{name.rstrip('_').replace('_', '-')}" if is_option else name
    return Accepted(shown, kind, count, metavar, required, is_option)


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in _kinds(hint) if kind is not type(None)]
    if len(kinds) == 1:
        return get_args(kinds[0])[0] if get_origin(kinds[0]) is typing.Annotated else kinds[0]
    return typing.Union[tuple(kinds)]  # noqa: UP007 - of kinds that are known at run time only


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is(value: str, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        try:
            kind(value)
        except ValueError:
            return False
    return True


def _described(kind: Any, *, plural: bool) -> str:
    if len(kinds := _kinds(kind)) > 1:
        return " or ".join(_described(one, plural=plural) for one in kinds)
    if get_origin(kind) is Literal:
        *first, last = get_args(kind)
        return f"{', '.join(first)} or {last}" if first else str(last)
    one, more = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}.get(
        kind, ("a path", "paths") if kind is Path else ("a value", "values")
    )
    return more if plural else one


def _example(kind: Any) -> str:
    first = _kinds(kind)[0]
    if get_origin(first) is Literal:
        return str(get_args(first)[0])
    return {int: "3", float: "0.5"}.get(first, "")
