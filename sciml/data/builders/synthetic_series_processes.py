"""Series with seasons, events and noise, and ARMA processes; NumPy and SciPy, float64. Times in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from sciml.data.builders.synthetic_series_kernels import log_uniform

LAST_HARMONIC = 6


@dataclass(frozen=True)
class Arma:
    """``φ(B) (1 − Φ B^season) x = θ(B) e`` with e white of variance 1, B the shift by a step back.

    ar: coefficients of φ, ma: of θ, both from 1 on; Φ is `seasonal`, 0 for none.
    """

    ar: np.ndarray
    ma: np.ndarray
    season: int = 1
    seasonal: float = 0.0

    @classmethod
    def draw(cls, periods: Sequence[float], rng: np.random.Generator) -> Arma:
        """Poles and zeros inside the unit circle: up to three real or complex pairs of poles, one of zeros."""
        poles = np.concatenate([_roots(0.99, rng) for _ in range(int(rng.integers(1, 4)))])
        seasonal = float(rng.uniform(0.3, 0.98)) if rng.random() < 0.7 else 0.0
        zeros = _roots(0.9, rng) if rng.random() < 0.5 else np.zeros(0)
        return cls(np.poly(poles).real, np.poly(zeros).real * np.ones(1), max(2, round(rng.choice(periods))), seasonal)

    def spectrum(self, frequency: np.ndarray) -> np.ndarray:
        """Power at angular frequencies in radians per step: its mean over [−π, π] is the variance."""
        shift = np.exp(-1j * frequency)
        ratio = np.polyval(self.ma[::-1], shift) / np.polyval(self.ar[::-1], shift)
        return np.asarray(np.abs(ratio / (1 - self.seasonal * shift**self.season)) ** 2)

    def sample(self, steps: int, rng: np.random.Generator) -> np.ndarray:
        """``(steps,)``, after the time in which the slowest pole decays to 1 %."""
        poles = np.roots(self.ar)
        slowest = float(np.abs(poles).max(initial=0.0))
        settling = round(5 / -np.log(max(slowest, 0.01))) + 1
        settling += self.season * round(5 / -np.log(max(self.seasonal, 0.01)))
        cycles = -(-(steps + settling) // self.season)
        noise = rng.standard_normal(cycles * self.season)
        seasonal = lfilter([1.0], [1.0, -self.seasonal], noise.reshape(cycles, self.season), axis=0).reshape(-1)
        result: np.ndarray = lfilter(self.ma, self.ar, seasonal)[-steps:]
        return result


def _roots(largest: float, rng: np.random.Generator) -> np.ndarray:
    """One real root or a conjugate pair, of modulus up to `largest`, near it more often."""
    radius = largest * rng.random() ** 0.4
    if rng.random() < 0.6:
        return np.array([radius if rng.random() < 0.85 else -radius])
    angle = log_uniform(2 * np.pi / 200, np.pi, rng)
    return radius * np.exp(1j * np.array([angle, -angle]))


def ornstein_uhlenbeck(steps: int, length: float, rng: np.random.Generator, count: int = 1) -> np.ndarray:
    """``(steps, count)`` of variance 1 and autocovariance ``exp(−|τ| / length)``, stationary from the start."""
    keep = np.exp(-1 / length)
    noise = rng.standard_normal((steps, count)) * np.sqrt(1 - keep**2)
    noise[0] /= np.sqrt(1 - keep**2)
    result: np.ndarray = lfilter([1.0], [1.0, -keep], noise, axis=0)
    return result


def season(steps: int, period: float, drift: float, length: float, rng: np.random.Generator) -> np.ndarray:
    """``(steps,)``: a random course of `period`, of variance 1 in the mean; the share `drift` of each harmonic's
    variance changes over `length` steps, the rest stays for good.

    Harmonic h has a variance proportional to ``h^{−2 s}``, s drawn between 0.5 and 2.
    """
    highest = int(max(1, min(LAST_HARMONIC, period // 2)))
    harmonic = np.arange(1, highest + 1)
    weight = harmonic ** -rng.uniform(0.5, 2.0)
    weight = weight / np.sqrt((weight**2).sum())
    angle = 2 * np.pi / period * np.outer(np.arange(steps), harmonic)
    fixed = rng.standard_normal((2, highest))
    change = ornstein_uhlenbeck(steps, length, rng, 2 * highest).reshape(steps, 2, highest)
    amplitude = weight * (np.sqrt(1 - drift) * fixed + np.sqrt(drift) * change)
    result: np.ndarray = (amplitude[:, 0] * np.cos(angle) + amplitude[:, 1] * np.sin(angle)).sum(1)
    return result


def draw_seasonal(steps: int, periods: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """``(steps,)``: seasons, a wandering level, coloured noise whose spread changes, now and then a trend, events,
    steps of the level and outliers."""
    day = float(rng.choice(periods)) if rng.random() < 0.2 else periods[0]
    course = season(steps, day, rng.uniform(0, 0.6), day * log_uniform(2, 30, rng), rng)
    for period in periods[1:]:
        if rng.random() < 0.4:
            course = course + rng.uniform(0.1, 0.8) * season(steps, period, rng.uniform(0, 0.5), 10 * period, rng)
    level = ornstein_uhlenbeck(steps, day * log_uniform(0.3, 30, rng), rng)[:, 0]
    noise = ornstein_uhlenbeck(steps, log_uniform(0.3, day / 2, rng), rng)[:, 0]
    if rng.random() < 0.5:
        noise = noise * np.exp(0.4 * season(steps, day, 0.0, day, rng))
    if rng.random() < 0.3:
        noise = noise * np.exp(0.5 * ornstein_uhlenbeck(steps, day * log_uniform(1, 30, rng), rng)[:, 0])
    x = course + log_uniform(0.2, 3, rng) * level + log_uniform(0.1, 2, rng) * noise
    if rng.random() < 0.2:
        x = np.exp(0.5 * x / max(1.0, float(x.std())))
    x = x / x.std()
    if rng.random() < 0.3:
        x = x + rng.normal(0, 1.5) * np.linspace(-0.5, 0.5, steps)
    return x + _disturbances(steps, day, rng)


def _disturbances(steps: int, day: float, rng: np.random.Generator) -> np.ndarray:
    """Events that rise at once and decay, steps of the level, and outliers, each kind in one series of five."""
    x = np.zeros(steps)
    if rng.random() < 0.2:
        decay = np.exp(-np.arange(steps) / (day * log_uniform(0.1, 3, rng)))
        impulse = np.zeros(steps)
        impulse[rng.integers(0, steps, int(rng.integers(1, 6)))] = rng.normal(0, 2)
        x += np.convolve(impulse, decay)[:steps]
    if rng.random() < 0.2:
        x[int(rng.integers(0, steps)):] += rng.normal(0, 1.5)
    if rng.random() < 0.2:
        where = rng.integers(0, steps, int(rng.integers(1, 8)))
        x[where] += rng.normal(0, 4, len(where))
    return x
