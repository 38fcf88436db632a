"""Files of series that are damaged, lie about themselves, or are too large."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.readers import read, recognise
from sciml.data.source import SourceSpec
from sciml.errors import InputError

TS = "@problemName t\n@univariate true\n@classLabel true a b\n@data\n1,2,3:a\n4,5,6:b\n"
LINE = {"start": "2024-01-01", "target": [1, 2, 3], "freq": "h"}
LONG = "id,t,y\na,2024-01-01,1\na,2024-01-02,2\nb,2024-01-01,3\nb,2024-01-02,4\n"


def load(path: Path, **options: Any) -> Any:
    source = SourceSpec.model_validate({"name": "lab", "domain": "series", "files": [str(path)], "options": options})
    return read(source, [path]).compute()


def refused(words: str, path: Path, **options: Any) -> None:
    with pytest.raises(InputError, match=words):
        load(path, **options)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(LINE).encode() + b"\n" + b" " * (3 << 20)))
    refused("at most 1048576 bytes", path, format="gluonts", limits={"chunk_bytes": 1 << 20})
    refused("ratio of at most 10", path, format="gluonts", limits={"ratio": 10, "floor_bytes": 1 << 10})
    path.write_bytes(path.read_bytes()[:100])
    refused("whole gzip file", path, format="gluonts")


@pytest.mark.parametrize(("line", "words"), [
    (b"[" * 100_000, "one JSON object"), (b"[1, 2]", "a JSON object"), (b'{"start": 1, "target"', "one JSON object"),
    (b"\xff\xfe\x00", "one JSON object"), (json.dumps(LINE | {"target": [10**400]}).encode(), "line 1, target"),
    (json.dumps(LINE | {"target": {"a": 1}}).encode(), "line 1, target"),
    (json.dumps(LINE | {"target": [[[1]]]}).encode(), "line 1, target"),
    (json.dumps(LINE | {"start": "2261-01-01", "freq": "Y"}).encode(), r"line 1, start.*1678 to 2261"),
    (json.dumps(LINE | {"start": "9999-01-01"}).encode(), "line 1, start"),
    (json.dumps(LINE | {"freq": ["h"]}).encode(), "line 1, freq"),
    (json.dumps(LINE | {"freq": "-5h"}).encode(), "line 1, freq"),
    (b"", "no lines")])
def test_lines_that_are_no_series(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(line + b"\n")
    refused(words, path, format="gluonts")


@pytest.mark.parametrize(("old", "new", "words"), [
    ("@univariate true", "@dimensions 99999999999999", "series 1.*1 dimensions"), ("@data\n", "", "no series"),
    ("1,2,3:a\n4,5,6:b\n", "", "no series"), ("1,2,3", "1,,3", "line 5, dimension 1"),
    ("1,2,3", "1,2,3:4", "line 5, dimension 2"), (":b", ":", r"series 2, label.*''"),
    ("4,5,6", "1e999,0x10,2", "line 6, dimension 1")])
def test_ts_that_contradict_themselves(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "a.ts"
    path.write_text(TS.replace(old, new))
    refused(words, path, format="ts")


@pytest.mark.parametrize("options", [
    {"parts": [["train"]]}, {"parts": "train"}, {"shortest": "x"}, {"select": {"series": 3}},
    {"select": {"series": [0, 9]}}, {"select": {"step": [0, 1]}}, {"variates": 5}, {"classes": {"a": "b"}},
    {"classes": ["one"]}, {"units": [1]}])
def test_options_of_no_sense(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.ts"
    path.write_text(TS)
    refused(r"options\.", path, format="ts", **options)


@pytest.mark.parametrize("options", [
    {"id_column": ["id"]}, {"id_column": "no"}, {"id_column": "id", "label": ["y"]}, {"id_column": "id", "static": "y"},
    {"id_column": "id", "covariates": ["y"]}, {"id_column": "id", "timezone": ["UTC"]},
    {"id_column": "id", "columns": ["t"]}, {"id_column": "t"}])
def test_long_options_of_no_sense(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(LONG)
    refused("expected", path, format="csv", **options)


@settings(max_examples=25, deadline=None)
@given(text=st.one_of(st.binary(max_size=200), st.text(alphabet="@data classLabel\n:,?1.-#{}[]\"start", max_size=120)
                      .map(lambda text: ("@problemName x\n" + text).encode())))
def test_anything_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.ts"
    path.write_bytes(text)
    for attempt in (lambda: load(path, format="ts"), lambda: load(path, format="gluonts"), lambda: recognise(path)):
        with contextlib.suppress(InputError):
            attempt()
