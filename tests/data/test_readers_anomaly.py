"""Labels of anomalies in tables: wide and long, CSV and Parquet, up to the scores that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sciml.data.build import build
from sciml.data.check import validate as validated
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.domains.series.adapter import Series
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.recipe import validate

HOURS = 400


def frame(seed: int = 0) -> pd.DataFrame:
    """A wave with a few spikes in the last fifth, and where they are."""
    rng = np.random.default_rng(seed)
    bad = np.zeros(HOURS, int)
    bad[rng.choice(np.arange(330, HOURS - 5), 4, replace=False)] = 1
    load = np.sin(2 * np.pi * np.arange(HOURS) / 24) + 0.05 * rng.normal(size=HOURS) + 5 * bad
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=HOURS, freq="h"), "load": load, "bad": bad,
                         "oil": rng.normal(size=HOURS)})


def built(folder: Path, table: pd.DataFrame, format: str, missing: str = "refuse", **options: Any) -> Store:
    path = folder / f"made.{format}"
    table.to_csv(path, index=False) if format == "csv" else table.to_parquet(path)
    return build(SourceSpec.model_validate({
        "name": "plant", "domain": "series", "files": [str(path)], "missing": missing,
        "options": {"format": format, "time_column": "date", "anomaly_column": "bad", "units": "1", **options},
        "split": {"by": "time", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}}}), folder / "plant.zarr")


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("options", [{}, {"columns": ["load"]}, {"units": {"load": "kW", "oil": "degC"}}])
def test_a_column_of_a_wide_table_becomes_labels(format: str, options: dict[str, Any], tmp_path: Path) -> None:
    table = frame()
    store = built(tmp_path, table, format, **options)
    assert store.members("variate") == (("load",) if "columns" in options else ("load", "oil"))
    assert store.meta.variables["anomaly"].role == "label"
    np.testing.assert_array_equal(store.read("anomaly", 0), table["bad"])
    np.testing.assert_allclose(store.read("value", 0)[:, 0], table["load"])
    assert not [found for found in validated(store) if found.level == "error"]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_series_of_a_long_table_has_labels_of_its_own(format: str, tmp_path: Path) -> None:
    tables = [frame(1).assign(shop="a"), frame(2).iloc[:390].assign(shop="b")]
    store = built(tmp_path, pd.concat(tables), format, id_column="shop", columns=["load"])
    for group, table in enumerate(tables):
        np.testing.assert_array_equal(store.read("anomaly", group), table["bad"])


def test_scores_of_anomalies_are_judged_by_them(tmp_path: Path) -> None:
    store = built(tmp_path, frame(), "csv", columns=["load"])
    config = {"task": {"anomaly": {"block": 2}}, "look_back": 40, "horizons": [8], "patch": 4}
    adapter = Series.create(config).fit(store)
    torch.manual_seed(0)
    small = {"levels": [{"width": 8, "depth": 1, "mixers": ["local"], "head_width": 8}], "stem_width": 8,
             "condition_width": 8}
    predictor = Predictor(Operator(validate(OperatorConfig, small, where="test"), {"series": adapter.spec()}).eval(),
                          {"series": adapter})
    found = {row.metric: row.value for row in evaluate(predictor, store, "test").scores}
    assert found["auroc"] > 0.95


def test_rows_that_are_filled_in_are_no_anomalies(tmp_path: Path) -> None:
    table = frame().drop(index=[100, 101])
    store = built(tmp_path, table, "csv", missing="mask", irregular="fill")
    labels = store.read("anomaly", 0)
    assert labels.shape == (HOURS,)
    assert np.isin(labels, (0, 1)).all()
    assert labels.sum() == table["bad"].sum()


@pytest.mark.parametrize(("change", "message"), [
    ({"bad": 2}, r"column bad\].*2 in row 8"), ({"bad": np.nan}, r"column bad\].*nan in row 8"),
    ({"name": "worse"}, r"options.anomaly_column.*'worse'")])
def test_other_labels_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = frame().astype({"bad": float})
    if "bad" in change:
        table.loc[7, "bad"] = change["bad"]
    with pytest.raises(InputError, match=message):
        built(tmp_path, table, "csv", **({"anomaly_column": change["name"]} if "name" in change else {}))
    assert not (tmp_path / "plant.zarr").exists()
