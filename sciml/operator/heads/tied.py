"""Logits over the members of a namespace, from the same embedding that the stem reads them by."""

from __future__ import annotations

from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.tokens import HeadSpec, TokenSpec


class TiedHead(nn.Module):
    """``(B, *lattice, members)``: tokens projected onto the identity embedding (next-unit logits)."""

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        assert head.namespace is not None
        self.namespace = head.namespace
        self.project = nn.Linear(width, width)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        """Members live in the stem's table; nothing to add here."""

    def forward(self, given: HeadInput) -> Tensor:
        return self.project(given.tokens) @ given.identities(self.namespace).T


PLUGIN = TiedHead
