"""The ``widthwise`` command. Only this package and :mod:`widthwise.report` print."""

from __future__ import annotations

from widthwise.cli.app import main

__all__ = ["main"]
