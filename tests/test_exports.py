from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import widthwise

_ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there() -> None:
    assert all(getattr(widthwise, name) is not None for name in widthwise.__all__)
    assert dir(widthwise) == widthwise.__all__


def test_every_module_says_what_is_public() -> None:
    for info in pkgutil.walk_packages(widthwise.__path__, "widthwise."):
        if info.name == "widthwise.__main__":
            continue
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), (info.name, name)


_PROGRAMS = [path.relative_to(_ROOT) for name in ("benchmarks", "examples") for path in _ROOT.glob(f"{name}/**/*.py")]


@pytest.mark.parametrize("path", sorted(_PROGRAMS), ids=lambda path: "-".join(path.with_suffix("").parts[1:]))
def test_benchmarks_and_examples_import(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "lightning_loop" and importlib.util.find_spec("lightning") is None:
        pytest.skip("Lightning isn't installed; the example says how")
    monkeypatch.syspath_prepend(str(_ROOT))
    importlib.import_module(".".join(path.with_suffix("").parts))
