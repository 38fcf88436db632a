"""What the links of a network have in common, and what a pair is once that is known: empirical Bayes over all pairs.

A pair (unit, source) is one of three things. Not linked. Linked, with the chance that its source has for all its
targets (hubs), along the source's sign (Dale's law), by a size, a delay and a kernel that all links share. Or reached
through units that were not recorded, which is no link: either sign, later, by the kernel convolved with itself. All
that is shared is learnt from the pairs of the recording (Efron, Large-Scale Inference, Cambridge 2010, chapters 1-5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

SIZES = np.array([0.06, 0.12, 0.2, 0.3, 0.42, 0.56, 0.75, 1.0, 1.35, 1.8, 2.5])
STEPS = np.concatenate([SIZES, -1.6 * SIZES])
"""Effects at the peak of the kernel that a link can have, in log-rate; inhibition can silence."""
DEGREES = np.exp(np.linspace(np.log(0.01), np.log(0.7), 16))
"""Shares of the units that a source can project to."""
RISE_S, DECAY_S, TINY = 0.002, 0.012, 1e-300
CAUTION, NARROWEST, WIDEST = 10.0, 0.15, 1.0
"""Curvature by which steps of the kernel are damped; bounds of the standard deviation of the log of the degree."""


class Posterior(NamedTuple):
    """direct ``(delay, step, unit, source)`` and late ``(late delay, step, unit, source)``: probabilities; sign ``(2,
    source)``, exciting and inhibiting; degree ``(degree, source)``; shares ``(2, step)`` expected number of links of
    either kind of source by their size."""

    direct: np.ndarray
    late: np.ndarray
    sign: np.ndarray
    degree: np.ndarray
    shares: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """``(unit, source)`` that there is a link."""
        return np.asarray(self.direct.sum((0, 1)))


class Sums(NamedTuple):
    """Of posteriors over all pairs, to learn the prior from. slope and curvature ``(lag,)``: of the log-likelihood in
    the kernel; seen and expected ``(lag,)``: coincidences of pairs in so far as they have no link."""

    shares: np.ndarray
    delay: np.ndarray
    late: np.ndarray
    late_step: np.ndarray
    unlinked: np.ndarray
    sign: np.ndarray
    degree: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    seen: np.ndarray
    expected: np.ndarray

    def __add__(self, other: object) -> Sums:
        assert isinstance(other, Sums)
        return Sums(*(a + b for a, b in zip(self, other)))


@dataclass(frozen=True)
class LinkPrior:
    """kernel ``(lag,)`` of peak 1; delay ``(delay,)`` chances of 1, 2, … bins; late ``(late delay,)`` chances of
    `late_bins`; size ``(2, step)`` of links of sources that excite and that inhibit; late_size ``(step,)`` and
    late_share of pairs that are reached through others; sign ``(2,)`` and degree ``(degree,)`` of sources."""

    kernel: np.ndarray
    delay: np.ndarray
    late: np.ndarray
    late_bins: tuple[int, ...]
    size: np.ndarray
    late_size: np.ndarray
    late_share: float
    sign: np.ndarray
    degree: np.ndarray

    @classmethod
    def start(cls, bin_s: float, lags: int, delays: int, late_bins: tuple[int, ...]) -> Self:
        """Vague: a tenth of all pairs, sizes around 0.3, a kernel that rises and decays like a synaptic potential."""
        since = (np.arange(lags) + 0.5) * bin_s
        kernel = np.exp(-since / DECAY_S) - np.exp(-since / RISE_S)
        bell, none = _normal(np.log(SIZES), np.log(0.3), 0.8), np.zeros(len(SIZES))
        late = len(late_bins)
        return cls(kernel / kernel.max(), np.full(delays, 1 / delays), np.full(late, 1 / late), late_bins,
                   np.stack([np.r_[bell, none], np.r_[none, bell]]), np.r_[bell, bell] / 2, 0.05, np.array([0.7, 0.3]),
                   _normal(np.log(DEGREES), np.log(0.1), 0.6))

    def kernels(self) -> np.ndarray:
        """``(delay + late delay, lag)`` of lags 1, 2, … bins, float32."""
        lags = len(self.kernel)
        twice = np.convolve(self.kernel, self.kernel)[:lags]
        made = [(self.kernel, d + 1) for d in range(len(self.delay))]
        made += [(twice / np.abs(twice).max(), d) for d in self.late_bins]
        return np.stack([np.r_[np.zeros(d - 1), k[:lags - d + 1]] for k, d in made]).astype(np.float32)

    def learnt(self, sums: Sums) -> LinkPrior:
        """From the posteriors of all pairs, with a pseudo-count of two links (of one delay or sign) each."""
        sizes = np.stack([_smoothed(row, own) for row, own in zip(sums.shares, self.size)])
        log, weight = np.log(DEGREES), sums.degree / sums.degree.sum()
        centre = float((weight * log).sum())
        spread = np.clip(np.sqrt((weight * (log - centre) ** 2).sum()), NARROWEST, WIDEST)
        share = float(np.clip(sums.late.sum() / max(float(sums.unlinked), 1.0), 1e-3, 0.5))
        return replace(self, kernel=self._kernel(sums), delay=_shares(sums.delay + 1), late=_shares(sums.late + 1),
                       size=sizes, late_size=_smoothed(sums.late_step, self.late_size), late_share=share,
                       sign=_shares(sums.sign + 1), degree=_normal(log, centre, float(spread)))

    def _kernel(self, sums: Sums) -> np.ndarray:
        """A damped, smoothed step of Newton's method up the expected log-likelihood."""
        window = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
        slope, curvature = (np.convolve(x, window, "same") for x in (sums.slope, sums.curvature))
        kernel = self.kernel + 0.7 * slope / (curvature + 0.05 * curvature.max() + CAUTION)
        return np.asarray(kernel / np.abs(kernel).max())


def posterior(evidence: np.ndarray, prior: LinkPrior, pairs: np.ndarray) -> Posterior:
    """evidence ``(kernel, step, unit, source)``: log-likelihood of a pair's effect by each of `LinkPrior.kernels` and
    `STEPS` over that of none; pairs ``(unit, source)`` bool: those that count. Sign and degree of a source are those
    of all its pairs together."""
    from scipy.special import expit

    delays = len(prior.delay)
    top = evidence.max((0, 1))
    scaled = np.exp(evidence - top)
    near = scaled[:delays] * prior.delay[:, None, None, None]
    far = scaled[delays:] * (prior.late_share * prior.late[:, None] * prior.late_size)[..., None, None]
    later = _log(far.sum((0, 1))) + top
    none = np.logaddexp(np.log1p(-prior.late_share), later)
    by_size = near.sum(0)
    chance = np.maximum(np.einsum("zs,snm->znm", prior.size, by_size), TINY)
    ratio = np.log(chance) + top - none
    on, off = np.log(DEGREES), np.log1p(-DEGREES)
    each = np.stack([(np.logaddexp(b, a + ratio) * pairs).sum(1) for a, b in zip(on, off)], 1)
    each = each + _log(prior.sign)[:, None, None] + _log(prior.degree)[:, None]
    source = np.exp(each - each.max((0, 1)))
    source /= source.sum((0, 1))
    linked = sum(source[:, i, None] * expit(a - b + ratio) for i, (a, b) in enumerate(zip(on, off))) * pairs
    direct = near * np.einsum("zs,znm->snm", prior.size, linked / chance)
    through = np.maximum(1 - linked.sum(0), 0.0) * pairs * np.exp(later - none)
    late = far * (through / np.maximum(far.sum((0, 1)), TINY))
    shares = prior.size * np.einsum("znm,snm->zs", linked / chance, by_size)
    return Posterior(direct, late, source.sum(1), source.sum(0), shares)


def sums_of(found: Posterior, kernel: np.ndarray, seen: np.ndarray, expected: np.ndarray, pairs: np.ndarray) -> Sums:
    """Of one block of sources, whose pairs had `seen` ``(lag, unit, source)`` coincidences where without a link
    `expected` were."""
    lags = len(kernel)
    slope, curvature = np.zeros(lags), np.zeros(lags)
    for d, chance in enumerate(found.direct.reshape(*found.direct.shape[:2], -1)):
        rate = np.exp(np.outer(kernel[:lags - d], STEPS)) * (expected[d:].reshape(lags - d, -1) @ chance.T)
        slope[:lags - d] += seen[d:].reshape(lags - d, -1) @ (STEPS @ chance) - rate @ STEPS
        curvature[:lags - d] += rate @ STEPS**2
    linked = found.probability
    apart = (1 - linked - found.late.sum((0, 1))) * pairs
    return Sums(found.shares, found.direct.sum((1, 2, 3)), found.late.sum((1, 2, 3)), found.late.sum((0, 2, 3)),
                ((1 - linked) * pairs).sum(), found.sign.sum(1), found.degree.sum(1), slope, curvature,
                (seen * apart).sum((1, 2)), (expected * apart).sum((1, 2)))


def _normal(x: np.ndarray, centre: float, spread: float) -> np.ndarray:
    return _shares(np.exp(-0.5 * ((x - centre) / spread) ** 2))


def _shares(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / x.sum())


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(x, TINY))


def _smoothed(numbers: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Shares of the steps, each half smoothed over neighbours."""
    halves = (np.convolve(np.pad(half, 1, mode="edge"), [0.25, 0.5, 0.25], "valid") for half in np.split(numbers, 2))
    return _shares(np.concatenate(list(halves)) + 2 * before)
