"""The classical predictor that each task's scores are printed beside, and what it says of a whole recording.

Counts: GLM or smoothed rate (next bin), co-smoothing GLM (held-out units). Traces: ridge on the bins before (next bin)
or on the held-in units around (held-out units). Behaviour, and its place in an embedding: ridge. States: multinomial
logistic regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciml.domains.spikes.config import SpikesConfig, Task
from sciml.domains.spikes.decoders import LogisticDecoder, RidgeDecoder, Window
from sciml.domains.spikes.glm import GLM, HELD_OUT_BASES, select
from sciml.domains.spikes.history import Recording
from sciml.domains.spikes.smoothed import SmoothedRate

if TYPE_CHECKING:
    from sciml.domains.spikes.fitted import Fitted

Floor = GLM | SmoothedRate | RidgeDecoder | LogisticDecoder
KINDS: Mapping[str, type[Any]] = {"glm": GLM, "smoothed rate": SmoothedRate, "ridge decoder": RidgeDecoder,
                                  "logistic decoder": LogisticDecoder}
NAMES: Mapping[type[Any], str] = {GLM: "glm", SmoothedRate: "smoothed rate", RidgeDecoder: "ridge",
                                  LogisticDecoder: "logistic regression"}
MOST_FEATURES = 4000
"""Of a ridge: its Gram matrix and eigenvectors fit into memory and a minute."""
LEAST_CHANCE = 1e-6


def fit_floor(task: Task, recordings: Sequence[Recording], fit: Fitted, config: SpikesConfig, *,
              labels: Sequence[Tensor] = (), stimuli: Sequence[Tensor] | None = None) -> Floor:
    """labels: ``(T, K)`` behaviour or shares of states of each recording. Hyper-parameters are chosen on validation."""
    window = config.tasks[task]
    if task in ("behaviour", "embedding"):
        return RidgeDecoder.fit(recordings, labels, [Window(window.before, window.after, p) for p in (1.0, 0.5)]
                                if fit.signal == "count" else [Window(window.before, window.after)])
    if task == "state":
        return LogisticDecoder.fit(recordings, [state_codes(x) for x in labels], Window(window.before, window.after))
    if fit.signal == "trace":
        return _ridge_of_traces(task, recordings, fit)
    known = any(bool(r.validation.any()) for r in recordings)
    if not known or (task == "masked" and not fit.held_out) or config.floor == "smoothed":
        return SmoothedRate.fit(recordings, fit.bin_s)
    if task == "next":
        return select(recordings, fit.bin_s, covariates=None if stimuli is None else [_before(x) for x in stimuli])
    return select(recordings, fit.bin_s, HELD_OUT_BASES, held_in=held_in(fit), covariates=stimuli)


def _before(stimulus: Tensor) -> Tensor:
    """``(T, P)`` covariates of the bin before each: what is predicted of a bin uses nothing of it."""
    return torch.cat([torch.full_like(stimulus[:1], torch.nan), stimulus[:-1]])


def held_in(fit: Fitted) -> list[int]:
    return [i for i in range(len(fit.units)) if i not in fit.held_out]


def state_codes(shares: Tensor) -> Tensor:
    """``(T,)`` the state that most of each bin is spent in, NaN where any share is unknown, of shares ``(T, C)``."""
    return torch.where(torch.isfinite(shares).all(-1), shares.nan_to_num(0.0).argmax(-1).to(shares), torch.nan)


def _ridge_of_traces(task: Task, recordings: Sequence[Recording], fit: Fitted) -> RidgeDecoder:
    """Of all units' next bin, or of the held-out units' bin from the held-in ones around it."""
    if task == "masked" and fit.held_out:
        inside = [replace(r, counts=r.counts[:, held_in(fit)]) for r in recordings]
        truth = [r.counts[:, list(fit.held_out)] for r in recordings]
        windows = [Window(b, b) for b in (0, 1, 3) if not b or (2 * b + 1) * len(held_in(fit)) <= MOST_FEATURES]
        return RidgeDecoder.fit(inside, truth, windows)
    inside, truth = [], []
    for r in recordings:
        inside.append(replace(r, train=_earlier(r.train), validation=_earlier(r.validation)))
        truth.append(torch.cat([r.counts[1:], torch.full_like(r.counts[:1], torch.nan)]))
    windows = [Window(b, 0) for b in (0, 2, 7) if not b or (b + 1) * len(fit.units) <= MOST_FEATURES]
    return RidgeDecoder.fit(inside, truth, windows)


def _earlier(mask: Tensor) -> Tensor:
    """Bins whose next bin is in the mask as they are."""
    return mask & torch.cat([mask[1:], mask.new_zeros(1)])


def predict_floor(task: Task, fit: Fitted, counts: Tensor, stimulus: Tensor) -> Tensor:
    """Of all bins of ``counts (T, N)``, float32: ``(T, N)`` log-rates, or traces in their unit, the mean of units that
    aren't predicted; ``(T, K)`` behaviour; ``(T, C)`` log-probabilities of states."""
    model = fit.floors[task]
    if isinstance(model, LogisticDecoder):
        out = torch.full((len(counts), len(fit.states.labels)), LEAST_CHANCE).log()
        out[:, model.classes.long()] = model.log_probabilities(counts).float().clamp_min(out[0, 0])
        return out
    if task in ("behaviour", "embedding"):
        assert isinstance(model, RidgeDecoder)
        return model.predict(counts).float()
    if isinstance(model, RidgeDecoder):
        values = fit.history.rate.float().expand(len(counts), -1).clone()
        if task == "masked" and fit.held_out:
            values[:, list(fit.held_out)] = model.predict(counts[:, held_in(fit)]).float()
        else:
            values[1:] = model.predict(counts).float()[:-1]
        return values
    rates = fit.log_rate.expand(len(counts), -1).clone()
    if isinstance(model, GLM):
        given = _before(stimulus) if task == "next" else stimulus
        rates[:, list(model.targets)] = model.log_rates(counts, given if stimulus.shape[1] else None)
    else:
        rates[:] = model.log_rates(counts)
    return rates
