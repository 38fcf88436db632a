"""Cards: what a model of a domain has to be checked for beside its scores, each figure with unit, limit and verdict.

A card is a plug-in of the group ``sciml.cards`` under its domain's name: `Card` below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from sciml import registry
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.predictor import Predictor

Progress = Callable[[int, int], None]
Verdict = Literal["holds", "fails", "open", ""]
"""open: the measurement is too short to tell; empty: no limit, for information."""


@dataclass(frozen=True)
class Entry:
    """One figure; `judged` says when it holds."""

    name: str
    value: float
    unit: str
    limit: float | None
    verdict: Verdict
    note: str = ""


class Card(Protocol):
    def __call__(self, predictor: Predictor, store: Store, split: SplitName, assignments: Sequence[str] = (),
                 progress: Progress | None = None) -> list[Entry]:
        """Raises `InputError` on assignments ``key=value`` that the card doesn't have."""
        ...


def judged(name: str, value: float, unit: str, limit: float, note: str = "", *, least: bool = False) -> Entry:
    """An entry that holds if its value is at most `limit` (at least, if `least`); what is not finite fails.

    >>> judged("drift", 0.1, "meV", 0.02).verdict, judged("drift", float("nan"), "meV", 0.02).verdict
    ('fails', 'fails')
    """
    holds = value >= limit if least else value <= limit
    return Entry(name, value, unit, limit, "holds" if holds else "fails", note)


def card(predictor: Predictor, store: Store, split: SplitName = "test", assignments: Sequence[str] = (),
         progress: Progress | None = None) -> list[dict[str, Any]]:
    """The rows of the card of the store's domain; none if it has no card."""
    if store.meta.domain not in registry.names("sciml.cards"):
        return []
    make: Card = registry.find("sciml.cards", store.meta.domain)
    return [asdict(entry) for entry in make(predictor, store, split, assignments, progress)]
