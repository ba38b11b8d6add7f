"""Which CNNs can be narrowed, and is it right? ``python -m benchmarks.coverage [torchvision|timm|constructs …]``

Each network is traced, its free and locked groups are counted, and the proof is run: every group alone, then all of
them at random widths, must give the dense network with the removed channels silenced, and the parameters,
multiply-accumulates and shapes predicted. Beside it plain Torch-Pruning on the same weights and images. Every network
has a process of its own for each of the two; what is on record already isn't run again (``--again`` does).

Weights are random; norms get the statistics of random images, and scales and shifts that are no identities.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS, caption, keep
from widthwise.network.narrowing import TOLERANCE, largest_difference, tensors

_SIDE = 64
_SIDES = {
    **dict.fromkeys(("inception_v3", "googlenet"), 96),
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 128,
    "bat_resnext26ts": 256,
}
_TIMEOUT_S = {"widthwise": 1500, "torch-pruning": 150}
"""The proof narrows every group by itself; Torch-Pruning has all done once."""

_MEMORY_BYTES = 16 << 30
"""More than any of the networks needs; what takes more is stopped, before the machine is."""
_RATIO = 0.25
"""Share of channels that Torch-Pruning is asked to remove from a group."""

_ALSO_OUTPUTS = {"SSDFeatureExtractorVGG": ["features.21"]}
"""Layers that make outputs, where widthwise names another reason for their being locked."""

_NO_CNN = ("vit_", "swin_", "maxvit")

TIMM = (
    "resnet26d", "resnet50t", "resnetrs50", "resnetblur50", "resnetaa50", "resnetv2_50", "resnetv2_50x1_bit",
    "seresnet50", "ecaresnet50d", "skresnet50", "gcresnet33ts", "wide_resnet50_2", "resnext50_32x4d",
    "seresnext50_32x4d", "senet154", "resnest26d", "resnest50d_4s2x40d", "res2net50_26w_4s", "res2next50",
    "bat_resnext26ts", "efficientnet_b0", "efficientnet_lite0", "efficientnet_b0_gn", "tf_efficientnetv2_s",
    "mixnet_s", "fbnetc_100", "fbnetv3_b", "hardcorenas_a", "tinynet_a", "mnasnet_100", "spnasnet_100",
    "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_medium", "lcnet_100", "ghostnet_100",
    "ghostnetv2_100", "repghostnet_100", "mobileone_s1", "repvgg_b0", "repvit_m1", "rexnet_100", "regnetx_008",
    "regnety_008", "regnetz_b16", "gernet_s", "densenet121", "densenetblur121d", "dla34", "dla60x",
    "hrnet_w18_small_v2", "vovnet39a", "ese_vovnet19b_dw", "cspresnet50", "darknet53", "dpn68", "selecsls42b",
    "xception41", "convnext_tiny", "nfnet_l0",
)  # fmt: skip
"""Sixty CNNs over timm's families, chosen by name before any of them was tried."""


def names_of(suite: str) -> list[str]:
    """The networks of a suite."""
    if suite == "timm":
        return list(TIMM)
    if suite == "constructs":
        from tests.network.constructs import CONSTRUCTS

        return list(CONSTRUCTS)
    from torchvision import models

    names = [name for name in models.list_models(module=models) if not name.startswith(_NO_CNN)]
    return [*names, *models.list_models(module=models.segmentation), *models.list_models(module=models.detection)]


def load(suite: str, name: str) -> tuple[nn.Module, list[Tensor]]:
    """The network with random weights, and what it takes; of a detector its backbone."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    side = _SIDES.get(name, _SIDE)
    shapes: Sequence[tuple[int, ...]] = [(2, 3, side, side)]
    if suite == "constructs":
        from tests.network.constructs import CONSTRUCTS

        model, shapes = CONSTRUCTS[name].factory(), CONSTRUCTS[name].inputs
    elif suite == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        from torchvision import models

        more = {} if name in models.list_models(module=models) else {"weights_backbone": None}
        model = models.get_model(name, weights=None, **more)
        if name in models.list_models(module=models.detection):
            model = model.backbone
    examples = [torch.randn(shape, generator=generator) for shape in shapes]
    return settled(model, examples), examples


def settled(model: nn.Module, examples: Sequence[Tensor]) -> nn.Module:
    """Norms with the statistics of the examples, and scales and shifts that are no identities; in eval mode."""
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if (name.endswith("weight") and parameter.ndim == 1) or float(parameter.abs().max()) < 1e-3:
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.uniform_(-0.3, 0.3)
    for norm in norms:
        norm.train()
        norm.momentum = None
    with torch.no_grad():
        model(*examples)
    return model.eval()


def with_widthwise(model: nn.Module, examples: list[Tensor]) -> dict[str, Any]:
    """Groups, reasons, proof, and seconds to trace."""
    from widthwise.luts.errors import VerificationFailed
    from widthwise.network.network import Network
    from widthwise.network.proof import prove

    start = time.perf_counter()
    network = Network.trace(model, examples)
    found: dict[str, Any] = {"trace_s": time.perf_counter() - start, "free": len(network.free)}
    reasons = [str(group.locked) for group in network.groups if group.locked]
    found |= {"locked": len(reasons), "reasons": dict(Counter(reasons))}
    start = time.perf_counter()
    try:
        proof = prove(model, network, examples)
    except VerificationFailed as error:
        return found | {"wrong": 1, "message": str(error)}
    return found | {"difference": proof.difference, "effect": proof.effect, "proof_s": time.perf_counter() - start}


def with_torch_pruning(model: nn.Module, examples: list[Tensor]) -> dict[str, Any]:
    """All of its groups pruned by a quarter, of the channels its MagnitudePruner picks, in one graph.

    Broken where the library stops or the model doesn't run afterwards; wrong where its outputs aren't those of a dense
    copy whose readers of the pruned channels no longer hear them (in double precision, where single isn't enough).
    """
    found, difference = _pruned(model, examples)
    if TOLERANCE < difference < math.inf:
        difference = min(difference, _pruned(model.double(), [example.double() for example in examples])[1])
    if difference < math.inf:
        found["difference"] = difference
    return found | {"broken": int(difference == math.inf), "wrong": int(TOLERANCE < difference < math.inf)}


def _pruned(model: nn.Module, examples: list[Tensor]) -> tuple[dict[str, Any], float]:
    """Groups and seconds, and the difference after pruning; infinite where something stopped."""
    import torch_pruning as tp

    small, silent = copy.deepcopy(model), copy.deepcopy(model)
    outputs = _ending(small, examples)
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):  # it prints warnings
        pruner = tp.pruner.MagnitudePruner(
            small, tuple(examples), tp.importance.MagnitudeImportance(), pruning_ratio=_RATIO, ignored_layers=outputs
        )
    graph, names = pruner.DG, {module: name for name, module in small.named_modules()}
    found: dict[str, Any] = {"trace_s": time.perf_counter() - start}
    try:
        picked = [group[0] for group in pruner.step(interactive=True)]
        roots = [(first.dep.target.module, first.dep.handler, list(first.idxs)) for first in picked]
        found["free"] = len(roots)
        for layer, prune, removed in roots:
            for item in graph.get_pruning_group(layer, prune, idxs=removed):
                if not graph.is_out_channel_pruning_fn(item.dep.handler) and item.dep.target.module in names:
                    _silence_reader(silent.get_submodule(names[item.dep.target.module]), list(item.idxs))
        for layer, prune, removed in roots:
            graph.get_pruning_group(layer, prune, idxs=removed).prune()
        with torch.no_grad():
            return found, largest_difference(tensors(silent(*examples)), tensors(small(*examples)))
    except Exception as error:  # whatever the library trips over is what is counted
        return found | {"free": found.get("free", 0), "message": f"{type(error).__name__}: {error}"[:300]}, math.inf


def _ending(model: nn.Module, examples: list[Tensor]) -> list[nn.Module]:
    """The layers whose channels are the network's outputs, which a user of Torch-Pruning has to name."""
    from widthwise.luts.errors import InvalidModel
    from widthwise.network.network import Network

    try:
        groups = Network.trace(model, examples).groups
    except InvalidModel:
        return [[module for module in model.modules() if isinstance(module, nn.Linear)][-1]]
    modules = dict(model.named_modules())
    ending = [path for group in groups if group.locked == "it is the network's output" for path in group.producers]
    ending += _ALSO_OUTPUTS.get(type(model).__name__, [])
    return [modules[path] for path in ending if path in modules]


def _silence_reader(module: nn.Module, removed: list[int]) -> None:
    """A layer that reads channels no longer hears these."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return
    with torch.no_grad():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            weight[removed] = 0
        elif getattr(module, "groups", 1) > 1:
            per_group = weight.shape[1]
            rows = weight.shape[0] // module.groups  # type: ignore[operator]
            for channel in removed:
                of = channel // per_group
                weight[of * rows : (of + 1) * rows, channel % per_group] = 0
        else:
            weight[:, removed] = 0


WHO: dict[str, Callable[[nn.Module, list[Tensor]], dict[str, Any]]] = {
    "widthwise": with_widthwise,
    "torch-pruning": with_torch_pruning,
}


def one(suite: str, name: str, who: str) -> dict[str, Any]:
    """What one network gives, errors included."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    model, examples = load(suite, name)
    try:
        return WHO[who](model, examples)
    except Exception as error:
        return {"error": type(error).__name__, "message": (str(error).strip().splitlines() or [""])[0][:300]}


def in_a_process(suite: str, name: str, who: str) -> dict[str, Any]:
    """Likewise, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--one", suite, name, who]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S[who], check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": "Timeout", "message": f"took more than {_TIMEOUT_S[who]} s"}
    except (IndexError, ValueError):
        return {"error": f"exit {done.returncode}", "message": (done.stderr.strip().splitlines() or [""])[-1][:300]}


def passed(row: dict[str, Any]) -> bool:
    """Whether something could be narrowed, and all of it was right."""
    return "error" not in row and not row.get("wrong") and not row.get("broken")


def summary(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The Markdown table."""
    head = (
        "list|tool|tried|traced|all groups prunable|some locked|none prunable|wrong results|groups free|slowest trace"
    )
    lines = [f"| {head.replace('|', ' | ')} |", "|---" * (head.count("|") + 1) + "|"]
    for suite, networks in results.items():
        for who in WHO:
            rows = {name: found[who] for name, found in networks.items() if who in found}
            traced = {name: row for name, row in rows.items() if "trace_s" in row}
            right = [row for row in traced.values() if passed(row)]
            whole = sum(row["free"] > 0 and not _inner_locks(row) for row in right)
            none = sum(row["free"] == 0 for row in right)
            wrong = len(traced) - len(right)
            slow = max(((row["trace_s"], name) for name, row in traced.items()), default=(0.0, "–"))
            figures = [len(rows), len(traced), whole, len(right) - whole - none, none, wrong]
            figures.append(sum(row["free"] for row in right))
            cells = " | ".join(map(str, figures))
            lines.append(f"| {suite} | {who} | {cells} | {slow[0]:.1f} s ({slow[1]}) |")
    return "\n".join(lines)


def _inner_locks(row: dict[str, Any]) -> int:
    return sum(count for reason, count in row.get("reasons", {}).items() if reason != "it is the network's output")


def main() -> None:
    """Runs what isn't on record, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=["constructs", "torchvision", "timm"])
    parser.add_argument("--only", nargs="*", help="these networks alone")
    parser.add_argument("--who", nargs="*", default=list(WHO), help="widthwise, torch-pruning")
    parser.add_argument("--again", action="store_true", help="also what is on record")
    parser.add_argument("--one", nargs=3, metavar=("SUITE", "NAME", "WHO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    path = RESULTS / "coverage.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    for suite in arguments.suites:
        known = results.setdefault(suite, {})
        for name in arguments.only or names_of(suite):
            for who in arguments.who:
                if arguments.again or who not in known.get(name, {}):
                    row = known.setdefault(name, {})[who] = in_a_process(suite, name, who)
                    keep("coverage", results)
                    print(suite, name, who, json.dumps(row), file=sys.stderr, flush=True)
    print(summary(results))
    print(f"\n{caption()}")


if __name__ == "__main__":
    main()
