"""Checks of recorders against the definitions, for the kernel tests."""

import numpy as np

from hbr_fast.hardness import RECORDED, HardnessRecorder
from hbr_fast.kernels import reference

Visit = tuple[int, np.ndarray, int]  # epoch, logits, label

# Margins and logits are sums of float32 numbers in float64. Probabilities come from exponentials good to about
# 1e-7 times the distance from the largest logit, and shrink with that distance; variability is the square root of
# a difference, so float64 leaves it 1e-8.
TOLERANCES: dict[str, tuple[float, float]] = {
    "aum": (1e-12, 0.0),
    "confidence_logit": (1e-12, 0.0),
    "correctness": (1e-15, 0.0),
    "forgetting": (0.0, 0.0),
    "first_learned": (0.0, 0.0),
    "variability": (1e-6, 5e-8),
    "aum_softmax": (1e-6, 1e-7),
    "confidence": (1e-6, 0.0),
    "dataiq": (1e-6, 1e-7),
    "loss": (1e-6, 1e-15),
    "el2n": (1e-6, 1e-15),
}


def assert_agree(visits: dict[int, list[Visit]], *recorders: HardnessRecorder) -> None:
    """Assert that all recorders give every sample the scores defined for its visits, in order."""
    first = recorders[0]
    expected = [
        reference.hardness(visits[sample], epochs=first.epochs, el2n_epochs=first.el2n_epochs)
        for sample in range(first.num_samples)
    ]
    for recorder in recorders:
        scores = recorder.scores()
        assert set(scores.values) == set(RECORDED) == set(TOLERANCES)
        for name, (rtol, atol) in TOLERANCES.items():
            got = scores.values[name][0]
            if name == "forgetting":  # never-learnt samples follow a policy over all samples: tested with the recorder
                got = np.where(scores.never_learnt[0], np.nan, got)
            expected_values = [values[name] for values in expected]
            np.testing.assert_allclose(got, expected_values, rtol=rtol, atol=atol, err_msg=name)
