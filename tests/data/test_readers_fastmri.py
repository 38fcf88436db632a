"""fastMRI's k-space: images, coils, spacing and orientation of files that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data import bricks
from sciml.data.build import build
from sciml.data.readers import read, recognise
from sciml.data.readers._kspace import combined
from sciml.data.source import SourceSpec
from sciml.data.store import open_store
from sciml.errors import InputError

h5py = pytest.importorskip("h5py")
SIZE, SHAPE = (6, 8), (12, 10)
"""Rows and columns reconstructed, and encoded: readouts are oversampled."""


def header(recon: tuple[int, int] = SIZE, encoded: tuple[int, int] = SHAPE) -> str:
    def space(name: str, matrix: tuple[int, int], mm: tuple[float, float]) -> str:
        return (f"<{name}><matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>1</z></matrixSize><fieldOfView_mm>"
                f"<x>{mm[0]}</x><y>{mm[1]}</y><z>4.5</z></fieldOfView_mm></{name}>")
    return (f"<ismrmrdHeader><encoding>{space('encodedSpace', encoded, (24.0, 15.0))}"
            f"{space('reconSpace', recon, (12.0, 12.0))}</encoding></ismrmrdHeader>")


def image(seed: int = 0, slices: int = 3) -> np.ndarray:
    """Complex ``(slice, row, column)`` of the encoded size, smooth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return np.stack([(1.5 + np.cos(2 * rows + i) * np.cos(columns)) * np.exp(1j * (rng.normal() + rows * columns))
                     for i in range(slices)])


def kspace_of(images: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes), axes=axes, norm="ortho"), axes)


def write(path: Path, kspace: np.ndarray, text: str | None = None, **more: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["ismrmrd_header"] = header() if text is None else text
        for name, array in more.items():
            file[name] = array
    return path


def spec(path: Path, **options: Any) -> SourceSpec:
    return SourceSpec.model_validate({"name": "lab", "domain": "volumes", "files": [str(path)],
                                      "options": {"format": "fastmri", "orientation": "SPR", **options}})


def look(path: Path, **options: Any) -> xr.Dataset:
    return read(spec(path, **options), [str(path)])


def volume(data: xr.Dataset, name: str) -> np.ndarray:
    return bricks.unpack(data[name].values, data["size"].values[0].astype(int), int(data.brick.values[0]))


def middle(images: np.ndarray) -> np.ndarray:
    return images[..., 3:9, 1:9]


def test_a_single_coil_gives_the_image_that_was_scanned(tmp_path: Path) -> None:
    """Both parts to float32, cut to the reconstructed middle; k-space is what the transform of them gives again."""
    path = write(tmp_path / "knee.h5", kspace_of(image()))
    data = look(path, parts="complex")
    found = volume(data, "mri") + 1j * volume(data, "mri_imaginary")
    assert np.allclose(found, middle(image()), atol=1e-6)
    assert data["mri"].attrs["role"] == "state"
    magnitude = look(path)
    assert np.allclose(volume(magnitude, "mri"), np.abs(middle(image())), atol=1e-6)
    assert "mri_imaginary" not in magnitude


def test_spacing_and_orientation(tmp_path: Path) -> None:
    """mm of the encoded field of view over what was sampled; axes as the options say."""
    affine = look(write(tmp_path / "knee.h5", kspace_of(image())))["affine"].values[0]
    assert np.allclose(affine[:3, :3], [[0, 0, 1.5], [0, -2.0, 0], [4.5, 0, 0]])


def test_coils_become_the_root_of_their_sum_of_squares(tmp_path: Path) -> None:
    """The magnitude is that of all coils together; the phase differs from the scanned one by what is smooth."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    maps = np.stack([np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 4 + 0.3j * a) for a, b in
                     ((-1, -1), (1, 1), (1, -1))])
    path = write(tmp_path / "brain.h5", kspace_of(maps * image()[:, None]))
    data = look(path, parts="complex")
    found = volume(data, "mri") + 1j * volume(data, "mri_imaginary")
    assert np.allclose(np.abs(found), middle(np.abs(image()) * np.sqrt((np.abs(maps) ** 2).sum(0))), atol=1e-5)
    one = combined(kspace_of(image()[0]), SIZE)
    assert np.allclose(one, middle(image()[0]), atol=1e-6)


def test_a_folder_becomes_a_store(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / "raw" / f"file{number}.h5", kspace_of(image(number, slices=2)))
    made = spec(tmp_path / "raw", parts="complex").model_dump() | {
        "split": {"by": "fold", "folds": 5, "test": 0, "validation": 1}}
    build(SourceSpec.model_validate(made), tmp_path / "store.zarr")
    store = open_store(tmp_path / "store.zarr")
    assert list(bricks.subjects(store)) == [f"file{i}" for i in range(5)]
    box = bricks.read(store, "mri", 2, (1, 0, 0), (2, 6, 8))
    assert np.allclose(box, middle(image(2, slices=2)).real[1:], atol=1e-6)


def test_files_are_recognised(tmp_path: Path) -> None:
    found = recognise(str(write(tmp_path / "knee.h5", kspace_of(image()))))
    assert found is not None
    assert (found.format, found.domain) == ("fastmri", "volumes")
    assert "orientation" in " ".join(found.missing)


@pytest.mark.parametrize(("change", "key"), [
    ({"mask": np.ones(10, np.uint8)}, "mask"), ({"text": header(encoded=(14, 10))}, "kspace"),
    ({"text": header(recon=(6, 99))}, "kspace"), ({"text": "<ismrmrdHeader/>"}, "ismrmrd_header: reconSpace"),
    ({"text": header().replace("<x>6</x>", "<x>0</x>")}, "ismrmrd_header: reconSpace")])
def test_what_cannot_be_read_is_refused(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        look(write(tmp_path / "knee.h5", kspace_of(image()), **change))
    assert error.value.key == key


def test_orientation_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        look(write(tmp_path / "knee.h5", kspace_of(image())), orientation=None)
    assert error.value.key == "options.orientation"
