"""The example scripts run, and every training loop gives the same recording."""

import contextlib
import io
import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from two_processes import join_group, run_by_two

from hbr_fast import HardnessRecorder, convert, uniform_order
from hbr_fast.report import figures

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"
LIBRARY = {
    "plain_loop": "torch",
    "lightning_callback": "lightning",
    "transformers_trainer": "transformers",
    "accelerate_loop": "accelerate",
}


def run_example(name: str, *, says: bool = True) -> HardnessRecorder:
    pytest.importorskip(LIBRARY.get(name, "timm"))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        recorder = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert ("aum" in said.getvalue()) == says
    assert isinstance(recorder, HardnessRecorder)
    return recorder


def test_examples_are_all_run() -> None:
    # Run by tests/test_tutorial.py, in two processes below, and on synthetic pictures below.
    elsewhere = {"draw_shapes", "small_net", "timm_torchrun", "photographs_lightning"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(LIBRARY) | elsewhere


@pytest.mark.parametrize("name", LIBRARY)
def test_examples_record_every_visit_and_find_hard_class(name: str) -> None:
    scores = run_example(name).scores()
    assert (scores.observations == 4).all()
    assert scores.provenance["epochs"] == 4
    labels = np.arange(300) % 3
    for estimator, sign in (("aum", -1), ("loss", 1), ("forgetting", 1), ("first_learned", 1)):
        assert np.argmax(sign * scores.class_means(estimator, labels, 3)) == 2, estimator


@pytest.mark.parametrize("name", ["lightning_callback", "accelerate_loop", "transformers_trainer"])
def test_examples_end_with_a_page_of_their_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARY[name])
    monkeypatch.setattr(figures, "pictures_of", lambda *args, **options: [])  # drawing takes seconds
    module = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    module["main"](tmp_path / "runs")
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    assert "resampled" in page
    rows = pl.read_csv(tmp_path / "runs" / "comparisons.csv").filter(pl.col("quantity") == "accuracy")
    assert rows["arm"].to_list() == ["resampled"]
    assert rows["variants"].to_list() == [module["SEEDS"]]
    accuracies = pl.read_csv(tmp_path / "runs" / "per_member.csv")
    assert accuracies.height == 2 * module["SEEDS"]
    assert min(accuracies["accuracy"].to_list()) > 0.5, "models that were trained"


def test_example_of_photographs_ends_with_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.setattr(figures, "pictures_of", lambda *args, **options: [])  # drawing takes seconds
    data, out = tmp_path / "small.hbr", tmp_path / "runs"
    convert("synthetic", data, classes=3, train_per_class=12, test_per_class=4, shape=(3, 32, 32))
    example = runpy.run_path(str(EXAMPLES / "photographs_lightning.py"))["main"]
    recorder = example(data, out, network="shufflenet_v2_x0_5", size=0, epochs=1, seeds=2)
    assert recorder.scores().observations.tolist() == [[1] * 36]
    assert "resampled" in (out / "report" / "index.html").read_text()
    assert pl.read_csv(out / "samples.csv").height == 36
    rows = pl.read_csv(out / "comparisons.csv").filter(pl.col("quantity") == "accuracy")
    assert rows["variants"].to_list() == [2]


def test_example_of_timm_in_two_processes(tmp_path: Path) -> None:
    one, other = run_by_two(_timm_by_two, tmp_path)
    assert one == other, "every process has the recording of all"
    assert one["observations"] == [4] * 300
    assert int(np.argmin(one["aum"])) == 2
    assert one["aum"][2] < min(one["aum"][:2])


def _timm_by_two(folder: Path) -> dict[str, list[float]]:
    join_group(folder)
    scores = run_example("timm_torchrun", says=torch.distributed.get_rank() == 0).scores()
    return {
        "observations": scores.observations[0].tolist(),
        "aum": scores.class_means("aum", np.arange(300) % 3, 3).tolist(),
    }


def test_examples_lightning_and_accelerate_match_plain_loop() -> None:
    """From the same weights and order, all three produce the same batches."""
    pytest.importorskip("lightning")
    made = runpy.run_path(str(EXAMPLES / "lightning_callback.py"))
    torch.manual_seed(0)
    inputs, labels = made["blobs"]()
    plain = HardnessRecorder(300, 3)
    model = torch.nn.Linear(2, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    order = uniform_order(300, seed=0)
    for epoch in range(4):
        for ids in torch.from_numpy(order.rows(0, 300, epoch=epoch)).split(25):
            y = labels[ids]
            logits = model(inputs[ids])
            plain.record(logits, y, ids, epoch=epoch)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, y).backward()
            optimiser.step()
    for name in ("lightning_callback", "accelerate_loop"):
        for estimator, values in run_example(name).scores().values.items():
            np.testing.assert_allclose(
                values, plain.scores().values[estimator], rtol=1e-5, atol=1e-6, err_msg=f"{name}: {estimator}"
            )
