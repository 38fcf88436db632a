"""One row of named outputs per segment: a sum over its tokens (extensive) or a mean."""

from __future__ import annotations

from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedRows
from sciml.tokens import HeadSpec, TokenSpec


class PooledHead(nn.Module):
    """``(S, len(outputs))``: Σ over the tokens of a segment of an MLP of each; divided by their number for "mean"."""

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.reduction, self.names = head.reduction, list(head.outputs)
        self.hidden = nn.Linear(width, width)
        self.outputs = NamedRows(head.outputs, width, std=0.1 / width**0.5)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        self.outputs.extend(head.outputs)
        self.names = list(dict.fromkeys((*self.names, *head.outputs)))

    def forward(self, given: HeadInput) -> Tensor:
        x = given.levels[0] if self.reduction == "sum" else given.tokens
        y = nn.functional.silu(self.hidden(x)) @ self.outputs(self.names).T
        packed = given.geometry.packed_axis
        if packed is None:
            flat = y.flatten(1, -2)
            return flat.sum(1) if self.reduction == "sum" else flat.mean(1)
        segment = given.geometry.axes[packed].segment
        assert segment is not None
        rows = y.movedim(packed + 1, 1).flatten(2, -2).sum(2)[0] if y.ndim > 3 else y[0]  # (n, K)
        total = rows.new_zeros(given.batch.num_segments, rows.shape[-1]).index_add(0, segment[0], rows)
        if self.reduction == "sum":
            return total
        count = segment[0].bincount(minlength=given.batch.num_segments)[:, None]
        return total / (count * (y[0].numel() // (rows.shape[0] * rows.shape[1])))


PLUGIN = PooledHead
