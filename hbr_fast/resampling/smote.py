"""Nearest neighbours of the same class in raw pixel space, found once per class and cached by the class's content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hbr_fast.data.images import ImageStore
from hbr_fast.resampling.ranking import class_name, members_of_classes
from hbr_fast.tensor_files import cached_array

NEIGHBOURS = "neighbours-*.safetensors"  # the cache's files


def same_class_neighbours(
    store: ImageStore,
    labels_n: np.ndarray,
    num_classes: int,
    *,
    k: int = 5,
    ids: np.ndarray | None = None,
    wanted_of: Sequence[int] | None = None,
    cache: Path | None = None,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """The `k` nearest neighbours of each sample among those of its class, by Euclidean distance of raw pixels.

    Parameters
    ----------
    store : ImageStore
        The N images.
    labels_n : integer [N]
    num_classes : int
    k : int
        Neighbours per sample.
    ids : integer [K], optional
        The samples to use; by default all.
    wanted_of : sequence of int, optional
        Classes to search; by default all.
    cache : path, optional
        A directory that caches the neighbours, one file per class, named by the hash of its pixels and `k`.
    classes : sequence of str, optional
        Class names for error messages.

    Returns
    -------
    int64 [N, k]
        Sample ids, the nearest first; -1 for samples not in `ids` or not of a searched class.

    Raises
    ------
    ValueError
        If a class has no `k` other samples: the message names the class, the requested and the available number.
    """
    there = np.arange(len(labels_n)) if ids is None else np.sort(np.asarray(ids, np.int64))
    neighbours_nk = np.full((len(labels_n), k), -1, np.int64)
    members = members_of_classes(np.asarray(labels_n, np.int64)[there], num_classes)
    for c in range(num_classes) if wanted_of is None else wanted_of:
        own = there[members[c]]
        if len(own) <= k:
            raise ValueError(
                f"{class_name(c, classes)} wants {k} neighbours each but has {max(len(own) - 1, 0)} other samples: "
                "lower k, prune less, or oversample another way"
            )
        neighbours_nk[own] = own[_of_class(store.gather(own), k, cache=cache)]
    return neighbours_nk


def _of_class(images_nchw: np.ndarray, k: int, *, cache: Path | None) -> np.ndarray:
    """Indices of each image's neighbours among these images, int32 [n, k]; from the cache if it has them."""
    if cache is None:
        return _search(images_nchw, k)
    digest = hashlib.sha256(f"{images_nchw.shape} {k} ".encode())
    digest.update(np.ascontiguousarray(images_nchw).data)
    path = cache / NEIGHBOURS.replace("*", digest.hexdigest()[:20])
    form = f"int32 [{len(images_nchw)}, {k}]"
    return cached_array(path, lambda: _search(images_nchw, k), form=form, below=len(images_nchw))


def _search(images_nchw: np.ndarray, k: int) -> np.ndarray:
    pixels = images_nchw.reshape(len(images_nchw), -1)
    from sklearn.neighbors import NearestNeighbors

    # float64: squared distances of bytes are whole numbers and thus exact, so near ties do not flip.
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(pixels.astype(np.float64))
    return search.kneighbors(return_distance=False).astype(np.int32)  # without an argument: not itself
