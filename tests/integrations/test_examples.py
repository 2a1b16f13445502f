"""The example scripts run, and whoever drives the loop, the recording is the same."""

import contextlib
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from hbr_fast import HardnessRecorder

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"
LIBRARY = {
    "plain_loop": "torch",
    "lightning_callback": "lightning",
    "transformers_trainer": "transformers",
    "accelerate_loop": "accelerate",
}


def run_example(name: str) -> HardnessRecorder:
    pytest.importorskip(LIBRARY[name])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        recorder = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert "aum" in said.getvalue()
    assert isinstance(recorder, HardnessRecorder)
    return recorder


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(LIBRARY)


@pytest.mark.parametrize("name", LIBRARY)
def test_examples_record_every_visit_and_find_the_hard_class(name: str) -> None:
    scores = run_example(name).scores()
    assert (scores.observations == 4).all()
    assert scores.provenance["epochs"] == 4
    labels = np.arange(300) % 3
    for estimator, sign in (("aum", -1), ("loss", 1), ("forgetting", 1), ("first_learned", 1)):
        assert np.argmax(sign * scores.class_means(estimator, labels, 3)) == 2, estimator


def test_lightning_and_accelerate_record_what_a_plain_loop_does() -> None:
    """From the same random state all three make the same batches and weights."""
    pytest.importorskip("lightning")
    made = runpy.run_path(str(EXAMPLES / "lightning_callback.py"))
    torch.manual_seed(0)
    inputs, labels = made["blobs"]()
    plain = HardnessRecorder(300, 3)
    model = torch.nn.Linear(2, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, labels, torch.arange(300)), batch_size=25, shuffle=True
    )
    for epoch in range(4):
        for x, y, ids in loader:
            logits = model(x)
            plain.record(logits, y, ids, epoch=epoch)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, y).backward()
            optimiser.step()
    for name in ("lightning_callback", "accelerate_loop"):
        for estimator, values in run_example(name).scores().values.items():
            np.testing.assert_allclose(
                values, plain.scores().values[estimator], rtol=1e-5, atol=1e-6, err_msg=f"{name}: {estimator}"
            )
