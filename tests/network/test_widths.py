from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widthwise.network.widths import Affine, AffineMap, grid

affines = st.builds(
    Affine,
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 5)).map(lambda d: tuple(sorted(d.items()))),
    st.integers(0, 50),
)
widths = st.fixed_dictionaries({name: st.integers(1, 99) for name in "abc"})


@given(affines, affines, widths)
def test_addition_adds_sizes(a: Affine, b: Affine, w: dict[str, int]) -> None:
    assert (a + b)(w) == a(w) + b(w)


@given(st.lists(affines, max_size=4), st.lists(widths, min_size=1, max_size=5))
def test_many_at_once_equal_one_by_one(forms: list[Affine], rows: list[dict[str, int]]) -> None:
    assert AffineMap(forms, "abc")(rows).tolist() == [[form(row) for form in forms] for row in rows]


@given(st.integers(1, 2048), st.integers(1, 32), st.integers(1, 64))
def test_grid_is_ascending_ends_dense_and_is_not_too_long(size: int, step: int, most: int) -> None:
    points = grid(size, step, minimum=size // 8, most=most)
    assert points[-1] == size
    assert list(points) == sorted(set(points))
    assert len(points) <= most
    assert all(point % step == 0 and point >= size // 8 for point in points[:-1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [(3, (3,)), (16, (8, 16)), (24, (8, 16, 24)), (20, (8, 16, 20)), (64, (8, 16, 24, 32, 40, 48, 56, 64))],
)
def test_grids_by_hand(size: int, expected: tuple[int, ...]) -> None:
    assert grid(size, 8, minimum=1, most=16) == expected


def test_a_missing_width_is_an_error() -> None:
    with pytest.raises(KeyError):
        Affine((("a", 1),))({})
    with pytest.raises(KeyError):
        AffineMap([], "a")([{}])


def test_what_depends_on_no_group_is_constant() -> None:
    assert AffineMap([Affine((), 7)], ())([{}, {}]).tolist() == [[7], [7]]
