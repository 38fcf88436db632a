"""Molecules: atoms packed on one axis with 3-D coordinates; energies, and forces as their derivative."""

from __future__ import annotations

from typing import Any

PLUGIN: Any


def __getattr__(name: str) -> Any:
    if name not in ("PLUGIN", "Molecules"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sciml.domains.molecules.adapter import Molecules

    return Molecules
