"""Networks as data: what is said and rebuilt exactly, and what hostile data can't do."""

from __future__ import annotations

import json
import operator
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.pruning.nets import ARCHITECTURES, EXAMPLE, make
from widthwise.luts.errors import InvalidModel
from widthwise.network import vocabulary
from widthwise.network.portable import GraphData, NotPortable, as_data, from_data


class _Odd(nn.Module):
    """Arguments of every kind: nodes, tuples, lists, slices, dicts by keyword, dtypes, infinities, free parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, (3, 1), padding="same", dilation=(1, 2), padding_mode="zeros", bias=False)
        self.up = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)
        self.norm = nn.GroupNorm(7, 7, eps=1e-3)
        self.act = nn.PReLU(7)
        self.gamma = nn.Parameter(torch.rand(7, 1, 1))
        self.register_buffer("shift", torch.rand(1, 7, 1, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.act(self.norm(self.conv(x))) * self.gamma + self.shift
        x = torch.clamp(x, min=float("-inf"), max=0.7)[:, :, 1:, ...]
        left, right = torch.split(self.up(x), [3, 4], dim=1)
        x = torch.cat((left, functional.pad(right, (0, 0, 0, 0))), dim=1)
        x = x.reshape(x.shape[0], x.size(1), -1).mean(-1, dtype=torch.float64)
        return {"out": x.float(), "sums": x.sum(dim=(0, 1))}


def through_json(model: nn.Module) -> nn.Module:
    again = from_data(GraphData.model_validate_json(as_data(model.eval()).model_dump_json()))
    again.load_state_dict(model.state_dict(), assign=True)
    return again


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_comes_back_exactly(name: str) -> None:
    model = make(name)
    again = through_json(model)
    with torch.no_grad():
        assert torch.equal(again(EXAMPLE), model(EXAMPLE))
    assert list(again.state_dict()) and set(again.state_dict()) == set(model.state_dict())
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_arguments_of_every_kind_come_back() -> None:
    torch.manual_seed(0)
    model = _Odd().eval()
    with torch.no_grad():
        expected, got = model(EXAMPLE), through_json(model)(EXAMPLE)
    assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in expected)


def test_a_rebuilt_network_trains() -> None:
    again = through_json(make("residual")).train()
    again(EXAMPLE).square().mean().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


class _Own(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_subclasses_are_said_by_what_they_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Own(3, 5, 1), nn.ReLU()).eval()
    with torch.no_grad():
        assert torch.equal(through_json(model)(EXAMPLE), model(EXAMPLE))


class _Half(nn.Module):
    """Keeps a layer it never runs, and one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(7)
        self.again = self.used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(x)


def test_weights_that_no_operation_reads_stay() -> None:
    model = _Half().eval()
    again = through_json(model)
    assert torch.equal(again(EXAMPLE), model(EXAMPLE))
    assert set(again.state_dict()) == set(model.state_dict())


def test_what_is_idle_in_eval_mode_is_left_out() -> None:
    from torchvision.ops import StochasticDepth

    model = nn.Sequential(nn.Conv2d(3, 5, 1), StochasticDepth(0.3, "row")).eval()
    with torch.no_grad():
        assert torch.equal(through_json(model)(EXAMPLE), model(EXAMPLE))
    with pytest.raises(NotPortable, match="stochastic_depth"):
        as_data(model.train())


class _Saves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x)


class _Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.MultiLabelMarginLoss()), r"0 is a .*MultiLabelMarginLoss, no plain module of torch\.nn"),
        (_Saves(), "it calls .*fft"),
        (_Decides(), "it can't be traced"),
    ],
)
def test_what_cannot_be_said_names_the_part(model: nn.Module, message: str) -> None:
    with pytest.raises(NotPortable, match=message):
        as_data(model)


def _edited(change: dict[str, Any]) -> GraphData:
    """The graph of a small network with its second operation changed."""
    data = json.loads(as_data(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())).model_dump_json())
    data["operations"][1] |= change
    return GraphData.model_validate(data)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "call_function", "target": "os.system", "args": ["echo"]},
        {"op": "call_function", "target": "torch.load", "args": ["weights.pt"]},
        {"op": "call_function", "target": "torch.hub.load", "args": []},
        {"op": "call_function", "target": "getattr", "args": [{"node": "input_1"}, "__class__"]},
        {"op": "call_function", "target": "getattr", "args": ["", "shape", {"node": "input_1"}]},
        {"op": "call_function", "target": "operator.attrgetter", "args": ["x"]},
        {"op": "call_method", "target": "register_hook", "args": [{"node": "input_1"}]},
        {"op": "call_method", "target": "__reduce__", "args": [{"node": "input_1"}]},
        {"op": "call_module", "target": "nope"},
        {"op": "call_module", "target": '0")); import os; ("'},
        {"op": "get_attr", "target": "__dict__", "args": []},
        {"op": "placeholder", "target": "*args, x=__import__('os')", "args": []},
        {"args": [{"node": "later"}]},
        {"args": [{"code": "1"}]},
        {"args": [{"node": "input_1", "more": 1}]},
        {"args": [{"dtype": "load"}]},
        {"args": [[[[[[[[[[[[1]]]]]]]]]]]]},
        {"name": "input_1"},
    ],
)
def test_hostile_operations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidModel, match="the stored graph"):
        from_data(_edited(change))


@pytest.mark.parametrize(
    "change", [{"name": "x = 1; import os"}, {"kwargs": {"a=__import__('os')": 1}}, {"op": "import"}, {"hook": "code"}]
)
def test_hostile_names_do_not_even_parse(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        _edited(change)


def test_hostile_modules_are_refused() -> None:
    data = json.loads(as_data(nn.Sequential(nn.Linear(3, 5))).model_dump_json())
    for kind, options in (("Module", {}), ("DataParallel", {}), ("Linear", {"in_features": -4}), ("Linear", {"x": 1})):
        data["modules"]["0"] = {"kind": kind, "options": options}
        with pytest.raises(InvalidModel, match="the stored graph"):
            from_data(GraphData.model_validate(data))


def test_a_module_of_absurd_size_takes_no_memory() -> None:
    data = json.loads(as_data(nn.Sequential(nn.Linear(3, 5))).model_dump_json())
    data["modules"]["0"]["options"] |= {"in_features": 10**6, "out_features": 10**6}
    assert from_data(GraphData.model_validate(data)).get_parameter("0.weight").is_meta


@given(
    text=st.text(st.characters(max_codepoint=127), max_size=30),
    op=st.sampled_from(["call_function", "call_method", "call_module", "get_attr"]),
)
@settings(max_examples=30, deadline=None)
def test_no_text_is_a_target_unless_listed(text: str, op: str) -> None:
    if text in (*vocabulary.FUNCTIONS, *vocabulary.METHODS, "0", "1", "0.weight", "0.bias"):
        return
    with pytest.raises(InvalidModel, match="the stored graph"):
        from_data(_edited({"op": op, "target": text, "args": [{"node": "input_1"}]}))


def test_the_vocabulary_holds_nothing_that_reaches_outside() -> None:
    for name, function in vocabulary.FUNCTIONS.items():
        module = str(getattr(function, "__module__", "")) or "torch"
        assert function is getattr or module.split(".")[0] in ("torch", "_operator", "operator", "None"), name
    assert not vocabulary.METHODS & {"apply_", "map_", "register_hook", "backward", "numpy", "tofile", "share_memory_"}
    assert os.system not in vocabulary.FUNCTIONS.values() and operator.attrgetter not in vocabulary.FUNCTIONS.values()
    assert not any("load" in name or "save" in name or "compile" in name for name in vocabulary.FUNCTIONS)


def test_names_with_dashes_come_back() -> None:
    """Module names with dashes, as torchvision's RegNet has, are no identifiers and still come back."""
    model = nn.Sequential()
    model.add_module("block-1", nn.Conv2d(3, 5, 1))
    assert torch.equal(through_json(model)(EXAMPLE), model(EXAMPLE))
