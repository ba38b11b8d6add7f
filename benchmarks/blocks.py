"""Do the parts of a concatenation have to fill whole blocks? ``python -m benchmarks.blocks [NETWORK …] [--target …]``

Every network runs dense and at three other width vectors, one run each in turns: at about half of its widths, all that
is concatenated half a block of 16 more (``apart``); with as many channels in whole blocks (``whole``: every other group
a block more); and with one group alone half a block below its dense width (``one``, the middle one). Printed are the
medians over the rounds of the latency over the dense one's in the same round, with quartiles, and those of the first
over the second.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.machine import caption, keep
from widthwise.network.fusion import fused
from widthwise.network.joints import BLOCK, block_probes, joined_groups
from widthwise.network.loading import load_model
from widthwise.network.network import Network
from widthwise.profiling.profiler import candidate_for
from widthwise.profiling.runtimes import open_runtime
from widthwise.profiling.target import Target

NETWORKS = ("densenet121", "googlenet", "inception_v3", "squeezenet1_1")
TARGETS = ("onnxruntime:cpu", "openvino:cpu", "torch:cpu")
ROUNDS = 40
WARM_UP = 5
KINDS = ("apart", "whole", "one")


def compared(name: str, target: str) -> dict[str, Any]:
    """Latencies over the dense one's of the same round, one thread."""
    model = load_model(f"torchvision:{name}")
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = Network.trace(model, example, name=name)
    runtime = open_runtime(Target.parse(target, threads=1))
    timed = fused(network) if runtime.fuses else network
    joined = joined_groups(timed)
    middle = joined[len(joined) // 2]
    apart, whole = block_probes(timed)
    one = timed.dense | {middle: timed.dense[middle] - BLOCK // 2}
    chosen = {"dense": timed.dense, "apart": apart, "whole": whole, "one": one}
    with torch.inference_mode(), runtime.active():
        sessions = {
            kind: runtime.network(candidate_for(model, timed, widths, (example,))) for kind, widths in chosen.items()
        }
        taken = [{kind: session.run() for kind, session in sessions.items()} for _ in range(WARM_UP + ROUNDS)]
    rounds = taken[WARM_UP:]
    found: dict[str, Any] = {"joined": len(joined), "dense_ms": 1e3 * float(np.median([r["dense"] for r in rounds]))}
    for kind in KINDS:
        found[kind] = np.quantile([r[kind] / r["dense"] for r in rounds], [0.5, 0.25, 0.75]).tolist()
    found["dearer"] = np.quantile([r["apart"] / r["whole"] for r in rounds], [0.5, 0.25, 0.75]).tolist()
    return {"network": name, "target": target, **found}


def _quartiles(median: float, low: float, high: float) -> str:
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--target", nargs="+", default=TARGETS)
    asked = parser.parse_args()
    rows = [compared(name, target) for name in asked.networks for target in asked.target]
    print("| network | target | groups concatenated | dense ms | apart | whole | one | apart ÷ whole |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        shares = " | ".join(_quartiles(*row[kind]) for kind in (*KINDS, "dearer"))
        print(f"| {row['network']} | {row['target']} | {row['joined']} | {row['dense_ms']:.1f} | {shares} |")
    print(f"\nOver the dense network in the same round, medians and quartiles of {ROUNDS}. {caption()}")
    keep("blocks", rows)


if __name__ == "__main__":
    main()
