"""What runs where: one forward pass of an operator, told by level, block and mixer."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

from sciml.kernels.dispatch import Entry, admissible, choose_in_graph, record


class Place(NamedTuple):
    """A mixer ``(x (B, *lattice, C), …)`` somewhere in an operator. compiled: in a run it is part of a graph."""

    place: str
    mixer: str
    module: nn.Module
    compiled: bool = False


@dataclass(frozen=True)
class Line:
    """One kernel of one mixer. lattice: tokens per axis. kernel: a name in ``sciml.kernels``, or `own` for a mixer that
    isn't softmax attention; indented for the calls that a packed one is made of. refused: what other kernels said."""

    place: str
    mixer: str
    lattice: str
    kernel: str
    why: str
    request: str = ""
    calls: int = 1
    refused: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


def explain(places: list[Place], run: Callable[[], Any]) -> list[Line]:
    """Lines of all places in the order `run` calls them, eagerly. What is compiled is told as the graph chooses, by
    rule and without a table, and not as this eager pass did."""
    lines: list[Line] = []
    with record() as entries:
        handles = [handle for place in places for handle in _watch(place, entries, lines)]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return lines


def _watch(place: Place, entries: list[Entry], lines: list[Line]) -> Iterator[Any]:
    began: list[int] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        began.append(len(entries))

    def after(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        lattice = "×".join(map(str, args[0].shape[1:-1]))
        lines.extend(_lines(place, lattice, entries[began.pop():]))

    yield place.module.register_forward_pre_hook(before)
    yield place.module.register_forward_hook(after)


def _lines(place: Place, lattice: str, entries: list[Entry]) -> Iterator[Line]:
    """Equal calls as one line; a mixer without attention by what it says of itself."""
    if not entries:
        said = (inspect.getdoc(type(place.module)) or "").partition("\n")[0]
        yield Line(place.place, place.mixer, lattice, "own", said)
    if place.compiled:
        entries = [_in_graph(entry) for entry in entries]
    for entry, calls in Counter(entries).items():
        refused = "; ".join(f"{name}: {why}" for name, why in admissible(entry.request).items() if why is not None)
        kernel = "  " * entry.depth + entry.kernel
        why = f"{entry.reason}: {entry.request.rows} rows of {entry.request.keys} keys"
        yield Line(place.place, place.mixer, lattice, kernel, why, entry.request.key(), calls, refused)


def _in_graph(entry: Entry) -> Entry:
    choice = choose_in_graph(entry.request)
    return entry._replace(kernel=choice.kernel, reason=f"compiled, {choice.reason}")
