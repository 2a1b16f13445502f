"""Members on a Ray cluster: one task a member, on whatever node has room for it.

The driver alone writes to the store, a finished member at a time, so a worker, a node or the driver itself may die at
any moment: what is in the store is whole, Ray starts the tasks it lost again, and a driver that comes back asks for
the rest. A node takes the dataset from where the driver has it if it can see it there, else it is sent over once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbr_fast.data.dataset import META, Dataset, open_dataset, verify_dataset
from hbr_fast.data.pool import open_pool
from hbr_fast.files import DISK_FULL, atomic_directory, scratch_directory
from hbr_fast.machine import usable_cpus
from hbr_fast.plan import Plan
from hbr_fast.progress import Advance
from hbr_fast.training import signals
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import member_key, member_path, open_member, train_and_store

PIECE_BYTES = 32 * 2**20  # a dataset travels in pieces of this size
REPORT_INTERVAL_S = 1.0  # how often a task says what it did, and the driver asks
CONNECT_TIMEOUT_S = 5.0
ENDING_S = 10.0  # a task that has not ended by then is killed


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and what a member needs of it.

    Attributes
    ----------
    address : str
        "local" starts Ray on this machine for the time of the work; "auto" finds the cluster that this machine belongs
        to; else "HOST:PORT" of a cluster's head. The driver must run on a machine of the cluster.
    cpus_per_member : float
        Processors a member holds. It computes with as many threads, rounded down, at least one.
    gpus_per_member : float
        GPUs a member holds; below 1, several share one.
    retries : int
        How often a member is started again after its worker or node died.
    """

    address: str = "local"
    cpus_per_member: float = 1.0
    gpus_per_member: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        for name, lowest in (("cpus_per_member", 0), ("gpus_per_member", 0), ("retries", 0)):
            if not getattr(self, name) >= lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.gpus_per_member > 1 and self.gpus_per_member % 1:
            raise ValueError(f"gpus_per_member is a fraction of one GPU or a whole number, got {self.gpus_per_member}")


def train_on_cluster(
    dataset: Dataset,
    recipe: Recipe,
    trainings: Sequence[tuple[int, Plan | None, Sequence[Path]]],
    *,
    store: Path,
    cluster: Cluster,
    advance: Advance,
) -> dict[int, FloatingPointError]:
    """Train members on a cluster into a store on this machine.

    Parameters
    ----------
    dataset, recipe
        The same for all.
    trainings : sequence of (seed, plan, paths of the plan's pools)
        None of them in the store yet. Pools are not sent: every node must see them where the driver does.
    store : path
        Members are kept under `store/members/`, each whole, as they finish.
    cluster : Cluster
    advance : callable
        Called with numbers of rows trained since the last call.

    Returns
    -------
    dict of int to FloatingPointError
        Trainings that diverged, by their place in `trainings`; all others are in the store.

    Raises
    ------
    ConnectionError
        If no cluster answers at the address.
    ImportError
        If Ray is not installed.
    ValueError
        If no node has what a member needs, or a node would train to other numbers.
    ChildProcessError
        If a member's worker died more often than `cluster.retries` allows; finished members are kept.
    """
    with signals.unwrapped(), connected(cluster) as ray:  # Ray wraps what is raised while it waits
        require_room(ray.nodes(), cluster)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        depot = (
            ray.remote(Depot)
            .options(num_cpus=0, max_concurrency=8, scheduling_strategy=here)
            .remote(str(dataset.path), [META, *dataset.meta["files"]])
        )
        train = ray.remote(_train_on_node).options(
            num_cpus=cluster.cpus_per_member,
            num_gpus=cluster.gpus_per_member,
            max_retries=cluster.retries,
        )
        threads = max(1, int(cluster.cpus_per_member))
        plans = {plan.content_hash(): ray.put(plan) for _, plan, _ in trainings if plan is not None}
        keys = [member_key(dataset, recipe, seed=seed, plan=plan) for seed, plan, _ in trainings]
        pending = {}
        for number, (seed, plan, pool_paths) in enumerate(trainings):
            rows = None if plan is None else plans[plan.content_hash()]
            task = train.remote(
                depot, str(dataset.path), dataset.fingerprint, recipe, seed, rows, pool_paths, keys[number], threads
            )
            pending[task] = number
        diverged: dict[int, FloatingPointError] = {}
        reported = 0
        try:
            while pending:
                finished, _ = ray.wait(list(pending), timeout=REPORT_INTERVAL_S)
                rows_done = ray.get(depot.rows_done.remote())
                advance(max(0, rows_done - reported))  # a restarted member's rows count once more: never backwards
                reported = max(reported, rows_done)
                for task in finished:
                    number = pending.pop(task)
                    try:
                        _keep(member_path(store, keys[number]), ray.get(task))
                    except ray.exceptions.RayTaskError as error:
                        if not isinstance(error.cause, FloatingPointError):
                            raise error.cause from None
                        diverged[number] = error.cause
                    except ray.exceptions.RayError as error:
                        raise ChildProcessError(
                            f"a member's worker died {cluster.retries + 1} times (out of memory?): finished members "
                            f"are kept; run the same again ({str(error).splitlines()[0]})"
                        ) from None
        finally:
            _end(ray, list(pending))
            ray.kill(depot)
    return diverged


def _end(ray: Any, tasks: list[Any]) -> None:
    """End tasks as Ctrl-C does, so that none leaves files on its node; those that take too long are killed."""
    if not tasks:
        return
    for task in tasks:
        ray.cancel(task)
    _, running = ray.wait(tasks, num_returns=len(tasks), timeout=ENDING_S)
    for task in running:
        ray.cancel(task, force=True)


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """The module `ray`, connected to the cluster; a connection that the caller made already is used and left open.

    Raises
    ------
    ImportError, ConnectionError, ValueError
        If Ray is missing, nothing answers, or the address is of a kind that cannot work.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError:
        raise ImportError("training on a cluster needs Ray: pip install 'hbr-fast[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if cluster.address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # By its name: without one, Ray would look for a cluster that others run on this machine.
        options |= {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
    else:
        require_answer(cluster.address)
        options["address"] = cluster.address
    try:
        with signals.kept():
            ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {cluster.address!r} ({str(error).splitlines()[0]}): start one with ray start"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def require_answer(address: str) -> None:
    """Raise within seconds where nothing listens; Ray itself tries for minutes.

    Raises
    ------
    ConnectionError
        If nothing listens at the address.
    ValueError
        If it is not "auto" or HOST:PORT.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ValueError(
            f"a cluster's address is local, auto or HOST:PORT of its head, got {address!r}: run this on a machine of "
            "the cluster"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address} ({error}): start one with ray start") from None


def require_room(nodes: Sequence[dict[str, Any]], cluster: Cluster) -> None:
    """Raise where no node could ever hold a member; Ray itself waits for such a node for ever.

    Parameters
    ----------
    nodes : sequence of dict
        As `ray.nodes()` gives them: "Alive" and "Resources".

    Raises
    ------
    ValueError
        If no living node has that many processors or GPUs.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    wanted = (("CPU", "processors", cluster.cpus_per_member), ("GPU", "GPUs", cluster.gpus_per_member))
    for resource, word, amount in wanted:
        most = max((node.get(resource, 0) for node in alive), default=0)
        if amount > most:
            raise ValueError(
                f"a member asks for {amount:g} {word}, but no node of the cluster has more than {most:g}: ask for less"
            )
    if not any(all(node.get(resource, 0) >= amount for resource, _, amount in wanted) for node in alive):
        raise ValueError(
            f"no node of the cluster has both {cluster.cpus_per_member:g} processors and "
            f"{cluster.gpus_per_member:g} GPUs: ask for less a member"
        )


class Depot:
    """Beside the driver: hands out the dataset's files in pieces and counts the rows trained everywhere."""

    def __init__(self, dataset_path: str, names: Sequence[str]) -> None:
        self._path, self._names = Path(dataset_path), names
        self._rows: dict[str, int] = {}

    def files(self) -> list[tuple[str, int]]:
        """Names, relative to the dataset, and bytes of its files."""
        return [(name, (self._path / name).stat().st_size) for name in self._names]

    def piece(self, name: str, offset: int) -> bytes:
        """Up to `PIECE_BYTES` of a file."""
        with open(self._path / name, "rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def report(self, member: str, rows: int) -> None:
        """A member has trained this many rows so far."""
        self._rows[member] = rows

    def rows_done(self) -> int:
        """Rows that all members have trained."""
        return sum(self._rows.values())


def _train_on_node(
    depot: Any,
    dataset_path: str,
    fingerprint: str,
    recipe: Recipe,
    seed: int,
    plan: Plan | None,
    pool_paths: Sequence[Path],
    key: str,
    threads: int,
) -> dict[str, bytes]:
    """Train one member here; its files by name."""
    import ray
    import torch

    torch.set_num_threads(threads)
    on_node = Path(tempfile.gettempdir()) / f"hbr-fast-{os.getuid()}"
    dataset = dataset_on_node(
        Path(dataset_path),
        fingerprint,
        cache=on_node,
        files=lambda: ray.get(depot.files.remote()),
        piece=lambda name, offset: ray.get(depot.piece.remote(name, offset)),
    )
    own = member_key(dataset, recipe, seed=seed, plan=plan)
    if own != key:
        raise ValueError(
            f"node {socket.gethostname()} would train to other numbers than the driver: install the same hbr-fast on "
            "both and set the recipe's precision to float32 or bfloat16"
        )
    pools = [open_pool(path, dataset=dataset) for path in pool_paths]
    done, last = 0, time.monotonic()

    def advance(rows: int) -> None:
        nonlocal done, last
        done += rows
        if time.monotonic() - last >= REPORT_INTERVAL_S:
            depot.report.remote(key, done)
            last = time.monotonic()

    with scratch_directory(on_node, "member-") as scratch:
        member = train_and_store(dataset, recipe, seed=seed, plan=plan, pools=pools, store=scratch, advance=advance)
        depot.report.remote(key, done)
        return {file.name: file.read_bytes() for file in member.path.iterdir()}


def dataset_on_node(path: Path, fingerprint: str, *, cache: Path, files: Any, piece: Any) -> Dataset:
    """The dataset as this node has it: where the driver says, or else a copy that all tasks of the node share.

    Parameters
    ----------
    path : path
        Where the driver has it; on a shared disk it is there for the node as well.
    fingerprint : str
        Which dataset it must be.
    cache : path
        Where the node keeps its copy.
    files, piece : callable
        As the methods of `Depot`.
    """
    with contextlib.suppress(OSError, ValueError):
        if (found := open_dataset(path)).fingerprint == fingerprint:
            return found
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / f"{fingerprint}.hbr"
    with open(cache / f"{fingerprint}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first task of a node fetches, the others wait; a crash lets go of it
        if not copy.exists():
            with atomic_directory(copy) as directory:
                for name, size in files():
                    with open(directory / name, "wb") as file:
                        for offset in range(0, size, PIECE_BYTES):
                            file.write(piece(name, offset))
                verify_dataset(directory)
    return open_dataset(copy)


def _keep(path: Path, files: dict[str, bytes]) -> None:
    """Put a member that came from a node into the store, whole or not at all."""
    try:
        with atomic_directory(path) as directory:
            for name, content in files.items():
                (directory / name).write_bytes(content)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(f"no space left for {path}: free some and run the same again") from error
        if not path.exists():  # else another driver had the same training to do and was faster
            raise
    open_member(path.parent.parent, path.name)
