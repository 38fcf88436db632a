"""CSV, Parquet and NumPy."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from sciml.data.build import build
from sciml.data.readers import read
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

SHARED = Path("/work/shared/data")
ROWS = 50


def table(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"date": pd.date_range("2020-01-01", periods=rows, freq="h").astype(str),
                         "load": rng.normal(size=rows), "count": rng.integers(0, 9, size=rows)})


def look(path: Path | str, domain: str = "series", **options: object) -> xr.Dataset:
    source = SourceSpec.model_validate({"name": "lab", "domain": domain, "files": [str(path)], "options": options})
    return read(source, [path])


def edited(path: Path, row: int, column: str, value: object) -> Path:
    frame = table().astype(object)
    frame.loc[row, column] = value
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_values(tmp_path: Path, separator: str) -> None:
    frame = table()
    frame.to_csv(tmp_path / "a.txt", index=False, sep=separator)
    data = look(tmp_path / "a.txt", units={"load": "kW", "count": 1})
    assert data["value"].dims == ("series", "time", "variate")
    assert isinstance(data["value"].data, da.Array)
    np.testing.assert_allclose(data["value"].values[0], frame[["load", "count"]].to_numpy())
    assert list(data["variate_unit"].values) == ["kW", "1"]
    np.testing.assert_array_equal(data["time"].values, pd.to_datetime(frame["date"]).to_numpy())


def test_csv_decimal_comma_and_own_time_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("tag;wert\n02.01.2020 00:00;1,5\n03.01.2020 00:00;2,5\n04.01.2020 00:00;-\n")
    data = look(tmp_path / "a.csv", decimal=",", na_values=["-"], time_column="tag", time_format="%d.%m.%Y %H:%M")
    np.testing.assert_array_equal(data["value"].values[0, :, 0], [1.5, 2.5, np.nan])
    assert data["time"].values[0] == np.datetime64("2020-01-02")


@pytest.mark.parametrize(("row", "column", "value", "words"), [
    (6, "load", "broken", r"row 7, column load.*'broken'"),
    (6, "date", "someday", r"row 7, column date.*'someday'"),
    (6, "date", "2020-01-01 05:00:00", r"row 7, column date.*again"),
    (6, "date", "2020-01-01 02:30:00", r"row 7, column date.*sort the rows"),
    (6, "date", "2020-01-01 06:30:00", r"row (7|8), column date.*regular times")])
def test_csv_names_the_row_and_column(tmp_path: Path, row: int, column: str, value: object, words: str) -> None:
    path = edited(tmp_path / "a.csv", row, column, value)
    with pytest.raises(InputError, match=words):
        look(path)
    assert any(f"row {row + 1}" in text or "row 8" in text for text in sniff(path).suspicious)


def test_csv_gaps_can_be_filled_or_kept(tmp_path: Path) -> None:
    frame = table().drop(index=[5, 6])
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match="irregular: fill"):
        look(tmp_path / "a.csv")
    filled = look(tmp_path / "a.csv", irregular="fill")["value"].values[0]
    assert len(filled) == ROWS
    assert np.isnan(filled[5:7]).all()
    np.testing.assert_allclose(filled[7:, 0], frame["load"].to_numpy()[5:])
    assert look(tmp_path / "a.csv", irregular="keep").sizes["time"] == ROWS - 2


def test_csv_months_are_regular(tmp_path: Path) -> None:
    pd.DataFrame({"month": pd.date_range("2020-01-01", periods=24, freq="MS"), "v": range(24)}).to_csv(
        tmp_path / "a.csv", index=False)
    assert look(tmp_path / "a.csv").sizes["time"] == 24


def test_csv_without_times_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(InputError, match="time_column"):
        look(tmp_path / "a.csv", format="csv")


def test_csv_round_trip_and_large_files_are_sniffed_in_part(tmp_path: Path) -> None:
    frame = table(60_000)
    frame.to_csv(tmp_path / "a.csv", index=False)
    guess = sniff(tmp_path / "a.csv", limit_bytes=1 << 20)
    assert any("only the first" in note for note in guess.notes)
    assert guess.dims["time"] < 60_000
    table().to_csv(tmp_path / "b.csv", index=False)
    text = sniff(tmp_path / "b.csv").source_yaml("lab").replace("null", '"1"')
    (tmp_path / "source.yaml").write_text(text, encoding="utf-8")
    built = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr").dataset()
    np.testing.assert_allclose(built["value"].values[0], table()[["load", "count"]].to_numpy(), rtol=1e-6)


def test_parquet_is_lazy_and_reads_row_groups(tmp_path: Path) -> None:
    frame = table()
    frame["date"] = pd.to_datetime(frame["date"])
    frame.loc[3, "load"] = None
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=20)
    data = look(tmp_path / "a.parquet")
    assert data["value"].data.chunks[1] == (20, 20, 10)
    np.testing.assert_allclose(data["value"].values[0], frame[["load", "count"]].to_numpy())
    assert any("1 NaN" in text for text in sniff(tmp_path / "a.parquet").suspicious)
    part = look(tmp_path / "a.parquet", select={"time": [25, 30]}, columns=["count"])
    np.testing.assert_allclose(part["value"].values[0, :, 0], frame["count"].to_numpy()[25:30])


def test_parquet_names_row_and_column_of_text(tmp_path: Path) -> None:
    frame = table().astype({"load": str})
    frame.loc[33, "load"] = "n/a!"
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=20)
    with pytest.raises(InputError, match=r"row 34, column load.*'n/a!'"):
        look(tmp_path / "a.parquet")["value"].values  # noqa: B018


def test_parquet_truncated(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-40])
    with pytest.raises(InputError, match="complete Parquet"):
        sniff(tmp_path / "a.parquet")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_through_fsspec(tmp_path: Path, form: str) -> None:
    table().to_csv(tmp_path / "a", index=False) if form == "csv" else table().to_parquet(tmp_path / "a")
    fsspec.filesystem("memory").pipe(f"/tables_through_fsspec/{form}", (tmp_path / "a").read_bytes())
    for url in (f"memory://tables_through_fsspec/{form}", f"file://{tmp_path}/a"):
        np.testing.assert_allclose(look(url)["value"].values[0], table()[["load", "count"]].to_numpy())
        assert sniff(url).format == form


def test_npy_is_mapped_and_needs_a_layout(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(">f4")
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=r"options\.layout"):
        look(tmp_path / "a.npy", "fields")
    data = look(tmp_path / "a.npy", "fields", layout={"array": ["trajectory", "time", "x", "channel"]},
                channels=["u", "v"], coords={"time": {"start": 1, "step": 0.5}})
    assert isinstance(data["u"].data, da.Array)
    np.testing.assert_array_equal(data["v"].values, values[..., 1])
    np.testing.assert_array_equal(data["time"].values, [1, 1.5, 2, 2.5])
    with pytest.raises(InputError, match="name one dimension per axis"):
        look(tmp_path / "a.npy", "fields", layout={"array": ["time", "x"]})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path: Path, save: object) -> None:
    rng = np.random.default_rng(0)
    u, nu, x = rng.normal(size=(4, 5, 6)).astype(np.float32), rng.random(4), np.arange(6) * 0.25
    save(tmp_path / "a.npz", u=np.asfortranarray(u), nu=nu, x=x)  # type: ignore[operator]
    data = look(tmp_path / "a.npz", "fields", layout={"u": ["trajectory", "time", "x"], "nu": ["trajectory"]},
                coords={"x": "x"})
    np.testing.assert_array_equal(data["u"].values, u)
    np.testing.assert_array_equal(data["nu"].values, nu)
    np.testing.assert_array_equal(data["x"].values, x)
    guess = sniff(tmp_path / "a.npz")
    assert guess.options["layout"]["u"] == ["trajectory", "time", "x"]
    assert any("layout" in text for text in guess.missing)
    (tmp_path / "source.yaml").write_text(guess.source_yaml("lab").replace("unit: null", 'unit: "1"'), encoding="utf-8")
    built = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr").dataset()
    np.testing.assert_array_equal(built["u"].values, u)


def test_npy_series_with_dates(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(24, 2))
    np.save(tmp_path / "a.npy", values)
    data = look(tmp_path / "a.npy", layout={"array": ["time", "variate"]}, variates=["a", "b"], units="kW",
                coords={"time": {"start": "2020-01-01", "step": "1h"}})
    np.testing.assert_array_equal(data["value"].values[0], values)
    assert data["time"].values[-1] == np.datetime64("2020-01-01T23:00")


@pytest.mark.parametrize(("folder", "file", "rows"), [("ili", "national_illness.csv", 966),
                                                      ("etth1", "ETTh1.csv", 17420)])
def test_real_tables(folder: str, file: str, rows: int, tmp_path: Path) -> None:
    path = SHARED / folder / file
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    guess = sniff(path)
    assert (guess.domain, guess.dims["time"], guess.dims["variate"]) == ("series", rows, 7)
    assert not guess.suspicious
    text = guess.source_yaml(folder)
    assert yaml.safe_load(text)["options"]["format"] == "csv"
    (tmp_path / "source.yaml").write_text(text.replace("null", '"1"'), encoding="utf-8")
    built = build(read_source(tmp_path / "source.yaml"), tmp_path / "out.zarr")
    frame = pd.read_csv(path)
    np.testing.assert_allclose(built.dataset()["value"].values[0], frame.iloc[:, 1:].to_numpy(), rtol=1e-6)
