"""From a model to a plan that holds, for each network the first release promises, in a world of known truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import widthwise as ww
from widthwise.network.loading import load_model
from widthwise.network.narrowing import silenced_difference


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "googlenet"])
def test_a_plan_holds(name: str, tmp_path: Path) -> None:
    full = f"torchvision:{name}"
    model = load_model(full)
    example = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with ww.profile(model, example, path=tmp_path / "t.lut", target="fake:cpu", time_s=3, name=full) as lut:
        plan = ww.plan(model, example, lut=lut, budget="60%", name=full, time_limit_s=15)
        assert plan.gap <= 1e-5
        assert 0.95 * plan.budget_ms <= plan.predicted_ms <= plan.budget_ms
        small = ww.apply(plan, model, example)
        network = ww.Network.trace(model, example)
        assert silenced_difference(model, small, network, plan.kept, [example]) <= 1e-4
        folder = ww.save(tmp_path / "small", small, plan)
        again = ww.load(folder)
        assert torch.equal(again(example), small.eval()(example))
        found = ww.verify(plan, again, example, lut=lut, dense=model)
    assert 0.90 <= found.measured_ms / plan.budget_ms <= 1.05
    assert sum(p.numel() for p in again.parameters()) == network.parameters(plan.widths)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_on_a_real_run_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))\n"
    )
    lut = tmp_path / "t.lut"
    command = [sys.executable, "-m", "widthwise", "profile", f"{tmp_path}/net.py:net", "--input", "1,3,32,32"]
    process = subprocess.Popen(
        [*command, "--lut", str(lut), "--time", "10m"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit that it is ignored
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not _networks(lut):
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "everything measured so far is kept" in errors and "Traceback" not in errors
    assert _networks(lut) >= 1


def _networks(path: Path) -> int:
    if not path.exists():
        return 0
    with ww.Lut.open(path, readonly=True) as lut:
        return len(lut.networks())
