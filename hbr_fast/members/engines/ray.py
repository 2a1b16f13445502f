"""Members on a Ray cluster: one task per member, on whatever node has room for it.

Only the driver writes to the store, one finished member at a time, so a worker, a node or the driver may die at any
moment: the store stays consistent, Ray restarts lost tasks, and a restarted driver trains the rest. A node reads the
dataset at the driver's path if it can see it there; otherwise it fetches one copy. It imports the modules of a user's
components from its own path or else from the directories of the driver's PYTHONPATH; they must be the driver's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.meta_json import META
from hbr_fast.data.plan import Plan
from hbr_fast.data.verify import verify_dataset
from hbr_fast.files import DISK_FULL, atomic_directory, reason
from hbr_fast.locks import held
from hbr_fast.machine import usable_cpus
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job, PackedJob, packed, train_packed
from hbr_fast.members.store import member_key, member_path, open_member
from hbr_fast.members.telemetry import Board
from hbr_fast.temporary import private_directory, scratch_directory, temporary_root
from hbr_fast.training import signals
from hbr_fast.training.components import changed, sources
from hbr_fast.training.recipe import Recipe

PIECE_BYTES = 32 * 2**20  # a dataset is sent in pieces of this size
REPORT_INTERVAL_S = 1.0  # how often a task reports, and the driver polls
CONNECT_TIMEOUT_S = 5.0
SOCKET_BYTES = 107 - len("/ray-12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
ENDING_S = 10.0  # a task that has not ended by then is killed


def wanted(execution: Execution, *, at_once: int) -> bool:
    """See `hbr_fast.members.engines.Engine`."""
    return execution.cluster is not None


def run(
    jobs: Sequence[Job],
    execution: Execution,
    *,
    dataset: Dataset,
    recipe: Recipe,
    store: Path,
    at_once: int,
    board: Board,
) -> dict[int, FloatingPointError]:
    """See `hbr_fast.members.engines.Engine`. Pools are not sent: every node must see them at the driver's path.

    Raises
    ------
    ConnectionError
        If no cluster answers at the address.
    ImportError
        If Ray is not installed.
    ValueError
        If no node has what a member needs, or a node would compute different results.
    ChildProcessError
        If a member's worker died more often than `execution.retries` allows; finished members are kept.
    """
    with signals.unwrapped(), connected(execution) as ray:  # Ray wraps exceptions raised while it waits
        require_room(ray.nodes(), execution)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        depot = (
            ray.remote(Depot)
            .options(num_cpus=0, max_concurrency=8, scheduling_strategy=here)
            .remote(str(dataset.path), [META, *dataset.meta["files"]])
        )
        train = ray.remote(_train_on_node).options(
            num_cpus=execution.cpus_per_member,
            num_gpus=execution.gpus_per_member,
            max_retries=execution.retries,
        )
        threads = max(1, int(execution.cpus_per_member))
        plans = {job.plan.content_hash(): ray.put(job.plan) for job in jobs if job.plan is not None}
        components = sources(recipe)
        keys = [member_key(dataset, recipe, seed=job.seed, plan=job.plan) for job in jobs]
        pending = {}
        for place, job in enumerate(jobs):
            plan = None if job.plan is None else plans[job.plan.content_hash()]
            bare = dataclasses.replace(packed(job), plan=None)  # send a plan that jobs share only once
            task = train.remote(
                bare,
                plan,
                depot,
                dataset.location,
                dataset.fingerprint,
                recipe,
                keys[place],
                components,
                module_directories(),
                threads,
            )
            pending[task] = place
        diverged: dict[int, FloatingPointError] = {}
        reported = 0
        try:
            while pending:
                finished, _ = ray.wait(list(pending), timeout=REPORT_INTERVAL_S)
                rows_done = ray.get(depot.rows_done.remote())
                board.advance(max(0, rows_done - reported))  # never backwards: restarted members begin at 0
                reported = max(reported, rows_done)
                for task in finished:
                    place = pending.pop(task)
                    try:
                        _keep(member_path(store, keys[place]), ray.get(task))
                    except ray.exceptions.RayTaskError as error:
                        if not isinstance(error.cause, FloatingPointError):
                            raise error.cause from None
                        diverged[place] = error.cause
                    except ray.exceptions.RayError as error:
                        raise ChildProcessError(
                            f"a member's worker died {execution.retries + 1} times (out of memory?): finished members "
                            f"are kept; run the same again ({reason(error)})"
                        ) from None
        finally:
            _end(ray, list(pending))
            ray.kill(depot)
    return diverged


def _end(ray: Any, tasks: list[Any]) -> None:
    """End tasks as Ctrl-C does, so that they leave no files on their nodes; kill those that take too long."""
    if not tasks:
        return
    for task in tasks:
        ray.cancel(task)
    _, running = ray.wait(tasks, num_returns=len(tasks), timeout=ENDING_S)
    for task in running:
        ray.cancel(task, force=True)


@contextlib.contextmanager
def connected(execution: Execution) -> Iterator[Any]:
    """The module `ray`, connected to the cluster; an existing connection of the caller is used and left open.

    Raises
    ------
    ImportError, ConnectionError
        If Ray is missing or nothing answers.
    """
    address = execution.cluster
    assert address is not None
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
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Name it: without an address, Ray would look for any cluster running on this machine.
        options |= {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
        # Others may write to Ray's own session directories.
        private: Any = scratch_directory(_short_temporary_root(), "ray-")
    else:
        require_answer(address)
        options["address"] = address
        private = contextlib.nullcontext()
    with private as place:
        try:
            with signals.kept(), contextlib.nullcontext() if place is None else _on_loopback(ray):
                ray.init(**options, _temp_dir=None if place is None else str(place))
        except (ConnectionError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray cluster answers at {address!r} ({reason(error)}): start one with ray start"
            ) from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _short_temporary_root() -> Path:
    """A private directory for sessions, whose sockets have at most 107 bytes in their paths."""
    place = temporary_root()
    return place if len(os.fsencode(place)) <= SOCKET_BYTES else private_directory(Path("/tmp") / place.name)


@contextlib.contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Let Ray take this machine for one of a kind that it does not join with others: it listens on 127.0.0.1 only.

    Ray reads the variable when it is imported, and so do the processes that it starts.
    """
    constants = ray._private.ray_constants
    name = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    variable, constant = os.environ.get(name), constants.ENABLE_RAY_CLUSTER
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = constant
        del os.environ[name]
        if variable is not None:
            os.environ[name] = variable


def require_answer(address: str) -> None:
    """Raise within seconds if nothing listens at "auto" or HOST:PORT; Ray itself tries for minutes.

    Raises
    ------
    ConnectionError
        If nothing listens at the address.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address} ({error}): start one with ray start") from None


def require_room(nodes: Sequence[dict[str, Any]], execution: Execution) -> None:
    """Raise if no node could ever hold a member; Ray itself would wait for ever.

    Parameters
    ----------
    nodes : sequence of dict
        As `ray.nodes()` returns them: "Alive" and "Resources".

    Raises
    ------
    ValueError
        If no live node has that many processors or GPUs.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    wanted = (("CPU", "processors", execution.cpus_per_member), ("GPU", "GPUs", execution.gpus_per_member))
    for resource, word, amount in wanted:
        most = max((node.get(resource, 0) for node in alive), default=0)
        if amount > most:
            raise ValueError(
                f"a member asks for {amount:g} {word}, but no node of the cluster has more than {most:g}: ask for less"
            )
    if not any(all(node.get(resource, 0) >= amount for resource, _, amount in wanted) for node in alive):
        raise ValueError(
            f"no node of the cluster has both {execution.cpus_per_member:g} processors and "
            f"{execution.gpus_per_member:g} GPUs: ask for less per member"
        )


class Depot:
    """Runs beside the driver: serves the dataset's files in pieces and counts the rows trained everywhere."""

    def __init__(self, dataset_path: str, names: Sequence[str]) -> None:
        self._path, self._names = Path(dataset_path), names
        self._rows: dict[str, int] = {}

    def files(self) -> list[tuple[str, int]]:
        """Names (relative to the dataset) and sizes in bytes of its files."""
        return [(name, (self._path / name).stat().st_size) for name in self._names]

    def piece(self, name: str, offset: int) -> bytes:
        """Up to `PIECE_BYTES` of a file."""
        with open(self._path / name, "rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def report(self, member: str, rows: int) -> None:
        """Record how many rows a member has trained so far."""
        self._rows[member] = rows

    def rows_done(self) -> int:
        """Rows that all members have trained."""
        return sum(self._rows.values())


def _train_on_node(
    bare: PackedJob,
    plan: Plan | None,
    depot: Any,
    dataset_path: str,
    fingerprint: str,
    recipe: Recipe,
    key: str,
    components: Mapping[str, str],
    directories: Sequence[str],
    threads: int,
) -> dict[str, bytes]:
    """Train one member here and return its files by name; the job's plan is passed separately."""
    import ray

    job = dataclasses.replace(bare, plan=plan)
    on_node = temporary_root()
    dataset = dataset_on_node(
        Path(dataset_path),
        fingerprint,
        cache=on_node,
        files=lambda: ray.get(depot.files.remote()),
        piece=lambda name, offset: ray.get(depot.piece.remote(name, offset)),
    )
    sys.path.extend(path for path in directories if path not in sys.path)
    node = f"node {socket.gethostname()}"
    try:
        differing = changed(recipe, components, sources(recipe))
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{node}: {error}") from None
    if differing:
        raise ValueError(f"{node} has other components than the driver: {differing}: put the same files there")
    if member_key(dataset, recipe, seed=job.seed, plan=plan) != key:
        raise ValueError(f"{node} would compute different results: install the driver's hbr-fast version on both")
    with scratch_directory(on_node, "member-") as scratch:
        member = train_packed(
            job,
            Execution(),
            dataset=dataset,
            recipe=recipe,
            store=scratch,
            threads=threads,
            report=lambda rows: depot.report.remote(key, rows),
            interval_s=REPORT_INTERVAL_S,
        )
        return {file.name: file.read_bytes() for file in member.path.iterdir()}


def module_directories() -> list[str]:
    """The directories of this process's PYTHONPATH, absolute."""
    return [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def dataset_on_node(path: Path, fingerprint: str, *, cache: Path, files: Any, piece: Any) -> Dataset:
    """The dataset on this node: at the driver's path, or else a copy that all tasks of the node share.

    Parameters
    ----------
    path : path
        The driver's path; on a shared disk the node sees it too.
    fingerprint : str
        Of the required dataset.
    cache : path
        Directory for the node's copy.
    files, piece : callable
        As the methods of `Depot`.
    """
    with contextlib.suppress(OSError, ValueError):
        if (found := open_dataset(path)).fingerprint == fingerprint:
            return found
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / f"{fingerprint}.hbr"
    with held(cache / f"{fingerprint}.lock"):  # the first task on a node fetches, the others wait
        if not copy.exists():
            with atomic_directory(copy) as directory:
                for name, size in files():
                    with open(directory / name, "wb") as file:
                        for offset in range(0, size, PIECE_BYTES):
                            file.write(piece(name, offset))
                verify_dataset(directory)
    return open_dataset(copy)


def _keep(path: Path, files: dict[str, bytes]) -> None:
    """Write a member received from a node into the store, completely or not at all."""
    try:
        with atomic_directory(path) as directory:
            for name, content in files.items():
                (directory / name).write_bytes(content)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(f"no space left for {path}: free some and run the same again") from error
        if not path.exists():  # else another driver finished the same training first
            raise
    open_member(path.parent.parent, path.name)
