"""Recording: every estimator from the logits of training steps, in one pass and in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hbr_fast.arguments import whole_number
from hbr_fast.hardness.recording import Recording
from hbr_fast.hardness.state import columns_of
from hbr_fast.kernels.hardness import layout

if TYPE_CHECKING:
    import torch

    from hbr_fast.kernels.hardness.passes import Form

_MOST_FORMS = 64  # cached forms: the number of batch sizes is unbounded


class HardnessRecorder(Recording):
    """Accumulates every estimator from the logits of training steps, in one pass and in place.

    Record exactly the logits of the training step (train mode, augmented image, before the update); every visit of a
    sample is one observation. With mixed images or smoothed labels, record against the hard label of the sample with
    that id; with gradient accumulation, record every micro-batch.

    Parameters
    ----------
    num_samples, num_classes : int
        Size of the dataset whose sample ids are recorded.
    estimators : sequence of str, optional
        In-loop estimators to record (names from `RECORDED`), by default all.
    el2n_epochs : int
        EL2N is recorded in the first `el2n_epochs` epochs.
    device : torch.device or str
        Device of the logits; the state is kept there.
    distributed : bool
        This process is one of several ranks that share the epoch: it also logs its visits (16 bytes each), and
        `merge_ranks` merges all into one recording.
    provenance : dict, optional
        Where the scores come from (dataset, recipe, seed, ...), JSON values.
    ignore_unknown_ids : bool
        Leave out rows with ids of `num_samples` or more: images of other stores (`Loader(stores=...)`) have such ids.
        By default they are an error.
    ignore_index : int
        Label of rows to leave out (padding, unlabelled pixels), besides -100.
    mean_probabilities : bool
        Also keep the mean of each sample's predicted probabilities, which takes 4 N C bytes: see the method of the
        same name.

    Raises
    ------
    ValueError
        If a size is out of range, an estimator is unknown or not recorded in the loop, or the provenance is not JSON.

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
        distributed: bool = False,
        provenance: Mapping[str, Any] | None = None,
        ignore_unknown_ids: bool = False,
        ignore_index: int = layout.IGNORED_LABEL,
        mean_probabilities: bool = False,
    ) -> None:
        from hbr_fast.kernels.hardness import ops_cross_entropy, passes

        super().__init__(
            num_samples,
            num_classes,
            estimators=estimators,
            el2n_epochs=el2n_epochs,
            device=device,
            distributed=distributed,
            provenance=provenance,
            ignore_unknown_ids=ignore_unknown_ids,
            ignore_index=ignore_index,
            mean_probabilities=mean_probabilities,
        )
        self._columns = columns_of(self.estimators)
        self._floats, self._integers = passes.FLOATS, passes.INTEGERS
        self._form_of, self._record = passes.plain_form_of, passes.record
        self._loss = ops_cross_entropy.cross_entropy
        # Forms of batches that were found to fit, each mapped to itself: a lookup with the identical object succeeds
        # without comparing its parts.
        self._fitting: dict[Form | None, Form] = {}

    def record(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor, *, epoch: int) -> None:
        """Add one observation per row.

        Parameters
        ----------
        logits_bc : float [B, C]
            On the recorder's device, of any float type and strides; gradients are not needed and not touched. For
            tokens or pixels [B, ..., C], classes last. For two classes also one logit z per row, [B] or [B, ..., 1],
            which stands for the logits 0 and z.
        labels_b, ids_b : int64 or int32 [B]
            Hard labels and sample ids. Rows of label -100 are left out. An id may occur more than once: its rows count
            in their order. For tokens the labels are [B, ...], and there is one id per token, or [B], one per sample,
            whose tokens are then consecutive visits. With one logit per row labels may be floats in [0, 1], class 1
            above 0.5.
        epoch : int
            From 0.

        Raises
        ------
        ValueError
            If a shape, label, id or device does not fit. Then nothing of the batch is recorded. Classes may be masked
            by a logit of -inf: they are ignored. Rows with a logit that is NaN or +inf, or whose own class or all
            others are masked, are left out and counted; `scores` warns of them once.
        """
        form, logits, labels, ids, epoch = self._checked(logits_bc, labels_b, ids_b, epoch)
        into = self._into(epoch)
        if form is None:
            from hbr_fast.kernels.hardness import ops

            ops.record(logits.detach(), labels, ids, *into)
        else:  # bypasses torch, whose dispatch to Python takes longer than a small batch
            self._record(form, logits, labels, ids, *into)
        self._note(form, logits, labels, ids, epoch)

    def _into(self, epoch: int) -> tuple[Any, ...]:
        """Epoch and state in the kernels' form; see `ops.record`."""
        return epoch, self.el2n_epochs, self._columns, self.sums, self.counters, self.nonfinite

    def _checked(
        self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor, epoch: int
    ) -> tuple[Form | None, torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Form, logits, labels, ids and epoch in the kernels' form, checked to fit this recorder.

        The form is None if torch must see an operator. Whether a batch fits depends on its form alone, so each form is
        checked once.
        """
        given = self._form_of(logits_bc, labels_b, ids_b)
        form = self._fitting.get(given)
        if form is None:
            form = given
            if not self._fits(logits_bc, labels_b, ids_b):
                logits_bc, labels_b, ids_b = self._as_rows(logits_bc, labels_b, ids_b)
                form = self._form_of(logits_bc, labels_b, ids_b)
            elif form is not None:
                if len(self._fitting) >= _MOST_FORMS:
                    self._fitting.clear()
                self._fitting[form] = form
        if self.ignore_unknown_ids:
            ids_b = ids_b.clamp(max=self.num_samples)
            form = self._form_of(logits_bc, labels_b, ids_b)
        if self.ignore_index != layout.IGNORED_LABEL:
            labels_b = labels_b.masked_fill(labels_b == self.ignore_index, layout.IGNORED_LABEL)
            form = self._form_of(logits_bc, labels_b, ids_b)
        epoch = epoch if type(epoch) is int else whole_number("epoch", epoch)
        if not 0 <= epoch < 2**31:
            raise ValueError(f"epochs count from 0 and stay below 2**31, got {epoch}")
        return form, logits_bc, labels_b, ids_b, epoch

    def _fits(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> bool:
        """Whether the kernels can take these unchanged."""
        try:
            shape, rows, device = logits_bc.shape, labels_b.shape, self.sums.device
            return (
                len(rows) == 1
                and shape == (*rows, self.num_classes)
                and ids_b.shape == rows
                and logits_bc.dtype in self._floats
                and labels_b.dtype in self._integers
                and ids_b.dtype in self._integers
                and logits_bc.device == labels_b.device == ids_b.device == device
            )
        except AttributeError:  # not tensors
            return False

    def _as_rows(
        self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of a batch of another form, or with labels or ids of another integer type; raises if it does not fit."""
        import torch

        from hbr_fast.hardness.rows import as_long, rows_of

        tensor = torch.Tensor
        if not (isinstance(logits_bc, tensor) and isinstance(labels_b, tensor) and isinstance(ids_b, tensor)):
            types = [type(given).__name__ for given in (logits_bc, labels_b, ids_b)]
            hint = "; GrowingRecorder takes lists of ids" if isinstance(ids_b, list | tuple) else ""
            raise ValueError(
                f"logits, labels and ids must be torch tensors, got {types[0]}, {types[1]} and {types[2]}{hint}"
            )
        whole_shape = list(logits_bc.shape)
        logits_bc, labels_b, ids_b = rows_of(logits_bc, labels_b, ids_b, self.num_classes, self.ignore_index)
        *shape, classes = logits_bc.shape or [0]
        if len(shape) != 1 or classes != self.num_classes:
            hint = ""
            if len(whole_shape) > 2:
                hint = ": for tokens or pixels the classes come last, labels are [B, ...] and ids the same or [B]"
            raise ValueError(f"logits must be [B, {self.num_classes}], got {whole_shape}{hint}")
        if list(labels_b.shape) != shape or list(ids_b.shape) != shape:
            raise ValueError(f"labels and ids must be {shape}, got {list(labels_b.shape)} and {list(ids_b.shape)}")
        if logits_bc.dtype not in self._floats:
            raise ValueError(f"logits must be float32, float64, float16 or bfloat16, got {logits_bc.dtype}")
        device = self.sums.device
        for what, given in (("logits", logits_bc), ("labels", labels_b), ("ids", ids_b)):
            if given.device != device:
                raise ValueError(
                    f"the {what} are on {given.device}, but this recorder is on {device}: move them there, or make the "
                    "recorder with another device"
                )
        labels_b, ids_b = as_long(labels_b, ids_b)
        return logits_bc, labels_b, ids_b

    def _note(
        self, form: Form | None, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int
    ) -> None:
        """Update everything besides the state of samples, after a batch."""
        compiling = form is None and _is_compiling()
        if self._log is not None:
            if compiling:
                raise ValueError("a recorder with distributed=True logs visits: record outside what is compiled")
            self._log.add(logits.detach(), labels, ids.long(), epoch=epoch)
        if self._probabilities is not None:
            self._probabilities.add(logits.detach(), labels, ids)
        if compiling:
            self._compiled_epochs.clamp_(min=epoch + 1)
        else:
            self._epochs = max(self._epochs, epoch + 1)


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()
