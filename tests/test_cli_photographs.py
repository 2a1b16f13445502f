"""From a folder of JPEGs to the page of a study, by the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest
from photographs import write_photographs
from PIL import Image

from hbr_fast import cli
from hbr_fast.report import figures

pytestmark = pytest.mark.usefixtures("one_thread")


def test_study_from_a_folder_of_photographs_to_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = figures.pictures_of  # the galleries only: drawing the others, which are tested elsewhere, takes seconds
    monkeypatch.setattr(figures, "pictures_of", lambda *args, **named: drawn(*args, **named)[-2:])
    root, data, out = write_photographs(tmp_path / "photos"), tmp_path / "photos.hbr", tmp_path / "study"
    cli.main(["convert", "folder", str(data), "--root", str(root), "--store", "encoded"])
    assert "statistics: decoding 12 pictures" in capsys.readouterr().err  # before the decoder is compiled, once
    study = ["study", "alpha-path", "--dataset", str(data), "--out", str(out), "--recipe", "small-cnn"]
    sizes = ["--points", "1", "--variants", "1", "--members", "1", "--members-at-once", "1", "--nonpositive", "shift"]
    recipe = ["--set", "size=24", "model=cnn-4", "epochs=2", "batch_size=6", "precision=float32"]
    cli.main([*study, *sizes, *recipe])
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = Path(headline["report"])
    assert page == out / "report" / "index.html"
    assert "<dt>size</dt><dd>24</dd>" in page.read_text()
    shown = pl.read_csv(page.parent / "hardest_images.csv")
    files = {str(path.relative_to(root)) for path in root.rglob("train/*/*.jpg")}
    assert set(shown["source"].to_list()) == files  # twelve, all of which are shown
    assert all(name.split("/")[1] == of for name, of in shown.select("source", "class_name").rows())
    with Image.open(page.parent / "hardest_images.png") as gallery:
        colours = gallery.convert("RGB").getcolors(2**20)
        assert colours is not None
        assert len(colours) > 500  # photographs, not blank tiles
    before = (page.parent / "hardest_images.png").read_bytes()
    for given in ([], ["--dataset", str(data)]):  # the size is not part of the dataset that is opened again
        cli.main(["report", str(out), *given])
        assert (page.parent / "hardest_images.png").read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_readme_commands_from_one_folder_per_class_to_a_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the README that take a folder, on pictures so few that margins are negative."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    block = next(one for one in re.findall(r"```console\n(.*?)```", text, re.DOTALL) if "convert folder" in one)
    convert, study = (shlex.split(line)[1:] for line in block.splitlines())
    write_photographs(tmp_path, per_class=13)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").rename(tmp_path / "photos")
    cli.main(convert)
    small = ["--points", "1", "--variants", "1", "--members", "1", "--members-at-once", "1"]
    recipe = ["--set", "model=cnn-4", "epochs=1", "batch_size=6", "precision=float32"]
    cli.main([*study, *small, "--dry-run", *recipe])
    assert "2 trainings, 0 done" in capsys.readouterr().out
    cli.main([*study, *small, *recipe])
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(headline["report"]).resolve() == tmp_path / "runs" / "photos" / "report" / "index.html"
    about = json.loads(Path("runs/photos/study.json").read_text())
    assert about["choice"]["validation"][1]["alpha"] > 0
    assert min(about["class_hardness"]) <= 0, "else --nonpositive is not needed here"
    assert about["arms"][1]["shifted"] == "shift"
    assert "the hardest class weighs 21 times the easiest" in Path(headline["report"]).read_text()


@pytest.mark.usefixtures("no_pictures")
def test_remedies_on_photographs_with_a_network_of_torchvision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/photographs-study.md at a small size: its recipe file, every remedy, the page."""
    root, data, out = write_photographs(tmp_path / "photos"), tmp_path / "photos.hbr", tmp_path / "study"
    cli.main(["convert", "folder", str(data), "--root", str(root), "--store", "encoded"])
    page = (Path(__file__).parent.parent / "docs" / "photographs-study.md").read_text()
    (recipe := tmp_path / "photos.toml").write_text(page.split("```toml")[1].split("```")[0])
    study = ["study", "remedies", "--dataset", str(data), "--out", str(out), "--recipe", str(recipe)]
    sizes = ["--variants", "1", "--members-at-once", "1", "--nonpositive", "shift", "--gamma", "1.5", "--tau", "0.7"]
    # A lighter network than the page's resnet18, whose weights of 45 MB eight trainings would store.
    small = ["size=32", "model=torchvision:shufflenet_v2_x0_5", "epochs=2", "batch_size=6", "precision=float32"]
    cli.main([*study, *sizes, "--schedule-args", '{"warmup_epochs": 1}', "--set", *small])
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    arms = {arm["name"]: arm for arm in json.loads((out / "study.json").read_text())["arms"]}
    assert headline["arms"] == len(arms) > 7
    recipes = {
        name: json.loads((out / arm["members"][0]["path"] / "recipe.json").read_text()) for name, arm in arms.items()
    }
    assert recipes["focal"]["loss_args"] == {"gamma": 1.5}
    assert recipes["logit-adjusted"]["loss_args"] == {"tau": 0.7}
    for one in recipes.values():
        assert (one["optimizer"], one["schedule"], one["no_decay"]) == ("adamw", "cosine", "norm-and-bias")
        assert one["augment"]["color_jitter"] == [0.3, 0.3, 0.3]
    assert all(name in Path(headline["report"]).read_text() for name in arms)
