"""Random networks put together from the constructs: what hypothesis draws, narrows and shrinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["STEPS", "RandomNet", "Step", "steps"]

_SIDE = 4
_MOST = 48


@dataclass(frozen=True)
class Step:
    """One construct with two numbers it may use as it likes."""

    kind: str
    a: int
    b: int


class RandomNet(nn.Module):
    """Applies steps to an image; a step that doesn't fit the channels it meets is left out.

    Layers are made on the first run and found again afterwards.
    """

    def __init__(self, steps: Sequence[Step], side: int = _SIDE) -> None:
        super().__init__()
        self._steps, self._made, self._saved = steps, 0, []
        self._complete = False
        torch.manual_seed(len(steps))
        with torch.no_grad():
            self.eval()(torch.zeros(1, 3, side, side))
        self._complete = True

    def forward(self, x: Tensor) -> object:
        self._made, self._saved = 0, []
        self._channels = 3
        for step in self._steps:
            x = STEPS[step.kind](self, x, step)
        last = self._steps[-1] if self._steps else Step("", 0, 0)
        if last.a % 3 == 0:
            return self.layer(nn.Linear, self._channels * _SIDE * _SIDE, 3)(torch.flatten(x, 1))
        if last.a % 3 == 1:
            return self.layer(nn.Conv2d, self._channels, 5, 1)(x)
        return {"out": self.layer(nn.Linear, self._channels, 3)(x.mean((2, 3)))}

    def layer(self, kind: type[nn.Module], *args: object, **options: object) -> nn.Module:
        name = f"l{self._made}"
        self._made += 1
        if not self._complete:
            self.add_module(name, kind(*args, **options))
            _randomise(getattr(self, name))
        return getattr(self, name)  # type: ignore[no-any-return]

    def conv(self, x: Tensor, outputs: int, kernel: int = 1, inputs: int | None = None, **options: object) -> Tensor:
        made = self.layer(nn.Conv2d, inputs or self._channels, outputs, kernel, padding=kernel // 2, **options)
        return made(x)  # type: ignore[no-any-return]

    @property
    def channels(self) -> int:
        return self._channels

    def now(self, channels: int) -> None:
        """The channels from here on; a literal, as the code of networks has it."""
        self._channels = channels

    @property
    def saved(self) -> list[tuple[Tensor, int]]:
        return self._saved


def _randomise(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and (tensor.ndim == 1):
            tensor.data.copy_(
                torch.rand(tensor.shape) + 0.5 if "var" in name or "weight" in name else torch.randn(tensor.shape) / 2
            )


def _conv(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    outputs = 2 + s.a % 11
    x = torch.relu(net.conv(x, outputs, 1 + 2 * (s.b % 2)))
    net.now(outputs)
    return x


def _conv_norm(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    outputs = 2 + s.a % 11
    x = net.layer(nn.BatchNorm2d, outputs)(net.conv(x, outputs, bias=s.b % 2 == 0))
    net.now(outputs)
    return F.silu(x)


def _norm(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    return net.layer(nn.BatchNorm2d, net.channels)(x)  # type: ignore[no-any-return]


def _depthwise(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    outputs = net.channels * (1 + s.a % 3)
    if outputs > _MOST:
        return x
    x = net.conv(x, outputs, 3, groups=net.channels)
    net.now(outputs)
    return x


def _grouped(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    groups = next((g for g in (2 + s.a % 3, 3, 2) if net.channels % g == 0), 1)
    outputs = groups * (1 + s.b % 4)
    x = net.conv(x, outputs, 1, groups=groups)
    net.now(outputs)
    return x


def _transposed(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    groups = next((g for g in (2 + s.a % 3, 2) if s.b % 2 and net.channels % g == 0), 1)
    outputs = groups * (2 + s.a % 4)
    x = net.layer(nn.ConvTranspose2d, net.channels, outputs, 3, padding=1, groups=groups)(x)
    net.now(outputs)
    return x


def _residual(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    inner = 2 + s.a % 7
    return x + net.conv(torch.relu(net.conv(x, inner)), net.channels, inputs=inner)


def _save(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    net.saved.append((x, net.channels))
    return x


def _add_saved(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    if not net.saved:
        return x
    other, channels = net.saved[s.a % len(net.saved)]
    if channels != net.channels:
        other = net.conv(other, net.channels, inputs=channels)
    return x * torch.sigmoid(other) if s.b % 3 == 0 else x + other


def _cat_saved(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    if not net.saved or net.channels + net.saved[s.a % len(net.saved)][1] > _MOST:
        return x
    other, channels = net.saved[s.a % len(net.saved)]
    net.now(net.channels + channels)
    return torch.cat([x, other] if s.b % 2 else [other, x], 1)


def _chunk(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    if net.channels % 2:
        return x
    half = net.channels // 2
    a, b = x.chunk(2, 1) if s.a % 2 else x.split(x.size(1) // 2, 1)
    if s.b % 3 == 0:
        net.now(half)
        return a * torch.tanh(b)
    return torch.cat([b, a] if s.b % 3 == 1 else [net.conv(a, half, inputs=half), b], 1)


def _uneven(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    place = 1 + s.a % max(1, net.channels - 1)
    if place >= net.channels:
        return x
    if s.b % 2:
        a, b = torch.split(x, [place, net.channels - place], 1)
    else:
        a, b = x[:, :place], x[:, place:]
    return torch.cat([b, net.conv(a, place, inputs=place)], 1)


def _halves(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    if net.channels % 2:
        return x
    half = x.shape[1] // 2
    a, b = x[:, :half], x[:, half:]
    return torch.cat([net.conv(a, net.channels // 2, inputs=net.channels // 2), b], 1)


def _shuffle(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    groups = next((g for g in (2 + s.a % 3, 2) if net.channels % g == 0), 0)
    if not groups:
        return x
    if s.b % 3 == 0:
        return F.channel_shuffle(x, groups)
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c if s.b % 3 == 1 else -1, h, w)


def _squeeze_excite(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    inner = 2 + s.a % 5
    return x * torch.sigmoid(
        net.conv(torch.relu(net.conv(x.mean((2, 3), keepdim=True), inner)), net.channels, inputs=inner)
    )


def _group_norm(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    groups = next((g for g in (2 + s.a % 4, 3, 2, 1) if net.channels % g == 0), 1)
    return net.layer(nn.GroupNorm, groups, net.channels)(x)  # type: ignore[no-any-return]


def _instance_norm(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    return net.layer(nn.InstanceNorm2d, net.channels, affine=s.a % 2 == 0, track_running_stats=s.b % 2 == 0)(x)  # type: ignore[no-any-return]


def _prelu(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    return net.layer(nn.PReLU, net.channels if s.a % 3 else 1)(x)  # type: ignore[no-any-return]


def _pixels(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    if net.channels % 4:
        return x
    net.now(net.channels // 4)
    return F.avg_pool2d(F.pixel_shuffle(x, 2), 2)


def _pad(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    before, after = s.a % 4, s.b % 4
    net.now(net.channels + before + after)
    return F.pad(x, (0, 0, 0, 0, before, after))


def _flip(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    return torch.flip(x, [1] if s.a % 2 else [2])


def _linear(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    outputs = 2 + s.a % 7
    x = net.layer(nn.Linear, net.channels, outputs)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    net.now(outputs)
    return x


def _shared(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    layer = net.layer(nn.Conv2d, net.channels, net.channels, 1)
    return layer(torch.relu(layer(x)))  # type: ignore[no-any-return]


def _branches(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    """A softmax over branches."""
    if net.channels % 2:
        return x
    n, c, h, w = x.shape
    weights = torch.softmax(x.mean((2, 3)).reshape(n, 2, c // 2, 1, 1), 1)
    net.now(net.channels // 2)
    return (x.reshape(n, 2, c // 2, h, w) * weights).sum(1)


def _mix(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    """What can't be followed."""
    return (
        torch.roll(x, 1, 1),
        torch.softmax(x, 1),
        F.normalize(x, dim=1),
        x[:, ::2].repeat(1, 2, 1, 1)[:, : net.channels],
    )[s.a % 4]


def _repeat(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    if net.channels * 2 > _MOST:
        return x
    net.now(net.channels * 2)
    return x.repeat(1, 2, 1, 1) if s.a % 2 else torch.cat([x, x * 0.5], 1)


def _gate(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    """Spatial attention: one channel meets all."""
    return x * torch.sigmoid(net.conv(x, 1, 3))


def _stack(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    return torch.stack([x, torch.relu(net.conv(x, net.channels))], s.a % 3).sum(s.a % 3)


def _flat(net: RandomNet, x: Tensor, s: Step) -> Tensor:
    """Through a layer that reads all places at once, and back."""
    outputs = 2 + s.a % 5
    x = torch.relu(net.layer(nn.Linear, net.channels * _SIDE * _SIDE, outputs)(x.flatten(1)))
    net.now(outputs)
    return x[:, :, None, None].expand(-1, -1, _SIDE, _SIDE)


STEPS: dict[str, Callable[[RandomNet, Tensor, Step], Tensor]] = {
    "conv": _conv, "conv_norm": _conv_norm, "norm": _norm, "depthwise": _depthwise, "grouped": _grouped,
    "transposed": _transposed, "residual": _residual, "save": _save, "add_saved": _add_saved, "cat_saved": _cat_saved,
    "chunk": _chunk, "uneven": _uneven, "halves": _halves, "shuffle": _shuffle, "squeeze_excite": _squeeze_excite,
    "group_norm": _group_norm, "instance_norm": _instance_norm, "prelu": _prelu, "pixels": _pixels, "pad": _pad,
    "flip": _flip, "linear": _linear, "shared": _shared, "branches": _branches, "mix": _mix, "repeat": _repeat,
    "gate": _gate, "stack": _stack, "flat": _flat,
}  # fmt: skip

steps = st.lists(
    st.builds(Step, st.sampled_from(sorted(STEPS)), st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=9
)
