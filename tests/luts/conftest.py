"""A small table of distinct primes, and the pieces to make others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from widthwise.luts import FREE, Block, Conditions, Estimator, Geometry, LayerSpec, Lut, Measurement, NetworkKey, Role

QUIET_MS = 1.5
CONV = Geometry("conv2d", ((1, FREE, 7, 5),), ((1, FREE, 7, 5),), (("kernel_size", (3, 3)), ("stride", (1, 1))))
RELU = Geometry("relu", ((1, FREE, 7, 5),), ((1, FREE, 7, 5),))
TARGET = {"runtime": "torch", "device": "cpu", "threads": 1}
DEVICE = {"cpu": "Abacus 3", "cores": 2, "info.host": "here"}


def timed(*latencies: float, quiet: float = QUIET_MS) -> Measurement:
    """Blocks whose reference kernel ran at the quiet latency, so that the median is the latency."""
    return Measurement(tuple(Block(ms, quiet) for ms in latencies), quiet)


def fill(lut: Lut) -> None:
    """One dense network with two layers, one narrowed one, one layer on its own."""
    lut.set_quiet_reference(QUIET_MS)
    run = lut.begin_run("test", {"torch": "2.4"}, info={"load": 0.25})
    layers = [("stem", LayerSpec(CONV, (13, 17)), timed(2.0, 3.0, 5.0)), ("act", LayerSpec(RELU, (17,)), timed(0.7))]
    lut.add_network(run, NetworkKey("s1", "tiny", {"stem": 17}), timed(7.0, 7.0, 7.0), layers, role=Role.DENSE)
    narrow = [("stem", LayerSpec(CONV, (13, 11)), timed(1.9, 1.9, 1.9))]
    watched = tuple(Block(4.3, QUIET_MS, Conditions(cpu_share=share, switches=2)) for share in (0.97, 0.5, 1.0))
    whole = Measurement(watched, QUIET_MS)
    lut.add_network(run, NetworkKey("s1", "tiny", {"stem": 11}), whole, narrow, role=Role.HOLDOUT)
    lut.add_layer(run, LayerSpec(RELU, (19,)), Estimator.SINGLE, timed(0.23))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes a filled table and gives its path; keywords add to its target or device."""

    def make(
        name: str = "a.lut", *, filled: bool = True, target: dict | None = None, device: dict | None = None
    ) -> Path:
        path = tmp_path / name
        with Lut.create(path, target=TARGET | (target or {}), fingerprint=DEVICE | (device or {})) as lut:
            if filled:
                fill(lut)
        return path

    return make


@pytest.fixture
def lut(make: Callable[..., Path]) -> Iterator[Lut]:
    """The filled table, open for writing."""
    with Lut.open(make()) as lut:
        yield lut


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The pieces above, for tests: with importlib imports a conftest cannot be imported."""
    return SimpleNamespace(
        QUIET_MS=QUIET_MS, CONV=CONV, RELU=RELU, TARGET=TARGET, DEVICE=DEVICE, timed=timed, fill=fill
    )
