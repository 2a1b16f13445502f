"""Members on a real Ray cluster of two nodes on this machine, and what goes wrong there."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.dataset import META, Dataset
from hbr_fast.files import write_json
from hbr_fast.plan import Plan
from hbr_fast.training.cluster import (
    Cluster,
    Depot,
    connected,
    dataset_on_node,
    require_answer,
    require_room,
    train_on_cluster,
)
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import find_member, member_key, open_member, train_and_store

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow

PLAN = Plan.of_rows(np.arange(120) // 2)
LONG = 500  # epochs that take a few seconds: time to kill something in


@pytest.fixture(scope="module")
def cluster_of_two() -> Iterator[Any]:
    """A head with one processor and a node with another; tests may remove the node and add one."""
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
    """A store of members that were trained here, for all tests to compare with."""
    return tmp_path_factory.mktemp("in-process")


@pytest.fixture
def cluster(cluster_of_two: Any) -> Cluster:
    return Cluster(cluster_of_two.address)


def train(dataset: Dataset, recipe: Recipe, trainings: list[tuple[int, Plan | None]], store: Path, on: Cluster) -> int:
    """Train on the cluster; rows that were reported."""
    rows: list[int] = []
    diverged = train_on_cluster(
        dataset, recipe, [(seed, plan, []) for seed, plan in trainings], store=store, cluster=on, advance=rows.append
    )
    assert diverged == {}
    return sum(rows)


def assert_as_in_process(
    dataset: Dataset, recipe: Recipe, trainings: list[tuple[int, Plan | None]], store: Path, in_process: Path
) -> None:
    """The store holds exactly these members, each with the bytes that training here gives."""
    keys = {member_key(dataset, recipe, seed=seed, plan=plan) for seed, plan in trainings}
    assert {path.name for path in (store / "members").iterdir()} == keys
    for seed, plan in trainings:
        here = find_member(dataset, recipe, seed=seed, plan=plan, store=in_process) or train_and_store(
            dataset, recipe, seed=seed, plan=plan, store=in_process
        )
        there = open_member(store, here.key)
        for name in ("weights.safetensors", "hardness.safetensors", "logits.npy"):
            assert (there.path / name).read_bytes() == (here.path / name).read_bytes(), name


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came of {what} in {seconds} s")


def training_workers() -> list[int]:
    """Processes that train a member now: Ray names its workers after their task."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"ray::_train_on_node" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended while we looked
            continue
    return found


def test_two_nodes_train_what_one_process_does(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, tmp_path: Path, in_process: Path
) -> None:
    trainings = [(1, None), (2, None), (1, PLAN)]
    rows = train(tiny, recipe, trainings, tmp_path / "store", cluster)
    assert rows == 3 * 2 * 120
    assert_as_in_process(tiny, recipe, trainings, tmp_path / "store", in_process)


def test_a_diverging_member_does_not_stop_the_others(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, tmp_path: Path
) -> None:
    wild = dataclasses.replace(recipe, lr=1e30, schedule="step")
    diverged = train_on_cluster(
        tiny, wild, [(1, None, []), (2, None, [])], store=tmp_path, cluster=cluster, advance=lambda rows: None
    )
    assert set(diverged) == {0, 1}
    assert "diverged" in str(diverged[0])


def test_a_mistake_on_a_node_comes_back_as_it_was_raised(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="unknown model 'nonsense'"):
        train(tiny, dataclasses.replace(recipe, model="nonsense"), [(1, None)], tmp_path, cluster)
    assert not (tmp_path / "members").exists()


def test_a_killed_worker_is_replaced(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, tmp_path: Path, in_process: Path
) -> None:
    longer = dataclasses.replace(recipe, epochs=LONG)
    killed = []

    def kill() -> None:
        killed.append(wait_for(training_workers)[0])
        time.sleep(1)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    train(tiny, longer, [(1, None), (2, None)], tmp_path / "store", cluster)
    killer.join()
    assert killed
    assert_as_in_process(tiny, longer, [(1, None), (2, None)], tmp_path / "store", in_process)


def test_without_retries_a_killed_worker_ends_the_work(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, tmp_path: Path
) -> None:
    killer = threading.Thread(target=lambda: os.kill(wait_for(training_workers)[0], signal.SIGKILL))
    killer.start()
    with pytest.raises(ChildProcessError, match="worker died 1 times"):
        train(
            tiny,
            dataclasses.replace(recipe, epochs=10 * LONG),
            [(1, None)],
            tmp_path,
            dataclasses.replace(cluster, retries=0),
        )
    killer.join()


def test_a_node_removed_in_the_middle(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, cluster_of_two: Any, tmp_path: Path, in_process: Path
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
        train(tiny, longer, [(1, None), (2, None)], tmp_path / "store", cluster)
    finally:
        remover.join()
        cluster_of_two.node = cluster_of_two.add_node(num_cpus=1)
    assert removed
    assert_as_in_process(tiny, longer, [(1, None), (2, None)], tmp_path / "store", in_process)


DRIVER = """
import sys
from pathlib import Path
from hbr_fast.data.dataset import open_dataset
from hbr_fast.files import read_json
from hbr_fast.training.cluster import Cluster, train_on_cluster
from hbr_fast.training.recipe import Recipe
dataset, recipe, store, address = sys.argv[1:]
train_on_cluster(open_dataset(dataset), Recipe.from_json(read_json(recipe)), [(seed, None, []) for seed in (1, 2, 3)],
                 store=Path(store), cluster=Cluster(address), advance=lambda rows: None)
"""


def test_a_driver_that_dies_and_comes_back(
    tiny: Dataset, recipe: Recipe, cluster: Cluster, cluster_of_two: Any, tmp_path: Path, in_process: Path
) -> None:
    longer = dataclasses.replace(recipe, epochs=LONG)
    write_json(tmp_path / "recipe.json", longer.to_json())
    store = tmp_path / "store"
    words = [str(tiny.path), str(tmp_path / "recipe.json"), str(store), cluster.address]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words])
    members = store / "members"
    wait_for(lambda: members.exists() and [path for path in members.iterdir() if path.name[0] != "."])
    driver.kill()
    driver.wait()
    keys = [member_key(tiny, longer, seed=seed, plan=None) for seed in (1, 2, 3)]
    done = [number for number, key in enumerate(keys) if (members / key).exists()]
    assert 0 < len(done) < 3
    wait_for(lambda: not training_workers())  # Ray ends what a lost driver asked for
    for left in members.glob(".*"):  # what the dead driver was writing is no member
        assert left.name.endswith(".partial")
        shutil.rmtree(left)
    train(tiny, longer, [(seed, None) for n, seed in enumerate((1, 2, 3)) if n not in done], store, cluster)
    assert_as_in_process(tiny, longer, [(1, None), (2, None), (3, None)], store, in_process)


def test_a_node_that_cannot_hold_a_member(tiny: Dataset, recipe: Recipe, cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a member asks for 1 GPUs, but no node of the cluster has more than 0"):
        train(tiny, recipe, [(1, None)], tmp_path, dataclasses.replace(cluster, gpus_per_member=1))


def test_a_driver_that_sigterm_ends_leaves_nothing_and_says_so(tiny: Dataset, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["train", str(tiny.path), str(tmp_path / "run"), "--cluster", "local", "--set", f"epochs={1000 * LONG}"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "hbr_fast.cli", *words, "model=cnn-4-8", "batch_size=50"],
        env={**os.environ, "TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"},  # for Ray a path of pytest's is too long
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(scratch.glob("hbr-fast-*/member-*")), seconds=120)
    driver.terminate()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 75, said
    assert said.splitlines()[-1].startswith("hbr-fast: ended by SIGTERM")
    assert not list(scratch.glob("hbr-fast-*/member-*"))


# --- without a cluster ---


def node(cpus: float, gpus: float, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def test_room_is_one_nodes_room() -> None:
    require_room([node(4, 0), node(2, 1)], Cluster(cpus_per_member=2, gpus_per_member=0.5))
    with pytest.raises(ValueError, match="asks for 5 processors, but no node of the cluster has more than 4"):
        require_room([node(4, 0), node(2, 1)], Cluster(cpus_per_member=5))
    with pytest.raises(ValueError, match="no node of the cluster has both 4 processors and 1 GPUs"):
        require_room([node(4, 0), node(2, 1)], Cluster(cpus_per_member=4, gpus_per_member=1))
    with pytest.raises(ValueError, match="no node of the cluster has more than 0"):
        require_room([node(4, 0, alive=False)], Cluster())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus_per_member": -1}, "cpus_per_member must be at least 0"),
        ({"cpus_per_member": float("nan")}, "cpus_per_member must be at least 0"),
        ({"gpus_per_member": 1.5}, "a fraction of one GPU or a whole number, got 1.5"),
        ({"retries": -1}, "retries must be at least 0"),
    ],
)
def test_impossible_clusters(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cluster(**options)


def test_an_unreachable_cluster_is_found_out_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port, nobody answers
        start = time.monotonic()
        with (
            pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1"),
            connected(Cluster(f"127.0.0.1:{taken.getsockname()[1]}")),
        ):
            pass
        assert time.monotonic() - start < 30


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:", ""])
def test_addresses_that_cannot_be_one(address: str) -> None:
    with pytest.raises(ValueError, match="address is local, auto or HOST:PORT"):
        require_answer(address)


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'hbr-fast\[ray\]'"), connected(Cluster()):
        pass


def test_a_node_takes_the_dataset_where_it_is(tiny: Dataset, tmp_path: Path) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("nothing was to be sent")

    found = dataset_on_node(tiny.path, tiny.fingerprint, cache=tmp_path / "cache", files=never, piece=never)
    assert found.path == tiny.path
    assert not (tmp_path / "cache").exists()


def test_a_dataset_is_sent_to_a_node_once(
    tiny: Dataset, other: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbr_fast.training.cluster.PIECE_BYTES", 1000)
    depot = Depot(str(tiny.path), [META, *tiny.meta["files"]])
    sent: list[str] = []

    def piece(name: str, offset: int) -> bytes:
        sent.append(name)
        return depot.piece(name, offset)

    for elsewhere in (tmp_path / "gone.hbr", other.path):  # not there, and another dataset there
        copy = dataset_on_node(elsewhere, tiny.fingerprint, cache=tmp_path, files=depot.files, piece=piece)
        assert copy.fingerprint == tiny.fingerprint
        np.testing.assert_array_equal(copy.train.images, tiny.train.images)
        assert len(sent) == sum(-(-size // 1000) for _, size in depot.files())


def test_a_dataset_spoilt_on_the_way_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    depot = Depot(str(tiny.path), [META, *tiny.meta["files"]])

    def piece(name: str, offset: int) -> bytes:
        content = depot.piece(name, offset)
        return content if name == META else content[:-1] + bytes([content[-1] ^ 1])

    with pytest.raises(ValueError, match="another checksum"):
        dataset_on_node(tmp_path / "gone", tiny.fingerprint, cache=tmp_path, files=depot.files, piece=piece)
    assert not (tmp_path / f"{tiny.fingerprint}.hbr").exists()


def test_local_is_this_machines_own_cluster_whatever_else_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where Ray would look for another one first
    with connected(Cluster("local")) as connection:
        assert [node["Alive"] for node in connection.nodes()] == [True]
    assert not ray.is_initialized()
