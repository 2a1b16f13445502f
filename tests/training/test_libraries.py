"""Networks of torchvision and timm, and weights that they start from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.members.preflight import check_fit
from hbr_fast.members.scoring.final_model import trained_model
from hbr_fast.members.store import member_key, train_and_store
from hbr_fast.training.build import build_model, initial_model
from hbr_fast.training.models.libraries import Float32Linear
from hbr_fast.training.models.start_weights import load_start_weights
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe

RGB = (3, 32, 32)


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """36 train and 9 test images of 3x32x32 in 3 classes."""
    path = tmp_path_factory.mktemp("rgb") / "rgb.hbr"
    return convert("synthetic", path, classes=3, train_per_class=12, test_per_class=3, shape=RGB)


def of(recipe: Recipe, model: str, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, model=model, **changes)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("torchvision:squeezenet1_1", {"dropout": 0.0}),
        ("timm:test_convnext", {"drop_path_rate": 0.1}),
        ("timm:test_resnet.r160_in1k", {}),
    ],
)
def test_build_model_by_library_name(recipe: Recipe, model: str, arguments: dict[str, Any]) -> None:
    built = build_model(of(recipe, model, model_args=arguments), RGB, 7)
    assert built(torch.zeros(2, *RGB)).shape == (2, 7)


def test_build_model_of_timm_takes_any_number_of_channels(recipe: Recipe) -> None:
    assert build_model(of(recipe, "timm:test_resnet"), (1, 32, 32), 4)(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("model", "arguments", "shape", "message"),
    [
        (
            "torchvision:resnet8",
            {},
            RGB,
            "unknown model 'torchvision:resnet8': the nearest of its .* are torchvision:resnet18",
        ),
        ("torchvision:fcn_resnet50", {}, RGB, "unknown model 'torchvision:fcn_resnet50'"),
        (
            "timm:convnext_tny",
            {},
            RGB,
            "unknown model 'timm:convnext_tny': the nearest of its .* are timm:convnext_tiny",
        ),
        ("torchvision:resnet18", {}, (1, 32, 32), "takes RGB images, these have 1 channel: take a timm: model"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, RGB, "weights='DEFAULT' would download weights: save them"),
        ("timm:test_resnet", {"pretrained": True}, RGB, "pretrained=True would download weights"),
        ("torchvision:resnet18", {"width": 2}, RGB, r"with model_args \{'width': 2\}: TypeError: .*'width'"),
        ("torchvision:vit_b_16", {"image_size": 30}, RGB, "cannot be made for images .*divisible by patch size"),
    ],
    ids=str,
)
def test_build_model_refuses_what_a_library_has_not(
    recipe: Recipe, model: str, arguments: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_model(of(recipe, model, model_args=arguments), shape, 3)
    assert "\n" not in str(caught.value)


def test_library_head_computes_in_float32_under_autocast(recipe: Recipe) -> None:
    model = build_model(of(recipe, "torchvision:resnet18"), RGB, 5)
    assert isinstance(model.fc, Float32Linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.zeros(2, *RGB)).dtype == torch.float32
    assert set(model.state_dict()) == set(models.resnet18().state_dict())


def test_train_member_of_torchvision_model_in_bfloat16_reopens(rgb: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    chosen = of(recipe, "torchvision:shufflenet_v2_x0_5", epochs=1, batch_size=18, lr=0.01, precision="bfloat16")
    check_fit(rgb, chosen, None)
    member = train_and_store(rgb, chosen, seed=1, plan=None, store=tmp_path)
    assert member.test_logits().dtype == np.float32
    assert (member.scores().observations == 1).all()
    again = predict(trained_model(member, rgb.train), rgb.test, dtype=member.dtype)
    np.testing.assert_array_equal(again, member.test_logits())


# --- weights to start from


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "nested.pth"])
def test_initial_model_starts_from_file_with_a_new_classifier(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, suffix: str
) -> None:
    other = build_model(recipe, (1, 8, 8), 10)
    state, path = other.state_dict(), tmp_path / f"start.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == "nested.pth" else state, path)
    model = initial_model(dataclasses.replace(recipe, weights=str(path)), tiny.train, seed=3)
    plain = initial_model(recipe, tiny.train, seed=3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name] if name.startswith("head") else state[name]), name
    assert load_start_weights(model, str(path), 3) == ["head.weight", "head.bias"]


def test_load_start_weights_names_every_mismatch(recipe: Recipe, tmp_path: Path) -> None:
    model = build_model(recipe, (1, 8, 8), 3)
    state = dict(build_model(of(recipe, "cnn-6-8"), (1, 8, 8), 3).state_dict())
    state["extra"] = state.pop("head.bias")
    save_file(state, tmp_path / "w.safetensors")
    message = r"of another model: it lacks head\.bias; it has too extra; it has another shape for features"
    with pytest.raises(ValueError, match=message):
        load_start_weights(model, str(tmp_path / "w.safetensors"), 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file of weights .*: nothing is downloaded"),
        (b"garbage", "holds no weights that can be read without unpickling"),
        ({"a": 1}, "holds no state_dict, a dict of tensors"),
        (torch.nn.Linear(1, 1), "holds no weights that can be read without unpickling"),
    ],
    ids=str,
)
def test_load_start_weights_refuses_other_files(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_start_weights(torch.nn.Linear(1, 1), str(path), 1)
    assert "\n" not in str(caught.value)


def test_member_key_counts_weights_by_content_and_member_reopens_without_the_file(
    tiny: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    one, moved, other = (tmp_path / f"{name}.safetensors" for name in ("one", "moved", "other"))
    state = build_model(recipe, (1, 8, 8), 3).state_dict()
    save_file(state, one)
    save_file(state, moved)
    save_file({name: tensor + 1 for name, tensor in state.items()}, other)

    def key(path: Path | str) -> str:
        return member_key(tiny, dataclasses.replace(recipe, weights=str(path)), seed=1, plan=None)

    assert key(one) == key(moved) != key(other) != key("")
    chosen = dataclasses.replace(recipe, weights=str(one), epochs=1)
    member = train_and_store(tiny, chosen, seed=1, plan=None, store=tmp_path / "s")
    one.unlink()
    again = predict(trained_model(member, tiny.train), tiny.test, dtype=torch.float32)
    np.testing.assert_array_equal(again, member.test_logits())
