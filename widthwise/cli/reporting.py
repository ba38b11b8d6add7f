"""The command that writes the HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from widthwise.cli.common import Json, emit, open_dense, reported

__all__ = ["report"]


@reported
def report(
    plan: Annotated[Path, typer.Argument(help="The plan.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the page.")],
    model: Annotated[str | None, typer.Argument(help="With --lut, the dense model; by default the plan's own.")] = None,
    lut: Annotated[
        Path | None, typer.Option("--lut", help="The table: adds what it measured, and where the time goes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plan as one HTML page: latencies, proof, channels and, with a table, what the prediction rests on.

    Example: widthwise report plan.json --lut device.lut -o report.html
    """
    from widthwise.luts.errors import BadInput
    from widthwise.planner.plan import Plan
    from widthwise.report.page import write_page
    from widthwise.report.terminal import show

    loaded, evidence = Plan.read(plan), None
    if lut is None and model is not None:
        raise BadInput("MODEL is for what a table tells of the network: give --lut too")
    if lut is not None:
        from widthwise.api import opened
        from widthwise.pruning.executor import examples_of, traced_for
        from widthwise.report.evidence import Evidence

        dense = open_dense(loaded, plan, model, None, "report")
        with opened(lut) as table:
            evidence = Evidence.of(loaded, table, traced_for(loaded, dense, examples_of(loaded)))
    write_page(output, loaded, evidence)
    if as_json:
        emit({"output": str(output), "measured": len(evidence.measured) if evidence is not None else 0})
    else:
        show(f"written to {output}")
