"""A value per ordered pair of tokens of a set: bonds, distances, connections."""

from __future__ import annotations

from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.tokens import HeadSpec, TokenSpec


class PairHead(nn.Module):
    """``(B, N, N, len(outputs))`` over the flattened tokens: a bilinear form per output."""

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.count = len(head.outputs)
        self.left = nn.Linear(width, stem_width * self.count)
        self.right = nn.Linear(width, stem_width * self.count)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        if len(head.outputs) != self.count:
            raise ValueError("a pair head's outputs are fixed when it is made")

    def forward(self, given: HeadInput) -> Tensor:
        x = given.tokens.flatten(1, -2)
        left, right = (f(x).unflatten(-1, (self.count, -1)) for f in (self.left, self.right))
        return (left.transpose(1, 2) @ right.permute(0, 2, 3, 1)).movedim(1, -1) / left.shape[-1] ** 0.5


PLUGIN = PairHead
