"""Linear attention of each kind: its formula over all pairs, conserved flows, packed samples, padding, positions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mixer_laws import (
    assert_a_cell_may_be_cut,
    assert_a_permuted_set_is_permuted,
    assert_autocast_is_near,
    assert_only_relative_coordinates_matter,
)
from torch import Tensor

from sciml.errors import InputError
from sciml.mixers.contract import Mixer, make_mixer
from sciml.mixers.geometry import Geometry
from sciml.mixers.linear import BLOCK, Samples, _make_samples, aggregate, flow, softmax, total
from sciml.tokens import Axis, space, time

KINDS = ("flow", "normalised", "elu")
WIDTH, HEADS = 8, 2


def make(kind: str, seed: int = 0) -> Mixer:
    torch.manual_seed(seed)
    return make_mixer("linear", {"kind": kind}, WIDTH, HEADS).double()


def lattice(name: str) -> tuple[Tensor, tuple[Axis, ...]]:
    torch.manual_seed(5)
    x = space("x", torch.tensor([0.0, 0.2, 0.5, 0.9]), period=1.3)
    y = Axis("y", "set", torch.rand(2, 3, 1), measure=torch.tensor([[0.3, 0.4, 0.0]]))
    if name == "weighted":
        return torch.randn(2, 4, 3, WIDTH), (x, y)
    if name == "causal between":  # mixed over x and y at each time
        return torch.randn(2, 4, 5, 3, WIDTH), (x, time("t", torch.arange(5.0), causal=True), y)
    segment = torch.tensor([[0, 0, 0, 1, 3, 3]])
    atoms = Axis("atoms", "set", torch.rand(1, 6, 3), segment=segment)
    return torch.randn(1, 4, 6, WIDTH), (x, atoms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["weighted", "causal between", "packed"])
def test_equals_the_formula_over_pairs_with_two_derivatives(kind: str, name: str) -> None:
    mixer, (x, axes) = make(kind), lattice(name)
    x.requires_grad_()
    both = []
    for y in (mixer(x, Geometry(axes, second_order=True))[0], mixer.reference(x, Geometry(axes, second_order=True))):
        wanted = [x, *mixer.parameters()]
        first = torch.autograd.grad((y * y.detach().cos()).sum(), wanted, create_graph=True)
        both.append((y, *first, *torch.autograd.grad(first[0].square().sum(), wanted)))
    for fast, slow in zip(*both, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-9 * float(slow.detach().abs().max() + 1))


def samples_of(packed: bool) -> Samples | None:
    return _make_samples(torch.tensor([0, 0, 2, 0, 1, 2, 2])) if packed else None


@pytest.mark.parametrize("packed", [False, True])
def test_flows_are_conserved(packed: bool) -> None:
    """Sinks divided by their inflow take in 1 each; sources divided by their outflow give 1 each."""
    q, k = torch.rand(2, HEADS, 7, 4) + 0.01, torch.rand(2, HEADS, 7, 4) + 0.01
    segment = samples_of(packed).segment if packed else torch.zeros(7, dtype=torch.long)  # type: ignore[union-attr]
    weight = torch.rand(2, 1, 7, 1)
    flows = flow(q, k, weight, samples_of(packed))
    together = (segment[:, None] == segment[None, :]).to(q.dtype)
    w = weight[:, :, :, 0]
    into_sinks = torch.einsum("rhid,rhjd,rhj,ij->rhi", q / flows.sink, k, w.expand(2, HEADS, 7), together)
    from_sources = torch.einsum("rhid,rhjd,rhi,ij->rhj", q, k / flows.source, w.expand(2, HEADS, 7), together)
    torch.testing.assert_close(into_sinks, torch.ones_like(into_sinks))
    torch.testing.assert_close(from_sources, torch.ones_like(from_sources))
    # what is conserved: all that comes in through one side's unit flows goes out through the other's
    unit = total(torch.ones(2, HEADS, 7, 1) * weight, samples_of(packed))
    torch.testing.assert_close(total(flows.incoming * weight, samples_of(packed)), unit)
    torch.testing.assert_close(total(flows.outgoing * weight, samples_of(packed)), unit)


def test_sums_per_sample_are_those_of_a_loop() -> None:
    segment = torch.cat([torch.zeros(2 * BLOCK + 1), torch.full((3,), 2.0), torch.ones(BLOCK), torch.zeros(2)]).long()
    n, samples = len(segment), _make_samples(segment)
    assert samples is not None
    q, k, v = torch.randn(3, 1, HEADS, n, 4)
    logits = torch.randn(1, HEADS, n, 1) * 300
    for s in segment.unique():
        at = segment == s
        expected = q[:, :, at] @ k[:, :, at].transpose(-1, -2) @ v[:, :, at]
        torch.testing.assert_close(aggregate(q, k, v, samples)[:, :, at], expected)
        torch.testing.assert_close(total(v, samples)[:, :, at], v[:, :, at].sum(2, keepdim=True).expand_as(v[:, :, at]))
        torch.testing.assert_close(softmax(logits, samples)[:, :, at], logits[:, :, at].softmax(2))


@pytest.mark.parametrize("kind", KINDS)
def test_cells_of_measure_zero_are_not_seen(kind: str) -> None:
    mixer, (x, axes) = make(kind), lattice("weighted")
    short = replace(axes[1], coord=axes[1].coord[:, :2], measure=torch.tensor([[0.3, 0.4]]))
    noise = torch.cat([x[:, :, :2], torch.randn(2, 4, 1, WIDTH) * 50], 2)
    alone = mixer(x[:, :, :2], Geometry((axes[0], short)))[0]
    torch.testing.assert_close(mixer(noise, Geometry(axes))[0][:, :, :2], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_cut_into_two_of_half_the_measure_changes_nothing(kind: str) -> None:
    assert_a_cell_may_be_cut(make(kind), WIDTH)


@pytest.mark.parametrize("kind", KINDS)
def test_refining_an_uneven_axis_converges_at_second_order(kind: str) -> None:
    mixer, sizes, values = make(kind), (17, 33, 65, 1025), []
    for n in sizes:
        s = torch.linspace(0, 1, n)
        coord = s + 0.3 * s**2
        u = torch.sin(torch.arange(1.0, WIDTH + 1) * coord[:, None] + torch.arange(WIDTH))[None]
        values.append(mixer(u, Geometry((space("x", coord),)))[0][:, :: (n - 1) // 16])
    errors = torch.stack([(v - values[-1]).norm() for v in values[:-1]])
    assert (errors[0] / errors[-1]).log2() / math.log2(4) > 1.7, errors


@pytest.mark.parametrize("kind", KINDS)
def test_only_relative_coordinates_matter_and_they_do(kind: str) -> None:
    mixer, points = make(kind), Axis("points", "set", torch.rand(2, 5, 3))
    assert_only_relative_coordinates_matter(mixer, torch.randn(2, 5, WIDTH), points)
    assert_a_permuted_set_is_permuted(mixer, points, WIDTH)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_samples_equal_one_at_a_time(kind: str) -> None:
    mixer, (x, axes) = make(kind), lattice("packed")
    x.requires_grad_()
    together = mixer(x, Geometry(axes))[0]
    for part in (slice(0, 3), slice(3, 4), slice(4, 6)):
        own = replace(axes[1], coord=axes[1].coord[:, part], segment=None)
        torch.testing.assert_close(together[:, :, part], mixer(x[:, :, part], Geometry((axes[0], own)))[0])
        slope, = torch.autograd.grad(together[:, :, part].square().sum(), x, retain_graph=True)
        outside = torch.ones(6, dtype=torch.bool)
        outside[part] = False
        assert (slope[:, :, outside] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_many_tokens_stay_finite_in_single_precision(kind: str) -> None:
    mixer = make(kind).float()
    with torch.no_grad():
        mixer.projections.query_norm.gain.fill_(20.0)  # type: ignore[union-attr, operator]
        mixer.projections.key_norm.gain.fill_(20.0)  # type: ignore[union-attr, operator]
    x = torch.randn(1, 4096, WIDTH, dtype=torch.float32, requires_grad=True)
    y = mixer(x, Geometry((space("x", torch.arange(4096, dtype=torch.float32) / 4096, period=1.0),)))[0]
    slopes = torch.autograd.grad(y.square().mean(), [x, *mixer.parameters()])
    assert y.isfinite().all()
    assert all(s.isfinite().all() for s in slopes)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_is_near(kind: str) -> None:
    mixer, (x, axes) = make(kind).float(), lattice("packed")
    single = tuple(replace(a, coord=a.coord.float(), period=None if a.period is None else a.period.float(),
                           measure=None if a.measure is None else a.measure.float()) for a in axes)
    assert_autocast_is_near(mixer, x.float(), single)


def test_a_causal_axis_is_not_its_own() -> None:
    mixer, axis = make("flow"), time("t", torch.arange(4.0), causal=True)
    assert not mixer.admits(axis)
    assert (mixer(torch.randn(1, 4, WIDTH), Geometry((axis,)))[0] == 0).all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="kind"):
        make("relu")
