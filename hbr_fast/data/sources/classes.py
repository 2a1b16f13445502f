"""Classes by name: merged, dropped, renamed, and the same in every split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hbr_fast.arguments import near_names
from hbr_fast.data.sources.layouts import Listing
from hbr_fast.data.sources.tables import normal


@dataclass(frozen=True)
class Labelled:
    """The files of a split with the names of its classes, indexed by `listing.labels_n`."""

    names: Sequence[str]
    listing: Listing


@dataclass(frozen=True)
class Changes:
    """New class names by old name; None drops the class."""

    new_names: Mapping[str, str | None]

    def apply(self, splits: Mapping[str, Labelled]) -> dict[str, Labelled]:
        """Apply the changes to the splits.

        Raises
        ------
        ValueError
            If a class to change is in no split; the message suggests the nearest name.
        """
        known = {name for split in splits.values() for name in split.names}
        unknown = [name for name in self.new_names if name not in known]
        if unknown:
            near = near_names(unknown[0], known)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {_listed(sorted(known))}"
            raise ValueError(f"there is no class {', '.join(map(repr, unknown))} to merge, drop or rename: {hint}")
        return {name: self._applied(split) for name, split in splits.items()} if self.new_names else dict(splits)

    def _applied(self, split: Labelled) -> Labelled:
        changed = [self.new_names.get(name, name) for name in split.names]
        names = list(dict.fromkeys(name for name in changed if name is not None))
        index = {name: label for label, name in enumerate(names)}
        new_label = np.array([-1 if name is None else index[name] for name in changed], dtype=np.int64)
        labels_n = new_label[split.listing.labels_n]
        listing = split.listing
        if (labels_n < 0).any():
            listing, labels_n = listing.subset(np.flatnonzero(labels_n >= 0)), labels_n[labels_n >= 0]
        return Labelled(names, replace(listing, labels_n=labels_n))


def checked_changes(merge: Sequence[str], drop: Sequence[str], rename: Sequence[str]) -> Changes:
    """Changes from "NEW=OLD,OLD", "OLD" and "OLD=NEW".

    Raises
    ------
    ValueError
        If one is malformed, or a class is changed twice.
    """
    pairs: list[tuple[str, str | None]] = []
    for words, option, form in ((merge, "--merge", "NEW=OLD,OLD"), (rename, "--rename", "OLD=NEW")):
        for word in words:
            left, equals, right = (part.strip() for part in normal(word).partition("="))
            if not (left and equals and right):
                raise ValueError(f"{option} takes {form}, got {word!r}")
            olds = [old.strip() for old in right.split(",")] if option == "--merge" else [left]
            pairs += [(old, left if option == "--merge" else right) for old in olds]
    pairs += [(normal(name), None) for name in drop]
    names = [old for old, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"class {repeated[0]!r} is to be merged, dropped or renamed twice: say it once")
    return Changes(dict(pairs))


def only_common(splits: Mapping[str, Labelled], *, places: Mapping[str, str]) -> tuple[dict[str, Labelled], list[str]]:
    """The splits without classes that are not in all of them, and lines for the user.

    Raises
    ------
    ValueError
        If they have no class in common.
    """
    of_split = [set(split.names) for split in splits.values()]
    common = set.intersection(*of_split)
    left = sorted(set.union(*of_split) - common)
    if not left:
        return dict(splits), []
    if not common:
        raise ValueError(
            f"{' and '.join(places[split] for split in splits)} have no class in common, so --common-classes would "
            "leave none: --rename changes their names"
        )
    kept = Changes(dict.fromkeys(left)).apply(splits)
    count = sum(len(splits[split].listing.paths) - len(kept[split].listing.paths) for split in splits)
    classes, those = ("class", "that is") if len(left) == 1 else ("classes", "that are")
    return kept, [f"left out {len(left):,} {classes} {those} not in every split, {count:,} pictures: {_listed(left)}"]


def unified(
    splits: Mapping[str, Labelled], *, places: Mapping[str, str], where: str | os.PathLike[str]
) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """The classes, in the order of the train split, and every split's files with labels that are indices into them.

    `places` and `where` name the splits and the source in messages.

    Raises
    ------
    ValueError
        If the splits' classes differ: the message names all that do.
    """
    names = tuple(splits["train"].names)
    for split, other in splits.items():
        only_here, only_there = ([n for n in a if n not in b] for a, b in ((names, other.names), (other.names, names)))
        if split not in ("train", "test"):  # others may lack classes
            only_here = []
        different = sorted([*only_here, *only_there])
        if different:
            there, what = places[split], f"{len(different)} such" if len(different) > 1 else "1 such"
            near = [f"{a!r} and {match[0]!r}" for a in only_here if (match := near_names(a, only_there))]
            hint = f"; {', '.join(near[:5])} look alike: --rename makes one of the two" if near else ""
            others = f", and so {'is' if len(different) == 2 else 'are'} {_listed(different[1:])}"
            raise ValueError(
                f"{where}: class {different[0]!r} is in only one of {places['train']} and {there}"
                f"{others if len(different) > 1 else ''} ({what}){hint}: give both the same classes, "
                "or leave some out with --drop, or all of these with --common-classes"
            )
    index = {name: label for label, name in enumerate(names)}
    listings = {}
    for split, labelled in splits.items():
        order = np.array([index[name] for name in labelled.names], dtype=np.int64)
        labels_n = order[labelled.listing.labels_n] if len(labelled.listing.labels_n) else labelled.listing.labels_n
        listings[split] = replace(labelled.listing, labels_n=labels_n)
    return names, listings


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
