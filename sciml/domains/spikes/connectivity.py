"""Who drives whom, read from a fitted model: mask a source's spikes (ablation), or give it one more (impulse response).

Both ask the model of next bins what it would say, so they take any ``forward(batch) → Outputs``. Like all estimates from
recordings alone they see what is predictive: common input that the model can't explain away looks like a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.encode import Window, inputs, rate_target, window_of
from sciml.domains.spikes.fitted import Fitted, fit_of
from sciml.domains.spikes.glm import GLM
from sciml.domains.spikes.history import HistoryState
from sciml.domains.spikes.windows import SpikeWindows
from sciml.errors import InputError
from sciml.tokens import Outputs, TokenBatch

CELLS = 2_000_000
"""Cells (window · bin · unit) that go through the model at once."""
HIGHEST = 5.0
"""Largest logarithm of spikes per bin that is taken seriously."""

Forward = Callable[[TokenBatch], Outputs]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ablation:
    """What masking each source does to each unit's prediction, ``(unit, source)`` float64, NaN on the diagonal.

    expected: nats per spike of the source that the log-likelihood of the unit's next bin is expected to lose, ≥ 0: the
    Kullback–Leibler divergence of the two Poisson predictions, if the one that sees the source is right. gain: nats per
    spike that it does lose on these bins. p: one-sided, of a source whose spikes predict nothing; it holds only for bins
    that the model wasn't trained on.
    """

    expected: np.ndarray
    gain: np.ndarray
    p: np.ndarray


@dataclass(frozen=True)
class Response:
    """log_rate ``(unit, source, lag)``: mean over contexts of log λ_unit(t + lag) with one more spike of the source in
    bin t, less what it is without, lags 1 … L bins; evidence ``(unit, source)``: the response along the time course that
    most pairs share, in standard deviations of pairs without a link; NaN on the diagonal."""

    log_rate: np.ndarray
    evidence: np.ndarray
    bin_s: float

    @property
    def effect(self) -> np.ndarray:
        """``(unit, source)`` the response at its extremum: change of the logarithm of the rate, signed."""
        return np.take_along_axis(self.log_rate, self._peak[..., None], -1)[..., 0]

    @property
    def delay(self) -> np.ndarray:
        """``(unit, source)`` s from the source's bin to the first in which the response is half its extremum; NaN on the
        diagonal."""
        height = np.abs(self.log_rate)
        first = (height >= 0.5 * height.max(-1, keepdims=True)).argmax(-1)
        return np.where(np.isnan(self.evidence), np.nan, (first + 1) * self.bin_s)

    @property
    def p(self) -> np.ndarray:
        """``(unit, source)`` two-sided, normal, of the evidence."""
        from scipy.stats import norm

        return np.asarray(2 * norm.sf(np.abs(self.evidence)))

    @property
    def _peak(self) -> np.ndarray:
        return np.asarray(np.nan_to_num(np.abs(self.log_rate)).argmax(-1))


def ablation(forward: Forward, adapter: Binned, windows: SpikeWindows, count: int, *,
             progress: Progress | None = None) -> Ablation:
    """Masks one source after another in `count` windows spread over those given, as a unit that wasn't recorded.

    With u = Σ d (y − λ₀) and v = Σ d² λ₀ over scored bins, d the change of log λ and λ₀ the rate without the source, p is
    the normal tail of u/√v, the score test of no effect (Rao, Proc. Cambridge Phil. Soc. 44, 1948). Raises `InputError`
    unless next bins are predicted.
    """
    from scipy.stats import norm

    chosen = _spread(windows, count)
    units = len(windows.source.fit.units)
    sums, spikes = np.zeros((4, units, units)), np.zeros(units)
    for done, index in enumerate(chosen):
        fit, whole, low, high = _window(adapter, windows, index)
        known = Window(whole.counts[:, :-1], whole.past, whole.stimulus[:, :-1], 0, True, whole.members, whole.sources)
        scored, truth = slice(max(low, 1) - 1, high - 1), whole.counts[:, max(low, 1):high]
        seen = _log_rates(forward, adapter, fit, known)[:, scored]
        for sources in _chunks(units, known.counts[0].numel()):
            without = _log_rates(forward, adapter, fit, _masked(known, sources))[:, scored]
            sums[:, :, sources] += _compared(seen, without, truth)
        spikes += known.counts[0, scored].nan_to_num(0.0).sum(0).double().numpy()
        if progress is not None:
            progress(done + 1, len(chosen))
    expected, gain, score, information = sums
    per_spike = 1 / np.maximum(spikes, 1.0)
    z = score / np.sqrt(np.maximum(information, 1e-12))
    return Ablation(_blank(expected * per_spike), _blank(gain * per_spike), _blank(norm.sf(z)))


def impulse_response(forward: Forward, adapter: Binned, windows: SpikeWindows, count: int, lags: int, *,
                     progress: Progress | None = None) -> Response:
    """Adds one spike of each source, `lags` bins before the end of each of `count` windows spread over those given.

    Contexts in which the source is not recorded then don't count. Evidence: see `standardised`. Raises `InputError`
    unless next bins are predicted, and on windows of no more than `lags` bins.
    """
    chosen = _spread(windows, count)
    units = len(windows.source.fit.units)
    total, contexts = np.zeros((units, units, lags)), np.zeros(units)
    for done, index in enumerate(chosen):
        fit, window, _, _ = _window(adapter, windows, index)
        steps = window.counts.shape[1]
        if steps <= lags:
            raise InputError("windows", key="tasks.next", found=f"{steps} bins", expected=f"more than {lags} lags",
                             fix="ask for fewer lags, or train on longer windows")
        before = _log_rates(forward, adapter, fit, window)[:, -lags:]
        for sources in _chunks(units, window.counts[0].numel()):
            change = _log_rates(forward, adapter, fit, _one_more(window, sources, steps - lags))[:, -lags:] - before
            total[:, sources] += change.permute(2, 0, 1).double().numpy()
        contexts += torch.isfinite(window.counts[0, steps - lags]).double().numpy()
        if progress is not None:
            progress(done + 1, len(chosen))
    log_rate = total / np.maximum(contexts, 1.0)[:, None]
    rate = windows.source.fit.history.rate.numpy()
    return Response(log_rate, standardised(log_rate, rate), windows.source.fit.bin_s)


def standardised(log_rate: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Responses ``(unit, source, lag)`` as ``(unit, source)`` standard deviations of pairs without a link.

    The response is projected on the first right singular vector of all pairs' responses (the time course they share),
    multiplied by √(rate_unit · rate_source), as the error of a log-rate is one over the root of the coincidences
    expected, and divided by the spread of the middle of all pairs (median absolute deviation · 1.4826), most of which
    have no link: an empirical null (Efron, J. Am. Stat. Assoc. 99, 2004). rate ``(unit,)``.
    """
    weighted = log_rate * np.sqrt(rate[:, None] * rate[None])[..., None]
    off = ~np.eye(len(rate), dtype=bool)
    course = np.linalg.eigh(np.einsum("pl,pk->lk", weighted[off], weighted[off]))[1][:, -1]
    along = weighted @ (course * (1.0 if course.sum() >= 0 else -1.0))
    middle = np.median(along[off])
    spread = 1.4826 * np.median(np.abs(along[off] - middle))
    return _blank((along - middle) / max(spread, 1e-12))


def _compared(seen: Tensor, without: Tensor, truth: Tensor) -> np.ndarray:
    """Log-rates with ``(1, T, N)`` and without ``(S, T, N)`` each source, truth ``(1, T, N)``: sums over bins of the
    expected and the real loss, of u and of v; ``(4, N, S)``."""
    known = torch.isfinite(truth)
    y = torch.where(known, truth, 0.0).double()
    a, b = seen.double(), without.double()
    change, fall = a - b, torch.exp(a) - torch.exp(b)
    terms = (torch.exp(a) * change - fall, y * change - fall, change * (y - torch.exp(b)), change**2 * torch.exp(b))
    return torch.stack([(term * known).sum(1).T for term in terms]).numpy()


def _spread(windows: SpikeWindows, count: int) -> Sequence[int]:
    if "next" not in windows.tasks:
        raise InputError("connectivity", key="tasks", found=", ".join(windows.tasks), expected="next among them",
                         fix="train on tasks.next: connectivity is read from predictions of the next bin")
    return [int(i) for i in np.unique(np.linspace(0, len(windows) - 1, count).round())]


def _window(adapter: Binned, windows: SpikeWindows, index: int) -> tuple[Fitted, Window, int, int]:
    """A window's counts and the bins that are scored."""
    sample = windows.draw(index, np.random.default_rng(0), np.random.default_rng(0))
    fit = fit_of(adapter.datasets, sample)
    low, high = int(sample.attrs.get("scored_from", 0)), int(sample.attrs.get("scored_to", sample.sizes["time"]))
    return fit, window_of(fit, adapter._frame(), sample), low, high


def _log_rates(forward: Forward, adapter: Binned, fit: Fitted, window: Window) -> Tensor:
    """``(B, T, N)`` log spikes of the bin after each; a floor that is corrected sees the same counts."""
    counts = window.counts
    unknown = torch.full_like(counts, torch.nan)
    base = None
    if adapter.config.corrects == "floor":
        longer = torch.cat([counts, unknown[:, :1]], 1)
        floor = fit.floors["next"]
        if isinstance(floor, GLM) and len(floor.covariates.mean):
            stimulus = torch.cat([window.stimulus, window.stimulus[:, -1:]], 1).expand(len(counts), -1, -1)
            base = floor.log_rates(longer, stimulus)[:, 1:]
        else:
            base = floor.log_rates(longer)[:, 1:]  # type: ignore[union-attr]
    target = rate_target(fit, window.members, unknown, torch.zeros_like(unknown, dtype=torch.bool), base)
    batch, _ = inputs(fit, adapter._frame(), window, {"next": target})
    with torch.no_grad():
        found = batch.targets["next"].predict(forward(batch)["next"])
    return found[..., 0].transpose(1, 2).clamp_max(HIGHEST)


def _masked(window: Window, sources: slice) -> Window:
    """One copy per source, in which it was not recorded."""
    counts, averages = _copies(window, sources)
    copy = torch.arange(len(counts))
    counts[copy, :, copy + sources.start] = torch.nan
    averages[copy, copy + sources.start] = 0.0
    return _with(window, counts, averages)


def _one_more(window: Window, sources: slice, at: int) -> Window:
    """One copy per source, in which it fires once more in bin `at`."""
    counts, averages = _copies(window, sources)
    copy = torch.arange(len(counts))
    counts[copy, at, copy + sources.start] += 1.0
    return _with(window, counts, averages)


def _copies(window: Window, sources: slice) -> tuple[Tensor, Tensor]:
    number = sources.stop - sources.start
    return window.counts.repeat(number, 1, 1), window.past.averages.repeat(number, 1, 1)


def _with(window: Window, counts: Tensor, averages: Tensor) -> Window:
    past = HistoryState(counts.new_zeros(len(counts), 0, counts.shape[2]), averages)
    stimulus = window.stimulus.expand(len(counts), -1, -1)
    return Window(counts, past, stimulus, window.first, window.causal, window.members, window.sources * len(counts))


def _chunks(units: int, cells: int) -> Iterator[slice]:
    size = max(1, CELLS // cells)
    return (slice(low, min(low + size, units)) for low in range(0, units, size))


def _blank(values: np.ndarray) -> np.ndarray:
    values = np.array(values, np.float64)
    np.fill_diagonal(values, np.nan)
    return values
