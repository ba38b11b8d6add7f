"""Executors: a plan and a model become a narrower, trained model."""

from __future__ import annotations

from widthwise.pruning.executor import Executor
from widthwise.pruning.filters import FilterPruning
from widthwise.pruning.metapruning import MetaPruning
from widthwise.pruning.resrep import ResRep
from widthwise.pruning.slimming import NetworkSlimming

__all__ = ["Executor", "FilterPruning", "MetaPruning", "NetworkSlimming", "ResRep"]
