"""Muon against its definition by singular values, and against torch's SGD for what is no kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hbr_fast.training.muon import Muon, orthogonalised

KERNELS = {"kernel_lr": 0.2, "kernel_momentum": 0.7}


def by_singular_values(matrix: np.ndarray) -> np.ndarray:
    """The polynomial of the singular values, from a decomposition in float64."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16), (1, 9)])
def test_orthogonalised_follows_the_polynomial_of_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    found = orthogonalised(torch.tensor(matrix, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, by_singular_values(matrix), atol=1e-6)
    # The signal of a random matrix spreads over all directions.
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.2
    assert values.max() < 1.25


def test_orthogonalised_of_nothing_is_nothing() -> None:
    assert not orthogonalised(torch.zeros(4, 9)).any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_step_of_kernels_follows_its_definition(layout: torch.memory_format) -> None:
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal((8, 3, 3, 3)), rng.standard_normal((3, 8, 3, 3, 3))
    kernel = nn.Parameter(torch.tensor(start).contiguous(memory_format=layout))
    optimizer = Muon([kernel], lr=9.0, momentum=0.5, weight_decay=9.0, kernel_lr=0.3, kernel_momentum=0.6)
    expected, moment = start.reshape(8, 27), np.zeros((8, 27))
    for gradient in gradients.reshape(3, 8, 27):
        moment = 0.6 * moment + gradient
        expected = expected * np.sqrt(8) / np.linalg.norm(expected)
        expected = expected - 0.3 * by_singular_values(gradient + 0.6 * moment)
        kernel.grad = torch.tensor(gradient.reshape(8, 3, 3, 3)).contiguous(memory_format=layout)
        optimizer.step()
    np.testing.assert_allclose(kernel.detach().reshape(8, 27), expected, atol=1e-5)
    assert kernel.is_contiguous(memory_format=layout)


def groups_of(model: nn.Linear) -> list[dict[str, Any]]:
    return [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5, "weight_decay": 0.0}]


def test_other_parameters_are_those_of_sgd() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    values: dict[str, Any] = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}
    one = Muon(groups_of(ours), **values, **KERNELS)
    other = torch.optim.SGD(groups_of(theirs), nesterov=True, **values)
    for _ in range(4):
        x = torch.randn(7, 5)
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_parameters_without_gradient_stay() -> None:
    kernel = nn.Parameter(torch.ones(2, 2, 3, 3))
    optimizer = Muon([kernel], lr=0.1, momentum=0.5, weight_decay=0.1, **KERNELS)
    optimizer.step()
    assert torch.equal(kernel, torch.ones(2, 2, 3, 3))
    assert optimizer.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"kernel_lr": float("nan")}, "kernel_lr must be at least 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"kernel_momentum": -0.1}, r"kernel_momentum must be in \[0, 1\), got -0.1"),
    ],
)
def test_muon_rejects_values_out_of_range(changed: dict[str, float], message: str) -> None:
    values = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | KERNELS | changed
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.ones(2, 2, 3, 3))], **values)
