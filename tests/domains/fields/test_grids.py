"""Evenness of an axis: what single precision does to places is allowed, what a grid does wrong is not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sciml.domains.fields.grids import is_even


@given(n=st.integers(2, 512), start=st.floats(-400, 400), spacing=st.floats(0.05, 10), periodic=st.booleans())
def test_even_places_in_single_precision_are_even(n: int, start: float, spacing: float, periodic: bool) -> None:
    place = (start + spacing * np.arange(n)).astype(np.float32)
    assert is_even(place, n * spacing if periodic else None)


@given(n=st.integers(8, 200), stretch=st.floats(1.0, 4.0))
def test_cells_towards_walls_are_not(n: int, stretch: float) -> None:
    place = 1 - np.tanh(stretch * (1 - 2 * (np.arange(n) + 0.5) / n)) / np.tanh(stretch)
    assert not is_even(place)


def test_a_period_that_the_places_do_not_fill_is_uneven() -> None:
    ring = np.linspace(0, 1, 16, endpoint=False)
    assert is_even(ring, 1.0)
    assert not is_even(np.append(ring, 1.0), 1.0)  # the first cell again at the end
    assert not is_even(ring[:-1], 1.0)  # one is missing
    assert is_even(ring[:-1])
