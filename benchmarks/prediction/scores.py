"""How good a prediction is, on networks that nothing was fitted on."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.prediction.baselines import BASELINES
from benchmarks.prediction.cells import KINDS, MEASURED, Cell, noise, opened

_Array = npt.NDArray[np.float64]


def scored(cell: Cell) -> dict[str, Any]:
    """Figures of a cell, from its record and its table."""
    from widthwise.luts.peers import on_scale, paces
    from widthwise.luts.records import Role
    from widthwise.luts.store import Lut
    from widthwise.luts.table import LatencyTable
    from widthwise.network.fusion import as_timed
    from widthwise.planner.predictor import LatencyPredictor

    held_out = json.loads(cell.record.read_text())["networks"]
    widths = [network["widths"] for network in held_out]
    kinds = np.array([network["kind"] for network in held_out])
    _, _, network = opened(cell)
    with Lut.open(cell.table, readonly=True) as lut:
        began = time.perf_counter()
        predictor = LatencyPredictor.fit(lut, network)
        fit_s = time.perf_counter() - began
        pace = paces(lut)
        records = [on_scale(record, pace) for record in lut.networks(network.signature)]
        away = [record.id for record in records if record.role is Role.HOLDOUT]
        timed = as_timed(network, lut)
        layers = LatencyTable.load(lut, {layer.geometry for layer in timed.layers})
        surfaces = layers.paced(pace).without(away).surfaces
    fitted = [record for record in records if record.role in (Role.FIT, Role.DENSE)]
    known = [record.widths for record in fitted], np.array([record.latency_ms for record in fitted])
    taken = [
        predictor.dense_ms * np.array([network[key] for network in held_out]) for key in MEASURED if key in held_out[0]
    ]
    measured = np.exp(np.mean(np.log(taken), axis=0))
    predicted = predictor.predict_many([network.require_widths(chosen) for chosen in widths])
    intervals = np.array([predictor.predict(chosen).interval_ms for chosen in widths])
    figures = {
        **accuracy(predicted, measured),
        "coverage": float(np.mean([(intervals[:, 0] <= ms) & (ms <= intervals[:, 1]) for ms in taken])),
        "interval_width": float(np.mean((intervals[:, 1] - intervals[:, 0]) / predicted)),
        "noise": noise(held_out),
        "measured": len(taken),
        "networks": len(records),
        "fit_s": fit_s,
        **speed(predictor, network.dense),
        "by_kind": {kind: accuracy(predicted[kinds == kind], measured[kinds == kind]) for kind in KINDS},
        "baselines": {},
        "predicted_ms": predicted.tolist(),
    }
    for name, fit in BASELINES.items():
        figures["baselines"][name] = accuracy(fit(timed, surfaces, *known)(widths), measured)
    return figures


def speed(predictor: Any, widths: dict[str, int]) -> dict[str, float]:
    """Milliseconds of one prediction, seconds of 10,000 different ones in one call."""
    rng = np.random.default_rng(0)
    many = [{group: int(rng.integers(1, size + 1)) for group, size in widths.items()} for _ in range(10_000)]
    began = time.perf_counter()
    for chosen in many[:20]:
        predictor.predict_many([chosen])
    one_s = (time.perf_counter() - began) / 20
    began = time.perf_counter()
    predictor.predict_many(many)
    return {"one_ms": one_s * 1e3, "ten_thousand_s": time.perf_counter() - began}


def accuracy(predicted: _Array, measured: _Array) -> dict[str, float]:
    """Errors relative to what was measured; the bias is that of the median network."""
    from scipy.stats import spearmanr

    ratios = predicted / measured
    errors = np.abs(ratios - 1)
    return {
        "mape": float(errors.mean()),
        "within_5": float(np.mean(errors <= 0.05)),
        "worst": float(errors.max()),
        "bias": float(np.median(ratios) - 1),
        "spearman": float(spearmanr(predicted, measured).statistic),
    }
