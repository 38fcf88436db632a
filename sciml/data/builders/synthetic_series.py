"""Many generated series to pretrain forecasters on: Gaussian processes of composed kernels, seasons with events, ARMA
processes and chaotic systems. Series i depends on the seed and i alone, given the number of series and their families.

Processes: `sciml.data.builders.synthetic_series_kernels`, `…_processes`, `…_chaos`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr
from pydantic import Field, model_validator
from scipy.signal import lfilter

from sciml.data.builders.synthetic_series_chaos import draw_chaos
from sciml.data.builders.synthetic_series_kernels import draw_terms
from sciml.data.builders.synthetic_series_processes import Arma, draw_seasonal
from sciml.recipe import Section, validate

Family = Literal["gaussian", "seasonal", "autoregressive", "chaotic"]
Step = Literal["quarter_hour", "hour", "day", "week"]
SEASONS: dict[str, tuple[float, ...]] = {
    "quarter_hour": (96.0, 672.0, 48.0), "hour": (24.0, 168.0, 12.0), "day": (7.0, 365.2425, 30.436875),
    "week": (52.1775, 13.044375, 4.348125)}
"""Usual periods in steps, the most usual one first."""
NANOSECONDS = {"quarter_hour": 900 * 10**9, "hour": 3600 * 10**9, "day": 86400 * 10**9, "week": 7 * 86400 * 10**9}
LONGEST_LAG = 24


class Options(Section):
    """What to generate. families: the share of each in the series. step: width of a step, which says what seasons are
    usual. coupling: share of series whose first variate leads the others by up to 24 steps. block: series made at once.
    """

    series: int = Field(default=2048, ge=1)
    variates: int = Field(default=4, ge=1)
    steps: int = Field(default=1024, ge=32)
    step: Step = "hour"
    families: dict[Family, float] = Field(default={"gaussian": 0.3, "seasonal": 0.4, "autoregressive": 0.2,
                                                   "chaotic": 0.1}, min_length=1)
    coupling: float = Field(default=0.5, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    block: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _shares(self) -> Options:
        if min(self.families.values()) < 0 or sum(self.families.values()) <= 0:
            raise ValueError("families: shares of at least 0, one of them above")
        return self

    @property
    def numbers(self) -> dict[Family, int]:
        """How many series of each family, in this order; they add up to `series`."""
        share = np.array(list(self.families.values()))
        ends = np.rint(self.series * np.cumsum(share) / share.sum()).astype(int)
        return dict(zip(self.families, np.diff(ends, prepend=0).tolist()))


def generate(options: Options, family: Family, start: int, stop: int) -> np.ndarray:
    """Series ``start ≤ i < stop`` of a family, ``(stop − start, steps, variates)`` float64, each variate of mean 0 and
    variance 1."""
    which = ("gaussian", "seasonal", "autoregressive", "chaotic").index(family)
    rngs = [np.random.default_rng((options.seed, which, i)) for i in range(start, stop)]
    length = options.steps + LONGEST_LAG
    if family == "chaotic":
        drawn = [_observed(states, options.variates, rng)
                 for states, rng in zip(draw_chaos(length, start, rngs), rngs)]
    else:
        drawn = [np.stack([_draw(family, length, SEASONS[options.step], rng) for _ in range(options.variates)], 1)
                 for rng in rngs]
    return np.stack([_coupled(series, options, rng) for series, rng in zip(drawn, rngs)])


def _draw(family: Family, steps: int, periods: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    if family == "gaussian":
        terms, noise = draw_terms(steps, periods, rng)
        return np.asarray(sum(term.sample(steps, rng) for term in terms) + noise * rng.standard_normal(steps))
    if family == "seasonal":
        return draw_seasonal(steps, periods, rng)
    x = Arma.draw(periods, rng).sample(steps, rng)
    return lfilter([1.0], [1.0, -0.999], x) if rng.random() < 0.2 else x


def _observed(states: np.ndarray, variates: int, rng: np.random.Generator) -> np.ndarray:
    """``(steps, variates)`` of ``(steps, state)``: the states themselves, then random mixtures; noise of up to 0.3."""
    scaled = _standardised(states)
    mixture = rng.standard_normal((states.shape[1], variates))
    mixture[:, :states.shape[1]] = np.eye(states.shape[1])[:, :variates]
    noise = rng.uniform(0, 0.3) * rng.standard_normal((len(states), variates))
    return np.asarray(scaled @ mixture + noise)


def _coupled(series: np.ndarray, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The last `steps`; in some series, variates 1, 2, … partly follow variate 0, later by their own lag."""
    scaled, steps = _standardised(series), options.steps
    result = scaled[-steps:].copy()
    if rng.random() < options.coupling:
        for variate in range(1, options.variates):
            lag, share = int(rng.integers(0, LONGEST_LAG + 1)), rng.uniform(0.1, 0.9)
            leader = scaled[len(scaled) - steps - lag:len(scaled) - lag, 0]
            result[:, variate] = np.sqrt(1 - share) * result[:, variate] + np.sqrt(share) * leader
    return _standardised(result)


def _standardised(x: np.ndarray) -> np.ndarray:
    spread = x.std(0)
    return np.asarray((x - x.mean(0)) / np.where(spread > 1e-9, spread, 1.0))


def build(options: Mapping[str, Any]) -> xr.Dataset:
    """The data set, lazily: one dask task per `block` series, any of which can be run again by itself.

    value (series, time, variate) float32, time in dates from 2000-01-03, a Monday. Raises `InputError` naming the wrong
    option.
    """
    chosen = validate(Options, dict(options), where="synthetic_series options")
    task, given = dask.delayed(_generate_block, pure=True), chosen.model_dump()
    blocks, names = [], []
    for family, number in chosen.numbers.items():
        for start in range(0, number, chosen.block):
            stop = min(start + chosen.block, number)
            shape = (stop - start, chosen.steps, chosen.variates)
            blocks.append(da.from_delayed(task(given, family, start, stop), shape, np.float32))
        names += [f"{family}_{i}" for i in range(number)]
    when = np.datetime64("2000-01-03", "ns") + np.arange(chosen.steps) * np.timedelta64(NANOSECONDS[chosen.step], "ns")
    labels = [f"v{i}" for i in range(chosen.variates)]
    return xr.Dataset(
        {"value": (("series", "time", "variate"), da.concatenate(blocks),
                   {"units": "1", "long_name": "value", "role": "state"})},
        coords={"series": names, "time": when, "variate": ("variate", labels, {"kind": "set"}),
                "variate_unit": ("variate", ["1"] * chosen.variates)},
        attrs={"domain": "series", "group_dim": "series", "notes": ["generated: no measurement"]})


def _generate_block(options: dict[str, Any], family: Family, start: int, stop: int) -> np.ndarray:
    return generate(Options.model_validate(options), family, start, stop).astype(np.float32)


PLUGIN = build
