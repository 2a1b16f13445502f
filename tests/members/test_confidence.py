"""Pools in training: their images are used, get no hardness scores, and are ranked by the ensemble."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool, open_pool
from hbr_fast.loaders.augment import Augment
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.obtain import obtain_members
from hbr_fast.members.scoring import confidence
from hbr_fast.members.scoring.final_model import trained_model
from hbr_fast.members.store import StoredMember
from hbr_fast.resampling import RankedPool, resample
from hbr_fast.training.predict import EVALUATION_BATCH, predict
from hbr_fast.training.recipe import Recipe

RECIPE = Recipe(
    name="t",
    model="cnn-8-16",
    epochs=4,
    batch_size=50,
    lr=0.05,
    schedule="triangular",
    augment=Augment(),
    precision="float32",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "a.hbr"
    return convert("synthetic", path, classes=3, train_per_class=60, test_per_class=10, shape=(1, 8, 8))


@pytest.fixture(scope="module")
def pool(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """600 images like the real ones, of every hardness, from another draw of the same patterns."""
    path = tmp_path_factory.mktemp("pool") / "p.npz"
    more = convert(
        "synthetic", path.with_suffix(".hbr"), classes=3, train_per_class=200, test_per_class=1, shape=(1, 8, 8)
    )
    np.savez(path, images=np.asarray(more.train.images), labels=more.train.labels)
    return open_pool(path, dataset=data, cache=path.parent)


def test_rank_pool_stores_mean_probability_of_own_class(
    data: Dataset, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = train_ensemble(data, RECIPE, members=2, out=tmp_path / "run").members
    ranked = confidence.rank_pool(pool, data, members, cache=tmp_path / "cache")
    expected = np.zeros(600)
    for member in members:
        model = trained_model(member, data.train).eval()
        images = (torch.from_numpy(np.array(pool.split.images)).float() / 255 - data.mean[0]) / data.std[0]
        with torch.no_grad():
            probabilities = model(images).softmax(1).numpy()
        expected += probabilities[np.arange(600), pool.split.labels] / 2
    assert ranked.confidence is not None
    assert ranked.real_confidence is not None
    np.testing.assert_allclose(ranked.confidence, expected, atol=1e-5)
    real = confidence.own_confidence(data.train, data, members, label="real")
    np.testing.assert_allclose(ranked.real_confidence, [real[data.train.labels == c].mean() for c in range(3)])

    def not_again(*args: object, **options: object) -> None:
        raise AssertionError("ranked twice")

    monkeypatch.setattr(confidence, "own_confidence", not_again)
    again = confidence.rank_pool(pool, data, members, cache=tmp_path / "cache")
    assert again.confidence is not None
    np.testing.assert_array_equal(again.confidence, ranked.confidence)
    with pytest.raises(AssertionError, match="ranked twice"):
        confidence.rank_pool(pool, data, members[:1], cache=tmp_path / "cache")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports memory by kind")
def test_rank_pool_streams_pool_larger_than_memory(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process never holds a fifth of 98 MB of images, neither in its own memory nor as pages of the file."""
    count = 1_536_000
    np.save(tmp_path / "p.images.npy", np.zeros((count, 1, 8, 8), np.uint8))
    np.save(tmp_path / "p.labels.npy", np.zeros(count, np.int64))
    pool = open_pool(tmp_path / "p.images.npy", dataset=data, cache=tmp_path)
    held: list[int] = []

    class Looking(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            status = Path("/proc/self/status").read_text()
            held.append(int(re.findall(r"RssFile:\s+(\d+) kB", status)[0]) // 1024)
            return images.flatten(1)[:, :3]

    monkeypatch.setattr(confidence, "trained_model", lambda *_: Looking())
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE.to_json()))
    member = StoredMember(tmp_path, {"precision": "float32"})
    found = confidence.own_confidence(pool.split, data, [member], label="pool")
    assert len(held) * EVALUATION_BATCH == len(found) == count
    assert max(held) - held[0] < 20


def test_train_member_uses_pool_images_and_scores_only_split(data: Dataset, pool: Pool, tmp_path: Path) -> None:
    ranked = RankedPool(labels=pool.split.labels, fingerprint=pool.fingerprint)
    plan = resample(
        data.train.labels, [30, 60, 90], undersample="random", oversample="pool-random", pool=ranked, seed=0
    )
    assert (plan.store == 1).sum() == 30
    trainings = [Job(7, plan, (pool,))]
    member = obtain_members(data, RECIPE, trainings, store=tmp_path / "one", execution=Execution(), label="t")[0]
    scores = member.scores()
    assert len(scores) == 180
    assert scores.observations.sum() == RECIPE.epochs * 150, "rows of the split"
    assert (
        member.key
        != obtain_members(data, RECIPE, [Job(7)], store=tmp_path / "one", execution=Execution(), label="t")[0].key
    )
    # Workers open the pool by its path and train the same member.
    pair = [Job(7, plan, (pool,)), Job(8, plan, (pool,))]
    other = obtain_members(
        data, RECIPE, pair, store=tmp_path / "two", execution=Execution(members_at_once=2), label="t"
    )[0]
    assert other.key == member.key
    np.testing.assert_allclose(other.test_logits(), member.test_logits(), atol=0.05)
    np.testing.assert_allclose(
        predict(trained_model(member, data.train).eval(), data.test, dtype=torch.float32),
        member.test_logits(),
        atol=1e-4,
    )


def test_train_member_refuses_plan_without_its_pool(data: Dataset, pool: Pool, tmp_path: Path) -> None:
    for fingerprint, pools in ((pool.fingerprint, ()), ("another", (pool,))):
        ranked = RankedPool(labels=pool.split.labels, fingerprint=fingerprint)
        plan = resample(
            data.train.labels, [60, 60, 61], undersample="random", oversample="pool-random", pool=ranked, seed=0
        )
        with pytest.raises(ValueError, match="this plan takes images from 1 pools"):
            obtain_members(data, RECIPE, [Job(7, plan, pools)], store=tmp_path, execution=Execution(), label="t")
