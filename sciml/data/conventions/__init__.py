"""What is usual in the data of a domain: the name of a group, how it is split, what may be missing.

A plug-in per domain in the group ``sciml.data.conventions``; a domain without one goes by the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sciml import registry
from sciml.data.schema import Role
from sciml.data.split_config import Fractions

CONVENTIONS = "sciml.data.conventions"


@dataclass(frozen=True)
class Convention:
    """group_dim: what a group is called. by: what a source is split by unless it says so, with these fractions.

    gap_s: what happens now shows in what happens so many seconds later, which are left out between blocks of time.
    together: a variable of one number per group; groups of equal ones stay in one split if there are at least
    `sciml.data.splits.FEWEST` different ones, else groups are split in the order of the file. missing: roles of
    variables that may hold NaN. timed: groups go on in time. described: readers know roles and units by themselves.
    split: what a starter file says of it, empty for what fits the size of the data.
    """

    group_dim: str = "trajectory"
    by: Literal["group", "time"] = "group"
    fractions: Fractions = field(default_factory=Fractions)
    gap_s: float | None = None
    together: str | None = None
    missing: tuple[Role, ...] = ("label",)
    timed: bool = True
    described: bool = False
    split: str = ""


def convention_of(domain: object) -> Convention:
    """The convention of a domain.

    >>> convention_of("spikes").group_dim, convention_of("fields").group_dim
    ('recording', 'trajectory')
    """
    if domain not in registry.names(CONVENTIONS):
        return Convention()
    found: Convention = registry.find(CONVENTIONS, str(domain))
    return found
