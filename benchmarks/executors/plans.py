"""Plans made by hand, where widths are given and no latency is needed."""

from __future__ import annotations

import datetime

import torch
from torch import nn

from widthwise import __version__
from widthwise.network.network import Network
from widthwise.network.weights import weights_fingerprint
from widthwise.planner.importance import score
from widthwise.planner.plan import Certificate, Plan, TableReference

__all__ = ["plan_by_hand"]


def plan_by_hand(model: nn.Module, example: torch.Tensor, keeps: float) -> Plan:
    """A plan that keeps the same share of every group; its latencies are nobody's."""
    network = Network.trace(model, example, name="by hand")
    importance = score(model, network, "l1")
    widths = {group: max(1, round(keeps * size)) for group, size in network.dense.items()}
    return Plan(
        widthwise=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(),
        model="by hand",
        signature=network.signature,
        weights=weights_fingerprint(model),
        inputs=[list(example.shape)],
        dense_ms=1.0,
        budget_ms=1.0,
        predicted_ms=1.0,
        interval_ms=(1.0, 1.0),
        minimum_ms=1.0,
        criterion="l1",
        importance=importance.retained(widths),
        certificate=Certificate(status="feasible", objective=0.0, bound=0.0, gap=0.0, seconds=0.0),
        table=TableReference(target={}, device="", quiet_reference_ms=1.0, networks=0, held_out=0),
        dense=network.dense,
        widths=widths,
        kept={group: list(importance.kept(group, width)) for group, width in widths.items()},
    )
