"""Which kernel answers a request: the correct ones first, of those the one measured fastest, else by rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import NamedTuple

from sciml import registry
from sciml.kernels import flash, packed, plain, rows
from sciml.kernels.contract import GROUP, Kernel, Request


class Choice(NamedTuple):
    """The name of a kernel, and why it was taken."""

    kernel: str
    reason: str


class Entry(NamedTuple):
    """One call of attention: what was asked, which kernel answered, why, and how many calls it was made inside of."""

    request: Request
    kernel: str
    reason: str
    depth: int = 0


_table: Mapping[str, str] | None = None
_used: dict[str, Request] = {}
_listeners: list[list[Entry]] = []
_depth = 0


@cache
def kernels() -> dict[str, Kernel]:
    """All kernels by name."""
    return {name: registry.find(GROUP, name) for name in registry.names(GROUP)}


def admissible(request: Request) -> dict[str, str | None]:
    """Every kernel's name → why it refuses, or None."""
    return {name: kernel.refuses(request) for name, kernel in kernels().items()}


@lru_cache(maxsize=4096)
def choose(request: Request) -> Choice:
    """The kernel for a request. It depends on nothing but the request and the table (see `set_table`)."""
    key = request.key()
    _used.setdefault(key, request)
    correct = {name: kernel for name, kernel in kernels().items() if kernel.refuses(request) is None}
    measured = table().get(key)
    if measured in correct:
        return Choice(measured, "measured to be the fastest here")
    merits = {name: kernel.merit(request) for name, kernel in correct.items()}
    best = max(merits, key=lambda name: merits[name][0])
    return Choice(best, merits[best][1])


def in_graph(request: Request) -> Kernel:
    """The kernel for a request met while compiling: of our own, by rule, as no table is read and nothing recorded."""
    correct = [kernel for kernel in (packed.PLUGIN, rows.PLUGIN, flash.PLUGIN, plain.PLUGIN)
               if kernel.refuses(request) is None]
    best = correct[0]
    for kernel in correct[1:]:
        if kernel.merit(request)[0] > best.merit(request)[0]:
            best = kernel
    return best


def table() -> Mapping[str, str]:
    """Request key → kernel: what was set, or else what `sciml.kernels.tune` left on this machine, read once."""
    global _table
    if _table is None:
        from sciml.kernels.tune import load

        _table = load()
    return _table


def set_table(measured: Mapping[str, str] | None) -> None:
    """Decide by this table and the rules alone; None: read the machine's own again.

    A run writes `table()` down and sets it when it goes on, because the last bits of a sum depend on the kernel.
    """
    global _table
    _table = None if measured is None else dict(measured)
    choose.cache_clear()


@contextmanager
def frozen(measured: Mapping[str, str]) -> Iterator[None]:
    """As `set_table`, until the end of the block."""
    before = _table
    set_table(measured)
    try:
        yield
    finally:
        set_table(before)


def used_requests() -> tuple[Request, ...]:
    """One request of each key that was asked for in this process."""
    return tuple(_used.values())


@contextmanager
def record() -> Iterator[list[Entry]]:
    """The calls of attention inside the block, in order of execution; compiled code makes none."""
    entries: list[Entry] = []
    _listeners.append(entries)
    try:
        yield entries
    finally:
        _listeners.remove(entries)


@contextmanager
def answered(request: Request) -> Iterator[Kernel]:
    """The kernel for a request, told to whoever records; calls that it makes itself are told as one deeper."""
    global _depth
    choice = choose(request)
    for entries in _listeners:
        entries.append(Entry(request, choice.kernel, choice.reason, _depth))
    _depth += 1
    try:
        yield kernels()[choice.kernel]
    finally:
        _depth -= 1
