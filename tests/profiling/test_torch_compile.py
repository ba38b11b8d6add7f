"""Inductor's kernels find their layers, none is lost, and every network is compiled on its own."""

from __future__ import annotations

import gc
import math
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.network.fusion import fused
from widthwise.network.network import Network
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import inductor, open_runtime
from widthwise.profiling.runtimes.deployment import owners
from widthwise.profiling.runtimes.reports import by_layer
from widthwise.profiling.target import Target

TARGET = Target.parse("torch-compile:cpu")


class Block(nn.Module):
    """Two convolutions into one addition, of which inductor merges it with the second, and the graph's rules with the
    first; a depthwise one; and a pooling that is a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.main = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.short = nn.Conv2d(16, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.head = nn.Linear(24 * 6 * 6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.main(x)) + self.short(x))
        x = nn.functional.relu6(self.depthwise(x))
        x = nn.functional.max_pool2d(x, 2)
        logits: torch.Tensor = self.head(torch.flatten(x, 1))
        return logits


@torch.fx.wrap
def broken(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return x + 1


class Broken(nn.Module):
    """One operation that PyTorch runs and doesn't compile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return broken(self.conv(x))


@pytest.fixture(scope="module", autouse=True)
def compiler() -> str:
    """Skips all of this, visibly, where nothing can be compiled."""
    try:
        return inductor.cpp_compiler()
    except InvalidTarget as error:
        pytest.skip(str(error))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture
def example() -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture
def network(model: nn.Module, example: tuple[torch.Tensor, ...]) -> Network:
    return fused(Network.trace(model, example, name="block"))


def session_of(model: nn.Module, network: Network, example: tuple[torch.Tensor, ...], **widths: int) -> Any:
    return open_runtime(TARGET).network(candidate_for(model, network, network.dense | widths, example))


def children() -> set[str]:
    return {child for task in Path("/proc/self/task").glob("*/children") for child in task.read_text().split()}


def test_every_kernel_counts_with_its_layer_and_none_is_lost(
    model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
) -> None:
    with open_runtime(TARGET).active():
        session = session_of(model, network, example, stem=11)
        wall_s, kernels = session.compiled.run_stamped()
    generated = Path(session.compiled.wrapper.plain.co_filename).read_text().partition("def call(")[2]
    called = re.findall(r"^ +(?:\w+ = )?(?:cpp_\w+|torch\.ops\.\w+\.|extern_kernels\.)", generated, re.MULTILINE)
    assert len(kernels) == len(called)
    assert re.search(r"^ +\w+, = args$", generated, re.MULTILINE)  # weights are frozen, only the example is given

    assert all(kernel.names for kernel in kernels)
    owner_of = owners(network)
    order = [network.layers[kernel.owner(owner_of) or 0].name for kernel in kernels]
    assert set(order) == {layer.name for layer in network.layers}
    convolutions = [name for name in dict.fromkeys(order) if name in ("stem", "main", "short", "depthwise", "head")]
    assert sorted(convolutions[1:3]) == ["main", "short"]
    assert convolutions[:1] + convolutions[3:] == ["stem", "depthwise", "head"]

    layers = by_layer(kernels, owner_of)
    assert all(seconds > 0 for seconds in layers)
    assert math.isclose(sum(layers), sum(kernel.seconds for kernel in kernels))
    assert sum(layers) <= wall_s


def test_narrowed_copies_never_fall_back_to_eager(
    model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
) -> None:
    """With a limit of one, a second compilation of the same code would be refused."""
    with open_runtime(TARGET).active(), torch._dynamo.config.patch(recompile_limit=1):
        sessions = [session_of(model, network, example, stem=width) for width in (16, 13, 9)]
        for width, session in zip((16, 13, 9), sessions, strict=True):
            session.run_layers()  # raises where no compiled code was run
            expected = candidate_for(model, network, network.dense | {"stem": width}, example).build()(*example)
            assert torch.allclose(session.outputs()[0], expected.detach(), atol=1e-4)


def test_code_that_was_not_compiled_here_is_not_timed(
    model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
) -> None:
    with open_runtime(TARGET).active():
        session = session_of(model, network, example)
        with torch.compiler.set_stance("force_eager"), pytest.raises(InvalidTarget, match="runs it eagerly"):
            session.run_layers()
        session.run_layers()
        assert len(session.read_layers()) == 1


def test_what_was_compiled_goes_with_its_session_and_no_process_stays(
    model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]
) -> None:
    before = children()
    with open_runtime(TARGET).active():
        session = session_of(model, network, example)
        wrapper = weakref.ref(session.compiled.wrapper.function)
        assert wrapper() is not None
        del session
        gc.collect()
    assert wrapper() is None
    assert children() <= before


def test_bfloat16_in_channels_last(model: nn.Module, network: Network, example: tuple[torch.Tensor, ...]) -> None:
    runtime = open_runtime(Target.parse("torch-compile:cpu", dtype="bfloat16", memory_format="channels_last"))
    with runtime.active():
        session = runtime.network(candidate_for(model, network, network.dense, example))
        outputs = session.outputs()
        session.run_layers()
    with torch.no_grad():
        expected = model(*example)
    assert outputs is not None and outputs[0].dtype is torch.float32
    assert float((outputs[0] - expected).abs().max() / expected.abs().max()) < 5e-2
    assert all(seconds > 0 for seconds in session.read_layers()[0])


def test_what_is_no_one_graph_is_refused() -> None:
    torch.manual_seed(0)
    model, example = Broken().eval(), (torch.randn(1, 3, 8, 8),)
    network = fused(Network.trace(model, example, name="broken"))
    with pytest.raises(InvalidModel, match="inductor can't run"):
        session_of(model, network, example)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.shutil, "which", lambda _: None)
    with pytest.raises(InvalidTarget, match=r"needs a C\+\+ compiler.*install g\+\+"):
        open_runtime(TARGET)


def test_another_inductor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "_AFTER_FUSION", "no_such_pass")
    with pytest.raises(InvalidTarget, match=re.escape(f"PyTorch {torch.__version__}") + ".*no_such_pass"):
        open_runtime(TARGET)


def test_half_precision_is_refused() -> None:
    with pytest.raises(InvalidTarget, match="float32 or bfloat16"):
        open_runtime(Target.parse("torch-compile:cpu", dtype="float16"))
