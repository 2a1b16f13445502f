"""Datasets at a URL: the same batches as from the disk, whatever fails on the way and however little is kept."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.server
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loaders.contracts import assert_same, copies
from photographs import photograph, write_photographs

from data.remote_checks import check_a_damaged_picture_is_set_aside, kept_bytes, shards_of, train_loader
from hbr_fast.data import remote, shards
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset, open_recorded
from hbr_fast.data.plan import Plan
from hbr_fast.data.relabel import relabel
from hbr_fast.data.remote import url_of
from hbr_fast.data.remote_shards import RemoteShards
from hbr_fast.data.verify import require_unchanged, verify_dataset
from hbr_fast.orders import shard_order

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_photographs(tmp_path_factory.mktemp("photos"), per_class=8)
    photograph(40, 60, seed=9).save(root / "train/cat/3.jpg", "PNG")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "SHARD_BYTES", 12_000)
        return convert("folder", tmp_path_factory.mktemp("out") / "photos.hbr", root=root, store="encoded")


@pytest.fixture(autouse=True)
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A cache of this test's own, and a clock that does not wait; what it was asked to wait."""
    monkeypatch.setenv(remote.DIRECTORY, str(tmp_path / "cache"))
    asked: list[float] = []
    monkeypatch.setattr(remote, "sleep", asked.append)
    return asked


@pytest.fixture
def url(dataset: Dataset) -> Iterator[str]:
    """The dataset in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    for file in dataset.path.iterdir():
        memory.pipe_file(f"/bucket/photos.hbr/{file.name}", file.read_bytes())
    yield "memory://bucket/photos.hbr"
    memory.rm("/bucket", recursive=True)


def test_url_of() -> None:
    for path, expected in (
        ("s3://bucket/a.hbr", "s3://bucket/a.hbr"),
        (Path("s3://bucket/a.hbr"), "s3://bucket/a.hbr"),
        ("http://localhost:80/a.hbr/", "http://localhost:80/a.hbr"),
        (Path("file:///data/a.hbr"), "file:///data/a.hbr"),
        ("photos.hbr", None),
        ("/data/x:/photos.hbr", None),
        ("../s3:/a.hbr", None),
    ):
        assert url_of(path) == expected


@pytest.mark.parametrize("size", ["1 GB", "15 kB", "0"])
def test_batches_are_those_of_the_disk(dataset: Dataset, url: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cache is smaller than a shard, or nothing is kept."""
    monkeypatch.setenv(remote.SIZE, size)
    opened = open_dataset(url)
    assert opened.fingerprint == dataset.fingerprint
    plan = Plan(np.zeros(20, np.int16), np.arange(20) % 16, np.where(np.arange(20) < 5, 3, -1), np.full(20, 0.5, "f4"))
    for options in ({}, {"plan": plan}, {"threads": 2, "prefetch": 2}):
        for epoch in range(2):
            assert_same(
                train_loader(opened, **options).epoch(epoch), copies(train_loader(dataset, **options).epoch(epoch))
            )
    limit = remote.cache_size()
    total = int(dataset.train.store.nbytes)
    assert kept_bytes(opened) <= limit
    assert kept_bytes(opened) > min(limit, total) - 5_000
    again = open_dataset(url)  # what was kept is found again
    assert kept_bytes(again) == kept_bytes(opened)
    assert_same(train_loader(again).epoch(1), copies(train_loader(dataset).epoch(1)))


def test_pictures_are_fetched_once_and_in_the_sequence_of_the_order(
    dataset: Dataset, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbr_fast.data.remote_shards.TOGETHER", 4)
    monkeypatch.setattr("hbr_fast.data.remote_shards.TASKS", 1)
    fetched: list[list[int]] = []
    read = RemoteShards._read_there

    def counted(self: RemoteShards, rows: list[int]) -> dict[int, bytes]:
        fetched.append(rows)
        return read(self, rows)

    monkeypatch.setattr(RemoteShards, "_read_there", counted)
    loader = train_loader(open_dataset(url))
    order = loader.job.order.rows(0, 16, epoch=0).tolist()
    list(loader.epoch(0))
    assert [row for rows in fetched for row in rows] == order
    list(loader.epoch(1))
    assert len(fetched) == 4
    monkeypatch.setenv(remote.SIZE, "0")
    shutil.rmtree(open_dataset(url).path)
    fetched.clear()
    for epoch in range(2):
        list(train_loader(open_dataset(url)).epoch(epoch))
    assert sorted(row for rows in fetched for row in rows) == sorted([*range(16)] * 2)


def test_an_outage_is_survived(
    url: str, dataset: Dataset, waits: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_dataset(url)
    memory = fsspec.filesystem("memory")
    read, failures = type(memory).cat_ranges, 0

    def broken(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal failures
        if sum(waits) < 30:
            failures += 1
            raise ConnectionError("the network is down")
        return read(self, *args, **named)

    monkeypatch.setattr(type(memory), "cat_ranges", broken)
    monkeypatch.setattr("hbr_fast.data.remote_shards.TASKS", 1)
    assert_same(train_loader(opened).epoch(0), copies(train_loader(dataset).epoch(0)))
    assert failures == len(waits) == 6
    assert waits[:3] == [0.5, 1, 2]
    assert f"{url}: the network is down; trying again in 0.5 s" in capsys.readouterr().err


def test_an_outage_that_lasts_ends_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_dataset(url)
    memory = fsspec.filesystem("memory")

    def broken(self: Any, *args: Any, **named: Any) -> Any:
        raise ConnectionError("the network is down")

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "cat_ranges", broken)
        loader = train_loader(opened)
        with pytest.raises(
            OSError, match=r"photos.hbr could not be read in 9 attempts over 64 s \(the network is down"
        ):
            list(loader.epoch(0))
    assert len(list(loader.epoch(0))) == 4  # it came back


def test_a_picture_that_is_damaged_at_the_url_is_set_aside(url: str, dataset: Dataset) -> None:
    check_a_damaged_picture_is_set_aside(url, dataset, filesystem=fsspec.filesystem("memory"))


def test_a_file_that_is_damaged_at_the_url_is_refused_without_waiting(url: str, waits: list[float]) -> None:
    memory = fsspec.filesystem("memory")
    content = memory.cat_file("/bucket/photos.hbr/train.labels.npy")
    memory.pipe_file("/bucket/photos.hbr/train.labels.npy", content[:-8] + bytes(8))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{url}/train.labels.npy does not have the checksum in meta.json: copy"):
            open_dataset(url)
    assert waits == []
    memory.pipe_file("/bucket/photos.hbr/train.labels.npy", content)
    assert len(open_dataset(url).train) == 16


def test_a_copy_that_is_damaged_is_fetched_again(url: str, dataset: Dataset) -> None:
    opened = open_dataset(url)
    expected = copies(train_loader(dataset).epoch(0))
    for _ in range(2):
        loader = train_loader(opened)
        assert_same(loader.epoch(0), expected)
        assert loader.bad_pictures == {}
        for path in shards_of(opened).paths:
            path.write_bytes(bytes(path.stat().st_size))


def test_verify_reads_everything_or_only_what_is_local(url: str, dataset: Dataset, tmp_path: Path) -> None:
    assert verify_dataset(url).fingerprint == dataset.fingerprint
    opened = open_dataset(url)
    require_unchanged(opened)
    assert verify_dataset(url, fetch=False).samples == 24
    assert open_dataset(opened.path).fingerprint == dataset.fingerprint  # as another process opens it
    assert opened.location == url
    assert dataset.location == str(dataset.path)
    assert open_recorded(tmp_path, opened.seen_from(tmp_path)).fingerprint == dataset.fingerprint
    assert open_recorded(tmp_path, dataset.seen_from(tmp_path)).path.samefile(dataset.path)
    with pytest.raises(ValueError, match=f"{url} is at a URL: copy it to this machine first"):
        relabel(opened, opened.train.labels, dataset.path.parent / "other.hbr")


def test_a_dataset_that_changed_is_copied_again(url: str, dataset: Dataset, tmp_path: Path) -> None:
    opened = open_dataset(url)
    list(train_loader(opened).epoch(0))
    other = convert(
        "folder", tmp_path / "o.hbr", root=write_photographs(tmp_path / "root", per_class=3), store="encoded"
    )
    memory = fsspec.filesystem("memory")
    for file in other.path.iterdir():
        memory.pipe_file(f"/bucket/photos.hbr/{file.name}", file.read_bytes())
    again = open_dataset(url)
    assert again.fingerprint == other.fingerprint != opened.fingerprint
    assert_same(train_loader(again).epoch(0), copies(train_loader(other).epoch(0)))


def test_urls_that_are_not_there(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no dataset at memory://none/a.hbr \(no meta.json there\)"):
        open_dataset("memory://none/a.hbr")
    with pytest.raises(ValueError, match=r"nonsense://a/b.hbr is no URL that fsspec knows"):
        open_dataset("nonsense://a/b.hbr")
    fsspec.filesystem("memory").pipe_file("/bucket/photos.hbr/meta.json", b"[1]")
    with pytest.raises(ValueError, match=r"photos.hbr/meta.json does not describe a dataset: copy it again"):
        open_dataset(url)
    monkeypatch.setenv(remote.SIZE, "plenty")
    with pytest.raises(ValueError, match=r"HBR_FAST_CACHE_SIZE must be bytes or e.g. '256 MB'"):
        remote.cache_size()


def test_raw_images_are_copied_whole_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = convert("synthetic", tmp_path / "toy.hbr", classes=2, train_per_class=4, test_per_class=2, shape=(1, 8, 8))
    url = f"file://{raw.path}"
    opened = open_dataset(url)
    np.testing.assert_array_equal(opened.train.images, raw.train.images)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv(remote.SIZE, "500")
    with pytest.raises(
        ValueError, match=r"has 0.0 MB of stored pixels, which are copied as a whole, and the cache is of"
    ):
        open_dataset(url)


def test_other_processes_fetch_for_themselves(url: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the workers of a DataLoader, which are forked; nothing is kept that was fetched before."""
    monkeypatch.setenv(remote.SIZE, "0")
    opened = open_dataset(url)
    next(train_loader(opened, batch_size=2).epoch(0))
    forked = train_loader(opened, backend="torchvision", threads=1)
    assert_same(forked.epoch(1), copies(train_loader(dataset).epoch(1)))
    assert multiprocessing.active_children() == []


def test_servers_without_ranges_are_named(dataset: Dataset, waits: list[float]) -> None:
    pytest.importorskip("aiohttp")
    handler = functools.partial(_Whole, directory=str(dataset.path.parent))
    with served(handler) as address:
        opened = open_dataset(f"{address}/{dataset.path.name}")
        with pytest.raises(
            OSError, match=r"\.tar: the server sends whole files where a part is asked for: use one that"
        ):
            list(train_loader(opened).epoch(0))
    assert waits == []


def test_an_opened_dataset_opens_again_on_a_full_disk(
    url: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(url)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(remote, "atomic_write", full)
    assert open_dataset(url).fingerprint == dataset.fingerprint


@contextlib.contextmanager
def served(handler: Any) -> Iterator[str]:
    """The address of a server of HTTP."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Whole(http.server.SimpleHTTPRequestHandler):
    """As `python -m http.server`."""

    def log_message(self, *_: Any) -> None:
        pass


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges, after some failures."""

    failures = 2

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        if type(self).failures and path.suffix == ".tar":
            type(self).failures -= 1
            self.send_error(503)
            return
        content, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_of_http(dataset: Dataset, waits: list[float]) -> None:
    pytest.importorskip("aiohttp")
    handler = functools.partial(_Ranges, directory=str(dataset.path.parent))
    with served(handler) as address:
        url = f"{address}/{dataset.path.name}"
        opened = open_dataset(Path(url))
        order = shard_order(16, seed=0, run=4, runs_at_once=2)
        assert_same(train_loader(opened, order=order).epoch(0), copies(train_loader(dataset, order=order).epoch(0)))
        assert 1 <= len(waits) <= 2
        with pytest.raises(FileNotFoundError, match="there is no dataset at http"):
            open_dataset(f"{url}x")


def test_dali_fetches_ahead(dataset: Dataset, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali")
    monkeypatch.setenv(remote.SIZE, "0")
    told: list[list[int]] = []
    expect = RemoteShards.expect

    def heard(self: RemoteShards, rows: np.ndarray, *, first: bool) -> None:
        told.append(rows.tolist())
        assert first == (len(told) == 1)
        expect(self, rows, first=first)

    monkeypatch.setattr(RemoteShards, "expect", heard)
    monkeypatch.setattr("hbr_fast.loaders.rows.TOLD_AHEAD", 5)
    options: dict[str, Any] = {"batch_size": 4, "prefetch": 1}
    loader = train_loader(open_dataset(url), backend="dali", **options)
    assert_same(loader.epoch(0), copies(train_loader(dataset, backend="dali", **options).epoch(0)))
    assert [len(rows) for rows in told] == [4, 4, 4, 4]
    assert [row for rows in told for row in rows] == loader.job.order.rows(0, 16, epoch=0).tolist()
