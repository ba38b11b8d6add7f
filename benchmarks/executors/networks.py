"""The networks of the executor benchmarks: ResNet-20 and ResNet-56 for CIFAR-10, a VGG and a MobileNetV2 for 28×28.

The published CIFAR ResNets (He et al. 2016, option A) shorten a stage's first shortcut by taking every second pixel and
padding channels with zeros. Here that is written as the 1×1 convolution of stride 2 it equals, with the identity for
weights: the same function at first, and the width of a stage isn't wired into the code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CifarResNet", "from_option_a", "mobilenet28", "resnet20", "resnet56", "vgg28"]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of ``blocks`` blocks, 16, 32 and 64 channels wide times ``scale``."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, blocks: int, scale: float = 1.0) -> None:
        super().__init__()
        widths = [max(1, round(width * scale)) for width in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for index, width in enumerate(widths):
            stage = [_Block(before if first else width, width, 1 + (first and index > 0)) for first in _firsts(blocks)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
            before = width
        self.linear = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def from_option_a(blocks: int, state: Mapping[str, Tensor]) -> CifarResNet:
    """The network of published option-A weights: the same outputs."""
    model = CifarResNet(blocks)
    shortcuts = {name: _padding_as_weights(tensor) for name, tensor in model.state_dict().items() if "shortcut" in name}
    model.load_state_dict({**state, **shortcuts})
    return model.eval()


def resnet20() -> CifarResNet:
    """0.27 M parameters."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """0.86 M parameters."""
    return CifarResNet(9)


def vgg28() -> nn.Sequential:
    """Six 3×3 convolutions and a classifier, for grey 28×28 images."""
    layers: list[nn.Module] = []
    inputs = 1
    for width, pool in ((32, False), (32, True), (64, False), (64, True), (128, False), (128, False)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(self.depthwise(self.expand(x)))
        return x + projected if self.skips else projected


class _MobileNet28(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        blocks: list[nn.Module] = []
        inputs = 24
        for outputs, stride, count in ((24, 1, 1), (32, 2, 2), (64, 2, 2)):
            for index in range(count):
                blocks.append(_Inverted(inputs, outputs, stride if index == 0 else 1, 4))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(inputs, 192, 1, bias=False), nn.BatchNorm2d(192), nn.ReLU6())
        self.classifier = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean((2, 3)))


def mobilenet28() -> nn.Module:
    """Five inverted residuals of expansion 4 behind a stem, for grey 28×28 images."""
    return _MobileNet28()


def _firsts(blocks: int) -> list[bool]:
    return [index == 0 for index in range(blocks)]


def _padding_as_weights(weight: Tensor) -> Tensor:
    """The 1×1 weights that pad channels with zeros on both sides alike."""
    outputs, inputs = weight.shape[:2]
    before = (outputs - inputs) // 2
    padded = torch.zeros_like(weight)
    padded[before : before + inputs] = torch.eye(inputs)[:, :, None, None]
    return padded
