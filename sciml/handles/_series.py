"""Many windows of series at once through a checkpoint: arrays in, arrays out; quantiles; horizons longer than fitted.

``B`` windows, ``V`` variates, ``L`` cells of look-back, ``H`` of horizon, ``K`` covariates, ``A`` levels. Values are in
the variates' own units, NaN where missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from sciml.domains.series.adapter import Series
from sciml.domains.series.encode import HEAD, LEAST_SPREAD, Window
from sciml.domains.series.known import Known
from sciml.domains.series.tasks.forecast import QUANTILES, Forecast
from sciml.errors import InputError
from sciml.evaluate import zero_outputs
from sciml.losses import STUDENT_T, student_t_quantiles
from sciml.predictor import Predictor, predictions

Progress = Callable[[int, int], None]
CELLS = 1 << 16
"""Of all windows that go through the operator together: more don't go faster."""


@dataclass(frozen=True)
class Model:
    """A data set of a checkpoint as it is forecast; operates: False for its baseline alone. A data set that it wasn't
    fitted on, a guest, is standardised look-back by look-back."""

    predictor: Predictor
    adapter: Series
    known: Known
    operates: bool = True

    @property
    def task(self) -> Forecast:
        """Raises `InputError` for a checkpoint that does something else."""
        if not isinstance(self.adapter.task, Forecast):
            raise InputError("checkpoint", key="domains.series.task", found=self.adapter.config.task.name,
                             expected="forecast", fix="use a checkpoint that forecasts")
        return self.adapter.task

    @property
    def guest(self) -> bool:
        return self.known.name in self.adapter.guests

    @property
    def look_back(self) -> int:
        return min(self.adapter.config.look_back_of(self.known.name), self.task.of(self.known.name).look_back)

    @property
    def horizons(self) -> tuple[int, ...]:
        return self.task.of(self.known.name).horizons

    @property
    def floor(self) -> Model:
        return replace(self, adapter=self.adapter.floor(), operates=False)

    def reach(self, horizon: int, done: int = 0) -> int:
        """Cells of the next part of a forecast: of the horizons it was fitted for, the shortest that is as long as all
        that is asked, else the longest; with covariates, or where times follow no step, no more than what is left, as
        they aren't known further."""
        if self.known.covariates.names or self.known.clock.stepless:
            return min(horizon - done, self.horizons[-1])
        return next((h for h in self.horizons if h >= horizon), self.horizons[-1])


@dataclass(frozen=True)
class Histories:
    """Windows of the same variates and length: values ``(B, V, L)``, last ``(B,)`` ticks of the last cells, members
    ``(V,)`` places among the data set's variates, covariates ``(B, L + H, K)`` and constants ``(B, K)`` if it has any,
    ticks ``(B, L + H)`` of all cells where times follow no step.
    """

    values: np.ndarray
    last: np.ndarray
    members: np.ndarray
    covariates: np.ndarray | None = None
    static: np.ndarray | None = None
    ticks: np.ndarray | None = None

    def rows(self, chosen: slice | np.ndarray) -> Histories:
        """Some of the windows."""
        covariates, static, ticks = (None if x is None else x[chosen]
                                     for x in (self.covariates, self.static, self.ticks))
        return Histories(self.values[chosen], self.last[chosen], self.members, covariates, static, ticks)


@dataclass(frozen=True)
class Windows:
    """Histories, what followed ``(B, V, H)``, and a name ``(B,)`` of whose each is; in order of time within a name."""

    given: Histories
    truth: np.ndarray
    ids: np.ndarray

    def rows(self, chosen: slice | np.ndarray) -> Windows:
        """Some of them."""
        return Windows(self.given.rows(chosen), self.truth[chosen], self.ids[chosen])


@dataclass(frozen=True)
class Made:
    """Forecasts: mean ``(B, V, H)``, quantiles ``(B, V, H, A)`` ascending."""

    mean: np.ndarray
    quantiles: np.ndarray


def series_of(predictor: Predictor) -> Series:
    """The adapter of a checkpoint that forecasts. Raises `InputError` for one that doesn't know series."""
    adapter = predictor.adapter("series")
    assert isinstance(adapter, Series)
    return adapter


def forecast(model: Model, given: Histories, horizon: int, levels: Sequence[float],
             progress: Progress | None = None) -> Made:
    """Of every window the `horizon` cells that follow; `progress` is called with windows done and in all.

    Look-backs longer than fitted lose their beginning. A horizon longer than fitted is rolled out: the forecast becomes
    the end of the look-back, and what a quantile is off the mean at the end of one part is carried into the next as an
    error independent of those to come, √(d² + carried²), which is exact for a random walk and too wide for a series
    that returns to its mean.
    """
    used = min(given.values.shape[2], model.look_back)
    cells = given.values.shape[1] * (used + model.reach(horizon))
    rows, parts, total = max(1, CELLS // cells), [], len(given.values)
    for start in range(0, total, rows):
        parts.append(_forecast(model, given.rows(slice(start, start + rows)), horizon, levels))
        if progress is not None:
            progress(min(start + rows, total), total)
    whole = np.concatenate(parts)
    return Made(whole[..., 0], whole[..., 1:])


def _forecast(model: Model, given: Histories, horizon: int, levels: Sequence[float]) -> np.ndarray:
    """``(B, V, horizon, 1 + A)`` mean and quantiles."""
    clock, length = model.known.clock, min(given.values.shape[2], model.look_back)
    values = given.values[..., -length:]
    mean, std = _scale(model, values, given.members)
    history = torch.from_numpy(((values - mean) / std).astype(np.float32))
    observed = history.isfinite()
    history, last, done, parts = torch.where(observed, history, 0.0), given.last, 0, []
    carried = torch.zeros(())
    while done < horizon:
        ahead = model.reach(horizon, done)
        if given.ticks is None:
            ticks = clock.later(last[:, None], np.arange(1 - history.shape[-1], ahead + 1))
        else:
            now = given.values.shape[2] + done
            ticks = given.ticks[:, now - history.shape[-1]:now + ahead]
        window = _window(history, observed, ticks, given.members)
        made, off = _ahead(model, _accompanied(window, model.known, given, given.values.shape[2] + done),
                           levels)
        off = (off.sign() * torch.hypot(off, carried)).sort(-1).values
        parts.append(torch.cat([made[..., None], made[..., None] + off], -1))
        done, carried, last = done + ahead, off[:, :, -1:], ticks[:, -1]
        history = torch.cat([history, made], -1)[..., -model.look_back:]
        observed = torch.cat([observed, torch.ones_like(made, dtype=torch.bool)], -1)[..., -model.look_back:]
    whole = torch.cat(parts, -2)[:, :, :horizon].double().numpy()
    return np.asarray(whole * std[..., None] + mean[..., None])


def _scale(model: Model, values: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(B or 1, V, 1)`` mean and standard deviation: as fitted, or a guest's look-backs' own."""
    if not model.guest:
        return model.known.mean[members, None], model.known.std[members, None]
    there = np.isfinite(values)
    count = np.maximum(there.sum(-1, keepdims=True), 1)
    mean = np.where(there, values, 0.0).sum(-1, keepdims=True) / count
    std = np.sqrt(np.square(np.where(there, values - mean, 0.0)).sum(-1, keepdims=True) / count)
    return mean, np.where(std > 1e-12 * (1 + np.abs(mean)), std, LEAST_SPREAD)


def _window(history: Tensor, observed: Tensor, ticks: np.ndarray, members: np.ndarray) -> Window:
    past = history.shape[-1]
    later = history.new_zeros((*history.shape[:2], ticks.shape[1] - past))
    given = torch.cat([observed, torch.zeros_like(later, dtype=torch.bool)], -1)
    return Window(torch.cat([history, later], -1), given, given, past, ticks, members, ("series",) * len(history))


def _accompanied(window: Window, known: Known, given: Histories, now: int) -> Window:
    """The window with what is given along with it: covariates of its cells, of which cell `now` is the first ahead."""
    covariates, static = None, None
    if given.covariates is not None:
        part = given.covariates[:, now - window.past:now + window.horizon]
        covariates = torch.from_numpy(known.covariates.scaled(part))
    if given.static is not None:
        static = torch.from_numpy(known.static.scaled(given.static))
    return replace(window, covariates=covariates, static=static)


def _ahead(model: Model, window: Window, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean ``(B, V, H)`` and by how much quantiles ``(B, V, H, A)`` differ from it, in standardised units."""
    batch = model.task.encode(window, model.adapter.about(model.known.name, "series"))
    outputs = model.predictor.forward(batch) if model.operates else zero_outputs(batch)
    with torch.no_grad():
        made = predictions(batch, outputs)
        mean = made[HEAD].expand(batch.values.shape)[:, :, window.past:, 0]
        if not levels:
            return mean, mean.new_zeros((*mean.shape, 0))
        ahead = {name: x[:, :, window.past:] for name, x in made.items() if x.ndim == 4}
        spread = batch.targets[HEAD].scale[:, :, window.past:]
        return mean, quantiles(ahead, spread, levels, model.task.config.quantiles) - mean[..., None]


def quantiles(made: Mapping[str, Tensor], spread: Tensor, levels: Sequence[float], known: Sequence[float]) -> Tensor:
    """``(B, V, H, A)``, ascending: of the heads `quantiles`, whose levels are `known`, or `student_t`, else of a normal
    distribution around the mean with `spread`, that of the baseline's residuals."""
    asked = ndtri(np.asarray(levels, np.float64))
    if QUANTILES in made:
        mixing = torch.from_numpy(interpolation(ndtri(np.asarray(known, np.float64)), asked)).to(spread)
        return made[QUANTILES].sort(-1).values @ mixing
    if STUDENT_T in made:
        return student_t_quantiles(made[STUDENT_T], levels)
    return made[HEAD] + spread * torch.from_numpy(asked).to(spread)


def interpolation(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """``(K, A)`` weights that make values at `asked` places of values at ascending `known` ones, linearly; beyond the
    ends as between the last two (of normal scores: with the tails of a normal distribution).

    >>> (np.array([1.0, 3.0]) @ interpolation(np.array([0.0, 1.0]), np.array([0.0, 0.5, 2.0]))).tolist()
    [1.0, 2.0, 5.0]
    """
    weights = np.zeros((len(known), len(asked)))
    if len(known) == 1:
        return weights + 1
    above = np.clip(np.searchsorted(known, asked), 1, len(known) - 1)
    share = (asked - known[above - 1]) / (known[above] - known[above - 1])
    each = np.arange(len(asked))
    weights[above, each], weights[above - 1, each] = share, 1 - share
    return weights


def ticks_of(known: Known, time: np.ndarray, offset: np.ndarray, where: object) -> np.ndarray:
    """``(N,)`` ticks of the times of series one after the other, series i from offset[i] to offset[i + 1].

    Raises `InputError` unless every series goes on in the data set's own steps.
    """
    clock = known.clock
    ticks = clock.places(time, where=where)
    inside = np.ones(max(len(ticks) - 1, 0), bool)
    inside[offset[1:-1] - 1] = False
    wrong = np.flatnonzero(inside & ~clock.follow(ticks))
    if len(wrong):
        at = int(wrong[0])
        raise InputError(where, key="timestamp", found=f"{time[at]}, then {time[at + 1]}", expected=clock.describe(),
                         fix="resample to that step, or fine-tune on a store of the data (sciml finetune)")
    return ticks


def by_length(count: np.ndarray, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """(length, which series) of series that have as many cells to look back on, at most `most`."""
    used = np.minimum(count, most)
    for length in np.unique(used):
        yield int(length), np.flatnonzero(used == length)
