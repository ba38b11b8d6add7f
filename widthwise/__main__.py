"""``python -m widthwise``."""

from __future__ import annotations

from widthwise.cli import main

main()
