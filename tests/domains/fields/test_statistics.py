"""Statistics that are gathered state by state: the same as of all at once, and in memory that stays what it is."""

from __future__ import annotations

import tracemalloc
from functools import reduce
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import metrics
from sciml.domains.fields.config import Contract, GridAxis, Scaling
from sciml.domains.fields.growth import FIRST, MOST, Growth, together
from sciml.domains.fields.statistics import Drift, Layout, Statistics, begin, curl, merge, one, then
from sciml.errors import InputError
from tests.domains.fields.stores import velocity

WALL = np.array([0.0, 0.1, 0.4, 1.0, 1.6, 1.9, 2.0])


def contract(periods: dict[str, float | None], *names: str) -> Contract:
    """Components of a velocity are called u, v, w."""
    states = {name: Scaling(unit="m/s", vector="velocity" * (name in "uvw"),
                            along=(tuple(periods)["uvw".index(name)],) if name in "uvw" else ()) for name in names}
    return Contract(axes=tuple(GridAxis(name=n, unit="m", period=p) for n, p in periods.items()), dt=0.5, time_unit="s",
                    length=1.0, time=0.5, spacing=0.1, states=states)


def layout(places: dict[str, np.ndarray], periods: dict[str, float | None], *names: str, profile: str = "") -> Layout:
    attrs: dict[str, dict[str, Any]] = {n: {} if periods[n] is None else {"period": periods[n]} for n in places}
    sample = xr.Dataset(coords={n: ((n,), place, attrs[n]) for n, place in places.items()})
    return Layout.of(contract(periods, *names), sample, profile)


def channel(nx: int = 6, nz: int = 4, *names: str) -> Layout:
    """Between walls along y."""
    places = {"x": 2 * np.arange(nx) / nx, "y": WALL, "z": np.arange(nz) / nz}
    return layout(places, {"x": 2.0, "y": None, "z": 1.0}, *(names or ("u", "v", "w", "heat")))


def box(*shape: int, names: tuple[str, ...] = ("u", "v"), period: float = 1.0) -> Layout:
    axes = ("x", "y", "z")[: len(shape)]
    return layout({n: period * np.arange(m) / m for n, m in zip(axes, shape)}, dict.fromkeys(axes, period), *names)


def gathered(of: Layout, states: np.ndarray) -> Statistics:
    return reduce(merge, (one(of, state) for state in states))


@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), shift=st.sampled_from([0.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_profiles_and_stresses_are_those_of_all_states_at_once(seed: int, count: int, shift: float) -> None:
    of = channel()
    states = np.random.default_rng(seed).normal(size=(count, 4, 6, 7, 4)) + shift
    found = gathered(of, states)
    mean = states.mean((0, 2, 4))
    apart = states - mean[None, :, None, :, None]
    assert found.count == count
    assert np.allclose(found.mean, mean, rtol=1e-12)
    assert np.allclose(found.rms, np.sqrt((apart**2).mean((0, 2, 4))), rtol=1e-7)
    assert np.allclose(found.stress("u", "v"), (apart[:, 0] * apart[:, 1]).mean((0, 1, 3)), atol=1e-7)
    weight = np.diff(np.concatenate([[0], (WALL[1:] + WALL[:-1]) / 2, [2]])) / 2
    assert np.allclose(found.size**2, ((states**2).mean((0, 2, 4)) * weight).sum(-1), rtol=1e-9)


@given(seed=st.integers(0, 2**31), cut=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_merging_is_gathering_all(seed: int, cut: int) -> None:
    of = box(8, 6, names=("u", "v", "vorticity"))
    states = np.random.default_rng(seed).normal(size=(8, 3, 8, 6))
    whole, halves = gathered(of, states), merge(gathered(of, states[:cut]), gathered(of, states[cut:]))
    assert halves.count == whole.count == 8
    assert np.allclose(halves.mean, whole.mean)
    assert np.allclose(halves.product, whole.product)
    assert set(whole.spectra) == {
        *(f"power/{name}" for name in of.channels), "energy/velocity", "enstrophy/velocity", "energy/vorticity",
        "enstrophy/vorticity"}
    for name, spectrum in whole.spectra.items():
        assert np.allclose(halves.spectra[name].power, spectrum.power)
    assert np.allclose(whole.spectra["power/v"].power, metrics.power_spectrum(states[:, 1], (1.0, 1.0))[1].mean(0))


def test_memory_does_not_grow_with_the_steps() -> None:
    of, rng = channel(), np.random.default_rng(0)

    def run(steps: int, found: Any = None) -> tuple[Any, int]:
        statistics, growth, drift = found or (None, Growth(), None)
        tracemalloc.start()
        for _ in range(steps):
            state, truth = rng.normal(size=(2, 4, 6, 7, 4))
            latest = one(of, state)
            statistics = latest if statistics is None else merge(statistics, latest)
            growth = growth.add(state, truth)
            drift = begin(of, state) if drift is None else then(of, drift, state)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return (statistics, growth, drift), kept

    found, few = run(2 * MOST)
    found, many = run(8 * MOST, found)
    assert many < few + 20_000
    statistics, growth, drift = found
    assert statistics.count == growth.count == 10 * MOST
    assert isinstance(drift, Drift)
    assert len(growth.trace.steps) <= MOST


def test_a_shear_flow_has_the_stress_that_it_was_made_with() -> None:
    """u = y + a, v = −c a + b with independent a, b of variance 1: ⟨u′v′⟩ = −c, and the mean profile is y."""
    of, rng = channel(16, 16, "u", "v"), np.random.default_rng(2)
    a, b = rng.normal(size=(2, 300, 16, 7, 16))
    states = np.stack([WALL[:, None] + a, b - 0.4 * a], axis=1)
    found = gathered(of, states)
    assert np.allclose(found.mean[0], WALL, atol=0.02)
    assert np.allclose(found.stress("u", "v"), -0.4, atol=0.02)
    assert np.allclose(found.stress("u", "u"), found.rms[0] ** 2)
    assert np.allclose(found.rms[1], np.sqrt(1.16), atol=0.02)


def test_the_spectra_of_a_taylor_green_vortex_have_one_peak() -> None:
    """u = cos 3x sin 3y, v = −sin 3x cos 3y: energy ¼ and enstrophy 9/4 · 2 at |k| = 3√2."""
    of = box(24, 24, names=("u", "v"), period=2 * np.pi)
    x, y = np.meshgrid(*of.places, indexing="ij")
    state = np.stack([np.cos(3 * x) * np.sin(3 * y), -np.sin(3 * x) * np.cos(3 * y)])
    found = one(of, state)
    energy, enstrophy = (found.spectra[f"{name}/velocity"] for name in ("energy", "enstrophy"))
    assert energy.k[np.argmax(energy.power)] == pytest.approx(4)  # the shell from 3.5 to 4.5
    assert energy.power.sum() == pytest.approx(0.25)
    assert np.sort(energy.power)[-2] < 1e-20
    assert enstrophy.power.sum() == pytest.approx(0.25 * 18)
    turned = one(box(24, 24, names=("vorticity",), period=2 * np.pi), curl(state, (2 * np.pi,) * 2))
    assert np.allclose(turned.spectra["energy/vorticity"].power, energy.power, atol=1e-12)
    assert np.allclose(turned.spectra["enstrophy/vorticity"].power, enstrophy.power, atol=1e-12)


def test_a_curl_in_three_dimensions() -> None:
    of, v = box(12, 10, 8, names=("u", "v", "w")), velocity((12, 10, 8), 1, seed=4)[0]
    parts = curl(v, (1.0, 1.0, 1.0))
    assert parts.shape == (3, 12, 10, 8)
    k = 2 * np.pi * np.arange(12)[:, None, None] / 12 + 0 * v[0]
    wave = np.stack([0 * k, np.sin(k), np.cos(k)])  # ∇ × (0, sin x, cos x) = (0, sin x, cos x), x in periods
    assert np.allclose(curl(wave, (2 * np.pi,) * 3), wave)
    found = one(of, v).spectra
    assert found["energy/velocity"].power.sum() <= 0.5 * (v**2).sum(0).mean() * (1 + 1e-12)


def test_waves_along_the_axes_of_a_channel() -> None:
    of = channel(8, 4, "u", "v")
    x = of.places[0][:, None, None]
    state = np.stack([WALL[:, None] * np.cos(2 * np.pi * x / 2 * 2) + 0 * of.places[2], np.ones((8, 7, 4))])
    found = one(of, state).spectra
    assert set(found) == {f"power_{axis}/{name}" for axis in "xz" for name in "uv"}  # no w, so no vector
    spectrum = found["power_x/u"]
    assert spectrum.k.tolist() == pytest.approx([0, np.pi, 2 * np.pi, 3 * np.pi, 4 * np.pi])
    assert np.allclose(spectrum.power, np.outer(WALL**2 / 2, [0, 0, 1, 0, 0]))
    assert np.allclose(spectrum.overall(of), [0, 0, of.across @ WALL**2 / 2, 0, 0])
    assert np.allclose(found["power_z/v"].power, np.outer(np.ones(7), [1, 0, 0]))


def test_parseval_holds_along_an_axis() -> None:
    of, rng = channel(6, 5, "u", "v", "w"), np.random.default_rng(1)
    state = rng.normal(size=(3, 6, 7, 5))
    found = one(of, state).spectra
    for axis in "xz":
        assert np.allclose(found[f"energy_{axis}/velocity"].power.sum(-1), (state**2).sum(0).mean((0, 2)) / 2)


def test_in_one_dimension_and_without_a_profile() -> None:
    of = box(16, names=("heat",))
    assert of.profile is None
    states = np.random.default_rng(0).normal(size=(5, 1, 16)) + 3
    found = gathered(of, states)
    assert found.mean.shape == (1, 1)
    assert found.mean.item() == pytest.approx(states.mean())
    assert found.rms.item() == pytest.approx(states.std())
    assert found.spectra["power/heat"].power[0] == pytest.approx((states.mean(-1) ** 2).mean())


def test_cells_that_are_not_known_are_left_out() -> None:
    of = channel(6, 4, "heat")
    states = np.random.default_rng(0).normal(size=(5, 1, 6, 7, 4))
    states[:, :, 2:, 3] = np.nan
    found = gathered(of, states)
    assert np.allclose(found.mean, np.nanmean(states, axis=(0, 2, 4)))
    assert np.allclose(found.rms, np.nanstd(states, axis=(0, 2, 4)))
    assert found.spectra == {}


def test_points_are_weighed_by_their_cells() -> None:
    axis = GridAxis(name="point", unit="m", places=("point_x", "point_y"))
    known = contract({"x": None}, "heat").model_copy(update={"axes": (axis,)})
    cells = {"cell_measure": ("point", [1.0, 1.0, 2.0])}
    sample = xr.Dataset({"heat": ("point", np.zeros(3))}, coords=cells)
    of = Layout.of(known, sample)
    found = gathered(of, np.array([[[0.0, 4.0, 4.0]], [[2.0, 2.0, 2.0]]]))
    assert found.mean.tolist() == [[2.5]]
    assert found.rms.item() == pytest.approx(np.sqrt((0.25 * 2.5**2 + 0.75 * 1.5**2 + 0.5**2) / 2))
    assert found.spectra == {}
    assert Layout.of(known, sample.drop_vars("cell_measure")).weights[0] == pytest.approx(np.full(3, 1 / 3))
    with pytest.raises(InputError, match="profile"):
        Layout.of(known, sample, "point")


def test_a_profile_along_a_named_axis() -> None:
    of = layout({"x": np.arange(4) / 4, "y": np.arange(3) / 3}, {"x": 1.0, "y": 1.0}, "heat", profile="x")
    state = np.arange(12.0).reshape(1, 4, 3)
    assert one(of, state).mean.tolist() == [[1.0, 4.0, 7.0, 10.0]]
    with pytest.raises(InputError, match=r"'x', 'y'"):
        layout({"x": np.arange(4) / 4, "y": np.arange(3) / 3}, {"x": 1.0, "y": 1.0}, "heat", profile="z")


def test_drift_is_counted_from_the_start_and_by_steps() -> None:
    of = channel(6, 4, "heat")
    state = np.random.default_rng(0).normal(size=(1, 6, 7, 4))
    drift = begin(of, state)
    for change in (0.0, 0.5, -0.25, 0.0):
        drift = then(of, drift, state + change)
    assert drift.now == pytest.approx(drift.start)
    assert drift.furthest == pytest.approx(0.5)
    assert drift.step == pytest.approx(0.75)
    assert drift.relative == pytest.approx(0.5 / drift.size)
    still = then(of, then(of, begin(of, state), state), state)
    assert still.relative.tolist() == still.step.tolist() == [0.0]


def test_growth_is_what_the_formulas_say_of_all_steps() -> None:
    rng, steps = np.random.default_rng(0), FIRST + 30
    truth = rng.normal(size=(steps, 2, 6, 5))
    ours = truth + np.linspace(0.01, 1.5, steps)[:, None, None, None] * rng.normal(size=truth.shape)
    growth = Growth(squares=np.zeros(2))
    for p, t in zip(ours, truth):
        growth = growth.add(p, t)
    errors = metrics.relative_l2(ours, truth, keep=2).mean(-1)
    correlations = metrics.correlation(ours, truth, keep=2).mean(-1)
    assert growth.gmean == pytest.approx(float(metrics.gmean(errors[:FIRST])))
    assert growth.held == float(metrics.correlation_time(correlations))
    assert 0 < growth.held < steps
    assert np.allclose(growth.rmse, np.sqrt(((ours - truth) ** 2).mean((0, 2, 3))))
    assert growth.trace.steps == tuple(range(1, steps + 1, 2))
    assert np.allclose(growth.trace.values, np.stack([errors, correlations], -1)[::2])
    short = Growth(squares=np.zeros(2)).add(ours[0], truth[0])
    both = together([growth, short])
    assert both.steps == (1,)
    assert both.values == (growth.trace.values[0],)
    assert np.isnan(Growth().gmean)
    assert together([]).steps == ()


def test_a_perfect_rollout_has_no_error() -> None:
    truth = np.random.default_rng(0).normal(size=(1, 8))
    growth = Growth().add(truth, truth).add(truth, truth)
    assert growth.gmean == 0.0
    assert growth.held == 2
    assert growth.rmse.tolist() == [0.0]
