"""Ridge and cycle: closed forms against brute force, published figures, and that nothing of the test split is read."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from sciml.data.build import build
from sciml.data.source import read_source
from sciml.data.store import Store
from sciml.domains.series import ridges
from sciml.domains.series.baseline import Ridge, centred, moments, solve
from sciml.domains.series.calendar import DAY_NS
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.cycle import Cycle
from sciml.domains.series.known import Known, learn
from sciml.domains.series.layout import Layout
from sciml.domains.series.ridges import Ridges
from sciml.recipe import validate

ROOT = Path(__file__).resolve().parents[2]
ILI = {"datasets": {"ili": {"look_back": 36, "horizons": [24, 36, 48, 60]}}}


def config(**changes: object) -> SeriesConfig:
    return validate(SeriesConfig, changes, where="test")


@pytest.fixture(scope="module")
def ili(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(read_source(ROOT / "datasets/ili/source.yaml"), tmp_path_factory.mktemp("ili") / "ili.zarr")


@pytest.fixture(scope="module")
def etth1(tmp_path_factory: pytest.TempPathFactory) -> Store:
    mirror = os.environ.get("SCIML_MIRROR")
    if mirror is None or not (Path(mirror) / "etth1/ETTh1.csv").exists():
        pytest.skip("ETTh1 is CC BY-ND and not shipped; set SCIML_MIRROR to a folder with etth1/ETTh1.csv")
    return build(read_source(ROOT / "datasets/etth1/source.yaml"), tmp_path_factory.mktemp("etth1") / "etth1.zarr")


def windows(values: np.ndarray, look_back: int, horizon: int) -> np.ndarray:
    """(windows · V, L + H)"""
    return sliding_window_view(values, look_back + horizon, axis=0).reshape(-1, look_back + horizon)


def fit(store: Store, config: SeriesConfig) -> Ridges:
    layout = Layout.of(store)
    return ridges.fit(layout, learn(layout), config)


def scores_on_test(store: Store, known: Known, ridge: Ridge, cycle: Cycle | None, look_back: int, horizon: int,
                   ) -> tuple[int, float, float]:
    """Windows of the test split, and the scaled MSE and MAE of a ridge on all of them."""
    block = store.meta.splits.test[0]
    first = block.start - look_back
    z = (store.read("value", 0, first, block.stop) - known.mean) / known.std
    ticks = known.clock.ticks(store.coord("time")[first:block.stop], where="test")
    y = z if cycle is None else cycle.remove(z, ticks)
    cut = torch.tensor(sliding_window_view(y, look_back + horizon, axis=0).astype(np.float32))
    history, truth = cut[..., :look_back], cut[..., look_back:]
    error = ridge.forecast(history, torch.ones_like(history, dtype=torch.bool), horizon) - truth
    return len(cut), float(error.square().double().mean()), float(error.abs().double().mean())


def test_ridge_reproduces_the_figures_of_ili(ili: Store) -> None:
    for horizon, published in zip((24, 36, 48, 60), (2.58, 2.40, 2.36, 2.41)):
        known = fit(ili, config(look_back=36, horizons=[horizon]))
        _, mse, _ = scores_on_test(ili, learn(Layout.of(ili)), known.plain, None, 36, horizon)
        assert mse == pytest.approx(published, abs=0.006)


def test_one_validation_block_does_not_choose_a_cycle(ili: Store) -> None:
    """On validation the year lowers the error of ILI by a quarter, on test it raises it: 97 weeks can't tell."""
    known = fit(ili, config(**ILI))
    assert known.cycle is None
    assert known.ridge.provenance["independent_blocks"] == 1
    assert known.ridge.strengths == known.plain.strengths


def test_ridge_reproduces_the_figures_of_etth1_and_the_day_lowers_them(etth1: Store) -> None:
    known = fit(etth1, config())
    assert known.cycle is not None
    assert known.cycle.name == "day"
    published = {96: (2785, 0.383, 0.392), 192: (2689, 0.434, 0.421), 336: (2545, 0.475, 0.441),
                 720: (2161, 0.462, 0.456)}
    for horizon, (count, mse, mae) in published.items():
        found, plain_mse, plain_mae = scores_on_test(etth1, learn(Layout.of(etth1)), known.plain, None, 96, horizon)
        assert found == count
        assert plain_mse == pytest.approx(mse, abs=0.002)
        assert plain_mae == pytest.approx(mae, abs=0.002)
        assert scores_on_test(etth1, learn(Layout.of(etth1)), known.ridge, known.cycle, 96, horizon)[1] < mse - 0.01


class Guarded:
    """A store that fails if anything of its test split is read."""

    def __init__(self, store: Store) -> None:
        self.store, self.meta, self.url = store, store.meta, store.url
        self.members, self.coord = store.members, store.coord

    def read(self, variable: str, group: int, start: int | None = None, stop: int | None = None) -> np.ndarray:
        assert start is not None
        assert stop is not None
        assert stop <= self.meta.splits.test[0].start, f"read up to {stop}, the test split"
        return self.store.read(variable, group, start, stop)


def test_fit_reads_nothing_of_the_test_split(ili: Store) -> None:
    guarded = fit(Guarded(ili), config(**ILI))  # type: ignore[arg-type]
    open_ = fit(ili, config(**ILI))
    for ours, theirs in zip(guarded.state()[1].values(), open_.state()[1].values()):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(AssertionError, match="the test split"):
        Guarded(ili).read("value", 0, 0, 966)


def random_walk(length: int, variates: int, seed: int = 0) -> np.ndarray:
    walk = np.random.default_rng(seed).standard_normal((length, variates)).cumsum(0)
    return np.asarray((walk - walk.mean(0)) / walk.std(0))


def test_moments_are_those_of_all_windows() -> None:
    pieces = [random_walk(60, 2), random_walk(30, 2, seed=1)]
    found = moments(pieces, 8, (3, 10))
    for r, (low, high) in enumerate(((0, 3), (3, 10))):
        w = np.concatenate([windows(p, 8, high) for p in pieces])
        assert found.rows[r] == len(w)
        past, future = w[:, :8], w[:, 8 + low:]
        np.testing.assert_allclose(found.gram[r], past.T @ past / len(w), atol=1e-12)
        np.testing.assert_allclose(found.cross[:, low:high], past.T @ future / len(w), atol=1e-12)
        np.testing.assert_allclose(found.power[low:high], (future**2).mean(0), atol=1e-12)


def test_moments_of_missing_cells_average_over_known_pairs() -> None:
    piece = random_walk(80, 2)
    piece[np.random.default_rng(2).random(piece.shape) < 0.2] = np.nan
    found = moments([piece], 5, (4,))
    w = windows(piece, 5, 4)
    pair = w[:, 1] * w[:, 5 + 2]
    assert found.cross[1, 2] == pytest.approx(pair[np.isfinite(pair)].mean(), abs=1e-12)
    assert np.linalg.eigvalsh(found.gram[0]).min() > -1e-12


@pytest.mark.parametrize(("look_back", "horizon", "missing"),
                         [(8, 10, ()), (8, 2, (7,)), (5, 7, (0, 3)), (8, 10, range(1, 8))])
def test_any_sub_block_is_the_ridge_fitted_to_it(look_back: int, horizon: int, missing: Sequence[int]) -> None:
    piece = random_walk(200, 3)
    ridge = Ridge.fit(moments([piece], 8, (10,)), moments([piece], 8, (10,)), [1e-3])
    observed = np.ones(look_back, bool)
    observed[list(missing)] = False
    weights, scale = ridge.solved(observed, horizon)
    w = windows(piece, 8, 10)
    x = w[:, 8 - look_back:8][:, observed]
    mean = x.mean(1, keepdims=True)
    y = w[:, 8:8 + horizon] - mean
    x = x - mean
    gram = x.T @ x / len(x)
    strength = 1e-3 * np.trace(gram) / len(gram)
    if strength > 0:
        expected = np.linalg.solve(gram + strength * np.eye(len(gram)), x.T @ y / len(x))
        np.testing.assert_allclose(weights[observed], expected, atol=2e-5)
    assert not weights[~observed].any()
    np.testing.assert_allclose(scale, np.sqrt(((y - x @ weights[observed].numpy()) ** 2).mean(0)), rtol=1e-3)


def test_what_is_missing_does_not_enter_and_is_not_zero() -> None:
    piece = random_walk(200, 3)
    ridge = Ridge.fit(moments([piece], 8, (10,)), moments([piece], 8, (10,)), [1e-3])
    history = torch.tensor(piece[:8].T[None].astype(np.float32))
    observed = torch.ones_like(history, dtype=torch.bool)
    observed[0, 1, 2:4] = False
    other = torch.where(observed, history, 99.0)
    torch.testing.assert_close(ridge.forecast(history, observed, 10), ridge.forecast(other, observed, 10))
    complete = ridge.forecast(history, torch.ones_like(observed), 10)
    torch.testing.assert_close(ridge.forecast(history, observed, 10)[:, [0, 2]], complete[:, [0, 2]])
    assert not torch.allclose(ridge.forecast(history, observed, 10)[:, 1], complete[:, 1])
    assert torch.equal(ridge.forecast(history, torch.zeros_like(observed), 10), torch.zeros_like(complete))


def test_forecast_moves_with_level_and_scale() -> None:
    piece = random_walk(200, 3)
    ridge = Ridge.fit(moments([piece], 8, (10,)), moments([piece], 8, (10,)), [1e-3])
    history = torch.tensor(piece[:8].T[None])
    observed = torch.ones_like(history, dtype=torch.bool)
    scaled = 3 * ridge.forecast(history, observed, 10) + 5
    torch.testing.assert_close(ridge.forecast(3 * history + 5, observed, 10), scaled)


def test_strength_is_the_best_on_validation() -> None:
    rng = np.random.default_rng(0)
    train, validation = (moments([rng.standard_normal((n, 1))], 6, (2,)) for n in (30, 2000))
    ridge = Ridge.fit(train, validation, [1e-6, 1.0, 1e3])
    assert ridge.strengths == (1e3,)  # noise: the more shrinkage the better
    empty = moments([rng.standard_normal((4, 1))], 6, (2,))
    unselected = Ridge.fit(train, empty, [1e-6, 1.0, 1e3])
    assert unselected.strengths == (1.0,)
    assert unselected.provenance["validation_mse"] == [None]


def test_a_constant_series_is_forecast_as_constant() -> None:
    assert not solve(*centred(moments([np.zeros((50, 1))], 4, (2,)), 0, np.arange(4))[:2], 1e-3).any()


def test_ridge_survives_its_state() -> None:
    piece = random_walk(100, 2)
    ridge = Ridge.fit(moments([piece], 8, (3, 10)), moments([piece], 8, (3, 10)), [1e-3, 1e-1])
    stored, arrays = ridge.state()
    again = Ridge.restore(json.loads(json.dumps(stored)), arrays)
    assert again.strengths == ridge.strengths
    torch.testing.assert_close(again.solved(np.ones(8, bool), 10), ridge.solved(np.ones(8, bool), 10), rtol=0, atol=0)


def test_cycle_is_recovered_under_a_trend_with_gaps() -> None:
    hours = np.arange(24 * 40)
    course = np.sin(2 * np.pi * hours / 24) + 0.3 * np.cos(4 * np.pi * hours / 24)
    values = (course + 0.01 * hours)[:, None]
    values[100:110] = np.nan
    ticks = hours * (DAY_NS // 24)
    cycle = Cycle.fit("day", [values], [ticks], DAY_NS // 24)
    np.testing.assert_allclose(cycle.table[:, 0], course[:24], atol=0.02)
    rest = cycle.remove(values, ticks)
    np.testing.assert_allclose(np.diff(rest[:100, 0]), 0.01, atol=0.02)
    assert cycle.at(ticks[None, 5:29], np.array([0])).shape == (1, 1, 24)
