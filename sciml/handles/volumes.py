"""Images in, segmentations out: NIfTI files of any orientation and size, written plane by plane as they are known.

Of an image no more is held than its own voxels and one window's depth of planes. What is written has the header of the
image, bit for bit where it says where voxels are; only the type of the voxels and their scaling are its own.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
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
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.data.safety import Limits
from sciml.data.store import Store
from sciml.domains.volumes import geometry
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.encode import DOMAIN, MOST_SAMPLED, intensity
from sciml.domains.volumes.sliding import Tile, planes, tiles
from sciml.domains.volumes.tasks.segment import Segment
from sciml.domains.volumes.windows import LABEL
from sciml.errors import InputError
from sciml.predictor import Predictor, predictions
from sciml.recipe import Section

Progress = Callable[[int, int], None]
COVERAGE = 0.9


class Calibration(Section):
    """How far volumes of structures were off on a data set's validation split: |log(true / predicted)| per subject.

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
    known of it or where the structure wasn't found."""

    structure: str
    volume_mm3: float
    low_mm3: float | None = None
    high_mm3: float | None = None


@dataclass(frozen=True)
class _Image:
    """Scans of one grid by modality, their stored voxels, and the numbers that all boxes are normalised by."""

    scans: Mapping[str, nifti.NiftiScan]
    stored: Mapping[str, np.ndarray]
    attrs: Mapping[str, Any]

    @property
    def first(self) -> nifti.NiftiScan:
        return next(iter(self.scans.values()))

    def box(self, tile: Tile) -> Any:
        """A part of the image as a sample. Raises `InputError` where a voxel isn't finite."""
        arrays = {}
        for name, scan in self.scans.items():
            arrays[name] = scan.values(np.asarray(self.stored[name][tile]), tile[0].start)
            if not np.isfinite(arrays[name]).all():
                place = np.argwhere(~np.isfinite(arrays[name]))[0] + [part.start for part in tile]
                raise InputError(scan.path, key=f"voxel {tuple(int(i) for i in place)}", found="NaN or infinite",
                                 expected="finite numbers", fix="replace such voxels, for example by 0")
        return geometry.dataset_of(arrays, geometry.shifted(self.first.affine, [part.start for part in tile]),
                                   self.attrs)


def segment(predictor: Predictor, image: Path | Mapping[str, Path], out: Path, *,
            mirrors: Collection[str] | None = None, calibration: Calibration | None = None,
            progress: Progress | None = None) -> list[Volume]:
    """Write the label map of an image to `out` (.nii, .nii.gz), on the image's grid and in its order of axes.

    image: a file, or one per modality. mirrors: axes to also look at in the mirror (x, y, z; None: as the recipe says).
    Returns the volume of every structure. Nothing is written if it fails: `InputError` for a checkpoint that doesn't
    segment, modalities that are not its own or on several grids, files that can't be read, voxels that aren't finite.
    """
    adapter, task = segmenting(predictor)
    if mirrors is not None:
        adapter = replace(adapter, config=adapter.config.model_copy(update={"mirrors": tuple(sorted(mirrors))}))
    if not out.name.endswith(nifti.SUFFIXES):
        raise InputError("command line", key="--out", found=out.name, expected="FILE.nii or FILE.nii.gz",
                         fix="choose that ending")
    given = _opened(adapter, image)
    shape, affine = given.first.shape, given.first.affine
    window = _window(adapter, affine)
    operate = replace(predictor, adapters={**predictor.adapters, DOMAIN: adapter})
    total, count = len(tiles(shape, window, adapter.config.overlap)), itertools.count(1)

    def run(tile: Tile) -> Tensor:
        batch = adapter.encode(given.box(tile))
        logits = predictions(batch, operate.forward(batch))[LABEL][0]
        if progress is not None:
            progress(next(count), total)
        return _file_order(logits, affine)

    largest = max(len(task.structures) - 1, 1)
    counts = np.zeros(largest + 1, np.int64)
    with torch.no_grad(), _writing(out, given.first.path, np.uint8 if largest < 256 else np.uint16) as write:
        for _, logits in planes(shape, window, adapter.config.overlap, len(task.outputs), run):
            for plane in logits.split(1, -2):
                labels = task.labels(plane).numpy()
                counts += np.bincount(labels.ravel(), minlength=largest + 1)
                write(labels)
    return _volumes(task, counts * abs(float(np.linalg.det(affine[:3, :3]))), calibration)


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
        if np.isfinite(truth).any():
            for name, values in task.judged.items():
                found, true = (int((np.isin(x, values) & np.isfinite(truth)).sum()) for x in (ours, truth))
                misses[name].append(abs(math.log(true / found)) if found and true else None if found or true else 0.0)
        if progress is not None:
            progress(i + 1, len(windows))
    return Calibration(dataset=store.meta.dataset, subjects=max(map(len, misses.values())), misses=misses)


def _volumes(task: Segment, mm3: np.ndarray, calibration: Calibration | None) -> list[Volume]:
    made = []
    for name, values in task.judged.items():
        volume = float(mm3[list(values) if isinstance(values, tuple) else [values]].sum())
        factor = calibration.factor(name) if calibration is not None and volume else None
        made.append(Volume(name, volume) if factor is None else Volume(name, volume, volume / factor, volume * factor))
    return made


def _opened(adapter: Volumes, image: Path | Mapping[str, Path]) -> _Image:
    """Raises `InputError` if modalities are missing or on several grids."""
    paths = {adapter.modalities[0]: image} if isinstance(image, Path) else dict(image)
    if set(paths) != set(adapter.modalities):
        raise InputError(next(iter(paths.values()), "images"), key="modalities", found=", ".join(paths) or "none",
                         expected=", ".join(adapter.modalities), fix="give one image of each")
    scans = {name: nifti.scans(str(paths[name]), VolumeOptions(), Limits())[0] for name in adapter.modalities}
    first = scans[adapter.modalities[0]]
    refuse_bad_affine(first.affine, first.path)
    for scan in scans.values():
        if scan.shape != first.shape or not same_grid(first.affine, scan.affine, first.shape):
            raise InputError(scan.path, key="grid", found=f"{scan.shape}, another grid than {first.path}",
                             expected=f"{first.shape} on the same affine", fix="register and resample it to that grid")
    stored = {name: scan.open() for name, scan in scans.items()}
    numbers = {}
    for name, scan in scans.items():
        step = max(1, math.prod(scan.shape) // MOST_SAMPLED)
        numbers[name] = intensity(scan.values(np.asarray(stored[name].flat[::step]), 0), adapter.config.intensity)
    dataset = next((name for name, known in adapter.datasets.items() if set(known.modalities) == set(scans)), "")
    return _Image(scans, stored, {"domain": DOMAIN, "dataset": dataset, "source": first.path, "intensity": numbers})


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
def _writing(out: Path, like: str, kind: type[np.unsignedinteger[Any]]) -> Iterator[Callable[[np.ndarray], None]]:
    """What takes planes of a label map, one after the other, into a file with the header of the image `like`."""
    header = nifti.header_of(like, like)[0]
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
        yield lambda labels: file.write(labels.astype(dtype).tobytes(order="F"))
