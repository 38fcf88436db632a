"""The mixer `full` on packed lattices: samples stay apart in any rank and cost no square of all tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sciml.kernels import dispatch
from sciml.mixers.full import Full
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis, space

LENGTHS = (3, 1, 4)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was made, views aside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and not made._is_view():
                self.elements = max(self.elements, made.numel())
        return out


def atoms(lengths: tuple[int, ...], width: int = 3) -> Axis:
    segment = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return Axis("atoms", "set", torch.rand(1, sum(lengths), width), segment=segment[None])


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("second_order", [False, True])
def test_samples_stay_apart_beside_another_axis(place: int, weighted: bool, second_order: bool) -> None:
    torch.manual_seed(0)
    mixer, packed = Full(16, 2).double(), atoms(LENGTHS)
    packed = replace(packed, coord=packed.coord.double())
    other = space("x", torch.tensor([0.0, 0.3, 1.0, 1.2], dtype=torch.float64) if weighted
                  else torch.arange(4, dtype=torch.float64) / 4, period=None if weighted else 1.0)
    axes = [other, other]
    axes[place] = packed
    x = torch.randn(1, *(axis.size for axis in axes), 16, dtype=torch.float64, requires_grad=True)
    together = mixer(x, Geometry(tuple(axes), second_order))[0]
    torch.testing.assert_close(together, mixer.reference(x, Geometry(tuple(axes), second_order)))
    start = 0
    for size in LENGTHS:
        part = slice(start, start + size)
        assert packed.segment is not None
        own = [*axes]
        own[place] = replace(packed, coord=packed.coord[:, part], segment=packed.segment[:, part] * 0)
        alone = mixer(x.narrow(1 + place, start, size), Geometry(tuple(own), second_order))[0]
        torch.testing.assert_close(together.narrow(1 + place, start, size), alone)
        start += size


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_short_samples_cost_no_square_of_all_tokens(second_order: bool, prepared: bool) -> None:
    lengths = tuple(5 + i % 4 for i in range(80))
    axis, n = atoms(lengths), sum(lengths)
    mixer, geometry = Full(16, 2), Geometry((axis,), second_order)
    with Largest() as largest:
        if prepared:
            mixer.prepare(geometry)
            assert {"packed tokens"} <= {key if isinstance(key, str) else key[0] for key in geometry.memo}
        mixer(torch.randn(1, n, 16, requires_grad=True), geometry)[0].sum().backward()
    assert largest.elements < n * n / 4


def test_a_pair_bias_keeps_its_gradient_and_the_packed_kernel() -> None:
    axis = atoms(LENGTHS)
    bias = torch.randn(1, 2, 8, 8, requires_grad=True)
    with dispatch.frozen({}), dispatch.record() as entries:
        y = Full(16, 2)(torch.randn(1, 8, 16), Geometry((axis,), pair_bias=lambda heads: bias))[0]
    slope, = torch.autograd.grad(y.square().sum(), bias)
    assert entries[0].kernel == "packed"
    assert axis.segment is not None
    apart = axis.segment[0, :, None] != axis.segment[0, None, :]
    assert (slope[:, :, apart] == 0).all()
    assert slope.abs().sum() > 0
