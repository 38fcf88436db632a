"""Simple kriging: the best linear prediction of a series at any times, from its values at others, in closed form.

With z the standardised values given at times s, K their covariance (`Covariance`) with the nugget, and c that with the
value at a time t: ``E z(t) = cᵀ K⁻¹ z``, of variance ``C(0) + nugget − cᵀ K⁻¹ c``: the conditional mean of a Gaussian
process, which on a regular grid is what the ridge estimates. Cressie, Statistics for Spatial Data (1993), §3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.series.calendar import PERIODS_NS, resolvable
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.covariance import Covariance, Lags
from sciml.domains.series.encode import LEAST_SPREAD, Window, places
from sciml.domains.series.known import Known, Pieces
from sciml.domains.series.layout import Layout
from sciml.domains.series.windows import split_windows
from sciml.errors import InputError

MOST_BYTES = 64 << 20
"""Of the covariances that are at hand at once."""
JUDGED_ON = 64
"""Windows, of validation and of training; fewer where they are long."""
MOST_CELLS = 1 << 21
LEVELS = (0.0, 1.0, 10.0)
LEAST_SPREAD_OF_ERRORS = 0.2


@dataclass(frozen=True)
class Kriging:
    """The fitted baseline of a data set whose times follow no step. step: ticks in the unit of its covariance.
    horizons: how many cells are asked for. spread: ``(V,)`` by how much training residuals are larger than expected."""

    covariance: Covariance
    step: int
    look_back: int
    horizons: tuple[int, ...]
    spread: np.ndarray
    provenance: Mapping[str, Any]

    transform = None

    @property
    def horizon(self) -> int:
        return self.horizons[-1]

    def floor(self) -> Kriging:
        return self

    def course(self, ticks: np.ndarray, members: np.ndarray) -> Tensor:
        return torch.zeros(1, 1, 1)

    def ahead(self, window: Window, history: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, V, H)`` what is expected of the cells after a window's look-back ``(B, V, L)``, and the standard
        deviation of what is then seen of them; differentiable."""
        past, when = window.past, places(window, self.step)
        mean, variance = self.expected(history, window.given[..., :past], when, window.members, past)
        spread = torch.from_numpy(self.spread[window.members])[:, None]
        return mean.to(history), (variance.sqrt() * spread).to(history)

    def completed(self, window: Window, history: Tensor) -> Tensor:
        """``(B, V, T)`` what is expected of every cell, given those that are: smoothed by the nugget there."""
        return self.expected(history, window.given, places(window, self.step), window.members)[0].to(history)

    def expected(self, history: Tensor, given: Tensor, when: np.ndarray, members: np.ndarray,
                 first: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(B, V, T − first)`` at the times ``(B, T)``, in mean steps, from cell `first` on, of
        values ``(B, V, L)`` at the first L of them; float64."""
        covariance, (length, total) = self.covariance.of(members), (history.shape[2], when.shape[1])
        depth = len(covariance.rate) + 4 * max(len(covariance.weight), 1 if bool(_alike(given)) else given.shape[1])
        rows = max(1, MOST_BYTES // (8 * depth * length * total))
        times = torch.from_numpy(np.ascontiguousarray(when, np.float64))
        parts = [_expected(covariance, x.double(), m, t, first)
                 for x, m, t in zip(history.split(rows), given.split(rows), times.split(rows))]
        mean, variance = (torch.cat([part[i] for part in parts]) for i in range(2))
        return mean, variance.clamp_min(1e-8)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.covariance.state()
        return ({"kind": "kriging", "covariance": config, "step": self.step, "look_back": self.look_back,
                 "horizons": list(self.horizons), "provenance": dict(self.provenance)},
                {**arrays, "spread": self.spread})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(Covariance.restore(config["covariance"], arrays), int(config["step"]), int(config["look_back"]),
                   tuple(config["horizons"]), np.asarray(arrays["spread"]), config["provenance"])


def _alike(given: Tensor) -> Tensor:
    """Whether all variates are known at the same times."""
    return (given == given[:, :1]).all()


def _expected(covariance: Covariance, x: Tensor, given: Tensor, when: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """As `Kriging.expected`. One factor for all variates where covariance and times are the same in all of them."""
    length = x.shape[2]
    one = len(covariance.weight) == 1 and bool(_alike(given))
    mask = (given[:, :1] if one else given).to(x)
    nugget = torch.from_numpy(covariance.nugget)[:, None]
    columns = torch.cat([when[:, :length], when[:, first:] if first >= length else when], 1)
    whole = covariance.at(when[:, :length, None] - columns[:, None]) * mask[..., None]
    noise = torch.diag_embed(mask * nugget + (1 - mask))
    factor = torch.linalg.cholesky(whole[..., :length] * mask[:, :, None] + noise)
    rows = (x * given)[:, None].mT if one else (x * given)[..., None]
    white = torch.linalg.solve_triangular(factor, rows, upper=False)
    half = torch.linalg.solve_triangular(factor, whole[..., length:], upper=False)
    mean = half.mT @ white
    mean = mean[:, 0].mT if one else mean[..., 0]
    total = torch.from_numpy(covariance.variance)[:, None] + nugget
    variance = (total - half.square().sum(2)).expand_as(mean)
    return (mean, variance) if first >= length else (mean[..., first:], variance[..., first:])


def fit(layout: Layout, known: Known, config: SeriesConfig) -> Kriging:
    """Covariance from training; its shape (smooth or not, with the periods of the calendar or without, one for all
    variates or one each, how far a window's own level is trusted) by the error of forecasts on validation.

    Nothing of the test split is read. Raises `InputError` if training is too short, on a transform and on a cycle.
    """
    splits, look_back, own = layout.store.meta.splits, config.look_back_of(known.name), config.of(known.name)
    for key, value, usual in (("transform", own.transform, ("none",)), ("cycle", own.cycle, ("auto", "none"))):
        if value not in usual:
            raise InputError("domains.series", key=f"datasets.{known.name}.{key}", found=value, expected=usual[0],
                             fix="times of this data set follow no step: its baseline is kriging, which has none")
    horizons = split_windows(layout, "train", config, config.horizons_of(known.name), train=True).horizons
    train, validation = (Pieces.of(layout, known, blocks, before) for blocks, before in (
        (splits.train, 0), (splits.validation, look_back)))
    if config.inputs.spread:
        train, validation = train.over_spread(LEAST_SPREAD), validation.over_spread(LEAST_SPREAD, train)
    lags = Lags.of(train.values, [(t - t[:1]) / known.clock.step for t in train.ticks], look_back + horizons[-1])
    names = resolvable(known.clock, train.steps, config.ridge.cycles) if own.cycle == "auto" else ()
    periods = [PERIODS_NS[name] / known.clock.step for name in names]
    ones = np.ones(lags.count.shape[1])
    start = Kriging(Covariance.fit(lags.together()), known.clock.step, look_back, horizons, ones, {})
    found = _select(start, lags, periods, _windows(validation, start))
    return replace(found, spread=_spread(found, _windows(train, found)))


def _select(start: Kriging, lags: Lags, periods: list[float], windows: Window | None) -> Kriging:
    """Option by option, the one with the least error on validation is kept."""
    chosen: dict[str, Any] = {"smooth": False, "periods": [], "own": False, "level": 0.0}
    if windows is None:
        return replace(start, provenance={"selected_on": "validation", "validation_mse": None, **chosen})
    found, least = start, _error(start, windows)
    for key, values in (("periods", [periods] if periods else []), ("level", LEVELS[1:]), ("smooth", [True]),
                        ("own", [True] if lags.count.shape[1] > 1 else [])):
        for value in values:
            told = {**chosen, key: value}
            tried = replace(start, covariance=Covariance.fit(
                lags if told["own"] else lags.together(), told["periods"], smooth=told["smooth"], level=told["level"]))
            error = _error(tried, windows)
            if error < least:
                found, least, chosen = tried, error, told
    return replace(found, provenance={"selected_on": "validation", "validation_mse": least,
                                      "last_value_mse": last_value_error(windows), **chosen})


def _windows(pieces: Pieces, kriging: Kriging) -> Window | None:
    """Some of the longest horizon that there is room for, spread evenly over all."""
    past = kriging.look_back
    room = max(len(values) for values in pieces.values) - past if pieces.values else 0
    horizon = max((h for h in kriging.horizons if h <= room), default=0)
    if not horizon:
        return None
    length = past + horizon
    starts = [(i, start) for i, values in enumerate(pieces.values) for start in range(len(values) - length + 1)]
    count = min(JUDGED_ON, max(8, MOST_CELLS // (past * length)), len(starts))
    picked = [starts[i] for i in np.unique(np.linspace(0, len(starts) - 1, count).astype(int))]
    values = torch.from_numpy(np.stack([pieces.values[i][s:s + length].T for i, s in picked]))
    there = values.isfinite()
    return Window(torch.where(there, values, 0.0), there, there & (torch.arange(length) < past), past,
                  np.stack([pieces.ticks[i][s:s + length] for i, s in picked]), np.arange(values.shape[1]),
                  ("",) * len(picked))


def _residuals(kriging: Kriging, windows: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Error, its expected size, and whether the truth is known, ``(W, V, H)`` each."""
    past = windows.past
    mean, scale = kriging.ahead(windows, windows.values[..., :past])
    return mean - windows.values[..., past:], scale, windows.known[..., past:]


def _error(kriging: Kriging, windows: Window) -> float:
    error, _, known = _residuals(kriging, windows)
    return float(error.square()[known].mean())


def _spread(kriging: Kriging, windows: Window | None) -> np.ndarray:
    """``(V,)`` root mean square of error over expected error, however large; 1 where nothing is known."""
    if windows is None:
        return kriging.spread
    error, scale, known = _residuals(kriging, windows)
    ratio = torch.where(known, (error / scale).square(), 0.0).sum((0, 2)) / known.sum((0, 2)).clamp_min(1)
    ratio = torch.where(known.any(2).any(0), ratio, 1.0)
    return np.asarray(ratio.sqrt().clamp_min(LEAST_SPREAD_OF_ERRORS).numpy())


def last_value_error(windows: Window) -> float:
    """Mean squared error of the last value known of each variate, carried on."""
    last = last_value(windows.values, windows.given)
    known = windows.known & ~windows.given
    return float((windows.values - last).square()[known].mean())


def last_value(values: Tensor, given: Tensor) -> Tensor:
    """``(B, V, 1)`` of the cells given ``(B, V, T)``; 0, the training mean, where there is none."""
    place = torch.where(given, torch.arange(given.shape[-1], device=given.device), -1).amax(-1, keepdim=True)
    return torch.where(place >= 0, values.gather(-1, place.clamp_min(0)), 0.0)
