"""Two-dimensional turbulence against what is known of incompressible flow and of what it carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dask import compute

from sciml.data.builders import navier_stokes as ns
from sciml.data.builders import turbulence as tb
from sciml.data.builders._spectral import resample
from sciml.errors import InputError


def flow(n: int, count: int = 1, speed: float = 1.0) -> np.ndarray:
    """Vorticity and tracer ``(count, 2, n, n)`` at scales that 32² resolves."""
    options = tb.Options(resolution=32, initial_wave=2.0, initial_speed=speed)
    fields = np.stack([np.stack(tb.initial(options, i)) for i in range(count)])
    smooth = np.fft.rfft2(fields)
    harmonics = np.hypot(*np.meshgrid(np.fft.fftfreq(32, 1 / 32), np.arange(17), indexing="ij"))
    return resample(np.fft.irfft2(smooth * np.exp(-((harmonics / 4) ** 2))), n)


def test_taylor_green_vortices_decay_exponentially_with_drag_and_in_float32() -> None:
    x = torch.arange(32, dtype=torch.float64) / 32
    k, nu, drag = 4 * torch.pi, 1e-2, 0.3
    first = torch.outer(torch.sin(k * x), torch.sin(k * x))[None, None]
    exact = first * np.exp(-(2 * nu * k**2 + drag) * 0.4)
    assert torch.allclose(tb.step(first, 0.4, viscosity=nu, drag=drag), exact, atol=1e-13)
    assert torch.allclose(tb.step(first.float(), 0.4, viscosity=nu, drag=drag), exact.float(), atol=1e-6)


def test_the_laminar_flow_of_kolmogorov_is_a_steady_state() -> None:
    """A sin 2πky is balanced by (νk² + α) u; at this viscosity it is stable."""
    n, wave, nu, drag = 32, 2, 0.02, 0.1
    k = 2 * np.pi * wave
    laminar = tb.curl_of_force(n, 1.0, wave) / (nu * k**2 + drag)
    later = tb.advance(laminar[None, None], 0.5, 2, viscosity=nu, drag=drag, forcing=tb.curl_of_force(n, 1.0, wave))
    np.testing.assert_allclose(later[0, :, 0], np.stack([laminar, laminar]), atol=2e-5 * np.abs(laminar).max())
    u, v = tb.velocity_of(torch.as_tensor(laminar))
    np.testing.assert_allclose(u[3], np.sin(k * np.arange(n) / n) / (nu * k**2 + drag), atol=1e-12)
    assert v.abs().max() < 1e-12


def test_it_is_the_flow_of_the_navier_stokes_builder() -> None:
    first, force = flow(32)[:, :1], ns.forcing(32, 5.0)
    theirs = ns.advance(first[:, 0], 1e-3, force, 0.2, 2)
    ours = tb.advance(first, 0.2, 2, viscosity=1e-3, forcing=force, courant=ns.COURANT)[:, :, 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-11)


def test_energy_enstrophy_and_variance_of_the_tracer_follow_their_budgets() -> None:
    """d/dt ½⟨u²⟩ = −ν⟨ω²⟩ − α⟨u²⟩ + ⟨ψ curl f⟩, d/dt ½⟨ω²⟩ = −ν⟨|∇ω|²⟩ − α⟨ω²⟩ + ⟨ω curl f⟩, d/dt ½⟨c²⟩ = −κ⟨|∇c|²⟩."""
    n, nu, drag, kappa, dt = 64, 1e-3, 0.4, 5e-4, 1e-3
    force = tb.curl_of_force(n, 2.0, 3)
    saved = tb.advance(flow(n), dt, 3, viscosity=nu, drag=drag, forcing=force, diffusivity=kappa)[0]
    w, c = saved[:, 0], saved[:, 1]
    square = ns._Modes.of(n).square.numpy()

    def laplace(field: np.ndarray) -> np.ndarray:
        return -np.fft.irfft2(np.fft.rfft2(field) * square)

    stream = np.fft.irfft2(np.fft.rfft2(w) / np.maximum(square, 1))
    energy, enstrophy, variance = ((f * g).mean((1, 2)) / 2 for f, g in ((stream, w), (w, w), (c, c)))
    rate = [(s[2] - s[0]) / (2 * dt) for s in (energy, enstrophy, variance)]
    assert rate[0] == pytest.approx(
        -nu * np.mean(w[1] ** 2) - 2 * drag * energy[1] + np.mean(stream[1] * force), rel=1e-4)
    assert rate[1] == pytest.approx(
        nu * np.mean(w[1] * laplace(w[1])) - 2 * drag * enstrophy[1] + np.mean(w[1] * force), rel=1e-4)
    assert rate[2] == pytest.approx(kappa * np.mean(c[1] * laplace(c[1])), rel=1e-4)


def test_the_tracer_keeps_its_mean_and_its_variance_does_not_grow() -> None:
    first = flow(48) + np.array([0.0, 0.3])[:, None, None]
    c = tb.advance(first, 0.2, 6, viscosity=2e-3, diffusivity=2e-3)[0, :, 1]
    np.testing.assert_allclose(c.mean((1, 2)), 0.3, atol=1e-13)
    variances = [first[0, 1].var(), *c.var((1, 2))]
    assert np.all(np.diff(variances) < 0)
    assert variances[-1] < 0.8 * variances[0]


def test_without_diffusion_the_variance_of_the_tracer_is_conserved() -> None:
    first = flow(64)
    c = tb.advance(first, 0.1, 1, viscosity=1e-3, diffusivity=1e-12)[0, 0, 1]
    assert np.abs(c - first[0, 1]).max() > 0.1
    assert c.var() == pytest.approx(first[0, 1].var(), rel=1e-5)


def test_in_a_steady_shear_the_tracer_follows_the_exact_solution() -> None:
    """cos 2πx in u = sin 2πy, without diffusion to speak of: cos 2π(x − t sin 2πy)."""
    n, t = 64, 0.1
    x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    first = np.stack([-2 * np.pi * np.cos(2 * np.pi * y), np.cos(2 * np.pi * x)])
    later = tb.advance(first[None], t, 1, viscosity=1e-14, diffusivity=1e-14)[0, 0, 1]
    np.testing.assert_allclose(later, np.cos(2 * np.pi * (x - t * np.sin(2 * np.pi * y))), atol=1e-6)


def test_steps_converge_at_fourth_order() -> None:
    first = torch.as_tensor(flow(32))
    given: dict[str, Any] = {"viscosity": 1e-3, "drag": 0.2, "forcing": torch.as_tensor(tb.curl_of_force(32)),
                             "diffusivity": 1e-3}
    coarse, fine, exact = (tb.step(first, 0.3, substeps=count, **given) for count in (16, 32, 128))
    orders = torch.log2((coarse - exact).square().sum((0, 2, 3)) / (fine - exact).square().sum((0, 2, 3))) / 2
    assert torch.all((orders > 3.5) & (orders < 5))


def test_refining_the_grid_converges_faster_than_any_low_order() -> None:
    saved = {n: tb.advance(flow(n), 0.2, 1, viscosity=4e-3, drag=0.2, forcing=tb.curl_of_force(n), diffusivity=4e-3)
             for n in (32, 64, 96)}
    exact = saved.pop(96)[0, 0]
    errors = [np.linalg.norm(s[0, 0] - resample(exact, n), axis=(1, 2)) / n for n, s in saved.items()]
    assert np.all(errors[1] < 1e-3)
    assert np.all(errors[0] > 2**5 * errors[1])


def test_the_velocity_that_is_saved_is_free_of_divergence_and_its_curl_is_the_vorticity() -> None:
    made = tb.solve(tb.Options(trajectories=1, frames=2, resolution=32, solve_resolution=48, spin_up=0.2, save="both"))
    velocity = np.stack([made["velocity_x"], made["velocity_y"]], axis=-3)
    modes = ns._Modes.of(32)
    u, v = (np.fft.rfft2(velocity[..., i, :, :]) for i in (0, 1))
    divergence = np.fft.irfft2(1j * (modes.kx.numpy() * u + modes.ky.numpy() * v))
    assert np.abs(divergence).max() < 1e-11
    np.testing.assert_allclose(tb.vorticity_of(torch.as_tensor(velocity)), made["vorticity"], atol=1e-11)
    assert np.abs(velocity.mean((-2, -1))).max() < 1e-14


def test_a_step_is_differentiable_in_the_state_and_in_the_parameters() -> None:
    first = torch.as_tensor(flow(8, 2)).requires_grad_()
    nu = torch.tensor([1e-2, 2e-2], dtype=torch.float64, requires_grad=True)
    force = torch.as_tensor(tb.curl_of_force(8, 1.0, 1)).requires_grad_()

    def run(state: torch.Tensor, viscosity: torch.Tensor, forcing: torch.Tensor) -> torch.Tensor:
        return tb.step(state, 0.05, viscosity=viscosity, forcing=forcing, drag=0.1, diffusivity=viscosity, substeps=2)

    assert torch.autograd.gradcheck(run, (first, nu, force), fast_mode=True)


def test_a_step_taken_without_gradients_leaves_nothing_behind_that_has_none() -> None:
    first = torch.as_tensor(flow(20)[:, :1])
    with torch.inference_mode():
        tb.step(first, 0.01, viscosity=1e-2)
    tb.step(first.requires_grad_(), 0.01, viscosity=1e-2).sum().backward()
    assert first.grad is not None


def test_a_step_is_a_frame_of_the_data() -> None:
    options = tb.Options(trajectories=2, frames=3, frame_dt=0.05, resolution=32, spin_up=0.3, save="vorticity",
                         viscosity=(5e-3, 2e-2), tracer=True)
    made = tb.solve(options)
    nu = torch.as_tensor(tb.viscosities(options, 0, 2))
    state = torch.as_tensor(np.stack([made["vorticity"], made["tracer"]], axis=2))
    later = tb.step(state[:, 1], 0.05, viscosity=nu, drag=options.drag, diffusivity=nu,
                    forcing=torch.as_tensor(tb.curl_of_force(32)))
    np.testing.assert_allclose(later, state[:, 2], atol=1e-4)


def test_a_trajectory_depends_neither_on_its_neighbours_nor_on_blocks() -> None:
    given = {"trajectories": 3, "frames": 2, "resolution": 32, "spin_up": 0.3, "viscosity": (5e-4, 2e-3),
             "tracer": True, "regime": "decaying"}
    options = tb.Options.model_validate(given)
    together, apart = tb.solve(options), tb.solve(options, 2, 3)
    for name in ("velocity_x", "velocity_y", "tracer"):
        np.testing.assert_allclose(apart[name][0], together[name][2], atol=1e-11)
    by_one, by_three = compute(*(tb.PLUGIN({**given, "block": b}) for b in (1, 3)))
    np.testing.assert_allclose(by_one["velocity_x"], by_three["velocity_x"], atol=1e-6)
    assert np.all((by_one["viscosity"] > 5e-4) & (by_one["viscosity"] < 2e-3))
    assert len(np.unique(by_one["viscosity"])) == 3


def test_the_dataset_is_canonical_and_lazy() -> None:
    made = tb.build({"trajectories": 2, "frames": 3, "resolution": 16, "tracer": True, "save": "both"})
    assert all(made[name].chunks is not None for name in ("velocity_x", "vorticity", "tracer", "forcing"))
    assert dict(made.sizes) == {"trajectory": 2, "time": 3, "x": 16, "y": 16}
    vectors = {name: (made[name].attrs.get("vector"), made[name].attrs.get("along")) for name in made.data_vars}
    assert vectors == {"velocity_x": ("velocity", "x"), "velocity_y": ("velocity", "y"), "tracer": (None, None),
                       "vorticity": ("vorticity", "x y"), "forcing": ("forcing", "x y"), "viscosity": (None, None),
                       "diffusivity": (None, None)}
    assert "forcing" not in tb.build({"regime": "decaying"})


def test_the_initial_flow_has_the_declared_speed_and_is_the_same_on_finer_grids() -> None:
    options = tb.Options(resolution=64, initial_speed=2.0)
    vorticity, tracer = tb.initial(options, 3)
    velocity = tb.velocity_of(torch.as_tensor(vorticity))
    assert float((velocity**2).sum(0).mean()) == pytest.approx(4.0)
    assert (tracer.mean(), tracer.var()) == pytest.approx((0, 1), abs=1e-12)
    finer = tb.initial(options.model_copy(update={"resolution": 128}), 3)[0]
    np.testing.assert_allclose(resample(finer, 64), vorticity, atol=1e-11)


@pytest.mark.parametrize("wrong", [{"viscosity": 0}, {"viscosity": (2e-3, 1e-3)}, {"regime": "forced"}, {"drag": -1},
                                   {"forcing_wave": 30}, {"resolution": 64, "solve_resolution": 32}, {"frame_dt": 0}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="turbulence options"):
        tb.build(wrong)


def test_a_lost_solution_and_a_wrong_shape_are_reported() -> None:
    with pytest.raises(FloatingPointError, match="frame 1"):
        tb.advance(flow(16)[:, :1] * np.nan, 0.1, 1, viscosity=1e-3)
    with pytest.raises(ValueError, match="isn't"):
        tb.step(torch.zeros(1, 2, 8, 8), 0.1, viscosity=1e-3)
