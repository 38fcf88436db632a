"""Which kernel answers a request: the correct ones first, of those the one measured fastest, else by rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import torch

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


class Decisions:
    """A table, read from this machine's file if none is given, and what was chosen by it: one is never without the
    other, so that a choice made while another table is set can't outlive its own."""

    def __init__(self, measured: Mapping[str, str] | None) -> None:
        if measured is not None:
            self.table = dict(measured)
        self.choose = lru_cache(maxsize=4096)(self._choose)

    @cached_property
    def table(self) -> Mapping[str, str]:
        from sciml.kernels.tune import load

        return load()

    def _choose(self, request: Request) -> Choice:
        key = request.key()
        _used.setdefault(key, request)
        correct = {name: kernel for name, kernel in kernels().items() if kernel.refuses(request) is None}
        measured = self.table.get(key)
        if measured in correct:
            return Choice(measured, "measured to be the fastest here")
        return _by_rule(correct, request)


_decisions = Decisions(None)
_used: dict[str, Request] = {}
_listeners: ContextVar[tuple[list[Entry], ...]] = ContextVar("listeners", default=())
_depth: ContextVar[int] = ContextVar("depth", default=0)
OWN: Mapping[str, Kernel] = {"packed": packed.PLUGIN, "rows": rows.PLUGIN, "flash": flash.PLUGIN,
                             "plain": plain.PLUGIN}
"""What compiled code chooses among."""


@cache
def kernels() -> dict[str, Kernel]:
    """All kernels by name."""
    return {name: registry.find(GROUP, name) for name in registry.names(GROUP)}


def admissible(request: Request) -> dict[str, str | None]:
    """Every kernel's name → why it refuses, or None."""
    return {name: kernel.refuses(request) for name, kernel in kernels().items()}


def choose(request: Request) -> Choice:
    """The kernel for a request. It depends on nothing but the request and the table (see `set_table`)."""
    return _decisions.choose(request)


def choose_in_graph(request: Request) -> Choice:
    """The kernel for a request met while compiling: of our own, by rule, as no table is read and nothing recorded.

    A graph that is exported doesn't know its sizes, which the rules of `packed` and `rows` go by.
    """
    ours = ("flash", "plain") if torch.compiler.is_exporting() else tuple(OWN)
    return _by_rule({name: OWN[name] for name in ours if OWN[name].refuses(request) is None}, request)


def in_graph(request: Request) -> Kernel:
    """The kernel of that choice."""
    return OWN[choose_in_graph(request).kernel]


def _by_rule(correct: Mapping[str, Kernel], request: Request) -> Choice:
    """The first of largest merit. Also run by the compiler."""
    best, *others = correct
    for name in others:
        if correct[name].merit(request)[0] > correct[best].merit(request)[0]:
            best = name
    return Choice(best, correct[best].merit(request)[1])


def table() -> Mapping[str, str]:
    """Request key → kernel: what was set, or else what `sciml.kernels.tune` left on this machine, read once."""
    return _decisions.table


def set_table(measured: Mapping[str, str] | None) -> None:
    """Decide by this table and the rules alone; None: read the machine's own again.

    A run writes `table()` down and sets it when it goes on, because the last bits of a sum depend on the kernel.
    """
    global _decisions
    _decisions = Decisions(measured)


@contextmanager
def frozen(measured: Mapping[str, str]) -> Iterator[None]:
    """As `set_table`, until the end of the block."""
    global _decisions
    before = _decisions
    set_table(measured)
    try:
        yield
    finally:
        _decisions = before


def used_requests() -> tuple[Request, ...]:
    """One request of each key that was asked for in this process."""
    return tuple(_used.values())


@contextmanager
def record() -> Iterator[list[Entry]]:
    """The calls of attention inside the block and of its thread, in order of execution; compiled code makes none."""
    entries: list[Entry] = []
    outside = _listeners.set((*_listeners.get(), entries))
    try:
        yield entries
    finally:
        _listeners.reset(outside)


@contextmanager
def answered(request: Request) -> Iterator[Kernel]:
    """The kernel for a request, told to whoever records; calls that it makes itself are told as one deeper."""
    choice, depth = choose(request), _depth.get()
    for entries in _listeners.get():
        entries.append(Entry(request, choice.kernel, choice.reason, depth))
    outside = _depth.set(depth + 1)
    try:
        yield kernels()[choice.kernel]
    finally:
        _depth.reset(outside)
