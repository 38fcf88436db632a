"""Shallow water against exact solutions, its conservation laws and a lake at rest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from dask import compute

from sciml.data.builders import _blocks
from sciml.data.builders import shallow_water as sw
from sciml.errors import InputError


def centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def made(n: int, count: int = 1, **given: object) -> tuple[np.ndarray, np.ndarray]:
    options = sw.Options.model_validate({"resolution": n, **given})
    first, bottom = zip(*(sw.initial(options, i) for i in range(count)), strict=True)
    return np.stack(first), np.stack(bottom)


@pytest.mark.parametrize("ends", ["periodic", "wall", "open"])
def test_a_lake_at_rest_stays_at_rest_over_hills(ends: str) -> None:
    rough = np.random.default_rng(0).uniform(0, 0.9, (32, 32))
    _, smooth = made(32, hills=0.7)
    bottom = np.stack([rough, smooth[0]])
    first = np.stack([1 - bottom, 0 * bottom, 0 * bottom], axis=1)
    later = sw.advance(first, bottom, 0.5, 1, ends=ends)[:, 0]  # type: ignore[arg-type]
    np.testing.assert_allclose(later[:, 0] + bottom, 1, atol=1e-13)
    assert np.abs(later[:, 1:]).max() < 1e-12


def stoker(high: float, low: float, speed: np.ndarray) -> np.ndarray:
    """Depth and velocity ``(2, n)`` at x/t = speed behind a broken dam between still waters (Stoker 1957)."""
    below, above = low, high
    for _ in range(100):
        h = (below + above) / 2
        fan = 2 * (np.sqrt(high) - np.sqrt(h))
        shock = (h - low) * np.sqrt((h + low) / (2 * h * low))
        below, above = (h, above) if fan > shock else (below, h)
    u, c = 2 * (np.sqrt(high) - np.sqrt(h)), np.sqrt(high)
    front = h * u / (h - low)
    zones = [speed < -c, speed < u - np.sqrt(h), speed < front]
    return np.stack([np.select(zones, [high + 0 * speed, (2 * c - speed) ** 2 / 9, h + 0 * speed], low),
                     np.select(zones, [0 * speed, 2 * (c + speed) / 3, u + 0 * speed], 0.0)])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_broken_dam_approaches_stokers_solution_at_first_order(axis: int) -> None:
    errors = []
    for n in (64, 128):
        depth = np.where(centres(n) < 0.5, 1.0, 0.1)[:, None] * np.ones(4)
        shape = (n, 4) if axis == 0 else (4, n)
        first = np.stack([depth if axis == 0 else depth.T, np.zeros(shape), np.zeros(shape)])
        size = (1.0, 4 / n) if axis == 0 else (4 / n, 1.0)
        later = sw.advance(first[None], np.zeros((1, *shape)), 0.3, 1, ends="open", size=size)[0, 0]
        assert np.abs(later[2 - axis]).max() < 1e-13
        found = later[[0, 1 + axis]].mean(axis=2 - axis)
        errors.append(np.abs(found - stoker(1.0, 0.1, (centres(n) - 0.5) / 0.3)).mean(1))
    assert np.all(errors[1] < [0.004, 0.008])
    assert all(np.all(fine < 0.66 * coarse) for coarse, fine in pairwise(errors))


def test_smooth_waves_over_smooth_hills_converge_at_second_order() -> None:
    def run(n: int) -> np.ndarray:
        x, y = np.meshgrid(centres(n), centres(n), indexing="ij")
        bottom = 0.2 * np.cos(2 * np.pi * x) * np.cos(2 * np.pi * y)
        depth = 1 + 0.05 * np.sin(2 * np.pi * (x + y)) - bottom
        later = sw.advance(np.stack([depth, 0 * x, 0 * x])[None], bottom[None], 0.2, 1)[0, 0]
        later[1:] *= later[0]
        return _blocks.cell_means(later, 16)

    coarse, fine, exact = run(32), run(64), run(128)
    assert np.log2(np.abs(coarse - exact).mean() / np.abs(fine - exact).mean()) > 1.7


@pytest.mark.parametrize(("ends", "hills"), [("periodic", 0.0), ("periodic", 0.5), ("wall", 0.5)])
def test_mass_is_conserved_and_over_a_flat_bottom_momentum_too(ends: str, hills: float) -> None:
    first, bottom = made(32, 3, initial="dam_break", hills=hills)
    later = sw.advance(first, bottom, 0.2, 2, ends=ends)[:, -1]  # type: ignore[arg-type]
    assert np.abs(later[:, 0] - first[:, 0]).max() > 0.1
    np.testing.assert_allclose(later[:, 0].mean((1, 2)), first[:, 0].mean((1, 2)), rtol=1e-14)
    momentum = np.abs((later[:, :1] * later[:, 1:]).mean((2, 3))).max()
    assert momentum < 1e-15 if ends == "periodic" and not hills else momentum > 1e-4


def test_energy_does_not_grow() -> None:
    first, bottom = made(48, 2, initial="random", height=0.4, hills=0.4)
    later = sw.advance(first, bottom, 0.2, 4)
    series = np.concatenate([first[:, None], later], axis=1)
    energy = (0.5 * series[:, :, 0] * (series[:, :, 1] ** 2 + series[:, :, 2] ** 2 + series[:, :, 0])
              + series[:, :, 0] * bottom[:, None]).mean((2, 3))
    assert np.all(np.diff(energy) < 0)


def test_a_round_column_in_the_middle_falls_as_symmetric_as_the_grid() -> None:
    n = 32
    inside = np.hypot(centres(n)[:, None] - 0.5, centres(n) - 0.5) < 0.2
    first = np.stack([1.0 + inside, 0 * inside, 0 * inside])
    later = sw.advance(first[None], np.zeros((1, n, n)), 0.3, 1, ends="wall")[0, 0]
    np.testing.assert_allclose(later[0], later[0, ::-1], atol=1e-12)
    np.testing.assert_allclose(later[0], later[0, :, ::-1], atol=1e-12)
    np.testing.assert_allclose(later[0], later[0].T, atol=0.03)


def test_a_wall_is_a_plane_of_symmetry() -> None:
    first, bottom = made(16, initial="dam_break", hills=0.3)
    twice = np.concatenate([first, first[:, :, ::-1] * np.array([1, -1, 1])[:, None, None]], axis=2)
    twice = np.concatenate([twice, twice[..., ::-1] * np.array([1, 1, -1])[:, None, None]], axis=3)
    ground = np.concatenate([bottom, bottom[:, ::-1]], axis=1)
    ground = np.concatenate([ground, ground[..., ::-1]], axis=2)
    walled = sw.advance(first, bottom, 0.3, 1, ends="wall")[0, 0]
    periodic = sw.advance(twice, ground, 0.3, 1, size=(2.0, 2.0))[0, 0, :, :16, :16]
    np.testing.assert_allclose(walled, periodic, atol=1e-11)


def test_what_is_saved_are_means_of_finer_cells() -> None:
    options = sw.Options(trajectories=1, frames=2, resolution=16, solve_resolution=32, hills=0.2)
    coarse, fine = sw.solve(options), sw.solve(options.model_copy(update={"resolution": 32}))
    for name in ("depth", "bathymetry"):
        np.testing.assert_allclose(coarse[name], _blocks.cell_means(fine[name], 16), atol=1e-13)
    momentum = [made["depth"] * made["velocity_x"] for made in (coarse, fine)]
    np.testing.assert_allclose(momentum[0], _blocks.cell_means(momentum[1], 16), atol=1e-13)


def test_a_trajectory_depends_neither_on_its_neighbours_nor_on_blocks() -> None:
    given = {"trajectories": 3, "frames": 3, "resolution": 16, "spin_up": 0.1, "hills": 0.2}
    options = sw.Options.model_validate(given)
    together, apart = sw.solve(options), sw.solve(options, 2, 3)
    assert np.array_equal(apart["depth"][0], together["depth"][2])
    by_one, by_three = compute(*(sw.PLUGIN({**given, "block": b}) for b in (1, 3)))
    assert by_one.identical(by_three)


def test_the_dataset_is_canonical_and_lazy() -> None:
    dataset = sw.build({"trajectories": 2, "frames": 3, "resolution": 16, "hills": 0.3})
    assert dict(dataset.sizes) == {"trajectory": 2, "time": 3, "x": 16, "y": 16}
    assert dataset["depth"].chunks is not None
    assert dataset["bathymetry"].dims == ("trajectory", "x", "y")
    assert dataset["bathymetry"].attrs["role"] == "forcing"
    assert (dataset["velocity_x"].attrs["vector"], dataset["velocity_x"].attrs["along"]) == ("velocity", "x")
    assert [int(dataset[f"boundary_{a}_{e}"][0]) for a in "xy" for e in ("low", "high")] == [0, 0, 0, 0]
    periodic = sw.build({"initial": "random", "height": 0.4})
    assert "bathymetry" not in periodic
    assert periodic["y"].attrs["period"] == 1.0


def test_the_options_of_the_data_set_keep_water_everywhere() -> None:
    for given in ({"initial": "random", "height": 0.6, "hills": 0.5}, {"initial": "dam_break", "hills": 0.5}):
        first, bottom = made(32, 8, **given)
        assert first[:, 0].min() > 0.05
        assert sw.advance(first, bottom, 0.25, 2, ends="wall")[:, :, 0].min() > 0.02


@pytest.mark.parametrize("wrong", [{"initial": "tsunami"}, {"hills": 1.0}, {"height": 0}, {"boundary": "dry"},
                                   {"initial": "random", "hills": 0.7}, {"resolution": 32, "solve_resolution": 48}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="shallow_water options"):
        sw.build(wrong)


def test_a_lost_solution_is_reported() -> None:
    dry = np.array([-1.0, 0.0, 0.0])[:, None, None] * np.ones((8, 8))
    with pytest.raises(FloatingPointError, match="frame 1"):
        sw.advance(dry[None], np.zeros((1, 8, 8)), 0.1, 1)
