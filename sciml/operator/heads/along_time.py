"""Named outputs at every time, one for all that the lattice holds there: the behaviour that a population tells."""

from __future__ import annotations

from torch import Tensor, nn

from sciml.operator.heads.contract import HeadInput
from sciml.operator.named import NamedRows
from sciml.operator.patch import Taps, unfold
from sciml.tokens import HeadSpec, TokenSpec


class AlongTimeHead(nn.Module):
    """``(B, *lattice with 1 for every axis but time, len(outputs))``: an MLP of the mean over the other axes."""

    on_lattice = True

    def __init__(self, spec: TokenSpec, head: HeadSpec, stem_width: int, width: int) -> None:
        super().__init__()
        self.names = list(head.outputs)
        self.hidden = nn.Linear(width, width)
        self.narrow = nn.Linear(width, stem_width)
        self.taps = Taps(stem_width, spec.patch)
        self.outputs = NamedRows(head.outputs, stem_width, std=0.0)

    def extend(self, head: HeadSpec, spec: TokenSpec) -> None:
        self.outputs.extend(head.outputs)
        self.names = list(dict.fromkeys((*self.names, *head.outputs)))

    def forward(self, given: HeadInput) -> Tensor:
        others = [i + 1 for i, axis in enumerate(given.geometry.axes) if axis.kind != "time"]
        x = given.tokens.mean(others, keepdim=True) if others else given.tokens
        x = self.narrow(nn.functional.silu(self.hidden(x)))
        sizes = [size if axis.kind == "time" else 1 for size, axis in zip(given.sizes, given.geometry.axes)]
        kernel = self.taps.kernel(sizes).flatten(0, 1)  # (P * w, w)
        return unfold(x @ kernel.T, sizes, kernel.shape[-1]) @ self.outputs(self.names).T


PLUGIN = AlongTimeHead
