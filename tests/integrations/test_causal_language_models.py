"""Logits [B, T, C] and labels that the model's loss shifts, or does not, in the callbacks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.batches import NextTokens
from hbr_fast.integrations.ids import WithIds

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
lightning = pytest.importorskip("lightning")

from hbr_fast.integrations.lightning import HardnessCallback as ForLightning  # noqa: E402
from hbr_fast.integrations.transformers import HardnessCallback  # noqa: E402

N, T, VOCABULARY, CLASSES = 12, 6, 11, 3
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MODELS = ["gpt2", "llama", "token classification", "bart"]
Model = Any
LightningModule: Any = lightning.LightningModule


def a_model(name: str, **options: Any) -> Model:
    torch.manual_seed(0)
    if name in ("gpt2", "token classification"):
        config = transformers.GPT2Config(
            n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=CLASSES, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, classifier_dropout=0.0, **SIZES, **options,
        )  # fmt: skip
        kind = transformers.GPT2LMHeadModel if name == "gpt2" else transformers.GPT2ForTokenClassification
        return kind(config)
    if name == "llama":
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **SIZES, **options))
    sizes = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    config = transformers.BartConfig(**sizes, dropout=0.0, max_position_embeddings=16, **SIZES, **options)
    return transformers.BartForCausalLM(config)


def shifts(name: str) -> bool:
    """Whether the loss of that model shifts labels; that of Bart's decoder does not, for all its name."""
    return name in ("gpt2", "llama")


def items(name: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (N, T), generator=generator)
    labels = tokens % CLASSES if name == "token classification" else tokens.clone()
    labels[::3, :2] = -100  # the prompt
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def train(name: str, callback: HardnessCallback, folder: Path, *, model: Model = None, **options: Any) -> Model:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", remove_unused_columns=False, learning_rate=0.0, **options,
    )  # fmt: skip
    model = a_model(name) if model is None else model
    data = WithIds(items(name))
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    return model


def by_hand(name: str, model: Model) -> HardnessRecorder:
    recorder = HardnessRecorder(N, CLASSES if name == "token classification" else VOCABULARY)
    tokens, labels = (torch.stack([item[key] for item in items(name)]) for key in ("input_ids", "labels"))
    with torch.no_grad():
        logits = model.train()(input_ids=tokens).logits
    if shifts(name):
        logits, labels = logits[:, :-1], labels[:, 1:]
    recorder.record(logits, labels, torch.arange(N), epoch=0)
    return recorder


def assert_same(recorder: HardnessRecorder, expected: HardnessRecorder) -> None:
    for estimator, values in expected.scores().values.items():
        found = recorder.scores().values[estimator]
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5, err_msg=estimator)
    np.testing.assert_array_equal(recorder.scores().observations, expected.scores().observations)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_trainer_callback_pairs_logits_with_the_labels_of_the_loss(name: str, accumulate: int, tmp_path: Path) -> None:
    callback = HardnessCallback(HardnessRecorder(N, CLASSES if name == "token classification" else VOCABULARY))
    model = train(name, callback, tmp_path, gradient_accumulation_steps=accumulate)
    assert_same(callback.recorder, by_hand(name, model))


class WithPenalty(transformers.GPT2LMHeadModel):
    """A loss that is no cross-entropy alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.loss is not None:
            output.loss = output.loss + 0.5
        return output


def test_trainer_callback_asks_where_the_loss_does_not_show_the_shift(tmp_path: Path) -> None:
    model = WithPenalty(a_model("gpt2").config)
    with pytest.raises(ValueError, match=r"the loss does not show whether .*: say .*shift_labels=False\), or True"):
        train("gpt2", HardnessCallback(HardnessRecorder(N, VOCABULARY)), tmp_path, model=model)
    callback = HardnessCallback(HardnessRecorder(N, VOCABULARY), shift_labels=True)
    train("gpt2", callback, tmp_path, model=model)
    assert_same(callback.recorder, by_hand("gpt2", model))


class Module(LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = a_model(name)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self.model(input_ids=batch["input_ids"], labels=batch["labels"])
        return {"loss": output.loss, "logits": output.logits}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_callback_pairs_logits_with_the_labels_of_the_loss(
    name: str, accumulate: int, tmp_path: Path
) -> None:
    module = Module(name)
    callback = ForLightning(HardnessRecorder(N, CLASSES if name == "token classification" else VOCABULARY))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(WithIds(items(name)), batch_size=4))
    assert_same(callback.recorder, by_hand(name, module.model))


@pytest.mark.parametrize("ignored", [-100, 7])
def test_next_tokens_shifts_the_ids_of_tokens_too(ignored: int) -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.tensor([[ignored, 1, 2, 0], [1, 1, ignored, 2]]), torch.arange(8).reshape(2, 4)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 3), labels[:, 1:].flatten(), ignore_index=ignored
    )
    pairs = NextTokens(None, ignored).paired(logits, labels, ids, loss=loss)
    for found, expected in zip(pairs, (logits[:, :-1], labels[:, 1:], ids[:, 1:]), strict=True):
        assert torch.equal(found, expected)


def test_next_tokens_of_equal_logits_does_not_guess() -> None:
    # A head that starts at 0: both losses are log C.
    logits, labels = torch.zeros(2, 4, 3), torch.ones(2, 4).long()
    with pytest.raises(ValueError, match="the loss does not show"):
        NextTokens(None, -100).paired(logits, labels, torch.arange(2), loss=torch.tensor(3.0).log())
