"""`AUMCalculator` of the `aum` package (Pleiss et al. 2020), with its names, files and numbers.

A drop-in replacement: existing code only changes the import. New code should use `HardnessRecorder`, whose state has
constant size and which supports every other estimator too.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from hbr_fast.files import atomic_write

if TYPE_CHECKING:
    import torch

SampleId = int | str


@dataclass(frozen=True)
class AUMRecord:
    """One sample after one update.

    Attributes
    ----------
    sample_id : int or str
    num_measurements : int
        Updates of this sample so far.
    target_logit, other_logit : int
        Class of the label, and the other class with the largest logit.
    target_val, other_val : float
        Their logits.
    margin : float
        Their difference in this update.
    aum : float
        Mean margin so far.
    """

    sample_id: SampleId
    num_measurements: int
    target_logit: int
    target_val: float
    other_logit: int
    other_val: float
    margin: float
    aum: float


class AUMCalculator:
    """Area under the margin of any samples, identified by integers or strings.

    Parameters
    ----------
    save_dir : path
        Folder that `finalize` writes into.
    compressed : bool
        False: also keep the record of every update.

    Examples
    --------
    >>> import torch
    >>> calculator = AUMCalculator("aum")
    >>> records = calculator.update(torch.tensor([[2.0, 0.5]]), torch.tensor([0]), ["cat.png"])
    >>> records["cat.png"].aum
    1.5
    """

    def __init__(self, save_dir: str | os.PathLike[str], compressed: bool = True) -> None:
        self.save_dir = save_dir
        self.compressed = compressed
        self.counts: dict[SampleId, int] = {}
        self.sums: dict[SampleId, float] = {}
        self.records: list[AUMRecord] = []

    def update(
        self, logits: torch.Tensor, targets: torch.Tensor, sample_ids: Sequence[SampleId] | torch.Tensor
    ) -> dict[SampleId, AUMRecord]:
        """Add one margin per row.

        Parameters
        ----------
        logits : float [B, C]
        targets : int [B]
        sample_ids : sequence of int or str, or int tensor [B]

        Returns
        -------
        dict of sample id to AUMRecord
            The state of each sample of the batch; if one occurs twice, the later.

        Raises
        ------
        ValueError
            If the shapes or a target do not fit.
        """
        import torch

        ids = sample_ids.tolist() if isinstance(sample_ids, torch.Tensor) else list(sample_ids)
        if logits.ndim != 2 or targets.shape != logits.shape[:1] or len(ids) != len(logits):
            raise ValueError(
                f"logits, targets and sample_ids must be [B, C], [B] and B, got {list(logits.shape)}, "
                f"{list(targets.shape)} and {len(ids)}"
            )
        if len(ids) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
            low, high = int(targets.min()), int(targets.max())
            raise ValueError(f"targets must be classes in [0, {logits.shape[1]}), got some from {low} to {high}")
        logits, own = logits.detach(), targets.long()[:, None]
        target_values = logits.gather(1, own)[:, 0]
        other_values, other_classes = logits.scatter(1, own, float("-inf")).max(1)
        columns = (targets, target_values, other_classes, other_values, target_values - other_values)
        updated = {}
        for sample, target, target_value, other, other_value, margin in zip(
            ids, *(column.tolist() for column in columns), strict=True
        ):
            self.counts[sample] = self.counts.get(sample, 0) + 1
            self.sums[sample] = self.sums.get(sample, 0.0) + margin
            count = self.counts[sample]
            record = AUMRecord(
                sample, count, target, target_value, other, other_value, margin, self.sums[sample] / count
            )
            updated[sample] = record
            if not self.compressed:
                self.records.append(record)
        return updated

    def finalize(self, save_dir: str | os.PathLike[str] | None = None) -> None:
        """Write `aum_values.csv`, highest first, and if not compressed `full_aum_records.csv`, by sample and update."""
        folder = Path(save_dir or self.save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        values = [(sample, total / self.counts[sample]) for sample, total in self.sums.items()]
        values.sort(key=lambda value: -value[1])
        _write_csv(folder / "aum_values.csv", ["sample_id", "aum"], values)
        if not self.compressed:
            records = sorted(self.records, key=lambda record: (record.sample_id, record.num_measurements))
            names = [field.name for field in fields(AUMRecord)]
            _write_csv(folder / "full_aum_records.csv", names, map(astuple, records))


def _write_csv(path: Path, names: list[str], rows: Iterable[tuple[object, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
