"""Validation: a sound store has no findings, and each thing that is wrong has one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.cli import run
from sciml.data import check, statistics
from sciml.data.check import inspect, validate
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, open_store, write_store
from sciml.errors import InputError

Meta = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {"value": (("series", "time", "variate"), rng.normal(size=(1, 40, 2)).astype("f4")),
         "level": (("series", "time", "depth"), rng.normal(size=(1, 40, 3)).astype("f4"))},
        coords={"time": np.arange(40) * 2.0, "variate": ["a", "b"], "variate_unit": ("variate", ["K", "m/s"]),
                "depth": ("depth", [0.0, 1.0, 4.0])})
    data["value"][0, 3, 1] = np.nan
    draft = StoreDraft(
        domain="series", dataset="toy", group_dim="series", groups=1, dt=2.0,
        variables={"value": Variable(role="state", unit="mixed", dims=("time", "variate")),
                   "level": Variable(role="state", unit="m", dims=("time", "depth"))},
        axes={"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1"),
              "depth": AxisMeta(kind="space", unit="m")},
        splits=Splits(key="time", **{name: (Block(group=0, start=a, stop=b),) for name, a, b in
                                     (("train", 0, 20), ("validation", 20, 30), ("test", 30, 40))}),
        provenance=Provenance(builder="toy"), licence="CC0", citation="us")
    return write_store(data, draft, tmp_path / "toy.zarr")


def altered(store: Store, change: Callable[[Meta], Any]) -> Store:
    path = Path(store.url) / "zarr.json"
    root = json.loads(path.read_text())
    change(root["attributes"]["sciml"])
    path.write_text(json.dumps(root))
    return open_store(path.parent)


def test_a_sound_store_has_no_findings(store: Store) -> None:
    assert validate(store) == []


def block(split: str, **values: int) -> Callable[[Meta], Any]:
    return lambda meta: meta["splits"][split][0].update(values)


@pytest.mark.parametrize(("change", "level", "key", "found"), [
    (block("validation", start=19), "error", "splits.train, splits.validation", "both hold group=0 start=0 stop=20"),
    (block("test", start=5, stop=8), "error", "splits.train, splits.test", "both hold"),
    (block("test", stop=41), "error", "splits.test", "group=0 start=30 stop=41"),
    (block("test", group=1), "error", "splits.test", "group=1"),
    (lambda m: m["splits"].update(test=[]), "warning", "splits.test", "no block"),
    (lambda m: m["splits"].update(train=[]), "error", "splits.train", "no block"),
    (lambda m: m["variables"]["level"].update(unit="bananas"), "error", "level", "unit 'bananas'"),
    (lambda m: m["axes"]["depth"].update(unit="wide"), "error", "depth", "unit 'wide'"),
    (lambda m: m["variables"]["level"].update(unit="mixed"), "error", "level", "unit 'mixed'"),
    (lambda m: m["axes"]["depth"].update(period=4.0), "error", "depth", "0.0 … 4.0"),
    (lambda m: m.update(dt=1.0), "error", "dt", "1.0"),
    (lambda m: m.update(dt=None), "error", "dt", "None"),
    (lambda m: m["moments"].pop("value/b"), "error", "value/b", "no statistics"),
    (lambda m: m["moments"].update(ghost=m["moments"]["level"]), "error", "ghost", "statistics of nothing"),
    (lambda m: m["moments"]["value/b"].update(missing=0), "error", "value/b.missing", "0 recorded"),
    (lambda m: m["moments"]["value/a"].update(mean=0.5), "error", "value/a.mean", "0.5 recorded"),
    (lambda m: m["moments"]["level"].update(std=2.0), "error", "level.std", "2.0 recorded"),
    (lambda m: m["tendency"]["level"]["std"].__setitem__(0, 9.0), "error", "tendency of level", "lead="),
    (lambda m: m["tendency"].pop("level"), "error", "tendency of level", "None"),
    (lambda m: m.update(licence=""), "warning", "licence", "none"),
    (lambda m: m["provenance"].update(builder="file"), "warning", "provenance.files", "none"),
])
def test_each_wrong_statement_is_found(store: Store, change: Callable[[Meta], Any], level: str, key: str,
                                       found: str) -> None:
    findings = validate(altered(store, change))
    told = [f for f in findings if (f.level, f.key) == (level, key) and found in f.found]
    assert len(told) == 1, findings
    assert told[0].expected
    assert told[0].fix


@pytest.mark.parametrize("name", ["level", "value"])
def test_a_damaged_chunk_is_found(store: Store, name: str) -> None:
    chunk = next(p for p in (Path(store.url) / name / "c").rglob("*") if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 3] ^= 0x10
    chunk.write_bytes(data)
    findings = [f for f in validate(open_store(store.url)) if f.key != "domain series"]
    assert [(f.level, f.key, f.expected) for f in findings] == [("error", name, "chunks that can be decoded")]


def test_coordinates_out_of_order_are_found(store: Store) -> None:
    import zarr

    zarr.open_array(f"{store.url}/depth", mode="r+")[:] = [0.0, 4.0, 1.0]
    assert [(f.key, f.found) for f in validate(open_store(store.url))] == [("depth", "1.0 at index 2 after 4.0")]


def test_a_large_store_is_held_against_its_bounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = [{"group": 0, "start": 0, "stop": 10}, {"group": 0, "start": 10, "stop": 20}]
    monkeypatch.setattr(check, "SAMPLE_BYTES", 100)

    def change(meta: Meta) -> None:
        meta["splits"]["train"] = halves
        meta["moments"]["level"].update(mean=0.5)

    whole = altered(store, change)
    assert validate(whole) == []
    seen = whole.meta.moments["level"]
    narrowed = altered(whole, lambda m: m["moments"]["level"].update(maximum=seen.minimum))
    assert [f.key for f in validate(narrowed)] == ["level.maximum"]


def test_unusual_chunks_are_pointed_out(store: Store) -> None:
    store.layout = {**store.layout, "level": ((2, 40, 3), (3, 40, 3)), "value": ((1, 1 << 22, 2), (1, 1 << 24, 2))}
    assert sorted((f.key, f.level, f.expected) for f in validate(store)) == [
        ("level", "error", "shards of whole chunks"), ("level", "warning", "chunks of one group"),
        ("value", "warning", f"at most {16 << 20}"), ("value", "warning", f"at most {64 << 20}")]


def test_inspection_says_what_is_there(store: Store) -> None:
    found = inspect(store)
    json.dumps(found)
    assert [v["variable"] for v in found["variables"]] == ["value", "level"]
    assert found["variables"][0]["missing"] == 1
    assert found["variables"][1]["shape"] == [1, 40, 3]
    assert [a["axis"] for a in found["axes"]] == ["time", "variate", "depth"]
    assert found["axes"][1] == {"axis": "variate", "kind": "set", "unit": "1", "size": 2, "first": "a", "last": "b",
                                "period": None}
    assert found["splits"][2] == {"split": "test", "key": "time", "blocks": 1, "groups": 1, "steps": 10}
    assert found["split_identity"] == store.meta.split_identity()
    assert found["bytes"] == 40 * 5 * 4
    assert found["stored_bytes"] > 0


def test_the_command_fails_on_errors_only(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    altered(store, lambda m: m.update(licence=""))
    assert run(["data", "validate", store.url]) == 0
    shown = capsys.readouterr().out
    assert "warning" in shown
    assert "valid" in shown
    altered(store, lambda m: m.update(dt=1.0))
    assert run(["data", "validate", store.url]) == 1
    assert "errors found" in capsys.readouterr().out
    assert run(["data", "validate", store.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_constant_far_from_zero_has_no_spread() -> None:
    data = xr.Dataset({"u": (("g",), np.full(1000, 1e8 + 0.1))})
    moments, _ = statistics.compute(data, {"u": Variable(role="parameter", unit="1", dims=())}, {},
                                    [Block(group=g, start=0, stop=1) for g in range(1000)])
    assert moments["u"].std <= 1e-7
    with pytest.raises(InputError, match="no finite value"):
        statistics.compute(data * np.nan, {"u": Variable(role="parameter", unit="1", dims=())}, {},
                           [Block(group=0, start=0, stop=1)])
