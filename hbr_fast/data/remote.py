"""Datasets at a URL: small files are copied to a local directory, pictures are fetched when they are needed.

The local directory looks like the dataset, with shards that are sparse: pictures that were fetched lie there as in the
shards, up to a bound. Those beyond it are held in memory until they are used. An epoch visits every picture once, so
what was fetched first is as good to keep as anything else, and nothing is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from hbr_fast import progress
from hbr_fast.arguments import checked_bytes
from hbr_fast.data.shards import SHARD_PART, STORE
from hbr_fast.files import atomic_write, content_hash, make_directory, parse_json
from hbr_fast.json_schema import read_sealed_json, require_schema, write_sealed_json
from hbr_fast.locks import held

MARK = "remote.json"  # in the local directory: says that its shards are not whole, and where they are
DIRECTORY, SIZE = "HBR_FAST_CACHE", "HBR_FAST_CACHE_SIZE"  # environment variables
DEFAULT_SIZE = "20 GB"
DELAYS_S = (0.5, 1, 2, 4, 8, 16, 16, 16)  # between attempts; an outage of a minute is survived

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}([^/].*)", re.DOTALL)
_REMEDY = "remove the directory"
_PIXELS = ".images.npy"
_PIECE = 2**23
_READS = 2  # of a file without its checksum
_WITHOUT_KEYS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's, which may not be installed

Made = TypeVar("Made")
sleep = time.sleep


class Unreadable(OSError):
    """A URL cannot be read, and another attempt would not help."""


class _OtherContent(Exception):
    pass


class _Mark(TypedDict):
    url: str


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL that a path is, also as `pathlib` writes it (`s3:/bucket`); None for a local path.

    Examples
    --------
    >>> url_of(Path("s3://bucket/photos.hbr"))
    's3://bucket/photos.hbr'
    >>> url_of("photos.hbr") is None
    True
    """
    found = _URL.fullmatch(os.fspath(path))
    if found is None or os.path.lexists(path):
        return None
    scheme = found[1].lower()
    return f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{found[2].rstrip('/')}"


def local_copy(url: str, meta_name: str) -> Path:
    """The local directory of the dataset at a URL, made or brought up to date.

    Raises
    ------
    FileNotFoundError
        If there is no dataset at the URL.
    ImportError
        If fsspec, or what it needs for this kind of URL, is not installed.
    ValueError
        If the kind of URL is unknown, a file does not have its checksum, or raw images do not fit into the cache.
    OSError
        If the URL cannot be read, after a minute of attempts.
    """
    directory = _root() / f"{content_hash(url)[:16]}-{url.rsplit('/', 1)[1].removesuffix('.hbr')}.hbr"
    make_directory(directory.parent)
    there = filesystem(url)
    try:
        content = attempt(url, lambda: there.cat_file(f"{url}/{meta_name}"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no dataset at {url} (no {meta_name} there): copy one to it") from None
    with held(directory.with_suffix(".lock")):
        if not (directory / meta_name).is_file() or (directory / meta_name).read_bytes() != content:
            shutil.rmtree(directory, ignore_errors=True)  # processes that have its files open keep them
            make_directory(directory)
            write_sealed_json(directory / MARK, {"url": url})
        files, sparse = _files_of(content, f"{url}/{meta_name}")
        whole = sum(entry["bytes"] for name, entry in files.items() if name.endswith(_PIXELS))
        if whole > cache_size():
            raise ValueError(
                f"{url} has {whole / 1e6:,.1f} MB of stored pixels, which are copied as a whole, and the cache is of "
                f"{cache_size() / 1e6:,.1f} MB: make it larger ({SIZE}), or convert with --store encoded"
            )
        for name, entry in files.items():
            path = directory / name
            if path.exists() and path.stat().st_size == entry["bytes"]:
                continue
            if name in sparse:
                with open(path, "wb") as file:
                    file.truncate(entry["bytes"])
            else:
                _copy(f"{url}/{name}", path, entry)
        if not (directory / meta_name).is_file():  # written last: the directory is whole from then on
            with atomic_write(directory / meta_name) as file:
                file.write(content)
    return directory


def remote_url(directory: Path) -> str | None:
    """The URL of a local directory's dataset; None if the directory is a dataset of its own."""
    if not (directory / MARK).is_file():
        return None
    mark = read_sealed_json(directory / MARK, remedy=_REMEDY)
    require_schema(mark, _Mark, where=str(directory / MARK), remedy=_REMEDY)
    url: str = mark["url"]
    return url


def local_files(directory: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of files that are whole in a dataset's directory: all of a dataset of its own."""
    sparse = _shards_of(meta) if remote_url(directory) is not None else ()
    return {name: entry for name, entry in meta["files"].items() if name not in sparse}


def sha256_at(url: str) -> str:
    """SHA-256 of a file at a URL, which is read piece by piece and not kept."""
    there = filesystem(url)
    digest = hashlib.sha256()
    with naming(url):
        size = attempt(url, lambda: int(there.size(url)))
    for piece in pieces(url, size):
        digest.update(piece)
    return digest.hexdigest()


def pieces(url: str, size: int) -> Iterator[bytes]:
    """The content of a file of so many bytes."""
    there = filesystem(url)
    for start in range(0, size, _PIECE):
        with naming(url):
            # By name: s3fs has another argument in between.
            piece = attempt(url, partial(there.cat_file, url, start=start, end=min(start + _PIECE, size)))
        yield piece


@contextlib.contextmanager
def naming(url: str) -> Iterator[None]:
    """Say which file of a dataset is missing: file systems may say no more than that one is."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{url} is missing: copy the whole dataset there again") from None


def cache_size() -> int:
    """Bytes of pictures that are kept on the local disk."""
    return checked_bytes(SIZE, os.environ.get(SIZE, DEFAULT_SIZE))


@cache
def _filesystem(url: str, process: int) -> Any:
    try:
        import fsspec
    except ImportError:
        raise ImportError("a dataset at a URL needs fsspec: pip install 'hbr-fast[remote]'") from None
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise ImportError(f"{url} needs what is not installed ({error})") from None
    except ValueError as error:
        raise ValueError(f"{url} is no URL that fsspec knows ({error}): e.g. s3://bucket/photos.hbr") from None


def filesystem(url: str) -> Any:
    """fsspec's file system of a URL; each process has its own, for threads do not survive a fork."""
    return _filesystem(url, os.getpid())


def attempt(url: str, read: Callable[[], Made]) -> Made:
    """Read from a URL, again after failures, with growing delays.

    Raises
    ------
    FileNotFoundError, ImportError, PermissionError, Unreadable
        At once: another attempt would not help.
    OSError
        If the last attempt failed, too.
    """
    for delay in (*DELAYS_S, None):
        try:
            return read()
        except (FileNotFoundError, ImportError, PermissionError, Unreadable):
            raise
        except Exception as error:  # every file system has errors of its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if type(error).__name__ in _WITHOUT_KEYS:
                raise Unreadable(f"{url} cannot be read without access keys ({reason}): set them") from error
            if delay is None:
                raise OSError(
                    f"{url} could not be read in {len(DELAYS_S) + 1} attempts over {sum(DELAYS_S):.0f} s ({reason}): "
                    "check the address and the connection, and run the same again"
                ) from error
            progress.say(f"{url}: {reason}; trying again in {delay:g} s")
            sleep(delay)
    raise AssertionError


def _root() -> Path:
    return Path(os.environ.get(DIRECTORY) or Path.home() / ".cache" / "hbr-fast")


def _files_of(content: bytes, where: str) -> tuple[dict[str, Any], set[str]]:
    """Entries of all files by name, and the names of shards; opening checks what else is in `meta.json`."""
    try:
        meta = parse_json(content)
        files = {
            name: {"sha256": str(one["sha256"]), "bytes": int(one["bytes"])} for name, one in meta["files"].items()
        }
        shards = _shards_of(meta)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{where} does not describe a dataset: copy it again") from None
    for name in files:
        if Path(name).name != name or name in ("", MARK):
            raise ValueError(f"{where}: {name!r} in files is not a plain file name: copy it again")
    return files, shards


def _shards_of(meta: Mapping[str, Any]) -> set[str]:
    return {
        file
        for split in meta["splits"].values()
        if split.get("store") == STORE
        for part, file in split["files"].items()
        if part.startswith(SHARD_PART)
    }


def _copy(url: str, path: Path, entry: Mapping[str, Any]) -> None:
    """Copy a whole file with the right checksum; one that differs is read once more."""
    if not any(_copied(url, path, entry) for _ in range(_READS)):
        raise ValueError(f"{url} does not have the checksum in meta.json: copy the dataset there again")


def _copied(url: str, path: Path, entry: Mapping[str, Any]) -> bool:
    with contextlib.suppress(_OtherContent), atomic_write(path) as file:
        digest = hashlib.sha256()
        for piece in pieces(url, entry["bytes"]):
            file.write(piece)
            digest.update(piece)
        if digest.hexdigest() != entry["sha256"]:
            raise _OtherContent  # inside, so that the file does not appear
        return True
    return False
