"""Meshes written by pyvista, h5py and by hand: lattices, points that groups share, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from sciml.data.build import build
from sciml.data.check import validate
from sciml.data.readers import read
from sciml.data.sniff import sniff
from sciml.data.source import SourceSpec
from sciml.errors import InputError

pv: Any = pytest.importorskip("pyvista", reason="pyvista is not installed (pip install 'sciml[meshes]')")


def spec(*paths: Path, **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "fields", "files": list(map(str, paths)),
                                      "options": options, "split": {"by": "group", "counts": {
                                          "train": 1, "validation": 0, "test": 0}}, "licence": "CC0", "citation": "us"})


def look(*paths: Path, **options: Any) -> xr.Dataset:
    return read(spec(*paths, **options), paths).load(scheduler="synchronous")


def sheet(seed: int = 0, *, shift: float = 0.0) -> Any:
    """Two triangles and a square in the plane z = 0, with a scalar, a vector in the plane and a value per cell."""
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]], float)
    points[:, 0] += shift
    cells = np.hstack([[3, 0, 1, 2], [3, 0, 2, 3], [4, 1, 4, 5, 2]])
    mesh = pv.UnstructuredGrid(cells, [pv.CellType.TRIANGLE, pv.CellType.TRIANGLE, pv.CellType.QUAD], points)
    rng = np.random.default_rng(seed)
    flow = rng.normal(size=(6, 3))
    flow[:, 2] = 0
    mesh.point_data["u"], mesh.point_data["flow"], mesh.cell_data["k"] = rng.normal(size=6), flow, rng.random(3)
    return mesh


def box(seed: int = 0) -> Any:
    grid = pv.ImageData(dimensions=(4, 3, 1), spacing=(0.5, 2.0, 1.0), origin=(1.0, 0.0, 0.0))
    rng = np.random.default_rng(seed)
    grid.point_data["p"], grid.point_data["v"] = rng.normal(size=12), rng.normal(size=(12, 3))
    grid.cell_data["c"] = np.arange(6.0)
    return grid


def test_image_data_are_a_lattice(tmp_path: Path) -> None:
    grid = box()
    grid.save(tmp_path / "a.vti")
    data = look(tmp_path / "a.vti")
    assert data["p"].dims == ("trajectory", "x", "y")
    np.testing.assert_array_equal(data["p"].values[0], np.asarray(grid["p"]).reshape(3, 4).T)
    np.testing.assert_allclose(data["x"].values, [1.0, 1.5, 2.0, 2.5])
    assert (data["v_y"].attrs["vector"], data["v_y"].attrs["along"]) == ("v", "y")
    assert "vector" not in data["v_z"].attrs
    cells = look(tmp_path / "a.vti", at="cells")
    np.testing.assert_array_equal(cells["c"].values[0], np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_allclose(cells["y"].values, [1.0, 3.0])
    assert sniff(tmp_path / "a.vti").format == "mesh"


def test_rectilinear_grids_keep_their_spacing(tmp_path: Path) -> None:
    grid = pv.RectilinearGrid(np.array([0, 1, 3.0]), np.array([0, 2.0]), np.array([0, 0.5, 2.0, 4.0]))
    grid["u"] = np.random.default_rng(0).normal(size=24).astype(np.float32)
    grid.save(tmp_path / "a.vtr")
    data = look(tmp_path / "a.vtr")
    assert data["u"].dims == ("trajectory", "x", "y", "z")
    np.testing.assert_array_equal(data["u"].values[0], np.asarray(grid["u"]).reshape(4, 2, 3).T)
    np.testing.assert_array_equal(data["z"].values, [0, 0.5, 2.0, 4.0])
    assert data["u"].dtype == np.float32


@pytest.mark.parametrize("ending", ["vtu", "vtk", "vtp"])
def test_points_with_their_places(tmp_path: Path, ending: str) -> None:
    mesh = sheet() if ending != "vtp" else sheet().extract_surface(algorithm="dataset_surface")
    mesh.save(tmp_path / f"a.{ending}")
    data = look(tmp_path / f"a.{ending}", length_unit="m")
    assert data["u"].dims == ("trajectory", "point")
    order = [int(np.flatnonzero((np.asarray(mesh.points)[:, :2] == place).all(1))[0]) for place in
             np.stack([data["point_x"].values, data["point_y"].values], -1)]
    np.testing.assert_allclose(data["u"].values[0], np.asarray(mesh["u"])[order])
    assert set(data.data_vars) == {"u", "flow_x", "flow_y"}
    assert "point_z" not in data.coords
    np.testing.assert_allclose(data["cell_measure"].values.sum(), 2.0)
    assert data["cell_measure"].attrs["units"] == "m2"
    cells = look(tmp_path / f"a.{ending}", at="cells", length_unit="m")
    np.testing.assert_allclose(np.sort(cells["cell_measure"].values), [0.5, 0.5, 1.0])
    with pytest.raises(InputError, match=r"options\.length_unit"):
        look(tmp_path / f"a.{ending}")


def test_files_that_are_times_or_trajectories(tmp_path: Path) -> None:
    paths = [tmp_path / f"a_{i}.vtu" for i in (0, 2, 10)]
    for i, path in enumerate(paths):
        mesh = sheet(i)
        mesh.field_data["TimeValue"] = np.array([0.25 * i])
        mesh.save(path)
    assert any("options: {stack: time}" in note for note in sniff(paths[0]).notes)
    data = look(paths[2], paths[0], paths[1], stack="time", length_unit="m")
    np.testing.assert_allclose(data["time"].values, [0, 0.25, 0.5])
    np.testing.assert_allclose(data["u"].values[0], [sheet(i)["u"] for i in range(3)])
    groups = look(*paths, stack="trajectory", length_unit="m")
    assert groups["u"].dims == ("trajectory", "point")
    np.testing.assert_allclose(groups["u"].values, [sheet(i)["u"] for i in range(3)])
    with pytest.raises(InputError, match=r"options\.stack.*3 files.*time or trajectory"):
        look(*paths, length_unit="m")


def series(folder: Path, seed: int = 0, *, shift: float = 0.0, moving: bool = False) -> Path:
    folder.mkdir()
    for i in range(3):
        sheet(seed + i, shift=shift + moving * i).save(folder / f"t{i}.vtu")
    entries = "".join(f'<DataSet timestep="{0.1 * i}" group="" part="0" file="t{i}.vtu"/>' for i in range(3))
    path = folder / f"{folder.name}.pvd"
    path.write_text(f'<?xml version="1.0"?><VTKFile type="Collection" version="0.1"><Collection>{entries}</Collection>'
                    "</VTKFile>", encoding="utf-8")
    return path


def test_collections_are_trajectories_of_a_store(tmp_path: Path) -> None:
    runs = [series(tmp_path / f"run{i}", 10 * i) for i in range(2)]
    listed = {name: {"unit": "1", "role": "state"} for name in ("u", "flow_x", "flow_y")}
    source = SourceSpec.model_validate({**spec(*runs, length_unit="m").model_dump(), "variables": listed,
                                        "axes": {"time": {"unit": "s"}}})
    store = build(source, tmp_path / "lab.zarr")
    built = store.dataset()
    assert built["u"].dims == ("trajectory", "time", "point")
    np.testing.assert_allclose(built["u"].values[1], [sheet(10 + i)["u"] for i in range(3)])
    np.testing.assert_allclose(built["point_x"].values, np.asarray(sheet().points)[:, 0])
    assert built["point_x"].attrs["units"] == "m"
    assert store.meta.axes["point"].kind == "set"
    assert store.meta.dt == pytest.approx(0.1)
    assert [finding for finding in validate(store) if finding.level == "error"] == []


def test_meshes_that_differ_or_move_are_refused(tmp_path: Path) -> None:
    one, other = series(tmp_path / "one"), series(tmp_path / "other", shift=1.0)
    with pytest.raises(InputError, match=r"other/other\.pvd \[points\].*6 points at other places.*all groups share"):
        look(one, other, length_unit="m")
    with pytest.raises(InputError, match=r"t[12]\.vtu \[points\].*other places.*first frame.*interpolate to one mesh"):
        look(series(tmp_path / "moving", moving=True), length_unit="m")


def test_xdmf_with_times(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 3, 4))
    with h5py.File(tmp_path / "r.h5", "w") as file:
        for i in range(3):
            file[f"u{i}"] = values[i]
    grids = "".join(
        f'<Grid Name="g" GridType="Uniform"><Time Value="{0.5 * i}"/><Topology TopologyType="2DCoRectMesh" '
        'Dimensions="3 4"/><Geometry GeometryType="ORIGIN_DXDY"><DataItem Dimensions="2" Format="XML">0 0</DataItem>'
        '<DataItem Dimensions="2" Format="XML">1 0.5</DataItem></Geometry><Attribute Name="u" AttributeType="Scalar" '
        'Center="Node"><DataItem Dimensions="3 4" Format="HDF" NumberType="Float" Precision="8">'
        f"r.h5:/u{i}</DataItem></Attribute></Grid>" for i in range(3))
    path = tmp_path / "r.xdmf"
    text = ('<?xml version="1.0"?><Xdmf Version="2.0"><Domain><Grid Name="T" GridType="Collection" CollectionType='
            f'"Temporal">{grids}</Grid></Domain></Xdmf>')
    path.write_text(text, encoding="utf-8")
    data = look(path)
    np.testing.assert_allclose(data["time"].values, [0, 0.5, 1.0])
    sizes = [data.sizes[dim] for dim in data["u"].dims]
    assert sorted(sizes) == [1, 3, 3, 4]
    flipped = values if sizes[-1] == 4 else values.swapaxes(1, 2)
    np.testing.assert_array_equal(data["u"].values[0], flipped)
    path.write_text(text.replace("r.h5:/u1", "../r.h5:/u1"), encoding="utf-8")
    with pytest.raises(InputError, match=r"\[\.\./r\.h5\].*outside its folder"):
        look(path)


def foam(case: Path) -> Path:
    """A channel of two cubic cells and three times, in ASCII as OpenFOAM writes it."""
    def write(where: str, kind: str, text: str) -> None:
        path = case / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'FoamFile {{ version 2.0; format ascii; class {kind}; location "{path.parent.name}"; object '
                        f"{path.name}; }}\n{text}\n", encoding="utf-8")

    corners = [(i, j, k) for k in (0, 1) for j in (0, 1) for i in (0, 1, 2)]
    at = {corner: i for i, corner in enumerate(corners)}
    faces = [[(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)], [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
             [(2, 0, 0), (2, 1, 0), (2, 1, 1), (2, 0, 1)]]
    owner = [0, 0, 1]
    for i in (0, 1):
        faces += [[(i, 0, 0), (i + 1, 0, 0), (i + 1, 0, 1), (i, 0, 1)], [(i, 1, 0), (i, 1, 1), (i + 1, 1, 1),
                                                                         (i + 1, 1, 0)],
                  [(i, 0, 0), (i, 1, 0), (i + 1, 1, 0), (i + 1, 0, 0)], [(i, 0, 1), (i + 1, 0, 1), (i + 1, 1, 1),
                                                                         (i, 1, 1)]]
        owner += [i] * 4
    mesh = "constant/polyMesh/"

    def listed(items: list[str]) -> str:
        return f"{len(items)}\n(\n" + "\n".join(items) + "\n)"

    write(f"{mesh}points", "vectorField", listed([f"({a} {b} {c})" for a, b, c in corners]))
    write(f"{mesh}faces", "faceList", listed([f"4({' '.join(str(at[p]) for p in face)})" for face in faces]))
    write(f"{mesh}owner", "labelList", listed([str(i) for i in owner]))
    write(f"{mesh}neighbour", "labelList", listed(["1"]))
    write(f"{mesh}boundary", "polyBoundaryMesh", listed(
        [f"walls {{ type wall; nFaces {len(faces) - 1}; startFace 1; }}"]))
    write("system/controlDict", "dictionary", "startTime 0; endTime 2; deltaT 1; writeInterval 1; writeFormat ascii;")
    for time in (0, 1, 2):
        write(f"{time}/p", "volScalarField", f"dimensions [0 2 -2 0 0 0 0];\ninternalField nonuniform List<scalar> "
              f"2({time} {time + 10});\nboundaryField {{ walls {{ type zeroGradient; }} }}")
        write(f"{time}/U", "volVectorField", f"dimensions [0 1 -1 0 0 0 0];\ninternalField nonuniform List<vector> "
              f"2(({time} 1 0) ({time} 2 5));\nboundaryField {{ walls {{ type noSlip; }} }}")
    return case


def test_openfoam_cases(tmp_path: Path) -> None:
    case = foam(tmp_path / "case")
    guess = sniff(case)
    assert guess.format == "mesh"
    data = look(case)
    assert data["p"].dims == ("trajectory", "time", "point")
    np.testing.assert_array_equal(data["p"].values[0], [[0, 10], [1, 11], [2, 12]])
    np.testing.assert_array_equal(data["U_x"].values[0], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_allclose(data["point_x"].values, [0.5, 1.5])
    np.testing.assert_allclose(data["cell_measure"].values, [1, 1])
    assert (data["p"].attrs["units"], data["U_x"].attrs["units"]) == ("m2 s-2", "m s-1")
    assert data["time"].attrs["units"] == "s"
    (case / "case.foam").touch()
    np.testing.assert_array_equal(look(case / "case.foam")["U_z"].values[0, 1], [0, 5])
    (case / "0/p").unlink()
    (case / "0/p").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match=r"\[p\].*a link to /etc/passwd"):
        look(case)


def _entity(text: bytes) -> bytes:
    return text.replace(b"<VTKFile", b'<!DOCTYPE a [<!ENTITY b "c">]><VTKFile', 1)


def _huge(text: bytes) -> bytes:
    return text.replace(b'NumberOfPoints="6"', b'NumberOfPoints="90000000000"', 1)


def _parallel(text: bytes) -> bytes:
    return text.replace(b'type="UnstructuredGrid"', b'type="PUnstructuredGrid"', 1)


def _cut(text: bytes) -> bytes:
    return text[: len(text) // 2]


@pytest.mark.parametrize(("tamper", "words"), [
    (_entity, "document type or entity"), (_huge, "90000000000|360000000000 bytes"),
    (_parallel, r"type PUnstructuredGrid.*merge the pieces"), (_cut, "a mesh that VTK can read")])
def test_hostile_files_are_refused(tmp_path: Path, tamper: Any, words: str) -> None:
    sheet().save(tmp_path / "a.vtu")
    (tmp_path / "a.vtu").write_bytes(tamper((tmp_path / "a.vtu").read_bytes()))
    with pytest.raises(InputError, match=words):
        look(tmp_path / "a.vtu", format="mesh", length_unit="m")


@pytest.mark.parametrize(("entry", "words"), [
    ('timestep="0" file="/etc/passwd"', "outside its folder"), ('timestep="0" file="../a.vtu"', "outside its folder"),
    ('timestep="0" file="none.vtu"', "no such file"), ('timestep="soon" file="t0.vtu"', "'soon'"),
    ('timestep="0.2" file="t0.vtu"', r"4 entries at 3 times")])
def test_collections_that_point_elsewhere(tmp_path: Path, entry: str, words: str) -> None:
    path = series(tmp_path / "run")
    path.write_text(path.read_text(encoding="utf-8").replace("<Collection>", f"<Collection><DataSet {entry}/>"),
                    encoding="utf-8")
    with pytest.raises(InputError, match=words):
        look(path, format="mesh", length_unit="m")
