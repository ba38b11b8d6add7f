"""The constructs CNNs are made of, each as small as can be, with distinct sizes: what the proof is run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CONSTRUCTS", "Case", "Net"]


class Net(nn.Module):
    """A forward function over named layers."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._run = run

    def forward(self, x: Tensor) -> object:
        return self._run(self, x)


class TwoInputs(Net):
    """Likewise, over two images."""

    def forward(self, x: Tensor, y: Tensor) -> object:  # type: ignore[override]
        return self._run(self, x, y)


@dataclass(frozen=True)
class Case:
    """A construct, and what is expected of it.

    Args:
        factory: makes the model.
        free: name → size of the groups that may be narrowed.
        locked: name → part of the reason, of the groups that may not, but for those of the output.
        inputs: shapes.
    """

    factory: Callable[[], nn.Module]
    free: Mapping[str, int]
    locked: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ((2, 3, 8, 8),)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


def _residual_chain(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = torch.relu(x + m.b1(torch.relu(m.a1(x))))
    x = x + m.b2(torch.relu(m.a2(x)))
    return m.head(x)


def _concat_of_concat(m: Net, x: Tensor) -> Tensor:
    inner = torch.cat([m.a(x), m.b(x)], 1)
    return m.head(torch.relu(m.norm(torch.cat([inner, m.c(x), inner], 1))))


def _dense_block(m: Net, x: Tensor) -> Tensor:
    features = [m.stem(x)]
    for norm1, conv1, norm2, conv2 in ((m.n1, m.a1, m.m1, m.b1), (m.n2, m.a2, m.m2, m.b2)):
        reduced = conv1(torch.relu(norm1(torch.cat(features, 1))))
        features.append(conv2(torch.relu(norm2(reduced))))
    return m.head(torch.cat(features, 1))


def _chunk(m: Net, x: Tensor) -> Tensor:
    a, b = m.a(x).chunk(2, dim=1)
    return m.head(a + m.b(b))


def _gated(m: Net, x: Tensor) -> Tensor:
    return m.head(F.glu(m.a(x), dim=1))


def _csp(m: Net, x: Tensor) -> Tensor:
    """YOLO's C2f: both halves and what is computed from one of them are put together."""
    parts = [torch.chunk(m.a(x), 2, 1)[i] for i in range(2)]
    parts.append(m.b(parts[-1]))
    return m.head(torch.cat(parts, 1))


def _split_by_size(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    a, b = x.split(x.size(1) // 2, 1)
    return m.head(a * torch.sigmoid(b))


def _split_written(m: Net, x: Tensor) -> Tensor:
    a, b = torch.split(m.a(x), [5, 8], dim=1)
    return m.head(torch.cat([m.b(a), b], 1))


def _sliced_half(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    half = x.shape[1] // 2
    return m.head(torch.cat([m.b(x[:, :half]), x[:, half:]], 1))


def _sliced_written(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(torch.cat([x[:, 4:], m.b(x[:, :4])], 1))


def _shuffle(m: Net, x: Tensor) -> Tensor:
    x = torch.cat([m.a(x), m.b(x)], 1)
    n, c, h, w = x.size()
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
    return m.head(m.c(x))


def _squeeze_excite(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(x * torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3), keepdim=True))))))


def _squeeze_excite_linear(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    n, c, _, _ = x.size()
    scale = torch.sigmoid(m.up(torch.relu(m.down(F.adaptive_avg_pool2d(x, 1).view(n, c)))))
    return m.head(x * scale.view(n, c, 1, 1).expand_as(x))


def _split_attention(m: Net, x: Tensor) -> Tensor:
    """Two branches weighted by a softmax over the branches, as in SK and ResNeSt."""
    x = m.a(x)
    n, c, h, w = x.shape
    branches = x.reshape(n, 2, c // 2, h, w)
    gap = m.fc(branches.sum(1).mean((2, 3), keepdim=True))
    weights = torch.softmax(gap.view(n, 2, c // 2, 1, 1), 1)
    return m.head((branches * weights).sum(1))


def _unet(m: Net, x: Tensor) -> Tensor:
    a = torch.relu(m.a(x))
    b = torch.relu(m.b(F.max_pool2d(a, 2)))
    c = torch.relu(m.c(F.max_pool2d(b, 2)))
    b = torch.relu(m.d(torch.cat([m.up1(c), b], 1)))
    return m.head(torch.cat([m.up2(b), a], 1))


def _option_a(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
    return m.head(torch.relu(m.c(m.b(x)) + shortcut))


def _option_a_by_width(m: Net, x: Tensor) -> Tensor:
    """The zero channels are made by multiplying and put behind."""
    x = m.a(x)
    pooled = F.avg_pool2d(x, 2)
    return m.head(torch.relu(m.b(x) + torch.cat([pooled, pooled.mul(0)], 1)))


def _shared(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    for _ in range(3):
        x = torch.relu(m.b(x))
    return m.head(x)


def _shared_head(m: Net, x: Tensor) -> list[Tensor]:
    """One head over two levels, as in RetinaNet; only its inner convolution is free."""
    fine = m.a(x)
    coarse = m.b(F.max_pool2d(fine, 2))
    return [m.out(torch.relu(m.tower(level))) for level in (m.lat1(fine), m.lat2(coarse))]


def _several_outputs(m: Net, x: Tensor) -> dict[str, object]:
    x = m.a(x)
    return {"one": m.one(x), "more": (m.two(torch.relu(x)), x.mean((2, 3)).sum(1))}


def _nhwc(m: Net, x: Tensor) -> Tensor:
    x = m.a(x).permute(0, 2, 3, 1)
    x = m.out(F.gelu(m.hidden(x)))
    return m.head(x.permute(0, 3, 1, 2))


class Same(nn.Conv2d):
    """A convolution that pads by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised over its inputs."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Activated(nn.BatchNorm2d):
    """A norm with its activation."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of an image."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WithParameter(nn.Module):
    """A scale per channel that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 7), conv(7, 11)
        self.c, self.head = conv(11, 13), conv(13, 5)
        self.scale = nn.Parameter(torch.rand(11, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x)) * self.scale))  # type: ignore[no-any-return]


def _sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _with_norm(norm: nn.Module) -> nn.Module:
    return Net(lambda m, x: m.head(torch.relu(m.norm(m.a(x)))), a=conv(3, 12, 3), norm=norm, head=conv(12, 5))


CONSTRUCTS: dict[str, Case] = {
    "residual chain": Case(
        lambda: Net(
            _residual_chain,
            stem=conv(3, 13),
            a1=conv(13, 7, 3),
            b1=conv(7, 13),
            a2=conv(13, 11),
            b2=conv(11, 13, 3),
            head=conv(13, 5),
        ),
        {"stem": 13, "a1": 7, "a2": 11},
    ),
    "concat of concat, one part twice": Case(
        lambda: Net(
            _concat_of_concat, a=conv(3, 5), b=conv(3, 7), c=conv(3, 11), norm=nn.BatchNorm2d(35), head=conv(35, 3)
        ),
        {"a": 5, "b": 7, "c": 11},
    ),
    "dense block": Case(
        lambda: Net(
            _dense_block,
            stem=conv(3, 13),
            n1=nn.BatchNorm2d(13),
            a1=conv(13, 11),
            m1=nn.BatchNorm2d(11),
            b1=conv(11, 7, 3),
            n2=nn.BatchNorm2d(20),
            a2=conv(20, 17),
            m2=nn.BatchNorm2d(17),
            b2=conv(17, 5, 3),
            head=conv(25, 3),
        ),
        {"stem": 13, "a1": 11, "b1": 7, "a2": 17, "b2": 5},
    ),
    "chunk": Case(lambda: Net(_chunk, a=conv(3, 14, 3), b=conv(7, 7), head=conv(7, 5)), {"a": 7}),
    "glu": Case(lambda: Net(_gated, a=conv(3, 14, 3), head=conv(7, 5)), {"a": 7}),
    "chunk and concat (C2f)": Case(
        lambda: Net(_csp, a=conv(3, 14), b=conv(7, 11, 3), head=conv(25, 5)), {"a": 7, "b": 11}
    ),
    "split by a computed size": Case(lambda: Net(_split_by_size, a=conv(3, 14, 3), head=conv(7, 5)), {"a": 7}),
    "split at written sizes": Case(
        lambda: Net(_split_written, a=conv(3, 13), b=conv(5, 7), head=conv(15, 3)), {"b": 7}, {"a": "split at places"}
    ),
    "slices at half": Case(
        lambda: Net(_sliced_half, a=conv(3, 14), b=conv(7, 11), head=conv(18, 5)), {"a": 7, "b": 11}
    ),
    "slices at a written place": Case(
        lambda: Net(_sliced_written, a=conv(3, 11), b=conv(4, 5), head=conv(12, 3)),
        {"a": 7, "b": 5},
        {"a#2": "sliced at places"},
    ),
    "slice of all (GhostNet)": Case(
        lambda: Net(
            lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], 1)[:, :18]), a=conv(3, 7), b=conv(3, 11), head=conv(18, 5)
        ),
        {"a": 7, "b": 11},
    ),
    "channel shuffle": Case(
        lambda: Net(_shuffle, a=conv(3, 7), b=conv(3, 7), c=conv(14, 11), head=conv(11, 5)), {"a": 7, "c": 11}
    ),
    "channel shuffle module": Case(
        lambda: _sequential(conv(3, 14), nn.ChannelShuffle(2), conv(14, 11), nn.ReLU(), conv(11, 5)), {"0": 7, "2": 11}
    ),
    "depthwise": Case(
        lambda: _sequential(conv(3, 11), conv(11, 11, 3, groups=11), nn.BatchNorm2d(11), conv(11, 5)), {"0": 11}
    ),
    "depthwise with multiplier": Case(
        lambda: _sequential(conv(3, 7), conv(7, 21, 3, groups=7), nn.BatchNorm2d(21), conv(21, 5)), {"0": 7}
    ),
    "grouped convolution": Case(
        lambda: _sequential(conv(3, 14), nn.ReLU(), conv(14, 22, 3, groups=2), nn.BatchNorm2d(22), conv(22, 5)),
        {"0": 7, "2": 11},
    ),
    "squeeze-excite": Case(
        lambda: Net(_squeeze_excite, a=conv(3, 13, 3), down=conv(13, 7), up=conv(7, 13), head=conv(13, 5)),
        {"a": 13, "down": 7},
    ),
    "squeeze-excite, linear": Case(
        lambda: Net(
            _squeeze_excite_linear, a=conv(3, 13, 3), down=nn.Linear(13, 7), up=nn.Linear(7, 13), head=conv(13, 5)
        ),
        {"a": 13, "down": 7},
    ),
    "split attention": Case(lambda: Net(_split_attention, a=conv(3, 14, 3), fc=conv(7, 14), head=conv(7, 5)), {"a": 7}),
    "flatten to linear": Case(
        lambda: _sequential(
            conv(3, 7, 3), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(42, 11), nn.ReLU(), nn.Linear(11, 5)
        ),
        {"0": 7, "3": 11},
    ),
    "transposed convolution": Case(
        lambda: _sequential(
            conv(3, 7), nn.ConvTranspose2d(7, 11, 3, stride=2), nn.BatchNorm2d(11), nn.ReLU(), conv(11, 5)
        ),
        {"0": 7, "1": 11},
    ),
    "grouped transposed convolution": Case(
        lambda: _sequential(conv(3, 14), nn.ConvTranspose2d(14, 22, 2, stride=2, groups=2), nn.ReLU(), conv(22, 5)),
        {"0": 7, "1": 11},
    ),
    "depthwise transposed convolution": Case(
        lambda: _sequential(conv(3, 7), nn.ConvTranspose2d(7, 14, 2, stride=2, groups=7), nn.ReLU(), conv(14, 5)),
        {"0": 7},
    ),
    "U-Net": Case(
        lambda: Net(
            _unet,
            a=conv(3, 5, 3),
            b=conv(5, 7, 3),
            c=conv(7, 11, 3),
            up1=nn.ConvTranspose2d(11, 13, 2, stride=2),
            d=conv(20, 17, 3),
            up2=nn.ConvTranspose2d(17, 19, 2, stride=2),
            head=conv(24, 3),
        ),
        {"a": 5, "b": 7, "c": 11, "up1": 13, "d": 17, "up2": 19},
    ),
    "group norm": Case(lambda: _with_norm(nn.GroupNorm(4, 12)), {"a": 4}),
    "group norm of one group": Case(lambda: _with_norm(nn.GroupNorm(1, 12)), {}, {"a": "statistics over all channels"}),
    "instance norm": Case(lambda: _with_norm(nn.InstanceNorm2d(12, affine=True, track_running_stats=False)), {"a": 12}),
    "plain instance norm": Case(lambda: _with_norm(nn.InstanceNorm2d(12)), {"a": 12}),
    "layer norm over channels": Case(lambda: _with_norm(LayerNorm2d(12)), {}, {"a": "statistics over all channels"}),
    "layer norm over space": Case(lambda: _with_norm(nn.LayerNorm([8, 8])), {"a": 12}),
    "PReLU": Case(
        lambda: _sequential(conv(3, 7), nn.PReLU(7), conv(7, 11), nn.PReLU(), conv(11, 5)), {"0": 7, "2": 11}
    ),
    "pixel shuffle": Case(lambda: _sequential(conv(3, 28), nn.PixelShuffle(2), conv(7, 5)), {"0": 7}),
    "pixel unshuffle": Case(lambda: _sequential(conv(3, 7), nn.PixelUnshuffle(2), conv(28, 5)), {"0": 7}),
    "weight sharing": Case(lambda: Net(_shared, a=conv(3, 7), b=conv(7, 7, 3), head=conv(7, 5)), {"a": 7}),
    "one head for two levels": Case(
        lambda: Net(
            _shared_head,
            a=conv(3, 7),
            b=conv(7, 11),
            lat1=conv(7, 13),
            lat2=conv(11, 13),
            tower=conv(13, 17, 3),
            out=conv(17, 5),
        ),
        {"a": 7, "b": 11, "lat1": 13, "tower": 17},
    ),
    "option-A shortcut": Case(
        lambda: Net(_option_a, a=conv(3, 5), b=conv(5, 7, 3, stride=2), c=conv(7, 11), head=conv(11, 3)),
        {"a": 5, "b": 7},
        {"c": "meets channels that can't change"},
    ),
    "option-A shortcut by concatenation": Case(
        lambda: Net(_option_a_by_width, a=conv(3, 5), b=conv(5, 10, 3, stride=2), head=conv(10, 3)), {"a": 5}
    ),
    "functional calls": Case(
        lambda: Net(
            lambda m, x: m.head(
                F.interpolate(
                    F.hardswish(F.dropout(F.max_pool2d(F.leaky_relu(m.a(x)), 2), training=m.training)), scale_factor=2
                )
            ),
            a=conv(3, 7, 3),
            head=conv(7, 5),
        ),
        {"a": 7},
    ),
    "several inputs": Case(
        lambda: TwoInputs(
            lambda m, x, y: m.head(torch.relu(m.a(x) + m.b(y)) * 2.0), a=conv(3, 7), b=conv(4, 7, 3), head=conv(7, 5)
        ),
        {"a": 7},
        inputs=((2, 3, 8, 8), (2, 4, 8, 8)),
    ),
    "outputs in tuples and dicts": Case(
        lambda: Net(_several_outputs, a=conv(3, 7), one=conv(7, 5), two=conv(7, 11)), {}, {"a": "reduces the channels"}
    ),
    "convolution subclass": Case(
        lambda: _sequential(conv(3, 7), Same(7, 11, 3), Activated(11), conv(11, 5)), {"0": 7, "1": 11}
    ),
    "convolution subclass that mixes": Case(
        lambda: _sequential(conv(3, 7), Standardised(7, 11, 3), nn.ReLU(), conv(11, 5)),
        {},
        {"0": "a Standardised, whose channels depend on each other", "1": "a Standardised, whose channels depend"},
    ),
    "linear over the last axis": Case(
        lambda: Net(_nhwc, a=conv(3, 7), hidden=nn.Linear(7, 13), out=nn.Linear(13, 11), head=conv(11, 5)),
        {"a": 7, "hidden": 13, "out": 11},
    ),
    "1-D": Case(
        lambda: _sequential(
            nn.Conv1d(3, 7, 3),
            nn.BatchNorm1d(7),
            nn.ReLU(),
            nn.ConvTranspose1d(7, 11, 3),
            nn.MaxPool1d(2),
            nn.Conv1d(11, 5, 1),
        ),
        {"0": 7, "3": 11},
        inputs=((2, 3, 16),),
    ),
    "3-D": Case(
        lambda: _sequential(
            nn.Conv3d(3, 7, 3), nn.BatchNorm3d(7), nn.ReLU(), nn.Conv3d(7, 11, 1), nn.AvgPool3d(2), nn.Conv3d(11, 5, 1)
        ),
        {"0": 7, "3": 11},
        inputs=((2, 3, 6, 6, 6),),
    ),
    "a parameter of its own": Case(WithParameter, {"a": 7, "c": 13}, {"b": "meets the parameter 'scale'"}),
    "softmax over channels": Case(
        lambda: Net(lambda m, x: m.head(torch.softmax(m.a(x), 1)), a=conv(3, 7), head=conv(7, 5)),
        {},
        {"a": "'softmax'"},
    ),
    "reshaped to a written number": Case(
        lambda: Net(lambda m, x: m.head(m.a(x).reshape(-1, 7, 64).mean(2)), a=conv(3, 7), head=nn.Linear(7, 5)),
        {},
        {"a": "a number written in the code"},
    ),
    "a number computed from the width": Case(
        lambda: Net(lambda m, x: m.head(m.a(x) / m.a(x).size(1) ** 0.5), a=conv(3, 7), head=conv(7, 5)),
        {},
        {"a": "a number computed from its size"},
    ),
    "rolled channels": Case(
        lambda: Net(lambda m, x: m.head(torch.roll(m.a(x), 1, 1)), a=conv(3, 7), head=conv(7, 5)),
        {},
        {"a": "flows into 'roll'"},
    ),
    "flipped channels": Case(
        lambda: Net(lambda m, x: m.head(torch.flip(m.a(x), [1])), a=conv(3, 7), head=conv(7, 5)), {"a": 7}
    ),
    "weights used twice": Case(
        lambda: Net(
            lambda m, x: m.head(F.conv2d(m.b(m.a(x)), m.b.weight)), a=conv(3, 7), b=conv(7, 7), head=conv(7, 5)
        ),
        {},
        {"a": "'b' is used otherwise than by calling it", "b": "'b' is used otherwise"},
    ),
    "weights used otherwise": Case(
        lambda: Net(lambda m, x: m.head(F.conv2d(m.a(x), m.b.weight)), a=conv(3, 7), b=conv(7, 11), head=conv(11, 5)),
        {},
        {"a": "flows into 'conv2d'"},
    ),
}
