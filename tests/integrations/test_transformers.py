import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.ids import WithIds
from hbr_fast.kernels.hardness.layout import EL2N_OBSERVATIONS, OBSERVATIONS

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from hbr_fast.integrations.transformers import HardnessCallback  # noqa: E402

N = 24
LABELS = torch.arange(N) % 3


class Model(torch.nn.Module):
    """Keep the train-mode logits, to compare recordings with them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig()
        self.layer = torch.nn.Linear(4, 3)
        self.gave: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.layer(inputs)
        if self.training:
            self.gave.append(torch.cat([inputs, logits], dim=1).detach())
        loss = {} if labels is None else {"loss": torch.nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def items() -> list[dict[str, Any]]:
    inputs = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return [{"inputs": x, "labels": y} for x, y in zip(inputs, LABELS.tolist(), strict=True)]


def train(
    callback: HardnessCallback, folder: Path, *, data: Any = None, model: Any = None, resume: Any = None, **options: Any
) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=5,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"remove_unused_columns": False, "save_strategy": "no", **options},
    )
    data = WithIds(items()) if data is None else data
    trainer = transformers.Trainer(
        model or Model(), arguments, train_dataset=data, eval_dataset=WithIds(items()), callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_hand(gave: list[torch.Tensor], *, batches_an_epoch: int = 5) -> HardnessRecorder:
    """The recording of a plain loop for the train-mode logits of a model."""
    recorder = HardnessRecorder(N, 3)
    inputs = torch.stack([item["inputs"] for item in items()])
    for number, one in enumerate(gave):
        ids = (one[:, None, :4] == inputs).all(2).long().argmax(1)
        recorder.record(one[:, 4:], LABELS[ids], ids, epoch=number // batches_an_epoch)
    return recorder


def assert_same(recorder: HardnessRecorder, expected: HardnessRecorder) -> None:
    for name, values in expected.scores().values.items():
        np.testing.assert_array_equal(recorder.scores().values[name], values, err_msg=name)
    np.testing.assert_array_equal(recorder.scores().observations, expected.scores().observations)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"label_smoothing_factor": 0.1}, {"eval_strategy": "epoch"}],
    ids=str,
)
def test_callback_records_logits_of_every_step(options: dict[str, Any], tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, 3)
    smoothed = "label_smoothing_factor" in options
    trainer = train(HardnessCallback(recorder, labels_n=LABELS if smoothed else None), tmp_path, **options)
    assert (recorder.scores().observations == 3).all()
    assert_same(recorder, by_hand(trainer.model.gave))
    assert not trainer.model._forward_hooks
    assert not trainer.model._forward_pre_hooks


class Stream(torch.utils.data.IterableDataset[Any]):
    """The samples in order; the Trainer does not know their number."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_callback_counts_passes_over_a_stream(accumulate: int, tmp_path: Path) -> None:
    # For a stream, `state.epoch` is a fraction of max_steps: every visit was attributed to epoch 0.
    recorder = HardnessRecorder(N, 3, el2n_epochs=2)
    trainer = train(
        HardnessCallback(recorder), tmp_path, data=WithIds(Stream()), max_steps=20, learning_rate=0.5,
        gradient_accumulation_steps=accumulate,
    )  # fmt: skip
    expected = by_hand(trainer.model.gave)
    expected.el2n_epochs = 2
    assert recorder.epochs == expected.epochs == (4 if accumulate == 1 else 10)
    early = recorder.counters[:, EL2N_OBSERVATIONS]
    assert (early == 2).all()
    np.testing.assert_array_equal(
        recorder.scores().values["first_learned"], expected.scores().values["first_learned"]
    )  # fmt: skip
    assert (recorder.scores().values["first_learned"] > 0).any()


class Fails(Model):
    """Raise once, in the forward or the backward pass."""

    def __init__(self, at: int, where: str, message: str) -> None:
        super().__init__()
        self.at, self.where, self.message = at, where, message

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        output = super().forward(inputs, labels)
        if self.training and len(self.gave) == self.at:
            self.at = -1
            if self.where == "forward":
                raise RuntimeError(self.message)
            output["loss"].register_hook(self._raise)
        return output

    def _raise(self, gradient: torch.Tensor) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_callback_discards_failed_attempt(where: str, tmp_path: Path) -> None:
    # The first attempt's hooks stayed: the second found no ids, and would have counted its visits twice.
    recorder, model = HardnessRecorder(N, 3), Fails(7, where, "CUDA out of memory.")
    train(HardnessCallback(recorder), tmp_path, model=model, auto_find_batch_size=True)
    assert (recorder.scores().observations == 3).all()
    assert_same(recorder, by_hand(model.gave[7:], batches_an_epoch=6))  # in batches of 4


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("same", [True, False], ids=["same callback", "another callback"])
def test_callback_after_an_exception(where: str, same: bool, tmp_path: Path) -> None:
    model = Fails(7, where, "no more")
    callback = HardnessCallback(HardnessRecorder(N, 3))
    with pytest.raises(RuntimeError, match="no more"):
        train(callback, tmp_path, model=model)
    if where == "forward":
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
    model.train()(torch.zeros(1, 4))  # using the model afterwards is not a training step
    again = callback if same else HardnessCallback(HardnessRecorder(N, 3))
    model.gave.clear()
    train(again, tmp_path, model=model)
    assert_same(again.recorder, by_hand(model.gave))


class BreaksOff(torch.utils.data.IterableDataset[Any]):
    """A stream that raises after some samples."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from items()[: self.at]
        raise OSError("the disk is gone")


@pytest.mark.parametrize(("at", "trained"), [(0, 0), (10, 5)])  # the Trainer reads a batch ahead
def test_callback_after_an_exception_in_the_data(at: int, trained: int, tmp_path: Path) -> None:
    # No forward pass raises there, so the hooks stay: the model must be usable nevertheless.
    callback, model = HardnessCallback(HardnessRecorder(N, 3)), Model()
    with pytest.raises(OSError, match="the disk is gone"):
        train(callback, tmp_path, data=WithIds(BreaksOff(at)), model=model, max_steps=20)
    visits = int(callback.recorder.counters[:, OBSERVATIONS].sum())
    model.train()(torch.zeros(1, 4))
    model(torch.zeros(1, 4), labels=torch.tensor([0]), sample_id=torch.tensor([0]))
    assert int(callback.recorder.counters[:, OBSERVATIONS].sum()) == visits == trained
    again = HardnessCallback(HardnessRecorder(N, 3))
    model.gave.clear()
    train(again, tmp_path, model=model)
    assert_same(again.recorder, by_hand(model.gave))


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"save_strategy": "epoch"}, 10),
        ({"save_strategy": "steps", "save_steps": 5}, 10),  # saved before the end-of-epoch event
        ({"save_strategy": "steps", "save_steps": 7}, 7),
        ({"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}, 4),
    ],
    ids=str,
)
def test_callback_resumes_with_the_checkpoint(options: dict[str, Any], step: int, tmp_path: Path) -> None:
    whole = train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path / "whole", **options)
    folder = tmp_path / "whole" / f"checkpoint-{step}"
    assert {"hardness.safetensors", "trainer_state.json"} <= {path.name for path in folder.iterdir()}
    recorder = HardnessRecorder(N, 3)
    train(HardnessCallback(recorder), tmp_path / "whole", resume=str(folder), **options)
    assert recorder.epochs == 3
    assert_same(recorder, by_hand(whole.model.gave))
    elsewhere = folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=rf"resumes at step {step}, but .*{folder.name} has no hardness.safet"):
        train(HardnessCallback(recorder), tmp_path / "new", resume=str(elsewhere), **options)
    recorder = HardnessRecorder(N, 3)
    train(HardnessCallback(recorder, resume_from=elsewhere), tmp_path / "new", resume=str(elsewhere), **options)
    assert_same(recorder, by_hand(whole.model.gave))


def test_callback_resumes_a_stream(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 12, "max_steps": 20}
    train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path, data=WithIds(Stream()), **options)
    recorder = HardnessRecorder(N, 3)
    trainer = train(
        HardnessCallback(recorder), tmp_path, data=WithIds(Stream()), resume=str(tmp_path / "checkpoint-12"), **options
    )
    # The Trainer skips 12 batches of a first pass of 5, then restarts the interrupted pass.
    assert len(trainer.model.gave) == 8
    assert recorder.epochs == 4
    assert recorder.counters[:, OBSERVATIONS].sum() == 2 * N + 10 + N + 15


def test_callback_rejects_recording_of_another_step(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 5}
    train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path, **options)
    shutil.copy(tmp_path / "checkpoint-5" / "hardness.safetensors", tmp_path / "checkpoint-10")
    with pytest.raises(ValueError, match=r"resumes at step 10, but .* was recorded up to step 5: resume from the"):
        train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path, resume=str(tmp_path / "checkpoint-10"), **options)


class GivesTuple(Model):
    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        output = super().forward(inputs, labels)
        return tuple(output.values())


def test_callback_reads_tuples(tmp_path: Path) -> None:
    recorder, model = HardnessRecorder(N, 3), GivesTuple()
    train(HardnessCallback(recorder), tmp_path, model=model)
    assert_same(recorder, by_hand(model.gave))


def test_callback_soft_labels(tmp_path: Path) -> None:
    soft = [{**item, "labels": 0.4 * torch.eye(3)[item["labels"]] + 0.6 * torch.eye(3)[0]} for item in items()]
    with pytest.raises(ValueError, match=r"the labels \[5, 3\] are soft, .*: give labels_n"):
        train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path, data=WithIds(soft))
    recorder, model = HardnessRecorder(N, 3), Model()
    train(HardnessCallback(recorder, labels_n=LABELS.numpy()), tmp_path, data=WithIds(soft), model=model)
    assert_same(recorder, by_hand(model.gave))


def test_callback_names_missing_requirements(tmp_path: Path) -> None:
    callback = HardnessCallback(HardnessRecorder(N, 3))
    with pytest.raises(ValueError, match="must have remove_unused_columns=False: else 'sample_id' is removed"):
        train(callback, tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match=r"the batch has no 'sample_id', only .*inputs.*: wrap the training set in"):
        train(callback, tmp_path, data=items())
    with pytest.raises(ValueError, match=r"withholds the labels from the model .*: give labels_n"):
        train(callback, tmp_path, label_smoothing_factor=0.1)


def test_callback_warns_of_parts_that_were_numbered_apart(tmp_path: Path) -> None:
    parts = [WithIds(items()[:10]), WithIds(items()[10:])]
    with pytest.warns(UserWarning, match="sample id 0 came with different labels: ids must number"):
        train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path, data=torch.utils.data.ConcatDataset(parts))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sample id")
        train(HardnessCallback(HardnessRecorder(N, 3)), tmp_path, data=WithIds(items()))
