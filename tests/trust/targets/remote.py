"""Datasets at a URL, and the local directory in which their pictures are kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from .own import _write_dataset, _write_encoded
from .target import Target


def _opened(url: str, cache: Path) -> Any:
    """All of a dataset at a URL; attempts to read it follow each other without a delay.

    The documented error after the last of them counts as a refusal: a shard that is too short looks like a connection
    that breaks.
    """
    from hbr_fast.data import remote
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.verify import require_unchanged

    with (
        mock.patch.dict(os.environ, {remote.DIRECTORY: str(cache)}),
        mock.patch.object(remote, "sleep"),
    ):
        found = open_dataset(url)
        require_unchanged(found)
        try:
            pixels = {name: _pixels(one) for name, one in found.splits.items()}
        except OSError as error:
            if " bytes came instead of " not in str(error):
                raise
            raise ValueError(str(error)) from error
        sources = [one.sources and [one.sources[row] for row in range(len(one))] for one in found.splits.values()]
        labels = [one.labels for one in found.splits.values()]
        return found.name, found.classes, found.mean, found.std, labels, sources, pixels


def _pixels(split: Any) -> Any:
    return split.at_size(8).store.gather(range(len(split))) if split.store.image_shape is None else split.images


def _at_url(path: Path) -> Any:
    cache = path.parent / "in-cache"
    shutil.rmtree(cache, ignore_errors=True)
    return _opened(f"file://{path}/a.hbr", cache)


def _in_memory(path: Path) -> Any:
    """Like `_at_url`, with another of fsspec's file systems."""
    import fsspec

    cache = path.parent / "in-cache"
    shutil.rmtree(cache, ignore_errors=True)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in (path / "a.hbr").iterdir():
        memory.pipe_file(f"{path}/a.hbr/{file.name}", file.read_bytes())
    return _opened(f"memory:/{path}/a.hbr", cache)


def _agreeing(path: Path) -> Any:
    """With sizes and checksums in `meta.json` that agree with the files, so that what is behind them is reached."""
    served = path.parent / "in-served"
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(path, served)
    meta_path = served / "a.hbr" / "meta.json"
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        from hbr_fast.files import sha256_of_file

        meta = json.loads(meta_path.read_bytes())
        meta.pop("sha256", None)
        for name, entry in meta["files"].items():
            file = served / "a.hbr" / name
            if file.is_file():
                entry.update(bytes=file.stat().st_size, sha256=sha256_of_file(file))
        meta_path.write_text(json.dumps(meta))
    return _at_url(served)


def _write_cache(path: Path) -> None:
    """The local directory after every picture was fetched once."""
    served = path.parent / "served"
    served.mkdir()
    _write_encoded(served)
    _opened(f"file://{served}/a.hbr", path)


def _cache(path: Path) -> Any:
    found = path.parent / "in-copy"
    shutil.rmtree(found, ignore_errors=True)
    shutil.copytree(path, found)
    return _opened(f"file://{path.parent / 'served'}/a.hbr", found)


def _targets(name: str, write: Callable[[Path], None], read: Callable[[Path], Any]) -> list[Target]:
    return [Target(name, write, read, sealed=True), Target(f"{name}, no checksum", write, _agreeing)]


TARGETS = [
    *_targets("dataset at a URL", _write_dataset, _at_url),
    *_targets("pictures at a URL", _write_encoded, _in_memory),
    Target("cache of a URL", _write_cache, _cache, sealed=True),
]
