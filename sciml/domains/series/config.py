"""The recipe's section ``domains.series``. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sciml.recipe import Section


class DatasetConfig(Section):
    """What one data set wants different from the rest of the section; None: as the section says."""

    look_back: int | None = Field(default=None, ge=2)
    horizons: tuple[int, ...] | None = Field(default=None, min_length=1)

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


class SeriesConfig(Section):
    """look_back, horizons: in time steps. patch: time steps per token. calendar: sin and cos of day, week and year.

    spread: divide the look-back by its standard deviation. level: tell the operator the window's mean, which is
    removed. missing: in training, the largest share of the look-back hidden as one gap. datasets: overrides by name.
    """

    look_back: int = Field(default=96, ge=2)
    horizons: tuple[int, ...] = Field(default=(96, 192, 336, 720), min_length=1)
    patch: int = Field(default=24, ge=1)
    calendar: bool = True
    spread: bool = False
    level: bool = False
    missing: float = Field(default=0.0, ge=0, lt=1)
    objective: str = "mse"
    ridge: RidgeConfig = RidgeConfig()
    datasets: dict[str, DatasetConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ascending(self) -> SeriesConfig:
        _check_horizons(self.horizons)
        return self

    def look_back_of(self, dataset: str) -> int:
        return self.datasets.get(dataset, DatasetConfig()).look_back or self.look_back

    def horizons_of(self, dataset: str) -> tuple[int, ...]:
        return self.datasets.get(dataset, DatasetConfig()).horizons or self.horizons


def _check_horizons(horizons: tuple[int, ...]) -> None:
    if min(horizons) < 1 or list(horizons) != sorted(set(horizons)):
        raise ValueError("horizons must be positive, ascending and different")
