"""Members on a real Ray cluster of two nodes on this machine, and what goes wrong there."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.meta_json import META
from hbr_fast.data.plan import Plan
from hbr_fast.files import write_json
from hbr_fast.members.engines.ray import Depot, connected, dataset_on_node, require_room, run
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.store import find_member, member_key, open_member, train_and_store
from hbr_fast.members.telemetry import Board, MemberLine
from hbr_fast.training.recipe import Recipe

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.slow  # a cluster starts and processes are killed while they train: minutes on two cores

PLAN = Plan.of_rows(np.arange(120) // 2)
LONG = 500  # epochs that take a few seconds: time to kill something in
GUARD_S = 600  # against hangs; generous enough for a busy machine


@pytest.fixture(scope="module")
def cluster_of_two() -> Iterator[Any]:
    """A head and a node with one CPU each; tests may remove the node and add another."""
    from ray.cluster_utils import Cluster as LocalCluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made: Any = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.node = made.add_node(num_cpus=1)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of members trained in this process, for all tests to compare with."""
    return tmp_path_factory.mktemp("in-process")


@pytest.fixture
def cluster(cluster_of_two: Any) -> Execution:
    wait_for(lambda: not training_workers())  # of the test before: a kill meant for this test's would find them
    return Execution(cluster=cluster_of_two.address)


USERS = """
from torch import nn


def linear(image_shape, num_classes):
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
"""


def run_jobs(
    dataset: Dataset, recipe: Recipe, jobs: list[Job], store: Path, on: Execution
) -> tuple[dict[int, FloatingPointError], int]:
    """Train on the cluster; returns the diverged members and the reported rows."""
    rows: list[int] = []
    board = Board([MemberLine(number, rows=1, epochs=1) for number in range(len(jobs))], rows.append)
    diverged = run(jobs, on, dataset=dataset, recipe=recipe, store=store, at_once=1, board=board)
    return diverged, sum(rows)


def train(dataset: Dataset, recipe: Recipe, jobs: list[Job], store: Path, on: Execution) -> int:
    """Train on the cluster without divergence; returns the reported rows."""
    diverged, rows = run_jobs(dataset, recipe, jobs, store, on)
    assert diverged == {}
    return rows


def assert_as_in_process(dataset: Dataset, recipe: Recipe, jobs: list[Job], store: Path, in_process: Path) -> None:
    """The store holds exactly these members, byte for byte as trained in this process."""
    keys = {member_key(dataset, recipe, seed=job.seed, plan=job.plan) for job in jobs}
    assert {path.name for path in (store / "members").iterdir()} == keys
    for job in jobs:
        here = find_member(dataset, recipe, seed=job.seed, plan=job.plan, store=in_process) or train_and_store(
            dataset, recipe, seed=job.seed, plan=job.plan, store=in_process
        )
        there = open_member(store, here.key)
        for name in ("weights.safetensors", "hardness.safetensors", "logits.npy"):
            assert (there.path / name).read_bytes() == (here.path / name).read_bytes(), name


def wait_for(what: Callable[[], Any], seconds: float = GUARD_S) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} gave nothing in {seconds} s")


def training_workers() -> list[int]:
    """Processes of this test's clusters that are training a member: Ray names its workers after their task.

    Only descendants of this process: clusters of tests that run beside this one are not to be killed.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::_train_on_node" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:  # it ended while we looked
            continue
    return found


def test_ray_two_nodes_match_one_process(
    tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path, in_process: Path
) -> None:
    jobs = [Job(1), Job(2), Job(1, PLAN)]
    rows = train(tiny, recipe, jobs, tmp_path / "store", cluster)
    assert rows == 3 * 2 * 120
    assert_as_in_process(tiny, recipe, jobs, tmp_path / "store", in_process)


def test_ray_continues_after_diverged_member(tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path) -> None:
    wild = dataclasses.replace(recipe, lr=1e30, schedule="step")
    diverged, _ = run_jobs(tiny, wild, [Job(1), Job(2)], tmp_path, cluster)
    assert set(diverged) == {0, 1}
    assert "diverged" in str(diverged[0])


def test_ray_reraises_error_of_node(tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'nonsense'"):
        train(tiny, dataclasses.replace(recipe, model="nonsense"), [Job(1)], tmp_path, cluster)
    assert not (tmp_path / "members").exists()


def test_ray_trains_a_users_network_and_one_of_timm(
    tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path, in_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "for_ray.py").write_text(USERS)
    monkeypatch.syspath_prepend(mine)
    chosen = dataclasses.replace(recipe, model="for_ray:linear", optimizer="adamw", lr=0.01, epochs=1)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ValueError, match=r"^node .*: model 'for_ray:linear': for_ray cannot be imported .*PYTHONPATH"):
        train(tiny, chosen, [Job(1)], tmp_path / "store", cluster)
    monkeypatch.setenv("PYTHONPATH", str(mine))
    train(tiny, chosen, [Job(1)], tmp_path / "store", cluster)
    assert_as_in_process(tiny, chosen, [Job(1)], tmp_path / "store", in_process)
    of_timm = dataclasses.replace(chosen, model="timm:test_efficientnet", batch_size=120)
    train(tiny, of_timm, [Job(1)], tmp_path / "timm", cluster)
    assert_as_in_process(tiny, of_timm, [Job(1)], tmp_path / "timm", in_process)
    another = tmp_path / "another"
    another.mkdir()
    (another / "for_ray.py").write_text(USERS + "# another version")
    monkeypatch.setenv("PYTHONPATH", str(another))
    with pytest.raises(ValueError, match=r"node .* has other components than the driver: model 'for_ray:linear'.*same"):
        train(tiny, chosen, [Job(2)], tmp_path / "store", cluster)


def test_ray_replaces_killed_worker(
    tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path, in_process: Path
) -> None:
    longer = dataclasses.replace(recipe, epochs=LONG)
    killed = []

    def kill() -> None:
        killed.append(wait_for(training_workers)[0])
        time.sleep(1)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    train(tiny, longer, [Job(1), Job(2)], tmp_path / "store", cluster)
    killer.join()
    assert killed
    assert_as_in_process(tiny, longer, [Job(1), Job(2)], tmp_path / "store", in_process)


def test_ray_without_retries_stops_at_killed_worker(
    tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path
) -> None:
    killer = threading.Thread(target=lambda: os.kill(wait_for(training_workers)[0], signal.SIGKILL))
    killer.start()
    with pytest.raises(ChildProcessError, match="worker died 1 times"):
        train(
            tiny,
            dataclasses.replace(recipe, epochs=10 * LONG),
            [Job(1)],
            tmp_path,
            dataclasses.replace(cluster, retries=0),
        )
    killer.join()


def test_ray_survives_removed_node(
    tiny: Dataset, recipe: Recipe, cluster: Execution, cluster_of_two: Any, tmp_path: Path, in_process: Path
) -> None:
    longer = dataclasses.replace(recipe, epochs=LONG)
    removed = []

    def remove() -> None:
        wait_for(lambda: len(training_workers()) == 2)
        cluster_of_two.remove_node(cluster_of_two.node, allow_graceful=False)
        removed.append(True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        train(tiny, longer, [Job(1), Job(2)], tmp_path / "store", cluster)
    finally:
        remover.join()
        cluster_of_two.node = cluster_of_two.add_node(num_cpus=1)
    assert removed
    assert_as_in_process(tiny, longer, [Job(1), Job(2)], tmp_path / "store", in_process)


DRIVER = """
import sys
from pathlib import Path
from hbr_fast.data.dataset import open_dataset
from hbr_fast.files import read_json
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.obtain import obtain_members
from hbr_fast.training.recipe import Recipe
dataset, recipe, store, address = sys.argv[1:]
obtain_members(open_dataset(dataset), Recipe.from_json(read_json(recipe)), [Job(seed) for seed in (1, 2, 3)],
               store=Path(store), execution=Execution(cluster=address), label="driver")
"""


def test_ray_resumes_after_killed_driver(
    tiny: Dataset, recipe: Recipe, cluster: Execution, cluster_of_two: Any, tmp_path: Path, in_process: Path
) -> None:
    longer = dataclasses.replace(recipe, epochs=LONG // 4)  # time to kill the driver in while the third member trains
    write_json(tmp_path / "recipe.json", longer.to_json())
    store = tmp_path / "store"
    words = [str(tiny.path), str(tmp_path / "recipe.json"), str(store), str(cluster.cluster)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words])
    members = store / "members"
    wait_for(lambda: members.exists() and [path for path in members.iterdir() if path.name[0] != "."])
    driver.kill()
    driver.wait()
    keys = [member_key(tiny, longer, seed=seed, plan=None) for seed in (1, 2, 3)]
    done = [number for number, key in enumerate(keys) if (members / key).exists()]
    assert 0 < len(done) < 3
    wait_for(lambda: not training_workers())  # Ray ends the tasks of a lost driver
    for left in members.glob(".*"):  # partial output of the dead driver
        assert left.name.endswith(".partial")
        shutil.rmtree(left)
    train(tiny, longer, [Job(seed) for n, seed in enumerate((1, 2, 3)) if n not in done], store, cluster)
    assert_as_in_process(tiny, longer, [Job(1), Job(2), Job(3)], store, in_process)


def test_ray_refuses_member_too_large_for_any_node(
    tiny: Dataset, recipe: Recipe, cluster: Execution, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="a member asks for 1 GPUs, but no node of the cluster has more than 0"):
        train(tiny, recipe, [Job(1)], tmp_path, dataclasses.replace(cluster, gpus_per_member=1))


def test_ray_cleans_up_after_sigterm_to_driver(tiny: Dataset, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["train", str(tiny.path), str(tmp_path / "run"), "--cluster", "local", "--set", f"epochs={1000 * LONG}"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "hbr_fast", *words, "model=cnn-4-8", "batch_size=50"],
        env={**os.environ, "TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"},  # pytest's paths are too long for Ray
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(scratch.glob("hbr-fast-*/member-*")))
    driver.terminate()
    _, said = driver.communicate(timeout=GUARD_S)
    assert driver.returncode == 75, said
    assert said.splitlines()[-1].startswith("hbr-fast: ended by SIGTERM")
    assert not list(scratch.glob("hbr-fast-*/member-*"))


# --- without a cluster ---


def node(cpus: float, gpus: float, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def on_cluster(**options: Any) -> Execution:
    return Execution(cluster="local", **options)


def test_ray_capacity_is_per_node() -> None:
    require_room([node(4, 0), node(2, 1)], on_cluster(cpus_per_member=2, gpus_per_member=0.5))
    with pytest.raises(ValueError, match="asks for 5 processors, but no node of the cluster has more than 4"):
        require_room([node(4, 0), node(2, 1)], on_cluster(cpus_per_member=5))
    with pytest.raises(ValueError, match="no node of the cluster has both 4 processors and 1 GPUs"):
        require_room([node(4, 0), node(2, 1)], on_cluster(cpus_per_member=4, gpus_per_member=1))
    with pytest.raises(ValueError, match="no node of the cluster has more than 0"):
        require_room([node(4, 0, alive=False)], on_cluster())


def test_ray_unreachable_address_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port, nobody answers
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1"),
            connected(Execution(cluster=address)),
        ):
            pass


def test_ray_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'hbr-fast\[ray\]'"), connected(on_cluster()):
        pass


def test_ray_node_uses_dataset_at_same_path(tiny: Dataset, tmp_path: Path) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("nothing was to be sent")

    found = dataset_on_node(tiny.path, tiny.fingerprint, cache=tmp_path / "cache", files=never, piece=never)
    assert found.path == tiny.path
    assert not (tmp_path / "cache").exists()


def test_ray_sends_dataset_to_node_once(
    tiny: Dataset, other: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbr_fast.members.engines.ray.PIECE_BYTES", 1000)
    depot = Depot(str(tiny.path), [META, *tiny.meta["files"]])
    sent: list[str] = []

    def piece(name: str, offset: int) -> bytes:
        sent.append(name)
        return depot.piece(name, offset)

    for elsewhere in (tmp_path / "gone.hbr", other.path):  # missing, and another dataset
        copy = dataset_on_node(elsewhere, tiny.fingerprint, cache=tmp_path, files=depot.files, piece=piece)
        assert copy.fingerprint == tiny.fingerprint
        np.testing.assert_array_equal(copy.train.images, tiny.train.images)
        assert len(sent) == sum(-(-size // 1000) for _, size in depot.files())


def test_ray_refuses_corrupted_dataset(tiny: Dataset, tmp_path: Path) -> None:
    depot = Depot(str(tiny.path), [META, *tiny.meta["files"]])

    def piece(name: str, offset: int) -> bytes:
        content = depot.piece(name, offset)
        return content if name == META else content[:-1] + bytes([content[-1] ^ 1])

    with pytest.raises(ValueError, match="another checksum"):
        dataset_on_node(tmp_path / "gone", tiny.fingerprint, cache=tmp_path, files=depot.files, piece=piece)
    assert not (tmp_path / f"{tiny.fingerprint}.hbr").exists()


def test_ray_local_starts_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where Ray would look for a running cluster first
    with connected(on_cluster()) as connection:
        assert [node["Alive"] for node in connection.nodes()] == [True]
        session = ray._private.worker._global_node.get_session_dir_path()
        place = Path(session).parent
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700  # Ray opens its own to all
        worker = ray.get(ray.remote(lambda: os.getpid()).remote())
        listening = listening_on(session, worker)
    assert not ray.is_initialized()
    assert {"gcs_server", "raylet"} < set(listening)
    assert len(listening) >= 3
    assert not place.exists()
    addresses = set().union(*listening.values())
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def listening_on(session: str, *others: int) -> dict[str, set[str]]:
    """The addresses at which this process, those of a Ray session and others listen, by the names of processes."""
    found: dict[str, set[str]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.pid not in (os.getpid(), *others) and session not in " ".join(process.cmdline()):
                continue
            ports = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
            found.setdefault(process.name(), set()).update(one.laddr.ip for one in ports)
    return found
