"""Viscous Burgers against the solution of Cole and Hopf, and against its budgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dst

from sciml.data.builders import burgers
from sciml.data.builders._spectral import resample
from sciml.errors import InputError


def cole_hopf(points: np.ndarray, viscosity: float, time: float, waves: dict[int, float], period: float) -> np.ndarray:
    """u at points ``(n,)`` after the initial ``Σ a_m sin(2π m x / period)``: ``u = −2ν φ_x / φ`` (Cole 1951, Hopf
    1950), where φ obeys the heat equation, solved by its Fourier series."""
    n = 4096
    x = np.arange(n) * period / n
    potential = np.stack([a * period / (2 * np.pi * m) * (1 - np.cos(2 * np.pi * m * x / period))
                          for m, a in waves.items()]).sum(0)
    exponent = -potential / (2 * viscosity)
    modes = np.fft.fft(np.exp(exponent - exponent.max())) / n
    k = np.fft.fftfreq(n, period / n) * 2 * np.pi
    modes *= np.exp(-viscosity * k**2 * time)
    modes, k = modes[np.abs(k) < 2 * np.pi * 300 / period], k[np.abs(k) < 2 * np.pi * 300 / period]
    wave = np.exp(1j * np.outer(points, k))
    return np.asarray(-2 * viscosity * ((wave @ (1j * k * modes)) / (wave @ modes)).real)


WAVES = {1: 0.7, 2: -0.4, 3: 0.2}


def start(points: np.ndarray, period: float) -> torch.Tensor:
    field = sum(a * np.sin(2 * np.pi * m * points / period) for m, a in WAVES.items())
    return torch.from_numpy(field)[None, :, None]


def smooth(n: int, count: int = 1) -> torch.Tensor:
    options = burgers.Options(resolution=256, solve_resolution=None)
    fields = np.stack([burgers.initial(options, i) for i in range(count)])
    return torch.from_numpy(resample(resample(fields, 32, 1), n, 1))[..., None]


@pytest.mark.parametrize("time", [0.2, 0.6])
def test_a_periodic_flow_is_the_one_of_cole_and_hopf(time: float) -> None:
    x = np.arange(256) / 256
    made = burgers.step(start(x, 1.0), time, viscosity=0.01)
    np.testing.assert_allclose(made[0, :, 0], cole_hopf(x, 0.01, time, WAVES, 1.0), atol=1e-9)


def test_a_flow_at_rest_at_both_ends_is_the_one_of_cole_and_hopf() -> None:
    x = (np.arange(256) + 0.5) / 256
    made = burgers.step(start(x, 2.0), 0.6, viscosity=0.01, boundary="dirichlet")
    np.testing.assert_allclose(made[0, :, 0], cole_hopf(x, 0.01, 0.6, WAVES, 2.0), atol=1e-9)
    assert abs(float(made[0, 0, 0])) < 0.02 < float(made.abs().max())


def test_steps_in_time_converge_at_fourth_order() -> None:
    x = np.arange(128) / 128
    exact = cole_hopf(x, 0.02, 0.4, WAVES, 1.0)
    errors = [np.abs(burgers.step(start(x, 1.0), 0.4, viscosity=0.02, courant=c)[0, :, 0].numpy() - exact).max()
              for c in (2.0, 1.0)]
    assert 3.6 < np.log2(errors[0] / errors[1]) < 5


def test_refining_the_grid_converges_faster_than_any_low_order() -> None:
    errors = []
    for n in (64, 128):
        x = np.arange(n) / n
        made = burgers.step(start(x, 1.0), 0.4, viscosity=0.01, courant=0.2)[0, :, 0].numpy()
        errors.append(np.abs(made - cole_hopf(x, 0.01, 0.4, WAVES, 1.0)).max())
    assert errors[1] < 1e-4
    assert errors[0] > 2**6 * errors[1]


def test_momentum_is_conserved_and_energy_dissipated_by_viscosity() -> None:
    """d/dt ½⟨u²⟩ = −ν⟨u_x²⟩, by centred differences."""
    nu, dt, first = 5e-3, 1e-4, smooth(256)
    frames = [first]
    for _ in range(2):
        frames.append(burgers.step(frames[-1], dt, viscosity=nu))
    u = torch.stack(frames)[:, 0, :, 0].numpy()
    np.testing.assert_allclose(u.mean(1), u[0].mean(), atol=1e-14)
    slope = np.fft.irfft(1j * 2 * np.pi * np.arange(129) * np.fft.rfft(u[1]))
    change = ((u[2] ** 2).mean() - (u[0] ** 2).mean()) / 2 / (2 * dt)
    assert change == pytest.approx(-nu * np.mean(slope**2), rel=1e-5)


def test_galilei_and_mirror() -> None:
    """A flow seen from a moving frame; the flow the other way round."""
    first = smooth(128)
    later = burgers.step(first, 0.25, viscosity=0.01)
    moved = burgers.step(first + 0.5, 0.25, viscosity=0.01) - 0.5
    torch.testing.assert_close(moved, later.roll(128 // 8, 1), atol=1e-6, rtol=0)
    mirrored = -burgers.step(-first.flip(1), 0.25, viscosity=0.01).flip(1)
    torch.testing.assert_close(mirrored, later, atol=1e-12, rtol=0)


def test_each_of_a_batch_has_its_own_viscosity_and_type_is_kept() -> None:
    first = smooth(64, 2).float()
    nu = torch.tensor([0.02, 0.05])
    both = burgers.step(first, 0.2, viscosity=nu)
    assert both.dtype == torch.float32
    for i in range(2):
        alone = burgers.step(first[i:i + 1].double(), 0.2, viscosity=float(nu[i]))
        torch.testing.assert_close(both[i:i + 1].double(), alone, atol=1e-5, rtol=0)


def test_the_step_is_differentiable() -> None:
    first = (0.3 * smooth(16)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: burgers.step(u, 0.05, viscosity=0.05), (first,))


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet"])
def test_what_is_saved_is_the_solution_refined_and_filtered(boundary: str) -> None:
    given = {"trajectories": 2, "frames": 3, "frame_dt": 0.1, "boundary": boundary, "viscosity": (2e-2, 1e-2)}
    coarse, fine = (burgers.solve(burgers.Options.model_validate({**given, "resolution": 64, "solve_resolution": n}),
                                  0, 2)["velocity_x"] for n in (384, 768))
    assert coarse.shape == (2, 3, 64)
    np.testing.assert_allclose(coarse, fine, atol=1e-7)
    assert np.abs(coarse[:, 2] - coarse[:, 0]).max() > 0.05


def test_the_initial_field_has_the_declared_covariance() -> None:
    options = burgers.Options(resolution=128, solve_resolution=None)
    fields = np.stack([burgers.initial(options, i) for i in range(2000)])
    power = (np.abs(np.fft.rfft(fields)) ** 2).mean(0)[1:30] / 128**2
    expected = 625 / (4 * np.pi**2 * np.arange(1, 30) ** 2 + 25.0) ** 2
    np.testing.assert_allclose(power, expected, rtol=0.15)
    odd = options.model_copy(update={"boundary": "dirichlet"})
    sines = dst(np.stack([burgers.initial(odd, i) for i in range(2000)]), type=2)[:, :30] / 128 / np.sqrt(2)
    np.testing.assert_allclose((sines**2).mean(0), 625 / (np.pi**2 * np.arange(1, 31) ** 2 + 25.0) ** 2, rtol=0.15)


def test_the_dataset_is_canonical() -> None:
    made = burgers.build({"trajectories": 2, "frames": 3, "resolution": 16, "solve_resolution": 32,
                          "boundary": "dirichlet"})
    assert made["velocity_x"].dims == ("trajectory", "time", "x")
    assert made["velocity_x"].attrs["vector"] == "velocity"
    assert made["viscosity"].values.tolist() == [1e-2, 5e-3]
    assert [made[f"boundary_x_{end}"].values.tolist() for end in ("low", "high")] == [[3, 3], [3, 3]]
    assert made["x"].attrs == {"units": "m"}
    assert float(made["x"][0]) == 1 / 32
    periodic = burgers.build({"trajectories": 1, "resolution": 16, "solve_resolution": 32})
    assert "boundary_x_low" not in periodic
    assert periodic["x"].attrs["period"] == 1.0


@pytest.mark.parametrize("wrong", [{"viscosity": 0}, {"viscosity": []}, {"boundary": "open"}, {"frames": 0},
                                   {"resolution": 64, "solve_resolution": 32}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="burgers options"):
        burgers.build(wrong)


def test_a_lost_solution_is_reported() -> None:
    with pytest.raises(FloatingPointError, match="velocity"):
        burgers.step(smooth(16) * torch.nan, 0.1, viscosity=0.1)
