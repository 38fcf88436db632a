"""Options that all readers of volumes take.

    options:
      modality: mri                                # name of the image; of several: images
      images: {t1: "{subject}_t1.nii.gz", t2: t2}  # by modality: a folder or pattern below the folder that is named
      labels: "{subject}_seg.nii.gz"               # likewise; a folder labels or labelsTr is found without
      structures: [background, liver, tumour]      # by label value
      ignore: 255                                  # a label value that says nothing
      unit: HU                                     # of all images, or by modality: {ct: HU}
      frames: time                                 # of 4-D images: points of time of one subject; or
                                                   # groups: subjects of their own; or names of modalities
      step_s: 0.04                                 # between frames, where the file doesn't say (or says it wrong)
      orientation: RAS                             # what the axes point to, where the file doesn't say
      brick: 32                                    # voxels an axis that are stored together

Readers of single files also take ``classes: participants.tsv``, a table beside the images with a class for every
subject; ``{table: participants.tsv, subject: participant_id, column: diagnosis}`` names its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sciml.data.bricks import BRICK
from sciml.recipe import Section, validate

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


def _by_value(value: Any) -> Any:
    """A mapping from label values to names as a list; values without a name are called after themselves."""
    if not isinstance(value, Mapping):
        return value
    known = {int(number): str(name) for number, name in value.items()}
    if not known or min(known) < 0 or max(known) > 65535:
        raise ValueError("label values from 0 to 65535, each with a name")
    return [known.get(number, "background" if number == 0 else f"label_{number}") for number in range(max(known) + 1)]


class ClassTable(Section):
    """table: its path below the images' folder; subject, column: names of the columns with subjects (or files) and
    classes, where they aren't called so."""

    table: str
    subject: str = ""
    column: str = ""


def _table(value: Any) -> Any:
    return {"table": value} if isinstance(value, str) else value


class VolumeOptions(Section):
    """See the module. select: start and stop by dimension."""

    modality: Name = "image"
    images: dict[Name, str] = Field(default_factory=dict)
    labels: str | None = None
    structures: Annotated[tuple[str, ...], BeforeValidator(_by_value)] = ()
    ignore: int | None = None
    classes: Annotated[ClassTable | None, BeforeValidator(_table)] = None
    unit: str | dict[str, str] = "1"
    frames: Literal["groups", "time"] | tuple[Name, ...] | None = None
    step_s: float | None = Field(default=None, gt=0)
    orientation: str | None = None
    brick: int = Field(default=BRICK, ge=4, le=128)
    select: dict[str, tuple[int, int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _timed(self) -> VolumeOptions:
        if self.step_s is not None and self.frames != "time":
            raise ValueError("step_s is the step of frames that are points of time: add frames: time")
        return self

    def unit_of(self, modality: str) -> str:
        return self.unit if isinstance(self.unit, str) else self.unit.get(modality, "1")


OPTIONS = frozenset(VolumeOptions.model_fields) - {"select", "classes", "step_s"}


def volume_options(options: Mapping[str, Any], where: object, own: frozenset[str] = frozenset()) -> VolumeOptions:
    """Validated options of a source; own: those of the reader itself, which it validates. Raises `InputError`."""
    given = {key: value for key, value in options.items() if key not in own | {"format", "limits"}}
    return validate(VolumeOptions, given, where=where)
