"""Final-model estimators, and where they are kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hbr_fast.data.dataset import Dataset
from hbr_fast.hardness import FINAL, RECORDED
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.scoring import final_model as final
from hbr_fast.members.scoring.final_model import final_scores, scores_by, stored_final_scores, trained_model
from hbr_fast.members.store import StoredMember
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe


@pytest.fixture(scope="module")
def members(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredMember, ...]:
    from training.conftest import TINY

    return train_ensemble(tiny, TINY, members=2, out=tmp_path_factory.mktemp("run") / "run").members


def test_final_scores_match_trained_model_without_augmentation(
    tiny: Dataset, members: tuple[StoredMember, ...]
) -> None:
    model = trained_model(members[0], tiny.train)
    np.testing.assert_array_equal(predict(model, tiny.test, dtype=torch.float32), members[0].test_logits())
    logits = predict(model, tiny.train, dtype=torch.float32).astype(np.float64)
    scores = final_scores(model, tiny.train)
    assert tuple(scores.values) == FINAL
    assert (scores.observations == 1).all()
    labels = np.asarray(tiny.train.labels)
    rows = np.arange(len(labels))
    own = logits[rows, labels]
    others = logits.copy()
    others[rows, labels] = -np.inf
    p = np.exp(own) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(scores.per_sample("aum_final"), own - others.max(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.per_sample("confidence_final"), p, rtol=1e-5)
    np.testing.assert_allclose(scores.per_sample("loss_final"), -np.log(p), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(scores.per_sample("dataiq_final"), p * (1 - p), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(scores.never_learnt[0], logits.argmax(axis=1) != labels)


def test_final_scores_are_computed_once_and_stored_with_member(
    tiny: Dataset, members: tuple[StoredMember, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stored_final_scores(members[0], tiny)
    assert (members[0].path / "final.safetensors").is_file()
    assert first.provenance["model"] == "final"
    assert first.provenance["seed"] == members[0].seed

    def predict_again(*args: object, **options: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(final, "predict", predict_again)
    again = stored_final_scores(members[0], tiny)
    for name in FINAL:
        np.testing.assert_array_equal(again.values[name], first.values[name])
    # Scores of another member in the same place are not accepted.
    (members[1].path / "final.safetensors").write_bytes((members[0].path / "final.safetensors").read_bytes())
    with pytest.raises(AssertionError, match="computed again"):
        stored_final_scores(members[1], tiny)
    # Nor those of the same pixels normalised otherwise: the fingerprint does not hold mean and standard deviation.
    with pytest.raises(AssertionError, match="computed again"):
        stored_final_scores(members[0], dataclasses.replace(tiny, mean=(0.9,) * len(tiny.mean)))
    (members[1].path / "final.safetensors").unlink()


def test_final_scores_by_estimator_hold_required_scores(
    tiny: Dataset, other: Dataset, members: tuple[StoredMember, ...]
) -> None:
    assert tuple(scores_by(members, tiny, "aum").values) == RECORDED
    both = scores_by(members, tiny, "loss_final")
    assert tuple(both.values) == (*RECORDED, *FINAL)
    assert both.values["loss_final"].shape == (2, len(tiny.train))
    assert (both.values["loss_final"][0] != both.values["loss_final"][1]).any()
    with pytest.raises(ValueError, match="unknown estimator 'margin'"):
        scores_by(members, tiny, "margin")
    with pytest.raises(ValueError, match=r"ssft needs a second training: see .*second_split_forgetting"):
        scores_by(members, tiny, "ssft")
    for name in ("aum", "aum_final"):
        with pytest.raises(ValueError, match="recorded on dataset"):
            scores_by(members, other, name)


def test_final_scores_use_precision_of_recipe(tiny: Dataset, tmp_path: Path, recipe: Recipe) -> None:
    import dataclasses

    halved = dataclasses.replace(recipe, precision="bfloat16", epochs=1)
    (member,) = train_ensemble(tiny, halved, members=1, out=tmp_path / "run").members
    expected = final_scores(trained_model(member, tiny.train), tiny.train, dtype=torch.bfloat16)
    np.testing.assert_array_equal(stored_final_scores(member, tiny).values["aum_final"], expected.values["aum_final"])
