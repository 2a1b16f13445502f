"""How and where members train: one value, passed from the command line to the engine that trains them.

Imports neither torch nor Ray, so that the command line shows its help quickly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import torch

    from hbr_fast.training.checkpoint import CheckpointEvery
    from hbr_fast.training.device import Compute


@dataclass(frozen=True)
class Execution:
    """How and where members train.

    Attributes
    ----------
    members_at_once : int or "auto"
        Members that train at the same time, each in a process of one thread; 1 trains them in this process with all
        its threads, auto is one per core, or 1 on a GPU.
    device : str
        auto (a GPU if there is one), cpu, cuda or cuda:N.
    compile : bool
        Compile the network with CUDA graphs, on a GPU.
    cluster : str, optional
        Train on a Ray cluster: local, auto or HOST:PORT of its head.
    cpus_per_member : float
        Processors per member on the cluster; it computes with as many threads, rounded down, at least one.
    gpus_per_member : float
        GPUs per member on the cluster; a fraction shares one.
    retries : int
        How often the cluster restarts a member after its worker or node died.
    checkpoint_every_epochs : int
        Save unfinished members every N epochs; 0 goes by time alone.
    checkpoint_minutes : float
        Save unfinished members every N minutes; inf goes by epochs alone.
    tensorboard : bool
        Write the results of epochs for TensorBoard, below OUT/tensorboard.

    Examples
    --------
    >>> Execution(members_at_once=2, device="cpu").checked().at_once(16)
    2
    >>> Execution(cluster="local", tensorboard=True, device="cuda").checked()
    Traceback (most recent call last):
        ...
    ValueError: each node of a cluster computes on what it has: leave out the cluster, or device and compile; \
TensorBoard's files are written where members train: leave out the cluster or tensorboard
    """

    members_at_once: int | Literal["auto"] = 1
    device: str = "auto"
    compile: bool = False
    cluster: str | None = None
    cpus_per_member: float = 1.0
    gpus_per_member: float = 0.0
    retries: int = 3
    checkpoint_every_epochs: int = 0
    checkpoint_minutes: float = 5.0
    tensorboard: bool = False

    def checked(self, *, processes: int = 1) -> Execution:
        """This value, if it is valid and its options are compatible.

        Parameters
        ----------
        processes : int
            Number of torchrun processes that train each member together.

        Raises
        ------
        ValueError
            With every fault: values out of range, and incompatible options.
        """
        if faults := [*self._out_of_range(), *self._conflicts(processes)]:
            raise ValueError("; ".join(faults))
        return self

    def at_once(self, members: int) -> int:
        """How many members to train at the same time on this machine, of `members` to train.

        "auto" is the fastest setting found in docs/ensembles.md: one per core. A GPU trains one after another: several
        at once are not measured.
        """
        if self.members_at_once != "auto":
            return max(1, min(self.members_at_once, members))
        from hbr_fast.machine import usable_cpus

        return max(1, min(members, usable_cpus())) if self.training_device().type == "cpu" else 1

    @property
    def compute(self) -> Compute:
        """The part for a training: the device, and whether to compile."""
        from hbr_fast.training.device import Compute

        return Compute(self.device, self.compile)

    @property
    def checkpoint(self) -> CheckpointEvery:
        """How much of a training a crash may lose."""
        from hbr_fast.training.checkpoint import CheckpointEvery

        return CheckpointEvery(epochs=self.checkpoint_every_epochs, minutes=self.checkpoint_minutes)

    def training_device(self) -> torch.device:
        """The device that members train on: the requested one, or each node's on a cluster.

        Raises
        ------
        ValueError
            If there is no such device here.
        """
        if self.cluster is None:
            return self.compute.resolved()
        import torch

        return torch.device("cuda" if self.gpus_per_member else "cpu")

    def trial_device(self) -> torch.device:
        """Where to try a step before training: on the device that members train on, if this machine has it."""
        import torch

        return torch.device("cpu") if self.cluster is not None else self.training_device()

    def _out_of_range(self) -> Iterator[str]:
        if self.members_at_once != "auto" and self.members_at_once < 1:
            yield f"members_at_once must be at least 1, got {self.members_at_once}"
        for name in ("cpus_per_member", "gpus_per_member", "retries", "checkpoint_every_epochs", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:  # nor is NaN
                yield f"{name} must be at least 0, got {getattr(self, name)}"
        if self.gpus_per_member > 1 and self.gpus_per_member % 1:
            yield f"gpus_per_member is a fraction of one GPU or a whole number, got {self.gpus_per_member}"
        if self.cluster is not None and not _is_address(self.cluster):
            yield (
                f"a cluster's address is local, auto or HOST:PORT of its head, got {self.cluster!r}: run this on a "
                "machine of the cluster"
            )

    def _conflicts(self, processes: int) -> Iterator[str]:
        several = self.members_at_once != "auto" and self.members_at_once > 1
        if processes > 1 and (several or self.cluster is not None):
            yield (
                f"{processes} processes of torchrun train one member at a time together: leave out the cluster, and "
                "train one member at once"
            )
        if self.cluster is None:
            if (self.cpus_per_member, self.gpus_per_member, self.retries) != (1, 0, 3):
                yield (
                    "cpus_per_member, gpus_per_member and retries are of members on a cluster: name the cluster too, "
                    "or leave them out"
                )
            return
        if several:
            yield "a cluster trains as many members at once as it has room for: leave it out, or members_at_once"
        if (self.device, self.compile) != ("auto", False):
            yield "each node of a cluster computes on what it has: leave out the cluster, or device and compile"
        if self.tensorboard:
            yield "TensorBoard's files are written where members train: leave out the cluster or tensorboard"


def _is_address(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return address in ("local", "auto") or (bool(colon) and port.isdecimal() and "/" not in host)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and a member's resources on it: what `train_ensemble` and `run_study` took before `Execution`.

    Attributes
    ----------
    address, cpus_per_member, gpus_per_member, retries
        See `Execution`, whose `cluster` is the address.
    """

    address: str = "local"
    cpus_per_member: float = 1.0
    gpus_per_member: float = 0.0
    retries: int = 3


class Deprecated(TypedDict, total=False):
    """Keyword arguments that `Execution` replaces; they work for one more version."""

    members_at_once: int
    cluster: Cluster | None
    checkpoint: CheckpointEvery | None
    tensorboard: bool
    compute: Compute | None


def execution_of(execution: Execution | None, deprecated: Mapping[str, Any], *, caller: str) -> Execution:
    """The execution from a caller's arguments, new or deprecated.

    Raises
    ------
    TypeError
        If an argument is unknown, or both forms are mixed.
    """
    if unknown := sorted(set(deprecated) - set(Deprecated.__annotations__)):
        raise TypeError(f"{caller}() got an unexpected keyword argument {unknown[0]!r}")
    if not deprecated:
        return execution or Execution()
    names = ", ".join(deprecated)
    if execution is not None:
        raise TypeError(f"{caller}() takes {names} within execution=, not beside it")
    warnings.warn(
        f"{caller}({names}) will go: pass execution=hbr_fast.Execution(...)", DeprecationWarning, stacklevel=3
    )
    cluster, checkpoint, compute = (deprecated.get(name) for name in ("cluster", "checkpoint", "compute"))
    values: dict[str, Any] = {
        name: deprecated[name] for name in ("members_at_once", "tensorboard") if name in deprecated
    }
    if cluster is not None:
        values |= {"cluster": cluster.address, "retries": cluster.retries}
        values |= {"cpus_per_member": cluster.cpus_per_member, "gpus_per_member": cluster.gpus_per_member}
    if checkpoint is not None:
        values |= {"checkpoint_every_epochs": checkpoint.epochs, "checkpoint_minutes": checkpoint.minutes}
    if compute is not None:
        values |= {"device": compute.device, "compile": compute.compile}
    return Execution(**values)
