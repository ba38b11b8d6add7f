"""The promises every runtime keeps, as tests: for the runtimes shipped, and for yours.

Subclass :class:`RuntimeConformance` in a pytest module, say which target, and run pytest::

    from widthwise.profiling.conformance import RuntimeConformance
    from widthwise.profiling.target import Target

    class TestMine(RuntimeConformance):
        target = Target.parse("mine:cpu")

Needs pytest. Nothing here asserts how fast anything is.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from widthwise.luts.errors import InvalidTarget, TableMismatch
from widthwise.luts.records import Role
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.profiling.faithful import TOLERANCES, busy_threads, output_error
from widthwise.profiling.profiler import Profiler, candidate_for, open_table
from widthwise.profiling.runtimes import Runtime, UnsupportedLayer, open_runtime
from widthwise.profiling.target import Target

__all__ = ["RuntimeConformance", "SmallNet"]

_WIDTHS = {"stem": 8, "inner": 5, "right": 7}


class SmallNet(nn.Module):
    """Residual add, depthwise, concatenation, flatten → linear with H·W > 1, in distinct prime sizes; takes 3×8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(13)
        self.inner = nn.Conv2d(13, 17, 3, padding=1)
        self.outer = nn.Conv2d(17, 13, 1)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13, bias=False)
        self.left = nn.Conv2d(13, 7, 1)
        self.right = nn.Conv2d(13, 11, 3, padding=1)
        self.mixed = nn.Conv2d(18, 19, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(19 * 2 * 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        x = self.depthwise(x)
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        x = self.pool(torch.sigmoid(self.mixed(x)))
        logits: torch.Tensor = self.head(torch.flatten(x, 1))
        return logits


class RuntimeConformance:
    """Tests of one runtime; set ``target``. Without its hardware or library here they skip, and say why."""

    target: Target

    @pytest.fixture
    def runtime(self) -> Runtime:
        """A fresh runtime of the target."""
        try:
            return open_runtime(self.target)
        except InvalidTarget as error:
            pytest.skip(str(error))

    @pytest.fixture
    def model(self) -> nn.Module:
        """The network all is tried on; batch norms are no identities."""
        torch.manual_seed(0)
        model = SmallNet().eval()
        with torch.no_grad():
            for tensor in (model.stem_bn.weight, model.stem_bn.running_var):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            for tensor in (model.stem_bn.bias, model.stem_bn.running_mean):
                tensor.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
        return model

    @pytest.fixture
    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)

    @pytest.fixture
    def network(self, runtime: Runtime, model: nn.Module, example: tuple[torch.Tensor, ...]) -> Network:
        network = Network.trace(model, example, name="conformance")
        return fused(network) if runtime.fuses else network

    def test_references_take_time(self, runtime: Runtime) -> None:
        with runtime.active():
            references = runtime.references()
            for session in (references.compute, references.memory):
                assert all(0 < session.run() < 60 for _ in range(3))

    def test_a_narrowed_network_and_each_of_its_layers_take_time(
        self, runtime: Runtime, model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
    ) -> None:
        with runtime.active():
            session = runtime.network(candidate_for(model, network, network.dense | _WIDTHS, example))
            for _ in range(3):
                assert session.run() > 0
                assert session.run_layers() > 0
            reports = session.read_layers()
            assert len(reports) == 3
            for layers in reports:
                assert len(layers) == len(network.layers)
                assert all(math.isfinite(seconds) and seconds >= 0 for seconds in layers)
                assert sum(layers) > 0
            session.run_layers()
            assert len(session.read_layers()) == 1

    def test_outputs_are_those_of_pytorch(
        self, runtime: Runtime, model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
    ) -> None:
        """Dense and narrowed; a runtime that computes nothing, as the fake one, is let off."""
        for widths in (network.dense, network.dense | _WIDTHS):
            candidate = candidate_for(model, network, widths, example)
            with runtime.active():
                error = output_error(runtime.network(candidate), candidate)
            if error is None:
                pytest.skip(f"{runtime.target} computes nothing")
            assert error <= TOLERANCES[self.target.dtype], f"outputs differ by {error:.1e} at widths {widths}"

    def test_it_takes_no_more_threads_than_it_may(
        self, runtime: Runtime, model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
    ) -> None:
        with runtime.active():
            session = runtime.network(candidate_for(model, network, network.dense, example))
            busy = busy_threads(session.run)
        if busy is None or self.target.device != "cpu":
            pytest.skip("threads can't be counted here")
        assert busy <= self.target.threads

    def test_the_users_model_is_left_alone(
        self, runtime: Runtime, model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
    ) -> None:
        before = copy.deepcopy(model.state_dict())
        with runtime.active():
            runtime.network(candidate_for(model, network, network.dense, example)).run()
        assert before.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert tensor.device == before[name].device and tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])

    def test_convolutions_can_be_timed_alone(self, runtime: Runtime, network: Network) -> None:
        with runtime.active():
            for layer, spec in zip(network.layers, network.specs(network.dense | _WIDTHS), strict=True):
                if layer.geometry.kind == "conv2d":
                    assert runtime.layer(spec).run() > 0

    def test_layers_it_does_not_know_are_said_to_be_unsupported(self, runtime: Runtime) -> None:
        if self.target.runtime == "fake":
            pytest.skip("the fake runtime times anything")
        with pytest.raises(UnsupportedLayer):
            runtime.layer(LayerSpec(Geometry("no such kind", ((1, 0),), ((1, 0),)), (3,)))

    def test_what_is_active_is_undone(self, runtime: Runtime) -> None:
        threads = torch.get_num_threads()
        with pytest.raises(KeyError), runtime.active():
            raise KeyError
        assert torch.get_num_threads() == threads

    def test_versions_and_device_are_named(self, runtime: Runtime) -> None:
        assert runtime.versions()
        assert all(runtime.versions().values())
        assert all(isinstance(value, str | int) for value in runtime.device_fields().values())

    def test_the_machine_is_watched(self, runtime: Runtime) -> None:
        with runtime.active():
            references = runtime.references()
            finish = runtime.watch()
            references.compute.run()
            assert all(math.isfinite(value) for value in finish().as_dict().values())

    def test_a_profile_fills_a_table_only_this_target_may_continue(
        self,
        runtime: Runtime,
        model: nn.Module,
        network: Network,
        example: tuple[torch.Tensor, ...],
        tmp_path: Path,
    ) -> None:
        path = tmp_path / "device.lut"
        with open_table(path, runtime) as lut, runtime.active():
            report = Profiler(model, network, example, runtime=runtime, lut=lut).run(time_s=0.5, networks=2)
            roles = [record.role for record in lut.networks(network.signature)]
            assert report.dense_ms > 0
            assert report.layers >= 3 * len(network.layers)
            assert len(roles) == 3 and roles[0] is Role.DENSE
        other = Target(
            self.target.runtime, self.target.device, self.target.threads + 1, self.target.dtype, "contiguous"
        )
        with pytest.raises(TableMismatch, match="threads"):
            open_table(path, open_runtime(other))
