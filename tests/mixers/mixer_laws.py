"""Laws that several mixers obey, as assertions, and what their tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sciml.mixers.contract import Mixer
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def noise(axes: Sequence[Axis], width: int) -> Tensor:
    """x ``(B, *lattice, width)``, B as many samples as have coordinates of their own."""
    batch = max(len(axis.coord) for axis in axes)
    return torch.randn(batch, *(axis.size for axis in axes), width, generator=torch.Generator().manual_seed(3))


def value_and_slopes(run: Callable[[Tensor], Tensor], x: Tensor, mixer: Mixer) -> list[Tensor]:
    """The result, and the slopes of a number made of it with respect to `x` and every parameter."""
    leaf = x.clone().requires_grad_()
    y = run(leaf)
    slopes = torch.autograd.grad((y * y.detach().cos()).sum(), [leaf, *mixer.parameters()], allow_unused=True,
                                 materialize_grads=True) if y.requires_grad else ()
    return [y.detach(), *slopes]


def assert_equals_reference(mixer: Mixer, x: Tensor, geometry: Geometry, tolerance: float = 1e-9) -> list[Tensor]:
    """So do the gradients; those of the parameters are returned."""
    fast, slow = (value_and_slopes(run, x, mixer) for run in (lambda t: mixer(t, geometry)[0],
                                                              lambda t: mixer.reference(t, geometry)))
    assert fast[0].shape == x.shape
    for one, two in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
    return fast[2:]


def assert_second_derivatives_equal(mixer: Mixer, x: Tensor, geometry: Geometry, tolerance: float = 1e-9) -> None:
    """Those of the reference, relative to the largest, for all parameters that such a lattice uses."""
    used = [p for name, p in mixer.named_parameters() if name in mixer.parameters_of(geometry.axes)]
    both = []
    for run in (lambda t: mixer(t, geometry)[0], lambda t: mixer.reference(t, geometry)):
        leaf = x.clone().requires_grad_()
        first, = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
        both.append(torch.autograd.grad(first.square().sum(), [leaf, *used]))
    for fast, slow in zip(*both, strict=True):
        scale = slow.abs().max()
        torch.testing.assert_close(fast / scale, slow / scale, rtol=tolerance, atol=tolerance)


def lengthened(axis: Axis, more: int) -> Axis:
    """The axis with cells of measure zero behind it."""
    batch, _, width = axis.coord.shape
    return replace(axis, coord=torch.cat([axis.coord, torch.ones(batch, more, width)], 1),
                   measure=torch.cat([axis.weights(), torch.zeros(len(axis.weights()), more)], 1))


def assert_padding_is_not_seen(mixer: Mixer, x: Tensor, axes: tuple[Axis, ...], more: int) -> None:
    """Cells of measure zero behind the first axis, whatever stands in them."""
    longer, n = (lengthened(axes[0], more), *axes[1:]), x.shape[1]
    filler = torch.randn(len(x), more, *x.shape[2:])
    padded = mixer(torch.cat([x, filler], 1), Geometry(longer))[0]
    torch.testing.assert_close(padded[:, :n], mixer(x, Geometry(axes))[0])


def assert_a_cell_may_be_cut(mixer: Mixer, width: int, others: tuple[Axis, ...] = ()) -> None:
    """Into two of half the measure at the same place, which changes nothing."""
    axis = Axis("x", "space", torch.tensor([0.0, 0.3, 0.7, 0.9])[None, :, None],
                measure=torch.tensor([[0.2, 0.4, 0.1, 0.3]]))
    cut = torch.tensor([0, 1, 1, 2, 3])
    finer = replace(axis, coord=axis.coord[:, cut], measure=torch.tensor([[0.2, 0.2, 0.2, 0.1, 0.3]]))
    x = torch.randn(2, 4, *(other.size for other in others), width)
    whole = mixer(x, Geometry((axis, *others)))[0]
    torch.testing.assert_close(mixer(x[:, cut], Geometry((finer, *others)))[0], whole[:, cut])


def assert_only_relative_coordinates_matter(mixer: Mixer, x: Tensor, axis: Axis) -> None:
    """And they do."""
    away = torch.randn(1, 1, axis.coord.shape[-1])
    here = mixer(x, Geometry((axis,)))[0]
    torch.testing.assert_close(mixer(x, Geometry((replace(axis, coord=axis.coord + away),)))[0], here)
    nearer = mixer(x, Geometry((replace(axis, coord=axis.coord * 0.5),)))[0]
    assert not torch.allclose(nearer, here), "positions must matter at all"


def assert_packed_samples_are_apart(mixer: Mixer, width: int, others: tuple[Axis, ...] = ()) -> None:
    """Three atoms and two: each as if it were alone."""
    segment = torch.tensor([[0, 0, 0, 1, 1]])
    axis = Axis("atoms", "set", random(1, 5, 3), segment=segment)
    x = torch.randn(1, 5, *(other.size for other in others), width)
    together = mixer(x, Geometry((axis, *others)))[0]
    for part in (slice(0, 3), slice(3, 5)):
        own = replace(axis, coord=axis.coord[:, part], segment=segment[:, part] * 0)
        torch.testing.assert_close(together[:, part], mixer(x[:, part], Geometry((own, *others)))[0])


def assert_a_permuted_set_is_permuted(mixer: Mixer, points: Axis, width: int, others: tuple[Axis, ...] = ()) -> None:
    order = torch.randperm(points.size)
    moved = replace(points, coord=points.coord[:, order], measure=points.weights()[:, order])
    x = torch.randn(2, points.size, *(other.size for other in others), width)
    y = mixer(x, Geometry((points, *others)))[0]
    torch.testing.assert_close(mixer(x[:, order], Geometry((moved, *others)))[0], y[:, order])


def assert_autocast_is_near(mixer: Mixer, x: Tensor, axes: tuple[Axis, ...]) -> None:
    """bfloat16 within 5 % of single precision; all are given in it."""
    exact = mixer(x, Geometry(axes))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = mixer(x, Geometry(axes))[0]
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


class Ops(TorchDispatchMode):
    """Names of the operations that were run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))
