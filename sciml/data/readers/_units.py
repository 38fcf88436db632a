"""Units of the columns of tables and arrays that cannot carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sciml.errors import InputError


def units_by_name(names: Sequence[str], options: Mapping[str, Any], where: object) -> list[str]:
    """``options.units``: one unit for all, or a mapping from name to unit; "" where none is given.

    >>> units_by_name(["a", "b"], {"units": {"a": "kW"}}, "source.yaml")
    ['kW', '']
    """
    given = options.get("units", {})
    if isinstance(given, (str, int)):
        return [str(given)] * len(names)
    if not isinstance(given, Mapping):
        raise InputError(where, key="options.units", found=repr(given)[:60], expected="a unit, or name: unit",
                         fix="correct it")
    strange = [name for name in given if name not in names]
    if strange:
        raise InputError(where, key=f"options.units.{strange[0]}", found="no such column",
                         expected=f"one of {', '.join(names)}", fix="correct the name")
    return ["" if given.get(name) is None else str(given[name]) for name in names]
