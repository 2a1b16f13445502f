"""The Plan: which rows make an epoch. Pixels are never copied; a resampled set is 22 bytes a row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hbr_fast.files import atomic_write, canonical_json

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """The rows of one epoch, as parallel arrays (22 bytes a row).

    Attributes
    ----------
    store : int16 [R]
        Which image store the row comes from: 0 is the split itself, s > 0 is `stores[s - 1]`.
    index : int64 [R]
        Row of that store: the sample id.
    partner : int64 [R]
        Row of the same store to interpolate with, or -1 for none.
    weight : float32 [R]
        Share of the sample in the interpolated image, in [0, 1]; the partner has the rest. 1 without partner.
    provenance : dict
        What made the plan (strategy, counts, seed, ...), JSON values only.
    stores : tuple of str
        Fingerprints of the image stores (pools) beside the split.
    """

    store: np.ndarray
    index: np.ndarray
    partner: np.ndarray
    weight: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in (
            ("store", "int16"),
            ("index", "int64"),
            ("partner", "int64"),
            ("weight", "float32"),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != self.index.shape or array.ndim != 1:
                raise ValueError(
                    f"plan column {name!r} must be {dtype} with the shape of 'index' {self.index.shape}, "
                    f"got {array.dtype} {array.shape}"
                )

    @classmethod
    def of_rows(cls, index_r: np.ndarray, *, provenance: Mapping[str, Any] | None = None) -> Plan:
        """The plan that takes these rows of the split itself, as they are.

        Parameters
        ----------
        index_r : integer [R]
            Sample ids; repeats are allowed.
        provenance : dict, optional
            What made the plan.

        Raises
        ------
        ValueError
            If the rows are not one list of whole numbers.
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
        """SHA-256 of rows and stores, as hex digits. Provenance does not count: equal rows train equally."""
        digest = hashlib.sha256()
        for array in (self.store, self.index, self.partner, self.weight):
            digest.update(np.ascontiguousarray(array).tobytes())
        for fingerprint in self.stores:
            digest.update(fingerprint.encode())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one safetensors file, atomically."""
        from safetensors.numpy import save

        columns = {name: getattr(self, name) for name in ("store", "index", "partner", "weight")}
        header = {"schema": SCHEMA, "provenance": self.provenance, "stores": list(self.stores)}
        # One key: the order of several would differ from write to write, and equal plans are equal bytes.
        metadata = {"hbr_fast": canonical_json(header)}
        with atomic_write(path) as file:
            file.write(save(columns, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises
        ------
        ValueError
            If the file is not a plan of this schema.
        """
        from safetensors import SafetensorError, safe_open

        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no plan file {path}: make one with hbr-fast resample")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads((file.metadata() or {}).get("hbr_fast", "{}"))
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a plan file ({error}): make the plan again") from None
        if metadata.get("schema") != SCHEMA or set(columns) != {"store", "index", "partner", "weight"}:
            raise ValueError(f"{path} is not a plan of schema {SCHEMA}: make the plan again with this version")
        return cls(**columns, provenance=metadata["provenance"], stores=tuple(metadata.get("stores", ())))
