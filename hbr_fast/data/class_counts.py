"""Whether a set looks unfinished: fewer images of some classes than of the others, or than were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NAMED = 5  # classes that a note names
LEAST = 100  # images of a class below which equal counts of many classes may be chance
# Sets whose classes have equal sizes, recognised by the names of their classes, e.g. in folders of pictures.
_PUBLISHED = {
    "CIFAR-10": (
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        {"train": 5000, "test": 1000},
    ),
}


def notes_on_counts(labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[str]:
    """Lines for the user, one for each split of which images seem to be missing.

    Parameters
    ----------
    labels : mapping of str to integer [N]
        By split.
    classes : sequence of str

    Examples
    --------
    >>> notes_on_counts({"train": np.repeat([0, 1, 2], [500, 120, 500])}, ("a", "b", "c"))
    ['2 of 3 classes have 500 train images, but b 120: if an archive was not unpacked whole, unpack it again']
    """
    notes = []
    for split, labels_n in labels.items():
        counts_c = np.bincount(labels_n, minlength=len(classes))
        for name, (names, published) in _PUBLISHED.items():
            if set(names) == set(classes) and split in published and (counts_c < published[split]).any():
                each = published[split]
                found, why = counts_c < each, f"{name} has {each:,} {split} images of each class"
                break
        else:
            values, times = np.unique(counts_c, return_counts=True)
            usual, common = int(values[times.argmax()]), int(times.max())
            found, why = counts_c < usual, f"{common} of {len(classes)} classes have {usual:,} {split} images"
            if usual < LEAST or 2 * common < len(classes) or common < 2 or not found.any():
                continue
        few = np.flatnonzero(found).tolist()
        named = ", ".join(f"{classes[c]} {counts_c[c]:,}" for c in few[:NAMED])
        more = f" and {len(few) - NAMED} more have fewer" if len(few) > NAMED else ""
        notes.append(f"{why}, but {named}{more}: if an archive was not unpacked whole, unpack it again")
    return notes
