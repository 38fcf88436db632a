"""Images in, segmentations out: NIfTI files of any orientation and size, written plane by plane as they are known.

Of an image no more is held than its own voxels and one window's depth of planes (of all frames, where structures move).
What is written has the header of the image, bit for bit where it says where and when voxels are; only the type of the
voxels and their scaling are its own, and of a 4-D image whose structures stay where they are, the number of its axes.
"""

from __future__ import annotations

import gzip
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml.data.affines import refuse_bad_affine, same_grid
from sciml.data.files import replacing
from sciml.data.readers import nifti
from sciml.data.readers._volumes import seconds
from sciml.data.readers._volumes_files import Case, film_of
from sciml.data.readers._volumes_options import volume_options
from sciml.data.readers._volumes_stream import BLOCK
from sciml.data.safety import Limits
from sciml.data.store import Store
from sciml.domains.volumes import geometry
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.encode import DOMAIN, MOST_SAMPLED, intensity, resolve
from sciml.domains.volumes.sliding import Tile, planes, tiles
from sciml.domains.volumes.tasks.segment import Segment
from sciml.domains.volumes.windows import LABEL
from sciml.errors import InputError
from sciml.predictor import Predictor, predictions
from sciml.recipe import Section

Progress = Callable[[int, int], None]
COVERAGE = 0.9


class Calibration(Section):
    """How far volumes of structures were off on a data set's validation split: |log(true / predicted)| per subject, in
    the frame where it was most.

    null: the structure was missed, or found where there was none.
    """

    dataset: str
    subjects: int
    misses: dict[str, list[float | None]]

    def factor(self, structure: str, coverage: float = COVERAGE) -> float | None:
        """f such that the true volume lies within V / f … V f with at least that probability, if the subject is
        exchangeable with the validation subjects; None if they were too few, or too many were missed.

        The ⌈(n + 1) coverage⌉-th smallest miss: split conformal prediction. Source: Papadopoulos et al., ECML 2002.

        >>> made = Calibration(dataset="made", subjects=9, misses={"a": [0.1 * i for i in range(9)]})
        >>> round(made.factor("a") / math.exp(0.8), 6), made.factor("a", 0.95)
        (1.0, None)
        """
        found = sorted(math.inf if miss is None else miss for miss in self.misses.get(structure, []))
        rank = math.ceil(round((len(found) + 1) * coverage, 9))
        if rank > len(found) or found[rank - 1] == math.inf:
            return None
        return math.exp(found[rank - 1])


@dataclass(frozen=True)
class Volume:
    """Of one structure of one image, in mm³; low and high bound the true volume with `COVERAGE`, None where nothing is
    known of it or where the structure wasn't found. time_s: of the frame, where structures move."""

    structure: str
    volume_mm3: float
    low_mm3: float | None = None
    high_mm3: float | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class _Image:
    """Scans of one grid by modality, one for each frame, their stored voxels, and the numbers that all boxes are
    normalised by."""

    scans: Mapping[str, Sequence[nifti.NiftiScan]]
    stored: Mapping[str, np.ndarray]
    attrs: Mapping[str, Any]

    @property
    def first(self) -> nifti.NiftiScan:
        return next(iter(self.scans.values()))[0]

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of its frames."""
        return seconds(next(iter(self.scans.values())))

    def box(self, tile: Tile) -> Any:
        """A part of the image as a sample, all its frames. Raises `InputError` where a voxel isn't finite."""
        arrays = {}
        for name, scans in self.scans.items():
            stored = np.asarray(self.stored[name][tile])
            frames = [scan.values(stored, tile[0].start) for scan in scans]
            arrays[name] = np.stack(frames, -1) if len(frames) > 1 else frames[0]
            if not np.isfinite(arrays[name]).all():
                place = np.argwhere(~np.isfinite(arrays[name]))[0]
                place[:3] += [part.start for part in tile]
                raise InputError(scans[0].path, key=f"voxel {tuple(int(i) for i in place)}", found="NaN or infinite",
                                 expected="finite numbers", fix="replace such voxels, for example by 0")
        return geometry.dataset_of(arrays, geometry.shifted(self.first.affine, [part.start for part in tile]),
                                   self.attrs, times=self.times if len(self.times) > 1 else None)


def segment(predictor: Predictor, image: Path | Mapping[str, Path], out: Path, *,
            mirrors: Collection[str] | None = None, calibration: Calibration | None = None,
            step_s: float | None = None, progress: Progress | None = None) -> list[Volume]:
    """Write the label map of an image to `out` (.nii, .nii.gz), on the image's grid and in its order of axes; of a 4-D
    image one for each frame where the labels of training had that, else one.

    image: a file, or one per modality. mirrors: axes to also look at in the mirror (x, y, z; None: as the recipe says).
    step_s: between frames (None: as the header says).
    Returns the volume of every structure. Nothing is written if it fails: `InputError` for a checkpoint that doesn't
    segment, modalities that are not its own or on several grids, frames where it has seen none, files that can't be
    read, voxels that aren't finite.
    """
    adapter, task = segmenting(predictor)
    if mirrors is not None:
        adapter = replace(adapter, config=adapter.config.model_copy(update={"mirrors": tuple(sorted(mirrors))}))
    if not out.name.endswith(nifti.SUFFIXES):
        raise InputError("command line", key="--out", found=out.name, expected="FILE.nii or FILE.nii.gz",
                         fix="choose that ending")
    given = _opened(adapter, image, step_s)
    shape, affine = given.first.shape, given.first.affine
    frames = len(given.times) if _moving(adapter, given) else 1
    window = _window(adapter, affine)
    operate = replace(predictor, adapters={**predictor.adapters, DOMAIN: adapter})
    total, count = len(tiles(shape, window, adapter.config.overlap)), itertools.count(1)

    def run(tile: Tile) -> Tensor:
        batch = adapter.encode(given.box(tile))
        logits = predictions(batch, operate.forward(batch))[LABEL][0]
        if progress is not None:
            progress(next(count), total)
        return _file_order(logits.permute(1, 2, 3, 0, 4).flatten(3) if logits.ndim == 5 else logits, affine)

    largest = max(len(task.structures) - 1, 1)
    counts = np.zeros((frames, largest + 1), np.int64)
    with torch.no_grad(), _writing(out, given, np.uint8 if largest < 256 else np.uint16, frames) as write:
        for _, logits in planes(shape, window, adapter.config.overlap, frames * len(task.outputs), run):
            for plane in logits.unflatten(-1, (frames, -1)).split(1, 2):
                labels = task.labels(plane).numpy()
                counts += [np.bincount(labels[..., t].ravel(), minlength=largest + 1) for t in range(frames)]
                write(labels)
    mm3 = counts * abs(float(np.linalg.det(affine[:3, :3])))
    return [replace(each, time_s=given.times[t] if frames > 1 else None)
            for t in range(frames) for each in _volumes(task, mm3[t], calibration)]


def segmenting(predictor: Predictor) -> tuple[Volumes, Segment]:
    """The adapter and its task. Raises `InputError` for a checkpoint of another domain or task."""
    adapter = predictor.adapter(DOMAIN)
    if not isinstance(adapter, Volumes) or not isinstance(adapter.task, Segment):
        raise InputError("checkpoint", key="domains.volumes.task", expected="segment", fix="choose one that segments",
                         found=adapter.config.task.name if isinstance(adapter, Volumes) else type(adapter).__name__)
    return adapter, adapter.task


def calibrate(predictor: Predictor, store: Store, progress: Progress | None = None) -> Calibration:
    """Volumes of the validation split's subjects beside the true ones. Training selects on the same split by its loss,
    so intervals are a little too narrow where few subjects were validated on."""
    adapter, task = segmenting(predictor)
    windows, rng = adapter.open(store, "validation"), np.random.default_rng(0)
    misses: dict[str, list[float | None]] = {name: [] for name in task.judged}
    for i in range(len(windows)):
        sample = windows.draw(i, rng, rng)
        truth = geometry.ras(sample)[LABEL].values
        ours = predictor.predict(sample)[LABEL].values[0]
        known = [t for t in range(len(truth)) if np.isfinite(truth[t]).any()] if truth.ndim == 4 else [...]
        if np.isfinite(truth).any():
            for name, values in task.judged.items():
                missed = [_miss(ours[t], truth[t], values) for t in known]
                worst = max(math.inf if each is None else each for each in missed)
                misses[name].append(None if worst == math.inf else worst)
        if progress is not None:
            progress(i + 1, len(windows))
    return Calibration(dataset=store.meta.dataset, subjects=max(map(len, misses.values())), misses=misses)


def _miss(ours: np.ndarray, truth: np.ndarray, values: int | tuple[int, ...]) -> float | None:
    """|log(true / predicted)| of a structure's volume; None if it was missed, or found where there was none."""
    found, true = (int((np.isin(x, values) & np.isfinite(truth)).sum()) for x in (ours, truth))
    return abs(math.log(true / found)) if found and true else None if found or true else 0.0


def _volumes(task: Segment, mm3: np.ndarray, calibration: Calibration | None) -> list[Volume]:
    made = []
    for name, values in task.judged.items():
        volume = float(mm3[list(values) if isinstance(values, tuple) else [values]].sum())
        factor = calibration.factor(name) if calibration is not None and volume else None
        made.append(Volume(name, volume) if factor is None else Volume(name, volume, volume / factor, volume * factor))
    return made


def _opened(adapter: Volumes, image: Path | Mapping[str, Path], step_s: float | None) -> _Image:
    """Raises `InputError` if modalities are missing or on several grids, and for frames where it has seen none."""
    paths = {adapter.modalities[0]: image} if isinstance(image, Path) else dict(image)
    if set(paths) != set(adapter.modalities):
        raise InputError(next(iter(paths.values()), "images"), key="modalities", found=", ".join(paths) or "none",
                         expected=", ".join(adapter.modalities), fix="give one image of each")
    timed = any(known.frames for known in adapter.datasets.values())
    options = volume_options({"frames": "time", "step_s": step_s} if timed else {}, "segment")
    film = film_of(Case("image", {name: str(paths[name]) for name in adapter.modalities}),
                   {name: nifti.scans(str(paths[name]), options, Limits()) for name in adapter.modalities})
    scans: dict[str, Sequence[Any]] = {name: film.frames(name) for name in adapter.modalities}
    first = scans[adapter.modalities[0]][0]
    refuse_bad_affine(first.affine, first.path)
    for scan, *_ in scans.values():
        if scan.shape != first.shape or not same_grid(first.affine, scan.affine, first.shape):
            raise InputError(scan.path, key="grid", found=f"{scan.shape}, another grid than {first.path}",
                             expected=f"{first.shape} on the same affine", fix="register and resample it to that grid")
    stored = {name: each[0].open() for name, each in scans.items()}
    numbers = {}
    for name, (scan, *_) in scans.items():
        step = max(1, stored[name].size // MOST_SAMPLED)
        numbers[name] = intensity(scan.values(np.asarray(stored[name].flat[::step]), 0), adapter.config.intensity)
    fitting = [name for name, known in adapter.datasets.items() if set(known.modalities) == set(scans)]
    several = len(scans[adapter.modalities[0]]) > 1
    dataset = next((name for name in fitting if adapter.datasets[name].frames == several), [*fitting, ""][0])
    return _Image(scans, stored, {"domain": DOMAIN, "dataset": dataset, "source": first.path, "intensity": numbers})


def _moving(adapter: Volumes, given: _Image) -> bool:
    """Whether every frame gets a label map of its own."""
    known = adapter.datasets[resolve(adapter.datasets, given.box((slice(0, 1),) * 3))]
    return len(given.times) > 1 and known.moving


def _window(adapter: Volumes, affine: np.ndarray) -> tuple[int, ...]:
    """Voxels along each axis of the file that the operator's window has room for."""
    steps, made = np.linalg.norm(affine[:3, :3], axis=0), []
    for name, step in zip(geometry.anatomy(affine), steps):
        axis = geometry.NAMES.index(name)
        wanted = step if adapter.config.spacing_mm is None else adapter.config.spacing_mm[axis]
        made.append(max(1, math.floor(adapter.config.window[axis] * wanted / step + 1e-6)))
    return tuple(made)


def _file_order(logits: Tensor, affine: np.ndarray) -> Tensor:
    """``(x, y, z, outputs)`` in RAS order → ``(i, j, k, outputs)`` of an array of that affine."""
    worlds = [geometry.NAMES.index(name) for name in geometry.anatomy(affine)]
    turned = [axis for axis, world in enumerate(worlds) if affine[world, axis] < 0]
    return logits.permute(*worlds, 3).flip(turned)


@contextmanager
def _writing(out: Path, given: _Image, kind: type[np.unsignedinteger[Any]],
             frames: int) -> Iterator[Callable[[np.ndarray], None]]:
    """What takes planes of a label map ``(I, J, 1, T)``, one after the other, into a file with the header of the image.
    Frames, of which the file has all planes of the first before the second, wait in a file without a name."""
    header, (_, _, depth) = nifti.header_of(given.first.path, given.first.path)[0], given.first.shape
    if len(given.times) > 1:
        steps = header["pixdim"].copy()
        header.set_data_shape((*given.first.shape, frames) if frames > 1 else given.first.shape)
        header["pixdim"] = steps  # of axes that are gone, too
    header.set_data_dtype(kind)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 0  # where the header ends
    header["cal_min"] = header["cal_max"] = 0
    dtype = np.dtype(kind).newbyteorder(header.endianness)
    with replacing(out) as new, new.open("wb") as raw, ExitStack() as opened:
        file: Any = raw
        if out.name.endswith(".gz"):
            file = opened.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        header.write_to(file)
        if frames == 1:
            yield lambda labels: file.write(labels.astype(dtype).tobytes(order="F"))
            return
        body, numbers = opened.enter_context(tempfile.TemporaryFile(dir=out.parent)), itertools.count()

        def write(labels: np.ndarray) -> None:
            plane = next(numbers)
            for t in range(frames):
                stored = labels[..., t].astype(dtype).tobytes(order="F")
                body.seek((t * depth + plane) * len(stored))
                body.write(stored)

        yield write
        body.seek(0)
        shutil.copyfileobj(body, file, BLOCK)
