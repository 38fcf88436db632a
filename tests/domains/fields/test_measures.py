"""Scores of fields: formulas against closed forms, and their behaviour on the truth itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.fields import measures
from sciml.domains.fields.measures import Flow
from sciml.metrics import relative_l2, rmse
from tests.domains.fields.stores import velocity

RNG = np.random.default_rng


@given(rank=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_bands_add_up_to_the_whole_and_the_truth_is_perfect(rank: int, seed: int) -> None:
    p, t = RNG(seed).normal(size=(2, 3, *(40, 9, 6)[:rank]))
    bands = measures.band_rmse(p, t, rank)
    np.testing.assert_allclose(sum(x**2 for x in bands.values()), rmse(p, t) ** 2)
    perfect = [measures.vrmse(t, t, rank), measures.mean_error(t, t, rank), *measures.band_rmse(t, t, rank).values()]
    for score in perfect:
        assert (score == 0).all()
    moved = measures.vrmse(5 * p + 2, 5 * t + 2, rank)
    np.testing.assert_allclose(moved, measures.vrmse(p, t, rank))


def test_a_wave_lies_in_its_band() -> None:
    x = np.arange(64) / 64
    for k, band in ((0, "low"), (3, "low"), (4, "mid"), (11, "mid"), (12, "high"), (31, "high")):
        error = (np.cos(2 * np.pi * k * x) * (np.sqrt(2) if k else 1))[None]
        found = measures.band_rmse(error, np.zeros_like(error), 1)
        assert {name: round(float(value[0]), 9) for name, value in found.items()} == {
            name: float(name == band) for name in measures.BANDS}


def test_vrmse_is_one_at_the_mean_and_relative_l2_without_one() -> None:
    t = RNG(0).normal(size=(4, 50)) + 3
    np.testing.assert_allclose(measures.vrmse(np.repeat(t.mean(1, keepdims=True), 50, 1), t, 1), 1)
    centred, p = t - t.mean(1, keepdims=True), RNG(1).normal(size=(4, 50))
    np.testing.assert_allclose(measures.vrmse(p, centred, 1), relative_l2(p, centred))
    gap = t.copy()
    gap[:, 7] = np.nan
    kept = np.delete(t, 7, 1)
    np.testing.assert_allclose(measures.vrmse(p, gap, 1), measures.vrmse(np.delete(p, 7, 1), kept, 1))


def test_boundaries_are_the_cells_at_ends() -> None:
    t = np.zeros((1, 5, 6))
    p = np.zeros_like(t)
    p[:, 2, 3] = 9.0
    assert measures.boundary_rmse(p, t, [True, True]) == 0
    p[:, 0, 3] = 2.0
    assert measures.boundary_rmse(p, t, [True, True])[0] == pytest.approx(2 / np.sqrt(2 * 5 + 2 * 6 - 4))
    assert measures.boundary_rmse(p, t, [True, False])[0] == pytest.approx(2 / np.sqrt(12))
    p[:] = np.nan
    assert np.isnan(measures.boundary_rmse(p, t, [True, True])).all()


def test_taylor_and_green() -> None:
    """(sin x cos y, −cos x sin y): energy ¼, enstrophy ½, all in the shell |k| = √2."""
    n = 16
    x, y = np.meshgrid(*[2 * np.pi * np.arange(n) / n] * 2, indexing="ij")
    vortex = np.stack([np.sin(x) * np.cos(y), -np.cos(x) * np.sin(y)], -1)[None]
    flow = Flow(vortex, [2 * np.pi] * 2)
    assert flow.energy()[0] == pytest.approx(0.25)
    assert flow.enstrophy()[0] == pytest.approx(0.5)
    assert flow.divergence()[0] < 1e-14
    np.testing.assert_allclose(flow.energy_spectrum()[0][:3], [0, 0.25, 0], atol=1e-14)
    strained = Flow(np.stack([np.sin(x), 0 * x], -1)[None], [2 * np.pi] * 2)
    assert strained.divergence()[0] == pytest.approx(1)
    assert strained.enstrophy()[0] == pytest.approx(0)


@pytest.mark.parametrize("shape", [(24,), (16, 12), (12, 14, 16)])
def test_spectra_add_up_and_scores_of_the_truth_are_perfect(shape: tuple[int, ...]) -> None:
    field = np.moveaxis(velocity(shape, 3), 1, -1) if len(shape) > 1 else np.sin(
        2 * np.pi * np.arange(24) / 24)[None, :, None]
    periods = [1.0] * len(shape)
    flow = Flow(field, periods)
    np.testing.assert_allclose(flow.energy_spectrum().sum(-1), flow.energy())
    scores = measures.flow_scores(field, field, periods)
    assert all((scores[name] == 0).all() for name in ("energy_error", "enstrophy_error") if name in scores)
    np.testing.assert_allclose(scores["energy_spectrum_ratio"], 1)
    half = measures.flow_scores(field / 2, field, periods)
    np.testing.assert_allclose(half["energy_error"], 0.75)
    np.testing.assert_allclose(half["energy_spectrum_ratio"], 4, rtol=1e-6)


def test_what_is_lost_is_not_forgiven() -> None:
    t = np.moveaxis(velocity((32, 32), 1), 1, -1)
    p = np.full_like(t, np.nan)
    scores = {**measures.flow_scores(p, t, [1.0, 1.0]), **measures.band_rmse(p[..., 0], t[..., 0], 2),
              "vrmse": measures.vrmse(p[..., 0], t[..., 0], 2), "mean": measures.mean_error(p[..., 0], t[..., 0], 2)}
    assert all(np.isnan(score).all() for score in scores.values()), scores
