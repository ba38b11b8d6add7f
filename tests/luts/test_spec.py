from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widthwise.luts import FREE, Geometry, InvalidSpec, LayerSpec

shapes = st.lists(st.lists(st.integers(0, 10**6), max_size=5).map(tuple), max_size=3).map(tuple)
options = st.dictionaries(
    st.text(max_size=9),
    st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.lists(st.integers(0, 99), max_size=3).map(tuple),
    max_size=4,
).map(lambda d: tuple(d.items()))


@given(st.builds(Geometry, st.text(min_size=1), shapes, shapes, options))
def test_a_key_gives_its_geometry_back(geometry: Geometry) -> None:
    again = Geometry.parse(geometry.key)
    assert again == geometry
    assert again.key == geometry.key
    assert hash(again) == hash(geometry)


def test_the_order_of_options_does_not_matter() -> None:
    a = Geometry("conv2d", ((1, FREE, 7, 5),), ((1, FREE, 7, 5),), (("stride", (1, 1)), ("kernel_size", (3, 3))))
    b = Geometry("conv2d", ((1, FREE, 7, 5),), ((1, FREE, 7, 5),), (("kernel_size", (3, 3)), ("stride", (1, 1))))
    assert a == b
    assert a.key == b.key
    assert a.option("kernel_size") == (3, 3)
    assert a.option("groups", 1) == 1


def test_a_spec_reads_like_a_layer() -> None:
    geometry = Geometry("conv2d", ((2, FREE, 7, 5),), ((2, FREE, 11, 3),), (("kernel_size", (3, 3)),))
    assert str(LayerSpec(geometry, (13, 17))) == "conv2d 2×C×7×5→2×C×11×3 kernel_size=3×3 [13→17]"


@pytest.mark.parametrize("channels", [(0,), (3, -1), (1, 2, 3)])
def test_channels_that_cannot_be_are_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSpec, match="at most 2 positive numbers"):
        LayerSpec(Geometry("relu", (), ()), channels)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("", (), "needs a kind"),
        ("relu", (("a", 1), ("a", 2)), "different names"),
        ("relu", (("a", float("nan")),), "finite"),
    ],
)
def test_geometries_that_cannot_be_are_refused(kind: str, options: tuple[tuple[str, float], ...], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        Geometry(kind, (), (), options)


@pytest.mark.parametrize(
    "key",
    ["", "{}", "[1,2]", '["relu",5,[],{}]', '["relu",[[1e999]],[],{}]', '["relu",[],[],{"a":null}]', "[" * 100_000],
)
def test_text_that_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidSpec, match="not a geometry key"):
        Geometry.parse(key)
