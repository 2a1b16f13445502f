from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.ids import WithIds

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from hbr_fast.integrations.transformers import HardnessCallback  # noqa: E402

N = 24
LABELS = torch.arange(N) % 3


class Model(torch.nn.Module):
    """Keeps what it gave in train mode, so that recordings can be compared with it."""

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


def train(callback: HardnessCallback, folder: Path, *, data: Any = None, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=5,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **{"remove_unused_columns": False, **options},
    )
    data = WithIds(items()) if data is None else data
    trainer = transformers.Trainer(
        Model(), arguments, train_dataset=data, eval_dataset=WithIds(items()), callbacks=[callback]
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"label_smoothing_factor": 0.1}, {"eval_strategy": "epoch"}],
    ids=str,
)
def test_the_logits_of_every_training_step_are_recorded(options: dict[str, Any], tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, 3)
    smoothed = "label_smoothing_factor" in options
    trainer = train(HardnessCallback(recorder, labels_n=LABELS if smoothed else None), tmp_path, **options)
    by_hand = HardnessRecorder(N, 3)
    inputs = torch.stack([item["inputs"] for item in items()])
    for number, gave in enumerate(trainer.model.gave):
        ids = (gave[:, None, :4] == inputs).all(2).long().argmax(1)
        by_hand.record(gave[:, 4:], LABELS[ids], ids, epoch=number // 5)  # 24 samples in batches of 5
    assert (recorder.scores().observations == 3).all()
    for name, values in by_hand.scores().values.items():
        np.testing.assert_array_equal(recorder.scores().values[name], values, err_msg=name)
    assert not trainer.model._forward_hooks
    assert not trainer.model._forward_pre_hooks


def test_what_the_callback_needs_is_asked_for(tmp_path: Path) -> None:
    callback = HardnessCallback(HardnessRecorder(N, 3))
    with pytest.raises(ValueError, match="must have remove_unused_columns=False: else 'sample_id' is removed"):
        train(callback, tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match=r"the batch has no 'sample_id', only .*inputs.*: wrap the training set in"):
        train(callback, tmp_path, data=items())
    with pytest.raises(ValueError, match=r"keeps the labels from the model .*: give labels_n"):
        train(callback, tmp_path, label_smoothing_factor=0.1)


def test_a_resumed_training_needs_what_was_recorded_before(tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, 3)
    state = transformers.TrainerState(global_step=7)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), remove_unused_columns=False, use_cpu=True)
    with pytest.raises(ValueError, match=r"resumes at step 7 but the recorder is empty: load .*load_state_dict"):
        HardnessCallback(recorder).on_train_begin(arguments, state, transformers.TrainerControl(), model=Model())
