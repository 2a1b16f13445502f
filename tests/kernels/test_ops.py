"""The recording operator under torch's machinery."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.kernels import cpu_hardness, ops


def operator_arguments() -> tuple[Any, ...]:
    recorder = HardnessRecorder(6, 4)
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    state = (recorder.sums, recorder.counters, recorder.nonfinite)
    labels, ids = torch.tensor([0, 3, 1, 2, 0]), torch.tensor([5, 0, 1, 5, 2])
    return (logits, labels, ids, 0, 20, cpu_hardness.ALL_COLUMNS, *state)


def test_the_operator_passes_opcheck() -> None:
    torch.library.opcheck(ops.record, operator_arguments())


def test_the_operator_compiles_without_a_graph_break() -> None:
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
    assert traced[7][:, cpu_hardness.OBSERVATIONS].tolist() == [2, 2, 2, 0, 0, 4]


def test_the_operator_works_on_fake_tensors() -> None:
    arguments = operator_arguments()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        assert ops.record(*fake) is None
    assert not arguments[6].any()
