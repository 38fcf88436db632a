"""Stem and head of cells: no seams between patches, the same function on every grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciml import tokens
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.testing.parameters import stir
from sciml.tokens import HeadSpec, TokenBatch, TokenSpec

U = ("torus/u",)
DOUBLE = torch.float64


def operator(head: str, stem: str, mixer: str = "local") -> Operator:
    torch.manual_seed(0)
    spec = TokenSpec("torus", U, {"state": HeadSpec(head, U)}, stem=stem, patch=4, patch_length=1 / 4)
    level = {"width": 16, "depth": 1, "mixers": [mixer], "head_width": 16}
    made = Operator(OperatorConfig.model_validate({"stem_width": 8, "condition_width": 16, "levels": [level]}),
                    {"torus": spec}).to(DOUBLE)
    stir(made)
    return made.eval()


def batch(values: Tensor) -> TokenBatch:
    axes = tuple(tokens.space(name, torch.arange(n, dtype=DOUBLE) / n, period=1.0)
                 for name, n in zip("xy", values.shape[1:-1]))
    return TokenBatch("torus", "torus", values, U, axes, num_segments=len(values))


def answer(made: Operator, values: Tensor) -> Tensor:
    return made(batch(values))["state"]


def waves(n: int) -> Tensor:
    """A sum of a few waves at the points of an n × n grid, ``(1, n, n, 1)``."""
    x, y = (2 * math.pi * torch.arange(n, dtype=DOUBLE) / n)[:, None], (2 * math.pi * torch.arange(n, dtype=DOUBLE) / n)
    return (torch.sin(x + 2 * y) + torch.cos(3 * x - y))[None, ..., None]


def test_what_is_near_matters_alike_on_both_sides_of_a_seam() -> None:
    """With tokens that say nothing, the answer of a cell depends on its neighbour's value, whoever's cell that is; and
    a shift by one cell, no multiple of the patch, shifts the answer."""
    made = operator("cells", "cells")
    with torch.no_grad():
        made.ports["torus"].heads["state"].narrow.weight.zero_()  # type: ignore[index, union-attr]
        made.ports["torus"].heads["state"].narrow.bias.zero_()  # type: ignore[index, union-attr]
    values = torch.randn(1, 16, 16, 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    slopes = torch.autograd.functional.jacobian(lambda v: answer(made, v)[0, :, 5, 0], values)[:, 0, :, 5, 0]
    assert (slopes.diagonal(1).abs() > 1e-6).all()
    torch.testing.assert_close(answer(made, values.roll(1, 1)), answer(made, values).roll(1, 1))


@pytest.mark.parametrize("n", [24, 32])
def test_the_same_function_has_the_same_answer_at_common_points(n: int) -> None:
    made = operator("cells", "cells", "radial")
    one, other = (answer(made, waves(m))[:, :: m // 8, :: m // 8] for m in (16, n))
    torch.testing.assert_close(other, one)
    assert one.std() > 1e-3


def test_a_stem_without_cells_is_refused() -> None:
    with pytest.raises(InputError, match="expected the stem cells"):
        answer(operator("cells", "patch"), waves(16))
