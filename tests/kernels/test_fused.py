"""Fused elementwise parts: values and derivatives of the plain formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sciml.kernels.fused import EPSILON, rotate, scaled_norm


def plain_norm(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * scale
    return y if shift is None else y + shift


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    turned = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], -1)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


ANGLES = torch.rand(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "norm": (scaled_norm, plain_norm, (leaf(2, 3, 8), leaf(8))),
    "modulated": (scaled_norm, plain_norm, (leaf(2, 3, 8), leaf(2, 1, 8), leaf(2, 1, 8))),
    "rotation": (lambda x: rotate(x, ANGLES.cos(), ANGLES.sin()),
                 lambda x: plain_rotation(x, ANGLES.cos(), ANGLES.sin()), (leaf(2, 3, 8),)),
    "rotation, angles too": (lambda x, t: rotate(x, t.cos(), t.sin()),
                             lambda x, t: plain_rotation(x, t.cos(), t.sin()), (leaf(2, 3, 8), leaf(3, 4))),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula_to_the_second_derivative(case: str) -> None:
    fused, plain, inputs = CASES[case]
    both = []
    for run in (fused, plain):
        y = run(*inputs)
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((s**2).sum() for s in first), inputs)
        both.append((y, *first, *second))
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.autograd.gradcheck(fused, inputs)
    assert torch.autograd.gradgradcheck(fused, inputs)


def test_a_first_derivative_leaves_no_graph_and_its_inputs_alone() -> None:
    x, scale = leaf(4, 8), leaf(8)
    kept = x.detach().clone()
    slope, = torch.autograd.grad(scaled_norm(x, scale).sum(), x)
    assert not slope.requires_grad
    torch.testing.assert_close(x.detach(), kept)


def test_norm_is_torchs() -> None:
    x = torch.randn(5, 16)
    torch.testing.assert_close(scaled_norm(x, torch.ones(16)), F.rms_norm(x, (16,), eps=EPSILON))


@pytest.mark.parametrize("size", [1.0, 0.1, 0.01])
def test_reduced_precision_is_normalised_in_single(size: float) -> None:
    x = (size * torch.randn(64, 32)).bfloat16()
    exact = plain_norm(x.double(), torch.ones(32, dtype=torch.float64))
    y = scaled_norm(x, torch.ones(32))
    assert y.dtype == torch.float32
    assert float((y - exact).norm() / exact.norm()) < 1e-3
