"""Labelled volumes that are generated: two nested structures in textured tissue, imaged as a scanner would.

Anatomy is a function of place in mm (right, anterior, superior), drawn anew for each subject: a head (ellipsoid) of
textured tissue; in it a shell whose surface is an ellipsoid bent by low harmonics; in the shell a core, off centre; and
decoys, blobs as bright as shell or core that are neither, so that brightness alone doesn't tell. The image is
``scale · bias · (tissue + texture) + noise``, edges blurred by `blur_mm`: partial volume. The grid then samples it:
spacing, orientation and tilt differ by subject. Subject i depends on (seed, i) alone.

With `frames` the shell holds a core and its twin, as large and bright as one another, that only time tells apart: the
core beats and the twin keeps one of the core's sizes (labels move), or both fill and empty again, the core before the
twin (one label map for all frames). Noise is drawn anew for each frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from sciml.data.affines import from_spacing
from sciml.data.readers import _volumes as volumes
from sciml.data.readers._volumes import Film, Subject
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.recipe import Section, validate

STRUCTURES = ("background", "shell", "core")
CLASSES = ("cored", "hollow")
TISSUE = {"outside": 0.0, "head": 0.45, "shell": 0.8, "core": 0.6}
"""Brightness before bias and scale."""
WAVES = 24
BEAT, WIDTH, FILLED = 0.25, 0.18, 1.1
"""Of a film: amplitude of the core's radii; standard deviation of the time of filling as a share of the film, times √2;
brightness of what is full."""


class Options(Section):
    """What to generate. field_mm: extent of the grid along right, anterior, superior; spacing_mm: between these bounds,
    drawn for each axis; orientations: codes of which each subject has one; tilt_deg: standard deviation of a rotation;
    noise: standard deviation against the brightness of 1; decades: the scale of a volume is 10 to the power of up to
    this; labelled: how many subjects have labels (null: all); hollow: share of subjects without a core, which makes two
    classes of them (0: no classes). frames: points of time, step_s apart (0: still images); course: what they show."""

    subjects: int = Field(default=40, ge=1)
    field_mm: tuple[float, float, float] = (56.0, 64.0, 48.0)
    spacing_mm: tuple[float, float] = (1.25, 2.5)
    orientations: tuple[str, ...] = ("RAS", "LPS", "LAS", "PIR", "SRP")
    tilt_deg: float = Field(default=4.0, ge=0, le=30)
    noise: float = Field(default=0.06, ge=0)
    decades: float = Field(default=3.0, ge=0, le=6)
    labelled: int | None = Field(default=None, ge=1)
    hollow: float = Field(default=0.0, ge=0, lt=1)
    frames: int = Field(default=0, ge=0, le=1000)
    course: Literal["beat", "fill"] = "beat"
    step_s: float = Field(default=0.1, gt=0)
    seed: int = Field(default=0, ge=0)
    brick: int = Field(default=32, ge=4, le=128)

    @model_validator(mode="after")
    def _sensible(self) -> Options:
        low, high = self.spacing_mm
        if not 0 < low <= high or min(self.field_mm) < 8 * high:
            raise ValueError("0 < spacing_mm[0] ≤ spacing_mm[1], and field_mm at least eight of the largest spacing")
        if not self.orientations:
            raise ValueError("orientations: at least one code such as RAS")
        if self.frames == 1 or (self.frames and self.hollow):
            raise ValueError("frames: at least 2, with a core in every subject (hollow: 0), or 0")
        return self


@dataclass(frozen=True)
class Blob:
    """An ellipsoid bent by harmonics: inside where `depth` is above 0. rotation ``(3, 3)``; radii and centre in mm;
    bend ``(3,)``: amplitude of ``sin 2φ sin θ``, ``cos 3φ sin θ`` and ``cos 2θ`` of the direction."""

    centre: np.ndarray
    radii: np.ndarray
    rotation: np.ndarray
    bend: np.ndarray

    def depth(self, place: np.ndarray) -> np.ndarray:
        """About the distance in mm to the surface, positive inside, of places ``(..., 3)``."""
        x, y, z = np.moveaxis((place - self.centre) @ self.rotation / self.radii, -1, 0)
        radius = np.sqrt(x * x + y * y + z * z)
        flat = np.sqrt(x * x + y * y) / np.maximum(radius, 1e-6)
        angle = np.arctan2(y, x)
        up = np.clip(z / np.maximum(radius, 1e-6), -1, 1)
        surface = 1 + self.bend[0] * np.sin(2 * angle) * flat + self.bend[1] * np.cos(3 * angle) * flat + \
            self.bend[2] * (2 * up * up - 1)
        depth: np.ndarray = (surface - radius) * float(self.radii.mean())
        return depth


@dataclass(frozen=True)
class Phantom:
    """One subject: its grid and its anatomy; everything follows from `key`, (seed, subject)."""

    options: Options
    key: tuple[int, int]
    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, options: Options, subject: int) -> Phantom:
        rng = np.random.default_rng((options.seed, subject, 0))
        code = options.orientations[subject % len(options.orientations)]
        mm = rng.uniform(*options.spacing_mm, 3)
        straight = from_spacing(mm, code, "phantoms options")
        field = np.abs(np.array(options.field_mm) @ (straight[:3, :3] / mm))
        shape = tuple(int(n) for n in np.maximum(np.round(field / mm), 8))
        linear = _rotation(np.deg2rad(options.tilt_deg) * rng.standard_normal(3)) @ straight[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = rng.normal(0, 20, 3) - linear @ (np.array(shape) - 1) / 2
        return cls(options, (options.seed, subject), shape, affine)  # type: ignore[arg-type]

    def places(self) -> np.ndarray:
        """``(I, J, K, 3)`` mm from the middle of the grid."""
        index = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"),
                         -1) - (np.array(self.shape) - 1) / 2
        places: np.ndarray = index @ self.affine[:3, :3].T
        return places

    def anatomy(self) -> tuple[Blob, Blob, Blob, list[Blob]]:
        """Head, shell, core and decoys."""
        rng = np.random.default_rng((*self.key, 1))
        field = np.array(self.options.field_mm)
        head = Blob(np.zeros(3), 0.44 * field * rng.uniform(0.9, 1.1, 3), np.eye(3), 0.04 * rng.standard_normal(3))
        turn = _rotation(0.35 * rng.standard_normal(3))
        radii = field.mean() * np.array([0.17, 0.27, 0.15]) * rng.uniform(0.85, 1.15, 3)
        shell = Blob(field * rng.uniform(-0.06, 0.06, 3), radii, turn, np.clip(0.1 * rng.standard_normal(3), -0.2, 0.2))
        offset = turn @ (radii * [0.1, rng.uniform(0.1, 0.3), 0.1])
        core = Blob(shell.centre + offset, radii * 0.55 * rng.uniform(0.85, 1.15, 3), turn,
                    0.05 * rng.standard_normal(3))
        decoys = []
        for _ in range(int(rng.integers(2, 5))):
            direction = rng.standard_normal(3)
            centre = 0.34 * field * direction / np.linalg.norm(direction)
            decoys.append(Blob(centre, field.mean() * rng.uniform(0.04, 0.09, 3), _rotation(rng.standard_normal(3)),
                               0.1 * rng.standard_normal(3)))
        return head, shell, core, decoys

    def pair(self, frame: int) -> list[tuple[Blob, float]]:
        """Core and twin in a frame of a film, on either side of the shell's middle, and their brightness."""
        rng, (_, shell, _, _) = np.random.default_rng((*self.key, 4)), self.anatomy()
        side, now = float(rng.choice([-1.0, 1.0])), frame / self.options.frames
        made = []
        for number in range(2):
            away = shell.radii * [0.0, side * (0.48 - 0.96 * number), 0.0]
            radii, phase = shell.radii * [0.75, 0.4, 0.75] * rng.uniform(0.9, 1.1, 3), rng.uniform()
            bend, full = 0.05 * rng.standard_normal(3), rng.uniform(0.2, 0.35) + 0.4 * number
            level = TISSUE["core"]
            if self.options.course == "beat":
                radii = radii * (1 + BEAT * np.sin(2 * np.pi * (phase + (0.0 if number else now))))
            else:
                level = TISSUE["shell"] + (FILLED - TISSUE["shell"]) * np.exp(-(((now - full) / WIDTH) ** 2))
            made.append((Blob(shell.centre + shell.rotation @ away, radii, shell.rotation, bend), float(level)))
        return made

    @property
    def hollow(self) -> bool:
        """Whether its core is missing."""
        return bool(np.random.default_rng((*self.key, 3)).random() < self.options.hollow)

    def label(self, frame: int | None = None) -> np.ndarray:
        """``(I, J, K)`` float32: 0, 1 in the shell, 2 in the core."""
        places = self.places()
        _, shell, core, _ = self.anatomy()
        if frame is not None:
            core, _ = self.pair(frame)[0]
        cored = core.depth(places) > 0 if not self.hollow else False
        return np.where(shell.depth(places) > 0, np.where(cored, 2, 1), 0).astype(np.float32)

    def image(self, frame: int | None = None) -> np.ndarray:
        """``(I, J, K)`` float32."""
        places, rng = self.places(), np.random.default_rng((*self.key, 2))
        head, shell, core, decoys = self.anatomy()
        blur = 0.35 * float(np.linalg.norm(self.affine[:3, :3], axis=0).mean())
        tissue = TISSUE["head"] * _soft(head.depth(places), blur)
        for i, decoy in enumerate(decoys):
            level = TISSUE["shell"] if i % 2 else TISSUE["core"]
            tissue += (level - tissue) * _soft(np.minimum(decoy.depth(places), -shell.depth(places)), blur)
        edge = _soft(shell.depth(places), blur)
        tissue += (TISSUE["shell"] - tissue) * edge
        inside = [(core, TISSUE["core"])] if frame is None else self.pair(frame)
        for blob, level in [] if self.hollow else inside:
            tissue += (level - tissue) * edge * _soft(blob.depth(places), blur)
        texture = 0.05 * _waves(places, (4.0, 12.0), rng) * (tissue > 0.05)
        bias = np.exp(0.25 * _waves(places, (80.0, 160.0), rng))
        scale = 10 ** rng.uniform(0, self.options.decades)
        rng = rng if frame is None else np.random.default_rng((*self.key, 5, frame))
        noise = self.options.noise * rng.standard_normal(self.shape)
        return (scale * np.abs(bias * (tissue + texture) + noise)).astype(np.float32)


def _soft(depth: np.ndarray, width: float) -> np.ndarray:
    result: np.ndarray = 0.5 * (1 + np.tanh(depth / width))
    return result


def _waves(places: np.ndarray, lengths: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of variance 1: plane waves of these wavelengths in mm, random in direction and phase."""
    total = np.zeros(places.shape[:-1])
    for _ in range(WAVES):
        direction = rng.standard_normal(3)
        number = 2 * np.pi / rng.uniform(*lengths) * direction / np.linalg.norm(direction)
        total += np.cos(places @ number + rng.uniform(0, 2 * np.pi))
    return total * np.sqrt(2 / WAVES)


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Rodrigues: the rotation about `vector` by its length in radians, ``(3, 3)``."""
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result: np.ndarray = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return result


@dataclass(frozen=True)
class PhantomScan:
    """Image or label map of a phantom; see `sciml.data.readers._volumes.Scan`."""

    phantom: Phantom
    what: Literal["image", "label"]
    frame: int | None = None
    streamed: bool = True
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"phantom {self.phantom.key[1]} {self.what}" + ("" if self.frame is None else f" {self.frame}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.phantom.shape

    @property
    def affine(self) -> np.ndarray:
        return self.phantom.affine

    def open(self) -> np.ndarray:
        return self.phantom.image(self.frame) if self.what == "image" else self.phantom.label(self.frame)

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """``mri (voxel)`` and ``label (voxel)`` of all subjects, generated when asked for, one subject and frame at a time;
    with `hollow`, ``category (subject)``.

    Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="phantoms options")
    digits = len(str(chosen.subjects - 1))
    labelled = chosen.subjects if chosen.labelled is None else chosen.labelled
    subjects = []
    for i in range(chosen.subjects):
        phantom = Phantom.of(chosen, i)
        film = _film(phantom, labelled=i < labelled) if chosen.frames else None
        label = PhantomScan(phantom, "label") if i < labelled else None
        category = CLASSES[phantom.hollow] if chosen.hollow else ""
        subjects.append(Subject(f"phantom_{i:0{digits}d}", {"mri": PhantomScan(phantom, "image")}, label,
                                category=category, film=film))
    common = VolumeOptions(modality="mri", structures=STRUCTURES, brick=chosen.brick)
    return volumes.dataset(subjects, common, format="phantoms", where="phantoms options",
                           notes=["generated: no scanner, no patient"])


def _film(phantom: Phantom, *, labelled: bool) -> Film:
    options, frames = phantom.options, range(phantom.options.frames)
    moving = frames if options.course == "beat" else frames[:1]
    return Film(tuple(options.step_s * t for t in frames), {"mri": [PhantomScan(phantom, "image", t) for t in frames]},
                [PhantomScan(phantom, "label", t) for t in moving] if labelled else [])


PLUGIN = build
