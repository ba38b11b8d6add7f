"""How well do the regressors do on devices they weren't tuned on? ``python -m benchmarks.devices --data FOLDER``

``FOLDER`` holds published tables: ``gpu_conv/tesla_t4.csv.gz``, ``tesla_v100.csv.gz`` (3×3 convolutions, NeuSight) and
``phone_gpu/{pixel4,a03s}_layers.csv.gz`` with ``…_networks.csv`` (102 CNNs, qed-usc/mobile-ml-benchmark). They are read
as ``widthwise luts import --from`` reads them. Layers: five folds, fitted on 200 or 3,000 rows of the other four.
Networks: Σ of the published layers to the whole, fitted on 34 networks drawn at random, ``--draws`` times.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import caption, keep

ROWS = (200, 3000)
TRAINED_ON = 34
FOLDS = 5


def imported(source: Path, networks: Path | None) -> tuple[list[Any], list[Any]]:
    """(layers, networks) of a published table."""
    from widthwise.luts import Lut, import_table

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.lut"
        import_table(source, path, networks=networks)
        with Lut.open(path, readonly=True) as lut:
            return list(lut.layers()), lut.networks()


def layers(source: Path, rows: int) -> dict[str, Any]:
    """Five folds of a table of convolutions."""
    from widthwise.planner.transfer import ShapeRegressor

    records, _ = imported(source, None)
    measured = np.array([record.latency_ms for record in records])
    order = np.random.default_rng(0).permutation(len(records))
    errors = []
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        learnt = np.random.default_rng(fold).permutation(np.setdiff1d(order, out))[:rows]
        fit = ShapeRegressor([records[i].spec for i in learnt], measured[learnt])
        errors.append(np.abs(fit.predict([records[i].spec for i in out]) / measured[out] - 1))
    flat = np.concatenate(errors)
    return {
        "device": source.name.partition(".")[0],
        "rows": rows,
        "mape": float(flat.mean()),
        "within_10": float(np.mean(flat <= 0.1)),
        "folds": [float(error.mean()) for error in errors],
    }


def networks(source: Path, wholes: Path, draws: int) -> dict[str, Any]:
    """Σ layers to whole networks."""
    from widthwise.planner.transfer import CompositionRegressor

    members, found = imported(source, wholes)
    measured = np.array([record.latency_ms for record in found])
    owned = {record.id: [m.latency_ms for m in members if m.network_id == record.id] for record in found}
    sums = np.array([sum(owned[record.id]) for record in found])
    counts = np.array([float(len(owned[record.id])) for record in found])
    errors = []
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(found))
        learnt, out = order[:TRAINED_ON], order[TRAINED_ON:]
        fit = CompositionRegressor(sums[learnt], counts[learnt], measured[learnt])
        errors.append(np.abs(fit.predict(sums[out], counts[out]) / measured[out] - 1))
    return {
        "device": source.name.partition("_layers")[0],
        "networks": len(found),
        "raw_mape": float(np.mean(np.abs(sums / measured - 1))),
        "mape": float(np.mean(errors)),
        "deviation": float(np.std([error.mean() for error in errors])),
        "within_10": float(np.mean(np.concatenate(errors) <= 0.1)),
    }


def main() -> None:
    """Prints both tables and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=50)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"layers": [], "networks": []}
    print("| device | trained on | MAPE | within 10 % |\n|---|---|---|---|")
    for device in ("tesla_t4", "tesla_v100"):
        for rows in ROWS:
            row = layers(arguments.data / "gpu_conv" / f"{device}.csv.gz", rows)
            found["layers"].append(row)
            print(f"| {device} | {rows} layers | {row['mape']:.1%} | {row['within_10']:.0%} |", flush=True)
    print("\n| device | Σ layers as it is | MAPE | within 10 % |\n|---|---|---|---|")
    for device in ("pixel4", "a03s"):
        phone = arguments.data / "phone_gpu"
        row = networks(phone / f"{device}_layers.csv.gz", phone / f"{device}_networks.csv", arguments.draws)
        found["networks"].append(row)
        spread = f"{row['mape']:.2%} ± {row['deviation']:.2%}"
        print(f"| {device} | {row['raw_mape']:.1%} | {spread} | {row['within_10']:.0%} |")
    print(f"\n{caption()}")
    keep("devices", found)


if __name__ == "__main__":
    main()
