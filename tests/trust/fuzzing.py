"""A fuzzer for every file format that the package reads: mutated files in processes with bounded memory and time.

`targets` writes a whole example of each format. A case is (target, file, number): the mutation is a function of these,
so that `replay` repeats it. A reading process takes cases in turn and is replaced when it crashes or hangs.

Outcomes:

refused     a ValueError or OSError of one line that names the file or its directory
unchanged   accepted, with the content of the original
changed     accepted with other content; allowed only for formats without a checksum, where no reader can tell
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .attempts import ROOT

RIGHT = ("ValueError", "FileNotFoundError", "FileExistsError")
BAD = ("unnamed", "several lines", "wrong exception", "silent", "memory", "hang", "crash")
MEMORY = 1 << 30  # addresses beyond those of the imported libraries
WATCHDOG_S = 60.0  # only against hangs: a case takes milliseconds


@dataclasses.dataclass(frozen=True)
class Target:
    """A format: how to write an example into an empty directory, and how to read it.

    `read` returns all of the content; `sealed` are the files that a checksum protects.
    """

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    sealed: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """A mutation of one file of a target."""

    target: str
    file: str
    number: int


# --- content


def content_of(value: Any) -> str:
    """A hash of nested values, arrays and tensors."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            yield f"{name}:".encode(errors="replace")
            yield from _parts(value[name])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}[".encode()
        for one in value:
            yield from _parts(one)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    else:
        yield repr(value).encode(errors="replace")


def _dataset(path: Path) -> Any:
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.verify import verify_dataset

    verify_dataset(path / "a.hbr")
    found = open_dataset(path / "a.hbr")
    splits = {name: (one.images, one.labels, one.truth) for name, one in found.splits.items()}
    return found.name, found.classes, found.mean, found.std, splits


def _source(source: Any) -> Any:
    splits = {
        name: (one.shape, one.labels_n, [block.copy() for block in one.blocks()]) for name, one in source.splits.items()
    }
    return source.name, source.classes, splits


# --- examples


def _write_dataset(path: Path) -> None:
    from hbr_fast.data.convert import convert

    convert("synthetic", path / "a.hbr", classes=2, train_per_class=3, test_per_class=1, shape=(1, 4, 4))


def _write_unsealed_dataset(path: Path) -> None:
    """As an earlier version wrote it: what is behind the checksum is tried too."""
    _write_dataset(path)
    meta = json.loads((path / "a.hbr" / "meta.json").read_text())
    del meta["sha256"]
    (path / "a.hbr" / "meta.json").write_text(json.dumps(meta))


def _plan() -> Any:
    from hbr_fast.data.plan import Plan

    return Plan.of_rows(np.arange(7), provenance={"alpha": 0.5, "counts": [3, 4]})


def _scores() -> Any:
    from hbr_fast.hardness import HardnessScores

    seen = np.full((1, 4), 3)
    return HardnessScores({"aum": np.linspace(0, 1, 4)[None]}, seen, seen == 0, {"dataset": "abc"})


def _without_checksum(path: Path) -> None:
    """Write a safetensors file again without its checksum."""
    from safetensors import safe_open
    from safetensors.numpy import load, save

    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["hbr_fast"])
    del about["sha256"]
    path.write_bytes(save(load(path.read_bytes()), metadata={"hbr_fast": json.dumps(about)}))


def _state() -> Any:
    import torch

    from hbr_fast.hardness import HardnessRecorder
    from hbr_fast.training.state import TrainingState

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainingState(model, optimizer, HardnessRecorder(3, 2), torch.zeros(2), torch.zeros(2, dtype=torch.int64))


def _checkpoints(path: Path) -> Any:
    from hbr_fast.training.checkpoint import CheckpointEvery, Checkpoints

    return Checkpoints(path / "a.safetensors", {"seed": 1}, CheckpointEvery())


def _restored(path: Path) -> Any:
    state = _state()
    assert _checkpoints(path).restore(state)
    return state.tensors(), state.values()


def _write_pool(path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    np.savez(path / "a.npz", images=images, labels=np.array([0, 1, 0, 1]))


def _pool(path: Path) -> Any:
    from hbr_fast.data.pool import open_pool

    cache = path / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    pool = open_pool(path / "a.npz", dataset=_small_dataset(), cache=cache)
    return pool.split.images, pool.split.labels


def _small_dataset() -> Any:
    from types import SimpleNamespace

    mean = np.zeros(1, np.float32)
    train = SimpleNamespace(image_shape=(1, 4, 4), mean=mean, std=mean)
    return SimpleNamespace(train=train, classes=("a", "b"), path=Path("the-dataset"))


def _write_opened_pool(path: Path) -> None:
    from hbr_fast.data.pool import open_pool

    _write_pool(path)
    (path / "a.npz").rename(path.parent / "p.npz")
    made = open_pool(path.parent / "p.npz", dataset=_small_dataset(), cache=path / "cache")
    made.path.rename(path / "pool")
    (path / "cache").rmdir()


def _opened_pool(path: Path) -> Any:
    from hbr_fast.data.pool import open_pool

    pool = open_pool(path / "pool", dataset=_small_dataset())
    return pool.split.images, pool.split.labels, pool.fingerprint


def _records() -> dict[str, bytes]:
    def part(seed: int, count: int) -> bytes:
        random_bytes = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
        random_bytes[:, 0] %= 10
        return random_bytes.tobytes()

    files = {f"data_batch_{number}.bin": part(number, 2) for number in range(1, 6)}
    names = "\n".join(f"thing {number}" for number in range(10))
    return {**files, "test_batch.bin": part(6, 2), "batches.meta.txt": names.encode()}


def _write_archive(path: Path, files: dict[str, bytes], *, compressed: bool) -> None:
    import io
    import tarfile

    with tarfile.open(path, "w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _pickles() -> dict[str, bytes]:
    """CIFAR-10's Python batches, with numpy's classes by their names of today."""
    import pickle

    files = {}
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(seed).integers(0, 256, (2, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": data, "labels": [seed, 9 - seed]}, protocol=2)
    return {**files, "batches.meta": pickle.dumps({"label_names": [f"thing {n}" for n in range(10)]}, protocol=2)}


def _write_pickles(path: Path) -> None:
    folder = path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in _pickles().items():
        (folder / name).write_bytes(content)


def _cifar10(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("cifar10", root=path, accept_changed=True))


def _write_idx(path: Path) -> None:
    import gzip
    import struct

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 5, 5) + pixels.tobytes()
    (path / "images").write_bytes(content)
    (path / "images.gz").write_bytes(gzip.compress(content, mtime=0))


def _idx(path: Path) -> Any:
    from hbr_fast.data.sources.idx import read_idx

    return [read_idx(path / name, dimensions=3) for name in ("images", "images.gz")]


def _write_npz(path: Path) -> None:
    random_images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    np.savez_compressed(
        path / "a.npz",
        x_train=random_images[:4],
        y_train=np.array([0, 1, 0, 1]),
        x_test=random_images[4:],
        y_test=np.array([1, 0]),
    )


def _npz(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("npz", root=path / "a.npz"))


def _write_folder(path: Path) -> None:
    from PIL import Image

    kinds: dict[str, dict[str, Any]] = {
        "a.png": {},
        "b.jpg": {"quality": 80},
        "c.webp": {"lossless": True},
        "d.bmp": {},
    }
    for split in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            (path / "set" / split / label).mkdir(parents=True)
            for name, options in kinds.items():
                pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / "set" / split / label / name, **options)


def _folder(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("folder", root=path / "set"))


def _write_zip(path: Path) -> None:
    _write_folder(path)
    shutil.make_archive(str(path / "set"), "zip", path, "set")
    shutil.rmtree(path / "set")


def _zip(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("folder", root=path / "set.zip"))


def _write_study(path: Path, *, sealed: bool) -> None:
    """A study of two arms, two members each, without training."""
    import polars as pl

    from hbr_fast.evaluation.measures import MEASURES, METRICS
    from hbr_fast.files import sha256_of_file, write_json
    from hbr_fast.json_schema import write_sealed_json

    classes, arms = ("a", "b"), ("baseline", "hbr")
    who = [{"arm": arm, "variant": 0, "member": m, "seed": 7 + m} for arm in arms for m in range(2)]
    measured = {f"{metric}_{measure}": 0.1 for metric in METRICS for measure in MEASURES}
    member = {"accuracy": 0.9, "train_seconds": 1.0, **measured}
    of_class = {"samples": 3, "hardness": 1.5, **dict.fromkeys(METRICS, 0.9), "never_predicted": False}
    compared = {"baseline": 0.1, "treatment": 0.2, "difference": 0.1, "low": 0.0, "high": 0.2, "effect_size": 1.0}
    compared |= {"combined_low": -0.1, "combined_high": 0.3}
    interval = {"mean": 0.9, "low": 0.8, "high": 1.0, "combined_low": 0.7, "combined_high": 1.0, "test_samples": 9}
    tested = {"p": 0.5, "p_holm": 1.0, "smallest_p": 0.25, "paper_t": 1.0, "paper_p": 0.3, "direction": "wider"}
    quantities = [*(f"{metric}_{measure}" for metric in ("recall", "precision") for measure in MEASURES), "accuracy"]
    of_arm = {"arm": "hbr", "against": "baseline", "variants": 1, **compared, **tested, "no_test": ""}
    tables: dict[str, list[dict[str, Any]]] = {
        "per_member.csv": [{**one, **member} for one in who],
        "per_class.csv": [
            {**one, "class_index": c, "class_name": name, **of_class} for one in who for c, name in enumerate(classes)
        ],
        "class_intervals.csv": [
            {"arm": arm, "class_index": c, "metric": metric, **interval}
            for arm in arms
            for metric in METRICS
            for c in (0, 1)
        ],
        "confusion.csv": [
            {"arm": arm, "true_index": c, "predicted_index": c, "samples": 9} for arm in arms for c in (0, 1)
        ],
        "samples.csv": [{"sample_id": n, "class_index": 0, "class_name": "a", "aum": 1.5} for n in range(3)],
        "comparisons.csv": [{**of_arm, "quantity": quantity} for quantity in quantities],
    }
    for name, rows in tables.items():
        pl.DataFrame(rows).write_csv(path / name)
    members = [{"variant": 0, "member": m, "seed": 7 + m} for m in range(2)]
    meta: dict[str, Any] = {
        "schema": 4,
        "study": "fuzz",
        "dataset": {"name": "d", "fingerprint": "f", "classes": list(classes), "samples": 3},
        "recipe": {"name": "r"},
        "seconds": 1.5,
        "versions": {},
        "arms": [{"name": arm, "alpha": 0.1, "members": members} for arm in arms],
        "estimator": "aum",
    }
    if sealed:
        files = {name: sha256_of_file(path / name) for name in tables}
        write_sealed_json(path / "study.json", {**meta, "files": files})
    else:
        write_json(path / "study.json", meta)


def _study(path: Path) -> Any:
    from hbr_fast.report.study_files import read_study
    from hbr_fast.report.tables import tables_of

    study = read_study(path)
    frames = [frame.write_csv() for frame in (study.per_class, study.per_member, study.samples)]
    return study.meta, frames, study.comparisons, [table.shown() for table in tables_of(study)]


def _write_ensemble(path: Path, *, sealed: bool = True) -> None:
    """An ensemble of one member, written without training it."""
    import torch

    from hbr_fast.json_schema import write_sealed_json
    from hbr_fast.members.store import _write_member
    from hbr_fast.training.member import Member
    from hbr_fast.training.recipes import named_recipe
    from hbr_fast.training.state import EpochRecord

    recipe = named_recipe("small-cnn", ["precision=float32"])
    member = Member(
        weights={"w": torch.ones(2, 2)},
        scores=_scores(),
        test_logits=np.ones((2, 2), np.float32),
        history=(EpochRecord(0, 0.1, 0.5, 0.9, 1.0, 100.0),),
    )
    (path / "members").mkdir()
    key = "0" * 20
    info = {"key": key, "seed": 1, "precision": "float32", "dataset": "f"}
    _write_member(path / "members" / key, member, recipe=recipe, plan=_plan(), info=info)
    about = {"path": "../d.hbr", "name": "d", "fingerprint": "f"}
    members = [{"key": key, "seed": 1}]
    value = {"schema": 1, "dataset": about, "seed": 0, "plan": None, "members": members, "failed": []}
    write_sealed_json(path / "ensemble.json", value)
    if not sealed:
        for file in (path / "ensemble.json", path / "members" / key / "member.json"):
            value = json.loads(file.read_text())
            del value["sha256"]
            file.write_text(json.dumps(value))


def _ensemble(path: Path) -> Any:
    from hbr_fast.members.ensemble import open_ensemble
    from hbr_fast.training.recipe import stored_recipe

    ensemble, about = open_ensemble(path)
    about.pop("sha256", None)
    found = [
        (m.key, m.seed, str(m.dtype), vars(m.scores()), m.test_logits(), m.history().write_csv())
        for m in ensemble.members
    ]
    recipes = [stored_recipe(m.path / "recipe.json", remedy="r").to_json() for m in ensemble.members]
    return about, found, recipes


def _write_recipe(path: Path) -> None:
    from hbr_fast.files import write_json
    from hbr_fast.training.recipes import named_recipe

    write_json(path / "recipe.json", named_recipe("small-cnn").to_json())


def _recipe(path: Path) -> Any:
    from hbr_fast.training.recipe import stored_recipe

    return stored_recipe(path / "recipe.json", remedy="r").to_json()


def _safetensors(name: str, value: Callable[[], Any], load: Callable[[Path], Any]) -> list[Target]:
    def write(path: Path) -> None:
        value().save(path / "a.safetensors")

    def write_unsealed(path: Path) -> None:
        write(path)
        _without_checksum(path / "a.safetensors")

    def read(path: Path) -> Any:
        return vars(load(path / "a.safetensors"))

    return [Target(name, write, read, sealed=True), Target(f"{name}, no checksum", write_unsealed, read)]


def _load_plan(path: Path) -> Any:
    from hbr_fast.data.plan import Plan

    return Plan.load(path)


def _load_scores(path: Path) -> Any:
    from hbr_fast.hardness import HardnessScores

    return HardnessScores.load(path)


def _write_checkpoint_without_checksum(path: Path) -> None:
    _checkpoints(path).save(_state())
    _without_checksum(path / "a.safetensors")


TARGETS = {
    target.name: target
    for target in (
        Target("dataset", _write_dataset, _dataset, sealed=True),
        Target("dataset, no checksum", _write_unsealed_dataset, _dataset),
        *_safetensors("plan", _plan, _load_plan),
        *_safetensors("scores", _scores, _load_scores),
        Target("checkpoint", lambda path: _checkpoints(path).save(_state()), _restored, sealed=True),
        Target("checkpoint, no checksum", _write_checkpoint_without_checksum, _restored),
        Target("pool file", _write_pool, _pool),
        Target("pool", _write_opened_pool, _opened_pool, sealed=True),
        Target("cifar binary", lambda path: _write_files(path / "cifar-10-batches-bin", _records()), _cifar10),
        Target("cifar pickles", _write_pickles, _cifar10),
        Target(
            "cifar archive",
            lambda path: _write_archive(path / "cifar-10-binary.tar.gz", _records(), compressed=True),
            _cifar10,
        ),
        Target("idx", _write_idx, _idx),
        Target("npz", _write_npz, _npz),
        Target("pictures", _write_folder, _folder),
        Target("pictures, zip", _write_zip, _zip),
        Target("study", lambda path: _write_study(path, sealed=True), _study, sealed=True),
        Target("study, no checksum", lambda path: _write_study(path, sealed=False), _study),
        Target("ensemble", _write_ensemble, _ensemble, sealed=True),
        Target("ensemble, no checksum", lambda path: _write_ensemble(path, sealed=False), _ensemble),
        Target("recipe", _write_recipe, _recipe),
    )
}


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


# --- mutations

_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b'"', b"{", b"]", b",", b"-", b"9")
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63), 2**64 - 1)
_TOKENS = (
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"9" * 400,
    b"[" * 3000,
    b'{"a":' * 3000,
    b'"\\ud800"',
    b"\xff\xfe",
    b"18446744073709551616",
    b"\x80\x04K\x01.",
)


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three random changes of a file; `other` is another file to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_CHANGES)(content, other, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    """A position, often near the start, where headers are."""
    most = len(content)
    return rng.randrange(min(most, 128) if rng.random() < 0.4 else most) if most else 0


def _flip(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :] if content else content


def _set(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.choice(_BYTES) + content[at + 1 :]


def _cut(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _remove(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 2, 8, 64, 512)) :]


def _repeat(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((1, 8, 64, 512))
    return content[:at] + content[at : at + size] * rng.choice((2, 3, 50)) + content[at + size :]


def _insert(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + (rng.choice(_TOKENS) if rng.random() < 0.5 else rng.randbytes(8)) + content[at:]


def _number(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((2, 4, 8))
    value = rng.choice(_NUMBERS) % (1 << 8 * size)
    return content[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def _digits(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Replace a run of digits, a word or a quoted string of text."""
    import re

    found = list(re.finditer(rb'\d+|"[^"\n]{0,40}"|[a-z_]{3,}', content[: 1 << 16]))
    if not found:
        return _number(content, other, rng)
    one = rng.choice(found)
    new = rng.choice((*_TOKENS, str(rng.choice(_NUMBERS)).encode(), rng.choice(found)[0]))
    return content[: one.start()] + new + content[one.end() :]


def _splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


_CHANGES = (_flip, _flip, _set, _cut, _remove, _repeat, _insert, _number, _digits, _digits, _digits, _splice)


# --- running


def examples(directory: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Write an example of each target into its own directory; the files of each, relative to it."""
    files = {}
    for number, name in enumerate(names):
        place = directory / str(number) / "in"
        place.mkdir(parents=True)
        TARGETS[name].write(place)
        files[name] = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    return files


def cases(files: dict[str, list[str]], count: int, *, seed: int) -> list[Case]:
    """As many cases, spread evenly over the targets and then over their files."""
    names = list(files)
    return [
        Case(name, files[name][number // len(names) % len(files[name])], seed * 1_000_000 + number)
        for number in range(count)
        for name in [names[number % len(names)]]
    ]


def read_cases(directory: str, names: list[str]) -> None:
    """The reading process: a case on each line of input, its outcome on each line of output."""
    import resource

    import hbr_fast.members.ensemble
    import hbr_fast.report.tables

    del hbr_fast
    places = {name: Path(directory) / str(number) / "in" for number, name in enumerate(names)}
    right = {name: content_of(TARGETS[name].read(place)) for name, place in places.items()}
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    print("ready", file=answers)
    for line in sys.stdin:
        case = Case(**json.loads(line))
        print(json.dumps(_outcome(case, places[case.target], right[case.target])), file=answers)


def _outcome(case: Case, place: Path, right: str) -> tuple[str, str]:
    path, target = place / case.file, TARGETS[case.target]
    before = path.read_bytes()
    rng = random.Random(f"{case.target} {case.file} {case.number}")
    other = sorted(one for one in place.rglob("*") if one.is_file())
    path.write_bytes(mutated(before, rng.choice(other).read_bytes(), rng))
    try:
        found = content_of(target.read(place))
    except MemoryError as error:
        return "memory", repr(error)[:300]
    except BaseException as error:
        return _kind_of(error, case), f"{type(error).__name__}: {error}"[:300]
    finally:
        path.write_bytes(before)
    if found == right:
        return "unchanged", ""
    return ("silent" if target.sealed else "changed"), ""


def _kind_of(error: BaseException, case: Case) -> str:
    message = str(error)
    if type(error).__name__ not in RIGHT:
        return "wrong exception"
    if "\n" in message:
        return "several lines"
    named = Path(case.file).name in message or "/in" in message
    return "refused" if named else "unnamed"


@dataclasses.dataclass
class Results:
    """How many cases of each target ended how, and those that ended badly."""

    counts: Counter[tuple[str, str]]
    bad: list[tuple[Case, str, str]]

    def totals(self) -> dict[str, int]:
        """Cases by outcome."""
        totals: Counter[str] = Counter()
        for (_, kind), count in self.counts.items():
            totals[kind] += count
        return {kind: totals[kind] for kind in ("refused", "unchanged", "changed", *BAD)}


def run(directory: Path, count: int, *, seed: int = 0, names: Iterable[str] | None = None) -> Results:
    """Write examples into an empty directory and try this many mutations of them."""
    chosen = list(TARGETS if names is None else names)
    todo = cases(examples(directory, chosen), count, seed=seed)
    results = Results(Counter(), [])
    while todo:
        program = f"from trust.fuzzing import read_cases; read_cases({str(directory)!r}, {chosen!r})"
        reader = _Reader(directory, program=program)
        try:
            while todo:
                case = todo.pop(0)
                kind, message = reader.outcome(case)
                results.counts[case.target, kind] += 1
                if kind in BAD:
                    results.bad.append((case, kind, message))
                if kind in ("hang", "crash"):
                    break
        finally:
            reader.end()
    return results


class _Reader:
    """A process that reads mutated files."""

    def __init__(self, directory: Path, *, program: str) -> None:
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=directory,
        )
        started = self._line(10 * WATCHDOG_S)
        assert started == "ready\n", f"the reader did not start: {started!r}"

    def outcome(self, case: Case) -> tuple[str, str]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(case)) + "\n")
        self._process.stdin.flush()
        line = self._line(WATCHDOG_S)
        if line is None:
            return "hang", f"no answer within {WATCHDOG_S} s"
        if not line:
            return "crash", f"exit code {self._process.wait()}"
        kind, message = json.loads(line)
        return kind, message

    def _line(self, seconds: float) -> str | None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
