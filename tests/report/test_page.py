"""The HTML report: whole, safe, and saying what was measured."""

from __future__ import annotations

import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import widthwise as ww
from widthwise.luts.errors import BadInput, TableMismatch
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.plan import Plan
from widthwise.planner.verification import verified_ms
from widthwise.report.charts import channels, errors, latencies, modules
from widthwise.report.evidence import Evidence
from widthwise.report.page import plan_page, write_page
from widthwise.report.rows import interval_text, plan_rows

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def table(wide_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written into."""
    return Path(shutil.copy(wide_table, tmp_path_factory.mktemp("report") / "wide.lut"))


@pytest.fixture(scope="module")
def plan(wide: nn.Module, wide_example: torch.Tensor, wide_table: Path) -> Plan:
    return ww.plan(wide, wide_example, lut=wide_table, budget="50%", name="wide")


@pytest.fixture
def evidence(plan: Plan, wide_lut: Lut, wide_network: Network) -> Evidence:
    return Evidence.of(plan, wide_lut, wide_network)


class _Reader(HTMLParser):
    """What a browser makes of a page: its elements, their attributes, its text, and its scripts' text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.elements and self.elements[-1][0] == "script" else self.texts).append(data)


def test_the_page_says_what_the_terminal_says(plan: Plan) -> None:
    seen = " ".join(_Reader(plan_page(plan)).texts)
    for name, value in plan_rows(plan):
        assert name in seen and value in seen
    assert plan.digest in seen


def test_the_page_needs_no_network_and_is_always_the_same(plan: Plan, evidence: Evidence) -> None:
    page = plan_page(plan, evidence)
    assert page == plan_page(plan, evidence)
    elements = _Reader(page).elements
    assert not [tag for tag, attributes in elements if "src" in attributes or tag == "link"]
    [policy] = [a["content"] for tag, a in elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert page.count("plotly.js v") == 1, "the library once, however many figures"


def test_hostile_names_stay_text(plan: Plan) -> None:
    dense, widths, kept = ({HOSTILE: value} for value in (8, 2, [0, 5]))
    page = plan_page(plan.model_copy(update={"model": HOSTILE, "dense": dense, "widths": widths, "kept": kept}))
    reader = _Reader(page)
    assert not [tag for tag, attributes in reader.elements if tag == "img" or "onerror" in attributes]
    assert not [text for text in reader.scripts if text.strip() == "alert(1)"]
    assert any(HOSTILE in text for text in reader.texts), "and are shown as they are"
    [label] = channels(plan.model_copy(update={"dense": dense, "widths": widths})).data[0].y
    assert "<" not in label


def test_latencies_and_intervals_are_drawn(plan: Plan) -> None:
    drawn = {bar.y[0]: bar for bar in latencies(plan, [(9.0, (8.0, 9.5)), (7.0, (6.5, 7.25))]).data}
    assert {name: bar.x[0] for name, bar in drawn.items()} == {
        "dense": plan.dense_ms, "predicted": plan.predicted_ms, "measured": 7.0, "least reachable": plan.minimum_ms,
    }  # fmt: skip
    assert (drawn["measured"].error_x.arrayminus[0], drawn["measured"].error_x.array[0]) == (0.5, 0.25)
    low, high = plan.interval_ms
    whiskers = drawn["predicted"].error_x
    assert (plan.predicted_ms - whiskers.arrayminus[0], plan.predicted_ms + whiskers.array[0]) == pytest.approx(
        (low, high)
    )
    assert "measured" not in {bar.y[0] for bar in latencies(plan).data}


def test_channels_are_counted(plan: Plan) -> None:
    kept, removed = channels(plan).data
    assert list(kept.y) == list(plan.dense) and list(kept.x) == [plan.widths[group] for group in plan.dense]
    assert [a + b for a, b in zip(kept.x, removed.x, strict=True)] == list(plan.dense.values())


def test_no_module_is_lost() -> None:
    dense = {f"m{number}": 1.0 + number for number in range(47)}
    before, after = modules(dense, {name: ms / 2 for name, ms in dense.items()}).data
    assert before.y[0] == "m46" and before.y[-1] == "17 further modules"
    assert math.fsum(before.x) == pytest.approx(math.fsum(dense.values()))
    assert math.fsum(after.x) == pytest.approx(math.fsum(dense.values()) / 2)


def test_errors_are_percent() -> None:
    [histogram] = errors([math.log(1.1), math.log(0.95)], math.log(1.1)).data
    assert list(histogram.x) == pytest.approx([10.0, -5.0])


def test_evidence_agrees_with_the_table(plan: Plan, evidence: Evidence, wide_lut: Lut) -> None:
    assert evidence.prediction.latency_ms == pytest.approx(plan.predicted_ms)
    assert math.fsum(evidence.planned_ms.values()) <= evidence.prediction.latency_ms * 1.001
    assert math.fsum(evidence.planned_ms.values()) < 0.7 * math.fsum(evidence.dense_ms.values())
    assert len(evidence.errors) >= 20 and 0 < evidence.radius < 0.2
    assert evidence.measured == ()
    page = plan_page(plan, evidence)
    assert "Not measured yet" in page and "How well it predicts" in page and "Where the time goes" in page


@pytest.mark.parametrize("statistic", ["median", "p90"])
def test_what_verify_measured_is_in_the_report(
    wide: nn.Module, wide_example: torch.Tensor, wide_network: Network, table: Path, statistic: Any
) -> None:
    plan = ww.plan(wide, wide_example, lut=table, budget="43%", statistic=statistic)
    with Lut.open(table, readonly=True) as lut:
        before = len(verified_ms(plan, lut))
    small = ww.apply(plan, wide)
    seen = [ww.verify(plan, small, wide_example, lut=table, dense=wide) for _ in range(2)]
    ww.verify(plan, small, wide_example, lut=table)  # without the dense model beside it: not on the plan's scale
    with Lut.open(table, readonly=True) as lut:
        told = verified_ms(plan, lut)[before:]
        page = plan_page(plan, Evidence.of(plan, lut, wide_network))
    single = 1e-4  # what rounding on record does to the quantiles of single runs
    assert [ms for ms, _ in told] == pytest.approx([found.measured_ms for found in seen], rel=single)
    intervals = [pytest.approx(found.measured_interval_ms, rel=single) for found in seen]
    assert [interval for _, interval in told] == intervals
    assert f"Measured: {interval_text(*told[-1])}" in page and "measurements." in page


def test_a_table_of_another_target_is_refused(plan: Plan, wide_lut: Lut, wide_network: Network) -> None:
    other = plan.table.model_copy(update={"target": plan.table.target | {"threads": 7}})
    with pytest.raises(TableMismatch, match="threads: 1 in the table, 7 here"):
        Evidence.of(plan.model_copy(update={"table": other}), wide_lut, wide_network)


def test_a_page_that_cant_be_written_leaves_the_last_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_page(tmp_path / "r.html", plan)
    before = (tmp_path / "r.html").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BadInput, match="No space left on device; give another -o"):
        write_page(tmp_path / "r.html", plan)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_bytes() == before
