from __future__ import annotations

import importlib
import pkgutil

import widthwise


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
