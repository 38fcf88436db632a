"""Cells filled in, anomalies found, classes told apart: each beside what the closed form expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.domains.series.baseline import Ridge, moments
from sciml.domains.series.classifier import Classifier, features_of
from sciml.domains.series.tasks.anomaly import SCORE
from sciml.domains.series.tasks.classify import PROBABILITY, Augmentation, changed
from sciml.domains.series.tasks.impute import HIDDEN
from sciml.domains.series.windows import hidden
from sciml.errors import InputError
from sciml.predictor import predictions
from sciml.tokens import Outputs, TokenBatch
from tests.domains.series.stores import gestures_store
from tests.test_conformance import series_store

RNG = np.random.default_rng


def fitted(store: Store, task: Any, **config: Any) -> Series:
    return Series.create({"look_back": 48, "horizons": [6, 12], "patch": 6, "task": task, **config}).fit(store)


def plain(batch: TokenBatch) -> dict[str, torch.Tensor]:
    """The baseline's predictions."""
    return predictions(batch, Outputs({name: torch.zeros_like(t.value) for name, t in batch.targets.items()}))


def wave(steps: int = 900, seed: int = 0) -> np.ndarray:
    x = np.sin(np.arange(steps) / 5)[:, None] + 0.3 * RNG(seed).standard_normal((steps, 2)).cumsum(0) / 10
    return np.asarray((x - x.mean(0)) / x.std(0))


@pytest.mark.parametrize("horizon", [0, 4, 9])
def test_completed_is_the_conditional_mean_of_every_pattern(horizon: int) -> None:
    """Against the formula of the module, solved pattern by pattern."""
    found = moments([wave()], 16, (4, 9))
    ridge = Ridge.fit(found, found, [1e-3, 1e-2])
    seen = torch.from_numpy(RNG(1).random((3, 2, 16)) < 0.7)
    history = torch.from_numpy(np.stack([wave(16, i).T for i in range(3)])).float()
    made = ridge.completed(history, seen, horizon)
    assert made.shape == (3, 2, 16 + horizon)
    for b in range(3):
        for v in range(2):
            o = seen[b, v].numpy()
            z = history[b, v].double().numpy()[o]
            n = len(z)
            p = np.eye(n) - 1 / n
            for r, steps in enumerate((slice(0, 4), slice(4, 9))):
                gram, cross = found.gram[r], found.cross[:, steps]
                inner = p @ gram[np.ix_(o, o)] @ p
                strength = ridge.strengths[r] * np.trace(inner) / n
                solve = np.linalg.solve(inner + strength * np.eye(n), p @ (z - z.mean()))
                ahead = z.mean() + (p @ (cross[o] - gram[np.ix_(o, o)].mean(1)[:, None])).T @ solve
                count = max(0, min(steps.stop, horizon) - steps.start)
                np.testing.assert_allclose(made[b, v, 16 + steps.start:16 + steps.start + count], ahead[:count],
                                           rtol=2e-4, atol=2e-4)
                if r == 0:
                    between = z.mean() + (p @ (gram[o] - gram[np.ix_(o, o)].mean(1)[:, None])).T @ solve
                    np.testing.assert_allclose(made[b, v, :16], between, rtol=2e-4, atol=2e-4)


def test_a_complete_look_back_is_completed_as_it_is_forecast() -> None:
    found = moments([wave()], 16, (4, 9))
    ridge = Ridge.fit(found, found, [1e-3])
    history, seen = torch.from_numpy(wave(16).T[None]).float(), torch.ones(1, 2, 16, dtype=torch.bool)
    torch.testing.assert_close(ridge.completed(history, seen, 9)[..., 16:], ridge.forecast(history, seen, 9),
                               rtol=1e-3, atol=1e-3)
    nothing = ridge.completed(history, torch.zeros_like(seen), 9)
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("pattern", ["random", "blocks"])
def test_patterns_hide_their_share(pattern: Any) -> None:
    mask = np.stack([hidden((96, 7), 0.3, pattern, RNG(i)) for i in range(60)])
    assert mask.mean() == pytest.approx(0.3, abs=0.04)
    runs = np.diff(mask.astype(int), axis=1)
    longest = mask.sum() / max((runs == 1).sum() + mask[:, 0].sum(), 1)
    assert longest > 5 if pattern == "blocks" else longest < 2


def test_imputation_keeps_what_is_given_and_beats_the_mean(tmp_path: Path) -> None:
    store = series_store(tmp_path)
    adapter = fitted(store, "impute")
    question, other = adapter.questions(store, "test")
    assert (question.name, other.name) == ("random", "blocks")
    sample = question.windows.draw(0, RNG(0), RNG(0))
    batch = adapter.encode(sample)
    filled = adapter.decode(batch, plain(batch))
    shown = np.isfinite(sample["value"].values) & ~sample[HIDDEN].values
    np.testing.assert_allclose(filled["value"].values[0][shown], sample["value"].values[shown], rtol=1e-5)
    assert np.isfinite(filled["value"].values).all()
    np.testing.assert_array_equal(filled["known"].values[0], sample[HIDDEN].values & np.isfinite(sample["value"]))
    truth = adapter.decode(batch, {"value": batch.targets["value"].value})
    score = adapter.score(question, filled, truth)
    assert set(score) == {m.name for m in adapter.metrics()}
    assert 0 < score["mse"][0] < 0.3
    holes = sample.drop_vars(HIDDEN)
    again = adapter.decode(adapter.encode(holes), plain(adapter.encode(holes)))
    assert np.isfinite(again["value"].values).all()


def test_nothing_hidden_reaches_the_operator(tmp_path: Path) -> None:
    store = series_store(tmp_path)
    adapter = fitted(store, "impute", inputs={"spread": True})
    sample = adapter.questions(store, "test")[0].windows.draw(0, RNG(0), RNG(0))
    other = sample.copy(deep=True)
    other["value"].values[sample[HIDDEN].values] += 1e3
    a, b = adapter.encode(sample), adapter.encode(other)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.targets["value"].baseline, b.targets["value"].baseline)


def test_an_event_scores_highest(tmp_path: Path) -> None:
    store = series_store(tmp_path)
    adapter = fitted(store, {"anomaly": {"block": 3}})
    sample = adapter.open(store, "test").draw(0, RNG(0), RNG(0)).copy(deep=True)
    sample["value"].values[30:32, 1] += 3.0
    labels = np.zeros(sample.sizes["time"], bool)
    labels[30:32] = True
    batch = adapter.encode(sample.assign(anomaly=("time", labels)))
    found = adapter.decode(batch, plain(batch))
    assert found[SCORE].values[0, 30:32, 1].min() > np.nanpercentile(found[SCORE].values, 95)
    truth = adapter.decode(batch, {"value": batch.targets["value"].value})
    score = adapter.score(adapter.questions(store, "test")[0], found, truth)
    assert score["auroc"][0] > 0.9
    assert score["average_precision"][0] > 0.3


def test_a_cell_is_judged_without_being_seen(tmp_path: Path) -> None:
    """Its own value moves neither what is expected of it nor what the operator is shown in its turn."""
    store = series_store(tmp_path)
    adapter = fitted(store, {"anomaly": {"block": 3}}, inputs={"level": True, "spread": True})
    sample = adapter.open(store, "test").draw(0, RNG(0), RNG(0))
    shown: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def operate(batch: TokenBatch) -> Outputs:
        assert batch.observed is not None
        assert not batch.values[~batch.observed.expand(batch.values.shape)].any()
        shown.append(batch.observed)
        seen.append(torch.cat([batch.values[..., 0], batch.conditions.lattice["level"]], -1))
        return Outputs({"value": torch.zeros_like(batch.values)})

    batch = adapter.encode(sample)
    adapter.derive(batch, operate, create_graph=False)
    assert len(shown) == 4
    given = torch.stack(shown).float().sum(0)
    assert set(given.unique().tolist()) <= {0.0, 3.0}
    other = sample.copy(deep=True)
    other["value"].values[20] += 100.0
    changed_batch = adapter.encode(other)
    adapter.derive(changed_batch, operate, create_graph=False)
    turn = 20 // 3 % 4
    assert torch.equal(seen[turn], seen[4 + turn])
    assert not torch.equal(seen[(turn + 1) % 4], seen[4 + (turn + 1) % 4])
    for name in ("baseline", "scale"):
        ours, theirs = (getattr(b.targets["value"], name)[:, :, 20] for b in (batch, changed_batch))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_linear_floor_tells_gestures_apart(tmp_path: Path) -> None:
    store = gestures_store(tmp_path)
    adapter = fitted(store, "classify", look_back=24)
    question, = adapter.questions(store, "test")
    right = []
    for i in range(len(question.windows)):
        batch = adapter.floor().encode(question.windows.draw(i, RNG(0), RNG(0)))
        found = adapter.decode(batch, plain(batch))
        truth = adapter.decode(batch, {n: t.value.clamp(1e-6, 1 - 1e-6).logit() for n, t in batch.targets.items()})
        right.append(adapter.score(question, found, truth)["accuracy"][0])
        assert found[PROBABILITY].sum() == pytest.approx(1.0)
    assert np.mean(right) > 0.9
    trained = adapter.open(store, "train").draw(0, RNG(0), RNG(0))
    apart, fitted_to = (next(iter(a.encode(trained).targets.values())).baseline for a in (adapter, adapter.floor()))
    assert not torch.equal(apart, fitted_to)


def test_what_is_before_a_short_series_has_no_measure(tmp_path: Path) -> None:
    store = gestures_store(tmp_path)
    adapter = fitted(store, "classify", look_back=24)
    sample = adapter.open(store, "test").draw(0, RNG(0), RNG(0))
    batch = adapter.encode(sample)
    measure = batch.axes[1].measure
    assert measure is not None
    assert measure[0, :4].tolist() == [0.0] * 4
    assert measure.sum() == pytest.approx(1.0)
    assert not batch.values[:, :, :4].any()
    unknown = adapter.encode(sample.drop_vars("label"))
    assert not next(iter(unknown.targets.values())).mask.any()


def test_series_without_class_or_room_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class of a series"):
        fitted(series_store(tmp_path), "classify")
    with pytest.raises(InputError, match="at least 20"):
        fitted(gestures_store(tmp_path), "classify", look_back=8)
    store = gestures_store(tmp_path, name="again")
    adapter = fitted(store, "classify", look_back=24)
    assert len(adapter.starts(store, "test")) == 0
    with pytest.raises(InputError, match="classify"):
        adapter.initial(adapter.open(store, "test").draw(0, RNG(0), RNG(0)))


def test_ridge_classifier_is_the_closed_form() -> None:
    rng = RNG(2)
    series, labels = [rng.standard_normal((10, 2)) for _ in range(12)], rng.integers(0, 2, 12)
    found = Classifier.fit(series, labels, series, labels, 2, np.arange(100, 112))
    x = np.stack([features_of(each, found.places) for each in series])
    y = np.eye(2)[labels] - found.prior
    strength = found.provenance["strength"] * np.square(x).sum() / x.shape[1]
    np.testing.assert_allclose(found.weights, np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y),
                               rtol=1e-6, atol=1e-9)
    fold = np.arange(12) % 5 != 3
    apart = np.linalg.solve(x[fold].T @ x[fold] + found.provenance["strength"] * np.square(x[fold]).sum() / x.shape[1]
                            * np.eye(x.shape[1]), x[fold].T @ y[fold])
    np.testing.assert_allclose(found.apart[3], apart, rtol=1e-6, atol=1e-9)
    assert not np.array_equal(found.logits(series[3], 103), found.logits(series[3]))
    assert np.array_equal(found.logits(series[3], 7), found.logits(series[3]))
    again = Classifier.restore(*found.state())
    np.testing.assert_array_equal(again.logits(series[0]), found.logits(series[0]))
    gaps = np.array([[0.0, np.nan], [np.nan, np.nan], [2.0, np.nan]])
    np.testing.assert_allclose(features_of(gaps, 3), [0, 1, 2, 0, 0, 0, 1])


def test_augmentation_keeps_length_and_can_be_nothing() -> None:
    values = wave(30)
    np.testing.assert_array_equal(changed(values, Augmentation(), np.ones(2), RNG(0)), values)
    other = changed(values, Augmentation(noise=0.1, scale=0.1, crop=0.2, warp=0.3), np.ones(2), RNG(0))
    assert other.shape == values.shape
    assert not np.allclose(other, values)
