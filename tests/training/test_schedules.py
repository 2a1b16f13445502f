import math

import pytest

from hbr_fast.training.recipe import Recipe
from hbr_fast.training.schedules import constant, cosine, triangular


def test_cosine_rises_linearly_then_falls_along_half_a_cosine() -> None:
    rates = [cosine(step, 10, epochs=4, warmup_epochs=1, floor=0.1) for step in range(40)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[39] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 29 / 30)))


def test_triangular_without_warmup_falls_from_the_first_step() -> None:
    rates = [triangular(step, 5, epochs=2, warmup=0.0) for step in range(10)]
    assert rates == pytest.approx([(10 - step) / 11 for step in range(10)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 3}, r"warmup_epochs must be in \[0, 3\), the epochs of the training, got 3"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\], a factor of the peak rate, got 1.5"),
    ],
)
def test_cosine_refuses_arguments_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cosine(0, 10, epochs=3, **options)


def test_constant_keeps_the_peak_rate() -> None:
    assert {constant(step, 10) for step in (0, 5, 99)} == {1.0}
    recipe = Recipe(name="c", model="resnet18", epochs=2, lr=0.3, schedule="constant")
    assert recipe.learning_rate(19, 10) == 0.3
