"""Laws that the operator keeps whatever its weights are, each in single and double precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_domains import atoms, events, grid, panel
from torch import Tensor

from sciml import tokens
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.rollout import rollout
from sciml.testing.conformance import OPERATOR
from sciml.testing.parameters import stir
from sciml.tokens import Conditions, HeadSpec, TokenBatch, TokenSpec

FULL = {"levels": [{"width": 32, "depth": 2, "mixers": ["full"], "head_width": 16}], "stem_width": 16,
        "condition_width": 16}
PERIODIC = {**OPERATOR, "levels": [
    {"width": 32, "depth": 1, "depth_up": 1, "mixers": ["spectral", "local"], "head_width": 16},
    {"width": 48, "depth": 1, "mixers": ["axial", "full"], "head_width": 16}]}
RADIAL = {**FULL, "levels": [{"width": 32, "depth": 2, "mixers": ["radial"], "head_width": 16}]}
TINY: dict[str, Any] = {"atoms": atoms, "events": events, "grid": grid, "panel": panel}
SPEC = TokenSpec("torus", ("torus/u",), {"state": HeadSpec("lattice", ("torus/u",))}, lattice_conditions=("forcing",),
                 vector_conditions=("lead",), patch=2)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"], autouse=True)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def tolerance(dtype: torch.dtype, *, single: float = 2e-5, double: float = 1e-10) -> dict[str, float]:
    bound = single if dtype == torch.float32 else double
    return {"rtol": bound, "atol": bound}


def make_operator(config: dict[str, Any], *specs: TokenSpec) -> Operator:
    torch.manual_seed(1)
    operator = Operator(OperatorConfig.model_validate(config), {spec.domain: spec for spec in specs})
    stir(operator)
    return operator.to(torch.get_default_dtype()).eval()


def fitted(name: str) -> tuple[Any, list[xr.Dataset]]:
    store = TINY[name].make_store()
    return TINY[name].PLUGIN().fit(store), list(store.of("train"))


def torus(shape: tuple[int, ...], *, periodic: bool = True) -> TokenBatch:
    """A smooth field and forcing of wavenumber ≤ 2 sampled on the unit torus (or cube)."""
    places = [torch.arange(n) / n for n in shape]
    axes = tuple(tokens.space(n, p, period=1.0 if periodic else None) for n, p in zip("xyz", places))
    phase = [2 * torch.pi * p.view([-1 if i == j else 1 for j in range(len(shape))]) for i, p in enumerate(places)]
    u = sum((i + 1) * (p + i).sin() for i, p in enumerate(phase)) + (phase[0] + 2 * phase[-1]).cos()
    forcing = (2 * phase[0]).cos() + phase[-1].sin()
    return TokenBatch("torus", "torus", u.expand(shape)[None, ..., None], ("torus/u",), axes,
                      conditions=Conditions({"lead": torch.ones(1)}, {"forcing": forcing.expand(shape)[None]}),
                      sources=("torus",))


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
def test_permutation_of_a_set_axis_permutes_the_outputs(config: dict[str, Any], dtype: torch.dtype) -> None:
    adapter, samples = fitted("panel")
    operator, order = make_operator(config, adapter.spec()), torch.tensor([2, 0, 1])
    batch = adapter.encode(samples[0])
    axis = batch.axes[0]
    moved = replace(batch, values=batch.values[:, order], observed=batch.observed[:, order], targets={},
                    axes=(replace(axis, coord=axis.coord[:, order], ids=axis.ids[:, order]), batch.axes[1]))
    torch.testing.assert_close(operator(moved)["value"], operator(batch)["value"][:, order], **tolerance(dtype))


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
def test_energy_is_invariant_and_forces_turn_with_the_molecule(config: dict[str, Any], dtype: torch.dtype) -> None:
    adapter, samples = fitted("atoms")
    predictor = Predictor(make_operator(config, adapter.spec()), {"tiny_atoms": adapter})
    sample = samples[3]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    order = np.random.default_rng(1).permutation(sample.sizes["atom"])
    moved = sample.isel(atom=order).assign(position=sample["position"].isel(atom=order) @ xr.DataArray(
        turn, dims=("xyz", "new"))).assign(position=lambda d: d["position"].rename(new="xyz") + 2.5)
    before, after = (predictor.forward(adapter.encode(s)) for s in (sample, moved))
    torch.testing.assert_close(after["energy"], before["energy"], **tolerance(dtype))
    expected = before["forces"][:, torch.as_tensor(order)] @ torch.as_tensor(turn, dtype=dtype)
    size = expected.abs().max()
    assert size > 1e-4
    torch.testing.assert_close(after["forces"] / size, expected / size, **tolerance(dtype, single=1e-3, double=1e-8))


@pytest.mark.parametrize("config", [OPERATOR, FULL, PERIODIC, RADIAL], ids=["axial", "full", "spectral", "radial"])
@pytest.mark.parametrize("shape", [(16,), (16, 12), (8, 12, 8)], ids=["1d", "2d", "3d"])
def test_a_periodic_shift_by_whole_coarsest_cells_shifts_the_outputs(config: dict[str, Any], shape: tuple[int, ...],
                                                                     dtype: torch.dtype) -> None:
    operator, batch = make_operator(config, SPEC), torus(shape)
    step = SPEC.patch * 2 ** (len(config["levels"]) - 1)
    shift, dims = [step * (i + 1) for i in range(len(shape))], list(range(1, 1 + len(shape)))
    forcing = batch.conditions.lattice["forcing"].roll(shift, dims)
    moved = replace(batch, values=batch.values.roll(shift, dims),
                    conditions=replace(batch.conditions, lattice={"forcing": forcing}))
    bound = tolerance(dtype, double=1e-5 if config is PERIODIC else 1e-10)  # neuralop's complex64
    y = operator(batch)["state"]
    torch.testing.assert_close(operator(moved)["state"], y.roll(shift, dims), **bound)
    still = operator(replace(batch, values=batch.values.roll(shift, dims)))["state"]
    assert (still - y.roll(shift, dims)).abs().max() > 1e-3, "the forcing left behind must be noticed"


@pytest.mark.parametrize("shape", [(16,), (13,), (16, 16), (12, 7), (9, 16), (6, 10, 7), (8, 8, 8), (1, 5), (2, 2, 2)],
                         ids=str)
@pytest.mark.parametrize("periodic", [True, False])
def test_the_same_weights_serve_any_rank_and_size(shape: tuple[int, ...], periodic: bool, dtype: torch.dtype) -> None:
    operator = make_operator(PERIODIC, SPEC)
    y = operator(torus(shape, periodic=periodic))["state"]
    assert y.shape == (1, *shape, 1)
    assert y.dtype == dtype
    assert y.isfinite().all()


@pytest.mark.parametrize("config", [OPERATOR, PERIODIC, RADIAL], ids=["axial", "spectral", "radial"])
@pytest.mark.parametrize("cells", [32, 48, 96])
def test_outputs_are_the_same_function_on_every_grid_that_resolves_them(config: dict[str, Any], cells: int,
                                                                       dtype: torch.dtype) -> None:
    """Points 0, 1/16, 2/16, … are on all grids; a token is 1/16 long on each (2, 3, 4 or 6 cells). Outputs of patches
    have waves that 32² and 48² don't resolve."""
    operator = make_operator(config, replace(SPEC, patch=4, patch_length=1 / 16))
    with torch.no_grad():
        y, there = (operator(torus((n, n)))["state"] for n in (64, cells))
    half = min(cells, 64) // 2
    one, other = (torch.fft.rfft2(x[0, ..., 0], norm="forward")[:half, :half] for x in (y, there))
    bound = 1e-4 if dtype == torch.float32 or config is PERIODIC else 1e-10  # neuralop's complex64
    torch.testing.assert_close(other, one, rtol=bound, atol=bound)
    assert y.std() > 0.05


def test_outputs_converge_as_a_grid_with_ends_is_refined() -> None:
    """A token is 1/16 long on each grid; means over tokens are compared."""
    operator = make_operator(OPERATOR, replace(SPEC, patch=4, patch_length=1 / 16))
    with torch.no_grad():
        y = {n: operator(torus((n, n), periodic=False))["state"][0, ..., 0].unflatten(0, (16, -1)).unflatten(
            2, (16, -1)).mean((1, 3)) for n in (32, 64, 128, 256)}
    errors = [float((y[n] - y[256]).square().mean().sqrt() / y[256].std()) for n in (32, 64, 128)]
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0], errors


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
@pytest.mark.parametrize("name", ["atoms", "events"])
def test_packed_samples_equal_separate_ones(config: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    adapter, samples = fitted(name)
    operator = make_operator(config, adapter.spec())
    batches = [adapter.encode(sample) for sample in samples[:4]]
    together, alone = operator(collate(batches)), [operator(batch) for batch in batches]
    for head, y in together.heads.items():
        dim = 0 if adapter.spec().heads[head].kind == "pooled" else 1
        torch.testing.assert_close(y, torch.cat([one[head] for one in alone], dim), **tolerance(dtype))


def test_a_summed_head_is_extensive_where_copies_see_each_other_equally_or_not_at_all(dtype: torch.dtype) -> None:
    """Holds for copies in segments of their own, and for a set every member of which is doubled in place.

    It does not hold for distant copies inside one segment: beyond the cutoff the radial bias is zero, the attention is
    not. A potential that must separate needs an attention that ends at the cutoff.
    """
    bag = TokenSpec("bag", ("bag/x",), {"sum": HeadSpec("pooled", ("bag/e",)), "mean": HeadSpec("pooled", ("bag/e",),
                                                                                                reduction="mean")})
    operator, x = make_operator(FULL, bag), torch.randn(1, 5, 1)

    def batch(values: Tensor, segment: Tensor, count: int) -> TokenBatch:
        axis = tokens.Axis("member", "set", torch.zeros(1, values.shape[1], 0), segment=segment)
        return TokenBatch("bag", "bag", values, ("bag/x",), (axis,), num_segments=count)

    one = operator(batch(x, torch.zeros(1, 5, dtype=torch.long), 1))
    doubled = operator(batch(torch.cat([x, x], 1), torch.zeros(1, 10, dtype=torch.long), 1))
    torch.testing.assert_close(doubled["sum"], 2 * one["sum"], **tolerance(dtype))
    torch.testing.assert_close(doubled["mean"], one["mean"], **tolerance(dtype))
    apart = operator(batch(torch.cat([x, x], 1), torch.arange(2).repeat_interleave(5)[None], 2))
    torch.testing.assert_close(apart["sum"].sum(0), 2 * one["sum"][0], **tolerance(dtype))


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
def test_no_output_depends_on_later_events(config: dict[str, Any]) -> None:
    adapter, samples = fitted("events")
    operator = make_operator(config, adapter.spec())
    batch = collate([adapter.encode(sample) for sample in samples[:2]])
    values, coord = batch.values.clone().requires_grad_(), batch.axes[0].coord.clone().requires_grad_()
    outputs = operator(replace(batch, values=values, axes=(replace(batch.axes[0], coord=coord),)), second_order=True)
    first = int((batch.axes[0].segment[0] == 0).sum())
    for head in ("unit", "wait"):
        for t in range(values.shape[1]):
            slopes = torch.autograd.grad(outputs[head][0, t].square().sum(), [values, coord], retain_graph=True)
            for slope in slopes:
                assert (slope[0, t + 1:] == 0).all(), f"{head} of event {t} sees the future"
                if t >= first:
                    assert (slope[0, :first] == 0).all(), f"{head} of event {t} sees another sample"
            assert (slopes[0][0, t] != 0).any()


def test_no_output_depends_on_a_later_time_of_a_causal_axis() -> None:
    spec = TokenSpec("spikes", ("spikes/count",), {"rate": HeadSpec("lattice", ("spikes/count",))}, patch=2)
    operator = make_operator(OPERATOR, spec)
    values = torch.randn(1, 3, 9, 1).requires_grad_()
    axes = (tokens.Axis("neuron", "set", torch.zeros(1, 3, 0)), tokens.time("time", torch.arange(9.0) / 9, causal=True))
    rate = operator(TokenBatch("spikes", "spikes", values, ("spikes/count",), axes))["rate"]
    for t in range(9):
        slope, = torch.autograd.grad(rate[0, :, t].square().sum(), values, retain_graph=True)
        assert (slope[0, :, t + 1:] == 0).all()
        assert (slope[0, :, t] != 0).any()


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
def test_generation_from_a_cache_equals_recomputing_the_history(config: dict[str, Any], dtype: torch.dtype) -> None:
    adapter, samples = fitted("events")
    predictor = Predictor(make_operator(config, adapter.spec()), {"tiny_events": adapter})
    state = adapter.initial(samples[0])
    unit, wait = torch.as_tensor(samples[0]["unit"].values), torch.as_tensor(samples[0]["wait"].values, dtype=dtype)
    outputs = predictor.forward(state.batch, state.cache)
    for _ in range(5):
        state = replace(adapter.advance(state, outputs), cache=outputs.cache)
        unit = torch.cat([unit, state.batch.axes[0].ids[0]])
        wait = torch.cat([wait, state.batch.values[0, :, 0].expm1()])
        whole = predictor.forward(adapter._events(unit, wait, wait.cumsum(0), ("whole",)))
        outputs = predictor.forward(state.batch, state.cache)
        assert outputs["unit"].shape[1] == 1
        for head in ("unit", "wait"):
            torch.testing.assert_close(outputs[head][0, -1], whole[head][0, -1], **tolerance(dtype, single=1e-4))


def test_generated_events_depend_on_the_random_state_alone() -> None:
    adapter, samples = fitted("events")
    predictor = Predictor(make_operator(OPERATOR, adapter.spec()), {"tiny_events": adapter})
    initial = adapter.initial(samples[0])

    def units(seed: int) -> list[int]:
        start = replace(initial, rng=torch.Generator().manual_seed(seed).get_state())
        return [int(s.batch.axes[0].ids[0, 0]) for s in rollout(predictor, start, 12)]

    torch.manual_seed(5)
    first = units(1)
    torch.manual_seed(6)
    assert units(1) == first
    assert units(2) != first


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
def test_forces_are_minus_the_slope_of_the_energy_and_sum_to_zero(config: dict[str, Any], dtype: torch.dtype) -> None:
    adapter, samples = fitted("atoms")
    predictor = Predictor(make_operator(config, adapter.spec()), {"tiny_atoms": adapter})
    batch = adapter.encode(samples[2])
    outputs = predictor.forward(batch)
    forces = batch.targets["forces"].predict(outputs["forces"])[0]
    assert forces.abs().max() > 1e-4
    assert forces.sum(0).abs().max() < (1e-4 if dtype == torch.float32 else 1e-10) * forces.abs().max()
    if dtype == torch.float32:
        return  # differences of single-precision energies say nothing at 1e-6
    step = 1e-4
    for atom in range(len(forces)):
        for k in range(3):
            energy = []
            for sign in (1, -1):
                moved = samples[2].copy(deep=True)
                moved["position"][atom, k] += sign * step
                own = adapter.encode(moved)
                energy.append(float(own.targets["energy"].predict(predictor.forward(own)["energy"])))
            assert -(energy[0] - energy[1]) / (2 * step) == pytest.approx(float(forces[atom, k]), abs=1e-6)


@pytest.mark.parametrize("mixers", [["axial"], ["local"], ["spectral"], ["radial"]])
def test_role_gains_alone_tell_the_axes_apart(mixers: list[str]) -> None:
    """With equal gains, weights that all axes share commute with transposition, as u·∇ω does not."""
    level = {"width": 32, "depth": 1, "mixers": mixers, "head_width": 16}
    spec = TokenSpec("torus", ("torus/u",), {"state": HeadSpec("lattice", ("torus/u",))}, patch=1)
    operator = make_operator({"levels": [level], "stem_width": 16, "condition_width": 16}, spec)
    batch = replace(torus((8, 8)), conditions=Conditions())
    turned = replace(batch, values=batch.values.transpose(1, 2))

    def asymmetry() -> float:
        with torch.no_grad():
            one, other = (operator(b)["state"] for b in (batch, turned))
        return float((one.transpose(1, 2) - other).norm() / one.norm())

    assert asymmetry() > 0.01
    for name, parameter in operator.named_parameters():
        if "mixers" in name and name.endswith(".gain.weight"):
            torch.nn.init.ones_(parameter)
    assert asymmetry() < 1e-4
