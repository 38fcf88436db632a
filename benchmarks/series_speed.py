"""The part `speed` of `benchmarks/series.py`: series per second through the handle that users call, and what a step
costs after histories of different length. CPU seconds of one thread, weights untrained: they don't enter the cost.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pretrain.workflow import new_predictor
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.series.layout import Layout
from sciml.handles.series import forecast
from sciml.predictor import Predictor
from sciml.recipe import Recipe
from sciml.report.bench import Bench, Row

SERIES, STEPS, HORIZON, QUANTILES = 10_000, 100, 24, (0.1, 0.5, 0.9)
SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": {"levels": [{"width": 32, "depth": 1, "mixers": ["axial", "local"], "head_width": 16}], "stem_width": 16,
              "condition_width": 16},
    "etth1": {"levels": [{"width": 64, "depth": 2, "mixers": ["axial", "local"], "head_width": 32}], "dropout": 0.2}}
HISTORIES, STREAM_PATCH, FLAT = (96, 8160), 24, ({"variate_gate": {"own": False}},)
STREAMED: Mapping[str, Any] = {"levels": [{"width": 64, "depth": 2, "mixers": ["gated", *FLAT]}]}


def measure(bench: Bench) -> None:
    """Rows ``many/forecast/series_per_second_<size>`` and ``stream/step/milliseconds_<history>`` beside the shortest
    history's."""
    with tempfile.TemporaryDirectory() as folder:
        if not bench.has("many/forecast/series_per_second_etth1"):
            store = hours(Path(folder), ("load",), 600)
            for size, operator in SIZES.items():
                rate = throughput(predictor_of(store, {"look_back": 96, "horizons": [HORIZON], "patch": 12}, operator))
                bench.add(Row(metric=f"many/forecast/series_per_second_{size}", unit="1/s", ours=rate))
        if not bench.has(f"stream/step/milliseconds_{HISTORIES[-1]}", f"history_{HISTORIES[0]}"):
            store = hours(Path(folder), tuple("abcdefg"), 3 * HISTORIES[-1])
            config = {"task": "stream", "look_back": 96, "horizons": [STREAM_PATCH], "patch": STREAM_PATCH}
            found = step_milliseconds(predictor_of(store, config, STREAMED), store)
            for length, milliseconds in found.items():
                bench.add(Row(metric=f"stream/step/milliseconds_{length}", unit="ms", ours=milliseconds,
                              peer=found[HISTORIES[0]], peer_name=f"history_{HISTORIES[0]}"))


def hours(folder: Path, variates: Sequence[str], count: int) -> Store:
    """One series of so many hours with a daily course and noise."""
    rng, t = np.random.default_rng(0), np.arange(count)
    phase, noise = np.arange(len(variates)), rng.normal(size=(count, len(variates)))
    value = np.sin(2 * np.pi * t[:, None] / 24 + phase) + 0.3 * noise
    made = xr.Dataset({"value": (("series", "time", "variate"), value[None])}, coords={
        "time": np.datetime64("2021-01-01") + t * np.timedelta64(1, "h"), "variate": list(variates),
        "variate_unit": ("variate", ["1"] * len(variates))})
    cuts = (0, count // 2, 3 * count // 4, count)
    train, validation, test = ((Block(group=0, start=a, stop=b),) for a, b in itertools.pairwise(cuts))
    return write_store(made, StoreDraft(
        domain="series", dataset="hours", group_dim="series", groups=1,
        variables={"value": Variable(role="state", unit="1", dims=("time", "variate"))},
        axes={"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1")}, dt=3600.0,
        splits=Splits(key="time", train=train, validation=validation, test=test),
        provenance=Provenance(builder="benchmark")), folder / f"hours_{len(variates)}.zarr")


def predictor_of(store: Store, series: Mapping[str, Any], operator: Mapping[str, Any]) -> Predictor:
    recipe = Recipe.model_validate({
        "name": "speed", "data": [{"store": store.url}], "domains": {"series": dict(series)},
        "operator": dict(operator), "train": {"steps": 1}})
    predictor = new_predictor(recipe, [store])
    predictor.operator.eval()
    return predictor


def throughput(predictor: Predictor, series: int = SERIES, turns: int = 3) -> float:
    """Series per CPU second: a frame of `STEPS` rows each in, a frame of mean and quantiles out, best of some turns."""
    moments = pd.date_range("2021-01-01", periods=STEPS, freq="h")
    frame = pd.DataFrame({"id": np.repeat(np.arange(series), STEPS), "timestamp": np.tile(moments, series),
                          "load": np.random.default_rng(0).normal(5, 1, series * STEPS)})

    def once() -> None:
        made = forecast(predictor, frame, horizon=HORIZON, quantiles=QUANTILES)
        assert len(made) == series * HORIZON

    return series / best(once, turns)


def step_milliseconds(predictor: Predictor, store: Store, turns: int = 15) -> dict[int, float]:
    """By length of the history, CPU ms of one step that continues it, measured in turns."""
    adapter: Any = predictor.adapter("series")
    layout, states = Layout.of(store), {}
    for length in HISTORIES:
        states[length] = predictor.step(adapter.initial(layout.sample(0, 0, length, look_back=length)))
    found = dict.fromkeys(HISTORIES, np.inf)
    for _ in range(turns):
        for length, state in states.items():
            found[length] = min(found[length], best(lambda state=state: predictor.step(state), 1))  # type: ignore[misc]
    return {length: float(1e3 * seconds) for length, seconds in found.items()}


def best(once: Callable[[], Any], turns: int) -> float:
    """Least CPU seconds."""
    spent = []
    for _ in range(turns):
        began = time.process_time()
        once()
        spent.append(time.process_time() - began)
    return min(spent)
