"""Advection against its exact solution, the shifted initial field."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml.data.builders import advection
from sciml.errors import InputError


def packet(x: Tensor, y: Tensor) -> Tensor:
    """Periodic, analytic, of many harmonics."""
    return torch.exp(4 * torch.cos(2 * np.pi * (x - 0.3)) + 2 * torch.sin(2 * np.pi * y) - 6)


def points(n: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(n, dtype=torch.float64) / n
    return x[:, None], x[None]


def carried(state: Tensor, time: float, x: float, y: float) -> Tensor:
    return advection.step(state, time, advection_velocity_x=x, advection_velocity_y=y)


def test_a_packet_arrives_unchanged_where_its_velocity_carries_it() -> None:
    x, y = points(64)
    first = torch.stack([packet(x, y), packet(x, y + 0.2)])[..., None]
    later = advection.step(first, 3.7, advection_velocity_x=torch.tensor([0.31, -2.0]),
                           advection_velocity_y=torch.tensor([-0.77, 0.5]))[..., 0]
    expected = [packet(x - 0.31 * 3.7, y + 0.77 * 3.7), packet(x + 2 * 3.7, y + 0.2 - 0.5 * 3.7)]
    torch.testing.assert_close(later, torch.stack(expected), atol=2e-5, rtol=0)
    fine_x, fine_y = points(96)
    later = carried(packet(fine_x, fine_y)[None, ..., None], 3.7, 0.31, -0.77)[0, ..., 0]
    torch.testing.assert_close(later, packet(fine_x - 0.31 * 3.7, fine_y + 0.77 * 3.7), atol=1e-12, rtol=0)


def test_a_shift_by_whole_cells_is_a_roll() -> None:
    first = torch.from_numpy(advection.initial(advection.Options(resolution=64), 0))
    later = carried(first[None, ..., None], 0.5, 6 / 64, -4 / 64)[0, ..., 0]
    torch.testing.assert_close(later, first.roll((3, -2), (0, 1)), atol=1e-13, rtol=0)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_frames_are_the_initial_field_carried_along(dimensions: Literal[1, 2]) -> None:
    options = advection.Options(trajectories=3, frames=5, frame_dt=0.3, resolution=64, dimensions=dimensions)
    made = advection.solve(options, 1, 3)["tracer"]
    k = [np.fft.fftfreq(64, 1 / 64)] * dimensions
    for i, velocity in zip((1, 2), advection.velocities(options, 1, 3)):
        turn = sum(np.meshgrid(*(c * wave for c, wave in zip(velocity, k)), indexing="ij"))
        for frame in range(5):
            exact = np.fft.ifftn(np.fft.fftn(advection.initial(options, i)) * np.exp(-2j * np.pi * 0.3 * frame * turn))
            np.testing.assert_allclose(made[i - 1, frame], exact.real, atol=1e-12)


def test_mean_and_variance_are_conserved_and_two_steps_are_one() -> None:
    first = torch.from_numpy(advection.initial(advection.Options(resolution=64), 3))[None, ..., None] + 0.4
    once = carried(first, 0.7, 0.9, 0.2)
    twice = carried(carried(first, 0.3, 0.9, 0.2), 0.4, 0.9, 0.2)
    torch.testing.assert_close(once, twice, atol=1e-13, rtol=0)
    assert float(once.mean() - first.mean()) == pytest.approx(0, abs=1e-14)
    assert float(once.var()) == pytest.approx(float(first.var()), rel=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_tracer_has_the_declared_covariance(dimensions: Literal[1, 2]) -> None:
    """A squared exponential, less the variance of the mean."""
    options = advection.Options(resolution=64, length=0.1, dimensions=dimensions)
    fields = np.stack([advection.initial(options, i) for i in range(200 if dimensions == 2 else 2000)])
    mean = (np.sqrt(2 * np.pi) * 0.1) ** dimensions
    assert fields.var() == pytest.approx(1 - mean, abs=0.05)
    lag = np.mean(fields * np.roll(fields, 6, -1))
    assert lag == pytest.approx(np.exp(-(6 / 64) ** 2 / (2 * 0.1**2)) - mean, abs=0.05)
    assert np.abs(fields.mean(tuple(range(1, dimensions + 1)))).max() < 1e-14
    finer = advection.initial(options.model_copy(update={"resolution": 128}), 5)
    np.testing.assert_allclose(finer[(slice(None, None, 2),) * dimensions], fields[5], atol=1e-12)


def test_the_dataset_is_canonical() -> None:
    made = advection.build({"trajectories": 3, "frames": 2, "resolution": 16})
    assert dict(made.sizes) == {"trajectory": 3, "time": 2, "x": 16, "y": 16}
    assert made["x"].attrs == {"units": "m", "period": 1.0}
    assert {str(n): (v.attrs["role"], v.attrs["units"]) for n, v in made.data_vars.items()} == {
        "tracer": ("state", "1"), "advection_velocity_x": ("parameter", "m/s"),
        "advection_velocity_y": ("parameter", "m/s")}
    assert (np.abs(made["advection_velocity_x"]) <= 1).all()


@pytest.mark.parametrize("wrong", [{"velocity": (1, -1)}, {"dimensions": 3}, {"length": 0}, {"velocities": (0, 1)}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="advection options"):
        advection.build(wrong)
