"""The table of estimators: what each observes, which end of its scale is hard, and what it is computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hbr_fast.arguments import did_you_mean
from hbr_fast.kernels.hardness import layout

Hard = Literal["low", "high"]
Origin = Literal["training", "final model", "second training"]


@dataclass(frozen=True)
class Estimator:
    """One hardness estimator.

    Attributes
    ----------
    name : str
    hard_is : "low" or "high"
        Which end of the scale is hard.
    meaning : str
        Definition of one observation; the score is its mean unless this says otherwise.
    origin : "training", "final model" or "second training"
        Source of the logits: the training steps themselves, one evaluation pass of the trained model, or a second
        training.
    columns : tuple of int
        The columns of a recorder's sums that it uses (`kernels.hardness.layout`); none if it uses counters or is not
        recorded in the loop.
    of_means : function
        The score from the columns' means over a member's visits, elementwise; by default the mean of one column.
    """

    name: str
    hard_is: Hard
    meaning: str
    origin: Origin = "training"
    columns: tuple[int, ...] = ()
    of_means: Callable[..., np.ndarray] = np.positive


def _deviation(mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(mean_square - mean**2, 0))


def _less_square(mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    return np.maximum(mean - mean_square, 0)


_CONFIDENCE_AND_SQUARE = (layout.CONFIDENCE, layout.CONFIDENCE_SQUARED)


# Every estimator and its hard end (method, section 2). The two spaces of AUM and of confidence have separate names, so
# that their scores cannot be confused.
ESTIMATORS: Mapping[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator(
            "aum", "low", "margin: own logit minus the largest other logit (Pleiss et al. 2020)", columns=(layout.AUM,)
        ),
        Estimator("aum_softmax", "low", "the same margin between probabilities", columns=(layout.AUM_SOFTMAX,)),
        Estimator(
            "confidence", "low", "probability of the own class (Swayamdipta et al. 2020)", columns=(layout.CONFIDENCE,)
        ),
        Estimator("confidence_logit", "low", "logit of the own class", columns=(layout.CONFIDENCE_LOGIT,)),
        Estimator(
            "variability",
            "high",
            "standard deviation of the own class's probability over observations",
            columns=_CONFIDENCE_AND_SQUARE,
            of_means=_deviation,
        ),
        Estimator("correctness", "low", "1 where the own class has the largest logit, else 0"),
        Estimator(
            "dataiq",
            "high",
            "p (1 - p), p the own class's probability (Seedat et al. 2022)",
            columns=_CONFIDENCE_AND_SQUARE,
            of_means=_less_square,
        ),
        Estimator("loss", "high", "cross-entropy, in nats", columns=(layout.LOSS,)),
        Estimator(
            "el2n",
            "high",
            "L2 norm of probabilities minus one-hot label, early epochs (Paul et al. 2021)",
            columns=(layout.EL2N,),
        ),
        Estimator("forgetting", "high", "number of times right became wrong (Toneva et al. 2019)"),
        Estimator("first_learned", "high", "first epoch classified right, from 0; never: the number of epochs"),
        Estimator("aum_final", "low", "aum of the trained model, eval mode, no augmentation", "final model"),
        Estimator("confidence_final", "low", "confidence of the trained model", "final model"),
        Estimator("loss_final", "high", "loss of the trained model", "final model"),
        Estimator("dataiq_final", "high", "dataiq of the trained model", "final model"),
        Estimator(
            "ssft",
            "low",
            "epochs of a second training, on other samples, after which it is first classified wrong; never: one more "
            "than its epochs (after Maini et al. 2022)",
            "second training",
        ),
    )
}
RECORDED = tuple(name for name, entry in ESTIMATORS.items() if entry.origin == "training")
FINAL = tuple(name for name, entry in ESTIMATORS.items() if entry.origin == "final model")


def estimator(name: str) -> Estimator:
    """Look an estimator up.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists all names.
    """
    if name not in ESTIMATORS:
        raise ValueError(
            f"unknown estimator {name!r}: available are {', '.join(ESTIMATORS)}{did_you_mean(ESTIMATORS, name)}"
        )
    return ESTIMATORS[name]
