"""The Well's layout beside the_well's own writer and reader, and boundaries in every form they are written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.readers import read, recognise
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

N, T, X, Y, Z = 3, 5, 4, 3, 2
SIZES = {"x": X, "y": Y, "z": Z}


def look(path: Path) -> xr.Dataset:
    return read(SourceSpec(name="lab", domain="fields", files=(str(path),)), [path])  # type: ignore[arg-type]


def write(path: Path, boundaries: dict[str, dict[str, Any]] | None = None, **more: Any) -> dict[str, np.ndarray]:
    """A 3-D file by the_well's specification in which every kind of array varies in every way it can."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path, "w") as file:
        file.attrs.update({"dataset_name": "lab", "grid_type": "cartesian", "n_spatial_dims": 3, "n_trajectories": N,
                           "simulation_parameters": ["Re"], "Re": 10.0, **more})
        dims = file.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y", "z"]
        for name, size in {"time": T, **SIZES}.items():
            dims[name] = np.linspace(0, 1, size, dtype=np.float32)
            dims[name].attrs.update({"sample_varying": False, "time_varying": False})
        for order in range(3):
            group = file.create_group(f"t{order}_fields")
            for flags in np.ndindex(2, 2, 2):
                sample, time, flat = map(bool, flags)
                name = f"f{order}{sample:d}{time:d}{flat:d}"
                shape = [N] * sample + [T] * time + [X, 1 if flat else Y, Z] + [3] * order
                arrays[name] = rng.normal(size=shape).astype(np.float32)
                group[name] = arrays[name]
                group[name].attrs.update({"sample_varying": sample, "time_varying": time,
                                          "dim_varying": [True, not flat, True], "symmetric": False,
                                          "antisymmetric": False})
            group.attrs["field_names"] = [name for name in arrays if name[1] == str(order)]
        scalars = file.create_group("scalars")
        for sample, time in ((False, False), (True, False), (False, True), (True, True)):
            name = f"s{sample:d}{time:d}"
            arrays[name] = rng.normal(size=[N] * sample + [T] * time)
            scalars[name] = arrays[name]
            scalars[name].attrs.update({"sample_varying": sample, "time_varying": time})
        scalars.attrs["field_names"] = [f"s{a}{b}" for a in (0, 1) for b in (0, 1)]
        edges = file.create_group("boundary_conditions")
        for name, given in (boundaries or {}).items():
            edge = edges.create_group(name)
            edge.attrs.update({"bc_type": given["kind"], "associated_dims": given["dims"], "associated_fields": [],
                               "sample_varying": False, "time_varying": False})
            if "mask" in given:
                edge["mask"] = given["mask"]
    return arrays


def ends(size: int, *at: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[list(at)] = True
    return mask


def full(values: np.ndarray, name: str) -> np.ndarray:
    """On all trajectories, times and points, by the digits of its name."""
    sample, time = (bool(int(c)) for c in name[2:4])
    kept = values if sample else np.broadcast_to(values, (N, *values.shape))
    shape = (*kept.shape[:1], *([T] if time else []), X, Y, Z, *kept.shape[4 + time:])
    return np.broadcast_to(kept, shape)


def test_everything_that_can_vary_varies(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.hdf5")
    data = look(tmp_path / "a.hdf5")
    for name, values in arrays.items():
        if name[0] == "s":
            continue
        truth, order = full(values, name), int(name[1])
        for parts in np.ndindex(*[3] * order):
            axes = "".join("xyz"[i] for i in parts)
            found = data[f"{name}_{axes}" if axes else name]
            np.testing.assert_array_equal(found.values, truth[(..., *parts)], err_msg=name)
            assert found.attrs["role"] == ("state" if name[3] == "1" else "forcing")
            assert found.attrs.get("along", "") == " ".join(axes)
    np.testing.assert_array_equal(data["s00"].values, np.full(N, arrays["s00"]))
    np.testing.assert_array_equal(data["s10"].values, arrays["s10"])
    np.testing.assert_allclose(data["s01"].values[1, :, 2, 1, 0], arrays["s01"], rtol=1e-6)
    np.testing.assert_allclose(data["s11"].values[:, :, 2, 1, 0], arrays["s11"], rtol=1e-6)
    assert (data["s10"].attrs["role"], data["s11"].attrs["role"]) == ("parameter", "forcing")


BOUNDARIES: dict[str, tuple[dict[str, dict[str, Any]], dict[str, tuple[float, float]], bool]] = {
    "no mask": ({"a": {"kind": "WALL", "dims": ["x"]}}, {"x": (0, 0)}, False),
    "two kinds": ({"a": {"kind": "WALL", "dims": "x", "mask": ends(X, 0)},
                   "b": {"kind": "OPEN", "dims": "x", "mask": ends(X, -1)}}, {"x": (0, 1)}, False),
    "one end named": ({"a": {"kind": "dirichlet", "dims": ["y"], "mask": ends(Y, -1)}}, {"y": (1, 3)}, False),
    "mask per trajectory": ({"a": {"kind": "wall", "dims": ["x"], "mask": np.stack([ends(X, 0, -1)] * N)}},
                            {"x": (0, 0)}, False),
    "mask of a plane": ({"a": {"kind": "wall", "dims": ["x", "y"], "mask": np.repeat(ends(X, 0)[:, None], Y, 1)}},
                        {"x": (0, 1)}, False),
    "inside": ({"a": {"kind": "wall", "dims": ["x", "y"], "mask": ends(X * Y, 5).reshape(X, Y)}}, {}, True),
    "differs": ({"a": {"kind": "wall", "dims": ["x"], "mask": np.stack([ends(X, i) for i in range(N)])}}, {}, True),
    "unknown": ({"a": {"kind": "sponge", "dims": ["x"]}}, {}, True)}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_boundaries(tmp_path: Path, name: str) -> None:
    given, wanted, noted = BOUNDARIES[name]
    write(tmp_path / "a.hdf5", given)
    data = look(tmp_path / "a.hdf5")
    found = {str(key).split("_")[1]: (float(data[key][0]), float(data[str(key).replace("low", "high")][0]))
             for key in data.data_vars if str(key).endswith("_low")}
    assert found == wanted
    assert any("is not read" in note for note in data.attrs["notes"]) == noted


def test_periodic_boundaries_whose_mask_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", {"a": {"kind": "PERIODIC", "dims": "x", "mask": ends(X)}})
    data = look(tmp_path / "a.hdf5")
    np.testing.assert_allclose(data["x"].attrs["period"], X / (X - 1))
    assert not [name for name in data.data_vars if str(name).startswith("boundary")]


@pytest.mark.peer
def test_the_dummy_data_of_the_peer(tmp_path: Path) -> None:
    peer = pytest.importorskip("the_well.utils.dummy_data", reason="the_well is not installed")
    peer.write_dummy_data(str(tmp_path / "dummy.hdf5"))
    guess = recognise(tmp_path / "dummy.hdf5")
    assert guess.format == "the_well"
    text = guess.source_yaml("dummy").replace("unit: null", 'unit: "1"')
    (tmp_path / "source.yaml").write_text(text, encoding="utf-8")
    store = build(read_source(tmp_path / "source.yaml"), tmp_path / "dummy.zarr")
    assert [finding for finding in validate(store) if finding.level == "error"] == []
    with h5py.File(tmp_path / "dummy.hdf5") as file:
        np.testing.assert_array_equal(store.dataset()["field_y"].values, file["t1_fields/field"][..., 1])
        np.testing.assert_array_equal(store.dataset()["constant_field"].values, file["t0_fields/constant_field"][()])
    assert store.meta.variables["field_x"].vector == "field"


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_as_the_peer_reads_it(tmp_path: Path) -> None:
    peer = pytest.importorskip("the_well.data", reason="the_well is not installed")
    (tmp_path / "data/train").mkdir(parents=True)
    path = tmp_path / "data/train/a.hdf5"
    write(path, {"x": {"kind": "PERIODIC", "dims": ["x"], "mask": ends(X, 0, -1)},
                 "y": {"kind": "WALL", "dims": ["y"], "mask": ends(Y, 0)},
                 "z": {"kind": "WALL", "dims": ["z"], "mask": ends(Z, 0, -1)}})
    theirs = peer.WellDataset(path=str(tmp_path), well_split_name="train", n_steps_input=1, n_steps_output=T - 1)
    ours = look(path)
    for trajectory in range(N):
        sample = theirs[trajectory]
        shown = np.concatenate([sample["input_fields"], sample["output_fields"]])
        names = [name for order in range(3) for name in theirs.metadata.field_names[order]]
        for i, name in enumerate(names):
            np.testing.assert_array_equal(ours[name].values[trajectory], shown[..., i], err_msg=name)
        still = [name for order in range(3) for name in theirs.metadata.constant_field_names[order]]
        for i, name in enumerate(still):
            np.testing.assert_array_equal(ours[name].values[trajectory], sample["constant_fields"][..., i])
    codes = np.array(sample["boundary_conditions"])
    assert codes[0].tolist() == [2, 2]
    assert "period" in ours["x"].attrs
    for row, axis in enumerate("yz", 1):
        assert codes[row].tolist() == [float(ours[f"boundary_{axis}_{side}"][0]) for side in ("low", "high")]


def test_a_number_of_axes_that_the_arrays_do_not_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", n_spatial_dims=2)
    with pytest.raises(InputError, match=r"a\.hdf5 \[n_spatial_dims\]: found 2; expected 3, as /t"):
        recognise(tmp_path / "a.hdf5")
