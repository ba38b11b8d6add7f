"""Hardware-aware latency prediction and channel-pruning plans for PyTorch CNNs.

    import widthwise as ww
    lut   = ww.profile(model, example, target="torch:cpu", threads=1, path="device.lut")
    plan  = ww.plan(model, example, lut=lut, budget="60%")
    small = ww.apply(plan, model)
    ww.verify(plan, small, example, lut=lut)

Names are imported when first used, so that ``import widthwise`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "Also": "widthwise.api",
    "apply": "widthwise.api",
    "plan": "widthwise.api",
    "predict": "widthwise.api",
    "profile": "widthwise.api",
    "replan": "widthwise.api",
    "verify": "widthwise.api",
    "load": "widthwise.pruning.artifact",
    "save": "widthwise.pruning.artifact",
    "Budget": "widthwise.planner.plan",
    "Plan": "widthwise.planner.plan",
    "LatencyPredictor": "widthwise.planner.predictor",
    "Prediction": "widthwise.planner.predictor",
    "Verification": "widthwise.planner.verification",
    "Problem": "widthwise.planner.problem",
    "WidthBounds": "widthwise.planner.problem",
    "Answer": "widthwise.planner.answer",
    "solve": "widthwise.planner.solver",
    "Network": "widthwise.network.network",
    "Lut": "widthwise.luts.store",
    "LayerSpec": "widthwise.luts.spec",
    "Measurement": "widthwise.luts.measurement",
    "Target": "widthwise.profiling.target",
    "keep_memory": "widthwise.profiling.memory",
    "WidthwiseError": "widthwise.luts.errors",
    "BadInput": "widthwise.luts.errors",
    "Unmet": "widthwise.luts.errors",
    "InfeasibleBudget": "widthwise.luts.errors",
}

__all__ = sorted([*_PLACES, "__version__"])

if TYPE_CHECKING:
    from widthwise.api import Also as Also
    from widthwise.api import apply as apply
    from widthwise.api import plan as plan
    from widthwise.api import predict as predict
    from widthwise.api import profile as profile
    from widthwise.api import replan as replan
    from widthwise.api import verify as verify
    from widthwise.luts.errors import BadInput as BadInput
    from widthwise.luts.errors import InfeasibleBudget as InfeasibleBudget
    from widthwise.luts.errors import Unmet as Unmet
    from widthwise.luts.errors import WidthwiseError as WidthwiseError
    from widthwise.luts.measurement import Measurement as Measurement
    from widthwise.luts.spec import LayerSpec as LayerSpec
    from widthwise.luts.store import Lut as Lut
    from widthwise.network.network import Network as Network
    from widthwise.planner.answer import Answer as Answer
    from widthwise.planner.plan import Budget as Budget
    from widthwise.planner.plan import Plan as Plan
    from widthwise.planner.predictor import LatencyPredictor as LatencyPredictor
    from widthwise.planner.predictor import Prediction as Prediction
    from widthwise.planner.problem import Problem as Problem
    from widthwise.planner.problem import WidthBounds as WidthBounds
    from widthwise.planner.solver import solve as solve
    from widthwise.planner.verification import Verification as Verification
    from widthwise.profiling.memory import keep_memory as keep_memory
    from widthwise.profiling.target import Target as Target
    from widthwise.pruning.artifact import load as load
    from widthwise.pruning.artifact import save as save


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'widthwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
