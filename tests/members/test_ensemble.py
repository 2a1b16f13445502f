import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.files import read_json
from hbr_fast.members import store
from hbr_fast.members.ensemble import open_ensemble, train_ensemble
from hbr_fast.seeding import member_seed
from hbr_fast.training.recipe import Recipe


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the members that are actually trained, in order."""
    seeds: list[int] = []
    real = store.train_member

    def counting(*args: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(store, "train_member", counting)
    return seeds


def test_train_ensemble_writes_recipe_ensemble_and_members(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    ensemble = train_ensemble(tiny, recipe, members=2, out=run, seed=11)
    assert sorted(path.name for path in run.iterdir()) == [".lock", "ensemble.json", "members", "recipe.json"]
    assert Recipe.from_json(read_json(run / "recipe.json")) == recipe
    assert sorted(path.name for path in (run / "members").iterdir()) == sorted(m.key for m in ensemble.members)
    assert [member.seed for member in ensemble.members] == [member_seed(11, 0), member_seed(11, 1)]
    about = read_json(run / "ensemble.json")
    assert about["dataset"]["fingerprint"] == tiny.fingerprint
    assert about["members"] == [{"key": m.key, "seed": m.seed} for m in ensemble.members]
    assert (about["seed"], about["plan"]) == (11, None)


def test_open_ensemble_returns_trained_ensemble(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    trained = train_ensemble(tiny, recipe, members=2, out=tmp_path / "run")
    opened, about = open_ensemble(tmp_path / "run")
    assert opened == trained
    assert about == read_json(tmp_path / "run" / "ensemble.json")


def test_ensemble_scores_are_in_member_order(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    ensemble = train_ensemble(tiny, recipe, members=3, out=tmp_path / "run")
    scores = ensemble.scores()
    assert scores.members == 3
    for number, member in enumerate(ensemble.members):
        np.testing.assert_array_equal(scores.values["aum"][number], member.scores().values["aum"][0])
    assert not np.array_equal(scores.values["aum"][0], scores.values["aum"][1])
    scores.require_dataset(tiny.fingerprint)


def test_train_ensemble_trains_only_missing_members(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, trained: list[int]
) -> None:
    two = train_ensemble(tiny, recipe, members=2, out=tmp_path / "run")
    assert trained == [member_seed(0, 0), member_seed(0, 1)]
    trained.clear()
    three = train_ensemble(tiny, recipe, members=3, out=tmp_path / "run")
    assert trained == [member_seed(0, 2)]
    assert three.members[:2] == two.members
    trained.clear()
    assert train_ensemble(tiny, recipe, members=3, out=tmp_path / "run") == three
    assert trained == []


def test_train_ensemble_resumes_interrupted_training(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    counting = store.train_member

    def interrupted(*args: Any, seed: int, **options: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        return counting(*args, seed=seed, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "train_member", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_ensemble(tiny, recipe, members=3, out=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="holds no finished ensemble"):
        open_ensemble(tmp_path / "run")
    assert len(list((tmp_path / "run" / "members").iterdir())) == 2
    trained.clear()
    train_ensemble(tiny, recipe, members=3, out=tmp_path / "run")
    assert trained == [member_seed(0, 2)]


def test_train_ensemble_retrains_for_another_plan_or_seed(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, trained: list[int]
) -> None:
    plan = Plan.of_rows(np.arange(60))
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="run directory of another seed"):
        train_ensemble(tiny, recipe, members=1, out=tmp_path / "run", seed=1)
    with pytest.raises(ValueError, match="run directory of another plan"):
        train_ensemble(tiny, recipe, members=1, out=tmp_path / "run", plan=plan)
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "seed", seed=1)
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "plan", plan=plan)
    assert trained == [member_seed(0, 0), member_seed(1, 0), member_seed(0, 0)]
    assert read_json(tmp_path / "plan" / "ensemble.json")["plan"] == plan.content_hash()


def test_train_ensemble_leaves_run_of_another_recipe_alone(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, trained: list[int]
) -> None:
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")}
    changed = dataclasses.replace(recipe, lr=0.01)
    with pytest.raises(ValueError, match=r"run is the run directory of another recipe \(lr 0\.05, not 0\.01\)"):
        train_ensemble(tiny, changed, members=1, out=tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json")} == before
    assert len(trained) == 1


def test_train_ensemble_leaves_run_of_another_dataset_alone(
    tiny: Dataset, other: Dataset, recipe: Recipe, tmp_path: Path, trained: list[int]
) -> None:
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="run is the run directory of another dataset"):
        train_ensemble(other, recipe, members=1, out=tmp_path / "run")
    assert len(trained) == 1


def test_train_ensemble_refuses_no_members_before_writing(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 member, got 0"):
        train_ensemble(tiny, recipe, members=0, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"batch_size": 1000}, {"model": "resnet19"}, {"model": "cnn-4-4-4-4"}])
def test_train_ensemble_leaves_no_run_directory_for_invalid_recipe(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"batch_size|model"):
        train_ensemble(tiny, dataclasses.replace(recipe, **change), members=1, out=tmp_path / "run")
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "run")


def test_train_ensemble_refuses_plan_of_another_dataset(
    tiny: Dataset, other: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    plan = Plan.of_rows(np.arange(120), provenance={"dataset": other.fingerprint})
    with pytest.raises(ValueError, match=r"this plan was made for dataset .*: resample again"):
        train_ensemble(tiny, recipe, members=1, out=tmp_path / "run", plan=plan)
    assert not (tmp_path / "run").exists()


def test_open_ensemble_refuses_other_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} holds no finished ensemble .*: train one into it"):
        open_ensemble(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no run directory .*nowhere: make one with hbr-fast train"):
        open_ensemble(tmp_path / "nowhere")


def test_open_ensemble_names_damaged_file(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ensemble = train_ensemble(tiny, recipe, members=2, out=run)
    logits = ensemble.members[1].path / "logits.npy"
    logits.write_bytes(logits.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"logits\.npy is missing or damaged"):
        open_ensemble(run)
    with pytest.raises(ValueError, match=r"logits\.npy is missing or damaged"):
        train_ensemble(tiny, recipe, members=2, out=run)
    (run / "ensemble.json").write_text("{")
    with pytest.raises(ValueError, match=r"ensemble\.json is not valid JSON"):
        open_ensemble(run)


@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": 2, "members": []}'])
def test_open_ensemble_names_malformed_ensemble_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "ensemble.json").write_text(content)
    with pytest.raises(ValueError, match=r"ensemble\.json"):
        open_ensemble(tmp_path)


def test_open_ensemble_names_damaged_recipe_json(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_ensemble(tiny, recipe, members=1, out=run)
    (run / "recipe.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"recipe\.json"):
        train_ensemble(tiny, recipe, members=1, out=run)


def test_open_ensemble_finds_dataset_through_symbolic_link(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "large" / "disk").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "large" / "disk")
    train_ensemble(tiny, recipe, members=1, out=tmp_path / "run")
    _, about = open_ensemble(tmp_path / "run")
    assert (tmp_path / "run" / about["dataset"]["path"]).is_dir()
