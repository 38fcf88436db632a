"""What sniff says: dimensions, units, what is missing, what is suspicious, from a bounded part of a file."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml

from sciml.data.readers import read, recognise
from sciml.data.readers._lattice import H5Array
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec
from sciml.errors import InputError


def write(path: Path, tensor: np.ndarray, x: np.ndarray | None = None, t: np.ndarray | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file["tensor"] = tensor
        file["x-coordinate"] = np.arange(tensor.shape[2]) / tensor.shape[2] if x is None else x
        file["t-coordinate"] = np.arange(tensor.shape[1]) * 0.1 if t is None else t
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_table_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    guess = sniff(write(tmp_path / "a.h5", noise(3, 5, 8)))
    assert guess.dims == {"trajectory": 3, "time": 5, "x": 8}
    assert (guess.format, guess.domain, guess.group_dim) == ("pdebench", "fields", "trajectory")
    told = json.loads(json.dumps(guess.json()))
    assert told["dims"] == guess.dims
    assert told["variables"][0]["dtype"] == "float32"
    rows = guess.table()
    assert ("format", "pdebench", "domain fields, one group per trajectory") in rows
    assert any(what == "variable" and name == "tensor" and "trajectory 3 × time 5 × x 8" in text
               for what, name, text in rows)
    assert guess.axes["time"].step == pytest.approx(0.1)
    text = guess.source_yaml("My Lab!")
    spec = SourceSpec.model_validate(yaml.safe_load(text))
    assert spec.name == "my_lab"
    assert spec.variables["tensor"].role == "state"
    assert spec.variables["tensor"].unit is None
    assert "FILL IN" in text
    np.testing.assert_array_equal(read(spec, [spec.files[0].path])["tensor"].values, noise(3, 5, 8))


def findings(path: Path) -> str:
    return "\n".join(sniff(path).suspicious)


def test_values_that_are_not_finite_or_never_change(tmp_path: Path) -> None:
    tensor = noise(3, 5, 8)
    tensor[0, 1, 2], tensor[1, 1, 1] = np.nan, -np.inf
    text = findings(write(tmp_path / "a.h5", tensor))
    assert "tensor: 1 NaN in all values" in text
    assert "tensor: 1 Inf in all values" in text
    assert "tensor is constant in the part examined (2)" in findings(write(tmp_path / "b.h5", np.full((3, 5, 8), 2.0)))
    assert findings(write(tmp_path / "c.h5", noise(3, 5, 8))) == ""


@pytest.mark.parametrize(("x", "words"), [
    (np.arange(8)[::-1], "axis x is reversed"), (np.array([0, 1, 2, 2, 4, 5, 6, 7]), "not monotonic: 2.0 at index 3"),
    (np.array([0, 1, 2, 3, 4, 5, 6, 9.0]), "not uniform: step 3 before index 7"),
    (np.array([0, 1, 2, np.nan, 4, 5, 6, 7]), "1 coordinates are not finite")])
def test_coordinates_that_are_off(tmp_path: Path, x: np.ndarray, words: str) -> None:
    assert words in findings(write(tmp_path / "a.h5", noise(3, 5, 8), x=x))


def test_float32_rounding_of_coordinates_is_not_suspicious(tmp_path: Path) -> None:
    t = (1000 + np.arange(5) * 0.01).astype(np.float32)
    assert findings(write(tmp_path / "a.h5", noise(3, 5, 8), t=t)) == ""


def test_only_a_bounded_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, taken = write(tmp_path / "a.h5", noise(64, 64, 256)), []
    original = H5Array.__getitem__

    def counting(self: H5Array, index: object) -> np.ndarray:
        values = original(self, index)
        taken.append(values.nbytes)
        return values

    monkeypatch.setattr(H5Array, "__getitem__", counting)
    sniff(path, limit_bytes=1 << 16)
    assert 0 < sum(taken) <= 1 << 16
    taken.clear()
    sniff(path, limit_bytes=1 << 30)
    assert sum(taken) == 4 * 64 * 64 * 256


def test_a_file_of_two_formats_asks_which(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", noise(3, 5, 8))
    with h5py.File(path, "a") as file:
        file["t0_fields/u"] = noise(3, 5, 8)
    with pytest.raises(InputError, match="both pdebench and the_well"):
        recognise(path)


def test_units_of_netcdf_are_read_and_kept(tmp_path: Path) -> None:
    data = xr.Dataset({"u": (("time", "x"), noise(4, 6), {"units": "m s-1"})},
                      {"time": ("time", np.arange(4.0), {"units": "s"}), "x": ("x", np.arange(6.0), {"units": "m"})})
    data.to_netcdf(tmp_path / "a.nc")
    guess = sniff(tmp_path / "a.nc")
    assert guess.variables[0].unit == "m s-1"
    assert (guess.axes["time"].unit, guess.axes["x"].unit) == ("s", "m")
    assert guess.missing == ("periodicity of axis x: give its period if it wraps around, else options.boundaries",)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing there"):
        sniff(tmp_path / "absent.h5")
    with pytest.raises(InputError, match=r"protocol|known"):
        sniff("nowhere://a.h5")


def test_a_starter_is_named_after_its_file(tmp_path: Path) -> None:
    """Two sessions whose starters are left as they are become two data sets."""
    from click.testing import CliRunner

    from sciml.cli import cli

    for name in ("Session 1.csv", "session-2.csv"):
        (tmp_path / name).write_text("time,a\n" + "".join(f"2020-01-{d:02},{d}.5\n" for d in range(1, 20)))
        out = tmp_path / f"{name}.yaml"
        result = CliRunner().invoke(cli, ["data", "sniff", str(tmp_path / name), "-o", str(out)])
        assert result.exit_code == 0, result.output
    assert "name: session_1\n" in (tmp_path / "Session 1.csv.yaml").read_text()
    assert "name: session_2\n" in (tmp_path / "session-2.csv.yaml").read_text()


def test_a_folder_of_files_says_what_to_look_at(tmp_path: Path) -> None:
    for name in ("b.vtu", "a.vtu"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"2 files and 0 folders, .* a\.vtu; .*sniff .*/a\.vtu; .*: \[.*/\*\.vtu\]"):
        sniff(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"a folder of 0 files and 0 folders; .*name what is inside"):
        sniff(tmp_path / "none")


def test_the_next_command_edits_a_starter_with_gaps_first(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sciml.cli import cli

    def following(out: Path, *words: object) -> str:
        shown = CliRunner().invoke(cli, ["data", "sniff", *map(str, words), "-o", str(out)])
        return shown.output.splitlines()[-1]

    out = tmp_path / "gaps.yaml"
    line = following(out, write(tmp_path / "a.h5", noise(3, 5, 8)))
    marked = [number for number, text in enumerate(out.read_text().splitlines(), 1) if "null" in text]
    assert line == f"next: fill in {out}, lines {', '.join(map(str, marked))}; then sciml data build {out} STORE"
    whole = xr.Dataset({"u": (("time", "x"), noise(4, 6), {"units": "m s-1"})},
                       {"time": ("time", np.arange(4.0), {"units": "s"}),
                        "x": ("x", np.arange(6.0), {"units": "degrees_north"})})
    whole.to_netcdf(tmp_path / "a.nc")
    out = tmp_path / "whole.yaml"
    assert following(out, tmp_path / "a.nc") == f"next: sciml data build {out} STORE"
