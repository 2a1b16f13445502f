"""What a notebook shows of each public object: one line that names it and says how large it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import write_photographs

import hbr_fast as hbr
from hbr_fast.studies.recipes import named_study

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> hbr.Dataset:
    path = tmp_path_factory.mktemp("data") / "toy.hbr"
    return hbr.convert("synthetic", path, classes=3, train_per_class=400, test_per_class=2, shape=(1, 8, 8))


def test_datasets(data: hbr.Dataset, tmp_path: Path) -> None:
    assert repr(data) == (
        f"<Dataset 'synthetic': 1,200 train, 6 test; images of 1x8x8, 3 classes, fingerprint {data.fingerprint[:12]}>"
    )
    assert repr(data.train) == "<Split 'train': 1,200 images of 1x8x8, 3 classes>"
    assert repr(data.test.store) == "<RawImages: 6 images of 1x8x8>"
    photos = hbr.convert("folder", tmp_path / "a.hbr", root=write_photographs(tmp_path / "a"), store="encoded")
    assert repr(photos.train) == "<Split 'train': 12 pictures of any size, 2 classes>"
    assert repr(photos.train.at_size(8).store) == "<EncodedImages: 12 images of 3x8x8>"
    pool = hbr.open_pool(data.path, dataset=data, cache=tmp_path / "cache")
    assert repr(pool).startswith("<Pool 'toy.hbr': <Split 'train': 1,200 images of 1x8x8, 3 classes>, fingerprint ")


def test_plans_and_orders(data: hbr.Dataset) -> None:
    rows = np.arange(1000)
    assert repr(hbr.Plan.of_rows(rows)) == "<Plan: 1,000 rows of a split>"
    of = hbr.Plan.of_rows(rows[:1], provenance={"dataset": data.fingerprint})
    assert repr(of) == f"<Plan: 1 row of dataset {data.fingerprint[:12]}>"
    order = hbr.quota_order(data.train.labels, [700, 200, 100], seed=0)
    assert repr(order) == "<QuotaOrder: 1,000 positions an epoch, of 1,200 rows>"
    assert repr(order.shard(0, 2)) == "<Shard: 500 positions an epoch, of 1,200 rows>"
    assert repr(hbr.weighted_order(np.ones(2000), seed=0)).startswith("<WeightedOrder: 2,000 positions")
    assert repr(hbr.OrderSampler(order)) == "<OrderSampler: 1,000 indices an epoch, next is epoch 0>"
    sampler = hbr.HardnessSampler(data.train.labels, counts_c=[7, 2, 1], seed=0)
    assert repr(sampler) == "<HardnessSampler: 10 indices an epoch, next is epoch 0>"


def test_loaders(data: hbr.Dataset) -> None:
    loader = hbr.Loader(data.train, batch_size=100)
    assert (
        repr(loader)
        == "<Loader: 12 batches of 100 of <Split 'train': 1,200 images of 1x8x8, 3 classes>, native on cpu>"
    )
    assert repr(next(iter(loader))) == "<Batch: 100 images of 1x8x8, float32 on cpu>"


def test_recordings() -> None:
    recorder = hbr.HardnessRecorder(num_samples=2000, num_classes=3, estimators=["aum", "loss"])
    recorder.record(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([0]), epoch=0)
    assert repr(recorder) == "<HardnessRecorder: 2,000 samples of 3 classes, 1 epoch begun, 2 estimators>"
    assert repr(recorder.scores()) == "<HardnessScores: 2,000 samples by 1 member: aum, loss>"
    growing = hbr.GrowingRecorder(num_classes=3, estimators=["aum"])
    assert repr(growing) == "<GrowingRecorder: 0 samples of 3 classes, 0 epochs begun, 1 estimator>"


def test_ensembles(data: hbr.Dataset, tmp_path: Path) -> None:
    changes = ["model=cnn-4", "epochs=1", "batch_size=100", "augment.pad=0", "precision=float32"]
    ensemble = hbr.train_ensemble(data, hbr.named_recipe("quickstart", changes), members=1, out=tmp_path / "run")
    member = ensemble.members[0]
    assert repr(ensemble) == f"<Ensemble: 1 member: {member.key[:8]}>"
    assert repr(member) == f"<StoredMember {member.key[:12]}: seed {member.seed}, float32, {member.path}>"


def test_results() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    found = hbr.evaluate(logits, np.array([0, 1, 1]))
    assert repr(found) == "<Evaluation: accuracy 0.6667 on 3 samples, recall 0.5000 to 1.0000 over 2 classes>"
    allocation = hbr.allocate([2.0, 1.0, 1.0], hard_is="high", alpha=0.5, total=30)
    assert repr(allocation).startswith("<Allocation: 3 classes of 9 to 12 samples, 30 in all, alpha 0.5 of ")
    assert repr(hbr.ImportedRun("mine", logits)) == "<ImportedRun mine, variant 0, member 0: outputs [3, 2]>"
    assert repr(named_study("case-study-2")) == (
        "<Study 'case-study-2': 15 arms beside the baseline, 4 x 4 members, 256 trainings by recipe paper-resnet18>"
    )
