"""Writing a store so that it is either there, whole, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from sciml.data import ragged, statistics
from sciml.data.chunks import zarr_store
from sciml.data.guard import local_path
from sciml.data.layout import chunks_and_shards
from sciml.data.schema import AxisMeta, Provenance, Splits, StoreMeta, Variable, array_dims, evolves, paced
from sciml.errors import InputError
from sciml.recipe import Section

if TYPE_CHECKING:
    import xarray as xr

Progress = Callable[[int, int], None]
Accept = Callable[["xr.Dataset"], Sequence[str]]
"""Sees what was written before it becomes a store; raises, or returns notes for `StoreMeta.notes`."""


class StoreDraft(Section):
    """All of `StoreMeta` but the statistics, which are computed from what is written."""

    domain: str
    dataset: str = Field(pattern=r"^[a-z0-9_]+$")
    group_dim: str
    groups: int
    variables: dict[str, Variable]
    axes: dict[str, AxisMeta]
    ragged: dict[str, str] = Field(default_factory=dict)
    dt: float | None
    splits: Splits
    provenance: Provenance
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()


def write_group(dataset: xr.Dataset, draft: StoreDraft, path: str, *, overwrite: bool, progress: Progress | None,
                accept: Accept | None) -> None:
    """See `sciml.data.store.write_store`. On anything but a local disk an existing store is never overwritten."""
    check_fits(dataset, draft, path)
    local = local_path(path)
    with _remote(path) if local is None else _beside(Path(local), overwrite) as target, _disk_full(path):
        _write_arrays(dataset, draft, target, progress)
        _finish(draft, target, accept)


def may_write(path: str, overwrite: bool) -> None:
    """Raises `InputError` if something is at `path` that must not, or can't, be replaced."""
    local = local_path(path)
    if local is not None:
        if os.path.lexists(local):
            _may_replace(Path(local), overwrite)
        return
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(path)
    if filesystem.exists(f"{root.rstrip('/')}/zarr.json"):
        raise InputError(path, found="it exists", expected="a new URL", fix="choose another, or remove it first")


def check_fits(dataset: xr.Dataset, draft: StoreDraft, where: object) -> None:
    """Raises `InputError` if the dataset's variables, dimensions, coordinates or numbers of rows are not the ones of
    the draft."""
    ragged.check_described(draft.variables, draft.axes, draft.ragged, where)
    for name, variable in draft.variables.items():
        dims = array_dims(variable, draft.group_dim, draft.ragged)
        if name not in dataset.data_vars or dataset[name].dims != dims:
            found = dataset[name].dims if name in dataset.data_vars else "no such variable"
            raise InputError(where, key=name, found=found, expected=f"dimensions {dims}",
                             fix="transpose or rename them")
        if dataset[name].dtype.kind not in "fiub":
            raise InputError(where, key=name, found=f"values of type {dataset[name].dtype}", expected="numbers",
                             fix="leave it out or encode it as numbers")
        if variable.role == "rows" and dataset[name].dtype != np.int64:
            raise InputError(where, key=name, found=f"values of type {dataset[name].dtype}", expected="int64",
                             fix="convert them")
    for axis in draft.axes:
        if axis not in dataset.coords:
            raise InputError(where, key=axis, found="no coordinate", expected="one value per index",
                             fix=f"give the coordinate {axis}")
    if dataset.sizes.get(draft.group_dim) != draft.groups:
        raise InputError(where, key=draft.group_dim, found=dataset.sizes.get(draft.group_dim), fix="correct groups",
                         expected=f"{draft.groups} groups")
    if any(block.group >= draft.groups for name in ("train", "validation", "test") for block in draft.splits.of(name)):
        raise InputError(where, key="splits", found="a block outside the groups", expected=f"group < {draft.groups}",
                         fix="correct the split")
    ragged.offsets_of(dataset, draft.ragged, where)


def _write_arrays(dataset: xr.Dataset, draft: StoreDraft, target: str, progress: Progress | None) -> None:
    from zarr.codecs import ZstdCodec

    keep = {str(n): c for n, c in dataset.coords.items() if set(c.dims) <= {draft.group_dim, *draft.axes}}
    lean = dataset[list(draft.variables)].reset_coords(drop=True).assign_coords(
        {name: _plain(coord) for name, coord in keep.items()})
    lean.attrs = _json(dataset.attrs)
    encoding: dict[str, dict[str, Any]] = {}
    counted = {name: dim for dim, name in draft.ragged.items()}
    for name, variable in draft.variables.items():
        array = lean[name]
        timed = evolves(variable, draft.axes)
        chunks, shards = chunks_and_shards(array.shape, array.dtype.itemsize, time=timed)
        array = array.chunk(dict(zip(array.dims, shards, strict=True)))
        array.encoding = {}
        array.attrs = _json(array.attrs) | {"role": variable.role, "units": variable.unit}
        if variable.long_name:
            array.attrs["long_name"] = variable.long_name
        if variable.vector:
            array.attrs |= {"vector": variable.vector, "along": " ".join(variable.along)}
        if name in counted:
            array.attrs["sample_dimension"] = counted[name]
        lean[name] = array
        encoding[name] = {"chunks": chunks, "shards": shards, "compressors": [ZstdCodec(level=1, checksum=True)]}
    for name, axis in draft.axes.items():
        if not np.issubdtype(lean[name].dtype, np.datetime64) and lean[name].dtype.kind != "T":
            lean[name].attrs["units"] = axis.unit
        if axis.period is not None:
            lean[name].attrs["period"] = axis.period
    delayed = lean.to_zarr(zarr_store(target, read_only=False), mode="w", zarr_format=3, consolidated=False,
                           encoding=encoding, compute=False)
    with _reporting(progress):
        delayed.compute(scheduler="threads")


def _plain(coord: xr.DataArray) -> xr.Variable:
    """In memory, without the encoding of the file it came from, strings as variable-length ones."""
    loaded = coord.variable.to_base_variable().load().copy()
    loaded.encoding = {}
    loaded.attrs = {k: v for k, v in _json(loaded.attrs).items() if k not in ("role", "calendar")}
    if loaded.dtype.kind in "UOST":
        labels = np.array([x.decode() if isinstance(x, bytes) else str(x) for x in loaded.values.ravel()], dtype=object)
        texts = labels.astype(np.dtypes.StringDType()).reshape(loaded.shape)
        loaded = type(loaded)(loaded.dims, texts, loaded.attrs)
    return loaded


def _json(attributes: Any) -> dict[str, Any]:
    """Attributes that JSON can carry; numpy values become lists and numbers, others are left out."""
    kept: dict[str, Any] = {}
    for key, value in dict(attributes).items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        with contextlib.suppress(TypeError, ValueError):
            kept[str(key)] = json.loads(json.dumps(plain, allow_nan=False))
    return kept


@contextlib.contextmanager
def _reporting(progress: Progress | None) -> Iterator[None]:
    from dask.callbacks import Callback

    if progress is None:
        yield
        return
    report, count = progress, [0]

    def start(dsk: Any) -> None:
        count[0] = 0

    def posttask(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        count[0] += 1
        report(count[0], sum(len(state[s]) for s in ("waiting", "ready", "running", "finished")))

    with Callback(start=start, posttask=posttask):
        yield


def _finish(draft: StoreDraft, target: str, accept: Accept | None) -> None:
    """Statistics of what was written, metadata in one place, and last the attribute that makes it a store."""
    import xarray as xr
    import zarr

    storage = zarr_store(target, read_only=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(storage, zarr_format=3)
    written = xr.open_zarr(zarr_store(target, read_only=True), chunks=None, consolidated=True)
    notes = (*draft.notes, *(accept(written) if accept is not None else ()))
    moments, tendency = statistics.compute(written, draft.variables, draft.axes, draft.splits.train,
                                           ragged=draft.ragged, own=paced(draft.variables, draft.axes, draft.ragged))
    described = {name: getattr(draft, name) for name in StoreDraft.model_fields}
    meta = StoreMeta(**described | {"notes": notes, "moments": moments, "tendency": tendency})
    group = zarr.open_group(storage, mode="r+", use_consolidated=True)
    group.update_attributes({"sciml": meta.model_dump(mode="json")})


@contextlib.contextmanager
def _beside(path: Path, overwrite: bool) -> Iterator[str]:
    """A hidden sibling that becomes `path` when the body succeeds and vanishes when it doesn't."""
    import fcntl

    path = Path(os.path.abspath(path))
    kept = path.with_name(f".{path.name}.replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path, kept)
    may_write(str(path), overwrite)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inner = temporary / "store"
        yield str(inner)
        may_write(str(path), overwrite)
        if os.path.lexists(path):
            path.rename(kept)
        inner.rename(path)
    except BaseException:
        if kept.exists() and not path.exists():
            kept.rename(path)
        raise
    finally:
        _remove(temporary)
        os.close(lock)
    shutil.rmtree(kept, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Also while other threads of a failed write are still at their last chunk: up to a second, until it is gone."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.02)


def _may_replace(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(path, found="it exists", expected="a new path", fix="choose another, or pass --overwrite")
    if path.is_symlink() or not (path / "zarr.json").is_file():
        raise InputError(path, found="no store", expected="a store to overwrite", fix="choose another path")


def _remove_leftovers(path: Path, kept: Path) -> None:
    """What a killed writer left: partial folders nobody holds the lock of, an old store that was moved aside."""
    import fcntl

    if kept.exists():
        shutil.rmtree(kept) if path.exists() else kept.rename(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        lock = os.open(leftover, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


@contextlib.contextmanager
def _remote(url: str) -> Iterator[str]:
    """Written in place, the attribute `sciml` last: until then it is refused by `open_store`."""
    import fsspec

    may_write(url, overwrite=False)
    filesystem, root = fsspec.core.url_to_fs(url)
    try:
        yield url
    except BaseException:
        with contextlib.suppress(Exception):
            filesystem.rm(root, recursive=True)
        raise


@contextlib.contextmanager
def _disk_full(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(path, found=f"no space left ({error.strerror})", expected="room for the whole store",
                         fix="free space or choose another disk; nothing that existed was touched") from error
