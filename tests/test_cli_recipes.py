"""The options of a recipe on the command line, the same in train and study."""

import json
from pathlib import Path

import pytest

from hbr_fast import cli
from hbr_fast.cli.options import RecipeOptions
from hbr_fast.data.convert import convert
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.recipe_files import read_recipe, recipe_of
from hbr_fast.training.recipes import named_recipe

MINE = """
model = "cnn-4-8"
epochs = 2
batch_size = 50
lr = 1
schedule = "cosine"
precision = "float32"
optimizer = "torch.optim:SGD"
optimizer_args = { nesterov = true }

[schedule_args]
warmup_epochs = 0.5

[augment]
flip = 0.5
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.hbr"
    convert("synthetic", path, classes=3, train_per_class=40, test_per_class=20, shape=(1, 8, 8))
    return path


def test_read_recipe_of_toml(mine: Path) -> None:
    recipe = read_recipe(mine)
    assert (recipe.name, recipe.lr, recipe.augment.flip) == ("mine", 1.0, 0.5)
    assert isinstance(recipe.lr, float)
    assert recipe.optimizer_args == {"nesterov": True}
    assert recipe.schedule_args == {"warmup_epochs": 0.5}
    assert recipe_of(str(mine), ["epochs=7"]).epochs == 7


def test_read_recipe_takes_a_runs_own(tmp_path: Path) -> None:
    own = named_recipe("small-cnn", ["milestones=3,5", "augment.cutout=2", 'loss_args={"label_smoothing": 0.1}'])
    (tmp_path / "recipe.json").write_text(json.dumps(own.to_json()))
    assert read_recipe(tmp_path / "recipe.json") == own


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", None, "there is no recipe file .*a.toml"),
        ("a.toml", "epochs = ", "a.toml is not a recipe: "),
        ("a.json", "[1]", "a.json is not a recipe: it holds a list, not an object"),
        ("a.json", "{", "a.json is not .*JSON"),
        (
            "a.toml",
            'x = 1\ny = 2\nmodel = "m"\nepochs = 1\n[augment]\nz = 1',
            "unknown recipe field 'x', 'y', 'augment.z'",
        ),
        ("a.toml", 'name = "x"', "a recipe needs the field 'model', 'epochs'"),
        (
            "a.toml",
            'model = "resnet18"\nepochs = "three"\nlr = true\nmilestones = 3\nmodel_args = 2\n[augment]\npad = "no"',
            "epochs cannot be 'three': it takes a whole number; lr cannot be True: it takes a number; "
            "milestones cannot be 3: it takes whole numbers with commas between them; "
            "model_args cannot be 2: it takes a JSON object",
        ),
    ],
    ids=str,
)
def test_read_recipe_names_file_and_all_faults(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_recipe(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_recipe_options_are_changes_of_fields() -> None:
    options = RecipeOptions(
        model="timm:test_resnet",
        model_args='{"drop_rate": 0.5}',
        weights="a=b.pth",
        optimizer="adamw",
        schedule="cosine",
        schedule_args='{"floor": 0.1}',
        loss="focal",
        loss_args='{"gamma": 1}',
        augment="torchvision:GaussianNoise",
        augment_args='{"sigma": 0.05}',
        overrides=("lr=0.002",),
    )
    recipe = named_recipe("small-cnn", options.changes())
    assert (recipe.model, recipe.model_args) == ("timm:test_resnet", {"drop_rate": 0.5})
    assert (recipe.weights, recipe.optimizer, recipe.lr) == ("a=b.pth", "adamw", 0.002)
    assert (recipe.augment.transform, recipe.augment.transform_args) == ("torchvision:GaussianNoise", {"sigma": 0.05})
    assert recipe.augment.flip == 0.5, "the rest of the recipe's augmentation stays"
    assert (recipe.schedule_args, recipe.loss, recipe.loss_args) == ({"floor": 0.1}, "focal", {"gamma": 1})


def test_recipe_options_refuse_a_field_changed_twice() -> None:
    options = RecipeOptions(model="resnet18", loss_args="{}", overrides=("model=cnn-4", "epochs=1", "loss_args={}"))
    with pytest.raises(
        ValueError, match="--model and --set model=, --loss-args and --set loss_args=: give one of the two"
    ):
        options.changes()


def test_train_takes_recipe_file_and_options(data: Path, mine: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--optimizer-args", "{}", "--loss", "focal", "--loss-args", '{"gamma": 1}', "--set", "lr=0.05", "ema=0.9"]
    cli.main(["train", str(data), str(run), "--recipe", str(mine), *words, "--members-at-once", "1"])
    recipe = Recipe.from_json(json.loads((run / "recipe.json").read_text()))
    assert (recipe.name, recipe.loss, recipe.loss_args, recipe.lr) == ("mine", "focal", {"gamma": 1}, 0.05)
    again = tmp_path / "again"
    cli.main(["train", str(data), str(again), "--recipe", str(run / "recipe.json"), "--members-at-once", "1"])
    assert [path.name for path in (again / "members").iterdir()] == [path.name for path in (run / "members").iterdir()]


@pytest.mark.parametrize("command", [["train", "x.hbr", "run"], ["study", "quickstart", "--tiny"]])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer", "adamm"], "optimizer cannot be 'adamm'"),
        (["--model-args", "{"], "recipe field 'model_args' cannot be '{'"),
        (["--loss-args", "[1]"], "recipe field"),
        (["--recipe", "there-is-none.toml"], "there is no recipe file there-is-none.toml"),
        (["--augment", "mixing"], "transform must be torchvision:CLASS or package.module:function, got 'mixing'"),
        (["--augment", "a:b", "--set", "augment.transform=c:d"], "--augment and --set augment.transform=: give one of"),
        (["--set", "augment.rotate=200", "augment.blur=2"], "rotate is an angle in degrees in [0, 180], got 200.0"),
        (["--model", "cnn-4", "--set", "model=cnn-8"], "--model and --set model=: give one of the two"),
    ],
    ids=str,
)
def test_commands_refuse_recipe_options_in_one_line(
    command: list[str],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, *words])
    assert caught.value.code == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert progress in ([], [f"{command[0]}: loading"], ["study quickstart: loading"])
    assert list(tmp_path.iterdir()) == [], "nothing is written"
