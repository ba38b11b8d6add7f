from __future__ import annotations

import importlib
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


@pytest.mark.parametrize(
    "path", sorted([*_ROOT.glob("benchmarks/*.py"), *_ROOT.glob("examples/*.py")]), ids=lambda path: path.stem
)
def test_benchmarks_and_examples_import(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(_ROOT))
    importlib.import_module(f"{path.parent.name}.{path.stem}")
