"""The solver's own rollout in `benchmarks/fields_channel.py`. No accuracy is asserted."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.cli.bench import load_script
from sciml.data.builders.channel import Options, collocated, staggered
from sciml.data.builders.channel import solver as flows
from sciml.domains.fields.statistics import Layout, Statistics, merge, one
from sciml.tokens import cell_widths

MADE = Options(trajectories=1, resolution=8, wall_cells=8, friction_reynolds=50.0, frame_dt=0.01)


@pytest.fixture(name="script")
def _script() -> Any:
    return load_script(Path(__file__).parents[1] / "benchmarks/fields_channel.py")


def layout() -> Layout:
    grid, ring = MADE.flow_grid, np.full(8, 1 / 8)
    widths = cell_widths(torch.tensor(np.asarray(grid.centres))).numpy()
    along = [np.arange(8) * length / 8 for length in MADE.lengths]
    places = along[0], np.asarray(grid.centres), along[1]
    return Layout(("velocity_x", "velocity_y", "velocity_z"), ("x", "y", "z"), places,
                  (ring, widths / widths.sum(), ring), (MADE.lengths[0], None, MADE.lengths[1]),
                  {"velocity": {axis: f"velocity_{axis}" for axis in "xyz"}}, 1)


def first() -> np.ndarray:
    """A state that the solver's own grid holds exactly."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8, 8, 8)))
    grid = MADE.flow_grid
    return collocated(grid, staggered(grid, noise, 1 / 50)).numpy()


def same(a: Statistics, b: Statistics) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-12)
    np.testing.assert_allclose(a.product, b.product, atol=1e-12)
    assert a.spectra.keys() == b.spectra.keys()
    for name, own in a.spectra.items():
        np.testing.assert_allclose(own.power, b.spectra[name].power, atol=1e-12)
        np.testing.assert_array_equal(own.k, b.spectra[name].k)


def test_its_statistics_are_those_of_its_states(script: Any) -> None:
    grid, states = MADE.flow_grid, []
    flow = staggered(grid, torch.from_numpy(first()), 1 / 50)
    for _ in range(3):
        flow = flows.advance(grid, flow, MADE.frame_dt, 1 / 50)
        states.append(one(layout(), collocated(grid, flow).numpy()))
    same(script.solver_rollout(MADE, layout(), first(), 3), reduce(merge, states))


def test_they_are_kept_as_they_were(script: Any, tmp_path: Path) -> None:
    found = script.solver_rollout(MADE, layout(), first(), 2)
    script.save(found, tmp_path / "deep" / "0.npz")
    same(script.load(layout(), tmp_path / "deep" / "0.npz"), found)
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["0.npz"]
