"""The Plan: which rows make up an epoch. Pixels are never copied; a resampled set takes 22 bytes per row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hbr_fast.files import require_ordinary
from hbr_fast.progress import counted
from hbr_fast.tensor_files import read_tensors, write_tensors

SCHEMA = 1
FORMS = {"store": "int16 [R]", "index": "int64 [R]", "partner": "int64 [R]", "weight": "float32 [R]"}  # of the columns


@dataclass(frozen=True)
class Plan:
    """The rows of one epoch, as parallel arrays (22 bytes per row).

    Attributes
    ----------
    store : int16 [R]
        Which image store the row comes from: 0 is the split itself, s > 0 is `stores[s - 1]`.
    index : int64 [R]
        Row of that store: the sample id.
    partner : int64 [R]
        Row of the same store to interpolate with, or -1 for none.
    weight : float32 [R]
        Share of the sample in the interpolated image, in [0, 1]; the partner has the rest. 1 without a partner.
    provenance : dict
        What made the plan (strategy, counts, seed, ...), JSON values only.
    stores : tuple of str
        Fingerprints of the additional image stores (pools).

    Examples
    --------
    >>> plan = Plan.of_rows(np.array([4, 2, 2]))  # samples 4 and 2, the latter twice
    >>> (len(plan), plan.index.tolist())
    (3, [4, 2, 2])
    """

    store: np.ndarray
    index: np.ndarray
    partner: np.ndarray
    weight: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stores: tuple[str, ...] = ()

    def __repr__(self) -> str:
        of = str(self.provenance.get("dataset", ""))[:12]
        pools = f" and {counted(len(self.stores), 'pool')}" if self.stores else ""
        return f"<Plan: {counted(len(self), 'row')} of {f'dataset {of}' if of else 'a split'}{pools}>"

    def __post_init__(self) -> None:
        for name, form in FORMS.items():
            array, dtype = getattr(self, name), form.split()[0]
            if array.dtype != dtype or array.shape != self.index.shape or array.ndim != 1:
                raise ValueError(
                    f"plan column {name!r} must be {dtype} with the shape of 'index' {self.index.shape}, "
                    f"got {array.dtype} {array.shape}"
                )

    @classmethod
    def of_rows(cls, index_r: np.ndarray, *, provenance: Mapping[str, Any] | None = None) -> Plan:
        """The plan of these rows of the split itself, without interpolation.

        Parameters
        ----------
        index_r : integer [R]
            Sample ids; repeats are allowed.
        provenance : dict, optional
            What made the plan.

        Raises
        ------
        ValueError
            If the rows are not a one-dimensional list of whole numbers.
        """
        rows = np.asarray(index_r)
        if rows.size and rows.dtype.kind not in "iu":
            raise ValueError(
                f"rows of a plan must be whole numbers, the sample ids, got {rows.dtype}"
                f"{': np.flatnonzero gives those of a mask' if rows.dtype == bool else ''}"
            )
        index = np.ascontiguousarray(rows, dtype=np.int64)
        return cls(
            store=np.zeros(index.shape, np.int16),
            index=index,
            partner=np.full(index.shape, -1, np.int64),
            weight=np.ones(index.shape, np.float32),
            provenance=dict(provenance or {}),
        )

    def __len__(self) -> int:
        return len(self.index)

    def content_hash(self) -> str:
        """SHA-256 of rows and stores, as hex digits. Provenance is excluded: equal rows train equally."""
        digest = hashlib.sha256()
        for array in (self.store, self.index, self.partner, self.weight):
            digest.update(np.ascontiguousarray(array).tobytes())
        for fingerprint in self.stores:
            digest.update(fingerprint.encode())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one safetensors file, atomically."""
        columns = {name: getattr(self, name) for name in FORMS}
        write_tensors(path, columns, {"schema": SCHEMA, "provenance": self.provenance, "stores": list(self.stores)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a plan of this schema, or a number in it cannot be one of a plan.
        """
        remedy = "make it with hbr-fast resample"
        columns, about = read_tensors(
            path, FORMS, what="a plan", remedy=remedy, about={"schema": SCHEMA, "provenance": dict}
        )
        stores = about.get("stores", [])
        faults = []
        if not isinstance(stores, list) or not all(isinstance(store, str) for store in stores):
            faults.append("stores are not a list of fingerprints")
        for name, lowest, largest in (("store", 0, None), ("index", 0, None), ("partner", -1, None), ("weight", 0, 1)):
            column = columns[name]
            fits = (column >= lowest) & (True if largest is None else column <= largest)
            if not fits.all():
                row = int(np.argmin(fits))
                faults.append(f"{name} of row {row} is {column[row]}")
        if faults:
            raise ValueError(f"{path} does not hold a plan ({'; '.join(faults)}): {remedy}")
        return cls(**columns, provenance=about["provenance"], stores=tuple(stores))


def is_plan(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as plans do, by the columns that its header names; the rest may be damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        require_ordinary(path)
        with safe_open(path, framework="numpy") as file:
            return set(file.keys()) == set(FORMS)
    except (SafetensorError, OSError, ValueError):
        return False
