import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.hardness import HardnessRecorder
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.members import preflight as fit
from hbr_fast.members.preflight import check_fit
from hbr_fast.training import trainer
from hbr_fast.training.build import initial_model, make_loss, make_optimizer
from hbr_fast.training.member import Member
from hbr_fast.training.mixing import Mixing
from hbr_fast.training.models.networks import build_model
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.step import train_step
from hbr_fast.training.trainer import train_member


def assert_identical(a: Member, b: Member) -> None:
    assert a.weights.keys() == b.weights.keys()
    for name in a.weights:
        assert torch.equal(a.weights[name], b.weights[name]), name
    np.testing.assert_array_equal(a.test_logits, b.test_logits)
    np.testing.assert_array_equal(a.scores.observations, b.scores.observations)
    for name in a.scores.values:
        np.testing.assert_array_equal(a.scores.values[name], b.scores.values[name], err_msg=name)


def first_weights(member: Member) -> torch.Tensor:
    return member.weights["features.0.0.weight"]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """(logits, labels, ids, epoch) of every record call of a training."""
    calls: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []

    class Spy(HardnessRecorder):
        def record(self, logits_bc: Any, labels_b: Any, ids_b: Any, *, epoch: int) -> None:
            arrays = [tensor.detach().numpy().copy() for tensor in (logits_bc, labels_b, ids_b)]
            calls.append((arrays[0], arrays[1], arrays[2], epoch))
            super().record(logits_bc, labels_b, ids_b, epoch=epoch)

    monkeypatch.setattr(trainer, "HardnessRecorder", Spy)
    return calls


def test_train_member_same_seed_gives_same_bits(tiny: Dataset, recipe: Recipe) -> None:
    assert_identical(train_member(tiny, recipe, seed=5), train_member(tiny, recipe, seed=5))


def test_train_member_seed_changes_weights_order_and_scores(tiny: Dataset, recipe: Recipe) -> None:
    a, b = train_member(tiny, recipe, seed=5), train_member(tiny, recipe, seed=6)
    assert not torch.equal(first_weights(a), first_weights(b))
    assert not np.array_equal(a.test_logits, b.test_logits)
    assert not np.array_equal(a.scores.per_sample("aum"), b.scores.per_sample("aum"))


def test_train_member_ignores_and_keeps_global_random_state(tiny: Dataset, recipe: Recipe) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = train_member(tiny, recipe, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_identical(a, train_member(tiny, recipe, seed=5))


def test_train_member_baseline_and_treatment_share_initial_weights(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    real = trainer.make_optimizer

    def spy(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return real(recipe, model)

    monkeypatch.setattr(trainer, "make_optimizer", spy)
    baseline = train_member(tiny, recipe, seed=5)
    treatment = train_member(tiny, recipe, seed=5, plan=Plan.of_rows(np.arange(60)))
    train_member(tiny, recipe, seed=6)
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not torch.equal(starts[0]["features.0.0.weight"], starts[2]["features.0.0.weight"])
    assert not torch.equal(first_weights(baseline), first_weights(treatment)), "they trained on different rows"


def test_train_member_observes_every_sample_once_per_epoch(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    member = train_member(tiny, recipe, seed=1)
    assert [len(ids) for _, _, ids, _ in calls] == [50, 50, 20] * 2
    assert [epoch for *_, epoch in calls] == [0] * 3 + [1] * 3
    np.testing.assert_array_equal(member.scores.observations, np.full((1, 120), recipe.epochs))
    assert not np.isnan(member.scores.per_sample("aum")).any()


def test_train_member_observes_repeated_samples_each_time(tiny: Dataset, recipe: Recipe) -> None:
    rows = np.concatenate([np.repeat(7, 3), np.repeat(8, 2), np.arange(20, 80)])
    member = train_member(tiny, recipe, seed=1, plan=Plan.of_rows(rows))
    expected = recipe.epochs * np.bincount(rows, minlength=120)
    np.testing.assert_array_equal(member.scores.observations[0], expected)
    np.testing.assert_array_equal(np.isnan(member.scores.per_sample("aum")), expected == 0)


def test_train_member_records_logits_of_the_step(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of the augmented batch, in train mode, before the update; recomputed from the seed alone."""
    calls = recorded(monkeypatch)
    train_member(tiny, recipe, seed=3)
    loader = Loader(tiny.train, augment=recipe.augment, batch_size=50, seed=3, channels_last=True)
    batch = next(iter(loader.epoch(0)))
    model = initial_model(recipe, tiny.train, seed=3)
    logits, labels, ids, _ = calls[0]
    np.testing.assert_array_equal(ids, batch.ids.numpy())
    np.testing.assert_array_equal(labels, tiny.train.labels[ids])
    with torch.no_grad():
        np.testing.assert_allclose(logits, model.train()(batch.images).numpy(), rtol=1e-5, atol=1e-6)
        other_mode = model.eval()(batch.images).numpy()
    assert not np.allclose(logits, other_mode, rtol=1e-3)


def test_train_member_scores_are_means_over_recorded_logits(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    scores = train_member(tiny, recipe, seed=3).scores
    margins: dict[int, list[float]] = {}
    losses: dict[int, list[float]] = {}
    for logits, labels, ids, _ in calls:
        for row, label, sample in zip(logits.astype(np.float64), labels, ids, strict=True):
            margins.setdefault(int(sample), []).append(row[label] - np.delete(row, label).max())
            losses.setdefault(int(sample), []).append(np.log(np.exp(row - row[label]).sum()))
    for name, observed in (("aum", margins), ("loss", losses)):
        expected = [np.mean(observed[sample]) for sample in range(120)]
        np.testing.assert_allclose(scores.per_sample(name), expected, rtol=1e-5, atol=1e-6)


def test_train_member_label_smoothing_changes_training_but_not_scoring(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    plain = train_member(tiny, dataclasses.replace(recipe, epochs=1), seed=3)
    smooth = train_member(tiny, dataclasses.replace(recipe, epochs=1, label_smoothing=0.3), seed=3)
    np.testing.assert_array_equal(calls[0][0], calls[3][0])
    np.testing.assert_array_equal(calls[0][1], calls[3][1])
    first = calls[0][2]
    for name in plain.scores.values:
        np.testing.assert_array_equal(
            plain.scores.per_sample(name)[first], smooth.scores.per_sample(name)[first], err_msg=name
        )
    assert not np.array_equal(plain.test_logits, smooth.test_logits)
    assert smooth.history[0].train_loss != plain.history[0].train_loss


def test_train_member_history_has_loss_accuracy_and_rate(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    advanced: list[int] = []
    member = train_member(tiny, recipe, seed=3, advance=advanced.append)
    assert advanced == [50, 50, 20] * 2
    assert [record.epoch for record in member.history] == [0, 1]
    for epoch, record in enumerate(member.history):
        mine = [call for call in calls if call[3] == epoch]
        logits, labels = (np.concatenate([call[i] for call in mine]) for i in (0, 1))
        expected = functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
        assert record.train_loss == pytest.approx(expected, rel=1e-5)
        assert record.train_accuracy == pytest.approx((logits.argmax(1) == labels).mean())
        assert record.learning_rate == recipe.learning_rate(3 * epoch + 2, 3)
        assert record.images_per_second == pytest.approx(120 / record.seconds)


def test_train_member_test_logits_are_from_final_weights_in_eval_mode(tiny: Dataset, recipe: Recipe) -> None:
    member = train_member(tiny, recipe, seed=3)
    model = build_model(recipe.model, channels=1, image_size=(8, 8), classes=3)
    model.load_state_dict(dict(member.weights))
    images = torch.tensor(tiny.test.images.astype(np.float32) / 255)
    normalised = (images - torch.tensor(tiny.test.mean)[:, None, None]) / torch.tensor(tiny.test.std)[:, None, None]
    with torch.inference_mode():
        expected = model.eval()(normalised).numpy()
    assert member.test_logits.dtype == np.float32
    np.testing.assert_allclose(member.test_logits, expected, rtol=1e-3, atol=1e-4)


def test_train_member_learns(tmp_path: Any, recipe: Recipe) -> None:
    data = convert("synthetic", tmp_path / "d.hbr", classes=3, train_per_class=200, test_per_class=50, shape=(1, 8, 8))
    longer = dataclasses.replace(recipe, model="cnn-8-16", epochs=8, batch_size=32, augment=Augment())
    member = train_member(data, longer, seed=1)
    losses = [record.train_loss for record in member.history]
    assert losses[-1] < 0.7 * losses[0]
    assert member.history[-1].train_accuracy > member.history[0].train_accuracy + 0.1
    assert (member.test_logits.argmax(1) == data.test.labels).mean() > 0.6


def test_train_member_divergence_names_epoch_and_rate(tiny: Dataset, recipe: Recipe) -> None:
    steep = dataclasses.replace(recipe, lr=1e25, epochs=3)
    with pytest.raises(FloatingPointError, match=r"epoch 0, step 1: the loss is nan; lower .* \(1e\+25\)"):
        train_member(tiny, steep, seed=1)


def test_train_member_detects_divergence_in_last_update(tiny: Dataset, recipe: Recipe) -> None:
    steep = dataclasses.replace(recipe, lr=1e30, epochs=1, batch_size=120)
    with pytest.raises(FloatingPointError, match="diverged"):
        train_member(tiny, steep, seed=1)


@pytest.mark.parametrize("batch_size", [121, 100_000])
def test_train_member_refuses_batch_larger_than_split(tiny: Dataset, recipe: Recipe, batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size must be in \[1, 120\].*'train', got {batch_size}"):
        train_member(tiny, dataclasses.replace(recipe, batch_size=batch_size), seed=1)


def test_check_fit_refuses_model_unsuitable_for_images(tiny: Dataset, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="images of 8x8 are too small"):
        train_member(tiny, dataclasses.replace(recipe, model="cnn-4-4-4-4"), seed=1)


def test_check_fit_refuses_last_batch_of_one_row_without_statistics(tiny: Dataset, recipe: Recipe) -> None:
    """ResNet-18 brings 8x8 pixels down to one: batch norm then has one value a channel."""
    odd = Plan.of_rows(np.arange(101))
    deep = dataclasses.replace(recipe, model="resnet18")
    with pytest.raises(
        ValueError,
        match=r"epoch of 101 rows has 1 row \(batch_size 50\), and one of 8x8 pixels leaves model 'resnet18' no",
    ):
        check_fit(tiny, deep, odd)
    check_fit(tiny, dataclasses.replace(deep, batch_size=51), odd)
    check_fit(tiny, recipe, odd)  # this one keeps four pixels
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # the error that the check prevents
        train_member(tiny, dataclasses.replace(deep, epochs=1), seed=1, plan=Plan.of_rows(np.arange(51)))


def test_check_fit_refuses_model_too_large_for_machine(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"a layer of width 99999999: widths are 1 to 8192"):
        check_fit(tiny, dataclasses.replace(recipe, model="cnn-99999999"), None)
    wide = dataclasses.replace(recipe, model="cnn-8192-8192")
    monkeypatch.setattr(fit, "memory_bytes", lambda: 5e9)
    # By hand: 9 * 8192 + 9 * 8192**2 weights of convolutions, 4 * 8192 of batch norms, 3 * 8193 of the last layer.
    with pytest.raises(ValueError, match=r"604,110,851 parameters: training it takes 7\.2 GB and more, .* has 5\.0 GB"):
        check_fit(tiny, wide, None)


def test_train_member_bfloat16_keeps_weights_and_logits_in_float32(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    exact = train_member(tiny, recipe, seed=3)
    rounded = train_member(tiny, dataclasses.replace(recipe, precision="bfloat16"), seed=3)
    assert {tensor.dtype for tensor in rounded.weights.values()} <= {torch.float32, torch.int64}
    assert calls[6][0].dtype == np.float32
    assert not np.array_equal(calls[0][0], calls[6][0])
    np.testing.assert_allclose(calls[0][0], calls[6][0], atol=0.05)
    assert rounded.test_logits.dtype == np.float32
    assert not np.array_equal(exact.test_logits, rounded.test_logits)


def run_fake_steps(step: Any, recipe: Recipe, dtype: torch.dtype) -> None:
    """Two steps without real data: anything that needs a value on the host raises."""
    loss = make_loss(recipe, class_counts=np.array([30, 50, 40]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(recipe.model, channels=1, image_size=(8, 8), classes=3)
        optimizer = make_optimizer(recipe, model)
        recorder = HardnessRecorder(120, 3)
        numbers = [torch.empty(50, dtype=torch.int64) for _ in range(3)]
        batch = Batch(torch.empty(50, 1, 8, 8, dtype=dtype), *numbers)
        out: Any = {"loss_out": torch.zeros(()), "right_out": torch.zeros((), dtype=torch.int64)}
        for epoch in range(2):
            step(model, optimizer, recorder, batch, loss=loss, epoch=epoch, dtype=dtype, **out)
        assert model.head.weight.grad is not None, "the backward pass ran"  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trap_21_step_reads_nothing_back(recipe: Recipe, dtype: torch.dtype, smoothing: float) -> None:
    run_fake_steps(train_step, dataclasses.replace(recipe, label_smoothing=smoothing), dtype)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"accumulate": 3, "clip_norm": 0.5}),
        ({}, {"mixing": Mixing(np.arange(50)[::-1].copy(), 0.7, None)}),
        ({}, {"mixing": Mixing(np.arange(50)[::-1].copy(), 0.75, (0, 4, 2, 6))}),
        ({"loss": "focal", "loss_args": {"class_weight": [1, 2, 3]}}, {}),
        ({"loss": "logit-adjusted"}, {}),
        ({"optimizer": "adamw", "no_decay": "norm-and-bias"}, {}),
        ({"optimizer": "muon", "norm_bias_lr": 8.0}, {}),
    ],
    ids=str,
)
def test_trap_21_step_of_any_recipe_reads_nothing_back(
    recipe: Recipe, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    run_fake_steps(functools.partial(train_step, **options), dataclasses.replace(recipe, **changes), torch.float32)


@pytest.mark.parametrize(
    "read",
    [
        lambda loss: loss.item(),
        lambda loss: loss.tolist(),
        lambda loss: float(loss),
        lambda loss: bool(loss > 0),
        lambda loss: loss.numpy().sum(),
        lambda loss: loss[loss > 0].sum().item(),
    ],
)
def test_trap_21_check_catches_a_read(recipe: Recipe, read: Any) -> None:
    def step(*args: Any, **options: Any) -> None:
        train_step(*args, **options)
        read(options["loss_out"])

    with pytest.raises(RuntimeError):  # DataDependentOutputException is one
        run_fake_steps(step, recipe, torch.float32)


def test_online_mode_draws_hard_classes_more_over_time(tiny: Dataset, recipe: Recipe) -> None:
    online = dataclasses.replace(recipe, epochs=4, online_every=2, online_alpha=0.5, online_max_change=0.25)
    scores = train_member(tiny, online, seed=3).scores
    plain = train_member(tiny, dataclasses.replace(recipe, epochs=2), seed=3).scores
    visits = np.bincount(tiny.train.labels, weights=scores.observations[0])
    sizes = tiny.train.class_counts()
    assert visits.sum() == 4 * len(tiny.train)
    # Two epochs of every sample, then two epochs by the hardness of the first two.
    hardest = int(np.argmin(plain.class_means("aum", tiny.train.labels, tiny.train.num_classes)))
    late = visits - 2 * sizes
    assert late[hardest] == late.max() > 2 * sizes[hardest]
    assert (abs(late / 2 - sizes) <= 0.25 * sizes).all()


def test_online_mode_is_off_by_default_and_refuses_a_plan(tiny: Dataset, recipe: Recipe) -> None:
    assert recipe.online_every == 0
    online = dataclasses.replace(recipe, online_every=1)
    with pytest.raises(ValueError, match="cannot be combined with a plan"):
        check_fit(tiny, online, Plan.of_rows(np.arange(len(tiny.train))))
