"""The recipe's section ``domains.volumes``, and what a fitted adapter remembers of a data set. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sciml.recipe import Named, Section

AxisName = Literal["x", "y", "z"]
Size = tuple[int, int, int] | tuple[int, int, int, int]
"""Voxels along x, y, z, and frames."""
CATEGORY, CLASS = "category", "class"
"""The variable that says which class a subject is of, and the coordinate with their names."""


class PatchConfig(Section):
    """What training draws. size: voxels (x, y, z) of a patch on the tokens' grid and, of volumes with frames, how many
    of these (null: the window's; three numbers: all); per_volume: patches of each volume an epoch; foreground: share
    of them that are centred on a labelled structure, each structure as often; augment: options of
    `sciml.domains.volumes.augment`, null for none."""

    size: Size | None = None
    per_volume: int = Field(default=1, ge=1)
    foreground: float = Field(default=0.5, ge=0, le=1)
    augment: dict[str, Any] | None = Field(default_factory=dict)


class IntensityConfig(Section):
    """How numbers of an image become numbers of order one. percentiles: of each volume; limits: in the image's unit
    (Hounsfield units of a CT), the same for all volumes, instead."""

    percentiles: tuple[float, float] = (0.5, 99.5)
    limits: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> IntensityConfig:
        low, high = self.percentiles
        if not 0 <= low < high <= 100 or (self.limits is not None and self.limits[0] >= self.limits[1]):
            raise ValueError("percentiles within 0 … 100 and limits ascend")
        return self


class VolumesConfig(Section):
    """window: voxels (x, y, z) that are answered at once and, of volumes with frames, how many of these (three numbers:
    all); where a volume is larger, windows `overlap` by that share at least. They are also answered flipped along
    `mirrors`. spacing_mm: the grid that tokens are made on (null: the image's own; positions are in mm in either case).
    reference_mm, reference_s: the reference length and time. patch: voxels along an axis that make one token. stem: a
    name in ``sciml.operator.stems``.
    """

    task: Named = Named(name="segment")
    patch: int = Field(default=2, ge=1)
    stem: str = "convolution"
    window: Size = (64, 64, 64)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    mirrors: tuple[AxisName, ...] = ()
    spacing_mm: tuple[float, float, float] | None = None
    reference_mm: float = Field(default=32.0, gt=0)
    reference_s: float = Field(default=1.0, gt=0)
    intensity: IntensityConfig = IntensityConfig()
    patches: PatchConfig = PatchConfig()

    @field_validator("window", "patches")
    @classmethod
    def _positive(cls, given: Any) -> Any:
        size = given.size if isinstance(given, PatchConfig) else given
        if size is not None and min(size) < 1:
            raise ValueError("at least one voxel along each axis")
        return given

    @property
    def drawn(self) -> Size:
        """Voxels of a training patch, and frames."""
        return self.patches.size or self.window

    def tile(self, lattice: Sequence[int]) -> tuple[int, ...]:
        """The window along the axes of a lattice, time first where there are four."""
        most = self.window[3] if len(self.window) == 4 else max(lattice)
        return (*[most] * (len(lattice) - 3), *self.window[:3])

    @field_validator("spacing_mm")
    @classmethod
    def _lengths(cls, spacing: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if spacing is not None and not min(spacing) > 0:
            raise ValueError("spacing_mm: three positive numbers, or null")
        return spacing


class Known(Section):
    """One data set: modalities in the order of channels with their units; structures by label value (empty without
    labels); classes of subjects; identity of its split. frames: whether images have several; moving: whether labels
    then differ between them."""

    modalities: dict[str, str]
    structures: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    split: str = ""
    frames: bool = False
    moving: bool = False
