"""What is asked of the places of an axis, whoever has them: a store, a batch, a solver."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

EVEN, ROUNDING = 1e-3, 1e-6
"""By how much spacings may differ: a part of themselves, and what single precision does to places."""


def is_even(place: ArrayLike, period: float | None = None) -> bool:
    """Whether places ``(n,)`` are evenly spaced, over the end of a period too; a single one is.

    >>> is_even([0.0, 0.25, 0.5, 0.75]), is_even([0.0, 0.25, 0.5, 0.75], 2.0), is_even([0.0, 0.1, 0.3])
    (True, False, False)
    """
    places = np.asarray(place, np.float64)
    gaps = np.diff(places, append=[] if period is None else [places[0] + period])
    if len(gaps) < 2:
        return True
    return bool(np.ptp(gaps) <= EVEN * abs(gaps.mean()) + 2 * ROUNDING * np.abs(places).max())
