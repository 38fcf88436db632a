"""Rotary angles against a loop over tokens and channel pairs; which axis a pair bias is about, and what it replaces."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciml import registry
from sciml.errors import InputError
from sciml.mixers.contract import Mixer
from sciml.mixers.geometry import HIGHEST_OCTAVE, LOWEST_OCTAVE, MAX_HARMONIC, Geometry, pair_axis_of
from sciml.tokens import Axis, space, time

NAMES = registry.names("sciml.mixers")
WIDTH, HEADS = 24, 2


def make(name: str) -> Mixer:
    torch.manual_seed(0)
    return registry.find("sciml.mixers", name)(WIDTH, HEADS).double()


def points(n: int = 5, batch: int = 2) -> Axis:
    return Axis("points", "set", torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(3)))


def lattice(name: str) -> tuple[Axis, ...]:
    atoms, steps = points(4), time("t", torch.tensor([0.0, 0.2, 0.7]))
    return {"points": (atoms,), "points in a box": (replace(atoms, period=torch.tensor([1.0, 2.0, 0.5])),),
            "open and periodic": (replace(steps, kind="space"), space("x", torch.arange(4) / 2, period=2.0)),
            "points and time": (atoms, steps), "names and points": (Axis("name", "set", torch.zeros(1, 3, 0)), atoms),
            }[name]


@pytest.mark.parametrize("name", ["points", "points in a box", "open and periodic", "points and time",
                                  "names and points"])
@pytest.mark.parametrize("head_width", [8, 22, 60])
def test_angles_are_those_of_a_loop(name: str, head_width: int) -> None:
    axes, pairs = lattice(name), head_width // 2
    columns = [(axis, column) for axis in axes for column in range(axis.coord.shape[-1])]
    batch = max(axis.coord.shape[0] for axis in axes)
    expected = torch.zeros(batch, *(axis.size for axis in axes), pairs)
    for place in torch.cartesian_prod(*(torch.arange(axis.size) for axis in axes)).view(-1, len(axes)).tolist():
        for pair in range(pairs):
            axis, column = columns[pair % len(columns)]
            count, turn = len(range(pair % len(columns), pairs, len(columns))), pair // len(columns)
            index = place[[other is axis for other in axes].index(True)]
            for b in range(batch):
                coord = float(axis.coord[min(b, axis.coord.shape[0] - 1), index, column])
                if axis.period is not None:
                    angle = 2 * math.pi * coord / float(axis.period[column]) * (1 + turn % MAX_HARMONIC)
                else:
                    step = (HIGHEST_OCTAVE - LOWEST_OCTAVE) / (count - 1) if count > 1 else 0.0
                    angle = 2 * math.pi * coord * 2 ** (LOWEST_OCTAVE + turn * step)
                expected[(b, *place, pair)] = angle
    table = Geometry(axes).rotary(tuple(range(len(axes))), head_width)
    assert table is not None
    flat = expected.view(batch, 1, -1, pairs)
    torch.testing.assert_close(table, (flat.cos(), flat.sin()))


def test_without_coordinates_there_are_no_angles() -> None:
    assert Geometry((Axis("name", "set", torch.zeros(1, 3, 0)),)).rotary((0,), 8) is None


@pytest.mark.parametrize("name", ["full", "axial", "topk"])
@pytest.mark.parametrize("column", range(3))
def test_every_coordinate_of_a_point_matters(name: str, column: int) -> None:
    mixer, axis, x = make(name), points(), torch.randn(2, 5, WIDTH)
    coord = axis.coord.clone()
    coord[:, 0, column] += 0.3
    moved = Geometry((replace(axis, coord=coord),))
    assert (mixer(x, moved)[0] - mixer(x, Geometry((axis,)))[0]).abs().max() > 1e-6


@pytest.mark.parametrize(("axes", "place"), [
    ((time("t", torch.arange(3.0)), points(4, 1)), 1),
    ((points(4, 1), replace(points(3, 1), segment=torch.tensor([[0, 0, 1]]))), 1),
    ((points(4, 1), points(3, 1)), 0),
    ((Axis("name", "set", torch.zeros(1, 3, 0)), time("t", torch.arange(3.0))), 0)])
def test_the_pair_axis_is_the_packed_one_else_that_of_points(axes: tuple[Axis, ...], place: int) -> None:
    assert pair_axis_of(axes) == place
    assert Geometry(axes).pair_axis is None
    assert Geometry(axes, pair_bias=lambda heads: torch.zeros(1, heads, 1, 1)).pair_axis == place


def pairs_in_time(batch: int = 2, packed: bool = False) -> tuple[Tensor, tuple[Axis, ...], Tensor]:
    """x, axes (time, points) and a bias ``(B, H, 5, 5)`` for the points."""
    generator = torch.Generator().manual_seed(4)
    atoms = points(5, batch)
    if packed:
        atoms = replace(atoms, segment=torch.tensor([[0, 0, 0, 1, 1]]))
    x = torch.randn(batch, 4, 5, WIDTH, generator=generator)
    return x, (time("t", torch.arange(4) / 4), atoms), torch.randn(batch, HEADS, 5, 5, generator=generator)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("full", "topk")])
def test_under_a_pair_bias_points_have_no_absolute_place_but_times_do(name: str) -> None:
    """Wherever a mixer sees the points' coordinates without the bias, it doesn't with it; times count as before."""
    mixer, (x, axes, bias) = make(name), pairs_in_time()
    clock, atoms = axes
    def run(*own: Axis) -> Tensor:
        return mixer(x, Geometry(own, pair_bias=lambda heads: bias))[0]
    here, turned = run(clock, atoms), replace(atoms, coord=atoms.coord @ torch.linalg.qr(torch.randn(3, 3))[0])
    torch.testing.assert_close(run(clock, turned), here)
    later = replace(clock, coord=clock.coord * 2)
    sees = not torch.equal(mixer(x, Geometry((later, atoms)))[0], mixer(x, Geometry((clock, atoms)))[0])
    assert sees == (not torch.equal(run(later, atoms), here)), "positions in time are kept, where there are any"


@pytest.mark.parametrize(("batch", "packed"), [(2, False), (1, True)])
def test_axial_adds_the_pair_bias_along_its_axis_and_keeps_time(batch: int, packed: bool) -> None:
    mixer, (x, axes, bias) = make("axial"), pairs_in_time(batch, packed)
    bias.requires_grad_()
    both = []
    for run in (lambda g: mixer(x, g)[0], lambda g: mixer.reference(x, g)):
        y = run(Geometry(axes, pair_bias=lambda heads: bias))
        both.append((y, *torch.autograd.grad(y.square().sum(), bias)))
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one, two)
    assert (both[0][1].flatten(1).abs().amax(1) > 0).all(), "every sample's own bias has an influence"
    later = (replace(axes[0], coord=axes[0].coord * 2), axes[1])
    assert not torch.allclose(mixer(x, Geometry(later, pair_bias=lambda heads: bias))[0], both[0][0])


@pytest.mark.parametrize("name", ["full", "topk"])
def test_attention_over_several_axes_refuses_a_pair_bias_of_one(name: str) -> None:
    mixer, (x, axes, bias) = make(name), pairs_in_time()
    for run in (lambda g: mixer(x, g), lambda g: mixer.reference(x, g), mixer.prepare):
        with pytest.raises(InputError, match=r"\[t, points\]: found a pair bias.*axial"):
            run(Geometry(axes, pair_bias=lambda heads: bias))


@pytest.mark.parametrize("name", ["full", "axial"])
@pytest.mark.parametrize("what", ["a measure", "a pair bias"])
def test_a_memory_of_keys_with_weights_or_a_pair_bias_is_refused(name: str, what: str) -> None:
    """A later chunk can't know what the weights of all keys add up to, nor the bias to earlier ones."""
    axis = time("t", torch.arange(4) / 4, causal=True)
    geometry = Geometry((axis,), pair_bias=lambda heads: torch.zeros(1, heads, 4, 4))
    if what == "a measure":
        geometry = Geometry((replace(axis, measure=torch.tensor([[0.1, 0.3, 0.2, 0.4]])),))
    x = torch.randn(1, 4, WIDTH)
    make(name)(x, geometry)
    with pytest.raises(InputError, match=rf"\[t\]: found {what}"):
        make(name)(x, geometry, ())


def test_full_keeps_nothing_where_no_axis_is_causal() -> None:
    mixer, axis, x = make("full"), points(), torch.randn(2, 5, WIDTH)
    y, state = mixer(x, Geometry((axis,)), ())
    assert state == ()
    torch.testing.assert_close(mixer(x, Geometry((axis,)), state)[0], y)


@pytest.mark.parametrize("name", registry.names("sciml.mixers"))
def test_tables_of_axes_that_a_mixer_may_not_admit_are_made_without_a_word(name: str) -> None:
    coord = torch.rand(6).cumsum(0)
    packed = Axis("event", "set", coord[None, :, None], causal=True, segment=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    for axis in (time("time", coord, causal=True), packed, time("time", coord[:1])):
        mixer, geometry = registry.find("sciml.mixers", name)(16, 2), Geometry((axis,))
        mixer.prepare(geometry)
        assert mixer(torch.randn(1, axis.size, 16), geometry)[0].isfinite().all()
