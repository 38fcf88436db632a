"""Parts of the readers of molecules: comment lines of extended XYZ, formulas, graphs in memory; and the real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.build import build
from sciml.data.elements import SYMBOLS, formula, symbols
from sciml.data.readers._extxyz_header import header_of
from sciml.data.source import read_source
from sciml.data.store import open_store
from sciml.errors import InputError

SHARED = Path("/work/shared/data")
WATER = np.array([[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True), st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9)),
    max_size=6))
def test_headers_keep_every_number(values: dict[str, Any]) -> None:
    values = {k: v for k, v in values.items() if not k.lower().endswith(("unit", "units"))}
    values = {k: v for k, v in values.items() if k not in ("pbc", "Lattice", "Properties") and not k[0].isdigit()}
    line = " ".join(f"{k}={v!r}" if isinstance(v, float) else f'{k}="{" ".join(map(repr, v))}"'
                    for k, v in values.items())
    header = header_of(f"Properties=species:S:1:pos:R:3 {line}", "a.xyz", 0)
    assert {k: v.tolist() for k, v in header.values.items()} == values


def test_headers_of_all_spellings() -> None:
    header = header_of('Properties=Z:I:1:pos:R:3 a=\'1 2\' b=[1, 2, 3] c={4 5} d=_JSON [[1, 2], [3, 4]] flag '
                       'name="x \\" y" stress="1 2 3 2 4 5 3 5 6" pbc="T T F" '
                       'Lattice="1 0 0 0 2 0 0 0 3" energy_unit=eV', "a.xyz", 0)
    assert {k: v.tolist() for k, v in header.values.items() if k != "stress"} == {
        "a": [1, 2], "b": [1, 2, 3], "c": [4, 5], "d": [1, 2, 3, 4]}
    assert header.texts == {"flag": "T", "name": 'x \\" y'}
    assert header.periodic == (1, 1, 0)
    assert header.cell is not None
    assert header.cell.diagonal().tolist() == [1, 2, 3]
    assert header.units == {"energy": "eV"}


def test_formulas() -> None:
    assert len(SYMBOLS) == 118
    assert symbols([1, 26, 118]) == ["H", "Fe", "Og"]
    assert formula(np.array([1, 8, 1])) == "H2O"


def test_torch_geometric_objects() -> None:
    torch = pytest.importorskip("torch")
    geometric = pytest.importorskip("torch_geometric.data", reason="torch-geometric is not installed")
    from sciml.data.readers.torch_geometric import dataset_of

    made = [geometric.Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor(WATER), y=torch.tensor([[1.0, 2.0 + i]]),
                           force=torch.full((3, 3), 0.5), smiles="O", edge_index=torch.zeros(2, 4, dtype=torch.long))
            for i in range(3)]
    data = dataset_of(made, energy="y_1", energy_unit="eV", length_unit="angstrom",
                      labels={"homo": {"key": "y_0", "unit": "eV"}}).compute()
    assert data["energy"].values.tolist() == [2, 3, 4]
    assert data["homo"].values.tolist() == [1, 1, 1]
    np.testing.assert_allclose(data["position"].values[:3], WATER)
    assert (data["forces"].values == 0.5).all()
    with pytest.raises(InputError, match="length_unit"):
        dataset_of(made)
    with pytest.raises(InputError, match=r"torch-geometric data \[frame 0\]: found dict"):
        dataset_of([{"z": 1}])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data of the mirror are not here")
@pytest.mark.parametrize(("name", "files", "groups"), [("acac", ("train_300K.xyz", "test_MD_300K.xyz"), 1150),
                                                       ("ethanol", ("train.xyz", "test_MD.xyz"), 2000)])
def test_real_data(tmp_path: Path, name: str, files: tuple[str, ...], groups: int,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    ase = pytest.importorskip("ase.io", reason="ase (the extra `molecules`) is not installed")
    monkeypatch.setenv("SCIML_MIRROR", str(SHARED))
    root = Path(__file__).parents[2]
    store = build(read_source(root / "datasets" / name / "source.yaml"), tmp_path / "store.zarr")
    assert store.meta.groups == groups
    last = ase.read(SHARED / name / files[1], -1)
    np.testing.assert_array_equal(store.read("position", groups - 1), last.positions)
    np.testing.assert_array_equal(store.read("forces", groups - 1), last.get_forces())
    assert [len(store.meta.splits.of(s)) for s in ("train", "validation")] == [groups // 2 - 50 if name == "ethanol"
                                                                              else 450, 50]
    again = open_store(tmp_path / "store.zarr")
    assert again.meta.provenance.options["level_of_theory"].startswith("PBE")
    assert ("isolated_energy" in again.meta.variables) == (name == "acac")
