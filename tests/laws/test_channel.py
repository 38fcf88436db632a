"""The channel against what is known of viscous flow between walls."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from dask import compute
from numpy.polynomial import chebyshev

from sciml.data.builders import _channel_flow as cf
from sciml.data.builders import channel
from sciml.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path))
    return tmp_path


def still(grid: cf.Grid) -> cf.Flow:
    ny, mx, mz = len(grid.centres), len(grid.kx), grid.kz.shape[1]
    u, v, w, p = (torch.zeros(n, mx, mz, dtype=torch.complex128) for n in (ny, ny - 1, ny, ny))
    return cf.Flow(u, v, w, p)


def waves(grid: cf.Grid, seed: int = 0, size: float = 3.0) -> cf.Flow:
    """Smooth random waves on a parabola."""
    draws = np.random.default_rng(seed)

    def field(y: np.ndarray) -> torch.Tensor:
        shapes = np.stack([np.sin(m * np.pi * y / 2) for m in (1, 2, 3)])
        noise = cf.modes_of(grid, torch.as_tensor(draws.standard_normal((3, *grid.side))))
        noise = noise * torch.exp(-((grid.kx**2 + grid.kz**2) / 8))
        found = torch.einsum("my,mxz->yxz", torch.as_tensor(shapes).to(noise.dtype), noise)
        return size * found / cf.values_of(grid, found).std()

    u, v, w = field(grid.centres), field(grid.faces[1:-1]), field(grid.centres)
    u[:, 0, 0] += torch.as_tensor(5 * grid.centres * (2 - grid.centres)) * math.prod(grid.side)
    flow, _ = cf.project(grid, u, v, w)
    return cf.Flow(flow.u, flow.v, flow.w, torch.zeros_like(flow.p))


BOX = (2 * math.pi, math.pi)


def test_poiseuilles_flow_is_kept_and_reached() -> None:
    """u = f y (2 − y) / 2ν, exactly but for ν u'' at second order on the stretched grid."""
    nu, errors = 1.0, []
    for ny in (16, 32):
        grid = cf.grid_of((4, ny, 4), BOX, 1.5)
        flow = still(grid)
        for _ in range(80):
            flow = cf.advance(grid, flow, 0.08, nu, 2 * nu)
        exact = grid.centres * (2 - grid.centres)
        found = cf.values_of(grid, flow.u)[:, 1, 2].numpy()
        errors.append(np.abs(found - exact).max())
        again = cf.values_of(grid, cf.advance(grid, flow, 0.08, nu, 2 * nu).u)[:, 1, 2].numpy()
        np.testing.assert_allclose(again, found, atol=1e-6)
        assert max(float(flow.v.abs().max()), float(flow.w.abs().max())) < 1e-12
    assert errors[1] < 3e-3
    assert errors[0] > 3.5 * errors[1]


def test_a_mode_of_the_still_fluid_decays_as_stokes_says() -> None:
    """sin(πy/2) decays as exp(−νπ²t/4)."""
    grid, nu, t = cf.grid_of((4, 64, 4), BOX, 1.5), 0.1, 2.0
    shape = np.sin(np.pi * grid.centres / 2)
    flow = still(grid)
    flow.u[:, 0, 0] += torch.as_tensor(shape) * 16
    for _ in range(20):
        flow = cf.advance(grid, flow, t / 20, nu, 0.0)
    exact = shape * np.exp(-nu * np.pi**2 / 4 * t)
    np.testing.assert_allclose(cf.values_of(grid, flow.u)[:, 0, 0], exact, atol=5e-4 * exact.max())


def orr_sommerfeld(reynolds: float, alpha: float, n: int = 64) -> tuple[complex, np.ndarray]:
    """The least stable wave speed and the Chebyshev coefficients (of y − 1) of its v: U = 1 − y², walls at ±1."""
    y = np.cos(np.pi * np.arange(n + 1) / n)
    d0, d2, d4 = (np.stack([chebyshev.chebval(y, chebyshev.chebder(row, k) if k else row) for row in np.eye(n + 1)], 1)
                  for k in (0, 2, 4))
    laplace = d2 - alpha**2 * d0
    twice = d4 - 2 * alpha**2 * d2 + alpha**4 * d0
    u = (1 - y**2)[:, None]
    left = u * laplace + 2 * d0 - twice / (1j * alpha * reynolds)
    d1 = np.stack([chebyshev.chebval(y, chebyshev.chebder(row)) for row in np.eye(n + 1)], 1)
    right = laplace.astype(complex)
    for row, condition in ((0, d0[0]), (1, d1[0]), (-2, d1[-1]), (-1, d0[-1])):
        left[row], right[row] = -200j * condition, condition
    speeds, vectors = np.linalg.eig(np.linalg.solve(right, left))
    best = int(np.argmax(np.where(np.abs(speeds) < 2, speeds.imag, -np.inf)))
    return complex(speeds[best]), vectors[:, best]


def test_a_wave_on_poiseuilles_flow_grows_as_orr_and_sommerfeld_say() -> None:
    """Re = 7500, α = 1: c = 0.24989154 + 0.00223498 i (Malik, Zang and Hussaini 1985)."""
    reynolds, errors = 7500.0, []
    speed, vector = orr_sommerfeld(reynolds, 1.0)
    assert speed == pytest.approx(0.24989154 + 0.00223498j, abs=1e-6)
    for ny in (48, 96):
        grid = cf.grid_of((4, ny, 2), (2 * math.pi, 1.0), 1.3)
        flow = still(grid)
        flow.u[:, 0, 0] += torch.as_tensor(grid.centres * (2 - grid.centres)) * 8
        flow.v[:, 1, 0] = torch.as_tensor(chebyshev.chebval(grid.faces[1:-1] - 1, vector)) * 1e-5
        walled = np.concatenate([[0], flow.v[:, 1, 0].numpy(), [0]])
        flow.u[:, 1, 0] = 1j * torch.as_tensor(np.diff(walled) / np.diff(grid.faces))
        flow.u[:, -1, 0], flow.v[:, -1, 0] = flow.u[:, 1, 0].conj(), flow.v[:, 1, 0].conj()
        flow, lost = cf.project(grid, flow.u, flow.v, flow.w)
        assert lost.abs().max() < 1e-16
        flow = cf.Flow(flow.u, flow.v, flow.w, 0 * flow.p)
        waves_v = []
        for _ in range(3):
            flow = cf.advance(grid, flow, 6.0, 1 / reynolds, 2 / reynolds)
            waves_v.append(complex(flow.v[ny // 2, 1, 0]))
        rate = np.log(waves_v[2] / waves_v[1]) / 6.0
        found = 1j * (rate + 1j * round((speed.real - (1j * rate).real) * 6 / (2 * np.pi)) * 2 * np.pi / 6)
        errors.append(abs(found - speed))
    assert found.real == pytest.approx(speed.real, rel=5e-3)
    assert found.imag == pytest.approx(speed.imag, rel=0.25)
    assert errors[0] > 3 * errors[1]


def test_velocity_stays_free_of_divergence_to_rounding() -> None:
    grid = cf.grid_of((16, 24, 16), BOX, 1.8)
    flow = cf.advance(grid, waves(grid), 0.05, 1e-2)
    found = cf.values_of(grid, cf.divergence(grid, flow.u, flow.v, flow.w))
    assert found.abs().max() < 1e-11


def test_convection_does_no_work_and_moves_no_net_momentum() -> None:
    grid = cf.grid_of((16, 24, 16), BOX, 1.8)
    flow = waves(grid)
    (ru, rv, rw), _ = cf.convection(grid, flow)
    h = grid.heights
    between = 0.5 * (h[1:] + h[:-1])
    pairs = [(h, flow.u, ru), (between, flow.v, rv), (h, flow.w, rw)]
    work = [weight * cf.values_of(grid, a) * cf.values_of(grid, b) for weight, a, b in pairs]
    assert abs(sum(float(x.sum()) for x in work)) < 1e-12 * sum(float(x.abs().sum()) for x in work)
    for rate in (ru, rw):
        values = h * cf.values_of(grid, rate)
        assert abs(float(values.sum())) < 1e-11 * float(values.abs().sum())


def test_kinetic_energy_follows_its_budget() -> None:
    """d/dt ½⟨|u|²⟩ = f⟨u⟩ + ν⟨u·Δu⟩, by centred differences of close states."""
    grid, nu, force, dt = cf.grid_of((16, 32, 16), BOX, 1.8), 2e-2, 1.5, 2e-4
    flows = [cf.advance(grid, waves(grid), 0.02, nu, force)]
    for _ in range(2):
        flows.append(cf.advance(grid, flows[-1], dt, nu, force))
    energies = [cf.kinetic_energy(grid, flow) for flow in flows]
    flow, h = flows[1], grid.heights
    between, size = 0.5 * (h[1:] + h[:-1]), 2 * math.prod(grid.side)
    lost = 0.0
    for weight, s, modes in ((h, grid.along, flow.u), (between, grid.across, flow.v), (h, grid.along, flow.w)):
        laplacian = cf._apply(s.back, (s.values - grid.square) * cf._apply(s.into, modes))
        lost += float((weight * cf.values_of(grid, modes) * cf.values_of(grid, laplacian)).sum()) / size
    fed = force * float((h * cf.values_of(grid, flow.u)).sum()) / size
    assert lost < -0.1
    assert (energies[2] - energies[0]) / (2 * dt) == pytest.approx(fed + nu * lost, rel=2e-3)


def test_without_viscosity_kinetic_energy_is_lost_by_the_steps_in_time_alone() -> None:
    grid = cf.grid_of((16, 16, 16), BOX, 1.5)
    first = waves(grid)
    start, errors = cf.kinetic_energy(grid, first), []
    for steps in (8, 16):
        flow = first
        for _ in range(steps):
            flow = cf.step(grid, flow, 0.08 / steps, 0.0, 0.0, cf.convection(grid, flow)[0])
        errors.append(abs(cf.kinetic_energy(grid, flow) / start - 1))
    assert errors[1] < 3e-5
    assert errors[0] > 3.5 * errors[1]


def test_steps_converge_at_second_order() -> None:
    grid, nu = cf.grid_of((8, 16, 8), BOX, 1.5), 5e-2
    first, saved = cf.advance(grid, waves(grid, size=1.0), 0.05, 5e-2), []
    for steps in (8, 16, 128):
        flow = first
        for _ in range(steps):
            flow = cf.step(grid, flow, 0.2 / steps, nu, 1.0, cf.convection(grid, flow)[0])
        saved.append(torch.cat([flow.u, flow.v, flow.w]))
    order = math.log2(float((saved[0] - saved[2]).norm() / (saved[1] - saved[2]).norm()))
    assert order > 1.8


def test_mirrored_at_the_middle_the_flow_stays_mirrored() -> None:
    grid = cf.grid_of((8, 16, 8), BOX, 1.5)
    first = waves(grid)
    turned = cf.Flow(first.u.flip(0), -first.v.flip(0), first.w.flip(0), first.p)
    later, other = (cf.advance(grid, flow, 0.05, 1e-2) for flow in (first, turned))
    torch.testing.assert_close(other.u, later.u.flip(0), atol=1e-9, rtol=0)
    torch.testing.assert_close(other.v, -later.v.flip(0), atol=1e-9, rtol=0)


SMALL = {"trajectories": 2, "frames": 3, "frame_dt": 0.01, "resolution": 8, "solve_resolution": 12, "wall_cells": 12,
         "spin_up": 0.04, "friction_reynolds": (60.0, 90.0)}


def test_a_trajectory_depends_neither_on_its_neighbours_nor_on_blocks_nor_on_what_was_kept(
        own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PIECE", 0.02)
    options = channel.Options.model_validate(SMALL)
    whole = channel.solve(options)
    assert len(list((own_cache / "channel").glob("*.npz"))) == 2
    kept = channel.solve(options, 1, 2)
    shorter = options.model_copy(update={"spin_up": 0.02})
    monkeypatch.setenv("SCIML_CACHE", str(own_cache / "other"))
    channel.solve(shorter, 1, 2)
    resumed = channel.solve(options, 1, 2)
    for name in channel.STATES:
        assert np.array_equal(kept[name][0], whole[name][1])
        assert np.array_equal(resumed[name][0], whole[name][1])
    by_one, by_two = compute(*(channel.PLUGIN({**SMALL, "block": b}) for b in (1, 2)))
    assert by_one.identical(by_two)


def test_the_dataset_is_canonical_and_lazy() -> None:
    made = channel.build({"trajectories": 2, "frames": 3, "friction_reynolds": [180, 150]})
    assert dict(made.sizes) == {"trajectory": 2, "time": 3, "x": 32, "y": 48, "z": 32}
    assert {name: made[name].attrs["along"] for name in channel.STATES} == {
        "velocity_x": "x", "velocity_y": "y", "velocity_z": "z"}
    assert all(made[name].chunks is not None and made[name].attrs["vector"] == "velocity" for name in channel.STATES)
    assert made["friction_reynolds"].values.tolist() == [180, 150]
    assert (made["boundary_y_low"].values.tolist(), made["boundary_y_high"].values.tolist()) == ([0, 0], [0, 0])
    assert np.ptp(np.diff(made["y"])) > 0.01
    assert "period" not in made["y"].attrs
    assert made["z"].attrs["period"] == pytest.approx(math.pi / 2)


def test_what_is_saved_is_the_mean_of_the_two_faces_and_the_flow_filtered() -> None:
    options = channel.Options.model_validate({**SMALL, "frames": 1, "spin_up": 0.0})
    flow = channel.initial(options, 0, 60.0)
    saved = channel.solve(options, 0, 1)
    v = cf.values_of(options.flow_grid, flow.v).numpy()
    assert saved["velocity_y"].shape == (1, 1, 8, 12, 8)
    np.testing.assert_allclose(saved["velocity_y"][0, 0].mean((0, 2))[1:-1], (v[1:] + v[:-1]).mean((1, 2)) / 2,
                               atol=1e-12)
    assert 20 > saved["velocity_x"].mean() > 5


@pytest.mark.parametrize("wrong", [{"friction_reynolds": 0}, {"friction_reynolds": []}, {"stretch": 0},
                                   {"lengths": (1.0, -1.0)}, {"wall_cells": 2}, {"resolution": 33}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="channel options"):
        channel.build(wrong)


def test_a_lost_solution_is_reported() -> None:
    grid = cf.grid_of((8, 8, 8), BOX, 1.5)
    flow = waves(grid)
    with pytest.raises(FloatingPointError, match="finite"):
        cf.advance(grid, cf.Flow(flow.u * np.nan, flow.v, flow.w, flow.p), 0.1, 1e-2)


def test_faces_are_found_again_from_the_centres_and_pressure_from_the_flow() -> None:
    """Of a flow without divergence exactly; of one with noise, what is left of it is no larger."""
    grid = cf.grid_of((12, 16, 12), BOX, 1.5)
    flow = cf.advance(grid, waves(grid), 0.05, 1e-2)
    seen = channel.collocated(grid, flow)
    found = channel.staggered(grid, seen, 1e-2)
    for ours, theirs in ((found.u, flow.u), (found.v, flow.v), (found.w, flow.w)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8 * float(theirs.abs().max()))
    later, other = (channel.collocated(grid, cf.advance(grid, each, 0.01, 1e-2)) for each in (found, flow))
    assert float((later - other).norm()) < 1e-3 * float((other - seen).norm())
    noise = 0.01 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0), dtype=seen.dtype)
    nearest = channel.staggered(grid, seen + noise, 1e-2)
    assert float(cf.divergence(grid, nearest.u, nearest.v, nearest.w).abs().max()) < 1e-9 * float(flow.u.abs().max())
    assert float((channel.collocated(grid, nearest) - seen).norm()) < 1.5 * float(noise.norm())
