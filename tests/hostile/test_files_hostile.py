"""Files that lie about size, point outside, or carry pickles: each is refused, saying what and where."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

from sciml.data.readers import recognise
from sciml.data.safety import Limits, check_npy, check_npz, open_hdf5
from sciml.data.safety_zarr import check_zarr
from sciml.data.sniff import sniff
from sciml.errors import InputError


def base(path: Path) -> h5py.File:
    """A valid PDEBench file, open for tampering."""
    file = h5py.File(path, "w")
    file["tensor"] = np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)
    file["x-coordinate"], file["t-coordinate"] = np.arange(8) / 8, np.arange(5) * 0.1
    return file


def external_link(file: h5py.File, folder: Path) -> None:
    file["more"] = h5py.ExternalLink(str(folder / "secret.h5"), "/data")


def nested_external_link(file: h5py.File, folder: Path) -> None:
    file["a/b/c"] = np.zeros(3)
    file["a/b/out"] = h5py.ExternalLink("/etc/passwd", "/")
    file["way"] = h5py.SoftLink("/a/b/out/data")


def dangling_soft_link(file: h5py.File, folder: Path) -> None:
    file["more"] = h5py.SoftLink("/not/here")


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "data", (4,))
    file.create_virtual_dataset("more", layout)


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("more", (4,), "f4", external=[(str(folder / "raw.bin"), 0, 16)])


def references(file: h5py.File, folder: Path) -> None:
    file.create_dataset("more", (2,), dtype=h5py.ref_dtype)


def ragged(file: h5py.File, folder: Path) -> None:
    file.create_dataset("more", (2,), dtype=h5py.vlen_dtype(np.float32))


def huge(file: h5py.File, folder: Path) -> None:
    file.create_dataset("more", (1 << 40, 1 << 10), "f4", chunks=(1, 1 << 10))


def ratio(file: h5py.File, folder: Path) -> None:
    file.create_dataset("more", (1 << 20, 1 << 10), "f4", chunks=(1, 1 << 10), compression="gzip")


def huge_chunk(file: h5py.File, folder: Path) -> None:
    file.create_dataset("more", (1 << 29,), "f4", chunks=(1 << 29,))


HDF5 = [(external_link, r"\[/more\]: found external link to .*secret\.h5"),
        (nested_external_link, r"\[/a/b/out\]: found external link to /etc/passwd"),
        (dangling_soft_link, r"\[/more\]: found soft link to /not/here"),
        (virtual, r"\[/more\]: found virtual data set"),
        (external_storage, r"\[/more\]: found external raw storage"), (references, r"\[/more\]: found type object ref"),
        (ragged, r"\[/more\]: found type variable-length float32"), (huge, r"\[/more\]: found an array of shape"),
        (ratio, r"4294967296 bytes declared|bytes declared"), (huge_chunk, r"\[/more\]: found a chunk of shape")]


@pytest.mark.parametrize(("tamper", "words"), HDF5, ids=[t.__name__ for t, _ in HDF5])
def test_hdf5_is_refused(tmp_path: Path, tamper: Callable[[h5py.File, Path], None], words: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["data"] = np.ones(4, dtype=np.float32)
    (tmp_path / "raw.bin").write_bytes(bytes(16))
    base(tmp_path / "good.h5").close()
    open_hdf5(tmp_path / "good.h5").close()
    with base(tmp_path / "bad.h5") as file:
        tamper(file, tmp_path)
    limits = Limits(chunk_bytes=1 << 30)
    for attempt in (lambda: open_hdf5(tmp_path / "bad.h5", limits), lambda: sniff(tmp_path / "bad.h5")):
        with pytest.raises(InputError, match=words) as caught:
            attempt()
        assert "bad.h5" in caught.value.where
        assert caught.value.fix


def test_hdf5_hard_link_cycle_ends(tmp_path: Path) -> None:
    with base(tmp_path / "a.h5") as file:
        file["loop/inner"] = file["/"]
    with open_hdf5(tmp_path / "a.h5") as file:
        assert "tensor" in file


def test_hdf5_too_many_objects(tmp_path: Path) -> None:
    with base(tmp_path / "a.h5") as file:
        for i in range(20):
            file.create_group(f"g{i}")
    with pytest.raises(InputError, match="more than 10 objects"):
        open_hdf5(tmp_path / "a.h5", Limits(objects=10))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_hdf5_truncated(tmp_path: Path, keep: float) -> None:
    base(tmp_path / "a.h5").close()
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match="complete HDF5"):
        sniff(tmp_path / "a.h5")


def test_hdf5_garbage_after_the_signature(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + os.urandom(4096))
    with pytest.raises(InputError, match="complete HDF5"):
        sniff(tmp_path / "a.h5")


def test_netcdf4_goes_through_the_same_guard(tmp_path: Path) -> None:
    field().to_netcdf(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc", "a") as file:
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(InputError, match="external link"):
        sniff(tmp_path / "a.nc")


def test_classic_netcdf_truncated(tmp_path: Path) -> None:
    xr.Dataset({"u": (("time", "x"), np.ones((300, 40), np.float32))}, {"time": np.arange(300.0)}).to_netcdf(
        tmp_path / "a.nc", engine="netcdf4", format="NETCDF3_CLASSIC")
    whole = (tmp_path / "a.nc").read_bytes()
    (tmp_path / "a.nc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        sniff(tmp_path / "a.nc")


def field() -> xr.Dataset:
    return xr.Dataset({"u": (("time", "x"), np.ones((4, 8), np.float32))},
                      {"time": np.arange(4.0), "x": np.arange(8.0)})


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def write_zarr(path: Path, version: int, consolidated: bool = False) -> Path:
    field().to_zarr(path, zarr_format=version, consolidated=consolidated)
    return path


def chunk_of(store: Path, version: int) -> Path:
    return store / "u" / ("0.0" if version == 2 else "c/0/0")


def array_document(store: Path, version: int) -> Path:
    return store / "u" / (".zarray" if version == 2 else "zarr.json")


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_symlinked_chunk(tmp_path: Path, version: int) -> None:
    store = write_zarr(tmp_path / "a.zarr", version)
    assert check_zarr(store).version == version
    (tmp_path / "secret").write_bytes(b"secret")
    chunk = chunk_of(store, version)
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"symbolic link to .*secret"):
        sniff(store)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_symlinked_folder(tmp_path: Path, version: int) -> None:
    store = write_zarr(tmp_path / "a.zarr", version)
    (tmp_path / "outside").mkdir()
    (store / "v").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="symbolic link"):
        sniff(store)


def test_zarr_special_file(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", 3)
    os.mkfifo(store / "u" / "c" / "0" / "1")
    with pytest.raises(InputError, match="special file"):
        sniff(store)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shape", [[1 << 40, 8], [1 << 36, 8], [-1, 8]])
def test_zarr_declared_size(tmp_path: Path, version: int, shape: list[int]) -> None:
    store = write_zarr(tmp_path / "a.zarr", version)
    edit(array_document(store, version), lambda d: d.update(shape=shape))
    with pytest.raises(InputError, match=r"bytes"):
        sniff(store)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_declared_chunk(tmp_path: Path, version: int) -> None:
    store = write_zarr(tmp_path / "a.zarr", version)
    big = [1 << 15, 1 << 15]
    regular = {"name": "regular", "configuration": {"chunk_shape": big}}
    grid = {"chunks": big} if version == 2 else {"chunk_grid": regular}
    edit(array_document(store, version), lambda d: d.update(shape=big, **grid))
    with pytest.raises(InputError, match="a chunk of shape"):
        sniff(store)


@pytest.mark.parametrize("codec", ["pickle", "msgpack2", "json2", "no_such_codec"])
def test_zarr_v2_object_codecs(tmp_path: Path, codec: str) -> None:
    store = write_zarr(tmp_path / "a.zarr", 2)
    edit(array_document(store, 2), lambda d: d.update(dtype="|O", filters=[{"id": codec}]))
    with pytest.raises(InputError, match=r"object type|codec"):
        sniff(store)
    edit(array_document(store, 2), lambda d: d.update(dtype="<f4"))
    with pytest.raises(InputError, match=f"codec '{codec}'"):
        sniff(store)


def test_zarr_v3_codecs_also_inside_shards(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", 3)
    edit(array_document(store, 3), lambda d: d["codecs"].append({"name": "numcodecs.pickle"}))
    with pytest.raises(InputError, match=r"codec 'numcodecs\.pickle'"):
        sniff(store)
    inner = {"name": "sharding_indexed", "configuration": {
        "chunk_shape": [1, 8], "codecs": [{"name": "numcodecs.pickle"}], "index_codecs": [{"name": "bytes"}]}}
    edit(array_document(store, 3), lambda d: d.update(codecs=[inner]))
    with pytest.raises(InputError, match=r"codec 'numcodecs\.pickle'"):
        sniff(store)


def test_zarr_v3_data_type_and_transformers(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", 3)
    edit(array_document(store, 3), lambda d: d.update(storage_transformers=[{"name": "x"}]))
    with pytest.raises(InputError, match="storage transformers"):
        sniff(store)
    edit(array_document(store, 3), lambda d: d.update(storage_transformers=[], data_type="variable_length_bytes"))
    with pytest.raises(InputError, match="data type"):
        sniff(store)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_consolidated_copy_is_checked_too(tmp_path: Path, version: int) -> None:
    store = tmp_path / "a.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        write_zarr(store, version, consolidated=True)
    document, key = (store / ".zmetadata", "u/.zarray") if version == 2 else (store / "zarr.json", "u")

    def metadata(d: dict[str, Any]) -> dict[str, Any]:
        return d["metadata"] if version == 2 else d["consolidated_metadata"]["metadata"]

    edit(document, lambda d: metadata(d)[key].update(shape=[1 << 50, 8]))
    with pytest.raises(InputError, match="an array of shape"):
        sniff(store)
    edit(document, lambda d: metadata(d).update({"../../etc": {"zarr_format": version}}))
    with pytest.raises(InputError, match="inside the store"):
        check_zarr(store, Limits(total_bytes=1 << 60, ratio=1e30))


def test_zarr_broken_metadata(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", 3)
    (store / "u" / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="JSON"):
        sniff(store)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/sciml_was_here",)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_npy_with_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.array([Bomb()], dtype=object)))
    Path("/tmp/sciml_was_here").unlink(missing_ok=True)
    with pytest.raises(InputError, match="a pickle"):
        sniff(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="one of"):
        recognise(tmp_path / "b.npy")
    assert not Path("/tmp/sciml_was_here").exists()


def test_npy_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.zeros((10, 10)))[:-8])
    with pytest.raises(InputError, match="cut short"):
        check_npy(tmp_path / "a.npy")


def test_npz_member_with_a_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", u=np.zeros((4, 4)), bad=np.array([Bomb()], dtype=object))
    with pytest.raises(InputError, match=r"bad\.npy.*pickle"):
        sniff(tmp_path / "a.npz")


def test_npz_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("u.npy", npy(np.zeros(1 << 21)))
    with pytest.raises(InputError, match="bytes declared"):
        check_npz(tmp_path / "a.npz", Limits(ratio=100, floor_bytes=1 << 20))


def test_npz_header_that_contradicts_its_member(tmp_path: Path) -> None:
    data = npy(np.zeros((16, 16)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("u.npy", data.replace(b"(16, 16)", b"(99, 99)"))
    with pytest.raises(InputError, match=r"u\.npy.*cut short"):
        check_npz(tmp_path / "a.npz")


def test_npz_with_foreign_members(tmp_path: Path) -> None:
    for name in ("../u.npy", "run.py"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr(name, npy(np.zeros(3)))
        with pytest.raises(InputError, match="no array"):
            check_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 30])
def test_unknown_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dat").write_bytes(content)
    with pytest.raises(InputError):
        sniff(tmp_path / "a.dat")
