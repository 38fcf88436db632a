"""Who drives whom, read from a fitted model: mask a source's spikes (ablation), or give it one more (impulse response).

Both ask the model of next bins what it would say, so they take any ``forward(batch) → Outputs``. Like all estimates
from recordings alone they see what is predictive: common input that the model can't explain away looks like a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.encode import Window, head_of, inputs, rate_target, window_of
from sciml.domains.spikes.fitted import Fitted, fit_of
from sciml.domains.spikes.glm import GLM
from sciml.domains.spikes.history import HistoryState
from sciml.domains.spikes.smoothed import SmoothedRate
from sciml.domains.spikes.windows import SpikeWindows
from sciml.errors import InputError
from sciml.tokens import Outputs, TokenBatch

CELLS = 2_000_000
"""Cells (window · bin · unit) that go through the model at once."""
ROUNDS, FEW, TINY = 3, 20, 1e-12
"""Rows and columns are scaled in turn so often; pairs that say little of a spread; what counts as no spread at all."""
HIGHEST = 5.0
"""Largest logarithm of spikes per bin that is taken seriously."""

Forward = Callable[[TokenBatch], Outputs]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ablation:
    """What masking each source does to each unit's prediction, ``(unit, source)`` float64, NaN on the diagonal.

    expected: nats per spike of the source that the log-likelihood of the unit's next bin is expected to lose, ≥ 0: the
    Kullback–Leibler divergence of the two Poisson predictions, if the one that sees the source is right. gain: nats per
    spike that it does lose on these bins. p: one-sided, of a source whose spikes predict nothing; it holds only for
    bins that the model wasn't trained on.
    """

    expected: np.ndarray
    gain: np.ndarray
    p: np.ndarray


@dataclass(frozen=True)
class Response:
    """log_rate ``(unit, source, lag)``: mean over contexts of log λ_unit(t + lag) with one more spike of the source in
    bin t, less what it is without, lags 1 … L bins; bin_s: their width; coincidences ``(unit, source)``: spikes of the
    unit expected by chance in the first half of the lags after those of the source, in all of training. Properties are
    NaN on the diagonal."""

    log_rate: np.ndarray
    bin_s: float
    coincidences: np.ndarray

    @property
    def evidence(self) -> np.ndarray:
        """``(unit, source)`` in `standardised` units: the signed area under the first half of the lags less that under
        the second, in which a common slow input shows as much as in the first, but a link no longer."""
        half = -(-self.log_rate.shape[-1] // 2)
        return standardised(half * (self.log_rate[..., :half].mean(-1) - self.log_rate[..., half:].mean(-1)))

    @property
    def effect(self) -> np.ndarray:
        """``(unit, source)`` the response at its extremum: change of the logarithm of the rate, signed."""
        peak = np.abs(self.log_rate).argmax(-1)[..., None]
        return _blank(np.take_along_axis(self.log_rate, peak, -1)[..., 0])

    @property
    def delay(self) -> np.ndarray:
        """``(unit, source)`` s from the source's bin to the first in which the response is half its extremum."""
        height = np.abs(self.log_rate)
        first = (height >= 0.5 * height.max(-1, keepdims=True)).argmax(-1)
        return _blank((first + 1) * self.bin_s)

    @property
    def p(self) -> np.ndarray:
        """``(unit, source)`` two-sided, of the evidence: what it says is known from a number of coincidences, so it has
        the tails of a Poisson number, longer above than a normal's and shorter below."""
        from scipy.special import gammainc, gammaincc

        expected = np.maximum(self.coincidences, TINY)
        seen = np.maximum(expected + self.evidence * np.sqrt(expected), TINY)
        return np.asarray(np.minimum(2 * np.minimum(gammainc(seen, expected), gammaincc(seen + 1, expected)), 1.0))


def ablation(forward: Forward, adapter: Binned, windows: SpikeWindows, count: int, *,
             progress: Progress | None = None) -> Ablation:
    """Masks one source after another in `count` windows spread over those given, as a unit that wasn't recorded.

    With u = Σ d (y − λ₀) and v = Σ d² λ₀ over scored bins, d the change of log λ and λ₀ the rate without the source, p
    is the normal tail of u/√v, the score test of no effect (Rao, Proc. Cambridge Phil. Soc. 44, 1948). Raises
    `InputError` unless next bins are predicted.
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

    Contexts in which the source is not recorded then don't count. Raises `InputError` unless next bins are
    predicted, and on windows of no more than `lags` bins or fewer than two lags.
    """
    chosen = _spread(windows, count)
    units = len(windows.source.fit.units)
    total, contexts = np.zeros((units, units, lags)), np.zeros(units)
    for done, index in enumerate(chosen):
        fit, window, _, _ = _window(adapter, windows, index)
        steps = window.counts.shape[1]
        if steps <= lags or lags < 2:
            raise InputError("windows", key="tasks.next", found=f"{steps} bins, {lags} lags",
                             expected="two lags or more, in windows that are longer",
                             fix="ask for fewer lags, or train on longer windows")
        before = _log_rates(forward, adapter, fit, window)[:, -lags:]
        for sources in _chunks(units, window.counts[0].numel()):
            change = _log_rates(forward, adapter, fit, _one_more(window, sources, steps - lags))[:, -lags:] - before
            total[:, sources] += change.permute(2, 0, 1).double().numpy()
        contexts += torch.isfinite(window.counts[0, steps - lags]).double().numpy()
        if progress is not None:
            progress(done + 1, len(chosen))
    source = windows.source
    bins, rate = sum(b.stop - b.start for b in source.layout.blocks("train")), source.fit.history.rate.numpy()
    chance = np.outer(rate, rate) * bins * -(-lags // 2)
    return Response(total / np.maximum(contexts, 1.0)[:, None], source.fit.bin_s, chance)


def standardised(effect: np.ndarray) -> np.ndarray:
    """Effects ``(unit, source)`` over what is usual for the unit times what is usual for the source; diagonal NaN.

    The error of an estimate grows as the unit and the source fire less, whatever the model. As most pairs have no link,
    the spread of the middle of a row or column (median absolute deviation · 1.4826) shows by how much: an empirical
    null (Efron, J. Am. Stat. Assoc. 99, 2004), of a product of one number per row and one per column. Of few pairs
    (fewer than `FEW` to a row) the spread is mostly that of all.
    """
    e = _blank(effect)
    with np.errstate(invalid="ignore", divide="ignore"):
        for axis in (1, 0) * ROUNDS:
            share = len(e) / (len(e) + FEW)
            e = e / np.maximum(_spread_of(e, axis) ** share * _spread_of(e, None) ** (1 - share), TINY)
        return np.asarray((e - np.nanmedian(e)) / np.maximum(_spread_of(e, None), TINY))


def _spread_of(values: np.ndarray, axis: int | None) -> np.ndarray:
    middle = np.nanmedian(values, axis=axis, keepdims=True)
    return np.asarray(1.4826 * np.nanmedian(np.abs(values - middle), axis=axis, keepdims=True))


def signs_agreed(evidence: np.ndarray) -> np.ndarray:
    """``(unit, source)``: evidence along the sign of its source, which excites or inhibits all its targets (Dale's
    law): that of Σ evidence³ over the source's pairs."""
    return evidence * np.sign(np.nansum(evidence**3, axis=0))


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
    if windows.source.fit.signal != "count":
        raise InputError("connectivity", key="signal", found=windows.source.fit.signal, expected="spike counts",
                         fix="give a store of spikes: the response of a trace is no rate")
    if "next" not in windows.tasks:
        raise InputError("connectivity", key="tasks", found=", ".join(windows.tasks), expected="next among them",
                         fix="train on tasks.next: connectivity is read from predictions of the next bin")
    return [int(i) for i in np.unique(np.linspace(0, len(windows) - 1, count).round())]


def _window(adapter: Binned, windows: SpikeWindows, index: int) -> tuple[Fitted, Window, int, int]:
    """A window's counts and the bins that are scored."""
    sample = windows.draw(index, np.random.default_rng(0), np.random.default_rng(0))
    fit = fit_of(adapter.datasets, sample)
    low, high = int(sample.attrs.get("scored_from", 0)), int(sample.attrs.get("scored_to", sample.sizes["time"]))
    return fit, window_of(fit, adapter.frame(), sample), low, high


def _log_rates(forward: Forward, adapter: Binned, fit: Fitted, window: Window) -> Tensor:
    """``(B, T, N)`` log spikes of the bin after each; a floor that is corrected sees the same counts, but nothing from
    before the window."""
    counts = window.counts
    unknown, base = torch.full_like(counts, torch.nan), None
    if adapter.config.corrects == "floor":
        longer, floor = torch.cat([counts, unknown[:, :1]], 1), fit.floors["next"]
        assert isinstance(floor, GLM | SmoothedRate)
        if isinstance(floor, GLM) and len(floor.covariates.mean):
            stimulus = torch.cat([window.stimulus, window.stimulus[:, -1:]], 1).expand(len(counts), -1, -1)
            base = floor.log_rates(longer, stimulus)[:, 1:]
        else:
            base = floor.log_rates(longer)[:, 1:]
    target = rate_target(fit, window.members, unknown, torch.zeros_like(unknown, dtype=torch.bool), base)
    head = head_of(fit, "next")
    batch, _ = inputs(fit, adapter.frame(), window, {head: target})
    with torch.no_grad():
        found = batch.targets[head].predict(forward(batch)[head])
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
