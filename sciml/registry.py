"""Plug-ins by name: a module in the group's own package, or an entry point of any installed package.

A group such as ``sciml.mixers`` is a package. Ours: the module ``sciml/mixers/<name>.py`` (or folder) that defines
``PLUGIN``. A lab's: an entry point ``<name> = "package.module:attribute"`` in the group ``sciml.mixers``. Nothing is
imported until it is asked for, and nothing else has to be edited.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sciml.errors import InputError


@cache
def _modules(group: str) -> frozenset[str]:
    spec = importlib.util.find_spec(group)
    if spec is None or spec.submodule_search_locations is None:
        return frozenset()
    return frozenset(m.name for m in pkgutil.iter_modules(spec.submodule_search_locations) if m.name[0] != "_")


def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """All names in a group, sorted; modules without ``PLUGIN`` are helpers and are not listed.

    >>> "full" in names("sciml.mixers")
    True
    """
    ours = [name for name in _modules(group) if _is_plugin(group, name)]
    return tuple(sorted({*ours, *_entry_points(group)}))


def _is_plugin(group: str, name: str) -> bool:
    spec = importlib.util.find_spec(f"{group}.{name}")
    if spec is None or spec.origin is None:
        return False
    with open(spec.origin, encoding="utf-8") as source:
        return any(line.startswith(("PLUGIN", "from .") ) and "PLUGIN" in line for line in source)


def find(group: str, name: str, *, where: object = "registry") -> Any:
    """The plug-in of that name. Raises `InputError` naming the ones that exist."""
    if name in _modules(group) and _is_plugin(group, name):
        return importlib.import_module(f"{group}.{name}").PLUGIN
    point = _entry_points(group).get(name)
    if point is None:
        known = ", ".join(names(group)) or "none"
        raise InputError(where, key=group, found=repr(name), expected=f"one of: {known}",
                         fix="correct the name, or install the package that provides it")
    return point.load()
