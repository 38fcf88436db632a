"""One shot and step by step say the same where they must.

A rollout of n steps of horizon h forecasts each step from what it forecast before; the direct forecast sees none of it.
Both are the same map where what was forecast adds nothing to what is known of later times:

- one step: a horizon of h is a rollout of one step, whatever the operator says (round-off);
- any number of steps, where the operator is silent and the series is a combination of fewer modes (exponentials, sines,
  a constant) than the look-back has cells: the ridge, as its strength goes to 0, continues it exactly at every horizon,
  so both are the truth. The distance between them falls with the strength;
- a process without memory about its mean: both are the mean. Elsewhere they differ, as a forecast of a forecast must.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.series.adapter import Series
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.testing.parameters import stir

LOOK_BACK, STEP, STEPS = 24, 6, 4
SMALL = {"levels": [{"width": 16, "depth": 1, "mixers": ["axial", "local"], "head_width": 8}], "stem_width": 8,
         "condition_width": 16}


def store_of(folder: Path, name: str, value: np.ndarray) -> Store:
    """Hourly; half to train on, a quarter each to validate and test."""
    count = len(value)
    made = xr.Dataset({"value": (("series", "time", "variate"), value[None])}, coords={
        "time": np.datetime64("2021-01-01", "ns") + np.arange(count) * np.timedelta64(3600, "s"),
        "variate": [f"v{i}" for i in range(value.shape[1])], "variate_unit": ("variate", ["1"] * value.shape[1])})
    train, validation, test = ((Block(group=0, start=a, stop=b),) for a, b in (
        (0, count // 2), (count // 2, 3 * count // 4), (3 * count // 4, count)))
    return write_store(made, StoreDraft(
        domain="series", dataset=name, group_dim="series", groups=1, dt=3600.0,
        variables={"value": Variable(role="state", unit="1", dims=("time", "variate"))},
        axes={"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1")},
        splits=Splits(key="time", train=train, validation=validation, test=test),
        provenance=Provenance(builder="test")), folder / f"{name}.zarr")


def predictor_of(store: Store, *, loud: bool, **config: Any) -> Predictor:
    """loud: with weights that are not 0 anywhere; else the operator says nothing, as before training."""
    adapter = Series.create({"look_back": LOOK_BACK, "horizons": [STEP, STEP * STEPS], "patch": 6, **config}).fit(store)
    torch.manual_seed(0)
    made = Operator(validate(OperatorConfig, SMALL, where="test"), {"series": adapter.spec()})
    if loud:
        stir(made)
    return Predictor(made.eval(), {"series": adapter})


def both(predictor: Predictor, store: Store, index: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(T, V)`` in one shot, step by step, and the truth, of a test window."""
    adapter: Any = predictor.adapter("series")
    asked = next(q for q in adapter.questions(store, "test") if int(q.name) == STEP * STEPS)
    sample = asked.windows.draw(index, *[np.random.default_rng(0)] * 2)
    length = STEP * steps
    sample = sample.isel(time=slice(0, LOOK_BACK + length))
    direct = predictor.predict(sample.assign_attrs(horizon=length))
    stepped = predictor.rollout(sample.assign_attrs(horizon=STEP), steps)
    np.testing.assert_array_equal(stepped["time"].values, direct["valid_time"].values[0])
    return direct["value"].values[0], stepped["value"].values, sample["value"].values[LOOK_BACK:]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rng = np.random.default_rng(1)
    t = np.arange(600)[:, None]
    value = 5 + np.sin(2 * np.pi * t / 24 + np.arange(2)) + 0.5 * rng.normal(size=(600, 2))
    return store_of(tmp_path_factory.mktemp("noisy"), "noisy", value)


@pytest.mark.parametrize("config", [{}, {"inputs": {"spread": True, "level": True}}, {"task": {"forecast": {
    "quantiles": [0.1, 0.9]}}}, {"ridge": {"cycles": []}}], ids=["plain", "spread", "quantiles", "no_cycle"])
def test_one_step_is_the_direct_forecast_whatever_the_operator_says(noisy: Store, config: dict[str, Any]) -> None:
    loud, silent = (predictor_of(noisy, loud=loud, **config) for loud in (True, False))
    for index in (0, 57):
        direct, stepped, _ = both(loud, noisy, index, 1)
        np.testing.assert_allclose(stepped, direct, rtol=0, atol=2e-6 * np.abs(direct).max())
        assert np.abs(direct - both(silent, noisy, index, 1)[0]).max() > 1e-3  # it does say something


def test_elsewhere_a_forecast_of_a_forecast_is_another(noisy: Store) -> None:
    """Each range of the horizon has a ridge of the windows that reach it, a few more for the first: they are close."""
    direct, stepped, _ = both(predictor_of(noisy, loud=False), noisy, 3, STEPS)
    assert np.abs(direct - stepped)[:STEP].max() < 0.05
    assert np.abs(direct - stepped)[STEP:].max() > 1e-3


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_what_modes_make_up_is_continued_the_same_way(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two sines of any period, phase and size about any mean, in two variates: five modes in 24 cells."""
    rng = np.random.default_rng(seed)
    t = np.arange(400)[:, None]
    periods, sizes = rng.uniform(6, 40, 2), rng.uniform(0.5, 2, (2, 2))
    value = rng.normal(0, 3, 2) + sum(size * np.sin(2 * np.pi * t / period + rng.uniform(0, 6, 2))
                                      for period, size in zip(periods, sizes))
    store, apart = store_of(tmp_path_factory.mktemp("modes"), "modes", value), []
    for strength in (1e-3, 1e-9):
        silent = predictor_of(store, loud=False, ridge={"strengths": [strength], "cycles": []})
        direct, stepped, truth = both(silent, store, 11, STEPS)
        apart.append(np.abs(direct - stepped).max() / value.std())
    assert apart[1] < 1e-2
    assert apart[1] <= apart[0] + 1e-4
    np.testing.assert_allclose(direct, truth, rtol=0, atol=1e-2 * value.std())
    np.testing.assert_allclose(stepped, truth, rtol=0, atol=1e-2 * value.std())


def test_what_has_no_memory_stays_at_its_mean(tmp_path: Path) -> None:
    """Constant variates: every forecast of either kind is the constant, to round-off."""
    store = store_of(tmp_path, "still", np.tile([3.0, -7.0], (200, 1)))
    direct, stepped, truth = both(predictor_of(store, loud=False), store, 0, STEPS)
    np.testing.assert_allclose(stepped, direct, rtol=0, atol=1e-6)
    np.testing.assert_allclose(direct, truth, rtol=0, atol=1e-5)
