"""Raw scans in ISMRMRD (Inati et al., Magn. Reson. Med. 77, 411, 2017): HDF5 with an XML header and lines of k-space.

    options:
      format: ismrmrd
      parts: complex                 # real and imaginary part as mri and mri_imaginary; else the magnitude, mri
      only: {repetition: 0}          # of scans with several contrasts, phases, repetitions or sets: which
      undersampled: zero_filled      # read what lacks lines, too; else it is refused
      orientation: SPR               # what slices, readout and phase encoding point to, where the file doesn't say

A file is a subject, ``(slice, readout, phase encoding)`` as `fastmri` has it: lines of noise, calibration and
navigation are left out, averages averaged; Cartesian scans of slices or of a slab become images of the reconstructed
space, readouts without their oversampling. Coils are combined as those of fastMRI. Position and directions of the
lines, in LPS, become the affine: the voxel n // 2 of each axis is where the header says that the slice is.
Trajectories that are no grid are refused. Options: those of all volumes that raw scans have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from sciml.data.affines import from_spacing
from sciml.data.files import head
from sciml.data.readers import _ismrmrd_lines as raw
from sciml.data.readers import _volumes as volumes
from sciml.data.readers._ismrmrd_header import Elements, Space, elements, space, steps
from sciml.data.readers._kspace import (
    SHARED,
    SUFFIXES,
    Parts,
    combined,
    dataset_of,
    image_of,
    middle,
    modalities,
    part_of,
    resized,
)
from sciml.data.readers._volumes import Subject
from sciml.data.readers._volumes_files import files_below, stem
from sciml.data.readers._volumes_look import first_of
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import HDF5_MAGIC, Limits, check_size, raw_hdf5
from sciml.errors import InputError

Counter = Literal["contrast", "phase", "repetition", "set"]
NEAR = 0.005
"""How far encoded and reconstructed cells may differ, as a share, and count as the same."""
UNEVEN = 0.02


class RawOptions(Parts):
    """See the module."""

    only: dict[Counter, int] = Field(default_factory=dict)
    undersampled: Literal["refused", "zero_filled"] = "refused"


@dataclass(frozen=True)
class Raw:
    """Reads Cartesian scans, several coils, slices or slabs."""

    options: frozenset[str] = SHARED | frozenset(RawOptions.model_fields)

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        first = first_of(path, SUFFIXES)
        if first is None or head(first, 8) != HDF5_MAGIC:
            return None
        with raw.open_lines(first, Limits()) as file:
            if raw.group_of(file) is None:
                return None
        if not limit_bytes:
            return Guess(path, "ismrmrd", "volumes", volumes.GROUP, {}, ())
        options, own = VolumeOptions(modality="mri"), RawOptions(undersampled="zero_filled")
        told: dict[str, Any] = {"modality": "mri", "parts": "complex", "unit": "1"}
        missing: list[str] = []
        files = files_below(path, SUFFIXES)
        try:
            subjects = [_subject(file, options, own, Limits()) for file in files]
        except InputError as error:
            if error.key != "options.orientation":
                raise
            told["orientation"] = None
            missing.append("orientation: the lines have no directions; options.orientation, such as SPR")
            subjects = [_subject(file, options.model_copy(update={"orientation": "RAS"}), own, Limits())
                        for file in files]
        made = volumes.dataset(subjects, options, format="ismrmrd", where=path, missing=missing)
        return guess(made, path, options=told, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily, a file at a time."""
        return dataset_of(paths, source, RawOptions, _subject, "ismrmrd")


PLUGIN = Raw()


@dataclass(frozen=True)
class RawScan:
    """One part of a file's images; see `sciml.data.readers._volumes.Scan`. group: in the file; grid: cells of k-space
    (readout, phase encoding 1, 2); full: voxels of its field of view on the axes of `shape`; order: of the slices."""

    path: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    notes: tuple[str, ...]
    group: str
    lines: raw.Lines
    grid: tuple[int, int, int]
    full: tuple[int, int, int]
    order: tuple[int, ...]
    part: str = "magnitude"

    @property
    def streamed(self) -> bool:
        return True

    def open(self) -> np.ndarray:
        """float32 ``(slice, readout, phase encoding)``, one slice or the slab after the other."""
        made = []
        with raw_hdf5(self.path) as file:
            for layer in self.order:
                kspace = raw.kspace_of(file[self.group]["data"], self.lines, layer, self.grid, self.path)
                for axis, count in enumerate(self.full, 1):
                    kspace = resized(kspace, axis, count)
                if self.full[0] > 1:
                    depth = np.moveaxis(middle(np.moveaxis(image_of(kspace, (1,)), 1, -1), self.shape[:1]), -1, 1)
                    kspace = depth.astype(np.complex64)
                for plane in np.moveaxis(kspace, 1, 0):
                    image = combined(plane if len(plane) > 1 else plane[0], self.shape[1:])
                    made.append(part_of(image, self.part).astype(np.float32))
        return np.stack(made)

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored.astype(np.float32)


def _subject(path: str, options: VolumeOptions, own: RawOptions, limits: Limits) -> Subject:
    """Raises `InputError` for a scan that is no grid, lacks lines, or whose lines and header contradict one another."""
    with raw.open_lines(path, limits) as file:
        group = raw.group_of(file)
        if group is None:
            raise InputError(path, key="groups", found=", ".join(file), expected="xml and data in a group: dataset",
                             fix="use a file of ISMRMRD, or another format")
        data, text = file[group]["data"], np.asarray(file[group]["xml"][()]).reshape(-1)
        heads, rows = raw.heads_of(data, path, limits, {str(key): value for key, value in own.only.items()})
        header = elements(text[0], path) if len(text) else {}
    number = int(raw.same(heads, "encoding_space_ref", path))
    _refuse_other_trajectories(header, number, path)
    encoded, recon = (space(header, name, path, number) for name in ("encodedSpace", "reconSpace"))
    along = tuple(steps(header, i, encoded.matrix[i], path, number) for i in (1, 2))
    lines = raw.placed(heads, rows, encoded.matrix, along, path)  # type: ignore[arg-type]
    slices = int(lines.layer.max()) + 1
    if slices > 1 and encoded.matrix[2] > 1:
        raise InputError(path, key="slice", found=f"{slices} slabs of {encoded.matrix[2]} partitions",
                         expected="slices, or one slab", fix="write a file for each slab")
    share = raw.share(lines, encoded.matrix, along)  # type: ignore[arg-type]
    if share < 1 and own.undersampled == "refused":
        raise InputError(path, key="kspace_encode_step_1", found=f"{share:.1%} of k-space",
                         expected="all of it: what an undersampled scan shows isn't known",
                         fix="leave the file out, or read its zero-filled image: options: {undersampled: zero_filled}")
    notes = (f"zero-filled, {share:.0%} of k-space was measured",) if share < 1 else ()
    full, kept = _voxels(encoded, recon, path)
    widest = np.maximum(full, [encoded.matrix[i] for i in (2, 0, 1)])
    check_size(path, "data", (lines.channels, *widest.tolist()), 16, limits.chunk_bytes, "k-space of a slice or slab")
    affine, order = _affine(heads, lines, encoded, (full, kept), options, path)
    shape = (slices if full[0] == 1 else kept[0], kept[1], kept[2])
    made = RawScan(path, shape, affine, notes, group, lines, encoded.matrix, full, order)
    return Subject(stem(path, SUFFIXES), modalities(options.modality, own, partial(_with_part, made)))


def _with_part(scan: RawScan, part: str) -> RawScan:
    return replace(scan, part=part)


def _refuse_other_trajectories(header: Elements, encoding: int, path: str) -> None:
    kind = header.get(f"encoding{encoding}/trajectory", "none")
    if kind != "cartesian":
        raise InputError(path, key="trajectory", found=kind, expected="cartesian",
                         fix="reconstruct the scan with its own tools (Gadgetron, BART) and read the images as NIfTI")


def _voxels(encoded: Space, recon: Space, path: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of slices, readout, phase encoding: voxels of the encoded field of view, as large as those of the reconstructed
    space, and how many in the middle are kept. Raises `InputError` if those are more."""
    full, kept = [], []
    for i in (2, 0, 1):
        n, m = encoded.matrix[i], recon.matrix[i]
        wanted = m * encoded.mm[i] / recon.mm[i]
        count = n if n == 1 or abs(wanted - n) <= NEAR * n else round(wanted)
        m = 1 if n == 1 else m
        if m > count:
            raise InputError(path, key="reconSpace", found=f"{recon.matrix} cells, {recon.mm} mm",
                             expected=f"a part of the encoded {encoded.matrix} cells, {encoded.mm} mm",
                             fix="the header is damaged, or of another scan: convert it again")
        full.append(count)
        kept.append(m)
    return (full[0], full[1], full[2]), (kept[0], kept[1], kept[2])


def _affine(heads: np.ndarray, lines: raw.Lines, encoded: Space, voxels: tuple[Sequence[int], Sequence[int]],
            options: VolumeOptions, path: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """``(4, 4)`` of the images and the order of their slices, along the way that slices point."""
    full, slices = voxels[0], int(lines.layer.max()) + 1
    mm = np.array([encoded.mm[i] / count for i, count in zip((2, 0, 1), full)])
    axes = raw.directions(heads, path)
    if axes is None:
        if options.orientation is None:
            raise InputError(path, key="options.orientation", found="lines without directions",
                             expected="what slices, readout and phase encoding point to",
                             fix="if you know it: options: {orientation: SPR}")
        return from_spacing(mm, options.orientation, path), tuple(range(slices))
    if options.orientation is not None:
        raise InputError(path, key="options.orientation", found=options.orientation,
                         expected="nothing: the lines have directions", fix="remove it")
    places = raw.middles(heads, lines, path)
    order = np.argsort(places @ axes[:, 0], kind="stable")
    places, origin = places[order], np.array([n // 2 - (n - m) // 2 for n, m in zip(*voxels)])
    affine = np.eye(4)
    affine[:3, :3] = axes * mm
    if slices > 1:
        apart = np.diff(places, axis=0)
        step = apart.mean(0)
        affine[:3, 0], origin[0] = step, 0
        if np.abs(apart - step).max() > UNEVEN * max(float(np.linalg.norm(step)), 1e-6):
            found = np.linalg.norm(apart, axis=1).round(3)[:8].tolist()
            raise InputError(path, key="position", found=f"slices {found} mm apart", expected="equal distances",
                             fix="slices are missing, or are of several stacks: write a file each")
    affine[:3, 3] = places[0] - affine[:3, :3] @ origin
    return affine, tuple(order.tolist())
