"""The ``split`` of a source file: what train, validation and test are made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from sciml.recipe import Section


class Fractions(Section):
    train: float = Field(default=0.8, gt=0, le=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _at_most_all(self) -> Fractions:
        if self.train + self.validation + self.test > 1 + 1e-9:
            raise ValueError("fractions add up to more than 1")
        return self


class Counts(Section):
    train: int = Field(gt=0)
    validation: int = Field(ge=0)
    test: int = Field(ge=0)


class GroupSplit(Section):
    """Whole groups, drawn in an order given by `seed` (null: in the order of the file). together: a variable with one
    number per group; groups of equal ones are never parted."""

    by: Literal["group"] = "group"
    together: str | None = None
    fractions: Fractions | None = None
    counts: Counts | None = None
    seed: int | None = Field(default=0, ge=0)


class FoldSplit(Section):
    """Whole groups in the order of the file: group i is in fold ``i % folds``. One fold tests, one validates (null:
    none), the rest train. together: as of `GroupSplit`; then their number counts."""

    fractions: ClassVar[None] = None
    counts: ClassVar[None] = None
    by: Literal["fold"]
    folds: int = Field(default=5, ge=2)
    test: int | None = Field(default=0, ge=0)
    validation: int | None = Field(default=1, ge=0)
    together: str | None = None

    @model_validator(mode="after")
    def _within(self) -> FoldSplit:
        taken = [fold for fold in (self.test, self.validation) if fold is not None]
        if len(set(taken)) < len(taken) or len(taken) == self.folds or max(taken, default=0) >= self.folds:
            raise ValueError("test and validation are two different folds below `folds`, and at least one is left to "
                             "train")
        return self


class TimeSplit(Section):
    """The same contiguous stretches of time in every group; `gap` steps are left out between them (null: as is usual
    in the domain). Where groups have steps of their own, the last of each are test, those before them validation; then
    counts of train are at most so many."""

    by: Literal["time"]
    fractions: Fractions | None = None
    counts: Counts | None = None
    gap: int | None = Field(default=None, ge=0)


class GivenSplit(Section):
    """Whole groups as the data say: the variable `part` has one number per group, 0 train, 1 validation, 2 test.

    validation: where none is for validation, this share of the training groups is, drawn with `seed` (null: evenly
    spaced in the order of the file) from those of each value of the variable `stratify` (null: the label, if any).
    """

    fractions: ClassVar[None] = None
    counts: ClassVar[None] = None
    together: ClassVar[None] = None
    by: Literal["given"]
    part: str = "part"
    validation: float = Field(default=0.2, ge=0, lt=1)
    stratify: str | None = None
    seed: int | None = Field(default=0, ge=0)


BY = ("group", "fold", "time", "given")


def _as_split(value: Any) -> Any:
    if isinstance(value, dict) and (value.get("by") not in BY or {"shuffle", "random"} & value.keys()):
        raise ValueError("by: group (whole groups), by: fold (every nth group), by: given (as the data say) or by: "
                         "time (contiguous blocks with a gap between them); windows are never drawn into splits at "
                         "random: those beside a training window hold its answers")
    return value


Split = Annotated[Annotated[GroupSplit | FoldSplit | TimeSplit | GivenSplit, Field(discriminator="by")],
                  BeforeValidator(_as_split)]
