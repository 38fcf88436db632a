"""Darcy, Poisson and Helmholtz against manufactured solutions, balances and the free field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.special import hankel1

from sciml.data.builders import elliptic
from sciml.errors import InputError


def points(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(n) + 0.5) / n
    return np.meshgrid(x, x, indexing="ij")


def assert_order_two(error: Callable[[int], float], grids: tuple[int, ...] = (16, 32, 64), least: float = 1.85) -> None:
    errors = np.array([error(n) for n in grids])
    orders = np.log2(errors[:-1] / errors[1:])
    assert (orders > least).all(), orders
    assert (orders < 2.3).all(), orders


def test_darcy_in_a_smooth_medium_converges_at_second_order() -> None:
    """``h = sin πx sin 2πy`` in ``T = 2 + sin(πx + 2y)``."""
    def error(n: int) -> float:
        x, y = points(n)
        s, c, phase = np.pi * x, 2 * np.pi * y, np.pi * x + 2 * y
        exact, medium = np.sin(s) * np.sin(c), 2 + np.sin(phase)
        recharge = 5 * np.pi**2 * medium * exact - np.cos(phase) * (
            np.pi**2 * np.cos(s) * np.sin(c) + 4 * np.pi * np.sin(s) * np.cos(c))
        return float(np.abs(elliptic.darcy(medium, recharge) - exact).max())

    assert_order_two(error)


def test_darcy_across_a_jump_of_the_medium_converges_at_second_order() -> None:
    """``h = g(x) sin πy`` with a flux ``T g' = cos πx + b`` that is continuous where T jumps from 12 to 3."""
    low, high = elliptic.PHASES[1], elliptic.PHASES[0]
    b = -2 / np.pi * (1 / low - 1 / high) / (1 / low + 1 / high)

    def error(n: int) -> float:
        x, y = points(n)
        medium = np.where(x < 0.5, low, high)
        g = np.where(x < 0.5, np.sin(np.pi * x) / np.pi + b * x, np.sin(np.pi * x) / np.pi + b * (x - 1)) / medium
        recharge = (np.pi * np.sin(np.pi * x) + np.pi**2 * medium * g) * np.sin(np.pi * y)
        return float(np.abs(elliptic.darcy(medium, recharge) - g * np.sin(np.pi * y)).max())

    assert_order_two(error)


def test_what_enters_leaves_through_the_ends_and_the_head_is_inverse_to_the_medium() -> None:
    options = elliptic.Options(resolution=32, solve_resolution=32)
    medium = elliptic.forcings(options, 3)["transmissivity"]
    head = elliptic.darcy(medium, 0.7)
    out = 2 * medium * head
    assert out[0].sum() + out[-1].sum() + out[:, 0].sum() + out[:, -1].sum() == pytest.approx(0.7, rel=1e-12)
    np.testing.assert_allclose(elliptic.darcy(4 * medium, 0.7), head / 4, rtol=1e-10)
    np.testing.assert_allclose(elliptic.darcy(medium.T, 0.7), head.T, rtol=1e-10)
    assert head.min() > 0


def test_poisson_is_exact_for_sines_and_agrees_with_darcy_in_a_uniform_medium() -> None:
    x, y = points(32)
    wave = np.sin(3 * np.pi * x) * np.sin(5 * np.pi * y)
    np.testing.assert_allclose(elliptic.poisson(34 * np.pi**2 * wave), wave, atol=1e-14)
    wave = np.sin(2 * np.pi * (x - 0.1)) * np.cos(6 * np.pi * y) + np.sin(4 * np.pi * y)
    charge = np.stack([40 * np.pi**2 * np.sin(2 * np.pi * (x - 0.1)) * np.cos(6 * np.pi * y)
                       + 16 * np.pi**2 * np.sin(4 * np.pi * y), np.ones_like(x)])
    np.testing.assert_allclose(elliptic.poisson(charge, boundary="periodic"), [wave, 0 * wave], atol=1e-13)

    def gap(n: int) -> float:
        x, y = points(n)
        charge = np.exp(x) * np.cos(3 * y)
        return float(np.abs(elliptic.poisson(charge) - elliptic.darcy(np.ones_like(x), charge)).max())

    assert_order_two(gap, least=1.7)


def test_helmholtz_between_open_ends_converges_at_second_order() -> None:
    """``p = X(x) X(y)``, ``X = 1 + ax + bx²`` with ``∂X/∂n = ikX`` at both ends."""
    k = 5.0
    a = -1j * k
    b = (2j * k + k**2) / (2 - 1j * k)

    def error(n: int) -> float:
        x, y = points(n)
        one, other = 1 + a * x + b * x**2, 1 + a * y + b * y**2
        source = -2 * b * (one + other) - k**2 * one * other
        return float(np.abs(elliptic.helmholtz(np.full((n, n), k), source) - one * other).max())

    assert_order_two(error)


def test_helmholtz_in_a_lossy_medium_at_rest_at_its_ends_converges_at_second_order() -> None:
    def error(n: int) -> float:
        x, y = points(n)
        exact, wave = np.sin(np.pi * x) * np.sin(2 * np.pi * y), 4 + x * y
        source = (5 * np.pi**2 - wave**2 * (1 + 0.2j)) * exact
        return float(np.abs(elliptic.helmholtz(wave, source, boundary="dirichlet", loss=0.2) - exact).max())

    assert_order_two(error)


def test_sound_of_a_small_source_in_the_open_is_the_free_field() -> None:
    """``p = i/4 H₀⁽¹⁾(kr)`` times the source's transform ``2π e^{−k²w²/2}``; open ends reflect a little of what is
    oblique."""
    n, k, width = 128, 25.0, 0.03
    x, y = points(n)
    radius = np.hypot(x - 0.5, y - 0.5)
    made = elliptic.helmholtz(np.full((n, n), k), np.exp(-radius**2 / (2 * width**2)) / width**2)
    exact = 0.25j * hankel1(0, k * radius) * 2 * np.pi * np.exp(-((k * width) ** 2) / 2)
    far = (radius > 0.15) & (radius < 0.5)
    assert np.linalg.norm((made - exact)[far]) < 0.12 * np.linalg.norm(exact[far])


@pytest.mark.parametrize("given", [{}, {"coefficient": "lognormal", "contrast": 2.0}, {"equation": "poisson"},
                                   {"equation": "poisson", "boundary": "periodic"},
                                   {"equation": "helmholtz", "contrast": 0.5},
                                   {"equation": "helmholtz", "boundary": "dirichlet", "loss": 0.1, "wavenumber": 10.0}])
def test_what_is_saved_is_the_solution_refined(given: dict[str, Any]) -> None:
    made = [elliptic.solve(elliptic.Options(trajectories=2, resolution=16, solve_resolution=n, **given), 0, 2)
            for n in (64, 128)]
    for name in made[0]:
        assert made[0][name].shape == (2, 16, 16)
        gap = np.linalg.norm(made[0][name] - made[1][name]) / np.linalg.norm(made[1][name])
        assert gap < 0.02


def test_media_have_the_declared_distribution() -> None:
    fields = np.stack([elliptic.cosine_field(np.random.default_rng(i), 32) for i in range(300)])
    modes = dctn(fields, type=2, norm="ortho", axes=(1, 2)) / 32
    k = np.pi * np.arange(12)
    declared = 9 / (np.add.outer(k**2, k**2) + 9) ** 2
    ratio = ((modes**2).mean(0)[:12, :12] / declared).ravel()[1:]
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert np.abs(modes[:, 0, 0]).max() < 1e-14
    options = elliptic.Options(resolution=32, solve_resolution=32)
    binary = np.stack([elliptic.forcings(options, i)["transmissivity"] for i in range(100)])
    assert set(np.unique(binary)) == {3.0, 12.0}
    assert (binary == 12).mean() == pytest.approx(0.5, abs=0.03)
    fine = elliptic.cosine_field(np.random.default_rng(7), 192).reshape(64, 3, 64, 3)[:, 1, :, 1]
    np.testing.assert_allclose(fine, elliptic.cosine_field(np.random.default_rng(7), 64), atol=1e-12)


@pytest.mark.parametrize(("given", "states", "forcings", "codes"), [
    ({}, {"head"}, {"transmissivity"}, 3), ({"equation": "poisson"}, {"potential"}, {"charge"}, 3),
    ({"equation": "helmholtz"}, {"pressure_real", "pressure_imag"}, {"wavenumber", "sound_source"}, 1)])
def test_the_dataset_is_canonical_and_has_no_time(given: dict[str, Any], states: set[str], forcings: set[str],
                                                  codes: int) -> None:
    made = elliptic.build({"trajectories": 2, "resolution": 8, "solve_resolution": 16, **given})
    assert dict(made.sizes) == {"trajectory": 2, "x": 8, "y": 8}
    roles = {str(n): v.attrs["role"] for n, v in made.data_vars.items()}
    assert {n for n, role in roles.items() if role == "state"} == states
    assert {n for n, role in roles.items() if role == "forcing"} == forcings
    assert all(made[n].dims == ("trajectory", "x", "y") for n in states | forcings)
    assert {n: made[n].values.tolist() for n, role in roles.items() if role == "boundary"} == {
        f"boundary_{axis}_{end}": [codes, codes] for axis in "xy" for end in ("low", "high")}
    assert "boundary_x_low" not in elliptic.build({"trajectories": 1, "equation": "poisson", "boundary": "periodic"})


@pytest.mark.parametrize("wrong", [{"equation": "laplace"}, {"boundary": "open"}, {"loss": -0.1},
                                   {"equation": "helmholtz", "boundary": "dirichlet"}, {"wavenumber": 0},
                                   {"resolution": 24, "solve_resolution": 64}, {"recharge": ()}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="elliptic options"):
        elliptic.build(wrong)
