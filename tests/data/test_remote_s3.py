"""Datasets on an S3 server: moto's, in this process, reached over the loopback through s3fs as a bucket would be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loaders.contracts import assert_same, copies
from photographs import write_photographs

from data.remote_checks import check_a_damaged_picture_is_set_aside, kept_bytes, shards_of, train_loader
from hbr_fast.data import remote, shards
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.verify import verify_dataset
from hbr_fast.orders import shard_order

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

URL = "s3://bucket/photos.hbr"
Answer = Callable[[dict[str, Any], Any], Any]


class Server:
    """moto's application, which can be made to fail."""

    def __init__(self) -> None:
        self._app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self.is_down: Callable[[str], bool] = lambda path: False
        self.refused: list[str] = []  # paths

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if self.is_down(path):
            self.refused.append(path)
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        return self._app(environ, start_response)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_photographs(tmp_path_factory.mktemp("photos"), per_class=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "SHARD_BYTES", 12_000)
        return convert("folder", tmp_path_factory.mktemp("out") / "photos.hbr", root=root, store="encoded")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that does not wait; what it was asked to wait."""
    asked: list[float] = []
    monkeypatch.setattr(remote, "sleep", asked.append)
    return asked


@pytest.fixture
def server(dataset: Dataset, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that has the dataset, and an environment that points to it."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            pass

    app = Server()
    listening = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.server_port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        remote.DIRECTORY: str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    try:
        there = s3fs.S3FileSystem()
        if there.exists("bucket"):  # moto keeps it for the process
            there.rm("bucket", recursive=True)
        there.mkdir("bucket")
        for file in dataset.path.iterdir():
            there.pipe_file(f"bucket/photos.hbr/{file.name}", file.read_bytes())
        yield app
    finally:
        forget_connections()
        listening.shutdown()
        thread.join()
        listening.server_close()


def forget_connections() -> None:
    """The next use connects to the server that the environment names then."""
    s3fs.S3FileSystem.clear_instance_cache()
    remote._filesystem.cache_clear()


@pytest.mark.parametrize("size", ["1 GB", "15 kB", "0"])
@pytest.mark.usefixtures("server")
def test_epochs_are_those_of_the_disk(dataset: Dataset, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.SIZE, size)
    opened = open_dataset(URL)
    assert len(shards_of(opened).paths) > 1
    for order in (None, shard_order(16, seed=0, run=4, runs_at_once=2)):
        for epoch in range(2):
            mine, expected = (train_loader(one, order=order).epoch(epoch) for one in (opened, dataset))
            assert_same(mine, copies(expected))
    total, limit = int(dataset.train.store.nbytes), remote.cache_size()
    assert min(total, limit) - 5_000 < kept_bytes(opened) <= limit
    assert verify_dataset(URL).fingerprint == dataset.fingerprint


@pytest.mark.usefixtures("server")
def test_a_damaged_object_is_named(dataset: Dataset) -> None:
    check_a_damaged_picture_is_set_aside(URL, dataset, filesystem=s3fs.S3FileSystem())


def test_missing_keys_are_named(server: Server, dataset: Dataset, waits: list[float]) -> None:
    there = s3fs.S3FileSystem()
    with pytest.raises(FileNotFoundError, match=r"there is no dataset at s3://bucket/other.hbr"):
        open_dataset("s3://bucket/other.hbr")
    with pytest.raises(FileNotFoundError, match=r"there is no dataset at s3://nobucket/photos.hbr"):
        open_dataset("s3://nobucket/photos.hbr")
    there.rm_file("bucket/photos.hbr/train.labels.npy")
    there.rm_file("bucket/photos.hbr/train.00001.tar")
    with pytest.raises(FileNotFoundError, match=rf"{URL}/train.labels.npy is missing: copy the whole dataset there"):
        open_dataset(URL)
    there.pipe_file("bucket/photos.hbr/train.labels.npy", (dataset.path / "train.labels.npy").read_bytes())
    opened = open_dataset(URL)
    with pytest.raises(FileNotFoundError, match=rf"{URL}/train.00001.tar is missing: copy the whole dataset there"):
        list(train_loader(opened).epoch(0))
    with pytest.raises(FileNotFoundError, match=rf"{URL}/train.00001.tar is missing"):
        verify_dataset(URL)
    assert waits == []


@pytest.mark.usefixtures("server")
def test_missing_keys_of_access_end_at_once(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    forget_connections()
    with pytest.raises(OSError, match=rf"{URL} cannot be read without access keys \(Unable to locate credentials\)"):
        open_dataset(URL)
    assert waits == []


def test_a_server_that_is_overloaded_is_asked_again(server: Server, dataset: Dataset, waits: list[float]) -> None:
    opened = open_dataset(URL)
    server.is_down = lambda path: path.endswith(".tar") and len(waits) < 2
    assert_same(train_loader(opened).epoch(0), copies(train_loader(dataset).epoch(0)))
    assert waits[:2] == [0.5, 1] or waits[:2] == [0.5, 0.5]  # by one task, or two
    assert len(server.refused) > 2
    assert np.all(shards_of(opened)._kept == 1)
