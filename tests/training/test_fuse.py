"""Networks of torchvision with fused batch norms compute what they computed before."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, make_layers

from hbr_fast.training.models import fuse as fusing
from hbr_fast.training.models import layers
from hbr_fast.training.models.fuse import fuse
from hbr_fast.training.models.libraries import float32_head


def resnet(block: type[BasicBlock | Bottleneck]) -> nn.Module:
    torch.manual_seed(5)
    return ResNet(block, [1, 1, 1, 1], num_classes=3, width_per_group=64)


def sequential() -> nn.Module:
    torch.manual_seed(5)
    features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


class Shortcut(nn.Sequential):
    """A subclass with a forward of its own, as residual blocks are often written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def shortcut() -> nn.Module:
    torch.manual_seed(5)
    inner = Shortcut(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    outer = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), inner, nn.BatchNorm2d(16), nn.Sigmoid())
    return nn.Sequential(outer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


def densenet() -> nn.Module:
    torch.manual_seed(5)
    return DenseNet(growth_rate=16, block_config=(1, 1), num_init_features=16, num_classes=3)


def vgg() -> nn.Module:
    torch.manual_seed(5)
    model = VGG(make_layers([16, "M", 32], batch_norm=True), num_classes=3)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 3)
    return model


def of_timm() -> nn.Module:
    torch.manual_seed(5)
    model: nn.Module = timm.create_model("resnet10t", num_classes=3, channels=(16, 16, 32, 32))
    return model


CASES = {
    "basic": (lambda: resnet(BasicBlock), 12),
    "bottleneck": (lambda: resnet(Bottleneck), 17),
    "sequential": (sequential, 1),
    "shortcut": (shortcut, 2),
    "densenet": (densenet, 3),
    "vgg": (vgg, 2),
    "timm": (of_timm, 5),
}


@pytest.mark.parametrize("name", CASES)
def test_fuse_keeps_outputs_gradients_and_statistics(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, batch_norms = CASES[name]
    plain = make().to(memory_format=torch.channels_last)
    fused = fuse(copy.deepcopy(plain))
    assert list(fused.state_dict()) == list(plain.state_dict())
    calls: list[int] = []
    real = layers.norm

    def counted(*args: object) -> torch.Tensor:
        calls.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(layers, "norm", counted)
    monkeypatch.setattr(fusing, "norm", counted)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1, 2, 0])
    outputs = []
    for model in (plain, fused):
        logits = model.train()(images)
        functional.cross_entropy(logits, labels).backward()
        outputs.append(logits.detach())
    assert len(calls) == batch_norms, "as many batch norms as can be are fused"
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    for (which, ours), (_, theirs) in zip(fused.named_parameters(), plain.named_parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * scale + 1e-6, msg=which)
    for (which, ours_), theirs_ in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-4, atol=1e-5, msg=which)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused.eval()(images), plain.eval()(images), rtol=1e-6, atol=1e-6)


def test_fuse_leaves_other_norms_alone() -> None:
    model = fuse(ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=lambda width: nn.GroupNorm(4, width)))
    assert type(model) is ResNet
    assert not any("Fused" in type(module).__name__ for module in model.modules())


def test_fused_network_compiles_into_one_graph() -> None:
    model = fuse(float32_head(sequential(), 3)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = compiled(images)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, model(images), rtol=0.02, atol=0.02)
