"""The recording: the state of all samples, and how states are merged, saved and read as scores."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hbr_fast.arguments import whole_number
from hbr_fast.files import canonical_json
from hbr_fast.hardness.estimators import RECORDED, estimator
from hbr_fast.hardness.scores import HardnessScores
from hbr_fast.hardness.state import NeverLearnt, empty_state, values_of_state
from hbr_fast.kernels.hardness import layout
from hbr_fast.progress import counted

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from hbr_fast.hardness.state import State

_LEFT_OUT = list(layout.ROW_COUNTS)  # an index of tensors


class Recording:
    """The part of a `HardnessRecorder` that does not deal with batches; it has the same parameters."""

    def __repr__(self) -> str:
        sizes = f"{counted(self.num_samples, 'sample')} of {self.num_classes:,} classes"
        seen = f"{counted(self._epochs, 'epoch')} begun, {counted(len(self.estimators), 'estimator')}"
        return f"<{type(self).__name__}: {sizes}, {seen}>"

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        estimators: Sequence[str] | None,
        el2n_epochs: int,
        device: torch.device | str,
        distributed: bool,
        provenance: Mapping[str, Any] | None,
        ignore_unknown_ids: bool,
        ignore_index: int,
        mean_probabilities: bool,
    ) -> None:
        import torch

        from hbr_fast.hardness.probabilities import SummedProbabilities
        from hbr_fast.hardness.ranks import VisitLog

        # Python's own numbers: states go into checkpoints that are loaded without unpickling anything else.
        num_samples, num_classes = whole_number("num_samples", num_samples), whole_number("num_classes", num_classes)
        el2n_epochs = whole_number("el2n_epochs", el2n_epochs)
        if num_samples < 1 or num_classes < 2 or el2n_epochs < 1:
            raise ValueError(
                "a recorder needs num_samples >= 1, num_classes >= 2 and el2n_epochs >= 1, "
                f"got {num_samples}, {num_classes} and {el2n_epochs}"
            )
        self.num_samples = num_samples
        self.num_classes = num_classes
        self.ignore_unknown_ids = bool(ignore_unknown_ids)
        self.ignore_index = whole_number("ignore_index", ignore_index)
        self._rows = num_samples + self.ignore_unknown_ids  # unknown ids share an extra last row, which no score uses
        self.estimators = _chosen(estimators)
        self.el2n_epochs = el2n_epochs
        self._epochs = 0
        self._warned = False  # rows that were not recorded
        # For torch.compile: a plain number would be a constant of the compiled code, which every epoch would recompile.
        self._compiled_epochs = torch.zeros((), dtype=torch.int64, device=device)
        self.provenance = _json_values(provenance or {})
        self.sums, self.counters, self.nonfinite = empty_state(self._rows, device)
        self._probabilities: SummedProbabilities | None = None
        if mean_probabilities:
            self._probabilities = SummedProbabilities(self._rows, num_classes, device, distributed=distributed)
        self._log = VisitLog() if distributed else None
        # In a distributed recording: the visits of all ranks up to the last merge. The state above then holds this
        # rank's visits since.
        self._merged = empty_state(self._rows, device) if distributed else None

    def _grow(self, rows: int) -> None:
        """Make room for more samples."""
        more = empty_state(rows, self.sums.device)
        for own, larger in zip((self.sums, self.counters), more, strict=False):
            larger[: self._rows] = own
        self.sums, self.counters = more[:2]
        if self._probabilities is not None:
            self._probabilities.grow(rows)
        self._rows = rows

    @property
    def epochs(self) -> int:
        """Epochs so far: one more than the last recorded epoch."""
        return max(self._epochs, int(self._compiled_epochs))

    def merge_ranks(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Merge the visits of all ranks since the last merge; afterwards all ranks hold the same recording.

        Every rank must call it. Once per epoch is best; once at the end gives the same result but needs a longer log.
        Counts, first-learned epochs and forgetting equal those of one process that visits every row of every rank, in
        the order (epoch, row of the rank in the epoch, rank); sums are equal to rounding.

        Raises
        ------
        ValueError
            If the recorder was not made with `distributed=True`.
        """
        import torch

        from hbr_fast.hardness import ranks

        if self._log is None or self._merged is None:
            raise ValueError("only a recorder made with distributed=True keeps what merging ranks needs")
        sums, counters, nonfinite = self._merged
        ranks.reduce_visits(self.sums, self.counters, group)
        ranks.add_visits(sums, counters, self.sums, self.counters)
        visits = self._log.gathered(device=sums.device, group=group)
        first_not_finite = ranks.replay_transitions(counters, visits)
        left_out = self.nonfinite[_LEFT_OUT]
        ranks.all_reduce(left_out, group)
        if nonfinite[layout.ROWS_NOT_FINITE] == 0:
            nonfinite[layout.FIRST_NOT_FINITE] = first_not_finite
        nonfinite[_LEFT_OUT] += left_out
        if self._probabilities is not None:
            self._probabilities.merge_ranks(group)
        epochs = torch.tensor([self.epochs], device=sums.device)
        ranks.all_reduce(epochs, group, "MAX")
        self._epochs = int(epochs)
        self.sums, self.counters, self.nonfinite = empty_state(self._rows, sums.device)
        self._log.clear()

    def merge(self, other: Recording) -> None:
        """Add the recording of another recorder of the same dataset on samples that this one did not visit.

        For runs with a fixed partition of the samples, in any number of processes or machines. Forgetting compares
        consecutive visits, so a sample that both visited is refused: use `merge_ranks` in that case.

        Raises
        ------
        ValueError
            If the recorders differ in size, options or dataset, or both visited a sample.
        """
        from hbr_fast.hardness import ranks

        self._require_same(other._options())
        (sums, counters, nonfinite), (more_sums, more_counters, more_nonfinite) = self._whole(), other._whole()
        seen, seen_there = (one[: self.num_samples, layout.OBSERVATIONS] > 0 for one in (counters, more_counters))
        both = (seen & seen_there).nonzero()
        if len(both):
            raise ValueError(
                f"sample {int(both[0])} and {len(both) - 1} more were visited by both recorders, in an order that is "
                "not known: use merge_ranks"
            )
        ranks.add_visits(sums, counters, more_sums, more_counters)
        counters[:, layout.FORGOTTEN] += more_counters[:, layout.FORGOTTEN]
        visited = more_counters[:, layout.OBSERVATIONS] > 0
        counters[visited, layout.LAST_CORRECT] = more_counters[visited, layout.LAST_CORRECT]
        if nonfinite[layout.ROWS_NOT_FINITE] == 0:
            nonfinite[layout.FIRST_NOT_FINITE] = more_nonfinite[layout.FIRST_NOT_FINITE]
        nonfinite[_LEFT_OUT] += more_nonfinite[_LEFT_OUT]
        if self._probabilities is not None and other._probabilities is not None:
            self._probabilities.total += other._probabilities.total
        self._epochs = max(self.epochs, other.epochs)

    def state_dict(self) -> dict[str, Any]:
        """The recording so far, for a checkpoint: the tensors `sums`, `counters`, `nonfinite`, and JSON `options`.

        With mean probabilities also the tensor `probabilities`.

        Raises
        ------
        ValueError
            If this is a rank of a distributed recording that recorded since the last merge.
        """
        sums, counters, nonfinite = self._whole()
        return {
            "options": {**self._options(), "epochs": self.epochs},
            "sums": sums.clone(),
            "counters": counters.clone(),
            "nonfinite": nonfinite.clone(),
            **({} if self._probabilities is None else {"probabilities": self._probabilities.total.clone()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state, replacing this recording. Every rank of a distributed recording loads the same state.

        Raises
        ------
        ValueError
            If the state is from a recorder with another size, option or dataset, or is incomplete; the message says
            what differs.
        """
        import torch

        if not {"options", "sums", "counters", "nonfinite"} <= set(state):
            raise ValueError(f"not the state of a recorder: it holds {', '.join(map(str, state)) or 'nothing'}")
        options = dict(state["options"])
        epochs = options.pop("epochs")
        self._require_same(options)
        loaded = empty_state(self._rows, self.sums.device)
        targets = dict(zip(("sums", "counters", "nonfinite"), loaded, strict=True))
        if self._probabilities is not None:
            targets["probabilities"] = self.sums.new_zeros(self._rows, self.num_classes, dtype=torch.float32)
        for name, own in targets.items():
            given = state[name]
            if given.shape != own.shape or given.dtype != own.dtype:  # the kernels write to addresses
                raise ValueError(
                    f"the state's {name} must be {own.dtype} {list(own.shape)}, got {given.dtype} {list(given.shape)}"
                )
            own.copy_(given)
        if self._probabilities is not None:
            self._probabilities.restart(targets["probabilities"])
        if self._log is None:
            self.sums, self.counters, self.nonfinite = loaded
        else:
            self._merged = loaded
            self.sums, self.counters, self.nonfinite = empty_state(self._rows, self.sums.device)
            self._log.clear()
        self._epochs = epochs
        self._compiled_epochs.zero_()

    def scores(self, *, never_learnt: NeverLearnt = "max+1") -> HardnessScores:
        """The recording so far, as the scores of one member.

        Parameters
        ----------
        never_learnt : "max+1", "zero" or "inf"
            Forgetting score of samples never classified right, which have nothing to forget: one more than the largest
            count of the others (default), 0, or infinity.

        Raises
        ------
        ValueError
            If the policy is unknown, or this is a rank of a distributed recording that was not merged since it last
            recorded.
        """
        sums, counters, nonfinite = (tensor.cpu().numpy() for tensor in self._whole())
        left_out, first, bad_labels, bad_ids = nonfinite.tolist()
        first_id = self._id_of(first)
        if bad_labels or bad_ids:
            raise ValueError(
                f"{bad_labels} rows had a label outside [0, {self.num_classes}) and {bad_ids} an id outside "
                f"[0, {self.num_samples}), and were left out: was the recorder made for this dataset?"
            )
        if left_out and not self._warned:
            self._warned = True
            warnings.warn(
                f"{left_out} rows were not recorded, the first of sample {first_id}: a logit was NaN or +inf, or "
                "the sample's own class, or every other, was masked (-inf)",
                stacklevel=2,
            )
        values, observations, never = values_of_state(
            sums,
            counters,
            estimators=self.estimators,
            num_samples=self.num_samples,
            epochs=self.epochs,
            never_learnt=never_learnt,
        )
        provenance = {
            **self.provenance,
            "epochs": self.epochs,
            "el2n_epochs": self.el2n_epochs,
            "never_learnt": never_learnt,
            "rows_not_finite": left_out,
            "first_id_not_finite": first_id,
        }
        return HardnessScores(
            values=values,
            observations=observations,
            never_learnt=never,
            provenance=provenance,
        )

    def mean_probabilities(self) -> np.ndarray:
        """Mean predicted probabilities of each sample over its visits: float32 [N, C], NaN if there is none.

        They come from the steps that trained on the sample: label-error tools that need out-of-sample probabilities
        require held-out folds instead.

        Raises
        ------
        ValueError
            If the recorder was not made with `mean_probabilities=True`, or is a rank that was not merged.
        """
        if self._probabilities is None:
            raise ValueError("make the recorder with mean_probabilities=True to keep them: they take 4 N C bytes")
        counters = self._whole()[1]
        return self._probabilities.means(counters[:, layout.OBSERVATIONS])[: self.num_samples]

    def to_frame(self) -> pl.DataFrame:
        """The scores so far as a table; see `HardnessScores.to_frame`."""
        return self.scores().to_frame()

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of `to_frame` to a CSV file."""
        self.scores().to_csv(path)

    @property
    def distributed(self) -> bool:
        """Whether this is one rank of a distributed recording."""
        return self._log is not None

    def _whole(self) -> State:
        """The state of the whole recording, over all ranks."""
        if self._log is None or self._merged is None:
            return self.sums, self.counters, self.nonfinite
        if len(self._log):
            raise ValueError(f"this rank recorded {len(self._log)} visits since the last merge: call merge_ranks first")
        return self._merged

    def _id_of(self, row: int) -> int | str:
        """The id of a row of the state."""
        return row

    def _options(self) -> dict[str, Any]:
        """What two recordings must share to be merged, as JSON values."""
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "ignore_unknown_ids": self.ignore_unknown_ids,
            "ignore_index": self.ignore_index,
            "mean_probabilities": self._probabilities is not None,
            "estimators": list(self.estimators),
            "el2n_epochs": self.el2n_epochs,
            "dataset": self.provenance.get("dataset"),
        }

    def _require_same(self, options: Mapping[str, Any]) -> None:
        for name, own in self._options().items():
            if options.get(name) != own:
                raise ValueError(
                    f"this recorder has {name} {own}, the other {options.get(name)}: they cannot be joined"
                )


def _chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The requested estimators, in the table's order."""
    if names is None:
        return RECORDED
    if isinstance(names, str) or not names:
        raise ValueError(f"estimators must be a list of at least one name, got {names!r}")
    for name in names:
        if estimator(name).name not in RECORDED:
            raise ValueError(f"{name} is not recorded in the loop: choose from {', '.join(RECORDED)}")
    return tuple(name for name in RECORDED if name in names)


def _json_values(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance after a round trip through JSON: refused now, not when the scores of a long training are saved."""
    try:
        read_back: dict[str, Any] = json.loads(canonical_json(dict(provenance)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the provenance must be JSON values: {error}") from None
    return read_back
