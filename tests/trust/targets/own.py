"""The package's own files: datasets, plans, scores, checkpoints, members, recipes, pools."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .target import Target


def _dataset(path: Path) -> Any:
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.verify import verify_dataset

    verify_dataset(path / "a.hbr")
    found = open_dataset(path / "a.hbr")
    splits = {name: (one.images, one.labels, one.truth) for name, one in found.splits.items()}
    return found.name, found.classes, found.mean, found.std, splits


def _write_dataset(path: Path) -> None:
    from hbr_fast.data.convert import convert

    convert("synthetic", path / "a.hbr", classes=2, train_per_class=3, test_per_class=1, shape=(1, 4, 4))


def _write_unsealed_dataset(path: Path) -> None:
    """As an earlier version wrote it: what is behind the checksum is tried too."""
    _write_dataset(path)
    meta = json.loads((path / "a.hbr" / "meta.json").read_text())
    del meta["sha256"]
    (path / "a.hbr" / "meta.json").write_text(json.dumps(meta))


def _write_photographs(path: Path) -> Path:
    """A folder of JPEGs of two sizes and a PNG."""
    from PIL import Image

    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (path / split / name).mkdir(parents=True)
            for number in range(count):
                areas = np.random.default_rng(7 * label + number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
                picture = Image.fromarray(areas).resize((16 + 8 * number, 16), Image.Resampling.BICUBIC)
                picture.save(path / split / name / f"{number}.{'png' if number == 2 else 'jpg'}")
    return path


def _write_encoded(path: Path) -> None:
    from hbr_fast.data.convert import convert

    convert("folder", path / "a.hbr", root=_write_photographs(path.parent / "photos"), store="encoded")


def _encoded(path: Path) -> Any:
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.verify import verify_dataset

    verify_dataset(path / "a.hbr")
    found = open_dataset(path / "a.hbr")
    pixels = {name: one.at_size(8).store.gather(range(len(one))) for name, one in found.splits.items()}
    return found.classes, found.mean, pixels, [one.sources for one in found.splits.values()]


def _write_pictures(path: Path) -> None:
    _write_encoded(path)
    for name in ("train.00000.tar", "train.index.npy"):
        (path / "a.hbr" / name).rename(path / name)
    shutil.rmtree(path / "a.hbr")


def _pictures(path: Path) -> Any:
    """The pictures of a shard, behind their checksums: those that cannot be decoded are black."""
    import zlib

    from hbr_fast.data.encoded_images import BadPicture, EncodedImages
    from hbr_fast.data.npy import read_npy
    from hbr_fast.data.shards import INDEX, ShardFiles

    index = read_npy(path / "train.index.npy", dtype=INDEX).copy()
    store = EncodedImages(ShardFiles([path / "train.00000.tar"]), index, 3)
    made: list[Any] = []
    for row in range(len(index)):
        try:
            index["crc"][row] = zlib.crc32(store.content(row))
            made.append(store.at_size(8).gather([row]))
        except BadPicture as error:
            made.append(str(error))
    return made


def _write_unfinished(path: Path) -> None:
    """The shards of a conversion that was interrupted before its last one."""
    from unittest import mock

    from hbr_fast.data.unfinished import Unfinished

    keep, kept = Unfinished.keep, []

    def interrupted(self: Any, shard: Any) -> None:
        keep(self, shard)
        kept.append(shard)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with mock.patch.object(Unfinished, "keep", interrupted), contextlib.suppress(KeyboardInterrupt):
        _unfinished_to(path / "a.hbr", _write_photographs(path.parent / "photos"))
    assert len(kept) == 2


def _unfinished_to(out: Path, photos: Path) -> Any:
    from unittest import mock

    from hbr_fast.data import shards
    from hbr_fast.data.convert import convert

    with mock.patch.object(shards, "SHARD_BYTES", 2000):
        return convert("folder", out, root=photos, store="encoded")


def _unfinished(path: Path) -> Any:
    """What the conversion makes of them in the end."""
    place = path.parent / "again"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(path, place)
    _unfinished_to(place / "a.hbr", path.parent / "photos")
    return _encoded(place)


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


def _recorder(path: Path) -> Any:
    from hbr_fast.hardness import HardnessRecorder
    from hbr_fast.hardness.state_file import load_state

    state, about = load_state(path / "a.safetensors")
    recorder = HardnessRecorder(3, 2)
    recorder.load_state_dict(state)
    return recorder.state_dict(), about


def _write_recorder(path: Path) -> None:
    from hbr_fast.hardness import HardnessRecorder
    from hbr_fast.hardness.state_file import save_state

    save_state(path / "a.safetensors", HardnessRecorder(3, 2).state_dict(), step=5)


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
        (m.key, m.seed, str(m.dtype), vars(m.scores()), m.test_logits(), m.history().write_csv(), _weights(m.path))
        for m in ensemble.members
    ]
    recipes = [stored_recipe(m.path / "recipe.json", remedy="r").to_json() for m in ensemble.members]
    return about, found, recipes


def _weights(member: Path) -> Any:
    from hbr_fast.tensor_files import read_tensors

    return read_tensors(member / "weights.safetensors", what="weights", remedy="r", framework="pt")[0]


def _write_start_weights(path: Path) -> None:
    """As others write them, without a checksum."""
    import torch
    from safetensors.torch import save_file

    state = torch.nn.Linear(3, 2).state_dict()
    save_file(state, path / "a.safetensors")
    torch.save({"state_dict": state}, path / "b.pt")


def _start_weights(path: Path) -> Any:
    import torch

    from hbr_fast.training.models.start_weights import load_start_weights

    found = []
    for name in ("a.safetensors", "b.pt"):
        model = torch.nn.Linear(3, 2)
        found.append((load_start_weights(model, str(path / name), 2), model.state_dict()))
    return found


def _write_recipe_files(path: Path) -> None:
    (path / "a.toml").write_text('model = "resnet18"\nepochs = 30\nlr = 0.1\n[augment]\nflip = 0.5\n')
    (path / "b.json").write_text(json.dumps({"model": "resnet18", "epochs": 3, "augment": {"pad": 2}}))


def _recipe_files(path: Path) -> Any:
    from hbr_fast.training.recipe_files import read_recipe

    return [read_recipe(path / name).to_json() for name in ("a.toml", "b.json")]


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


TARGETS = [
    Target("dataset", _write_dataset, _dataset, sealed=True),
    Target("dataset, no checksum", _write_unsealed_dataset, _dataset),
    Target("dataset of pictures", _write_encoded, _encoded, sealed=True),
    Target("shards, no checksum", _write_pictures, _pictures),
    Target("unfinished shards", _write_unfinished, _unfinished, sealed=True),
    *_safetensors("plan", _plan, _load_plan),
    *_safetensors("scores", _scores, _load_scores),
    Target("recorder", _write_recorder, _recorder, sealed=True),
    Target("checkpoint", lambda path: _checkpoints(path).save(_state()), _restored, sealed=True),
    Target("checkpoint, no checksum", _write_checkpoint_without_checksum, _restored),
    Target("pool file", _write_pool, _pool),
    Target("pool", _write_opened_pool, _opened_pool, sealed=True),
    Target("ensemble", _write_ensemble, _ensemble, sealed=True),
    Target("ensemble, no checksum", lambda path: _write_ensemble(path, sealed=False), _ensemble),
    Target("start weights", _write_start_weights, _start_weights),
    Target("stored recipe", _write_recipe, _recipe),
    Target("recipe files", _write_recipe_files, _recipe_files),
]
