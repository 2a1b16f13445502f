"""Recording with ids that are not row numbers, or whose number is unknown beforehand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hbr_fast.files import atomic_write
from hbr_fast.hardness.recorder import HardnessRecorder
from hbr_fast.hardness.recording import Recording
from hbr_fast.processes import in_process_group

if TYPE_CHECKING:
    import polars as pl
    import torch

    from hbr_fast.kernels.hardness.passes import Form

_FIRST_ROWS = 1024  # of the state; doubled when they are taken
_ONE_PROCESS = (
    "GrowingRecorder numbers samples as they come, so it records in one process: number the samples and make a "
    "HardnessRecorder with distributed=True"
)


class GrowingRecorder(HardnessRecorder):
    """A `HardnessRecorder` for any number of ids of any kind: file names, 64-bit hashes, streams of unknown length.

    Samples are numbered in the order of their first visit by a table on the host: ids on a GPU are read back for every
    batch. Scores are in that order, and `ids` identifies them.

    Parameters
    ----------
    num_classes : int
    **options
        Those of `HardnessRecorder` except `distributed` and `ignore_unknown_ids`.

    Attributes
    ----------
    ids : list of int or str
        Ids of the samples so far, in the order of their scores.

    Raises
    ------
    ValueError
        As in `HardnessRecorder`; also under `torch.compile`, where ids cannot be looked up on the host, and in a
        run with several processes, each of which would record only its own part.

    Examples
    --------
    >>> import torch
    >>> recorder = GrowingRecorder(num_classes=2)
    >>> recorder.record(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), ["a.png", "b.png"], epoch=0)
    >>> dict(zip(recorder.ids, recorder.scores().per_sample("aum").tolist()))
    {'a.png': 2.0, 'b.png': -1.0}
    """

    def __init__(self, num_classes: int, **options: Any) -> None:
        if "distributed" in options:
            raise ValueError(_ONE_PROCESS)
        if refused := {"num_samples", "ignore_unknown_ids"} & set(options):
            raise ValueError(f"a growing recorder has no option {', '.join(sorted(refused))}")
        super().__init__(_FIRST_ROWS, num_classes, **options)
        self.ids: list[int | str] = []
        self._place: dict[int | str, int] = {}
        self._new: dict[int | str, int] = {}  # of the current batch, which may yet be refused
        self.num_samples = 0

    def record(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: Any, *, epoch: int) -> None:
        """Add one observation per row; see `HardnessRecorder.record`.

        Parameters
        ----------
        ids_b : sequence of B int or str, or int tensor [B] or [B, ...]
            All of a recorder's ids are integers, or all are strings: a table could not tell 1 from "1".
        """
        super().record(logits_bc, labels_b, ids_b, epoch=epoch)

    def _checked(
        self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: Any, epoch: int
    ) -> tuple[Form | None, torch.Tensor, torch.Tensor, torch.Tensor, int]:
        return super()._checked(logits_bc, labels_b, self._rows_of(ids_b), epoch)

    def _note(
        self, form: Form | None, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int
    ) -> None:
        """Keep the new ids of a batch that was recorded."""
        super()._note(form, logits, labels, ids, epoch)
        self._place.update(self._new)
        self.ids += self._new
        self.num_samples = len(self.ids)

    def _rows_of(self, ids: Any) -> torch.Tensor:
        """The rows of samples, of new ones the next that are free: int64, in the shape of the ids."""
        import torch

        if torch.compiler.is_compiling():
            raise ValueError("a growing recorder looks ids up on the host: record outside what is compiled")
        if in_process_group() and torch.distributed.get_world_size() > 1:
            raise ValueError(_ONE_PROCESS)
        if isinstance(ids, torch.Tensor):
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise ValueError(f"ids must be integers or strings, got {ids.dtype}")
            shape, keys = ids.shape, ids.flatten().tolist()
        elif isinstance(ids, str | bytes) or not hasattr(ids, "__len__"):
            raise ValueError(f"ids must be a list, one for each sample, got {type(ids).__name__}")
        else:
            ids = ids.tolist() if hasattr(ids, "tolist") else ids  # numpy's numbers as Python's
            shape, keys = torch.Size([len(ids)]), list(ids)
            if wrong := [key for key in keys if isinstance(key, bool) or not isinstance(key, int | str)]:
                raise ValueError(f"ids must be integers or strings, got {type(wrong[0]).__name__}")
        if len({isinstance(key, str) for key in (*self.ids[:1], *keys)}) > 1:
            raise ValueError("the ids of a recorder are all integers or all strings, got both: 1 and '1' look alike")
        known = self._place
        place: dict[int | str, int] = {}
        for key in keys:
            if key not in known and key not in place:
                place[key] = len(known) + len(place)
        self._new = place
        needed = len(known) + len(place)
        if needed > self._rows:
            self._grow(max(needed, 2 * self._rows))
        rows = [place[key] if key in place else known[key] for key in keys]
        return torch.tensor(rows, dtype=torch.int64, device=self.sums.device).reshape(shape)

    def to_frame(self) -> pl.DataFrame:
        """The scores so far as a table with the ids; see `HardnessScores.to_frame`."""
        import polars as pl

        numbers = [key for key in self.ids if isinstance(key, int)]
        wide = bool(numbers) and min(numbers) < 0 and max(numbers) >= 2**63
        return super().to_frame().with_columns(pl.Series("sample_id", self.ids, dtype=pl.Int128 if wide else None))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of `to_frame`, which has the ids, to a CSV file."""
        with atomic_write(path) as file:
            self.to_frame().write_csv(file)

    def merge(self, other: Recording) -> None:
        """Not supported: growing recorders number samples differently.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("growing recorders number samples as they come: record in one process, or with row numbers")

    def state_dict(self) -> dict[str, Any]:
        """As in `HardnessRecorder`, with the ids."""
        state = super().state_dict()
        rows = max(1, len(self.ids))
        cut: dict[str, Any] = {
            name: state[name][:rows].clone() for name in ("sums", "counters", "probabilities") if name in state
        }
        return {**state, **cut, "ids": list(self.ids)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; see `HardnessRecorder.load_state_dict`."""
        if "ids" not in state or "options" not in state:
            raise ValueError(f"not the state of a growing recorder: it holds {', '.join(map(str, state)) or 'nothing'}")
        if len(set(state["ids"])) < len(state["ids"]):
            raise ValueError("not the state of a growing recorder: an id occurs twice in it")
        before = self._rows
        self._rows = max(1, len(state["ids"]))
        try:
            super().load_state_dict(state)
        except ValueError:
            self._rows = before
            raise
        self.ids = list(state["ids"])
        self._place = {key: row for row, key in enumerate(self.ids)}
        self.num_samples = len(self.ids)

    def _id_of(self, row: int) -> int | str:
        return self.ids[row] if row >= 0 else row

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in super()._options().items() if name != "num_samples"}
