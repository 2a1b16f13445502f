"""Recording: every estimator from the logits of training steps, in one pass and in place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hbr_fast.arguments import whole_number
from hbr_fast.files import canonical_json
from hbr_fast.hardness.estimators import RECORDED, estimator
from hbr_fast.hardness.scores import HardnessScores
from hbr_fast.hardness.state import NeverLearnt, columns_of, empty_state, values_of_state

if TYPE_CHECKING:
    import polars as pl
    import torch

    from hbr_fast.hardness.state import State
    from hbr_fast.kernels.hardness_pass import Form

_MOST_FORMS = 64  # remembered: where every batch has another size there is no end of them
_LEFT_OUT = [0, 2, 3]  # entries of the status that count rows


class HardnessRecorder:
    """Accumulates every estimator from the logits of training steps, in one pass and in place.

    Record the very logits the step produced (train mode, augmented image, before the update); every visit of a sample
    is one observation. With mixed images or smoothed labels, record against the hard label of the sample whose id it
    is; with accumulated gradients, record every micro-batch.

    Parameters
    ----------
    num_samples, num_classes : int
        Size of the dataset whose sample ids are recorded.
    estimators : sequence of str, optional
        Names of the in-loop estimators wanted (`RECORDED`), by default all.
    el2n_epochs : int
        EL2N is recorded in the first this many epochs.
    device : torch.device or str
        Where the logits will be; the state is kept there.
    members : int, optional
        Of an ensemble whose members are trained side by side: logits are then [M, B, C] and the scores of M members.
    distributed : bool
        This process is one rank of several that share the epoch: it also logs its visits (16 bytes each), and
        `merge_ranks` makes one recording of all.
    provenance : dict, optional
        What the scores should say of where they come from (dataset, recipe, seed, ...), JSON values.
    strangers : bool
        Let rows with ids from `num_samples` on pass and leave them out: images of other stores (`Loader(stores=...)`)
        have such ids. By default they are an error.

    Raises
    ------
    ValueError
        If a size is out of range, an estimator unknown or not of those recorded in the loop, or the provenance holds
        what is not JSON.

    Examples
    --------
    >>> import torch
    >>> recorder = HardnessRecorder(num_samples=3, num_classes=2)
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> recorder.record(logits, torch.tensor([0, 0]), torch.tensor([0, 2]), epoch=0)
    >>> recorder.scores().per_sample("aum")
    array([ 2., nan, -1.])
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        estimators: Sequence[str] | None = None,
        el2n_epochs: int = 20,
        device: torch.device | str = "cpu",
        members: int | None = None,
        distributed: bool = False,
        provenance: Mapping[str, Any] | None = None,
        strangers: bool = False,
    ) -> None:
        import torch

        from hbr_fast.hardness.ranks import VisitLog
        from hbr_fast.kernels import hardness_pass, ops_cross_entropy

        if num_samples < 1 or num_classes < 2 or el2n_epochs < 1:
            raise ValueError(
                "a recorder needs num_samples >= 1, num_classes >= 2 and el2n_epochs >= 1, "
                f"got {num_samples}, {num_classes} and {el2n_epochs}"
            )
        if members is not None and (members < 1 or distributed):
            raise ValueError(
                f"members must be at least 1, and 1 where distributed=True (make a recorder for each), got {members}"
            )
        self.num_samples = num_samples
        self.num_classes = num_classes
        self.members = members
        self.strangers = strangers
        self._rows = num_samples + strangers  # all strangers share a last row, which no score is made of
        self.estimators = _chosen(estimators)
        self.el2n_epochs = el2n_epochs
        self._epochs = 0
        # Under torch.compile: a number would be a part of what was compiled, and every epoch would compile again.
        self._compiled_epochs = torch.zeros((), dtype=torch.int64, device=device)
        self.provenance = _json_values(provenance or {})
        self.sums, self.counters, self.nonfinite = empty_state(self._rows, device, members)
        self._columns = columns_of(self.estimators)
        self._log = VisitLog() if distributed else None
        # Of a distributed recording: the visits of all ranks up to the last merge. The state above is then what this
        # rank visited since.
        self._merged = empty_state(self._rows, device) if distributed else None
        self._floats, self._integers = hardness_pass.FLOATS, hardness_pass.INTEGERS
        self._form_of, self._record = hardness_pass.plain_form_of, hardness_pass.record
        self._loss = ops_cross_entropy.cross_entropy
        # Forms of batches that were found to fit, each by itself: what is looked up by the very same form is found
        # without comparing all that it is made of.
        self._fitting: dict[Form | None, Form] = {}

    def record(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor, *, epoch: int) -> None:
        """Add one observation a row.

        Parameters
        ----------
        logits_bc : float [B, C], or [M, B, C] of M members
            On the recorder's device, of any float type and strides; gradients are not needed and not touched.
        labels_b, ids_b : int64 or int32 [B], or [M, B] of M members
            Hard labels and sample ids. Rows of label -100 are left out. An id may occur more than once: its rows count
            in their order.
        epoch : int
            From 0.

        Raises
        ------
        ValueError
            If a shape, label, id or device does not fit. Then nothing of the batch is recorded. Rows with a logit that
            is NaN or infinite are left out, counted, and reported by `scores`.
        """
        form, labels, ids, epoch = self._checked(logits_bc, labels_b, ids_b, epoch)
        into = self._into(epoch)
        if form is None:
            from hbr_fast.kernels import ops

            ops.record(logits_bc.detach(), labels, ids, *into)
        else:  # not through torch: its dispatch to Python takes longer than a small batch
            self._record(form, logits_bc, labels, ids, *into)
        self._note(form, logits_bc, labels, ids, epoch)

    def _into(self, epoch: int) -> tuple[Any, ...]:
        """What the kernels are told of an epoch and the state; see `ops.record`."""
        return epoch, self.el2n_epochs, self._columns, self.sums, self.counters, self.nonfinite

    def _checked(
        self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor, epoch: int
    ) -> tuple[Form | None, torch.Tensor, torch.Tensor, int]:
        """Form, labels, ids and epoch as the kernels take them, of arguments that fit this recorder.

        The form is None where torch must see an operator. Whether a batch fits is a matter of its form alone, so it
        is asked once for each.
        """
        given = self._form_of(logits_bc, labels_b, ids_b)
        form = self._fitting.get(given)
        if form is None:
            form = given
            if not self._fits(logits_bc, labels_b, ids_b):
                self._explain(logits_bc, labels_b, ids_b)
                labels_b, ids_b = _as_long(labels_b, ids_b)
                form = self._form_of(logits_bc, labels_b, ids_b)
            elif form is not None:
                if len(self._fitting) >= _MOST_FORMS:
                    self._fitting.clear()
                self._fitting[form] = form
        if self.strangers:
            ids_b = ids_b.clamp(max=self.num_samples)
            form = self._form_of(logits_bc, labels_b, ids_b)
        epoch = epoch if type(epoch) is int else whole_number("epoch", epoch)
        if not 0 <= epoch < 2**31:
            raise ValueError(f"epochs count from 0 and stay below 2**31, got {epoch}")
        return form, labels_b, ids_b, epoch

    def _fits(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> bool:
        """Whether the kernels can take these as they are."""
        try:
            shape, rows, device = logits_bc.shape, labels_b.shape, self.sums.device
            return (
                shape == (*rows, self.num_classes)
                and ids_b.shape == rows
                and (len(rows) == 1 if self.members is None else len(rows) == 2 and rows[0] == self.members)
                and logits_bc.dtype in self._floats
                and labels_b.dtype in self._integers
                and ids_b.dtype in self._integers
                and logits_bc.device == labels_b.device == ids_b.device == device
            )
        except AttributeError:  # not tensors
            return False

    def _explain(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> None:
        """Raise what does not fit, unless it is only that labels or ids are of another integer type."""
        import torch

        tensor = torch.Tensor
        if not (isinstance(logits_bc, tensor) and isinstance(labels_b, tensor) and isinstance(ids_b, tensor)):
            types = [type(given).__name__ for given in (logits_bc, labels_b, ids_b)]
            raise ValueError(f"logits, labels and ids must be torch tensors, got {types[0]}, {types[1]} and {types[2]}")
        leading = [] if self.members is None else [self.members]
        *shape, classes = logits_bc.shape or [0]
        if len(shape) != len(leading) + 1 or shape[:-1] != leading or classes != self.num_classes:
            wanted = ", ".join(map(str, [*leading, "B", self.num_classes]))
            raise ValueError(f"logits must be [{wanted}], got {list(logits_bc.shape)}")
        if list(labels_b.shape) != shape or list(ids_b.shape) != shape:
            raise ValueError(f"labels and ids must be {shape}, got {list(labels_b.shape)} and {list(ids_b.shape)}")
        if logits_bc.dtype not in self._floats:
            raise ValueError(f"logits must be float32, float64, float16 or bfloat16, got {logits_bc.dtype}")
        device = self.sums.device
        for what, given in (("logits", logits_bc), ("labels", labels_b), ("ids", ids_b)):
            if given.device != device:
                raise ValueError(
                    f"the {what} are on {given.device}, this recorder is on {device}: move them there, or make the "
                    "recorder with another device"
                )

    def _note(
        self, form: Form | None, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int
    ) -> None:
        """What is kept besides the state of samples, after a batch."""
        compiling = form is None and _is_compiling()
        if self._log is not None:
            if compiling:
                raise ValueError("a recorder with distributed=True logs visits: record outside what is compiled")
            self._log.add(logits.detach(), labels, ids.long(), epoch=epoch)
        if compiling:
            self._compiled_epochs.clamp_(min=epoch + 1)
        else:
            self._epochs = max(self._epochs, epoch + 1)

    @property
    def epochs(self) -> int:
        """Epochs so far: one more than the last that was recorded."""
        return max(self._epochs, int(self._compiled_epochs))

    def merge_ranks(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Make one recording of what all ranks visited since the last merge; afterwards all ranks hold the same.

        Every rank must call it. Once an epoch is best; once at the end gives the same and keeps a longer log. Counts,
        first-learned epochs and forgetting are those of one process that visits every row of every rank, in the order
        (epoch, row of the rank in the epoch, rank); sums are equal to rounding.

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
        if nonfinite[0] == 0:
            nonfinite[1] = first_not_finite
        nonfinite[_LEFT_OUT] += left_out
        epochs = torch.tensor([self.epochs], device=sums.device)
        ranks.all_reduce(epochs, group, "MAX")
        self._epochs = int(epochs)
        self.sums, self.counters, self.nonfinite = empty_state(self._rows, sums.device)
        self._log.clear()

    def merge(self, other: HardnessRecorder) -> None:
        """Add what another recorder of the same dataset recorded on samples that this one did not visit.

        For runs that share the samples out once and for all, in any number of processes or machines. Forgetting
        compares consecutive visits, so a sample that both visited is refused: use `merge_ranks` there.

        Raises
        ------
        ValueError
            If the recorders differ in size, options or dataset, or both visited a sample.
        """
        from hbr_fast.hardness import ranks
        from hbr_fast.kernels import cpu_hardness as k

        self._require_same(other._options())
        if self.members is not None:
            raise ValueError("recorders of several members are not merged: make one for each member")
        (sums, counters, nonfinite), (more_sums, more_counters, more_nonfinite) = self._whole(), other._whole()
        seen, seen_there = (one[: self.num_samples, k.OBSERVATIONS] > 0 for one in (counters, more_counters))
        both = (seen & seen_there).nonzero()
        if len(both):
            raise ValueError(
                f"sample {int(both[0])} and {len(both) - 1} more were visited by both recorders, in an order that is "
                "not known: use merge_ranks"
            )
        ranks.add_visits(sums, counters, more_sums, more_counters)
        counters[:, k.FORGOTTEN] += more_counters[:, k.FORGOTTEN]
        visited = more_counters[:, k.OBSERVATIONS] > 0
        counters[visited, k.LAST_CORRECT] = more_counters[visited, k.LAST_CORRECT]
        if nonfinite[0] == 0:
            nonfinite[1] = more_nonfinite[1]
        nonfinite[_LEFT_OUT] += more_nonfinite[_LEFT_OUT]
        self._epochs = max(self.epochs, other.epochs)

    def state_dict(self) -> dict[str, Any]:
        """What was recorded so far, for a checkpoint: the tensors `sums`, `counters`, `nonfinite` and `options`, JSON.

        Raises
        ------
        ValueError
            If this is a rank of a distributed recording that was not merged since it last recorded.
        """
        sums, counters, nonfinite = self._whole()
        return {
            "options": {**self._options(), "epochs": self.epochs},
            "sums": sums.clone(),
            "counters": counters.clone(),
            "nonfinite": nonfinite.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what was recorded here is dropped. Every rank of a distributed recording loads the same.

        Raises
        ------
        ValueError
            If the state is of a recorder with another size, option or dataset, or not a whole one; the message says
            what.
        """
        if not {"options", "sums", "counters", "nonfinite"} <= set(state):
            raise ValueError(f"not the state of a recorder: it holds {', '.join(map(str, state)) or 'nothing'}")
        options = dict(state["options"])
        epochs = options.pop("epochs")
        self._require_same(options)
        loaded = empty_state(self._rows, self.sums.device, self.members)
        for name, own in zip(("sums", "counters", "nonfinite"), loaded, strict=True):
            given = state[name]
            if given.shape != own.shape or given.dtype != own.dtype:  # the kernels write to addresses
                raise ValueError(
                    f"the state's {name} must be {own.dtype} {list(own.shape)}, got {given.dtype} {list(given.shape)}"
                )
            own.copy_(given)
        if self._log is None:
            self.sums, self.counters, self.nonfinite = loaded
        else:
            self._merged = loaded
            self.sums, self.counters, self.nonfinite = empty_state(self._rows, self.sums.device)
            self._log.clear()
        self._epochs = epochs
        self._compiled_epochs.zero_()

    def scores(self, *, never_learnt: NeverLearnt = "max+1") -> HardnessScores:
        """What was recorded so far, as the scores of one member, or of M.

        Parameters
        ----------
        never_learnt : "max+1", "zero" or "inf"
            Forgetting of samples never classified right, which have nothing to forget: one more than the largest
            count of the others (default), 0, or infinity.

        Raises
        ------
        ValueError
            If the policy is unknown, or this is a rank of a distributed recording that was not merged since it last
            recorded.
        """
        sums, counters, nonfinite = (tensor.cpu().numpy() for tensor in self._whole())
        left_out, first_id, bad_labels, bad_ids = nonfinite.tolist()
        if bad_labels or bad_ids:
            raise ValueError(
                f"{bad_labels} rows had a label outside [0, {self.num_classes}) and {bad_ids} an id outside "
                f"[0, {self.num_samples}), and were left out: was the recorder made for this dataset?"
            )
        values, observations, never = values_of_state(
            sums, counters, num_samples=self.num_samples, epochs=self.epochs, never_learnt=never_learnt
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
            values={name: values[name] for name in self.estimators},
            observations=observations,
            never_learnt=never,
            provenance=provenance,
        )

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
        """The state of the whole recording, all ranks of it."""
        if self._log is None or self._merged is None:
            return self.sums, self.counters, self.nonfinite
        if len(self._log):
            raise ValueError(f"this rank recorded {len(self._log)} visits since the last merge: call merge_ranks first")
        return self._merged

    def _options(self) -> dict[str, Any]:
        """What two recordings must share to be one, JSON values."""
        return {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "strangers": self.strangers,
            "members": self.members,
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
    """The estimators asked for, in the table's order."""
    if names is None:
        return RECORDED
    if isinstance(names, str) or not names:
        raise ValueError(f"estimators must be a list of at least one name, got {names!r}")
    for name in names:
        if estimator(name).name not in RECORDED:
            raise ValueError(f"{name} is not recorded in the loop: choose from {', '.join(RECORDED)}")
    return tuple(name for name in RECORDED if name in names)


def _json_values(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the provenance, refused now and not when the scores of a long training are saved."""
    try:
        canonical_json(dict(provenance))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the provenance must be JSON values: {error}") from None
    return dict(provenance)


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()


def _as_long(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Labels and ids of other integer types than the kernels take."""
    import torch

    for tensor in tensors:
        if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"labels and ids must be integers, got {tensors[0].dtype} and {tensors[1].dtype}")
    return [tensor.long() for tensor in tensors]
