import pytest
import torch
import torchvision
from torch import nn

from hbr_fast.training.models.networks import build_model, resnet18_features


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def model(name: str, *, channels: int = 3, size: int = 32, classes: int = 10) -> nn.Module:
    return build_model(name, channels=channels, image_size=(size, size), classes=classes)


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [
        ("cnn-4-8", 1, (8, 8), 3),
        ("cnn-4", 3, (2, 2), 2),
        ("cnn-4-8-16", 1, (28, 28), 10),
        ("vgg-4-8", 1, (28, 28), 10),
        ("vgg-4", 3, (4, 6), 5),
        ("vgg-4-8", 2, (10, 14), 3),
        ("whitened-4-8", 3, (8, 10), 3),
        ("whitened-16-32-32", 1, (28, 28), 10),
        ("whitened2-16-32", 3, (9, 12), 3),
        ("whitened2-4", 1, (3, 3), 2),
        ("resnet18", 3, (16, 16), 7),
    ],
)
@pytest.mark.parametrize("batch", [2, 5])
def test_models_map_images_to_logits(name: str, channels: int, size: tuple[int, int], classes: int, batch: int) -> None:
    net = build_model(name, channels=channels, image_size=size, classes=classes)
    logits = net(torch.zeros(batch, channels, *size))
    assert logits.shape == (batch, classes)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("size", [(9, 10), (10, 11)])
def test_vgg_refuses_odd_sides(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"needs even sides, not {size[0]}x{size[1]}"):
        build_model("vgg-4-8", channels=2, image_size=size, classes=3)


def test_resnet18_parameter_count_matches_torchvision_with_small_stem() -> None:
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    # By hand: 11,689,512 with 1000 classes and a 7x7 stem, less 513 * 990 and 64 * 3 * (49 - 9).
    assert parameters(theirs) == 11_689_512 - 513 * 990 - 64 * 3 * 40 == 11_173_962
    assert parameters(model("resnet18")) == 11_173_962
    assert parameters(model("resnet18", classes=100)) == 11_173_962 + 90 * 513
    assert parameters(model("resnet18", channels=1)) == 11_173_962 - 2 * 9 * 64


def test_resnet18_matches_torchvision_with_small_stem() -> None:
    """Same weights in the same order of layers, same logits: stem 3x3 stride 1, no max-pool."""
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = model("resnet18")
    pairs = zip(sorted_shapes(theirs), sorted_shapes(ours), strict=True)
    assert all(a == b for a, b in pairs)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


def sorted_shapes(net: nn.Module) -> list[tuple[int, ...]]:
    return sorted(tuple(tensor.shape) for tensor in net.state_dict().values())


def test_resnet18_keeps_full_resolution_in_first_stage() -> None:
    features = resnet18_features(3)
    sizes = []
    images = torch.zeros(2, 3, 32, 32)
    for layer in features:
        images = layer(images)
        sizes.append(tuple(images.shape[1:]))
    assert sizes[:9] == [
        (64, 32, 32),  # the stem: stride 1 and no pool
        (64, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (128, 16, 16),
        (256, 8, 8),
        (256, 8, 8),
        (512, 4, 4),
        (512, 4, 4),
    ]
    stem = next(layer for layer in features.modules() if isinstance(layer, nn.Conv2d))
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in features.modules())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Convolutions without bias, two numbers a channel of batch norm, a linear layer with bias.
        ("cnn-4-8", 9 * 1 * 4 + 8 + 9 * 4 * 8 + 16 + (8 + 1) * 10),
        # 4 channels of blocks; two convolutions a width; 28 -> 14 -> 7 -> 3 pixels.
        ("vgg-4-8", 9 * 4 * 4 + 8 + 9 * 4 * 4 + 8 + 9 * 4 * 8 + 16 + 9 * 8 * 8 + 16 + (8 * 3 * 3 + 1) * 10),
    ],
)
def test_models_parameter_counts_by_hand(name: str, count: int) -> None:
    assert parameters(model(name, channels=1, size=28)) == count


@pytest.mark.parametrize("name", ["cnn-4-8", "vgg-4-8", "resnet18"])
def test_models_return_float32_logits_under_bfloat16_autocast(name: str) -> None:
    net = model(name, channels=1, size=16)
    seen = []
    net.get_submodule("features").register_forward_hook(lambda _, __, features: seen.append(features.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(torch.randn(4, 1, 16, 16, dtype=torch.bfloat16))
    assert seen == [torch.bfloat16]
    assert logits.dtype == torch.float32
    # If they were bfloat16, rounding again would not change them.
    assert not torch.equal(logits, logits.bfloat16().float())


def test_whitened2_is_evaluated_on_both_mirror_images() -> None:
    net, images = model("whitened2-16-32", size=12), torch.randn(3, 3, 12, 12)
    plain = net(images)
    assert not torch.allclose(plain, net(images.flip(-1)), atol=1e-3), "in training an image is taken as it is"
    net.eval()
    with torch.inference_mode():
        torch.testing.assert_close(net(images), net(images.flip(-1)))


def test_whitened2_norms_have_no_scale_to_learn() -> None:
    net = model("whitened2-16-32", size=12)
    norms = [one for one in net.modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(norms) == 4
    net(torch.randn(4, 3, 12, 12)).sum().backward()
    for norm in norms:
        assert norm.weight.grad is None
        assert norm.bias.grad is not None
        torch.testing.assert_close(norm.weight, torch.ones_like(norm.weight))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("cnn-4-8", (3, 8), "halves the image 2 times: images of 3x8 are too small, it needs at least 4 pixels"),
        ("cnn-4", (1, 1), "needs at least 2 pixels"),
        ("whitened2-4-8", (8, 4), "halves the image 2 times: images of 8x4 are too small, it needs at least 5 pixels"),
        ("vgg-4-8", (28, 7), "halves the image 3 times: images of 28x7 are too small, it needs at least 8 pixels"),
    ],
)
def test_models_refuse_images_that_are_too_small(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, channels=1, image_size=size, classes=2)


@pytest.mark.parametrize(
    "name", ["resnet", "resnet18-4", "cnn", "vgg", "cnn-", "cnn-4-x", "cnn-0", "cnn--4", "mlp-8", ""]
)
def test_unknown_model_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown model '.*': there are resnet18 and cnn-W-W-\.\.\., vgg-W-W-\.\.\., whitened-W-W"
    ):
        model(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cnn-a", "cnn-16-32"),
        ("cn-8", "cnn-8"),
        ("vg-8-x", "vgg-16-32"),
        ("cnn", "cnn-16-32"),
        ("resnet19", "resnet18"),
    ],
)
def test_the_network_that_may_be_meant_is_one(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"\(did you mean '{meant}'\?\)$"):
        build_model(name, channels=1, image_size=(32, 32), classes=3)
    build_model(meant, channels=1, image_size=(32, 32), classes=3)
