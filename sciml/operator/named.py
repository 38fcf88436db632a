"""Weights whose rows belong to names: a lab's new channel adds a row, known ones keep theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def key(name: str) -> str:
    """A name as it may stand in a state-dict key (which is split at dots)."""
    return name.replace(".", "·")


class NamedRows(nn.Module):
    """One row ``(width,)`` per name; state-dict keys end in the name, so they are stable as names are added."""

    def __init__(self, names: Iterable[str], width: int, std: float) -> None:
        super().__init__()
        self.width, self.std = width, std
        self.names: tuple[str, ...] = ()
        self.rows = nn.ParameterDict()
        self.extend(names)

    def extend(self, names: Iterable[str]) -> list[str]:
        """Add the rows that are missing; returns their names."""
        added = [name for name in dict.fromkeys(names) if key(name) not in self.rows]
        self.names += tuple(added)
        for name in added:
            self.rows[key(name)] = nn.Parameter(torch.randn(self.width) * self.std)
        return added

    def forward(self, names: Sequence[str]) -> Tensor:
        """``(len(names), width)``"""
        return torch.stack([self.rows[key(name)] for name in names])


class NamedTables(nn.Module):
    """One embedding table ``(members, width)`` per namespace, with the members' names in row order."""

    def __init__(self, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.width, self.std = width, std
        self.tables = nn.ParameterDict()

    def extend(self, namespace: str, members: int, std: float | None = None) -> None:
        """Make room for that many members; rows that exist stay as they are, new ones start at zero. The first of a
        namespace are random, of standard deviation `std` (default: that of all tables)."""
        name, old = key(namespace), None
        if name in self.tables:
            old = self.tables[name]
            if len(old) >= members:
                return
        if old is None:
            rows = torch.randn(members, self.width) * (self.std if std is None else std)
        else:
            rows = torch.zeros(members, self.width)
            rows[: len(old)] = old.detach()
        self.tables[name] = nn.Parameter(rows)

    def forward(self, namespace: str) -> Tensor:
        return self.tables[key(namespace)]
