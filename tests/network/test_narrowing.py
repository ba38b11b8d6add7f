from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from widthwise.luts.errors import InvalidModel, VerificationFailed
from widthwise.network.loading import load_model
from widthwise.network.narrowing import TOLERANCE, _difference, narrow, resize, shapes_of, silenced_difference
from widthwise.network.network import Network


def random_kept(network: Network, rng: random.Random) -> dict[str, list[int]]:
    return {g.name: sorted(rng.sample(range(g.size), rng.randint(1, g.size))) for g in network.free}


def test_two_convolutions_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1))
    small = narrow(model, Network.trace(model, torch.zeros(1, 3, 11, 11)), {"0": [1, 4]})
    assert torch.equal(small[0].weight, model[0].weight[[1, 4]])
    assert torch.equal(small[0].bias, model[0].bias[[1, 4]])
    assert torch.equal(small[2].weight, model[2].weight[:, [1, 4]])
    assert (small[0].out_channels, small[2].in_channels) == (2, 2)


def test_flatten_removes_whole_blocks_of_columns(branches: nn.Module, network: Network) -> None:
    small = narrow(branches, network, {"mixed": [0, 3]})
    columns = [0, 1, 2, 3, 12, 13, 14, 15]  # 2×2 values of channels 0 and 3
    assert torch.equal(small.head.weight, branches.head.weight[:, columns])


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_narrow_equals_silenced_at_random_channels(seed: int) -> None:
    from tests.conftest import randomised
    from widthwise.profiling.conformance import SmallNet

    torch.manual_seed(seed % 97)
    model = randomised(SmallNet(), seed)
    example = torch.randn(2, 3, 8, 8)
    network = Network.trace(model, example)
    kept = random_kept(network, random.Random(seed))
    small = narrow(model, network, kept)
    assert silenced_difference(model, small, network, kept, [example]) <= TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
def test_narrow_equals_silenced_on_torchvision(name: str) -> None:
    from tests.conftest import randomised

    model = randomised(load_model(f"torchvision:{name}"))
    example = torch.randn(1, 3, 64, 64)
    network = Network.trace(model, example)
    kept = random_kept(network, random.Random(1))
    assert silenced_difference(model, narrow(model, network, kept), network, kept, [example]) <= TOLERANCE


def test_the_proof_notices_a_wrong_index(branches: nn.Module, network: Network, example: torch.Tensor) -> None:
    small = narrow(branches, network, {"inner": [0, 2, 3]})
    with torch.no_grad():
        small.outer.weight.copy_(branches.outer.weight[:, [0, 1, 3]])
    assert silenced_difference(branches, small, network, {"inner": [0, 2, 3]}, [example]) > 10 * TOLERANCE


def test_the_proof_notices_a_model_that_does_not_run(
    branches: nn.Module, network: Network, example: torch.Tensor
) -> None:
    small = narrow(branches, network, {"inner": [0]})
    small.outer = nn.Conv2d(2, 13, 1)
    with pytest.raises(VerificationFailed, match="doesn't run"):
        silenced_difference(branches, small, network, {"inner": [0]}, [example])


def test_leading_channels_keep_nothing_of_what_was_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1)).eval()
    example = torch.randn(1, 3, 11, 11)
    network = Network.trace(model, example)
    for channels in (range(2), [1, 4]):
        small = narrow(model, network, {"0": channels}, share=True)
        for parameter in (small[0].weight, small[2].weight):
            assert parameter.is_contiguous()
            assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
        assert torch.equal(small[0].weight, model[0].weight[list(channels)])
        assert torch.equal(small[2].weight, model[2].weight[:, list(channels)])


def test_sharing_copies_only_what_was_cut(branches: nn.Module, network: Network) -> None:
    small = narrow(branches, network, {"inner": [0]}, share=True)
    assert small.mixed.weight.data_ptr() == branches.mixed.weight.data_ptr()
    assert small.inner.weight.data_ptr() != branches.inner.weight.data_ptr()
    assert branches.inner.out_channels == 17
    owned = narrow(branches, network, {"inner": [0]})
    assert owned.mixed.weight.data_ptr() != branches.mixed.weight.data_ptr()


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nope": [0]}, "no channel group 'nope'"),
        ({"stem": []}, "at least one; got 0"),
        ({"stem": [0, 0]}, "distinct channels between 0 and 12"),
        ({"stem": [13]}, "distinct channels between 0 and 12"),
        ({"head": [0]}, "group 'head' is locked: it is the network's output"),
    ],
)
def test_impossible_channels_are_refused(
    branches: nn.Module, network: Network, kept: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(InvalidModel, match=message):
        narrow(branches, network, kept)


def test_resize_rebuilds_the_shapes_of_a_narrow_model(
    branches: nn.Module, network: Network, example: torch.Tensor
) -> None:
    small = narrow(branches, network, {"stem": [1, 5], "left": [2], "mixed": [0, 3, 18]})
    again = resize(type(branches)().eval(), shapes_of(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(example), small(example))


def test_resize_refuses_another_architecture() -> None:
    with pytest.raises(InvalidModel, match="no narrowable module 'x'"):
        resize(nn.Sequential(nn.Conv2d(3, 5, 1)), {"x": (3, 5)})
    with pytest.raises(InvalidModel, match=r"'0' has \(3, 5\) channels, the pruned one \(3, 7\)"):
        resize(nn.Sequential(nn.Conv2d(3, 5, 1)), {"0": (3, 7)})


class _Cancelling(nn.Module):
    """Two large sums that nearly cancel: rounding is a large part of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 509, 1)
        self.plus, self.minus = nn.Conv2d(509, 1, 3, bias=False), nn.Conv2d(509, 1, 3, bias=False)
        with torch.no_grad():
            self.plus.weight.mul_(1e6)
            self.minus.weight.copy_(self.plus.weight + 0.1 * torch.randn_like(self.minus.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        return self.plus(hidden) - self.minus(hidden)


def test_rounding_that_a_network_amplifies_is_told_from_a_wrong_cut() -> None:
    torch.manual_seed(0)
    model, example = _Cancelling(), torch.randn(1, 3, 8, 8)
    network = Network.trace(model, example)
    kept = {"first": sorted(random.Random(0).sample(range(509), 211))}
    small = narrow(model, network, kept)
    if _difference(model, small, network, kept, [example]) <= TOLERANCE:
        pytest.skip("this machine's kernels round both sums alike")
    assert silenced_difference(model, small, network, kept, [example]) < 1e-9
    assert small.first.weight.dtype == torch.float32 and model.first.weight.dtype == torch.float32
    with torch.no_grad():
        small.first.bias += 0.1
    assert silenced_difference(model, small, network, kept, [example]) > 1e-3
