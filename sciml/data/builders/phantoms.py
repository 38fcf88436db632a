"""Labelled volumes that are generated: two nested structures in textured tissue, imaged as a scanner would.

Anatomy is a function of place in mm (right, anterior, superior), drawn anew for each subject: a head (ellipsoid) of
textured tissue; in it a shell whose surface is an ellipsoid bent by low harmonics; in the shell a core, off centre; and
decoys, blobs as bright as shell or core that are neither, so that brightness alone doesn't tell. The image is
``scale · bias · (tissue + texture) + noise``, edges blurred by `blur_mm`: partial volume. The grid then samples it:
spacing, orientation and tilt differ by subject. Subject i depends on (seed, i) alone.
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
from sciml.data.readers._volumes import Subject
from sciml.data.readers._volumes_options import VolumeOptions
from sciml.recipe import Section, validate

STRUCTURES = ("background", "shell", "core")
CLASSES = ("cored", "hollow")
TISSUE = {"outside": 0.0, "head": 0.45, "shell": 0.8, "core": 0.6}
"""Brightness before bias and scale."""
WAVES = 24


class Options(Section):
    """What to generate. field_mm: extent of the grid along right, anterior, superior; spacing_mm: between these bounds,
    drawn for each axis; orientations: codes of which each subject has one; tilt_deg: standard deviation of a rotation;
    noise: standard deviation against the brightness of 1; decades: the scale of a volume is 10 to the power of up to
    this; labelled: how many subjects have labels (null: all); hollow: share of subjects without a core, which makes two
    classes of them (0: no classes)."""

    subjects: int = Field(default=40, ge=1)
    field_mm: tuple[float, float, float] = (56.0, 64.0, 48.0)
    spacing_mm: tuple[float, float] = (1.25, 2.5)
    orientations: tuple[str, ...] = ("RAS", "LPS", "LAS", "PIR", "SRP")
    tilt_deg: float = Field(default=4.0, ge=0, le=30)
    noise: float = Field(default=0.06, ge=0)
    decades: float = Field(default=3.0, ge=0, le=6)
    labelled: int | None = Field(default=None, ge=1)
    hollow: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    brick: int = Field(default=32, ge=4, le=128)

    @model_validator(mode="after")
    def _sensible(self) -> Options:
        low, high = self.spacing_mm
        if not 0 < low <= high or min(self.field_mm) < 8 * high:
            raise ValueError("0 < spacing_mm[0] ≤ spacing_mm[1], and field_mm at least eight of the largest spacing")
        if not self.orientations:
            raise ValueError("orientations: at least one code such as RAS")
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

    @property
    def hollow(self) -> bool:
        """Whether its core is missing."""
        return bool(np.random.default_rng((*self.key, 3)).random() < self.options.hollow)

    def label(self) -> np.ndarray:
        """``(I, J, K)`` float32: 0, 1 in the shell, 2 in the core."""
        places = self.places()
        _, shell, core, _ = self.anatomy()
        cored = core.depth(places) > 0 if not self.hollow else False
        return np.where(shell.depth(places) > 0, np.where(cored, 2, 1), 0).astype(np.float32)

    def image(self) -> np.ndarray:
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
        if not self.hollow:
            tissue += (TISSUE["core"] - tissue) * edge * _soft(core.depth(places), blur)
        texture = 0.05 * _waves(places, (4.0, 12.0), rng) * (tissue > 0.05)
        bias = np.exp(0.25 * _waves(places, (80.0, 160.0), rng))
        scale = 10 ** rng.uniform(0, self.options.decades)
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
    streamed: bool = True
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"phantom {self.phantom.key[1]} {self.what}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.phantom.shape

    @property
    def affine(self) -> np.ndarray:
        return self.phantom.affine

    def open(self) -> np.ndarray:
        return self.phantom.image() if self.what == "image" else self.phantom.label()

    def values(self, stored: np.ndarray, start: int) -> np.ndarray:
        return stored


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """``mri (voxel)`` and ``label (voxel)`` of all subjects, generated when asked for, one subject at a time; with
    `hollow`, ``category (subject)``.

    Raises `InputError` naming the wrong option.
    """
    chosen = validate(Options, dict(options), where="phantoms options")
    digits = len(str(chosen.subjects - 1))
    labelled = chosen.subjects if chosen.labelled is None else chosen.labelled
    subjects = []
    for i in range(chosen.subjects):
        phantom = Phantom.of(chosen, i)
        label = PhantomScan(phantom, "label") if i < labelled else None
        category = CLASSES[phantom.hollow] if chosen.hollow else ""
        subjects.append(Subject(f"phantom_{i:0{digits}d}", {"mri": PhantomScan(phantom, "image")}, label,
                                category=category))
    common = VolumeOptions(modality="mri", structures=STRUCTURES, brick=chosen.brick)
    return volumes.dataset(subjects, common, format="phantoms", where="phantoms options",
                           notes=["generated: no scanner, no patient"])


PLUGIN = build
