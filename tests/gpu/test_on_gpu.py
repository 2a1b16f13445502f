"""Kernels on a real GPU compared with the CPU, including streams and pinned memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders.contracts import MakeLoader, checks_of
from photographs import encoded, photograph, write_photographs

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Split
from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.hardness import HardnessRecorder, hardness_cross_entropy
from hbr_fast.hardness.estimators import RECORDED
from hbr_fast.loaders import resident
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import uniform_order

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EVERYTHING = Augment(flip=0.5, pad=4, cutout=8)


def split_of(samples: int, shape: tuple[int, int, int]) -> Split:
    rng = np.random.default_rng(0)
    channels = shape[0]
    return Split(
        name="train",
        store=RawImages(rng.integers(0, 256, (samples, *shape), dtype=np.uint8)),
        labels=rng.integers(0, 10, samples),
        classes=tuple("abcdefghij"),
        mean=np.full(channels, 0.4, np.float32),
        std=np.full(channels, 0.25, np.float32),
    )


def plan_of(samples: int) -> Plan:
    """Every sample twice, the second time mixed with another."""
    index = np.arange(samples).repeat(2)
    partner = np.where(np.arange(2 * samples) % 2, (index + 7) % samples, -1)
    return Plan(
        store=np.zeros(len(index), np.int16),
        index=index,
        partner=partner,
        weight=np.where(partner < 0, 1, 0.3).astype(np.float32),
    )


def epoch_of(split: Split, **options: Any) -> list[Batch]:
    loader = Loader(split, plan=plan_of(len(split)), augment=EVERYTHING, batch_size=96, seed=3, **options)
    return [Batch(*(column.cpu() for column in batch)) for batch in loader.epoch(2)]


@pytest.mark.parametrize(
    ("backend", "check"),
    [(backend, check) for backend in ("native", "dali") for check in checks_of(backend)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_loader_contract(backend: str, check: Callable[[MakeLoader], None]) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    check(MakeLoader(backend, "cuda"))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 31)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_loader_matches_cpu_batches(
    shape: tuple[int, int, int], channels_last: bool, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(500, shape)
    if streamed:
        monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    here = epoch_of(split, channels_last=channels_last)
    there = epoch_of(split, channels_last=channels_last, device="cuda")
    for one, other in zip(here, there, strict=True):
        for name in ("labels", "ids", "rows"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        torch.testing.assert_close(one.images, other.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "augment", [Augment(flip=0.5), Augment(flip=0.5, resized_crop=(0.2, 0.9))], ids=["flip", "crop"]
)
def test_nvjpeg_is_close_to_the_cpu(tmp_path: Path, augment: Augment) -> None:
    pytest.importorskip("nvidia.dali")
    root = write_photographs(tmp_path / "photos", per_class=8)
    for number in range(8):
        content = encoded(photograph(40 + 7 * number, 70 - 5 * number, seed=number), orientation=number + 1)
        (root / "train/cat" / f"{number}.jpg").write_bytes(content)
    photograph(40, 60, seed=9).save(root / "train/dog/2.jpg", "PNG")
    split = convert("folder", tmp_path / "photos.hbr", root=root, store="encoded").train
    mixed = Plan(np.zeros(20, np.int16), np.arange(20) % 16, np.where(np.arange(20) < 5, 3, -1), np.full(20, 0.5, "f4"))
    on_gpu: dict[str, Any] = {"device": "cuda", "backend": "nvjpeg"}
    for plan in (None, mixed):
        here, there = (
            Loader(split, size=64, plan=plan, augment=augment, batch_size=7, seed=3, **options)
            for options in ({}, on_gpu)
        )
        for one, other in zip(here.epoch(2), there.epoch(2), strict=True):
            for name in ("labels", "ids", "rows"):
                assert torch.equal(getattr(one, name), getattr(other, name).cpu())
            levels = 255 * (one.images - other.images.cpu()).abs() * torch.from_numpy(split.std)[:, None, None]
            assert levels.mean((1, 2, 3)).max() < 2
        assert there.bad_pictures == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loader_rounds_to_short_types(dtype: torch.dtype) -> None:
    split = split_of(300, (3, 32, 32))
    for one, other in zip(epoch_of(split), epoch_of(split, device="cuda", dtype=dtype), strict=True):
        torch.testing.assert_close(one.images.to(dtype).float(), other.images.float(), rtol=1e-2, atol=1e-2)


def test_orders_match_cpu() -> None:
    split = split_of(1000, (1, 8, 8))
    order = uniform_order(1000, seed=5)
    loader = Loader(split, order=order, batch_size=128, device="cuda")
    rows = torch.cat([batch.rows for batch in loader.epoch(4)]).cpu().numpy()
    np.testing.assert_array_equal(rows, order.rows(0, 1000, epoch=4))


@pytest.mark.parametrize("classes", [10, 1000, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorder_matches_cpu(classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    here, there = (HardnessRecorder(200, classes, device=device) for device in ("cpu", "cuda"))
    for epoch in range(3):
        logits = (3 * torch.randn(512, classes, generator=generator)).to(dtype)
        labels = torch.randint(0, classes, (512,), generator=generator)
        ids = torch.randint(0, 200, (512,), generator=generator)  # most of them several times
        here.record(logits, labels, ids, epoch=epoch)
        there.record(logits.cuda(), labels.cuda(), ids.cuda(), epoch=epoch)
    one, other = here.scores(), there.scores()
    np.testing.assert_array_equal(one.observations, other.observations)
    for name in RECORDED:
        np.testing.assert_allclose(one.per_sample(name), other.per_sample(name), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("classes", [10, 1000, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_recorded_loss_matches_cpu(classes: int, dtype: torch.dtype, reduction: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(256, classes, generator=generator)).to(dtype)
    labels, ids = torch.randint(classes, (256,), generator=generator), torch.randint(100, (256,), generator=generator)
    labels[::9] = -100
    weight = torch.rand(classes, generator=generator) + 0.5
    results = []
    for device in ("cpu", "cuda"):
        leaf = logits.to(device, copy=True).requires_grad_()
        recorder = HardnessRecorder(100, classes, device=device)
        options = {"weight": weight.to(device), "label_smoothing": 0.1, "reduction": reduction}
        loss = hardness_cross_entropy(leaf, labels.to(device), ids.to(device), recorder, epoch=0, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        results.append((loss.detach().cpu(), gradient.cpu(), recorder.sums.cpu(), recorder.counters.cpu()))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance * float(here.double().abs().max()))


def test_recorder_reports_bad_labels_and_ids_on_scores() -> None:
    recorder = HardnessRecorder(10, 3, device="cuda")
    recorder.record(
        torch.zeros(2, 3, device="cuda"), torch.tensor([0, 3], device="cuda"), torch.tensor([0, 1], device="cuda"),
        epoch=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="label"):
        recorder.scores()
