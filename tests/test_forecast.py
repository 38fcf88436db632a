"""`sciml forecast` and `sciml backtest`: table to table, calibrated once, beside floors; calls that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from sciml import checkpoint
from sciml.cli import cli, run
from tests.handles.plant import VARIATES, frame_of, long_of, plant, predictor_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a store and two tables."""
    folder = tmp_path_factory.mktemp("plant")
    store = plant(folder)
    predictor = predictor_of(store)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    predictor.recipe = {"name": "made", "domains": {}, "operator": {}}
    checkpoint.save(folder / "run" / "checkpoints" / "best", predictor)
    frame_of(store, 700, 120).to_csv(folder / "wide.csv", index=False)
    long_of(store, ["b", "a"], [60, 30]).to_parquet(folder / "long.parquet", index=False)
    return folder


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_table_becomes_a_table(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    found = call("forecast", made / "run", made / "wide.csv", "--horizon", 30, "-o", out)
    assert found.exit_code == 0, found.output
    assert f"next: sciml backtest {made / 'run'}" in found.output
    assert "not calibrated" in found.stderr
    table = pd.read_csv(out, parse_dates=["timestamp"])
    assert list(table.columns) == ["timestamp", "target_name", "predictions", "0.1", "0.5", "0.9"]
    assert len(table) == 60
    pd.read_csv(made / "wide.csv").rename(columns={"timestamp": "at"}).to_csv(tmp_path / "at.csv", index=False)
    found = call("forecast", made / "run", tmp_path / "at.csv", "--horizon", 3, "--time", "at")
    following = found.output.split("next: sciml ")[1].split()
    assert following[-2:] == ["--time", "at"]
    assert call(*following).exit_code == 0
    again = call("forecast", made / "run", made / "wide.csv", "--horizon", 30, "-o", out)
    assert "--overwrite" in str(again.exception)
    parquet = tmp_path / "out.parquet"
    assert call("forecast", made / "run", made / "long.parquet", "--horizon", 3, "-o", parquet).exit_code == 0
    assert pd.unique(pd.read_parquet(parquet)["id"]).tolist() == ["b", "a"]


def test_calibrated_intervals_are_kept_in_the_run(made: Path) -> None:
    arguments = ("forecast", made / "run", made / "wide.csv", "--horizon", 6, "--json")
    before = json.loads(call(*arguments).stdout)
    assert set(before[0]) == {"timestamp", "target_name", "predictions", "0.1", "0.5", "0.9"}
    kept = made / "run" / "calibration" / "series.safetensors"
    try:
        moved = json.loads(call(*arguments, "--calibrate", made / "plant.zarr").stdout)
        assert kept.is_file()
        assert json.loads(call(*arguments).stdout) == moved
        assert moved[0]["0.5"] == before[0]["0.5"]
        assert moved[0]["0.9"] != before[0]["0.9"]
    finally:
        kept.unlink(missing_ok=True)


def test_a_store_and_a_table_are_tested_beside_floors(made: Path, tmp_path: Path) -> None:
    found = call("backtest", made / "run", "--data", made / "plant.zarr", "--json", "--stride", 12)
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["scores"]
    assert [row["model"] for row in rows] == ["sciml", "split_conformal", "adaptive_conformal", "ridge",
                                              "seasonal_naive"]
    assert all(np.isfinite([value for key, value in row.items() if key != "model"]).all() for row in rows)
    shown = call("backtest", made / "run", "--data", made / "wide.csv", "--windows", 3, "-o", tmp_path / "all.csv",
                 "--figure", tmp_path / "all.svg")
    assert shown.exit_code == 0, shown.output
    assert "3 origins, 2 targets" in shown.output
    assert "next: sciml forecast" in shown.output
    assert (tmp_path / "all.svg").is_file()
    table = pd.read_csv(tmp_path / "all.csv")
    assert set(table["target_name"]) == set(VARIATES)
    assert len(table) == 3 * 3 * 6 * 2
    pd.read_csv(made / "wide.csv").rename(columns={"timestamp": "at"}).to_csv(tmp_path / "at.csv", index=False)
    columns = [word for name in VARIATES for word in ("--target", name)]
    found = call("backtest", made / "run", "--data", tmp_path / "at.csv", "--windows", 1, "--time", "at", *columns)
    following = found.output.split("next: sciml ")[1].split()
    assert following[-2 - len(columns):] == ["--time", "at", *columns]
    assert call(*following).exit_code == 0


WRONG = {"out": (("forecast", "RUN", "wide.csv", "--horizon", "3", "-o", "out.xlsx"), "FILE.csv or FILE.parquet", 2),
         "levels": (("forecast", "RUN", "wide.csv", "--horizon", "3", "--quantiles", "a"), "--quantiles", 2),
         "file": (("forecast", "RUN", "none.csv", "--horizon", "3"), "no such file", 1),
         "figure": (("backtest", "RUN", "--data", "wide.csv", "--figure", "a.gif"), ".png", 2),
         "column": (("forecast", "RUN", "wide.csv", "--horizon", "3", "--target", "heat"), "heat", 1)}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_end_with_the_fix(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                      name: str) -> None:
    words, message, code = WRONG[name]
    monkeypatch.chdir(made)
    assert run([word.replace("RUN", "run") for word in words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Fix:" in error
