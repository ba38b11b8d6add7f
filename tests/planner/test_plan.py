from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.luts.errors import BadInput, InvalidPlan
from widthwise.planner.plan import Budget, Plan

DATA: dict[str, Any] = {
    "widthwise": "0.1.0",
    "created": "2026-01-01T00:00:00+00:00",
    "model": "m",
    "signature": "s",
    "weights": "w",
    "inputs": [[1, 3, 8, 8]],
    "dense_ms": 10.0,
    "budget_ms": 6.0,
    "predicted_ms": 5.9,
    "interval_ms": [5.5, 6.3],
    "minimum_ms": 1.0,
    "criterion": "l1",
    "importance": 0.7,
    "certificate": {"status": "optimal", "objective": -0.3, "bound": -0.3, "gap": 0.0, "seconds": 0.1},
    "table": {"target": {"runtime": "fake"}, "device": "d", "quiet_reference_ms": 1.0, "networks": 3, "held_out": 1},
    "dense": {"a": 3, "b": 5},
    "widths": {"a": 2, "b": 5},
    "kept": {"a": [0, 2], "b": [0, 1, 2, 3, 4]},
}


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = Plan.model_validate(DATA)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["schema_version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(DATA | {"model": "torchvision:a\ud800b"}))
    with pytest.raises(InvalidPlan, match="make a plan with `widthwise plan`"):
        Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("status", ["optimal", "feasible", "unchanged", "searched"])
def test_a_plan_says_how_its_widths_were_found(tmp_path: Path, status: str) -> None:
    plan = Plan.model_validate(DATA | {"certificate": DATA["certificate"] | {"status": status}})
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").certificate.status == status


@pytest.mark.parametrize(
    ("text", "ms"), [("20", 20.0), ("20ms", 20.0), (" 0.02 s", 20.0), ("60%", 30.0), ("1e-1ms", 0.1), (".5ms", 0.5)]
)
def test_budgets(text: str, ms: float) -> None:
    assert Budget.parse(text).ms(dense_ms=50.0) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "fast", "-3ms", "20 fps", "nan", "inf", "ms", "1e999"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(BadInput, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0", "0ms", "0%"])
def test_a_budget_of_nothing(text: str) -> None:
    with pytest.raises(BadInput, match="must be above zero"):
        Budget.parse(text)


def changed(**changes: object) -> str:
    return json.dumps(DATA | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not a valid plan"),
        (changed(schema_version=9), "has schema version 9, this widthwise reads up to 1"),
        (changed(dense_ms=-1.0), "dense_ms"),
        (changed(dense_ms=float("nan")), "dense_ms"),
        (changed(widths={"a": 4, "b": 5}), "must keep as many channels as its width says"),
        (changed(kept={"a": [2, 0], "b": [0, 1, 2, 3, 4]}), "distinct ascending channels"),
        (changed(kept={"a": [0, 3], "b": [0, 1, 2, 3, 4]}), "distinct ascending channels of its 3"),
        (changed(widths={"a": 2}), "must name the same groups"),
        (changed(extra=1), "extra"),
    ],
)
def test_corrupt_plans_say_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InvalidPlan, match=message):
        Plan.read(tmp_path / "plan.json")


def test_places_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match="make one with `widthwise plan`"):
        Plan.read(tmp_path / "none.json")
    with pytest.raises(BadInput, match="give another -o"):
        Plan.model_validate(DATA).write(tmp_path / "no" / "plan.json")
