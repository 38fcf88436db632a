"""Checks of stores of molecules: a sound one has no finding, and each thing that can be wrong has its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.build import build
from sciml.data.builders.molecular_dynamics import build as simulate
from sciml.data.check import Finding, validate
from sciml.data.checks.molecules import OVERLAP, Part, check, completed, overlaps, references
from sciml.data.source import SourceSpec
from sciml.data.store import Store

OPTIONS = {"molecules": ["ethanol", "water"], "level_of_theory": "morse", "frames": 6, "every": 2,
           "equilibrate_fs": 10.0}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Twelve configurations of two molecules, in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIML_CACHE", str(tmp_path_factory.mktemp("cache")))
        return simulate(OPTIONS)


def stored(data: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("sciml.data.build._load", lambda source, files: data)
    source = SourceSpec.model_validate({"name": "lab", "domain": "molecules", "builder": "made", "licence": "CC0",
                                        "citation": "us", "missing": "mask", "split": {"by": "group", "seed": None}})
    return build(source, path / "store.zarr")


def change(data: xr.Dataset, name: str, at: Any, value: Any) -> xr.Dataset:
    copy = data.copy(deep=True)
    copy[name].values[at] = value
    return copy


def crystal(data: xr.Dataset, cell: Any = None, periodic: Any = (1, 1, 1), stress: float = 0.0) -> xr.Dataset:
    """All configurations in a cell."""
    groups = data.sizes["configuration"]
    cells = np.tile(np.eye(3) * 20.0 if cell is None else np.asarray(cell, float), (groups, 1, 1))
    made = data.assign(
        cell=(("configuration", "lattice", "xyz"), cells, {"units": "angstrom", "role": "parameter"}),
        periodic=(("configuration", "lattice"), np.tile(np.array(periodic, np.int8), (groups, 1)),
                  {"units": "1", "role": "parameter"}),
        stress=(("configuration", "voigt"), np.full((groups, 6), stress), {"units": "eV/angstrom^3", "role": "label"}))
    return made.assign_coords(lattice=("lattice", ["a", "b", "c"], {"kind": "set"}),
                              voigt=("voigt", ["xx", "yy", "zz", "yz", "xz", "xy"], {"kind": "set"}))


def test_a_sound_store_has_no_findings(sound: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert validate(stored(sound, tmp_path / "a", monkeypatch)) == []
    assert list(check(stored(crystal(sound), tmp_path / "b", monkeypatch))) == []


def wrapped(data: xr.Dataset) -> xr.Dataset:
    """The first hydrogen of ethanol on the first carbon of the next cell."""
    place = data["position"].values[0] + [20, 0, 0.1]
    return crystal(change(data, "position", 4, place))


def unlisted(data: xr.Dataset) -> xr.Dataset:
    return data.isel(element=slice(0, 2))


def strange(data: xr.Dataset) -> xr.Dataset:
    """Oxygen in the last configuration alone."""
    copy, before = data.copy(deep=True), int(data["atom_count"].values[:-1].sum())
    number = copy["number"].values
    number[:before][number[:before] == 8] = 6
    return copy


WRONG: list[tuple[Callable[[xr.Dataset], xr.Dataset], str, str, str]] = [
    (lambda d: change(d, "number", 3, 0), "error", "number", "1, first configuration 0, atom 3: 0"),
    (lambda d: change(d, "number", 9, 119), "error", "number", "first configuration 1, atom 0: 119"),
    (unlisted, "error", "element", "first configuration 0, atom 2: O"),
    (lambda d: change(d, "position", (10, 1), np.nan), "error", "position", "first configuration 1, atom 1"),
    (lambda d: change(d, "position", 1, d["position"].values[0] + 0.1), "error", "position",
     "configuration 0, atom 0 and configuration 0, atom 1"),
    (wrapped, "error", "position", "configuration 0, atom 0 and configuration 0, atom 4"),
    (lambda d: crystal(d, np.diag([0.2, 20, 20])), "error", "position",
     "configuration 0, atom 0 and configuration 0, atom 0"),
    (lambda d: crystal(d, [[20, 0, 0], [0, 20, 0], [20, 20, 0]]), "error", "cell", "12, first configuration 0"),
    (lambda d: crystal(d, -20 * np.eye(3)), "warning", "cell", "12, first configuration 0"),
    (lambda d: crystal(d, periodic=(1, 1, 0), stress=0.1), "error", "stress", "12, first configuration 0"),
    (lambda d: change(d, "forces", (0, 0), np.nan), "warning", "forces", "configuration 0: 1 of 9 atoms without"),
    (lambda d: change(d, "forces", (0, 0), 50.0), "warning", "forces", "configuration 0: 49.5 eV/Å"),
    (lambda d: change(d, "energy", 4, d["energy"].values[4] / 27.2), "warning", "energy", "worst configuration 4"),
    (lambda d: change(d, "isolated_energy", (3, 1), -5.0), "error", "isolated_energy", "different values"),
    (lambda d: d.assign(isolated_energy=d["isolated_energy"] / 27.2).assign(
        isolated_energy=lambda x: x["isolated_energy"].assign_attrs(d["isolated_energy"].attrs)), "warning",
     "isolated_energy", "eV per atom from those of atoms"),
    (lambda d: change(d, "molecule", 1, 0), "warning", "molecule", "of one molecule have different elements"),
    (lambda d: change(change(d, "position", slice(-3, None), d["position"].values[9:12]), "energy", 11,
                      d["energy"].values[1]), "error", "splits.train, splits.test",
     "1 equal configurations, first 1 and 11"),
    (strange, "warning", "splits.test", "O, which no training configuration has"),
    (lambda d: d.drop_dims("element"), "error", "domain molecules", "no element"),
    (lambda d: d.rename(position="place"), "error", "domain molecules", "no position"),
]


@pytest.mark.parametrize(("mistake", "level", "key", "words"), WRONG)
def test_what_is_wrong_is_found(sound: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                mistake: Callable[[xr.Dataset], xr.Dataset], level: str, key: str, words: str) -> None:
    found = list(check(stored(mistake(sound), tmp_path, monkeypatch)))
    hits = [f for f in found if (f.level, f.key) == (level, key) and words in f.found]
    assert len(hits) == 1, found
    assert isinstance(hits[0], Finding)
    assert hits[0].expected
    assert hits[0].fix


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.tuples(*[st.booleans()] * 3))
def test_overlaps_are_those_of_all_images(seed: int, flags: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 1.2 + 0.3 * rng.normal(size=(3, 3))
    if np.linalg.svd(cell)[1].min() < 0.6:
        return
    position = rng.uniform(-0.75, 0.75, size=(9, 3))
    periodic = np.array([flags, (False,) * 3])
    part = Part(0, np.array([6, 3]), np.ones(9), position, None, np.array([cell, np.zeros((3, 3))]), periodic)
    expected = set()
    shifts = np.array([s for s in product(range(-5, 6), repeat=3) if all(f or not i for f, i in zip(flags, s))])
    for a, b in [*combinations_with_replacement(range(6), 2), (6, 7), (6, 8), (7, 8)]:
        images = shifts[shifts.any(1)] if a == b else shifts if b < 6 else np.zeros((1, 3))
        if (np.linalg.norm(position[b] + images @ cell - position[a], axis=-1) < OVERLAP).any():
            expected.add((a, b))
    assert {tuple(pair) for pair in overlaps(part).tolist()} == expected


def test_completed_cells_are_not_singular() -> None:
    cell = np.array([[[3.0, 0, 0], [1, 3, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 5]]])
    full = completed(cell, np.array([[True, True, False], [False, False, True]]))
    np.testing.assert_allclose(np.abs(np.linalg.det(full)), [9, 5])


def test_references_are_not_drawn_by_wrong_energies() -> None:
    rng = np.random.default_rng(0)
    composition = rng.integers(0, 9, size=(200, 3)).astype(float)
    composition[:, 0] += 1
    truth = np.array([-13.6, -1030.0, -2043.0])
    energy = composition @ truth + 0.1 * rng.normal(size=200)
    energy[:20] /= 27.2
    np.testing.assert_allclose(references(composition, energy), truth, atol=0.2)
