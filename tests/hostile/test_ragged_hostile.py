"""Stores that lie about how many rows their groups have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from sciml.data.schema import Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, open_store, write_store
from sciml.errors import InputError


def edit(store: Store, change: Callable[[dict[str, Any]], Any]) -> None:
    path = Path(store.url) / "zarr.json"
    root = json.loads(path.read_text())
    change(root)
    path.write_text(json.dumps(root))


def set_meta(key: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return lambda root: root["attributes"]["sciml"].update({key: value})


def molecules(atoms: tuple[int, ...] = (3, 0, 2)) -> tuple[xr.Dataset, StoreDraft]:
    data = xr.Dataset({"z": ("atom", np.arange(sum(atoms)) * 1.0), "e": ("frame", np.arange(len(atoms)) * 1.0),
                       "atoms": ("frame", np.array(atoms, np.int64))})
    blocks = [Block(group=g, start=0, stop=1) for g in range(len(atoms))]
    return data, StoreDraft(
        domain="molecules", dataset="toy", group_dim="frame", groups=len(atoms), dt=None, axes={},
        ragged={"atom": "atoms"}, splits=Splits(key="f", train=blocks[:1], validation=blocks[1:2], test=blocks[2:]),
        variables={"z": Variable(role="state", unit="m", dims=("atom",)),
                   "e": Variable(role="label", unit="eV", dims=()),
                   "atoms": Variable(role="rows", unit="1", dims=())}, provenance=Provenance(builder="toy"))


def rewrite(url: str, values: list[int]) -> None:
    zarr.open_array(f"{url}/atoms", mode="r+")[:] = np.array(values)


def test_rows_that_lie_are_refused(tmp_path: Path) -> None:
    store = write_store(*molecules(), tmp_path / "m.zarr")
    for values, message in (([3, 0, 3], "found 6 rows of atom in all; expected 5, its size"),
                            ([6, -1, 0], "found -1 rows of atom in group 1; expected at least 0"),
                            ([1 << 62, 1 << 62, 5], r"found 9\d{18} rows of atom in all; expected 5")):
        rewrite(store.url, values)
        with pytest.raises(InputError, match=rf"\[atoms\]: {message}"):
            open_store(store.url)
    rewrite(store.url, [1, 1, 3])
    assert open_store(store.url).read("z", 2).tolist() == [2.0, 3.0, 4.0]


def renamed(root: dict[str, Any], name: str, **values: Any) -> None:
    root["attributes"]["sciml"]["variables"][name].update(values)


@pytest.mark.parametrize(("change", "message"), [
    (set_meta("ragged", {}), r"\[z, atoms\]: found z: dimensions \('atom',\); atoms: rows of 0 dimensions"),
    (set_meta("ragged", {"atom": "e"}), r"\[atom, atoms\]: found atom: rows by e, which is no variable of role rows"),
    (set_meta("ragged", {"atom": "ghost"}), r"atom: rows by ghost"),
    (set_meta("ragged", {"atom": "atoms", "bond": "atoms"}), r"\[atoms\]: found rows of 2 dimensions"),
    (set_meta("ragged", {"atom": 5}), r"\[ragged.atom\]: found 5"),
    (set_meta("axes", {"atom": {"kind": "set", "unit": "1"}}), r"\[atom\]: found both an axis and ragged"),
    (lambda root: renamed(root, "z", dims=["atom", "atom"]), r"\[z\]: found dimensions \('atom', 'atom'\)"),
    (lambda root: renamed(root, "z", dims=["nothing"]), r"\[z\]: found dimensions \('nothing',\)"),
    (lambda root: renamed(root, "z", dims=[]), r"\[z\]: found \['atom'\]; expected dimensions \('frame',\)"),
    (lambda root: renamed(root, "atoms", role="event"), r"\[atom\]: found rows by atoms"),
    (lambda root: renamed(root, "e", role="rows"), r"\[e\]: found rows of 0 dimensions"),
    (lambda root: root["consolidated_metadata"]["metadata"]["atoms"].update(data_type="float64"),
     r"\[atoms\]: found float64 \[3\]; expected int64"),
    (lambda root: root["consolidated_metadata"]["metadata"]["atoms"].update(shape=[1 << 40]),
     r"\[atoms\]: found 1099511627776 along frame; expected 3"),
    (lambda root: (root["consolidated_metadata"]["metadata"]["atoms"].update(shape=[1 << 40]),
                   root["consolidated_metadata"]["metadata"]["e"].update(shape=[1 << 40]),
                   root["attributes"]["sciml"].update(groups=1 << 40)), r"\[atoms\]: found int64 \[1099511627776\]"),
    (lambda root: root["consolidated_metadata"]["metadata"]["z"].update(shape=[1 << 40]),
     r"\[atoms\]: found 5 rows of atom in all; expected 1099511627776"),
])
def test_a_ragged_store_that_lies_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any],
                                             message: str) -> None:
    store = write_store(*molecules(), tmp_path / "m.zarr")
    edit(store, change)
    with pytest.raises(InputError, match=message):
        open_store(store.url)


def test_rows_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    store = write_store(*molecules(), tmp_path / "m.zarr")
    chunk = next(p for p in (Path(store.url) / "atoms" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"\[atoms\]: found .*expected chunks that can be decoded"):
        open_store(store.url)


def test_rows_that_are_missing_are_refused(tmp_path: Path) -> None:
    store = write_store(*molecules(), tmp_path / "m.zarr")
    next(p for p in (Path(store.url) / "atoms" / "c").rglob("*") if p.is_file()).unlink()
    with pytest.raises(InputError, match=r"\[atoms\]: found 0 rows of atom in all; expected 5"):
        open_store(store.url)
