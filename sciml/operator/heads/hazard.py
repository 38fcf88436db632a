"""What may come after each event: a value per member of a set and interval of the time since then, be it the log of a
hazard or the logit of a class."""

from __future__ import annotations

from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedTables
from sciml.tokens import HeadSpec, TokenSpec


class HazardHead(nn.Module):
    """``(B, events, members, intervals)``: ⟨W_j h, row[n]⟩ + bias[n, j], one interval per output of the head.

    Rows and biases belong to the members of the namespace of the events' ids, start at zero, and new members get their
    own.
    """

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.num_intervals, self.stem_width = len(head.outputs), stem_width
        self.project = nn.Linear(width, self.num_intervals * stem_width)
        self.rows = NamedTables(stem_width + self.num_intervals, std=0.0)
        self.extend(head, spec)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        if len(head.outputs) != self.num_intervals:
            raise ValueError("a hazard head's intervals are fixed when it is made")
        for namespace, members in spec.identities.items():
            self.rows.extend(namespace, len(members))

    def forward(self, given: HeadInput) -> Tensor:
        namespace = next(axis.namespace for axis in given.batch.axes if axis.ids is not None)
        assert namespace is not None
        table = self.rows(namespace)  # (members, w + J)
        h = self.project(given.tokens).unflatten(-1, (self.num_intervals, self.stem_width))  # (B, n, J, w)
        y = h @ table[:, :self.stem_width].T / self.stem_width**0.5  # (B, n, J, members)
        return y.transpose(-1, -2) + table[:, self.stem_width:]


PLUGIN = HazardHead
