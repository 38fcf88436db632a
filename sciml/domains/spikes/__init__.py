"""Neural populations: counts or traces in bins on the lattice (unit: set, time), or events on one packed axis."""

from __future__ import annotations

from typing import Any

PLUGIN: Any


def __getattr__(name: str) -> Any:
    if name not in ("PLUGIN", "Spikes"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sciml.domains.spikes.plugin import Spikes

    return Spikes
