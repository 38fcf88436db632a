"""Mixers that remember along an axis: chunks of any size, steps, rings, gaps, padding, packed samples, long rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mixer_laws import assert_autocast_is_near, assert_equals_reference
from torch import Tensor

from sciml.errors import InputError
from sciml.mixers import recurrence, scan
from sciml.mixers.contract import Mixer, make_mixer
from sciml.mixers.gated import Gated
from sciml.mixers.geometry import Geometry
from sciml.mixers.recurrence import decayed, decayed_plain, entering, inclusive, links
from sciml.mixers.scan import walk, walk_plain
from sciml.tokens import Axis, space, time

NAMES = ("gated", "scan")
WIDTH, HEADS = 8, 2
KINDS = ("open", "ring", "causal", "packed", "packed causal", "padded", "padded ring", "padded causal", "own")


def make(name: str, *, chunk: int = 64, seed: int = 0) -> Mixer:
    torch.manual_seed(seed)
    return make_mixer(name, {"chunk": chunk}, WIDTH, HEADS).double()


def row(kind: str, n: int = 7) -> tuple[Tensor, Axis]:
    """x ``(B, n, C)`` and an axis of that kind with irregular coordinates."""
    generator = torch.Generator().manual_seed(3)
    batch = 1 if "packed" in kind else 2
    coord = torch.rand(batch if kind == "own" else 1, n, 1, generator=generator).cumsum(1) / 3
    measure = 0.5 + torch.rand(1, n, generator=generator)
    if "padded" in kind:
        measure[:, [0, 3, n - 1]] = 0
    axis = Axis("t", "time", coord, causal="causal" in kind, measure=measure)
    if "ring" in kind:
        axis = replace(axis, kind="space", period=torch.tensor([3.0]))
    if "packed" in kind:
        segment = torch.tensor([[0, 0, 0, 1, 2, 2, 2]])[:, :n]
        axis = replace(axis, kind="set", measure=None, segment=segment)
    return torch.randn(batch, n, WIDTH, generator=generator), axis


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_chunks_of_any_size_equal_the_loop_over_indices(name: str, kind: str, chunk: int) -> None:
    mixer, (x, axis) = make(name, chunk=chunk), row(kind)
    assert_equals_reference(mixer, x, Geometry((axis,)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["open", "ring", "packed causal"])
def test_derivatives_in_chunks_equal_differences(name: str, kind: str) -> None:
    torch.manual_seed(0)
    mixer = make_mixer(name, {"chunk": 2}, 4, 2).double()
    x, axis = row(kind, 5)
    x = x[:1, :, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: mixer(t, Geometry((axis,)))[0], x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: mixer(t, Geometry((axis,), second_order=True))[0], x, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["causal", "padded causal", "packed causal"])
def test_the_future_has_no_influence(name: str, kind: str) -> None:
    mixer, (x, axis) = make(name, chunk=3), row(kind)
    x.requires_grad_()
    y = mixer(x, Geometry((axis,)))[0]
    for t in range(x.shape[1]):
        slope, = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        by_time = slope.abs().amax((0, 2))
        assert (by_time[t + 1:] == 0).all()
        assert by_time[t] > 0 or axis.weights()[0, t] == 0


def steps(mixer: Mixer, x: Tensor, axes: tuple[Axis, ...], sizes: tuple[int, ...]) -> tuple[Tensor, object]:
    """`x` along its last axis in pieces of these sizes, with memory."""
    state, start, parts = (), 0, []
    for size in sizes:
        part = slice(start, start + size)
        own = replace(axes[-1], coord=axes[-1].coord[:, part],
                      measure=None if axes[-1].measure is None else axes[-1].measure[:, part])
        y, state = mixer(x[..., part, :], Geometry((*axes[:-1], own)), state)
        parts.append(y)
        start += size
    return torch.cat(parts, -2), state


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["causal", "padded causal"])
@pytest.mark.parametrize("sizes", [(1,) * 7, (3, 1, 2, 1), (4, 3)])
def test_steps_with_memory_equal_the_training_form(name: str, kind: str, sizes: tuple[int, ...]) -> None:
    """Along time while another axis is mixed as well, with coordinates per sample."""
    mixer, (_, axis) = make(name, chunk=2), row(kind)
    axis = replace(axis, coord=axis.coord * torch.tensor([1.0, 2.0])[:, None, None])
    axes = (space("x", torch.tensor([0.0, 0.2, 0.5])), axis)
    x = torch.randn(2, 3, 7, WIDTH)
    whole, (parts, _) = mixer(x, Geometry(axes))[0], steps(mixer, x, axes, sizes)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow(name: str) -> None:
    mixer, axis = make(name), time("t", torch.arange(40.0) / 8, causal=True)
    x = torch.randn(1, 40, WIDTH)

    def numbers(tree: object) -> int:
        if isinstance(tree, Tensor):
            return tree.numel()
        return sum(map(numbers, tree)) if isinstance(tree, tuple) else 0

    held = [numbers(steps(mixer, x[:, :n], (replace(axis, coord=axis.coord[:, :n]),), (n - 1, 1))[1]) for n in (4, 40)]
    assert held[0] == held[1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_memory_of_several_packed_samples_is_refused(name: str) -> None:
    x, axis = row("packed causal")
    with pytest.raises(InputError, match="3 packed samples"):
        make(name)(x, Geometry((axis,)), ())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["padded", "padded ring", "padded causal"])
def test_padding_is_not_seen_wherever_it_lies(name: str, kind: str) -> None:
    mixer, (x, axis) = make(name, chunk=3), row(kind)
    real = axis.weights()[0] > 0
    alone = mixer(x[:, real], Geometry((replace(axis, coord=axis.coord[:, real], measure=axis.weights()[:, real]),)))[0]
    other = torch.where(real[:, None], x, torch.randn_like(x) * 9)
    torch.testing.assert_close(mixer(other, Geometry((axis,)))[0][:, real], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["packed", "packed causal"])
@pytest.mark.parametrize("chunk", [2, 64])
def test_packed_samples_equal_one_at_a_time(name: str, kind: str, chunk: int) -> None:
    mixer, (x, axis) = make(name, chunk=chunk), row(kind)
    if isinstance(mixer, Gated):
        mixer.rate.weight.data.zero_()  # else slopes of decays, which are summed along a chunk, cancel to rounding only
    x.requires_grad_()
    together = mixer(x, Geometry((axis,)))[0]
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        own = replace(axis, coord=axis.coord[:, part], segment=axis.segment[:, part] * 0)
        # a sample of one index has an axis of size 1, which is not mixed unless it is causal
        if part.stop - part.start > 1 or axis.causal:
            torch.testing.assert_close(together[:, part], mixer(x[:, part], Geometry((own,)))[0])
        slope, = torch.autograd.grad(together[:, part].square().sum(), x, retain_graph=True)
        outside = torch.ones(7, dtype=torch.bool)
        outside[part] = False
        assert (slope[:, outside] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_ring_has_no_seam(name: str) -> None:
    mixer, n = make(name, chunk=4), 10
    axes = (space("x", torch.arange(n) / n, period=1.0), space("y", torch.tensor([0.0, 0.4, 0.9])))
    x = torch.randn(2, n, 3, WIDTH)
    y = mixer(x, Geometry(axes))[0]
    for by in (1, 7):
        torch.testing.assert_close(mixer(x.roll(by, 1), Geometry(axes))[0], y.roll(by, 1))
    laps = torch.tensor([0, 1, 0, -1, 2, 0, 0, 0, 1, 0.0])[None, :, None]
    wound = (replace(axes[0], coord=axes[0].coord + laps), axes[1])
    torch.testing.assert_close(mixer(x, Geometry(wound))[0], y)
    assert not torch.allclose(mixer(x, Geometry((replace(axes[0], period=None), axes[1])))[0], y)


def wave(coord: Tensor) -> Tensor:
    k = torch.arange(1.0, WIDTH + 1)
    return torch.sin(k * coord[:, None] + k**2)[None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["open", "ring", "causal"])
def test_refining_an_axis_converges(name: str, kind: str) -> None:
    """At first order at least: the values at the coarsest lattice's points, on ever finer uneven ones."""
    mixer, sizes, values = make(name), (16, 32, 64, 128, 1024), []
    with torch.no_grad():
        (mixer.rate.bias if isinstance(mixer, Gated) else mixer.step).fill_(-1.0)  # decays that 16 points resolve
    for n in sizes:
        s = torch.arange(n) / n
        coord = 2 * math.pi * (s + 0.1 * torch.sin(2 * math.pi * s)) / 2
        period = math.pi if kind == "ring" else None
        axis = space("x", coord, period=period) if kind != "causal" else time("x", coord, causal=True)
        if kind == "causal":
            axis = replace(axis, measure=space("x", coord).measure)
        values.append(mixer(wave(2 * coord), Geometry((axis,)))[0][:, :: n // 16])
    errors = torch.stack([(v - values[-1])[:, 1:].norm() for v in values[:-1]])
    slope = (errors[0] / errors[-1]).log2() / math.log2(sizes[-2] / sizes[0])
    assert slope > 0.85, errors


def test_a_cell_cut_into_two_changes_nothing_where_both_sides_weigh_the_same() -> None:
    mixer = make("gated", chunk=3)
    mixer.sides.data.fill_(1.3)
    for period in (None, torch.tensor([2.0])):
        axis = Axis("x", "space", torch.tensor([0.0, 0.3, 0.7, 0.9])[None, :, None], period=period,
                    measure=torch.tensor([[0.2, 0.4, 0.1, 0.3]]))
        cut = torch.tensor([0, 1, 1, 2, 3])
        finer = replace(axis, coord=axis.coord[:, cut], measure=torch.tensor([[0.2, 0.2, 0.2, 0.1, 0.3]]))
        x = torch.randn(2, 4, WIDTH)
        expected = mixer(x, Geometry((axis,)))[0][:, cut]
        # weights are those over their mean: the memory is larger by 5 / 4, and the norm's ε smaller beside it
        torch.testing.assert_close(mixer(x[:, cut], Geometry((finer,)))[0], expected, rtol=1e-3, atol=2e-4)


def test_an_output_that_nearly_vanishes_is_no_noise_in_single_precision() -> None:
    """Three tokens at one place with equal keys and values that sum to zero: what rounding leaves of them is small."""
    mixer, half, results = make("gated"), WIDTH // 2, []
    with torch.no_grad():
        mixer.projections.qkv.weight[: 2 * WIDTH, half:] = 0.0  # type: ignore[index, union-attr]
        mixer.projections.qkv.weight[2 * WIDTH:, :half] = 0.0  # type: ignore[index, union-attr]
    x = torch.randn(1, 1, WIDTH).expand(20, 3, WIDTH).clone()
    x[..., half:] = torch.randn(20, 3, half)
    x[:, 2, half:] = -x[:, :2, half:].sum(1)
    x = x.float()
    for dtype in (torch.float32, torch.float64):
        axis = Axis("t", "time", torch.zeros(1, 3, 1, dtype=dtype), causal=True)
        results.append(mixer.to(dtype)(x.to(dtype), Geometry((axis,)))[0])
    single, double = results
    assert (single[:, :2] - double[:, :2]).abs().max() < 1e-5
    assert (single[:, 2] - double[:, 2]).abs().max() < 1e-3
    assert double[:, 2].abs().max() < 1e-3 * double[:, :2].abs().max()


def test_gap_and_rate_are_what_decays() -> None:
    """One token, then silence: the memory of it fades as exp(−rate · distance)."""
    mixer = make("gated")
    assert isinstance(mixer, Gated)
    axis = time("t", torch.tensor([0.0, 0.5, 2.0]), causal=True)
    x = torch.randn(1, 1, WIDTH).expand(1, 3, WIDTH) * torch.tensor([1.0, 0.0, 0.0])[:, None]
    state, states = (), []
    for t in range(3):
        _, state = mixer(x[:, t: t + 1], Geometry((replace(axis, coord=axis.coord[:, t: t + 1]),)), state)
        states.append(dict(state)[0][0])
    rate = torch.nn.functional.softplus(mixer.rate.bias)[None, :, None, None]
    torch.testing.assert_close(states[1], states[0] * torch.exp(-0.5 * rate))
    torch.testing.assert_close(states[2], states[0] * torch.exp(-2.0 * rate))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["open", "ring", "causal"])
def test_long_rows_stay_exact_in_single_precision(name: str, rate: float, kind: str) -> None:
    """4096 indices, from hardly any decay to one that leaves nothing of the neighbour."""
    mixer, n = make(name), 4096
    period = torch.ones(1) if kind == "ring" else None
    axis = Axis("x", "space", torch.arange(n)[None, :, None] / n, period=period, causal=kind == "causal")
    x, results = torch.randn(1, n, WIDTH), []
    with torch.no_grad():
        bias = mixer.rate.bias if isinstance(mixer, Gated) else mixer.step
        bias.fill_(math.log(math.expm1(rate)) if rate < 100 else rate)
    for dtype in (torch.float64, torch.float32):
        single = mixer.to(dtype)
        own = replace(axis, coord=axis.coord.to(dtype), period=None if period is None else period.to(dtype))
        leaf = x.to(dtype).requires_grad_()
        y = single(leaf, Geometry((own,)))[0]
        results.append((y, *torch.autograd.grad(y.square().sum(), [leaf, *single.parameters()], allow_unused=True,
                                                materialize_grads=True)))
    for double, single_result in zip(*results, strict=True):
        assert single_result.isfinite().all()
        assert (single_result.double() - double).norm() <= 1e-2 * double.norm() + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_axes_without_an_order_are_left_alone(name: str) -> None:
    mixer = make(name)
    axes = (Axis("neuron", "set", torch.zeros(1, 3, 0)), Axis("atom", "set", torch.rand(1, 4, 3)))
    assert not mixer.parameters_of(axes)
    assert (mixer(torch.randn(1, 3, 4, WIDTH), Geometry(axes))[0] == 0).all()
    events = Axis("event", "set", torch.rand(1, 4, 1).cumsum(1), causal=True)
    assert "sides" not in mixer.parameters_of((events,))
    assert "sides" in mixer.parameters_of((replace(events, causal=False),))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_is_near(name: str) -> None:
    mixer, (x, axis) = make(name, chunk=3).float(), row("open")
    single = replace(axis, coord=axis.coord.float(), measure=axis.weights().float())
    assert_autocast_is_near(mixer, x.float(), (single,))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 17])
def test_recurrence_over_chunks_of_chunks_is_the_recurrence(n: int) -> None:
    z, a, first = torch.randn(2, n, 3, 2), -torch.rand(2, n, 3, 1), torch.randn(2, 3, 2)
    h, expected = torch.zeros(2, 3, 2), []
    for t in range(n):
        h = a[:, t].exp() * h + z[:, t]
        expected.append(h)
    torch.testing.assert_close(inclusive(z, a, 2), torch.stack(expected, 1))
    before, last = entering(z, a, 2, first)
    h = first
    for t in range(n):
        torch.testing.assert_close(before[:, t], h)
        h = a[:, t].exp() * h + z[:, t]
    torch.testing.assert_close(last, h)


def compare(results: list[tuple[Tensor, ...]], leaves: list[Tensor]) -> None:
    """Values and the first two derivatives of two ways to compute the same."""
    found = []
    for outputs in results:
        loss = sum((y * y.detach().cos() + y**2).sum() for y in outputs)
        plain = torch.autograd.grad(loss, leaves, retain_graph=True)  # by the formula in blocks
        first = torch.autograd.grad(loss, leaves, create_graph=True)  # by the graph that has a derivative
        second = torch.autograd.grad(sum((t**2).sum() for t in first), leaves)
        found.append((*outputs, *plain, *first, *second))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10 * float(slow.detach().abs().max() + 1))


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(("heads_of_gain", "chunks_of_gain"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_decaying_products_in_blocks_equal_their_formula(around: bool, heads_of_gain: int, chunks_of_gain: int,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "BLOCK_BYTES", 2 * 2 * 3 * 4 * 4 * 8)  # two rows at a time, of five
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 5, 2, 3, 4, 6).unbind(0)
    b = -torch.rand(5, 2, 3, 4).cumsum(-1)
    gain, rest = torch.randn(2, heads_of_gain, chunks_of_gain, 4, 4).unbind(0)
    leaves = [t.clone().requires_grad_() for t in (q, k, v, b, gain, *([rest] if around else []))]
    terms = (*leaves[:5], leaves[5] if around else None)
    compare([(decayed(*terms),), (decayed_plain(*terms),)], leaves)


@pytest.mark.parametrize("kept", [False, True])
def test_a_walk_in_blocks_and_pieces_equals_its_formula(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "PIECE", 3)
    monkeypatch.setattr(scan, "BLOCK_BYTES", 2 * 3 * 2 * 4 * 8)  # two rows at a time, of five
    torch.manual_seed(1)
    u, tau, b, c = torch.randn(5, 8, 4), torch.rand(5, 8, 4), torch.randn(5, 8, 2), torch.randn(5, 8, 2)
    leaves = [t.requires_grad_() for t in (u, tau, b, c, torch.rand(2, 4), torch.randn(5, 2, 4))]
    keep = (torch.rand(5, 8, 1) > 0.3).to(u.dtype) if kept else None
    compare([walk(*leaves, keep), walk_plain(*leaves, keep)], leaves)


@pytest.mark.parametrize("kind", ["open", "ring", "packed causal"])
def test_many_rows_are_scanned_as_few_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows are walked along the whole axis, few in chunks side by side."""
    mixer, (x, axis) = make("scan", chunk=3), row(kind)
    expected = mixer(x, Geometry((axis,)))[0]
    monkeypatch.setattr(scan, "MANY_ROWS", 1)
    torch.testing.assert_close(mixer(x, Geometry((axis,)))[0], expected)


def test_links_reach_over_padding_and_end_where_samples_do() -> None:
    axis = Axis("t", "time", torch.tensor([0.0, 1.0, 3.0, 7.0])[None, :, None],
                measure=torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    gap, start, last = links(axis)
    torch.testing.assert_close(gap, torch.tensor([[1.0, 0.0, 3.0, 4.0]]))
    assert start.tolist() == [[True, False, False, False]]
    assert last.tolist() == [[7.0, 1.0]]
    assert links(axis, torch.tensor([[-2.0, 1.0]])).gap[0, 0] == 2
    closed = links(replace(axis, period=torch.tensor([10.0])))
    torch.testing.assert_close(closed.gap, torch.tensor([[3.0, 0.0, 3.0, 4.0]]))
    packed = links(replace(axis, measure=None, segment=torch.tensor([[0, 0, 1, 1]])))
    assert packed.start.tolist() == [[True, False, True, False]]
    torch.testing.assert_close(packed.gap, torch.tensor([[1.0, 1.0, 1.0, 4.0]]))
