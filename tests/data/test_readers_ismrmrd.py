"""Raw scans in ISMRMRD: images, coils, averages, geometry and refusals of files that are written here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data import bricks
from sciml.data.build import build
from sciml.data.readers import read, recognise
from sciml.data.readers._ismrmrd_header import elements
from sciml.data.readers._kspace import resized
from sciml.data.source import SourceSpec
from sciml.data.store import open_store
from sciml.errors import InputError

h5py = pytest.importorskip("h5py")
NX, NY, COILS, SLICES = 16, 10, 3, 3
SIZE = (8, 10)
"""Readout and phase encoding reconstructed: readouts are twice oversampled."""
READ, PHASE, SLICE = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
"""Units in LPS."""
COUNTERS = [*((name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast",
                                         "phase", "repetition", "set", "segment")), ("user", "<u2", (8,))]
HEAD = np.dtype([
    ("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
    ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2"),
    ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,)), ("discard_pre", "<u2"),
    ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"), ("trajectory_dimensions", "<u2"),
    ("sample_time_us", "<f4"), *((name, "<f4", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir",
                                                                  "patient_table_position")),
    ("idx", COUNTERS), ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,))])


def header(nz: int = 1, limits: str = "", trajectory: str = "cartesian", recon: tuple[int, int] = SIZE,
           mm: tuple[float, float] = (16.0, 20.0)) -> str:
    """Voxels of 2 mm, slices of 3 mm; in readout the field of view is encoded twice as wide."""
    def space(name: str, matrix: tuple[int, int], mm: tuple[float, float]) -> str:
        return (f"<{name}><matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>{nz}</z></matrixSize><fieldOfView_mm>"
                f"<x>{mm[0]}</x><y>{mm[1]}</y><z>{3.0 * nz}</z></fieldOfView_mm></{name}>")
    return ('<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
            f"{space('encodedSpace', (NX, NY), (32.0, 20.0))}{space('reconSpace', recon, mm)}"
            f"<encodingLimits>{limits}</encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>")


def phantom(layers: int = SLICES, seed: int = 0) -> np.ndarray:
    """Complex ``(slice, readout, phase encoding)`` of the encoded size."""
    rng = np.random.default_rng(seed)
    z, x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in (layers, NX, NY)), indexing="ij")
    return (1.5 + np.cos(2 * x + z) * np.cos(y - z)) * np.exp(1j * (rng.normal() + 0.5 * x * y))


def coils() -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, NX), np.linspace(-1, 1, NY), indexing="ij")
    return np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 4 + 0.3j * a) for a, b in ((-1, -1), (1, 1), (1, -1))])


def frequencies(images: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(images, axes), axes=axes, norm="ortho"), axes)


def line(values: np.ndarray, *, flags: int = 0, position: Any = (0.0, 0.0, 0.0), **counters: int) -> dict[str, Any]:
    """values: complex ``(coil, sample)``."""
    head = np.zeros((), HEAD)
    head["flags"], head["number_of_samples"], head["active_channels"] = flags, values.shape[1], values.shape[0]
    head["center_sample"], head["position"] = values.shape[1] // 2, position
    head["read_dir"], head["phase_dir"], head["slice_dir"] = READ, PHASE, SLICE
    for name, value in counters.items():
        head["idx"][name] = value
    return {"head": head, "data": values.astype(np.complex64)}


def scan(images: np.ndarray, weights: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Lines of slices, interleaved as scanners do, 3 mm apart around (1, 2, 3) mm in LPS; a line of noise first."""
    maps = coils() if weights is None else weights
    kspace = frequencies(images[:, None] * maps, (-2, -1))
    made = [line(np.ones((len(maps), NX)), flags=1 << 18)]
    for row in range(NY):
        made += [line(kspace[s, :, :, row], kspace_encode_step_1=row, slice=s,
                      position=np.array([1.0, 2, 3]) + 3.0 * s * SLICE) for s in range(len(images))]
    return made


def write(path: Path, lines: list[dict[str, Any]], text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    floats = h5py.special_dtype(vlen=np.dtype("float32"))
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[header() if text is None else text],
                             dtype=h5py.special_dtype(vlen=bytes))
        data = group.create_dataset("data", (len(lines),), np.dtype([("head", HEAD), ("traj", floats),
                                                                     ("data", floats)]), maxshape=(None,), chunks=True)
        for i, each in enumerate(lines):
            record = np.zeros((1,), data.dtype)
            record["head"][0], record["traj"][0] = each["head"], np.zeros(0, np.float32)
            record["data"][0] = np.ascontiguousarray(each["data"]).view(np.float32).ravel()
            data[i] = record[0]
    return path


def spec(path: Path, **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "volumes", "files": [str(path)],
                                      "options": {"format": "ismrmrd", **options}})


def look(path: Path, **options: Any) -> xr.Dataset:
    return read(spec(path, **options), [str(path)])


def volume(data: xr.Dataset, name: str) -> np.ndarray:
    return bricks.unpack(data[name].values, data["size"].values[0].astype(int), int(data.brick.values[0]))


def middle(images: np.ndarray) -> np.ndarray:
    return images[..., 4:12, :]


def test_one_coil_gives_the_image_that_was_scanned(tmp_path: Path) -> None:
    """Both parts to float32: readouts without their oversampling, noise left out."""
    data = look(write(tmp_path / "a.h5", scan(phantom(), np.ones((1, 1, 1)))), parts="complex")
    found = volume(data, "mri") + 1j * volume(data, "mri_imaginary")
    assert np.allclose(found, middle(phantom()), atol=1e-6)
    assert data["mri"].attrs["role"] == "state"


def test_coils_become_the_root_of_their_sum_of_squares(tmp_path: Path) -> None:
    data = look(write(tmp_path / "a.h5", scan(phantom())))
    wanted = np.abs(phantom()) * np.sqrt((np.abs(coils()) ** 2).sum(0))
    assert np.allclose(volume(data, "mri"), middle(wanted), atol=1e-5)
    assert "mri_imaginary" not in data


def test_the_affine_says_where_voxels_are(tmp_path: Path) -> None:
    """The middle voxel (n // 2) of each slice lies where its lines say, in RAS; axes are slice, readout, phase."""
    affine = look(write(tmp_path / "a.h5", scan(phantom())))["affine"].values[0]
    flip = np.array([-1.0, -1.0, 1.0])
    assert np.allclose(affine[:3, :3], (np.stack([3 * SLICE, 2 * READ, 2 * PHASE], 1).T * flip).T, atol=1e-6)
    for s in range(SLICES):
        assert np.allclose((affine @ [s, 4, 5, 1])[:3], flip * (np.array([1, 2, 3]) + 3.0 * s * SLICE), atol=1e-5)


def test_slices_are_in_the_order_of_their_places(tmp_path: Path) -> None:
    """Not of their numbers: the last one may lie lowest."""
    lines = scan(phantom(), np.ones((1, 1, 1)))
    for each in lines[1:]:
        each["head"]["position"] = np.array([1.0, 2, 3]) - 3.0 * int(each["head"]["idx"]["slice"]) * SLICE
    data = look(write(tmp_path / "a.h5", lines), parts="complex")
    assert np.allclose(volume(data, "mri"), middle(phantom()).real[::-1], atol=1e-6)
    assert data["affine"].values[0][2, 0] == pytest.approx(3.0)


def test_a_slab_is_transformed_along_its_partitions(tmp_path: Path) -> None:
    images = phantom(6)
    kspace = frequencies(images, (0, 1, 2))
    lines = [line(kspace[None, z, :, y], kspace_encode_step_1=y, kspace_encode_step_2=z, position=(5.0, 0, 0))
             for z in range(6) for y in range(NY)]
    data = look(write(tmp_path / "a.h5", lines, header(nz=6)), parts="complex")
    assert np.allclose(volume(data, "mri") + 1j * volume(data, "mri_imaginary"), middle(images), atol=1e-6)
    affine = data["affine"].values[0]
    assert np.allclose((affine @ [3, 4, 5, 1])[:3], [-5.0, 0, 0], atol=1e-5)
    assert np.linalg.norm(affine[:3, 0]) == pytest.approx(3.0)


def test_averages_are_averaged(tmp_path: Path) -> None:
    """Two scans whose errors cancel; one line was measured once."""
    lines = scan(phantom(), np.ones((1, 1, 1)))[1:]
    rng = np.random.default_rng(0)
    again = []
    for i, each in enumerate(lines[:-1]):
        error = rng.standard_normal(each["data"].shape)
        head = each["head"].copy()
        head["idx"]["average"] = 1
        again.append({"head": head, "data": (each["data"] + error).astype(np.complex64)})
        lines[i] = {**each, "data": (each["data"] - error).astype(np.complex64)}
    data = look(write(tmp_path / "a.h5", lines + again))
    assert np.allclose(volume(data, "mri"), np.abs(middle(phantom())), atol=1e-5)


def test_fewer_lines_than_cells_are_interpolated_by_zeros(tmp_path: Path) -> None:
    """All lines between the limits were measured, about the middle: the scan is full, at less resolution."""
    limits = ("<kspace_encoding_step_1><minimum>0</minimum><maximum>5</maximum><center>3</center>"
              "</kspace_encoding_step_1>")
    kept = [each for each in scan(phantom(), np.ones((1, 1, 1)))
            if 2 <= each["head"]["idx"]["kspace_encode_step_1"] < 8]
    for each in kept:
        each["head"]["idx"]["kspace_encode_step_1"] -= 2
    found = volume(look(write(tmp_path / "a.h5", kept, header(limits=limits)), parts="complex"), "mri")
    kspace = frequencies(phantom(), (-2, -1))
    kspace[..., [0, 1, 8, 9]] = 0
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho"), (-2, -1))
    assert np.allclose(found, middle(image).real, atol=1e-6)


def test_undersampled_scans_are_refused_unless_asked_for(tmp_path: Path) -> None:
    lines = [each for each in scan(phantom()) if each["head"]["idx"]["kspace_encode_step_1"] % 2 == 0]
    path = write(tmp_path / "a.h5", lines)
    with pytest.raises(InputError, match=r"50\.0% of k-space.*zero_filled"):
        look(path)
    data = look(path, undersampled="zero_filled")
    assert "zero-filled, 50% of k-space was measured" in " ".join(data.attrs["notes"])
    kspace = frequencies(phantom()[:, None] * coils(), (-2, -1))
    kspace[..., 1::2] = 0
    folded = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho"), (-2, -1))
    assert np.allclose(volume(data, "mri"), middle(np.sqrt((np.abs(folded) ** 2).sum(1))), atol=1e-5)


def test_the_reconstructed_space_may_be_finer(tmp_path: Path) -> None:
    """Twice as many voxels in the same field of view: between the values that were there."""
    text = header(recon=(16, 20))
    data = look(write(tmp_path / "a.h5", scan(phantom(), np.ones((1, 1, 1))), text), parts="complex")
    found = volume(data, "mri") + 1j * volume(data, "mri_imaginary")
    assert found.shape == (3, 16, 20)
    assert np.allclose(found[:, ::2, ::2], middle(phantom()), atol=1e-5)
    assert np.allclose(np.linalg.norm(data["affine"].values[0][:3, :3], axis=0), [3, 1, 1], atol=1e-6)
    affine = data["affine"].values[0]
    assert np.allclose((affine @ [0, 8, 10, 1])[:3], [-1, -2, 3], atol=1e-5)


def test_scans_without_directions_need_an_orientation(tmp_path: Path) -> None:
    lines = scan(phantom())
    for each in lines:
        for name in ("read_dir", "phase_dir", "slice_dir", "position"):
            each["head"][name] = 0
    path = write(tmp_path / "a.h5", lines)
    guess = recognise(str(path))
    assert (guess.format, guess.options["orientation"]) == ("ismrmrd", None)
    assert "orientation" in " ".join(guess.missing)
    affine = look(path, orientation="SPR")["affine"].values[0]
    assert np.allclose(affine[:3, :3], [[0, 0, 2], [0, -2, 0], [3, 0, 0]])
    with pytest.raises(InputError, match="orientation"):
        look(path)


def test_a_folder_becomes_a_store(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / "raw" / f"scan{number}.h5", scan(phantom(seed=number)))
    found = recognise(str(tmp_path / "raw"))
    assert (found.format, found.domain, found.missing) == ("ismrmrd", "volumes", ())
    made = spec(tmp_path / "raw").model_dump() | {"split": {"by": "fold", "folds": 5, "test": 0, "validation": 1}}
    build(SourceSpec.model_validate(made), tmp_path / "store.zarr")
    store = open_store(tmp_path / "store.zarr")
    assert list(bricks.subjects(store)) == [f"scan{i}" for i in range(5)]
    assert bricks.read(store, "mri", 2, (0, 0, 0), (1, 8, 10)).shape == (1, 8, 10)


def changed(what: Mapping[str, Any], each: dict[str, Any]) -> dict[str, Any]:
    head = each["head"].copy()
    for name, value in what.items():
        head[name] = value
    return {**each, "head": head}


@pytest.mark.parametrize(("change", "text", "key"), [
    ({}, header(trajectory="spiral"), "trajectory"), ({}, header().replace("cartesian", ""), "trajectory"),
    ({"flags": 1 << 21}, None, "flags"), ({"flags": 1 << 52}, None, "flags"), ({"flags": 1 << 18}, None, "data"),
    ({"center_sample": 12}, None, "center_sample"), ({"read_dir": (2, 0, 0)}, None, "slice_dir, read_dir, phase_dir"),
    ({"read_dir": PHASE}, None, "affine"), ({}, "<a", "ismrmrd_header"), ({}, "<a/>", "trajectory"),
    ({}, header(mm=(40.0, 20.0)), "reconSpace"), ({}, header().replace("<x>8</x>", "<x>-8</x>"),
                                                 "ismrmrd_header: reconSpace"),
    ({}, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "ismrmrd_header")])
def test_what_is_no_plain_grid_is_refused(change: dict[str, Any], text: str | None, key: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [changed(change, each) for each in scan(phantom())], text)
    with pytest.raises(InputError) as error:
        look(path)
    assert error.value.key == key
    assert error.value.fix


@pytest.mark.parametrize(("number", "change", "key"), [
    (4, {"position": (9, 9, 9)}, "position"), (4, {"active_channels": 2}, "active_channels"),
    (4, {"encoding_space_ref": 1}, "encoding_space_ref")])
def test_lines_that_contradict_others_are_refused(number: int, change: dict[str, Any], key: str,
                                                  tmp_path: Path) -> None:
    lines = scan(phantom())
    lines[number] = changed(change, lines[number])
    with pytest.raises(InputError) as error:
        look(write(tmp_path / "a.h5", lines))
    assert error.value.key == key


def test_several_images_in_a_file_are_chosen_from(tmp_path: Path) -> None:
    lines = scan(phantom(), np.ones((1, 1, 1)))
    for each in scan(phantom(seed=1), np.ones((1, 1, 1))):
        each["head"]["idx"]["repetition"] = 1
        lines.append(each)
    path = write(tmp_path / "a.h5", lines)
    with pytest.raises(InputError, match=r"options: \{only: \{repetition: 0\}\}"):
        look(path)
    found = volume(look(path, only={"repetition": 1}, parts="complex"), "mri")
    assert np.allclose(found, middle(phantom(seed=1)).real, atol=1e-6)


def test_missing_slices_and_short_lines_are_refused(tmp_path: Path) -> None:
    lines = scan(phantom(4))
    without = [each for each in lines if int(each["head"]["idx"]["slice"]) != 1]
    with pytest.raises(InputError, match=r"slices \[6\.0, 3\.0\] mm apart"):
        look(write(tmp_path / "gap.h5", without))
    lines[5]["data"] = lines[5]["data"][:, :-1]
    with pytest.raises(InputError, match="90 numbers"):
        volume(look(write(tmp_path / "short.h5", lines)), "mri")
    lines[5]["data"] = np.full((COILS, NX), np.nan, np.complex64)
    with pytest.raises(InputError, match="not finite"):
        volume(look(write(tmp_path / "nan.h5", lines)), "mri")


def test_limits_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", scan(phantom()))
    with pytest.raises(InputError, match=r"a chunk of shape .* at most 1000 bytes"):
        look(path, limits={"chunk_bytes": 1000})
    with pytest.raises(InputError, match=r"k-space of a slice or slab .* at most 20000"):
        look(write(tmp_path / "b.h5", scan(phantom(), np.ones((40, 1, 1)))), limits={"chunk_bytes": 20_000})


def test_headers_are_plain(tmp_path: Path) -> None:
    assert elements("<a><b>x</b><encoding/><encoding><c>2</c></encoding></a>", "a") == {"b": "x", "encoding1/c": "2"}
    with pytest.raises(InputError, match="deep"):
        elements("<a>" * 40 + "</a>" * 40, "a")
    with pytest.raises(InputError, match="more than 256 letters"):
        elements(f"<a><{'b' * 257}/></a>", "a")
    with pytest.raises(InputError, match="document type"):
        elements('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "a")
    with pytest.raises(InputError, match="MiB"):
        elements(b" " * (17 << 20), "a")


@pytest.mark.parametrize(("n", "count"), [(6, 6), (6, 9), (7, 4), (8, 5), (5, 10)])
def test_resizing_keeps_frequency_zero_in_the_middle(n: int, count: int) -> None:
    kspace = np.zeros(n, complex)
    kspace[n // 2] = np.sqrt(n)
    assert np.allclose(resized(kspace, 0, count)[count // 2], np.sqrt(count))
    assert np.count_nonzero(resized(kspace, 0, count)) == 1


def test_files_of_the_package_ismrmrd_are_read(tmp_path: Path) -> None:
    """Written by the format's own library, with a trajectory that says nothing."""
    ismrmrd = pytest.importorskip("ismrmrd", reason="pip install ismrmrd")
    path = tmp_path / "peer.h5"
    with ismrmrd.Dataset(str(path), "dataset") as file:
        file.write_xml_header(header().encode())
        for each in scan(phantom()):
            head = each["head"]
            acquisition = ismrmrd.Acquisition.from_array(each["data"])
            for name in ("position", "read_dir", "phase_dir", "slice_dir"):
                getattr(acquisition, name)[:] = [float(v) for v in head[name]]
            acquisition.center_sample = int(head["center_sample"])
            acquisition.idx.kspace_encode_step_1 = int(head["idx"]["kspace_encode_step_1"])
            acquisition.idx.slice = int(head["idx"]["slice"])
            if head["flags"]:
                acquisition.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
            file.append_acquisition(acquisition)
    ours = look(write(tmp_path / "ours.h5", scan(phantom())))
    theirs = look(path)
    assert np.array_equal(volume(ours, "mri"), volume(theirs, "mri"))
    assert np.array_equal(ours["affine"].values, theirs["affine"].values)
