"""Fields at scattered points are those of the grid, and points stand for the box."""

from __future__ import annotations

import numpy as np
import pytest

from sciml.data.builders import scattered
from sciml.data.builders.advection import build as advect
from sciml.errors import InputError

GRID = {"trajectories": 2, "frames": 3, "resolution": 64, "length": 0.1}


def test_a_grid_point_has_the_value_of_the_grid() -> None:
    rng = np.random.default_rng(0)
    field = rng.normal(size=(3, 6, 8))
    lattice = np.stack(np.meshgrid(np.arange(6) / 6 * 2.0, np.arange(8) / 8 * 5.0, indexing="ij"), -1).reshape(-1, 2)
    found = scattered.interpolate(field, lattice, np.array([2.0, 5.0]))
    np.testing.assert_allclose(found, field.reshape(3, -1), atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2])
def test_advected_points_follow_the_flow(dims: int) -> None:
    """The tracer at point p and time t is the first frame's at p − velocity · t."""
    options = {"builder": "advection", "options": {**GRID, "dimensions": dims}, "points": 40}
    data, grid = scattered.build(options).compute(), advect(options["options"]).compute()
    names = "xy"[:dims]
    places = np.stack([data[f"point_{name}"].values for name in names], 1)
    for trajectory in range(2):
        velocity = np.array([float(grid[f"advection_velocity_{name}"][trajectory]) for name in names])
        moved = places - velocity * float(data["time"][2])
        first = grid["tracer"].values[trajectory, 0]
        expected = scattered.interpolate(first, moved, np.ones(dims))
        np.testing.assert_allclose(data["tracer"].values[trajectory, 2], expected, atol=2e-3)


def test_points_are_quadrature_points() -> None:
    """Their measures sum to the box, and integrate a smooth field better than equal ones where points are crowded."""
    lengths = np.array([1.0, 2.0])
    places = scattered.scatter(scattered.Options(builder="advection", points=900, crowding=0.6), lengths)
    measure = scattered.cell_measure(places, lengths)
    assert measure.min() > 0
    np.testing.assert_allclose(measure.sum(), 2.0)
    values = 1 + np.sin(2 * np.pi * places[:, 0]) * np.cos(np.pi * places[:, 1])
    assert abs((measure * values).sum() - 2.0) < 0.03
    assert abs(2.0 * values.mean() - 2.0) > 0.03


def test_fields_with_walls_are_refused() -> None:
    with pytest.raises(InputError, match="not periodic"):
        scattered.build({"builder": "burgers", "options": {"boundary": "dirichlet", "trajectories": 1, "frames": 2,
                                                           "resolution": 16, "solve_resolution": 64}})
