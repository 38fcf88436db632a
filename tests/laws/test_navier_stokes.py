"""The solver against what is known of two-dimensional incompressible flow."""

from __future__ import annotations

import numpy as np
import pytest
from dask import compute

from sciml.data.builders import navier_stokes as ns
from sciml.errors import InputError
from sciml.metrics import energy_spectrum

NO_FORCE = np.zeros((1, 1))


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(n) / n
    return np.meshgrid(x, x, indexing="ij")  # type: ignore[return-value]


def flow(n: int, count: int = 1, amplitude: float = 40.0) -> np.ndarray:
    """Smooth random flows of about 2/s, all at scales that 32² resolves."""
    return np.stack([ns.resample(ns.initial_vorticity(32, 3, i, amplitude), n) for i in range(count)])


@pytest.mark.parametrize("wave", [1, 3])
def test_taylor_green_vortices_decay_exponentially(wave: int) -> None:
    x, y = grid(32)
    k, nu = 2 * np.pi * wave, 1e-2
    first = 5 * np.sin(k * x) * np.sin(k * y)
    later = ns.advance(first[None], nu, NO_FORCE, 0.25, 4)[0]
    for frame, field in enumerate(later, 1):
        np.testing.assert_allclose(field, first * np.exp(-2 * nu * k**2 * 0.25 * frame), atol=1e-12)


def test_a_uniform_stream_of_shear_forced_at_rest_reaches_its_laminar_state() -> None:
    """f = sin ky drives ω = f (1 − e^{−νk²t}) / νk², with no transport."""
    _, y = grid(16)
    k, nu = 2 * np.pi, 0.05
    force = np.sin(k * y)
    later = ns.advance(np.zeros((1, 16, 16)), nu, force, 0.5, 3)[0]
    for frame, field in enumerate(later, 1):
        exact = force * (1 - np.exp(-nu * k**2 * 0.5 * frame)) / (nu * k**2)
        np.testing.assert_allclose(field, exact, atol=2e-4)


def test_steps_in_time_converge_at_fourth_order() -> None:
    first, force = flow(32), ns.forcing(32)
    courants = [1.6, 0.8, 0.1]
    coarse, fine, exact = (ns.advance(first, 1e-3, force, 0.5, 1, courant=c) for c in courants)
    order = np.log2(np.abs(coarse - exact).max() / np.abs(fine - exact).max())
    assert 3.5 < order < 5


def test_refining_the_grid_converges_faster_than_any_low_order() -> None:
    errors = []
    exact = ns.advance(flow(128), 2e-3, ns.forcing(128), 1.0, 1)[0, 0]
    for n in (32, 64):
        field = ns.advance(flow(n), 2e-3, ns.forcing(n), 1.0, 1)[0, 0]
        error = field - ns.resample(exact, n)
        errors.append(np.sqrt(np.mean(error**2) / np.mean(exact**2)))
    assert errors[1] < 1e-5
    assert errors[0] > 2**6 * errors[1]


def test_energy_and_enstrophy_follow_their_budgets() -> None:
    """d/dt ½⟨ω²⟩ = −ν⟨|∇ω|²⟩ + ⟨fω⟩ and d/dt ½⟨u²⟩ = −ν⟨ω²⟩ + ⟨fψ⟩, by centred differences of close frames."""
    n, nu, dt = 64, 1e-3, 1e-3
    force = ns.forcing(n)
    w = ns.advance(flow(n), nu, force, dt, 3)[0]
    modes = ns._Modes.of(n)
    square = np.maximum(modes.square.numpy(), 1)
    stream = np.fft.irfft2(np.fft.rfft2(w) / square)
    gradient = np.mean(w[1] * np.fft.irfft2(np.fft.rfft2(w[1]) * square))
    enstrophy, energy = (w**2).mean((1, 2)) / 2, (stream * w).mean((1, 2)) / 2
    assert (enstrophy[2] - enstrophy[0]) / (2 * dt) == pytest.approx(
        -nu * gradient + np.mean(force * w[1]), rel=1e-4)
    assert (energy[2] - energy[0]) / (2 * dt) == pytest.approx(
        -nu * np.mean(w[1] ** 2) + np.mean(force * stream[1]), rel=1e-4)
    assert energy_spectrum(w[1], (1.0, 1.0))[1].sum() == pytest.approx(energy[1], rel=1e-9)


def test_without_viscosity_to_speak_of_energy_and_enstrophy_are_conserved() -> None:
    first = flow(64)
    later = ns.advance(first, 1e-12, NO_FORCE, 0.2, 1)[0, 0]
    assert np.abs(later - first[0]).max() > 0.1
    assert np.mean(later**2) == pytest.approx(np.mean(first**2), rel=1e-5)
    energies = [energy_spectrum(w, (1.0, 1.0))[1].sum() for w in (first[0], later)]
    assert energies[1] == pytest.approx(energies[0], rel=1e-7)


def test_mean_vorticity_is_conserved() -> None:
    first = flow(32) + 0.7
    later = ns.advance(first, 1e-3, ns.forcing(32), 0.5, 2)
    np.testing.assert_allclose(later.mean((-2, -1)), 0.7, atol=1e-13)


def test_a_shifted_start_and_force_give_the_shifted_flow() -> None:
    first, force = flow(32), ns.forcing(32)
    later = ns.advance(first, 1e-3, force, 0.5, 1)
    moved = ns.advance(np.roll(first, (3, 8), (-2, -1)), 1e-3, np.roll(force, (3, 8), (-2, -1)), 0.5, 1)
    np.testing.assert_allclose(moved, np.roll(later, (3, 8), (-2, -1)), atol=1e-10)


def test_a_restart_continues_the_uninterrupted_trajectory() -> None:
    first, force = flow(32, 2), ns.forcing(32)
    whole = ns.advance(first, [1e-3, 5e-4], force, 0.3, 4)
    restarted = ns.advance(whole[:, 1], [1e-3, 5e-4], force, 0.3, 2)
    np.testing.assert_allclose(restarted, whole[:, 2:], atol=1e-11)


def test_a_trajectory_does_not_depend_on_its_neighbours_nor_on_the_order_of_blocks() -> None:
    given = {"trajectories": 5, "frames": 3, "resolution": 32, "spin_up": 1.0, "viscosity": [1e-3, 2e-4],
             "initial_amplitude": 30.0}
    options = ns.Options.model_validate(given)
    together = ns.solve(options)
    apart = np.concatenate([ns.solve(options, 4, 5), ns.solve(options, 0, 1)])
    np.testing.assert_allclose(apart, together[[4, 0]], atol=1e-11)
    assert np.abs(together[0] - together[2]).max() > 0.1
    by_two, by_five = compute(*(ns.PLUGIN({**given, "block": b}) for b in (2, 5)))
    np.testing.assert_allclose(by_two["vorticity"], by_five["vorticity"], atol=1e-5)
    np.testing.assert_allclose(by_two["vorticity"], together.astype(np.float32), atol=1e-5)


def test_the_dataset_is_canonical_and_lazy() -> None:
    made = ns.build({"trajectories": 3, "frames": 4, "frame_dt": 0.5, "resolution": 16, "viscosity": [1e-3, 5e-4]})
    assert made["vorticity"].chunks is not None
    assert dict(made.sizes) == {"trajectory": 3, "time": 4, "x": 16, "y": 16}
    assert {n: (v.dims, v.attrs["units"]) for n, v in made.data_vars.items()} == {
        "vorticity": (("trajectory", "time", "x", "y"), "1/s"), "forcing": (("trajectory", "x", "y"), "1/s2"),
        "viscosity": (("trajectory",), "m2/s")}
    assert made["viscosity"].values.tolist() == [1e-3, 5e-4, 1e-3]
    assert made["time"].values.tolist() == [0, 0.5, 1, 1.5]
    assert made["x"].attrs == {"units": "m", "period": 1.0}
    np.testing.assert_allclose(made["forcing"][1], ns.forcing(16), rtol=1e-6)


def test_the_initial_field_has_the_declared_covariance() -> None:
    fields = np.stack([ns.initial_vorticity(32, 0, i) for i in range(400)])
    power = (np.abs(np.fft.rfft2(fields)) ** 2).mean(0) / 32**4
    k = 4 * np.pi**2 * np.add.outer(np.fft.fftfreq(32, 1 / 32) ** 2, np.arange(17) ** 2)
    expected = 7**1.5 * (k + 49) ** -2.5
    ratio = (power / expected)[np.abs(np.fft.fftfreq(32, 1 / 32)) < 15][:, :15].ravel()[1:]
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert np.abs(fields.mean((1, 2))).max() < 1e-15
    finer = ns.initial_vorticity(64, 0, 7)
    np.testing.assert_allclose(ns.resample(ns.initial_vorticity(128, 0, 7), 64), finer, atol=1e-12)


def test_saving_at_a_lower_resolution_filters_the_same_flow() -> None:
    options = ns.Options(trajectories=1, frames=2, resolution=16, solve_resolution=32, spin_up=0.5)
    coarse = ns.solve(options)
    fine = ns.solve(options.model_copy(update={"resolution": 32}))
    assert coarse.shape == (1, 2, 16, 16)
    np.testing.assert_allclose(np.fft.rfft2(coarse)[..., :8, :8], np.fft.rfft2(fine)[..., :8, :8] / 4, atol=1e-10)


@pytest.mark.parametrize("wrong", [{"viscosity": -1e-3}, {"viscosity": []}, {"resolution": 33}, {"frame_dt": 0},
                                   {"resolution": 64, "solve_resolution": 32}, {"frames": 0}, {"viscosty": 1e-3}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="navier_stokes options"):
        ns.build(wrong)


def test_a_lost_solution_is_reported() -> None:
    with pytest.raises(FloatingPointError, match="frame 1"):
        ns.advance(flow(16) * np.nan, 1e-3, NO_FORCE, 0.1, 1)


def test_turnover_time() -> None:
    assert ns.turnover_time(np.full((2, 2), 2 * np.pi)) == pytest.approx(1.0)
