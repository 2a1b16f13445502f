"""The table of estimators: what each one observes and which of its ends is hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hbr_fast.allocation import Hard

Origin = Literal["training", "final model", "second training"]


@dataclass(frozen=True)
class Estimator:
    """One way to say how hard a sample is.

    Attributes
    ----------
    name : str
    hard_is : "low" or "high"
        Which end of the scale is hard.
    meaning : str
        What one observation is; the score is its mean unless this says otherwise.
    origin : "training", "final model" or "second training"
        What the logits come from: the training steps themselves, one evaluation pass of the trained model, or a second
        training.
    """

    name: str
    hard_is: Hard
    meaning: str
    origin: Origin = "training"


# Every estimator and its hard end (method, section 2). The two spaces of AUM and of confidence are two names, so that
# no score can be taken for the other.
ESTIMATORS: Mapping[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("aum", "low", "margin: own logit minus the largest other logit (Pleiss et al. 2020)"),
        Estimator("aum_softmax", "low", "the same margin between probabilities"),
        Estimator("confidence", "low", "probability of the own class (Swayamdipta et al. 2020)"),
        Estimator("confidence_logit", "low", "logit of the own class"),
        Estimator("variability", "high", "standard deviation of the own class's probability over observations"),
        Estimator("correctness", "low", "1 where the own class has the largest logit, else 0"),
        Estimator("dataiq", "high", "p (1 - p), p the own class's probability (Seedat et al. 2022)"),
        Estimator("loss", "high", "cross-entropy, in nats"),
        Estimator("el2n", "high", "L2 norm of probabilities minus one-hot label, early epochs (Paul et al. 2021)"),
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
        If there is none of that name; the message lists them.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}: available are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]
