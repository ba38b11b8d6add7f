"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from widthwise import __version__
from widthwise.cli import applying, luts, measuring, planning, reporting

__all__ = ["app", "main"]

app = typer.Typer(
    name="widthwise",
    help="Make a trained CNN fast enough for a device: profile once, ask for a plan that meets N ms, apply it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"widthwise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Make a trained CNN fast enough for a device."""


app.command("profile")(measuring.profile)
app.command("predict")(planning.predict)
app.command("plan")(planning.plan)
app.command("frontier")(planning.frontier)
app.command("apply")(applying.apply)
app.command("verify")(measuring.verify)
app.command("solve")(planning.solve)
app.command("report")(reporting.report)
app.add_typer(luts.app, name="luts")
app.command("device")(measuring.device)


def main() -> None:
    """Entry point of the command."""
    app()
