"""The recipe's section ``domains.series``. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sciml.recipe import Named, Section

LOOK_BACKS = 4
"""Different ones that validation asks at, where training draws them."""
TransformName = Literal["sqrt", "log"]


class DatasetConfig(Section):
    """What one data set wants different from the rest of the section; None: as the section says.

    transform: the function of the values, all at least 0, in which cycle and ridge are fitted (`forecast` only). cycle:
    the one that is taken out, or none; auto: what validation says (`RidgeConfig`).
    """

    look_back: int | None = Field(default=None, ge=2)
    horizons: tuple[int, ...] | None = Field(default=None, min_length=1)
    transform: Literal["none"] | TransformName = "none"
    cycle: Literal["auto", "none", "day", "week", "year"] = "auto"

    @model_validator(mode="after")
    def _ascending(self) -> DatasetConfig:
        if self.horizons is not None:
            _check_horizons(self.horizons)
        return self


class RidgeConfig(Section):
    """The closed-form baseline. strengths: tried on validation, relative to the mean diagonal of the Gram matrix.

    cycles: periods whose mean course may be taken out before the ridge and put back after it; kept is the shortest that
    none improves on by half a percent of the error on validation, none if none does or if validation has fewer than ten
    independent blocks.
    """

    strengths: tuple[float, ...] = Field(default=(1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1), min_length=1)
    cycles: tuple[Literal["day", "week", "year"], ...] = ("day", "week", "year")


class InputConfig(Section):
    """What the operator is told beside the values. calendar: sin and cos of day, week and year. spread: look-backs are
    divided by their own standard deviation. level: their mean, which is removed. identity: which variate it is;
    without, data sets that weren't fitted can be forecast, too."""

    calendar: bool = True
    spread: bool = False
    level: bool = False
    identity: bool = True


class SeriesConfig(Section):
    """look_back, horizons: in time steps. shortest: training draws each batch's look-back from there on (null: all have
    `look_back`). patch: time steps per token; auto: of the first data set's strongest period, or a part of it.
    missing: in training, the largest share of the look-back that is hidden, as one gap in all variates or cell by cell.
    slots: that many tokens per patch read all variates, instead of one for each; for tasks that ask about whole series.
    datasets: overrides by name.
    """

    task: Named = Named(name="forecast")
    look_back: int = Field(default=96, ge=2)
    shortest: int | None = Field(default=None, ge=2)
    horizons: tuple[int, ...] = Field(default=(96, 192, 336, 720), min_length=1)
    patch: Annotated[int, Field(ge=1)] | Literal["auto"] = 24
    missing: float = Field(default=0.0, ge=0, lt=1)
    slots: int = Field(default=0, ge=0)
    inputs: InputConfig = InputConfig()
    ridge: RidgeConfig = RidgeConfig()
    datasets: dict[str, DatasetConfig] = Field(default_factory=dict)

    @field_validator("horizons")
    @classmethod
    def _ascending(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        _check_horizons(horizons)
        return horizons

    def of(self, dataset: str) -> DatasetConfig:
        return self.datasets.get(dataset, DatasetConfig())

    def look_back_of(self, dataset: str) -> int:
        return self.of(dataset).look_back or self.look_back

    def look_backs_of(self, dataset: str) -> tuple[int, ...]:
        """What validation asks at: the look-back or, where training draws them, `LOOK_BACKS` from the shortest on.

        >>> SeriesConfig(look_back=512, shortest=96).look_backs_of("etth1"), SeriesConfig().look_backs_of("etth1")
        ((96, 235, 373, 512), (96,))
        """
        longest = self.look_back_of(dataset)
        first = longest if self.shortest is None else min(self.shortest, longest)
        return tuple(dict.fromkeys(round(first + (longest - first) * i / (LOOK_BACKS - 1)) for i in range(LOOK_BACKS)))

    def horizons_of(self, dataset: str) -> tuple[int, ...]:
        return self.of(dataset).horizons or self.horizons


def _check_horizons(horizons: tuple[int, ...]) -> None:
    if min(horizons) < 1 or list(horizons) != sorted(set(horizons)):
        raise ValueError("horizons must be positive, ascending and different")
