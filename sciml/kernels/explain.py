"""What runs where: one forward pass of an operator, told by level, block and mixer."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from sciml.kernels.dispatch import Entry, admissible, record


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


def explain(places: list[tuple[str, str, nn.Module]], run: Callable[[], Any]) -> list[Line]:
    """Lines of all `places` (place, mixer's name, module ``(x (B, *lattice, C), …)``) in the order `run` calls them."""
    lines: list[Line] = []
    with record() as entries:
        handles = [handle for place in places for handle in _watch(*place, entries, lines)]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return lines


def _watch(place: str, mixer: str, module: nn.Module, entries: list[Entry], lines: list[Line]) -> Iterator[Any]:
    began: list[int] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        began.append(len(entries))

    def after(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        lattice = "×".join(map(str, args[0].shape[1:-1]))
        lines.extend(_lines(place, mixer, lattice, module, entries[began.pop():]))

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after)


def _lines(place: str, mixer: str, lattice: str, module: nn.Module, entries: list[Entry]) -> Iterator[Line]:
    """Equal calls as one line; a mixer without attention by what it says of itself."""
    if not entries:
        said = (inspect.getdoc(type(module)) or "").partition("\n")[0]
        yield Line(place, mixer, lattice, "own", said)
    for entry, calls in Counter(entries).items():
        refused = "; ".join(f"{name}: {why}" for name, why in admissible(entry.request).items() if why is not None)
        kernel = "  " * entry.depth + entry.kernel
        why = f"{entry.reason}: {entry.request.rows} rows of {entry.request.keys} keys"
        yield Line(place, mixer, lattice, kernel, why, entry.request.key(), calls, refused)
