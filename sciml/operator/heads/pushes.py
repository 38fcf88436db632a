"""A vector per point: the sum of what its neighbours push it along their directions; turns as the points do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciml.mixers.neighbours import neighbours_of
from sciml.operator.heads.contract import HeadInput
from sciml.tokens import HeadSpec, TokenSpec

NUM_BASIS = 16


class PushesHead(nn.Module):
    """``(1, n, 3)``: Σ_j f(x_i, x_j, r_ij) r̂_ij over the neighbours within a reference length. Equal and opposite
    between two points if the same is said of both, which is not enforced."""

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.receiver, self.sender = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.radial = nn.Linear(NUM_BASIS, width, bias=False)
        self.out = nn.Linear(width, 1, bias=False)
        self.register_buffer("centers", torch.linspace(0, 1, NUM_BASIS), persistent=False)
        nn.init.normal_(self.out.weight, std=0.1 / width**0.5)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        """One vector has no names to add."""

    def forward(self, given: HeadInput) -> Tensor:
        pairs, x = neighbours_of(given.geometry), given.tokens[0]
        centers: Tensor = self.centers  # type: ignore[assignment]
        basis = torch.exp(-((pairs.distance[:, None] - centers.to(x.dtype)) * NUM_BASIS).square())
        hidden = self.receiver(x)[pairs.receiver] + self.sender(x)[pairs.sender] + self.radial(basis)
        push = self.out(nn.functional.silu(hidden)) * (pairs.envelope / pairs.distance)[:, None] * pairs.vector
        return torch.zeros_like(x[:, :3]).index_add(0, pairs.receiver, push)[None]


PLUGIN = PushesHead
