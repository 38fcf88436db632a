"""From a source description to a store: read or generate lazily, check, split, write, record where it came from."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from sciml import __version__, registry
from sciml.data import canonical
from sciml.data.conventions import convention_of
from sciml.data.schema import Provenance, paced
from sciml.data.source import FoundFile, SourceSpec, find_files
from sciml.data.splits import Clock, given, make_splits, together, usual_split
from sciml.data.store import Store, StoreDraft, write_store
from sciml.data.write import may_write
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

BUILDERS = "sciml.data.builders"
LIBRARIES = ("numpy", "xarray", "zarr")


def build(source: SourceSpec, out: str | os.PathLike[str], *, overwrite: bool = False,
          progress: Callable[[int, int], None] | None = None, command: str = "") -> Store:
    """Build the store that `source` describes at `out`, in constant memory.

    Values that are not finite are counted and located; they are refused, or kept as NaN with ``missing: mask``. Labels,
    of which not all are known, and whatever else is often unknown in the domain (`sciml.data.conventions`) may be
    missing in either case. Raises `InputError` on whatever is missing, contradictory or out of order; `out` is then as
    it was.
    """
    may_write(os.fspath(out), overwrite)
    files = find_files(source)
    dataset, draft = prepare(source, files, command=command)
    return write_store(dataset, draft, out, overwrite=overwrite, progress=progress,
                       accept=lambda written: account_for_missing(written, draft, refuse=source.missing == "refuse"))


def prepare(source: SourceSpec, files: list[FoundFile], *, command: str = "") -> tuple[xr.Dataset, StoreDraft]:
    """The lazy dataset and the description that will be written. Raises `InputError`; of the values, only the numbers
    of rows are read."""
    dataset = _load(source, files)
    notes = tuple(str(note) for note in dataset.attrs.get("notes", ()))
    group_dim = canonical.group_dim_of(dataset, source)
    dataset, ragged = canonical.select(dataset, source, group_dim)
    axes = canonical.describe_axes(dataset, source, group_dim, ragged)
    times = [dim for dim, axis in axes.items() if axis.kind == "time"]
    if len(times) > 1:
        raise InputError(source.name, key="axes", found=f"several time axes: {', '.join(times)}",
                         expected="at most one", fix="declare kind: space for the others")
    dataset = _lead_with(dataset, (group_dim, *times))
    variables = canonical.describe_variables(dataset, source, group_dim)
    groups, own = dataset.sizes[group_dim], paced(variables, axes, ragged)
    steps = dataset.sizes[times[0]] if times else 1 if own is None else np.asarray(dataset[ragged[own]].values)
    dt = canonical.time_step(dataset, axes)
    clock = Clock(dt, axes[times[0]].unit) if times else None
    split = usual_split(source.split, dataset, source.domain, clock, where=source.name)
    draft = StoreDraft(
        domain=source.domain, dataset=source.name, group_dim=group_dim, groups=groups, axes=axes, ragged=ragged, dt=dt,
        variables=variables,
        splits=make_splits(split, groups, steps, group_dim=group_dim, where=source.name,
                           keys=together(split, dataset, group_dim, where=source.name),
                           parts=given(split, dataset, group_dim, where=source.name)),
        provenance=provenance(source, files, command), licence=source.licence, citation=source.citation, notes=notes)
    if source.missing == "mask":
        dataset = dataset.assign({name: array.where(np.isfinite(array)).assign_attrs(array.attrs)
                                  for name, array in dataset.data_vars.items() if array.dtype.kind == "f"})
    dataset.attrs = {"title": source.name, "Conventions": "CF-1.10"}
    return dataset, draft


def _load(source: SourceSpec, files: list[FoundFile]) -> xr.Dataset:
    if source.builder == "file":
        from sciml.data.readers import read

        return read(source, [file.path for file in files])
    builder = registry.find(BUILDERS, source.builder, where=source.name)
    options = dict(source.options)
    if files:
        options["files"] = [file.path for file in files]
    dataset: xr.Dataset = builder(options)
    return dataset


def _lead_with(dataset: xr.Dataset, front: tuple[str, ...]) -> xr.Dataset:
    return dataset.assign({name: array.transpose(*(d for d in front if d in array.dims), ...)
                           for name, array in dataset.data_vars.items()})


def provenance(source: SourceSpec, files: list[FoundFile], command: str) -> Provenance:
    """Files with hashes, builder, options, versions and the time in UTC."""
    versions = {"sciml": __version__} | {name: version(name) for name in LIBRARIES}
    return Provenance(files={file.declared: file.sha256 for file in files}, builder=source.builder,
                      options=dict(source.options), versions=versions, command=command,
                      created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def account_for_missing(written: xr.Dataset, draft: StoreDraft, *, refuse: bool) -> tuple[str, ...]:
    """Notes that count and locate what is not finite, by variable; raises `InputError` instead if `refuse`."""
    notes = []
    for name in draft.variables:
        count, where = locate_missing(written[name])
        if not count:
            continue
        found = f"{count} of {written[name].size} values not finite (NaN or Inf), first at {'; '.join(where)}"
        if refuse and not _may_be_missing(draft, name):
            raise InputError(draft.dataset, key=name, found=found, expected="finite values",
                             fix="repair them, or set missing: mask in the source file")
        notes.append(f"{name}: {found}")
    return tuple(notes)


def _may_be_missing(draft: StoreDraft, name: str) -> bool:
    return draft.variables[name].role in convention_of(draft.domain).missing


def locate_missing(array: xr.DataArray, most: int = 3) -> tuple[int, list[str]]:
    """How many values are not finite and where the first `most` are, read 4 MiB at a time."""
    if array.dtype.kind != "f":
        return 0, []
    from sciml.data.statistics import pieces

    count = 0
    places: list[str] = []
    for piece in pieces(array.shape, array.dtype.itemsize):
        broken = ~np.isfinite(array[piece].values)
        count += int(broken.sum())
        if broken.any() and len(places) < most:
            for index in np.argwhere(broken)[:most - len(places)]:
                at = [int(i) + part.start for i, part in zip(index, piece, strict=True)]
                places.append(", ".join(f"{dim} {i}" for dim, i in zip(array.dims, at, strict=True)))
    return count, places
