"""The recording operator under torch's machinery."""

import threading
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.kernels.hardness import layout, ops, passes


def operator_arguments() -> tuple[Any, ...]:
    recorder = HardnessRecorder(6, 4)
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    state = (recorder.sums, recorder.counters, recorder.nonfinite)
    labels, ids = torch.tensor([0, 3, 1, 2, 0]), torch.tensor([5, 0, 1, 5, 2])
    return (logits, labels, ids, 0, 20, layout.ALL_COLUMNS, *state)


def test_observe_operator_passes_opcheck() -> None:
    torch.library.opcheck(ops.record, operator_arguments())


def test_observe_operator_compiles_without_graph_break() -> None:
    def step(logits: torch.Tensor, *rest: object) -> torch.Tensor:
        doubled = logits * 2
        ops.record(doubled, *rest)
        return doubled.sum()

    # aot_eager goes through functionalisation, as every backend does, and needs no C++ compiler.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    eager, traced = operator_arguments(), operator_arguments()
    for _ in range(2):
        assert torch.equal(step(*eager), compiled(*traced))
    for expected, got in zip(eager[6:], traced[6:], strict=True):
        assert torch.equal(expected, got)
    assert traced[7][:, layout.OBSERVATIONS].tolist() == [2, 2, 2, 0, 0, 4]


def test_observe_operator_supports_fake_tensors() -> None:
    arguments = operator_arguments()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        assert ops.record(*fake) is None
    assert not arguments[6].any()


def recorded(seed: int, epochs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and counters after batches of one form."""
    generator = torch.Generator().manual_seed(seed)
    recorder = HardnessRecorder(3000, 10)
    for epoch in range(epochs):
        for ids in torch.randperm(3000, generator=generator).split(1000):
            logits, labels = torch.randn(1000, 10, generator=generator), torch.randint(10, (1000,), generator=generator)
            recorder.record(logits, labels, ids, epoch=epoch)
    return recorder.sums, recorder.counters


def test_pass_is_not_shared_by_python_threads() -> None:
    expected = [recorded(seed, 10) for seed in range(3)]
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def work(seed: int) -> None:
        found[seed] = recorded(seed, 10)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(3):
        assert torch.equal(found[seed][0], expected[seed][0])
        assert torch.equal(found[seed][1], expected[seed][1])


def test_passes_have_one_form_and_few_are_kept() -> None:
    whole = HardnessRecorder(40, 3)
    for size in range(1, 30):  # more forms than are kept
        generator = torch.Generator().manual_seed(size)
        logits, labels = torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)
        for view in (logits[:, :3], logits[:, ::2], logits[:, :3].half()):
            one = HardnessRecorder(40, 3)
            one.record(view, labels.int(), torch.arange(size), epoch=0)
            again = HardnessRecorder(40, 3)
            again.record(view.clone(), labels, torch.arange(size), epoch=0)
            assert torch.equal(one.sums, again.sums)
            assert torch.equal(one.counters, again.counters)
        whole.record(logits[:, :3], labels, torch.arange(size), epoch=0)
    assert int(whole.counters[:, layout.OBSERVATIONS].sum()) == sum(range(1, 30))
    assert len(passes._passes) <= 8


def test_pass_is_empty_after_rejected_batch() -> None:
    recorder, clean = HardnessRecorder(6, 4), HardnessRecorder(6, 4)
    logits, ids = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 0, 1, 5, 2])
    with pytest.raises(ValueError, match="row 1 has label 9"):
        recorder.record(logits, torch.tensor([0, 9, 1, 2, 0]), ids, epoch=0)
    for one in (recorder, clean):
        one.record(logits, torch.tensor([0, 3, 1, 2, 0]), ids, epoch=0)
    assert torch.equal(recorder.sums, clean.sums)
    assert torch.equal(recorder.counters, clean.counters)
