"""Gaussian processes whose covariance is composed of kernels, sampled by their spectra; NumPy, float64.

A stationary kernel of variance 1 is the characteristic function of its frequencies, ``k(τ) = E cos ωτ`` (Bochner). The
product of two kernels is that of the sum of independent frequencies, so that a product is sampled by adding draws, as
Rahimi & Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007. Kernels after Rasmussen & Williams,
Gaussian Processes for Machine Learning, 2006, §4.2; random compositions after the idea of KernelSynth (Ansari et al.,
"Chronos", TMLR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ive

FEATURES, HARMONICS = 128, 64


class Kernel(Protocol):
    """A stationary covariance of variance 1; lags in steps, frequencies in radians per step."""

    def at(self, lag: np.ndarray) -> np.ndarray: ...

    def frequencies(self, count: int, rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class Periodic:
    """``exp(−2 sin²(π τ / period) / length²)``; its harmonic j has the weight ``e^{−z} I_j(z)``, z = 1 / length²."""

    period: float
    length: float

    def at(self, lag: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-2 * np.sin(np.pi * lag / self.period) ** 2 / self.length**2))

    def frequencies(self, count: int, rng: np.random.Generator) -> np.ndarray:
        harmonic = np.arange(-HARMONICS, HARMONICS + 1)
        weight = ive(np.abs(harmonic), self.length**-2)
        return 2 * np.pi / self.period * rng.choice(harmonic, count, p=weight / weight.sum())


@dataclass(frozen=True)
class Smooth:
    """The squared exponential ``exp(−τ² / 2 length²)``: normal frequencies of standard deviation 1 / length."""

    length: float

    def at(self, lag: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-0.5 * (lag / self.length) ** 2))

    def frequencies(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal(count) / self.length


@dataclass(frozen=True)
class Rational:
    """The rational quadratic ``(1 + τ² / 2 shape length²)^{−shape}``: squared exponentials of Gamma-mixed lengths."""

    length: float
    shape: float

    def at(self, lag: np.ndarray) -> np.ndarray:
        return np.asarray((1 + 0.5 * (lag / self.length) ** 2 / self.shape) ** -self.shape)

    def frequencies(self, count: int, rng: np.random.Generator) -> np.ndarray:
        precision = rng.gamma(self.shape, 1 / self.shape, count)
        return rng.standard_normal(count) * np.sqrt(precision) / self.length


@dataclass(frozen=True)
class Rough:
    """The exponential ``exp(−|τ| / length)`` (Ornstein–Uhlenbeck): Cauchy frequencies."""

    length: float

    def at(self, lag: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-np.abs(lag) / self.length))

    def frequencies(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_cauchy(count) / self.length


@dataclass(frozen=True)
class Term:
    """``variance · Π kernels``; with a centre, times the linear kernel ``(t − centre)(t′ − centre) / steps²``."""

    variance: float
    kernels: tuple[Kernel, ...]
    centre: float | None = None

    def covariance(self, first: np.ndarray, second: np.ndarray, steps: int) -> np.ndarray:
        """Of times that are broadcast together."""
        result = np.full(np.broadcast_shapes(first.shape, second.shape), self.variance)
        for kernel in self.kernels:
            result = result * kernel.at(first - second)
        if self.centre is not None:
            result = result * (first - self.centre) * (second - self.centre) / steps**2
        return result

    def sample(self, steps: int, rng: np.random.Generator) -> np.ndarray:
        """``(steps,)`` at times 0, 1, …"""
        frequency = np.zeros(FEATURES)
        for kernel in self.kernels:
            frequency = frequency + kernel.frequencies(FEATURES, rng)
        amplitude = rng.standard_normal((2, FEATURES)) * np.sqrt(self.variance / FEATURES)
        drawn = oscillations(frequency, amplitude[0] - 1j * amplitude[1], steps)
        return drawn if self.centre is None else drawn * (np.arange(steps) - self.centre) / steps


def oscillations(frequency: np.ndarray, amplitude: np.ndarray, steps: int) -> np.ndarray:
    """``Re Σ_i amplitude_i exp(i frequency_i t)`` at t = 0 … steps − 1, as one matrix product over t = width · a + b.

    >>> oscillations(np.array([np.pi / 2]), np.array([1.0]), 4).round(6).tolist()
    [1.0, 0.0, -1.0, -0.0]
    """
    width = int(np.ceil(np.sqrt(steps)))
    coarse = np.exp(1j * np.outer(width * np.arange(-(-steps // width)), frequency)) * amplitude
    fine = np.exp(1j * np.outer(frequency, np.arange(width)))
    result: np.ndarray = (coarse @ fine).real.reshape(-1)[:steps]
    return result


def draw_terms(steps: int, periods: Sequence[float], rng: np.random.Generator) -> tuple[list[Term], float]:
    """A random sum of one to four products of one or two kernels, and the standard deviation of white noise beside.

    Every second period is one of `periods`, the others are log-uniform from 4 steps to half the series, as lengths are
    up to the whole.
    """
    terms = []
    for _ in range(int(rng.integers(1, 5))):
        kernels = tuple(_draw_kernel(steps, periods, rng) for _ in range(int(rng.integers(1, 3))))
        centre = float(rng.uniform(0, steps)) if rng.random() < 0.15 else None
        terms.append(Term(float(np.exp(rng.normal(0, 0.7))), kernels, centre))
    return terms, float(rng.choice([0.0, 0.1, 0.3, 0.6]))


def _draw_kernel(steps: int, periods: Sequence[float], rng: np.random.Generator) -> Kernel:
    kind = rng.random()
    if kind < 0.5:
        usual = rng.random() < 0.75
        period = float(rng.choice(periods)) if usual else log_uniform(4, steps / 2, rng)
        return Periodic(period, log_uniform(0.4, 3.0, rng))
    length = log_uniform(4, steps, rng)
    if kind < 0.65:
        return Smooth(length)
    return Rational(length, float(rng.choice([0.3, 1.0, 3.0]))) if kind < 0.8 else Rough(length)


def log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
