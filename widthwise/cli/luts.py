"""Commands on tables: show, export, import, merge, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from widthwise.cli.common import Json, emit, reported

__all__ = ["app"]

app = typer.Typer(help="Look into, move and check lookup tables.", no_args_is_help=True)

Table = Annotated[Path, typer.Argument(help="The table.")]


@app.command()
@reported
def show(file: Table, as_json: Json = False) -> None:
    """What a table holds, and of which device and target.

    Example: widthwise luts show device.lut
    """
    from dataclasses import asdict

    from widthwise.luts.store import Lut
    from widthwise.report import terminal

    with Lut.open(file, readonly=True) as lut:
        summary, target, fingerprint = asdict(lut.summary()), dict(lut.target), dict(lut.fingerprint)
        networks = [(n.model, n.role.value, n.latency_ms, n.status.value) for n in lut.networks()]
        quiet_ms = lut.quiet_reference_ms
    dense = {name: ms for name, role, ms, _ in networks if role == "dense"}
    if as_json:
        emit(
            {**summary, "target": target, "fingerprint": fingerprint, "quiet_reference_ms": quiet_ms, "dense_ms": dense}
        )
        return
    rows = [(name, str(value)) for name, value in {**target, **fingerprint, **summary}.items()]
    rows += [(f"dense {name}", f"{ms:.4g} ms") for name, ms in dense.items()]
    terminal.show(terminal.facts(str(file), rows))
