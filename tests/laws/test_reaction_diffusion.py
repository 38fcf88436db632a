"""Reaction and diffusion against travelling waves, fronts, linear theory and the kinetics without space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sciml.data.builders import reaction_diffusion as rd
from sciml.data.builders._spectral import resample
from sciml.errors import InputError

SPOTS: dict[str, Any] = {"model": "gray_scott", "feed": 0.03, "kill": 0.062, "diffusivity_u": 2e-5,
                         "diffusivity_v": 1e-5}


def spots(n: int, count: int = 1) -> torch.Tensor:
    options = rd.Options(resolution=32, solve_resolution=None)
    first = np.stack([rd.initial(options, i) for i in range(count)])
    return torch.from_numpy(resample(np.moveaxis(first, -1, 1), n)).movedim(1, -1)


@pytest.mark.parametrize(("model", "first", "given"), [
    ("gray_scott", (0.6, 0.3), {"feed": 0.04, "kill": 0.06, "diffusivity_u": 2e-5, "diffusivity_v": 1e-5}),
    ("fisher_kpp", (0.1,), {"reaction_rate": 0.7, "diffusivity_u": 1e-3}),
    ("allen_cahn", (-0.2,), {"reaction_rate": 1.3, "diffusivity_u": 1e-3})])
def test_without_gradients_only_the_reaction_is_left(model: Any, first: tuple[float, ...],
                                                     given: dict[str, Any]) -> None:
    def kinetics(_: float, c: np.ndarray) -> list[float]:
        if model == "gray_scott":
            u, v = c
            return [-u * v * v + given["feed"] * (1 - u), u * v * v - (given["feed"] + given["kill"]) * v]
        rate = given["reaction_rate"]
        return [rate * c[0] * (1 - c[0])] if model == "fisher_kpp" else [rate * (c[0] - c[0] ** 3)]

    time = 30.0 if model == "gray_scott" else 3.0
    made = rd.step(torch.tensor(first, dtype=torch.float64).expand(1, 8, 8, -1), time, model=model,
                   max_step=time / 600, **given)
    exact = solve_ivp(kinetics, (0, time), first, rtol=1e-11, atol=1e-13).y[:, -1]
    np.testing.assert_allclose(made, np.broadcast_to(exact, made.shape), atol=1e-8)
    assert np.abs(exact - first).max() > 0.05


def test_a_population_front_travels_as_ablowitz_and_zeppetella_say() -> None:
    """``(1 + e^{(x − ct)/√(6D/r)})^{−2}`` at ``c = 5 √(rD/6)`` (Bull. Math. Biol. 41 (1979)), one to each side."""
    rate, width, n = 2.0, 0.01, 512
    diffusivity = rate * width**2 / 6
    x, speed = torch.arange(n).double() / n, 5 * np.sqrt(rate * diffusivity / 6)

    def fronts(time: float) -> torch.Tensor:
        right = (1 + torch.exp((x - 0.7 - speed * time) / width)) ** -2
        left = (1 + torch.exp((0.3 - speed * time - x) / width)) ** -2
        return (right + left - 1)[None, :, None]

    made = rd.step(fronts(0.0), 2.0, model="fisher_kpp", length=1.0, reaction_rate=rate, diffusivity_u=diffusivity,
                   max_step=0.02)
    torch.testing.assert_close(made, fronts(2.0), atol=1e-7, rtol=0)
    assert speed * 2.0 > 3 * width


def test_a_steep_population_front_travels_at_the_speed_of_fisher() -> None:
    """``2 √(rD) (1 − 3 / (4 r t))``: Fisher, and Kolmogorov, Petrovsky and Piskunov 1937; Bramson 1983."""
    n, rate, diffusivity, length = 1024, 1.0, 1e-4, 1.6
    x = torch.arange(n).double() / n * length
    state = (0.5 + 0.5 * torch.tanh((0.2 - (x - 0.8).abs()) / 0.01))[None, :, None]
    places = []
    for time in (10.0, 10.0, 10.0):
        state = rd.step(state, time, model="fisher_kpp", length=length, reaction_rate=rate, diffusivity_u=diffusivity)
        u = state[0, :, 0].numpy()
        at = int(np.flatnonzero(u > 0.5)[-1])
        places.append((at + (u[at] - 0.5) / (u[at] - u[at + 1])) * length / n)
    reached = 2 * np.sqrt(rate * diffusivity) * (10 - 0.75 * np.log(3 / 2))
    assert places[2] - places[1] == pytest.approx(reached, rel=0.02)


def energy(state: torch.Tensor, rate: float, diffusivity: float) -> float:
    u = state[0, ..., 0].numpy()
    k = 2 * np.pi * np.fft.fftfreq(len(u), 1 / len(u))
    slope = np.abs(np.fft.fft2(u)) ** 2 * np.add.outer(k**2, k**2)
    return float(diffusivity / 2 * slope.mean() / u.size + rate / 4 * ((1 - u**2) ** 2).mean())


def test_phases_meet_in_a_front_that_stands_and_energy_decreases() -> None:
    """``tanh(x √(r / 2D))`` is steady; the energy of anything else decreases."""
    rate, diffusivity, n = 2.0, 1e-4, 512
    x = torch.arange(n).double() / n
    width = np.sqrt(2 * diffusivity / rate)
    front = (torch.tanh((x - 0.25) / width) - torch.tanh((x - 0.75) / width) - 1)[None, :, None]
    given: dict[str, Any] = {"model": "allen_cahn", "length": 1.0, "reaction_rate": rate}
    made = rd.step(front, 5.0, diffusivity_u=diffusivity, **given)
    torch.testing.assert_close(made, front, atol=1e-6, rtol=0)
    options = rd.Options(model="allen_cahn", resolution=64, solve_resolution=None)
    state, energies = torch.from_numpy(rd.initial(options, 0))[None], []
    for _ in range(8):
        energies.append(energy(state, rate, 4e-4))
        state = rd.step(state, 0.5, diffusivity_u=4e-4, **given)
    assert (np.diff(energies) < 0).all()
    assert energies[-1] < 0.5 * energies[0]


def test_a_disc_of_one_phase_shrinks_by_its_curvature() -> None:
    """``dR²/dt = −2D`` for interfaces thin beside R (Allen and Cahn 1979)."""
    n, rate, diffusivity = 96, 2.5, 1e-3
    x = (torch.arange(n).double() / n - 0.5)
    radius = (x[:, None] ** 2 + x**2).sqrt()
    state = torch.tanh((0.35 - radius) / np.sqrt(2 * diffusivity / rate))[None, ..., None]
    areas = [float((state + 1).mean() / 2)]
    for _ in range(2):
        state = rd.step(state, 6.0, model="allen_cahn", length=1.0, reaction_rate=rate, diffusivity_u=diffusivity,
                        max_step=0.1)
        areas.append(float((state + 1).mean() / 2))
    assert areas[2] - areas[1] == pytest.approx(-2 * np.pi * diffusivity * 6, rel=0.03)


def test_a_faint_wave_grows_and_spreads_as_linear_theory_says() -> None:
    x = torch.arange(32).double() / 32
    first = 1e-8 * torch.cos(2 * np.pi * (2 * x[:, None] + 3 * x))[None, ..., None]
    made = rd.step(first, 2.0, model="fisher_kpp", length=1.5, reaction_rate=0.6, diffusivity_u=1e-3)
    square = (2 * np.pi / 1.5) ** 2 * 13
    torch.testing.assert_close(made, first * np.exp(2 * (0.6 - 1e-3 * square)), atol=1e-14, rtol=0)


def test_steps_in_time_converge_at_fourth_order() -> None:
    exact = rd.step(spots(32), 32.0, max_step=0.25, **SPOTS)
    errors = [float((rd.step(spots(32), 32.0, max_step=h, **SPOTS) - exact).abs().max()) for h in (4.0, 2.0)]
    assert 3.5 < np.log2(errors[0] / errors[1]) < 5
    assert errors[1] < 1e-4


def test_refining_the_grid_converges_faster_than_any_low_order() -> None:
    made = [rd.step(spots(n), 20.0, max_step=4.0, length=0.4, **SPOTS).movedim(-1, 1).numpy() for n in (32, 48, 96)]
    errors = [np.abs(resample(m, 32) - resample(made[-1], 32)).max() for m in made[:2]]
    assert errors[1] < 2e-4
    assert errors[0] > 1.5**6 * errors[1]


def test_axes_are_alike_and_each_of_a_batch_has_its_own_parameters() -> None:
    first = spots(32, 2)
    feed = torch.tensor([0.03, 0.05])
    both = rd.step(first.float(), 20.0, **{**SPOTS, "feed": feed})
    assert both.dtype == torch.float32
    turned = rd.step(first[1:].transpose(1, 2), 20.0, **{**SPOTS, "feed": 0.05}).transpose(1, 2)
    torch.testing.assert_close(both[1:].double(), turned, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["gray_scott", "fisher_kpp", "allen_cahn"])
def test_the_step_is_differentiable(model: Any) -> None:
    first = torch.rand(1, 8, 2 if model == "gray_scott" else 1, dtype=torch.float64, requires_grad=True,
                       generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = dict.fromkeys(rd.KINETICS[model].parameters, 0.05)
    assert torch.autograd.gradcheck(lambda c: rd.step(c, 0.5, model=model, **given), (first,))


def test_every_usual_pattern_of_gray_scott_lives() -> None:
    options = rd.Options(trajectories=5, resolution=48, solve_resolution=None, frames=2, frame_dt=300.0, length=0.6)
    made = rd.solve(options, 0, 5)
    assert made["concentration_v"].shape == (5, 2, 48, 48)
    assert (made["concentration_v"][:, 1].max((1, 2)) > 0.15).all()
    assert (np.abs(np.diff(made["concentration_v"], axis=1)).max((1, 2, 3)) > 0.1).all()
    for values in made.values():
        assert -5e-3 < values.min() < values.max() < 1.005


def test_the_dataset_is_canonical() -> None:
    made = rd.build({"trajectories": 2, "frames": 3, "resolution": 16, "solve_resolution": 16, "dimensions": 1,
                     "length": 0.5})
    assert dict(made.sizes) == {"trajectory": 2, "time": 3, "x": 16}
    assert {str(n): v.attrs["role"] for n, v in made.data_vars.items()} == {
        "concentration_u": "state", "concentration_v": "state", "feed": "parameter", "kill": "parameter",
        "diffusivity_u": "parameter", "diffusivity_v": "parameter"}
    assert made["feed"].values.tolist() == [0.014, 0.029]
    assert made["x"].attrs == {"units": "1", "period": 0.5}
    other = rd.build({"trajectories": 1, "model": "allen_cahn", "diffusivity_u": 1e-3})
    assert list(other.data_vars) == ["order_parameter", "reaction_rate", "diffusivity_u"]


@pytest.mark.parametrize("wrong", [{"model": "schnakenberg"}, {"feed": -0.1}, {"kill": 0}, {"diffusivity_u": ()},
                                   {"spots": (3, 1)}, {"model": "fisher_kpp", "reaction_rate": 0.0}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="reaction_diffusion options"):
        rd.build(wrong)
