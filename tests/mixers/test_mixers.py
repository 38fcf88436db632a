"""Every mixer against its reference, its derivatives, its memory, and the laws of quadrature and position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_laws import (
    FLASH,
    Ops,
    assert_a_cell_may_be_cut,
    assert_equals_reference,
    assert_only_relative_coordinates_matter,
    assert_packed_samples_are_apart,
    assert_padding_is_not_seen,
    assert_second_derivatives_equal,
    value_and_slopes,
)
from torch import Tensor

from sciml import registry
from sciml.errors import InputError
from sciml.kernels.attend import attend, attend_plain
from sciml.mixers.contract import Mixer
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis, AxisKind, map_tensors, space, time

NAMES = registry.names("sciml.mixers")
ON_LINES = [name for name in NAMES if name != "cluster"]  # which is of points in space alone: test_cluster.py
ATTENTION = ("axial", "full")
WIDTH, HEADS = 16, 2

# neuraloperator's SpectralConv computes in complex64 whatever it is given: single precision is all there is to compare.
TOLERANCE = {"spectral": 1e-5}


def make(name: str, seed: int = 0) -> Mixer:
    torch.manual_seed(seed)
    return registry.find("sciml.mixers", name)(WIDTH, HEADS).double()


def assert_close(name: str, one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=TOLERANCE.get(name, 1e-9), atol=TOLERANCE.get(name, 1e-9))


@st.composite
def lattices(draw: st.DrawFn) -> tuple[Tensor, Geometry]:
    """x ``(B, *lattice, C)`` and axes of every kind: periods, weights, padding, own coordinates, segments, causal ones;
    one of them of up to 20 indices, which are several windows, groups and regions."""
    rank, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    longest = draw(st.integers(0, rank - 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    axes = []
    for i in range(rank):
        n = draw(st.integers(1, 20 if i == longest else 5 - rank))
        kind = draw(st.sampled_from(["space", "time", "set"]))
        width = {"space": 1, "time": 1, "set": draw(st.sampled_from([0, 1, 3]))}[kind]
        own = batch if draw(st.booleans()) else 1
        coord = torch.rand(own, n, width, generator=generator).cumsum(1)
        period = torch.full((1,), 7.0) if kind == "space" and draw(st.booleans()) else None
        measure = None
        if draw(st.booleans()):
            measure = 0.2 + torch.rand(own, n, generator=generator)
            if n > 1 and draw(st.booleans()):
                measure[:, -1] = 0.0
        causal = kind == "time" and draw(st.booleans())
        axes.append(Axis(f"axis{i}", kind, coord, period=period, measure=measure, causal=causal))
    if batch == 1 and draw(st.booleans()):
        packed = draw(st.integers(0, rank - 1))
        n = axes[packed].size
        segment = torch.sort(torch.randint(0, 3, (1, n), generator=generator)).values
        # every sample keeps a weight of its own, as it does in a batch: padding is never packed
        kind = draw(st.sampled_from(["set", "time"]))
        axes[packed] = replace(axes[packed], kind=kind, period=None, segment=segment, measure=None)
    x = torch.randn(batch, *(a.size for a in axes), WIDTH, generator=generator)
    return x, Geometry(tuple(axes))


def fitting(name: str, geometry: Geometry) -> Geometry:
    """`full` takes a causal axis only where it is the only one."""
    if name != "full" or len(geometry.axes) == 1:
        return geometry
    return Geometry(tuple(replace(axis, causal=False) for axis in geometry.axes))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(lattice=lattices())
def test_equals_its_reference_and_its_gradients_do(name: str, lattice: tuple[Tensor, Geometry]) -> None:
    mixer, x, geometry = make(name), lattice[0], fitting(name, lattice[1])
    assert_equals_reference(mixer, x, geometry, TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(lattice=lattices())
def test_single_precision_is_the_double_one_rounded(name: str, lattice: tuple[Tensor, Geometry]) -> None:
    mixer, x, geometry = make(name), lattice[0], fitting(name, lattice[1])
    exact = value_and_slopes(lambda t: mixer(t, geometry)[0], x, mixer)
    rounded = Geometry(map_tensors(geometry.axes, lambda t: t.float() if t.is_floating_point() else t))
    torch.set_default_dtype(torch.float32)
    try:
        mixer = mixer.float()
        single = value_and_slopes(lambda t: mixer(t, rounded)[0], x.float(), mixer)
    finally:
        torch.set_default_dtype(torch.float64)
    for one, two in zip(single, exact, strict=True):
        assert one.dtype in (torch.float32, torch.complex64)
        assert (one - two).abs().max() <= 2e-4 * two.abs().max() + 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["coordinates", "measures", "both"])
def test_a_batch_is_its_samples_one_at_a_time(name: str, kind: str) -> None:
    """Coordinates and measures of each sample's own, of other lengths and in other places: none sees another's."""
    mixer, generator = make(name), torch.Generator().manual_seed(5)
    coord = torch.rand(3, 10, 1, generator=generator).cumsum(1) * torch.tensor([0.3, 1.0, 2.0])[:, None, None]
    measure = torch.rand(3, 10, generator=generator) * torch.tensor([0.1, 0.3, 1.0])[:, None]
    measure[1, 7:] = 0.0
    axis = Axis("y", "space", coord if kind != "measures" else coord[:1],
                measure=measure if kind != "coordinates" else None)
    x, other = torch.randn(3, 10, 4, WIDTH, generator=generator), space("x", torch.arange(4) / 2, period=2.0)
    for axes, values in (((axis,), x[:, :, 0]), ((axis, other), x), ((axis, replace(axis, name="z")), None)):
        values = torch.randn(3, 10, 10, WIDTH, generator=generator) if values is None else values
        together = mixer(values, Geometry(axes))[0]
        for b in range(3):
            own = tuple(map_tensors(a, lambda t, b=b: t[[b]] if len(t) == 3 else t) for a in axes)  # type: ignore[misc]
            assert_close(name, together[[b]], mixer(values[[b]], Geometry(own))[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_axes", [1, 2])
def test_a_sample_of_nothing_but_padding_gives_numbers_and_spoils_no_other(name: str, num_axes: int) -> None:
    mixer, generator = make(name), torch.Generator().manual_seed(6)
    measure = torch.stack([torch.zeros(20), 0.1 + torch.rand(20, generator=generator)])
    axis = Axis("y", "space", torch.rand(2, 20, 1, generator=generator).cumsum(1), measure=measure)
    axes = (space("x", torch.arange(3.0)), axis)[-num_axes:]
    x = torch.randn(2, *(axis.size for axis in axes), WIDTH, generator=generator).requires_grad_()
    y = mixer(x, Geometry(axes))[0]
    own = tuple(map_tensors(axis, lambda t: t[-1:]) for axis in axes)
    assert_close(name, y[1:], mixer(x[1:], Geometry(own))[0])
    slopes: tuple[Tensor, ...] = ()
    if y.requires_grad:  # some admit neither axis
        slopes = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()], materialize_grads=True,
                                     allow_unused=True)
    assert all(t.isfinite().all() for t in (y, *slopes))


def lattice_of(kind: str, batch: int) -> tuple[Axis, ...]:
    """Axes of some kinds, for that many samples where they have coordinates of their own."""
    line, far = space("x", torch.arange(5) / 5, period=1.0), space("x", torch.arange(100) / 100)
    variates, history = Axis("variate", "set", torch.zeros(1, 3, 0)), time("t", torch.arange(4.0), causal=True)
    own = Axis("y", "space", torch.rand(batch, 7, 1).cumsum(1), measure=0.1 + torch.rand(batch, 7))
    one = space("z", torch.zeros(1))
    one_own, one_step, one_name = (map_tensors(axis, lambda t: t[:, :1]) for axis in (own, history, variates))
    return {"line": (line,), "plane": (line, space("y", torch.rand(6).cumsum(0))), "far": (far,), "own": (line, own),
            "measured": (replace(own, coord=torch.rand(1, 7, 1)), variates), "causal": (history,), "one": (one,),
            "one periodic": (replace(one, period=torch.ones(1)),), "one of its own": (one_own,),
            "one step": (one_step,), "one between": (variates, one, line), "one before": (one, own),
            "ones": (one, one_own, one_name),
            "one of a pack": (Axis("atoms", "set", torch.rand(1, 1, 3), segment=torch.zeros(1, 1, dtype=torch.long)),),
            }[kind]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["line", "plane", "far", "own", "measured", "causal", "one"])
def test_a_batch_of_no_samples_gives_one(name: str, kind: str) -> None:
    mixer, geometry = make(name), Geometry(lattice_of(kind, 0))
    x = torch.randn(0, *(axis.size for axis in geometry.axes), WIDTH)
    mixer.prepare(geometry)
    assert mixer(x, geometry)[0].shape == x.shape
    y, state = mixer(x, geometry, ())
    assert y.shape == x.shape
    assert mixer(x, geometry, state)[0].shape == x.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["one", "one periodic", "one of its own", "one step", "one between", "one before",
                                  "ones", "one of a pack"])
def test_an_axis_of_one_token_is_an_axis(name: str, kind: str) -> None:
    mixer, geometry = make(name), Geometry(lattice_of(kind, 2))
    x = torch.randn(1 if "pack" in kind else 2, *(axis.size for axis in geometry.axes), WIDTH)
    assert_equals_reference(mixer, x, geometry, TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", ["window", "dilated", "pooled", "local", "radial", "spectral"])
@pytest.mark.parametrize("kind", ["space", "time"])
def test_what_has_no_segments_leaves_packed_axes_alone(name: str, kind: AxisKind) -> None:
    mixer, packed = make(name), Axis("events", kind, torch.arange(6.0)[None, :, None],
                                     segment=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    assert not mixer.admits(packed)
    assert (mixer(torch.randn(1, 6, WIDTH), Geometry((packed,)))[0] == 0).all()
    line, x = space("x", torch.arange(5) / 5, period=1.0), torch.randn(1, 6, 5, WIDTH)
    together = mixer(x, Geometry((packed, line)))[0]
    for i in range(6):
        one = map_tensors(packed, lambda t, i=i: t[:, [i]])  # type: ignore[misc]
        assert_close(name, together[:, [i]], mixer(x[:, [i]], Geometry((one, line)))[0])


@pytest.mark.parametrize("name", ON_LINES)
@pytest.mark.parametrize("periodic", [True, False])
def test_second_derivatives_equal_the_references(name: str, periodic: bool) -> None:
    mixer = make(name)
    axes = (space("x", torch.arange(5) / 5, period=1.0 if periodic else None), space("y", torch.arange(4) / 4.0))
    x = torch.randn(2, 5, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    assert_second_derivatives_equal(mixer, x, Geometry(axes, second_order=True), TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", [n for n in ON_LINES if n not in TOLERANCE])
def test_derivatives_equal_differences(name: str) -> None:
    mixer = registry.find("sciml.mixers", name)(4, 1).double()
    axes = (space("x", torch.arange(3) / 3, period=1.0), space("y", torch.arange(2.0)))
    x = torch.randn(1, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: mixer(t, Geometry(axes))[0], x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: mixer(t, Geometry(axes, second_order=True))[0], x, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_complex_weights_survive_a_change_of_dtype(dtype: torch.dtype) -> None:
    mixer = make("spectral")
    before = {k: v.clone() for k, v in mixer.state_dict().items() if v.is_complex()}
    after = mixer.to(dtype=dtype).state_dict()
    assert before
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_does_not_depend_on_rank(name: str) -> None:
    mixer = make(name)
    for rank in (1, 2, 3):
        axes = tuple(space(n, torch.arange(4) / 4, period=1.0) for n in "xyz"[:rank])
        assert mixer(torch.randn(1, *[4] * rank, WIDTH), Geometry(axes))[0].isfinite().all()


@pytest.mark.parametrize("name", ATTENTION)
def test_cells_of_measure_zero_are_not_seen(name: str) -> None:
    axes = (space("x", torch.tensor([0.0, 0.2, 0.5, 0.9])), space("y", torch.arange(3.0)))
    assert_padding_is_not_seen(make(name), torch.randn(1, 4, 3, WIDTH), axes, 2)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_cell_cut_into_two_of_half_the_measure_changes_nothing(name: str) -> None:
    assert_a_cell_may_be_cut(make(name), WIDTH)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("width", [1, 3])
def test_only_relative_coordinates_matter(name: str, width: int) -> None:
    points = Axis("points", "set", torch.rand(2, 5, width))
    assert_only_relative_coordinates_matter(make(name), torch.randn(2, 5, WIDTH), points)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_whole_period_is_no_distance(name: str) -> None:
    mixer = make(name)
    axis = space("x", torch.arange(6) / 6 * 2, period=2.0)
    wrapped = replace(axis, coord=axis.coord + 2.0 * torch.tensor([0, 1, 0, -1, 2, 0.0])[None, :, None])
    x = torch.randn(1, 6, WIDTH)
    torch.testing.assert_close(mixer(x, Geometry((wrapped,)))[0], mixer(x, Geometry((axis,)))[0])


@pytest.mark.parametrize("name", ATTENTION)
def test_packed_samples_do_not_see_each_other(name: str) -> None:
    assert_packed_samples_are_apart(make(name), WIDTH)


@pytest.mark.parametrize("name", ATTENTION)
def test_pair_bias_replaces_the_rotary_and_is_differentiated(name: str) -> None:
    mixer = make(name)
    axis = Axis("atoms", "set", torch.rand(1, 5, 3), segment=torch.tensor([[0, 0, 0, 1, 1]]))
    bias = torch.randn(1, HEADS, 5, 5).requires_grad_()
    x = torch.randn(1, 5, WIDTH)
    y = mixer(x, Geometry((axis,), pair_bias=lambda heads: bias))[0]
    torch.testing.assert_close(y, mixer.reference(x, Geometry((axis,), pair_bias=lambda heads: bias)))
    slope, = torch.autograd.grad(y.square().sum(), bias)
    assert (slope[0, :, :3, :3] != 0).any()
    assert (slope[0, :, :3, 3:] == 0).all()
    moved = replace(axis, coord=axis.coord * 2)
    torch.testing.assert_close(mixer(x, Geometry((moved,), pair_bias=lambda heads: bias))[0], y)


def causal_lattice(name: str, packed: bool) -> tuple[Tensor, tuple[Axis, ...], int]:
    """x, axes and which of them is causal: events alone, or (variate, causal time)."""
    coord = torch.rand(1, 7, 1).cumsum(1)
    events = Axis("event", "set", coord, causal=True, segment=torch.zeros(1, 7, dtype=torch.long) if packed else None)
    if packed or name == "full":
        return torch.randn(1, 7, WIDTH), (events,), 0
    return torch.randn(2, 3, 7, WIDTH), (Axis("variate", "set", torch.zeros(1, 3, 0)),
                                         Axis("time", "time", coord, causal=True)), 1


CAUSAL = [("full", True), ("full", False), ("axial", True), ("axial", False), ("local", False)]


@pytest.mark.parametrize(("name", "packed"), CAUSAL)
def test_the_future_has_no_influence(name: str, packed: bool) -> None:
    mixer = make(name)
    x, axes, index = causal_lattice(name, packed)
    x.requires_grad_()
    y = mixer(x, Geometry(axes))[0].movedim(1 + index, 0)
    for t in range(len(y)):
        slope, = torch.autograd.grad(y[t].square().sum(), x, retain_graph=True)
        by_time = slope.movedim(1 + index, 0).flatten(1).abs().amax(1)
        assert (by_time[t + 1:] == 0).all()
        assert by_time[t] > 0


@pytest.mark.parametrize(("name", "packed"), CAUSAL)
@pytest.mark.parametrize("chunks", [(1,) * 7, (3, 1, 2, 1), (4, 3)])
def test_steps_with_memory_equal_the_training_form(name: str, packed: bool, chunks: tuple[int, ...]) -> None:
    mixer = make(name)
    x, axes, index = causal_lattice(name, packed)
    whole, state, start, parts = mixer(x, Geometry(axes))[0], (), 0, []
    for size in chunks:
        own = [*axes]
        axis, part = axes[index], slice(start, start + size)
        own[index] = replace(axis, coord=axis.coord[:, part],
                             segment=None if axis.segment is None else axis.segment[:, part])
        y, state = mixer(x.narrow(1 + index, start, size), Geometry(tuple(own)), state)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1 + index), whole)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_memory_of_several_packed_samples_is_refused(name: str) -> None:
    axis = Axis("event", "set", torch.rand(1, 4, 1), causal=True, segment=torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(InputError, match="2 packed samples"):
        make(name)(torch.randn(1, 4, WIDTH), Geometry((axis,)), ())


def test_full_refuses_a_causal_axis_among_others() -> None:
    axes = (Axis("variate", "set", torch.zeros(1, 3, 0)), Axis("time", "time", torch.rand(1, 4, 1), causal=True))
    with pytest.raises(InputError, match="a causal axis among 2"):
        make("full")(torch.randn(1, 3, 4, WIDTH), Geometry(axes))


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("kind", ["even", "uneven", "packed", "causal", "memory"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_kernel_is_taken_wherever_it_is_correct(name: str, kind: str, dtype: torch.dtype) -> None:
    """5-D inputs, odd strides or a bias that wants a gradient fall to the slow path without a word: not here."""
    torch.set_default_dtype(dtype)
    mixer, state = make(name).to(dtype), None
    x, axes = torch.randn(2, 6, 4, WIDTH), (space("x", torch.arange(6) / 6, period=1.0), space("y", torch.arange(4.0)))
    if kind == "uneven":
        axes = (space("x", torch.arange(6) ** 2 / 6.0), axes[1])
    if kind in ("packed", "causal", "memory"):
        x = torch.randn(1, 6, WIDTH)
        segment = torch.tensor([[0, 0, 1, 1, 1, 1]]) if kind == "packed" else None
        axes = (Axis("event", "set", torch.rand(1, 6, 1), causal=kind != "packed", segment=segment),)  # type: ignore[assignment]
    if kind == "memory":
        _, state = mixer(x, Geometry(axes), ())
    with Ops() as ops:
        y, _ = mixer(x.requires_grad_(), Geometry(axes), state)
        y.sum().backward()
    assert FLASH in ops.names
    assert not any("scaled_dot_product" in n and "flash" not in n for n in ops.names)
    assert f"{FLASH}_backward" in ops.names
    with Ops() as plain:
        mixer(x, Geometry(axes, second_order=True), state)
    assert not any("scaled_dot_product" in n for n in plain.names), "the fused kernel has no second derivative"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (1, 5), (2, 5)])
def test_attend_is_the_formula(causal: bool, with_bias: bool, n: int, m: int) -> None:
    q, k, v = torch.randn(2, 3, n, 4), torch.randn(2, 3, m, 4), torch.randn(2, 3, m, 4)
    bias = torch.randn(2, 1, n, m) if with_bias else None
    expected = torch.empty(2, 3, n, 4)
    for i in range(n):
        seen = i + m - n + 1 if causal else m
        logits = (q[:, :, i, None] * k[:, :, :seen]).sum(-1) / 2 + (0 if bias is None else bias[:, :, i, :seen])
        expected[:, :, i] = (logits.softmax(-1)[..., None] * v[:, :, :seen]).sum(2)
    torch.testing.assert_close(attend(q, k, v, bias=bias, causal=causal), expected)
    torch.testing.assert_close(attend_plain(q, k, v, bias=bias, causal=causal), expected)
