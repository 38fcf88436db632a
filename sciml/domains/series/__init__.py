"""Multivariate time series on the lattice (variate: set, time): forecasts that correct a closed-form ridge."""

from __future__ import annotations

from typing import Any

PLUGIN: Any


def __getattr__(name: str) -> Any:
    if name not in ("PLUGIN", "Series"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sciml.domains.series.adapter import Series

    return Series
