"""Many series in one store: `.ts`, GluonTS lines and long tables, and how they are split."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.readers import read
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec, find_files, read_source
from sciml.data.store import Store, open_store
from sciml.errors import InputError

SHARED = Path("/work/shared/data")
ROOT = Path(__file__).parents[2]
HEADER = "#about\n@problemName toy\n@timeStamps false\n@univariate false\n@dimensions 2\n@equalLength false\n"


def spec(paths: list[Path], split: Any = None, missing: str = "refuse", **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "series", "files": [str(p) for p in paths],
                                      "options": options, "split": split, "missing": missing})


def look(*paths: Path, **options: Any) -> xr.Dataset:
    return read(spec(list(paths), **options), list(paths))


def ts(path: Path, series: list[tuple[np.ndarray, str]], classes: str = "up down") -> Path:
    lines = [":".join([*(",".join("?" if np.isnan(v) else repr(float(v)) for v in row) for row in values.T), label])
             for values, label in series]
    path.write_text(HEADER + f"@classLabel true {classes}\n@data\n" + "\n".join(lines) + "\n")
    return path


def drawn(lengths: list[int], seed: int = 0) -> list[tuple[np.ndarray, str]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, 2)), "down" if i % 2 else "up") for i, n in enumerate(lengths)]


def long(lengths: dict[str, int], start: str = "2024-01-01", freq: str = "h") -> pd.DataFrame:
    rng = np.random.default_rng(1)
    parts = [pd.DataFrame({"id": name, "timestamp": pd.date_range(start, periods=n, freq=freq), "load":
                           rng.normal(size=n), "promo": np.arange(n) % 3, "region": f"r{i % 2}", "area": 1.0 + i})
             for i, (name, n) in enumerate(lengths.items())]
    return pd.concat(parts).sort_values(["timestamp", "id"]).reset_index(drop=True)


OPTIONS: dict[str, Any] = {"format": "csv", "id_column": "id", "covariates": ["promo"], "static": ["region", "area"],
           "units": {"load": "kW", "promo": "1", "area": "m2"}}


def test_ts_values_labels_and_parts(tmp_path: Path) -> None:
    train, test = drawn([5, 7, 3, 6]), drawn([4, 4], seed=1)
    train[1][0][2, 1] = np.nan
    paths = [ts(tmp_path / "a.ts", train), ts(tmp_path / "b.ts", test)]
    data = look(*paths, parts=["train", "test"], variates=["x", "y"], units="1")
    np.testing.assert_array_equal(data["value"].values, np.concatenate([v for v, _ in train + test]))
    assert data["step_count"].values.tolist() == [5, 7, 3, 6, 4, 4]
    assert data["label"].values.tolist() == [0, 1, 0, 1, 0, 1]
    assert data["class"].values.tolist() == ["up", "down"]
    assert data["part"].values.tolist() == [0, 0, 0, 0, 2, 2]
    assert data["series"].values.tolist() == ["train-1", "train-2", "train-3", "train-4", "test-1", "test-2"]
    assert look(*paths, classes=["rise", "fall"])["class"].values.tolist() == ["rise", "fall"]


def test_ts_of_one_variate_and_of_numbers_to_be_told(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text("@problemName t\n@univariate true\n@equalLength true\n@seriesLength 3\n"
                                   "@targetLabel true\n@data\n1,2,3:0.5\n4,?,6:-2\n")
    data = look(tmp_path / "a.ts")
    np.testing.assert_array_equal(data["value"].values[:, 0], [1, 2, 3, 4, np.nan, 6])
    assert data["label"].values.tolist() == [0.5, -2.0]
    assert "class" not in data.coords


@pytest.mark.parametrize(("old", "new", "words"), [
    ("@data\n", "@data\n1,x:2,3:up\n", r"line 9, dimension 1.*'x'"),
    ("@data\n", "@data\n1,2:3:up\n", r"line 9, dimension 2.*1 values.*2, as in dimension 1"),
    ("@data\n", "@data\n1,2:3,4:sideways\n", r"series 1, label.*'sideways'.*up, down"),
    ("@data\n", "@data\n1,2:up\n", r"series 1.*1 dimensions of 2 values.*2 dimensions"),
    ("@equalLength false", "@equalLength true", r"series 2.*equalLength"),
    ("@timeStamps false", "@timeStamps true", r"timeStamps.*id_column")])
def test_ts_names_line_and_dimension(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = ts(tmp_path / "a.ts", drawn([3, 4]))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=words):
        look(path, format="ts")


def test_files_of_other_kinds_are_not_joined(tmp_path: Path) -> None:
    one, other = ts(tmp_path / "a.ts", drawn([3])), ts(tmp_path / "b.ts", drawn([3]), classes="down up")
    with pytest.raises(InputError, match=r"b\.ts \[classes\].*down, up.*up, down, as in the first"):
        look(one, other)
    with pytest.raises(InputError, match=r"options.parts.*2 of train, validation, test"):
        look(one, one, parts=["train"])


def test_the_archives_test_part_stays_apart_and_validation_is_cut_from_train(tmp_path: Path) -> None:
    paths = [ts(tmp_path / "a.ts", drawn([5] * 20)), ts(tmp_path / "b.ts", drawn([5] * 10, seed=1))]
    made: dict[int | None, list[int]] = {}
    for seed in (0, 1, None):
        source = spec(paths, {"by": "given", "validation": 0.2, "seed": seed}, parts=["train", "test"], units="1")
        store = build(source, tmp_path / f"{seed}.zarr")
        groups = {name: [block.group for block in store.meta.splits.of(name)]
                  for name in ("train", "validation", "test")}
        label = store.lazy()["label"].values
        assert groups["test"] == list(range(20, 30))
        assert sorted(groups["train"] + groups["validation"]) == list(range(20))
        assert np.bincount(label[groups["validation"]].astype(int)).tolist() == [2, 2]
        assert [f for f in validate(store) if f.key not in ("licence", "citation")] == []
        made[seed] = groups["validation"]
    assert made[0] != made[1]
    assert made[None] == [4, 5, 14, 15]
    usual = build(spec(paths, parts=["train", "test"], units="1"), tmp_path / "usual.zarr").meta.splits
    assert [block.group for block in usual.test] == list(range(20, 30))
    with pytest.raises(InputError, match=r"split.part.*parts: \[train, test\]"):
        build(spec(paths, {"by": "given"}, parts=["train", "train"], units="1"), tmp_path / "no.zarr")


def test_long_csv_becomes_a_ragged_store_split_at_the_end_of_every_series(tmp_path: Path) -> None:
    frame = long({"b": 40, "a": 20})
    frame.to_csv(tmp_path / "a.csv", index=False)
    split = {"by": "time", "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}}
    store = build(spec([tmp_path / "a.csv"], split, **OPTIONS), tmp_path / "a.zarr")
    assert store.meta.ragged == {"step": "step_count"}
    assert dict(zip(store.members("series"), store.rows("step"), strict=True)) == {"a": 20, "b": 40}
    blocks = {name: {b.group: (b.start, b.stop) for b in store.meta.splits.of(name)}
              for name in ("train", "validation", "test")}
    assert blocks == {"train": {0: (0, 14), 1: (0, 28)}, "validation": {0: (14, 16), 1: (28, 32)},
                      "test": {0: (16, 20), 1: (32, 40)}}
    for i, name in enumerate(store.members("series")):
        own = frame[frame["id"] == name]
        np.testing.assert_allclose(store.read("value", i)[:, 0], own["load"])
        np.testing.assert_allclose(store.read("covariate_value", i)[:, 0], own["promo"])
        np.testing.assert_array_equal(store.read("step_time", i).astype("datetime64[ns]"), own["timestamp"])
    assert store.members("static") == ("region=r0", "region=r1", "area")
    assert store.read("static_value", 0).tolist() == [0.0, 1.0, 2.0]
    assert store.lazy()["step_time"].attrs["freq"] == "h"
    _moments_are_of_training_rows(store, frame)
    assert [f for f in validate(store) if f.key not in ("licence", "citation")] == []


def _moments_are_of_training_rows(store: Store, frame: pd.DataFrame) -> None:
    kept = pd.concat([own.iloc[:int(0.7 * len(own))] for _, own in frame.groupby("id")])
    found = store.meta.moments["value/load"]
    assert found.count == len(kept)
    np.testing.assert_allclose([found.mean, found.std, found.maximum],
                               [kept["load"].mean(), kept["load"].std(ddof=0), kept["load"].max()])


def test_counts_of_ragged_series_are_from_the_end(tmp_path: Path) -> None:
    long({"a": 20, "b": 33}).to_csv(tmp_path / "a.csv", index=False)
    split = {"by": "time", "counts": {"train": 25, "validation": 4, "test": 6}, "gap": 1}
    store = build(spec([tmp_path / "a.csv"], split, **OPTIONS), tmp_path / "a.zarr")
    assert [(b.start, b.stop) for n in ("train", "validation", "test") for b in store.meta.splits.of(n)] == [
        (0, 8), (0, 21), (9, 13), (22, 26), (14, 20), (27, 33)]
    with pytest.raises(InputError, match=r"20 steps in series 0.*shortest"):
        build(spec([tmp_path / "a.csv"], split | {"counts": {"train": 1, "validation": 9, "test": 9}}, **OPTIONS),
              tmp_path / "b.zarr")
    shorter = build(spec([tmp_path / "a.csv"], split, **OPTIONS, shortest=30), tmp_path / "c.zarr")
    assert shorter.members("series") == ("b",)
    assert any("1 series of fewer than 30 rows" in note for note in shorter.meta.notes)


def test_groups_of_ragged_series_are_whole(tmp_path: Path) -> None:
    long({name: 5 + i for i, name in enumerate("abcdef")}).to_csv(tmp_path / "a.csv", index=False)
    store = build(spec([tmp_path / "a.csv"], {"by": "fold", "folds": 3}, **OPTIONS), tmp_path / "a.zarr")
    assert [(b.group, b.stop) for b in store.meta.splits.test] == [(0, 5), (3, 8)]


@pytest.mark.parametrize("many", [1, 3])
def test_long_parquet_is_long_csv(tmp_path: Path, many: int) -> None:
    frame = long({"a": 12, "b": 9})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=len(frame) // many)
    one = look(tmp_path / "a.csv", **OPTIONS)
    other = look(tmp_path / "a.parquet", **OPTIONS | {"format": "parquet"})
    xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())
    assert sniff(tmp_path / "a.parquet").options["id_column"] == "id"


def test_long_tables_may_have_a_label_and_numeric_times(tmp_path: Path) -> None:
    frame = long({"a": 4, "b": 5, "c": 3}).assign(timestamp=lambda f: f.groupby("id").cumcount() * 0.5,
                                                  region=lambda f: f["id"].map({"a": "ill", "b": "well", "c": None}))
    frame.to_csv(tmp_path / "a.csv", index=False)
    told = {"format": "csv", "id_column": "id", "label": "region", "columns": ["load"], "time_column": "timestamp"}
    with pytest.raises(InputError, match="time_unit"):
        look(tmp_path / "a.csv", **told)
    data = look(tmp_path / "a.csv", **told, time_unit="s")
    assert data["class"].values.tolist() == ["ill", "well"]
    np.testing.assert_array_equal(data["label"].values, [0, 1, np.nan])
    assert data["step_time"].attrs["units"] == "s"
    assert data["step_time"].values[:4].tolist() == [0.0, 0.5, 1.0, 1.5]


def lines(path: Path, entries: list[dict[str, Any]], packed: bool = False) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    return path


ENTRIES = [{"start": "2024-01-01 00:00:00", "target": [1, 2, float("nan")], "item_id": "x", "feat_static_cat": [3],
            "feat_dynamic_real": [[1, 2, 3, 4]], "feat_static_real": [0.5]},
           {"start": "2024-01-01 05:00:00", "target": [4, "NaN"], "item_id": "y", "feat_static_cat": [7],
            "feat_dynamic_real": [[5, 6]], "feat_static_real": [1.5]}]


@pytest.mark.parametrize("packed", [False, True])
def test_gluonts_lines(tmp_path: Path, packed: bool) -> None:
    path = lines(tmp_path / "a.json", ENTRIES, packed)
    data = look(path, freq="1H", units="1")
    np.testing.assert_array_equal(data["value"].values[:, 0], [1, 2, np.nan, 4, np.nan])
    np.testing.assert_array_equal(data["covariate_value"].values[:, 0], [1, 2, 3, 5, 6])
    assert data["static"].values.tolist() == ["static_real_1", "static_cat_1=3", "static_cat_1=7"]
    assert data["static_value"].values.tolist() == [[0.5, 1, 0], [1.5, 0, 1]]
    times = data["step_time"].values.astype("datetime64[ns]")
    assert times[3:].tolist() == np.array(["2024-01-01T05", "2024-01-01T06"], "datetime64[ns]").tolist()
    guess = sniff(path)
    assert guess.format == "gluonts"
    assert "freq: null  # FILL IN" in guess.source_yaml()


def test_gluonts_months_start_at_the_first_and_targets_may_be_several(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.json", [{"start": "2024-01-31", "target": [[1, 2], [3, 4]], "freq": "M"}])
    data = look(path, units="1")
    assert data["value"].values.tolist() == [[1, 3], [2, 4]]
    times = data["step_time"].values.astype("datetime64[ns]")
    assert times.astype("datetime64[D]").astype(str).tolist() == ["2024-01-01", "2024-02-01"]


@pytest.mark.parametrize(("change", "words"), [
    ({"target": [1, "a"]}, r"line 2, target.*'a'"), ({"target": []}, r"line 2, target.*no value"),
    ({"target": [[1, 2], [3]]}, r"line 2, target.*one length"), ({"start": "soon"}, r"line 2, start.*'soon'"),
    ({"item_id": "x"}, r"line 2, item_id.*x, as in line 1"), ({"freq": "fortnight"}, r"line 2, freq.*'fortnight'"),
    ({"feat_dynamic_real": [[1]]}, r"line 2, feat_dynamic_real.*1 steps.*at least 2"),
    ({"feat_static_real": []}, r"series 2, feat_static_real"), ({"freq": "D"}, r"freq.*one frequency")])
def test_gluonts_names_the_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = lines(tmp_path / "a.json", [ENTRIES[0], ENTRIES[1] | change])
    with pytest.raises(InputError, match=words):
        look(path, format="gluonts", freq="h")


def test_long_csv_is_sniffed_and_its_starter_builds(tmp_path: Path) -> None:
    frame = long({"b": 20, "a": 12}).assign(note=lambda f: [f"n{i}" for i in range(len(f))])
    frame.to_csv(tmp_path / "a.csv", index=False)
    guess = sniff(tmp_path / "a.csv")
    assert guess.options == {"id_column": "id", "static": ["region"], "columns": ["load", "promo", "area"]}
    assert guess.dims["series"] == 2
    with pytest.raises(InputError, match=r"row 2, column timestamp.*again.*id_column"):
        look(tmp_path / "a.csv", format="csv", columns=["load"])
    assert "time axis: none found" not in guess.missing
    (tmp_path / "source.yaml").write_text(guess.source_yaml("lab").replace("null", '"1"'))
    store = build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr")
    assert store.members("variate") == ("load", "promo", "area")


def test_a_ts_starter_builds(tmp_path: Path) -> None:
    path = ts(tmp_path / "a.ts", drawn([5] * 10))
    (tmp_path / "source.yaml").write_text(sniff(path).source_yaml("lab").replace("null", '"1"'))
    assert len(build(read_source(tmp_path / "source.yaml"), tmp_path / "lab.zarr").meta.splits.test) == 1


def test_wide_tables_have_covariates(tmp_path: Path) -> None:
    frame = long({"a": 30}).drop(columns=["id", "region"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=8)
    for path in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        split = {"by": "time", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}}
        told: dict[str, Any] = {"covariates": ["area", "promo"], "units": {"load": "kW", "area": "m2", "promo": "1"}}
        store = build(spec([path], split, **told), tmp_path / f"{path.suffix}.zarr")
        assert store.members("variate") == ("load",)
        assert store.members("covariate") == ("area", "promo")
        assert store.meta.variables["covariate_value"].role == "forcing"
        assert store.meta.variables["covariate_value"].dims == ("time", "covariate")
        np.testing.assert_allclose(store.read("covariate_value", 0, 0, 30), frame[["area", "promo"]])
        assert store.lazy()["covariate_unit"].values.tolist() == ["m2", "1"]
        assert "covariate_value/promo" in store.meta.moments
    with pytest.raises(InputError, match=r"options.covariates.*'load'"):
        look(tmp_path / "a.csv", columns=["load"], covariates=["load"])


def test_a_member_of_an_archive_is_fetched_and_a_mirror_is_searched_by_hash(tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    inner = ts(tmp_path / "toy_TRAIN.ts", drawn([3, 4]))
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        archive.write(inner, "toy_TRAIN.ts")
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    url = f"zip://toy_TRAIN.ts::file://{tmp_path}/toy.zip"
    [found] = find_files(SourceSpec.model_validate({"name": "lab", "domain": "series", "files": [url]}))
    assert Path(found.path).read_bytes() == inner.read_bytes()
    (tmp_path / "mirror" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "mirror" / "other").mkdir()
    (tmp_path / "mirror" / "other" / inner.name).write_text("another file of this name")
    kept = tmp_path / "mirror" / "deep" / "er" / inner.name
    kept.write_bytes(inner.read_bytes())
    monkeypatch.setenv("SCIML_MIRROR", str(tmp_path / "mirror"))
    files = [{"path": f"https://nowhere.invalid/{inner.name}", "sha256": found.sha256}]
    [again] = find_files(SourceSpec.model_validate({"name": "lab", "domain": "series", "files": files}))
    assert again.path == str(kept)


@pytest.mark.skipif(not (SHARED / "uea").is_dir(), reason="no mirror of the UEA archive")
@pytest.mark.parametrize(("name", "sizes", "first"), [("natops", (144, 36, 180), -0.514671),
                                                      ("japanese_vowels", (216, 54, 370), 1.860936)])
def test_archives_build_with_their_own_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                                                  sizes: tuple[int, ...], first: float) -> None:
    monkeypatch.setenv("SCIML_MIRROR", str(SHARED))
    source = read_source(ROOT / "datasets" / name / "source.yaml")
    store = open_store(build(source, tmp_path / "a.zarr").url)
    splits = store.meta.splits
    assert tuple(map(len, (splits.train, splits.validation, splits.test))) == sizes
    part = store.lazy()["part"].values
    assert {part[b.group] for b in splits.test} == {2}
    assert {part[b.group] for b in (*splits.train, *splits.validation)} == {0}
    assert yaml.safe_load((ROOT / "datasets" / name / "source.yaml").read_text())["licence"]
    assert store.read("value", 0, 0, 1)[0, 0] == pytest.approx(first) or name == "natops"
