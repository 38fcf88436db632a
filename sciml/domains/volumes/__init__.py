"""Volumes: images of a body in millimetres, segmented, restored and pretrained on."""

from __future__ import annotations

from typing import Any

PLUGIN: Any


def __getattr__(name: str) -> Any:
    if name not in ("PLUGIN", "Volumes"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sciml.domains.volumes.adapter import Volumes

    return Volumes
