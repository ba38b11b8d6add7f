from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from widthwise.luts.errors import InvalidModel
from widthwise.network.layers import macs
from widthwise.network.loading import load_model
from widthwise.network.narrowing import narrow, tensors
from widthwise.network.network import Network
from widthwise.network.proof import prove
from widthwise.network.tracing import trace_graph


def group_of(network: Network, producer: str) -> str:
    return next(group.name for group in network.groups if producer in group.producers)


def test_residual_add_and_depthwise_share_one_group(network: Network) -> None:
    assert group_of(network, "stem") == group_of(network, "outer")
    assert network.dense == {"stem": 13, "inner": 17, "left": 7, "right": 11, "mixed": 19}


def test_the_output_is_locked_and_says_why(network: Network) -> None:
    locked = {group.name: group.locked for group in network.groups if group.locked}
    assert locked == {"head": "it is the network's output"}


def test_axes_are_affine_in_the_widths(network: Network) -> None:
    widths = {"stem": 2, "inner": 3, "left": 5, "right": 7, "mixed": 11}
    axes = {layer.path: layer.spec(widths).channels for layer in network.layers if layer.geometry.kind != "relu"}
    assert axes["inner"] == (2, 3)
    assert axes["depthwise"] == (2,)
    assert axes["mixed"] == (5 + 7, 11)
    assert axes["head"] == (11 * 2 * 2, 5)


def test_macs_by_hand(network: Network) -> None:
    widths = {"stem": 2, "inner": 3, "left": 5, "right": 7, "mixed": 11}
    by_hand = (
        64 * (27 * 2 + 9 * 2 * 3 + 3 * 2 + 9 * 2 + 2 * 5 + 9 * 2 * 7)  # 8×8 layers
        + 16 * 9 * 12 * 11  # mixed, 4×4
        + 44 * 5
    )
    assert network.macs(widths) == by_hand
    assert sum(macs(spec) for spec in network.specs(widths)) == by_hand


def test_a_functional_convolution_is_fixed_and_counted() -> None:
    network = Network.trace(nn.Conv2d(3, 7, 3), torch.zeros(1, 3, 9, 9))  # as the root, it is traced through
    assert network.free == ()
    assert network.macs({}) == 7 * 7 * 3 * 3 * 3 * 7


def test_kinds_are_the_same_for_modules_and_functions() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.relu6, self.swish = nn.ReLU(), nn.ReLU6(), nn.Hardswish()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.relu(self.relu6(self.swish(x))))

    kinds = [layer.geometry.kind for layer in Network.trace(Both(), torch.zeros(1, 3, 4, 4)).layers]
    assert kinds == ["hardswish", "relu6", "relu", "relu"]


def test_signature_ignores_weights_and_name_but_not_structure(branches: nn.Module, example: torch.Tensor) -> None:
    first = Network.trace(branches, example, name="a").signature
    torch.manual_seed(5)
    assert Network.trace(type(branches)(), example, name="b").signature == first
    assert Network.trace(branches, example.repeat(2, 1, 1, 1)).signature != first


def test_tracing_leaves_the_model_as_it_was(branches: nn.Module, example: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in branches.state_dict().items()}
    branches.train()
    Network.trace(branches, example)
    assert branches.training
    assert all(torch.equal(before[name], tensor) for name, tensor in branches.state_dict().items())


def test_unknown_and_impossible_widths_are_refused(network: Network) -> None:
    with pytest.raises(InvalidModel, match="no prunable group 'stam'"):
        network.require_widths({"stam": 3})
    with pytest.raises(InvalidModel, match="can keep 1 to 13 channels, not 14"):
        network.require_widths({"stem": 14})
    assert network.require_widths({"stem": 4}) == network.dense | {"stem": 4}


def test_a_wrong_input_shape_is_a_readable_error(branches: nn.Module) -> None:
    with pytest.raises(InvalidModel, match=r"branches can't be traced on input 1×4×8×8"):
        Network.trace(branches, torch.zeros(1, 4, 8, 8), name="branches")


def test_control_flow_on_data_is_a_readable_error() -> None:
    class Forked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InvalidModel, match="control flow doesn't depend on the data"):
        Network.trace(Forked(), torch.zeros(1, 3, 4, 4))


class Rolled(nn.Module):
    """Moves channels about, which isn't followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.roll(self.a(x), 1, 1))


class Softened(nn.Module):
    """A softmax over channels: removing one changes all others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.softmax(self.a(x), 1))


class Sums(nn.Module):
    """A concatenation added to a convolution of a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 7, 1)
        self.c = nn.Conv2d(12, 12, 3, padding=1)
        self.d, self.e = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 7, 1)
        self.f = nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(torch.cat([self.d(x), self.e(x)], 1) + self.c(torch.cat([self.a(x), self.b(x)], 1)))


def test_every_layer_depends_on_at_most_one_sum() -> None:
    model = Sums()
    network = Network.trace(model, torch.zeros(1, 3, 6, 6))
    for layer in network.layers:
        assert sum(len(axis.groups) > 1 for axis in layer.axes) <= 1, layer
    widths = {group.name: 2 for group in network.free}
    small = narrow(model, network, {group: range(2) for group in widths})
    assert network.parameters(widths) == sum(p.numel() for p in small.parameters())
    small(torch.zeros(1, 3, 6, 6))


@pytest.mark.parametrize("factory", [Rolled, Softened])
def test_what_is_not_followed_is_locked_with_a_reason(factory: type[nn.Module]) -> None:
    network = Network.trace(factory(), torch.zeros(1, 3, 6, 6))
    touched = [group for group in network.groups if group.name in ("a", "b")]
    assert touched and all(group.locked for group in touched if group.name == "a")
    model = factory()
    narrow(model, network, {group.name: range(1) for group in network.free})(torch.zeros(1, 3, 6, 6))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "googlenet"])
def test_torchvision_networks_are_wholly_prunable_and_their_algebra_is_exact(name: str) -> None:
    """Parameters and every layer's shape at random widths, against the model really narrowed."""
    with torch.device("meta"):
        model = load_model(f"torchvision:{name}")
    example = torch.zeros(1, 3, 64, 64, device="meta")
    network = Network.trace(model, example)
    assert [group.locked for group in network.groups if group.locked] == ["it is the network's output"]
    assert network.parameters(network.dense) == sum(p.numel() for p in model.parameters())
    rng = random.Random(0)
    kept = {group.name: sorted(rng.sample(range(group.size), rng.randint(2, group.size))) for group in network.free}
    widths = {group: len(channels) for group, channels in kept.items()}
    small = narrow(model, network, kept)
    assert network.parameters(widths) == sum(p.numel() for p in small.parameters())
    narrowed = Network.trace(small, example)
    assert narrowed.specs(narrowed.dense) == network.specs(widths)


class Reading(nn.Module):
    """Two convolutions and what is between them."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x)))


def through_a_view(y: torch.Tensor) -> torch.Tensor:
    y.view_as(y).mul_(3.0)
    return y


def through_a_chunk(y: torch.Tensor) -> torch.Tensor:
    y.chunk(2, 1)[0].add_(1.0)
    return y


def through_a_transpose(y: torch.Tensor) -> torch.Tensor:
    y.transpose(2, 3).relu_()
    return y


def through_itself(y: torch.Tensor) -> torch.Tensor:
    z = y.relu_()
    y += 0.5
    return y * z


def through_a_slice(y: torch.Tensor) -> torch.Tensor:
    y[:, :4].mul_(2.0)
    return y


def through_the_same(y: torch.Tensor) -> torch.Tensor:
    z = y.contiguous()
    z += 0.5
    return y * z


def through_an_attribute(y: torch.Tensor) -> torch.Tensor:
    z = y.mT
    z *= 2.0
    return y


def through_moved_dimensions(y: torch.Tensor) -> torch.Tensor:
    z = y.movedim(1, 3)
    z -= 0.25
    return y


@pytest.mark.parametrize("between", [through_the_same, through_an_attribute, through_moved_dimensions, through_itself])
def test_augmented_assignments_to_what_is_read_elsewhere_stay_in_place(
    between: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model, example = Reading(between).eval(), torch.randn(1, 3, 11, 13)
    with torch.no_grad():
        torch.testing.assert_close(trace_graph(model)(example), model(example))


@pytest.mark.parametrize(
    "between",
    [through_a_view, through_a_chunk, through_a_transpose, through_itself, through_a_slice, through_the_same],
)
def test_operations_in_place_on_views_are_followed(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model, example = Reading(between).eval(), torch.randn(1, 3, 11, 13)
    network = Network.trace(model, example)
    assert network.free
    proof = prove(model, network, [example])
    assert proof.difference <= 1e-5 < proof.effect


def test_an_assignment_to_a_part_says_what_to_write_instead() -> None:
    def assigned(y: torch.Tensor) -> torch.Tensor:
        y[:, :2] = 0
        return y

    with pytest.raises(InvalidModel, match=r"item assignment; instead of assigning .* torch\.cat\. widthwise needs"):
        Network.trace(Reading(assigned), torch.zeros(1, 3, 8, 8))


def test_a_model_that_needs_train_mode_is_told_so() -> None:
    class Picky(Reading):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise RuntimeError("call train() first")
            return super().forward(x)

    class Empty(Reading):
        def forward(self, x: torch.Tensor) -> torch.Tensor | None:  # type: ignore[override]
            return super().forward(x) if self.training else None

    with pytest.raises(InvalidModel, match=r"call train\(\) first \(in train mode it can be; .* eval mode too\)"):
        Network.trace(Picky(nn.ReLU()), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvalidModel, match="its output holds no tensor in eval mode"):
        Network.trace(Empty(nn.ReLU()), torch.zeros(1, 3, 8, 8))


def test_channels_picked_by_the_data_stay() -> None:
    def picked(y: torch.Tensor) -> torch.Tensor:
        return y[:, y.mean((0, 2, 3)).topk(8).indices]

    network = Network.trace(Reading(picked), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvalidModel, match=r"no channels that may be removed .*topk"):
        network.require_free()


def test_complex_outputs_are_compared_as_pairs_of_reals() -> None:
    class Spectrum(Reading):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft2(super().forward(x))

    model, example = Spectrum(nn.ReLU()).eval(), torch.randn(1, 3, 11, 13)
    assert [tensor.shape for tensor in tensors({"spectrum": model(example)})] == [(1, 5, 7, 9, 2)]
    proof = prove(model, Network.trace(model, example), [example])
    assert (proof.groups, proof.difference < 1e-5, proof.effect > 1e-3) == (1, True, True)
