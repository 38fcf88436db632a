"""Units as text, understood by pint: ``m/s``, ``m s-1`` (CF), ``1``, ``degC``, ``%``."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from sciml.errors import InputError

MIXED = "mixed"
"""Unit of a variable whose members have units of their own, in the coordinate ``<dim>_unit``."""


@cache
def registry() -> Any:
    """The pint registry; exponents may be written without ``**``, and CF's degrees_north are degrees."""
    import pint

    exponent = re.compile(r"(?<=[A-Za-zµ°])(?<!\de)(?=[-+]?\d)")
    units: Any = pint.UnitRegistry(preprocessors=[lambda text: exponent.sub("**", text)])
    for name in ("north", "east", "south", "west"):
        units.define(f"degrees_{name} = degree = degree_{name}")
    units.define("hounsfield_unit = [] = HU")
    return units


def parse(text: str, *, where: object, key: object) -> Any:
    """A pint unit. Raises `InputError` that names it.

    >>> str(parse("m2 s-1", where="doc", key="nu"))
    'meter ** 2 / second'
    """
    try:
        return registry().parse_units("" if text.strip() == "1" else text)
    except Exception as error:
        raise InputError(where, key=key, found=f"unit {text!r} ({' '.join(str(error).split())[:80]})",
                         expected="a unit that pint knows, such as m/s, K, 1", fix="correct it") from None


def same(a: str, b: str, *, where: object, key: object) -> bool:
    """Whether two texts mean the same unit, scale included: m/s and m s-1 do, m and km don't.

    >>> same("1/s", "s-1", where="doc", key="w"), same("m", "km", where="doc", key="x")
    (True, False)
    """
    return a == b or bool(parse(a, where=where, key=key) == parse(b, where=where, key=key))


def seconds_per(unit: str, *, where: object, key: object) -> float:
    """How many seconds a unit of time has. Raises `InputError` if it is no unit of time.

    >>> seconds_per("h", where="doc", key="time")
    3600.0
    """
    parsed = parse(unit, where=where, key=key)
    if not parsed.is_compatible_with("s"):
        raise InputError(where, key=key, found=f"unit {unit!r}", expected="a unit of time", fix="s, min, h, d or week")
    return float(registry().Quantity(1, parsed).to("s").magnitude)
