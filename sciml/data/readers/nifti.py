"""NIfTI-1 and NIfTI-2 images (.nii, .nii.gz): a file, several, or folders of them, labels beside them.

A folder ``images`` and a folder ``labels`` belong together by the names of their files, which are the subjects' ids;
other layouts are said in ``options.images`` and ``options.labels``. The header is read by nibabel from its own 540
bytes; voxels are memory-mapped or, from .nii.gz, read one file at a time. The affine is sform, else qform; a file that
has neither is refused unless ``options.orientation`` says what its axes point to. Options: those of all volumes, and
``classes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.affines import from_spacing, same_grid, spacing
from sciml.data.files import head, is_folder
from sciml.data.readers._volumes_files import local
from sciml.data.readers._volumes_look import first_of, look, read_files
from sciml.data.readers._volumes_options import OPTIONS, VolumeOptions
from sciml.data.readers._volumes_stream import GZIP, Stream, head_of, library
from sciml.data.readers.guess import SAMPLE_BYTES, Guess
from sciml.data.safety import Limits
from sciml.errors import InputError

SUFFIXES = (".nii", ".nii.gz")
HEADERS = {348: (b"n+1\x00", 344), 540: (b"n+2\x00\r\n\x1a\n", 4)}
"""Size of the header → magic and where it is; ni1 and ni2 (.hdr beside .img) are not read."""
MM = 2
UNITS_OF_TIME = {8: ("s", 1.0), 16: ("ms", 1e-3), 24: ("µs", 1e-6), 32: ("Hz", 0.0), 40: ("ppm", 0.0),
                 48: ("rad/s", 0.0)}
"""Code → name and seconds, 0 where it is no time."""
FRAMES = 10_000
"""Of one file that become subjects of their own."""


@dataclass(frozen=True)
class Nifti:
    """Reads images and label maps; one file is one subject unless options say otherwise."""

    options: frozenset[str] = OPTIONS | {"classes", "step_s"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        first = first_of(path, SUFFIXES)
        if first is None or not _is_nifti(first) or (is_folder(path) and (local(path) / "dataset.json").exists()):
            return None
        return look([path], {}, partial(scans, limits=Limits()), SUFFIXES, "nifti", limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Subjects by ascending name, lazily."""
        return read_files(paths, source, scans, SUFFIXES, "nifti")


PLUGIN = Nifti()


@dataclass(frozen=True)
class NiftiScan:
    """A 3-D image, or a frame of a 4-D one; see `sciml.data.readers._volumes.Scan`. time_s: of the frame, where it is a
    point of time, NaN if the file doesn't say; clock: what it says."""

    stream: Stream
    shape: tuple[int, int, int]
    affine: np.ndarray
    slope: float | None
    intercept: float
    notes: tuple[str, ...] = ()
    frame: int = 0
    time_s: float = 0.0
    clock: str = ""

    @property
    def path(self) -> str:
        return self.stream.path

    @property
    def streamed(self) -> bool:
        return self.stream.packed_from is not None

    def open(self) -> np.ndarray:
        """``(I, J, K)``, or all frames ``(I, J, K, T)`` of a file."""
        return self.stream.open()

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        stored = stored[..., self.frame] if stored.ndim == 4 else stored
        if self.slope is None:
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * self.slope + self.intercept).astype(np.float32)


def _is_nifti(path: str) -> bool:
    start = head(path, 4)
    if start[:2] == GZIP and not path.lower().endswith((".gz", ".nii")):
        return False
    block = head_of(path, 540) if start[:2] == GZIP else head(path, 540)
    return any(block[at:at + len(magic)] == magic for magic, at in HEADERS.values())


def scans(path: str, options: VolumeOptions, limits: Limits) -> list[NiftiScan]:
    """The 3-D image of a file (a 2-D one has a third axis of 1 voxel), or the frames of a 4-D one where the options say
    what they are.

    Raises `InputError` for a header that is damaged, lies about sizes or says too little, and for 4-D images otherwise.
    """
    header, packed = header_of(str(local(path)), path)
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    frames = shape[3] if len(shape) == 4 and options.frames is not None else 1
    if len(shape) > 3 + (options.frames is not None) or not shape:
        raise InputError(path, key="dim", found=f"{len(shape)}-D, {' × '.join(map(str, shape))}",
                         expected="2-D or 3-D",
                         fix="options: {frames: time} makes frames points of time, {frames: groups} subjects of "
                             "their own (all of one person are kept together), {frames: [t1, t2, …]} modalities"
                             if len(shape) == 4 else "split it into 3-D files")
    grid: tuple[int, int, int] = (*shape[:3], 1, 1)[:3] if len(shape) < 3 else shape[:3]  # type: ignore[assignment]
    affine, notes = _affine(header, path, min(len(shape), 3), grid, options)
    slope, intercept = _scaling(header, path)
    if frames > FRAMES:
        raise InputError(path, key="dim", found=f"{frames} frames", expected=f"at most {FRAMES}", fix="split the file")
    stored = (*grid, frames) if frames > 1 else grid
    stream = Stream(str(local(path)), stored, header.get_data_dtype(), int(header["vox_offset"]), packed)
    stream.check(limits)
    step, clock = _step(header, options) if options.frames == "time" else (0.0, "")
    return [NiftiScan(stream, grid, affine, slope, intercept, notes, frame, frame * step if frame else 0.0, clock)
            for frame in range(frames)]


def header_of(file: str, path: str) -> tuple[Any, int | None]:
    """nibabel's header, and 0 if the file is one gzip stream."""
    nibabel = library("nibabel", path)
    block = head_of(file, 540)
    sizes = [size for size, (magic, at) in HEADERS.items() if block[at:at + len(magic)] == magic]
    if not sizes or len(block) < sizes[0]:
        raise InputError(path, found=f"a file that starts with {block[:16]!r}", expected="NIfTI (.nii or .nii.gz)",
                         fix="copy it again if it is cut short; convert .hdr with .img: "
                             "nibabel.load(FILE).to_filename('FILE.nii.gz')")
    try:
        header = (nibabel.Nifti1Header if sizes[0] == 348 else nibabel.Nifti2Header)(block[:sizes[0]], check=False)
        header.get_data_dtype()
        if not 1 <= int(header["dim"][0]) <= 7:
            raise ValueError(f"dim[0] is {int(header['dim'][0])}, expected 1 to 7 axes")
    except (nibabel.spatialimages.HeaderDataError, ValueError, KeyError) as error:
        raise InputError(path, key="header", found=" ".join(str(error).split())[:120], expected="a NIfTI header",
                         fix="the file is damaged: copy it again, or write it anew") from None
    with open(file, "rb") as raw:
        packed = 0 if raw.read(2) == GZIP else None
    offset = float(header["vox_offset"])
    if not sizes[0] <= offset <= 1 << 30:
        raise InputError(path, key="vox_offset", found=f"{offset:g}", expected=f"at least {sizes[0]}",
                         fix="the file is damaged: copy it again, or write it anew")
    return header, packed


def _affine(header: Any, path: str, axes: int, grid: tuple[int, int, int],
            options: VolumeOptions) -> tuple[np.ndarray, tuple[str, ...]]:
    """``(4, 4)`` in RAS mm and what there is to say of it."""
    zooms = np.asarray(header["pixdim"], np.float64)[1:1 + axes]
    if not (np.isfinite(zooms) & (np.abs(zooms) > 1e-6)).all():
        raise InputError(path, key="pixdim", found=" × ".join(f"{z:g}" for z in zooms), expected="spacings above 0 mm",
                         fix="correct the header: image.header.set_zooms(…)")
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, MM):
        raise InputError(path, key="xyzt_units", found={1: "metres", 3: "micrometres"}.get(unit, unit),
                         expected="mm",
                         fix="write the file in mm: header.set_xyzt_units('mm') after scaling the affine")
    try:
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except (library("nibabel", path).spatialimages.HeaderDataError, ValueError) as error:
        raise InputError(path, key="qform", found=" ".join(str(error).split())[:120], expected="a rotation",
                         fix="correct the quaternion, or set an sform") from None
    if sform is None and qform is None:
        if options.orientation is None:
            raise InputError(path, key="sform_code, qform_code", found="0, 0: no orientation",
                             expected="an sform or qform that says where right, anterior and superior are",
                             fix="if you know it: options: {orientation: RAS} (what the axes of the array point to)")
        mm = np.concatenate([np.abs(zooms), np.ones(3 - axes)])
        return from_spacing(mm, options.orientation, path), ("orientation taken from the options",)
    affine = np.array(sform if sform is not None else qform, np.float64)
    notes = []
    if sform is not None and qform is not None and spacing(sform).min() > 0 and not same_grid(sform, qform, grid):
        notes.append("sform and qform differ, sform is used")
    if axes < 3 and spacing(affine)[2] < 1e-6 and spacing(affine)[:2].min() > 1e-6:
        affine[:3, 2] = np.cross(*(affine[:3, :2] / spacing(affine)[:2]).T)
        notes.append("a plane without thickness, taken as 1 mm")
    return affine, tuple(notes)


def _step(header: Any, options: VolumeOptions) -> tuple[float, str]:
    """Seconds between frames, NaN where neither options nor header say it, and how the header has it."""
    step, unit = float(header["pixdim"][4]), int(header["xyzt_units"]) & 56
    told = f"pixdim[4] {step:g}, unit {UNITS_OF_TIME.get(unit, ('unknown', 0.0))[0]}"
    if options.step_s is not None:
        return options.step_s, told
    seconds = UNITS_OF_TIME.get(unit, ("", 0.0))[1] * step
    return seconds if np.isfinite(seconds) and seconds > 0 else float("nan"), told


def _scaling(header: Any, path: str) -> tuple[float | None, float]:
    """Slope (None: values are as stored) and intercept. Slopes of 0 and NaN mean none in NIfTI."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return None, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise InputError(path, key="scl_slope, scl_inter", found=f"{slope}, {intercept}", expected="finite numbers",
                         fix="correct the header; slope 1 and intercept 0 leave values as they are stored")
    return (None, 0.0) if (slope, intercept) == (1.0, 0.0) else (slope, intercept)
