"""Commands on tables: show, export, import, merge, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from widthwise.cli.common import UNMET, Json, emit, reported

__all__ = ["app"]

app = typer.Typer(help="Look into, move and check lookup tables.", no_args_is_help=True)

Table = Annotated[Path, typer.Argument(help="The table.")]


@app.command()
@reported
def show(
    file: Table,
    layers: Annotated[
        bool, typer.Option("--layers", help="Every layer timed inside networks, and how well it is known.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a table holds, and of which device and target.

    Example: widthwise luts show device.lut --layers
    """
    from dataclasses import asdict

    from widthwise.luts.entry import entries
    from widthwise.luts.peers import on_scale, paces
    from widthwise.luts.records import Role
    from widthwise.luts.store import Lut
    from widthwise.report import terminal

    with Lut.open(file, readonly=True) as lut:
        summary, target, fingerprint = asdict(lut.summary()), dict(lut.target), dict(lut.fingerprint)
        quiet_ms, pace = lut.quiet_reference_ms, paces(lut)
        dense = {n.model: on_scale(n, pace).latency_ms for n in lut.networks() if n.role is Role.DENSE}
        known = entries(lut) if layers else []
    if as_json:
        facts = {"target": target, "fingerprint": fingerprint, "quiet_reference_ms": quiet_ms, "dense_ms": dense}
        listed = [{**asdict(entry), "spec": str(entry.spec)} for entry in known]
        emit({**summary, **facts, **({"entries": listed} if layers else {})})
        return
    rows = [(name, str(value)) for name, value in {**target, **fingerprint, **summary}.items()]
    rows += [(f"dense {name}", f"{ms:.4g} ms") for name, ms in dense.items()]
    terminal.show(terminal.facts(str(file), rows))
    if layers:
        terminal.show(*terminal.entries_table(known))


@app.command("export")
@reported
def export_(
    file: Table,
    output: Annotated[Path, typer.Option("-o", "--output", help=".jsonl (everything) or .csv, also with .gz.")],
    as_json: Json = False,
) -> None:
    """Write a table as JSON Lines (everything, raw samples included) or CSV (one row per measurement).

    Example: widthwise luts export device.lut -o device.jsonl
    """
    from widthwise.luts.exchange import export_table
    from widthwise.luts.store import Lut

    with Lut.open(file, readonly=True) as lut:
        export_table(lut, output)
    _done({"output": str(output)}, f"written to {output}", as_json)


@app.command("import")
@reported
def import_(
    file: Annotated[Path, typer.Argument(help="The table; made where it doesn't exist.")],
    source: Annotated[Path, typer.Option("--from", help="An exported .jsonl or .csv, also with .gz.")],
    networks: Annotated[
        Path | None, typer.Option("--networks", help="The CSV of whole networks that goes with a phone's layers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read an exported table, or one that others published (GPU convolutions, phone layers), as a target of its own.

    Example: widthwise luts import device.lut --from device.jsonl
    """
    from dataclasses import asdict

    from widthwise.luts.exchange import import_table

    added = asdict(import_table(source, file, networks=networks))
    _done(added, f"{file}: added {added['networks']} networks, {added['layers']} layers", as_json)


@app.command()
@reported
def merge(
    file: Annotated[Path, typer.Argument(help="The table that grows.")],
    others: Annotated[list[Path], typer.Argument(help="Tables of the same target and device.")],
    as_json: Json = False,
) -> None:
    """Copy the measurements of other tables of the same target on the same device.

    Example: widthwise luts merge device.lut yesterday.lut
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from widthwise.luts.exchange import merge as merge_tables
    from widthwise.luts.store import Lut

    with ExitStack() as stack:
        sources = [stack.enter_context(Lut.open(other, readonly=True)) for other in others]
        into = stack.enter_context(Lut.open(file))
        added = asdict(merge_tables(into, sources))
    _done(added, f"{file}: added {added['networks']} networks, {added['layers']} layers", as_json)


@app.command()
@reported
def check(file: Table, as_json: Json = False) -> None:
    """Find corruption and impossible values; exits 1 where there is any.

    Example: widthwise luts check device.lut
    """
    from dataclasses import asdict

    from widthwise.luts.checks import Severity
    from widthwise.luts.checks import check as find
    from widthwise.luts.store import Lut
    from widthwise.report import terminal

    with Lut.open(file, readonly=True) as lut:
        findings = find(lut)
    if as_json:
        emit({"findings": [asdict(finding) for finding in findings]})
    elif findings:
        rows = [(f.severity.value, f.where, f.what, f.next_step) for f in findings]
        terminal.show(terminal.rows_table(str(file), ("severity", "where", "what", "next step"), rows))
    else:
        terminal.show(f"{file}: nothing wrong found")
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(UNMET)


def _done(answer: dict[str, object], text: str, as_json: bool) -> None:
    from widthwise.report import terminal

    if as_json:
        emit(answer)
    else:
        terminal.show(text)
