"""Fields: states of a PDE on a 1-D, 2-D or 3-D grid, predicted one lead time ahead and stepped forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sciml.domains.fields.adapter import Fields

PLUGIN: type[Fields]


def __getattr__(name: str) -> Any:
    if name != "PLUGIN":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sciml.domains.fields.adapter import Fields
    return Fields
