"""The compressible flow against exact solutions and its conservation laws."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from dask import compute

from sciml.data.builders import euler as eu
from sciml.errors import InputError

GAMMA = 1.4


def centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def exact_tube(left: tuple[float, ...], right: tuple[float, ...], speed: np.ndarray) -> np.ndarray:
    """Density, velocity and pressure ``(3, n)`` at x/t = speed of the Riemann problem between (ρ, u, p) left and right
    (Toro, chapter 4); the pressure in the middle by bisection."""

    def curve(p: float, rho: float, p0: float) -> float:
        c = np.sqrt(GAMMA * p0 / rho)
        if p > p0:
            return (p - p0) * np.sqrt(2 / ((GAMMA + 1) * rho) / (p + (GAMMA - 1) / (GAMMA + 1) * p0))
        return 2 * c / (GAMMA - 1) * ((p / p0) ** ((GAMMA - 1) / (2 * GAMMA)) - 1)

    (rl, ul, pl), (rr, ur, pr) = left, right
    low, high = 1e-9, 1e3
    for _ in range(200):
        p = (low + high) / 2
        low, high = (p, high) if curve(p, rl, pl) + curve(p, rr, pr) + ur - ul < 0 else (low, p)
    u = (ul + ur + curve(p, rr, pr) - curve(p, rl, pl)) / 2
    out = np.empty((3, len(speed)))
    for (rho, un, p0), sign in ((left, 1.0), (right, -1.0)):
        side = speed <= u if sign > 0 else speed > u
        s, v, star = sign * speed[side], sign * un, sign * u
        c, ratio, g = np.sqrt(GAMMA * p0 / rho), p / p0, (GAMMA - 1) / (GAMMA + 1)
        outer = np.array([[rho], [v], [p0]]) * np.ones(len(s))
        if p > p0:
            front = v - c * np.sqrt((GAMMA + 1) / (2 * GAMMA) * ratio + (GAMMA - 1) / (2 * GAMMA))
            inner = np.array([[rho * (ratio + g) / (g * ratio + 1)], [star], [p]])
            found = np.where(s < front, outer, inner)
        else:
            tail = star - c * ratio ** ((GAMMA - 1) / (2 * GAMMA))
            fan_c = 2 / (GAMMA + 1) * (c + (GAMMA - 1) / 2 * (v - s))
            fan = np.stack([rho * np.abs(fan_c / c) ** (2 / (GAMMA - 1)), fan_c + s,
                            p0 * np.abs(fan_c / c) ** (2 * GAMMA / (GAMMA - 1))])
            inner = np.array([[rho * ratio ** (1 / GAMMA)], [star], [p]])
            found = np.where(s < v - c, outer, np.where(s < tail, fan, inner))
        found[1] *= sign
        out[:, side] = found
    return out


def tube(n: int, left: tuple[float, ...], right: tuple[float, ...], t: float, axis: int) -> np.ndarray:
    """Error ``(3,)`` in L1 of a shock tube along an axis."""
    side = (centres(n) < 0.5)[:, None] * np.ones(4, bool)
    rho, u, p = (np.where(side, a, b) for a, b in zip(left, right, strict=True))
    first = np.stack([rho, u, 0 * u, p])
    if axis == 1:
        first = first.transpose(0, 2, 1)[[0, 2, 1, 3]]
    later = eu.advance(first[None], t, 1, gamma=GAMMA, ends="open", size=(1.0, 4 / n) if axis == 0 else (4 / n, 1.0))
    found = later[0, 0, [0, 1 + axis, 3]].mean(axis=2 - axis)
    return np.abs(found - exact_tube(left, right, (centres(n) - 0.5) / t)).mean(1)


@pytest.mark.parametrize("axis", [0, 1])
def test_sods_tube_approaches_the_exact_solution_at_first_order(axis: int) -> None:
    errors = [tube(n, (1.0, 0.0, 1.0), (0.125, 0.0, 0.1), 0.2, axis) for n in (64, 128)]
    assert np.all(errors[1] < [0.006, 0.011, 0.005])
    assert all(np.all(fine < 0.66 * coarse) for coarse, fine in pairwise(errors))


def test_a_strong_shock_and_a_near_vacuum_keep_density_and_pressure_positive() -> None:
    assert np.all(tube(128, (1.0, 0.0, 100.0), (1.0, 0.0, 0.01), 0.03, 0) < [0.1, 0.25, 1.5])
    assert np.all(tube(128, (1.0, -2.0, 0.4), (1.0, 2.0, 0.4), 0.12, 0) < [0.02, 0.2, 0.01])


def vortex(n: int, t: float) -> np.ndarray:
    """The isentropic vortex (Shu 1998) in a box of side 10, which the stream (1, 1) has carried for a time t."""
    x, y = np.meshgrid(10 * centres(n) - t, 10 * centres(n) - t, indexing="ij")
    x, y = (np.mod(z, 10) - 5 for z in (x, y))
    swirl = 5 / (2 * np.pi) * np.exp((1 - x**2 - y**2) / 2)
    temperature = 1 - (GAMMA - 1) / (2 * GAMMA) * swirl**2
    rho = temperature ** (1 / (GAMMA - 1))
    return np.stack([rho, 1 - swirl * y, 1 + swirl * x, rho * temperature])


def test_a_vortex_is_carried_at_second_order() -> None:
    t, errors = 1.0, []
    for n in (48, 96):
        later = eu.advance(vortex(n, 0)[None], t, 1, gamma=GAMMA, size=(10.0, 10.0))[0, 0]
        errors.append(np.abs(later - vortex(n, t)).mean((1, 2)))
    orders = np.log2(errors[0] / errors[1])
    assert np.all(orders > 1.8)
    assert np.all(errors[1] < 1e-3)


def random_flow(n: int, count: int, **given: object) -> np.ndarray:
    options = eu.Options.model_validate({"resolution": n, **given})
    return np.stack([eu.initial(options, i) for i in range(count)])


@pytest.mark.parametrize("kind", ["riemann", "kelvin_helmholtz"])
def test_mass_momentum_and_energy_are_conserved_on_periodic_axes(kind: str) -> None:
    first = random_flow(32, 3, initial=kind)
    later = eu.advance(first, 0.2, 2, gamma=GAMMA, ends="periodic")
    before, after = (eu.conserved(torch.as_tensor(w), GAMMA).mean((-2, -1)).numpy() for w in (first, later))
    assert np.abs(later[:, 1] - first).max() > 0.1
    np.testing.assert_allclose(after, np.repeat(before[:, None], 2, axis=1), atol=1e-14)


def test_between_walls_mass_and_energy_are_conserved_and_nothing_leaves() -> None:
    first = random_flow(32, 2)
    later = eu.advance(first, 0.3, 1, gamma=GAMMA, ends="wall")[:, 0]
    before, after = (eu.conserved(torch.as_tensor(w), GAMMA).mean((-2, -1)).numpy() for w in (first, later))
    np.testing.assert_allclose(after[:, [0, 3]], before[:, [0, 3]], atol=1e-14)


def test_a_wall_is_a_plane_of_symmetry() -> None:
    first = random_flow(32, 1)
    mirrored = np.concatenate([first, first[:, :, ::-1] * np.array([1, -1, 1, 1])[:, None, None]], axis=2)
    walled = eu.advance(first, 0.2, 1, gamma=GAMMA, ends="wall")[0, 0]
    doubled = np.concatenate([mirrored, mirrored[..., ::-1] * np.array([1, 1, -1, 1])[:, None, None]], axis=3)
    periodic = eu.advance(doubled, 0.2, 1, gamma=GAMMA, size=(2.0, 2.0))[0, 0, :, :32, :32]
    np.testing.assert_allclose(walled, periodic, atol=1e-11)


def test_uniform_flow_stays_as_it_is() -> None:
    state = np.array([0.7, 0.3, -0.4, 1.1])[:, None, None] * np.ones((8, 8))
    for ends in ("periodic", "open"):
        np.testing.assert_allclose(eu.advance(state[None], 0.5, 1, ends=ends)[0, 0], state, atol=1e-13)


def test_a_mirrored_flow_stays_mirrored() -> None:
    first = random_flow(32, 1)
    flip = np.array([1, -1, 1, 1])[:, None, None]
    later = eu.advance(first, 0.2, 1, ends="open")[0, 0]
    mirrored = eu.advance(first[:, :, ::-1] * flip, 0.2, 1, ends="open")[0, 0]
    np.testing.assert_allclose(mirrored, later[:, ::-1] * flip, atol=1e-11)


def test_what_is_saved_are_means_of_finer_cells() -> None:
    options = eu.Options(trajectories=1, frames=2, resolution=16, solve_resolution=32)
    coarse = np.stack(list(eu.solve(options).values()), axis=2)
    fine = np.stack(list(eu.solve(options.model_copy(update={"resolution": 32})).values()), axis=2)
    of = [eu.conserved(torch.as_tensor(w), GAMMA).numpy() for w in (coarse, fine)]
    np.testing.assert_allclose(of[0], of[1].reshape(1, 2, 4, 16, 2, 16, 2).mean((4, 6)), atol=1e-13)
    means = np.stack([eu.initial(options.model_copy(update={"resolution": n, "solve_resolution": n}), 5).mean((1, 2))
                      for n in (32, 64)])
    np.testing.assert_allclose(means[0, 0], means[1, 0], atol=1e-14)


def test_a_trajectory_depends_neither_on_its_neighbours_nor_on_blocks() -> None:
    given = {"trajectories": 3, "frames": 3, "resolution": 16, "spin_up": 0.1}
    options = eu.Options.model_validate(given)
    together, apart = eu.solve(options), eu.solve(options, 2, 3)
    assert np.array_equal(apart["pressure"][0], together["pressure"][2])
    by_one, by_three = compute(*(eu.PLUGIN({**given, "block": b}) for b in (1, 3)))
    assert by_one.identical(by_three)
    batch = eu.advance(random_flow(16, 3), 0.1, 1, ends="open")[:, 0]
    np.testing.assert_allclose(batch[:, 3], together["pressure"][:, 0], atol=1e-12)


def test_the_options_of_the_data_set_keep_density_and_pressure_positive() -> None:
    made = eu.advance(random_flow(24, 16), 0.2, 2, ends="open")
    assert made[:, :, [0, 3]].min() > 0.005


def test_the_dataset_is_canonical_and_lazy() -> None:
    made = eu.build({"trajectories": 2, "frames": 3, "resolution": 16})
    assert dict(made.sizes) == {"trajectory": 2, "time": 3, "x": 16, "y": 16}
    assert all(made[name].chunks is not None and made[name].attrs["role"] == "state" for name in eu.STATES)
    assert (made["velocity_y"].attrs["vector"], made["velocity_y"].attrs["along"]) == ("velocity", "y")
    assert "vector" not in made["density"].attrs
    assert [int(made[f"boundary_{a}_{e}"][0]) for a in "xy" for e in ("low", "high")] == [1, 1, 1, 1]
    periodic = eu.build({"initial": "kelvin_helmholtz"})
    assert periodic["x"].attrs["period"] == 1.0
    assert not [name for name in periodic if str(name).startswith("boundary")]
    assert int(eu.build({"boundary": "wall"})["boundary_y_high"][0]) == 0


@pytest.mark.parametrize("wrong", [{"initial": "sod"}, {"boundary": "dirichlet"}, {"heat_capacity_ratio": 1.0},
                                   {"resolution": 32, "solve_resolution": 48}, {"low": 0}, {"frames": 0}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="euler options"):
        eu.build(wrong)


def test_a_lost_solution_is_reported() -> None:
    vacuum = np.array([1.0, 0.0, 0.0, -1.0])[:, None, None] * np.ones((8, 8))
    with pytest.raises(FloatingPointError, match="frame 1"):
        eu.advance(vacuum[None], 0.1, 1)
