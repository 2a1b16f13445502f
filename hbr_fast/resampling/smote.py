"""Nearest neighbours of the same class in raw pixel space, found once per class and kept by the class's content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.files import atomic_write
from hbr_fast.resampling.ranking import class_name, members_of_classes

ROWS_AT_ONCE = 1000  # of the distance matrix


def same_class_neighbours(
    images_nchw: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    *,
    k: int = 5,
    ids: np.ndarray | None = None,
    wanted_of: Sequence[int] | None = None,
    cache: Path | None = None,
    device: Any = None,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """The `k` nearest neighbours of each sample among those of its class, by Euclidean distance of raw pixels.

    Parameters
    ----------
    images_nchw : uint8 [N, C, H, W]
    labels_n : integer [N]
    num_classes : int
    k : int
        Neighbours a sample.
    ids : integer [K], optional
        The samples that are there; by default all.
    wanted_of : sequence of int, optional
        Classes to search; by default all.
    cache : path, optional
        A directory that keeps what was found, one file a class, named by the hash of its pixels and `k`.
    device : torch.device or str, optional
        Search with torch there; by default with scikit-learn on the CPU. Both are exact; neighbours that are equally
        far may come out in another order.
    classes : sequence of str, optional
        Class names for the messages of errors.

    Returns
    -------
    int64 [N, k]
        Sample ids, the nearest first; -1 for samples that are not there or not of a wanted class.

    Raises
    ------
    ValueError
        If a class has no `k` other samples: the message names class, wanted and available.
    """
    there = np.arange(len(labels_n)) if ids is None else np.sort(np.asarray(ids, np.int64))
    neighbours_nk = np.full((len(labels_n), k), -1, np.int64)
    members = members_of_classes(np.asarray(labels_n, np.int64)[there], num_classes)
    for c in range(num_classes) if wanted_of is None else wanted_of:
        own = there[members[c]]
        if len(own) <= k:
            raise ValueError(
                f"{class_name(c, classes)} wants {k} neighbours a sample but has {max(len(own) - 1, 0)} other samples: "
                "lower k, prune less, or oversample another way"
            )
        neighbours_nk[own] = own[_of_class(images_nchw[own], k, cache=cache, device=device)]
    return neighbours_nk


def _of_class(images_nchw: np.ndarray, k: int, *, cache: Path | None, device: Any) -> np.ndarray:
    """Places of each image's neighbours among these images, int32 [n, k]; from the cache where it has them."""
    if cache is None:
        return _search(images_nchw, k, device)
    digest = hashlib.sha256(f"{images_nchw.shape} {k} ".encode())
    digest.update(np.ascontiguousarray(images_nchw).data)
    path = cache / f"neighbours-{digest.hexdigest()[:20]}.npy"
    if path.exists():
        found: np.ndarray = np.load(path, allow_pickle=False)
        return found
    found = _search(images_nchw, k, device)
    cache.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.save(file, found, allow_pickle=False)
    return found


def _search(images_nchw: np.ndarray, k: int, device: Any) -> np.ndarray:
    pixels = images_nchw.reshape(len(images_nchw), -1)
    if device is not None:
        return _search_with_torch(pixels, k, device)
    from sklearn.neighbors import NearestNeighbors

    # float64: squared distances of bytes are whole numbers and come out exact, so that near ties do not flip.
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(pixels.astype(np.float64))
    return search.kneighbors(return_distance=False).astype(np.int32)  # without an argument: not itself


def _search_with_torch(pixels: np.ndarray, k: int, device: Any) -> np.ndarray:
    import torch

    points = torch.from_numpy(pixels).to(device).double()
    squares = points.square().sum(1)
    found = []
    for start in range(0, len(points), ROWS_AT_ONCE):
        rows = points[start : start + ROWS_AT_ONCE]
        distance = squares - 2 * rows @ points.T  # the row's own square is the same for all its candidates
        distance[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        found.append(distance.topk(k, largest=False).indices.int().cpu())
    return torch.cat(found).numpy()
