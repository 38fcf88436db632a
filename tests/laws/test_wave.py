"""Waves in layers against standing waves, the laws of reflection, and the conservation of energy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.builders import wave
from sciml.errors import InputError

PERIODIC = ("periodic", "periodic")


def layered(n: int, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A start and its medium, ``(1, n, n, 2)`` and ``(1, n, n)``."""
    options = wave.Options(resolution=n, solve_resolution=None, layers=(3, 3), pulse_width=0.07, **given)
    return torch.from_numpy(wave.initial(options, 0))[None], torch.from_numpy(wave.medium(options, 0))[None]


def line(cells: int, place: float, speed: float, width: float = 0.03) -> torch.Tensor:
    """A plane pulse at `place` of the unit length that travels to higher y, ``(1, 4, cells, 2)``."""
    y = (torch.arange(cells).double() + 0.5) / cells - place
    p = torch.exp(-y**2 / (2 * width**2))
    return torch.stack([p, speed * y / width**2 * p], -1).expand(1, 4, cells, 2)


def run(state: torch.Tensor, time: float, speed: torch.Tensor, low: Any, high: Any) -> np.ndarray:
    """Pressure along y after `time`, ``(cells,)``; cells are square, and the strip is four wide."""
    cells = state.shape[2]
    made = wave.step(state, time, speed=speed, boundary_y=(low, high), length=4 / cells)
    return np.asarray(made[0, 0, :, 0])


@pytest.mark.parametrize(("boundary", "mode"), [("periodic", 2 * np.pi), ("wall", np.pi)])
def test_standing_waves_are_approached_at_second_order(boundary: Any, mode: float) -> None:
    errors = []
    for n in (24, 48, 96):
        x = (torch.arange(n).double() + 0.5) / n
        shape = torch.outer(torch.cos(mode * x), torch.cos(2 * mode * x))[None]
        pulse = torch.stack([shape, torch.zeros_like(shape)], -1)
        made = wave.step(pulse, 0.4, speed=torch.full((1, n, n), 1.5), boundary_x=(boundary, boundary),
                         boundary_y=(boundary, boundary))
        omega = 1.5 * mode * np.sqrt(5)
        exact = torch.stack([shape * np.cos(0.4 * omega), -omega * shape * np.sin(0.4 * omega)], -1)
        errors.append(float((made - exact).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.8).all()
    assert (orders < 2.2).all()


@pytest.mark.parametrize("ends", [PERIODIC, ("wall", "wall")])
def test_energy_is_conserved_in_layers_without_open_ends(ends: Any) -> None:
    state, speed = layered(48)
    drift = []
    for courant in (0.5, 0.25):
        now, energies = state, []
        for _ in range(20):
            energies.append(float(wave.energy(now, speed, boundary_x=ends, boundary_y=ends)))
            now = wave.step(now, 0.1, speed=speed, boundary_x=ends, boundary_y=ends, courant=courant)
        drift.append(np.ptp(energies) / energies[0])
        assert abs(energies[-1] / energies[0] - 1) < 0.01
    assert drift[0] < 0.03
    assert drift[1] < 0.35 * drift[0]


def test_time_runs_backwards_as_well() -> None:
    state, speed = layered(32)
    turn = torch.tensor([1.0, -1.0])
    later = wave.step(state, 0.5, speed=speed)
    back = wave.step(later * turn, 0.5, speed=speed) * turn
    torch.testing.assert_close(back, state, atol=1e-11, rtol=0)
    assert float((later - state)[..., 0].abs().max()) > 0.3


def test_at_an_interface_a_pulse_is_reflected_and_transmitted_by_the_ratio_of_speeds() -> None:
    """``R = (c₂ − c₁) / (c₂ + c₁)``, ``T = 2 c₂ / (c₂ + c₁)`` of the pressure at equal density; times of travel."""
    cells, first, second = 600, 1.0, 1.6
    y = (np.arange(cells) + 0.5) / cells
    speed = torch.from_numpy(np.where(y < 0.5, first, second)).expand(1, 4, cells)
    made = run(line(cells, 0.3, first), 0.42, speed, "wall", "wall")
    low, high = y < 0.5, y >= 0.5
    assert made[low].max() == pytest.approx((second - first) / (second + first), rel=0.01)
    assert made[high].max() == pytest.approx(2 * second / (second + first), rel=0.01)
    left = 0.42 - 0.2 / first
    assert y[low][made[low].argmax()] == pytest.approx(0.5 - left * first, abs=0.004)
    assert y[high][made[high].argmax()] == pytest.approx(0.5 + left * second, abs=0.004)


@pytest.mark.parametrize(("end", "reflected"), [("wall", 1.0), ("open", 0.0)])
def test_a_wall_reflects_all_and_an_open_end_nothing(end: Any, reflected: float) -> None:
    cells = 300
    speed = torch.full((1, 4, cells), 1.25, dtype=torch.float64)
    made = run(line(cells, 0.6, 1.25), 0.8 / 1.25, speed, "open", end)
    y = (np.arange(cells) + 0.5) / cells
    assert np.abs(made - reflected * np.exp(-((y - 0.6) ** 2) / (2 * 0.03**2))).max() < 0.02


def test_open_ends_only_ever_take_energy() -> None:
    ends: Any = ("open", "open")
    state, speed = layered(48, boundary_x=ends, boundary_y=ends)
    energies = []
    for _ in range(20):
        energies.append(float(wave.energy(state, speed, boundary_x=ends, boundary_y=ends)))
        state = wave.step(state, 0.1, speed=speed, boundary_x=ends, boundary_y=ends, courant=0.25)
    assert (np.diff(energies) < 1e-3 * energies[0]).all()
    assert energies[-1] < 0.03 * energies[0]


def test_what_is_saved_converges_as_the_solver_is_refined() -> None:
    given = {"trajectories": 1, "resolution": 16, "frames": 2, "frame_dt": 0.25, "pulse_width": 0.08}
    made = [wave.solve(wave.Options.model_validate({**given, "solve_resolution": n}), 0, 1) for n in (32, 64, 128, 256)]
    for name in ("pressure", "pressure_rate"):
        last = [one[name][0, 1] for one in made]
        changes = [np.linalg.norm(a - b) / np.linalg.norm(last[-1]) for a, b in pairwise(last)]
        orders = np.log2(np.array(changes[:-1]) / changes[1:])
        assert (orders > 1.5).all()
        assert changes[-1] < 0.02


def test_two_steps_are_one_and_the_step_is_differentiable() -> None:
    state, speed = layered(8)
    given: dict[str, Any] = {"speed": speed, "boundary_y": ("wall", "open")}
    count = int(np.ceil(0.1 * float(speed.max()) * np.sqrt(2) * 8 / 0.5))
    exact = {"courant": 0.1 * float(speed.max()) * np.sqrt(2) * 8 / count}
    twice = wave.step(wave.step(state, 0.1, **given, **exact), 0.1, **given, **exact)
    torch.testing.assert_close(wave.step(state, 0.2, **given, **exact), twice, atol=1e-12, rtol=0)
    first = state[:, :4, :4].clone().requires_grad_()
    ground = speed[:, :4, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, c: wave.step(s, 0.1, speed=c, boundary_y=("wall", "open")),
                                    (first, ground))


def test_media_are_layers_of_the_declared_speeds_at_any_resolution() -> None:
    options = wave.Options(resolution=32, solve_resolution=128, layers=(2, 4), speed=(0.5, 2.0))
    for i in range(5):
        fine = wave.medium(options, i)
        assert 0.5 <= fine.min() < fine.max() <= 2.0
        rounded, counts = np.unique(fine.round(9), return_counts=True)
        assert 2 <= (counts > 128).sum() <= 4
        assert counts[counts > 128].sum() > 0.9 * fine.size
        assert len(rounded) > 4
        coarse = wave.draw(options, i, i + 1)["speed"][0]
        assert (coarse**-2).mean() == pytest.approx((fine**-2).mean(), rel=1e-12)
        finer = wave.medium(options.model_copy(update={"solve_resolution": 256}), i)
        assert (finer**-2).mean() == pytest.approx((fine**-2).mean(), rel=2e-3)


def test_the_dataset_is_canonical() -> None:
    made = wave.build({"trajectories": 2, "frames": 2, "resolution": 16, "solve_resolution": 32})
    assert {str(n): (v.dims[1:], v.attrs["role"]) for n, v in made.data_vars.items()} == {
        "pressure": (("time", "x", "y"), "state"), "pressure_rate": (("time", "x", "y"), "state"),
        "speed": (("x", "y"), "forcing"), "boundary_y_low": ((), "boundary"), "boundary_y_high": ((), "boundary")}
    assert (made["boundary_y_low"].values == 0).all()
    assert (made["boundary_y_high"].values == 1).all()
    assert made["x"].attrs == {"units": "m", "period": 1.0}
    assert made["y"].attrs == {"units": "m"}
    np.testing.assert_allclose(made["pressure_rate"][:, 0], 0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"layers": (0, 2)}, {"speed": (0, 1)}, {"speed": (2, 1)}, {"relief": 1},
                                   {"resolution": 24, "solve_resolution": 64}, {"boundary_x": ("periodic", "wall")}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="wave options"):
        wave.build(wrong)
