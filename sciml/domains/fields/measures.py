"""Formulas of scores that are fields' own, in float64 and physical units; those that all domains share are in
`sciml.metrics`. Arrays are ``(*kept, *space)``; what is not known of the truth is NaN, and then so is what needs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sciml.metrics import power_spectrum, spectrum_ratio

BANDS = {"low": (0, 4), "mid": (4, 12), "high": (12, None)}
"""Shells of wavenumbers, in waves that fit into the box along an axis; PDEBench's."""


def vrmse(prediction: np.ndarray, truth: np.ndarray, rank: int) -> np.ndarray:
    """``√(⟨(p − t)²⟩ / ⟨(t − ⟨t⟩)²⟩)`` over space; unit 1; null: 1 (the mean of the truth). Infinite where the truth is
    constant and missed. Source: Ohana et al., "The Well", NeurIPS 2024, §E.1, without its ε = 10⁻⁷.

    >>> vrmse(np.array([[0.0, 0.0]]), np.array([[1.0, 3.0]]), 1).round(4).tolist()
    [2.2361]
    """
    space = tuple(range(-rank, 0))
    known = np.isfinite(truth)
    count = np.maximum(known.sum(space, keepdims=True), 1)
    mean = np.where(known, truth, 0.0).sum(space, keepdims=True) / count
    error, spread = (np.where(known, x, 0.0).sum(space) for x in ((prediction - truth) ** 2, (truth - mean) ** 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.where((error == 0) & (spread == 0), 0.0, error / spread))


def mean_error(prediction: np.ndarray, truth: np.ndarray, rank: int) -> np.ndarray:
    """``|⟨p⟩ − ⟨t⟩|`` over space, in the unit: how far what is conserved has drifted. PDEBench's cRMSE is the root of
    its mean square over samples (Takamoto et al., NeurIPS 2022, §B)."""
    space, known = tuple(range(-rank, 0)), np.isfinite(truth)
    total = np.where(known, prediction - truth, 0.0).sum(space)
    return np.asarray(np.abs(total) / np.maximum(known.sum(space), 1))


def boundary_rmse(prediction: np.ndarray, truth: np.ndarray, ends: Sequence[bool]) -> np.ndarray:
    """``√⟨(p − t)²⟩`` over the first and last cells of the axes that have ends, in the unit; PDEBench's bRMSE."""
    rank = len(ends)
    edge = np.zeros(truth.shape[-rank:], dtype=bool)
    for axis, has_ends in enumerate(ends):
        if has_ends:
            for place in (0, -1):
                edge[tuple(place if d == axis else slice(None) for d in range(rank))] = True
    error = (prediction - truth)[..., edge] ** 2
    known = np.isfinite(truth[..., edge])
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.where(known, error, 0.0).sum(-1) / known.sum(-1))


def band_rmse(prediction: np.ndarray, truth: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """``√(Σ_{|k| in band} |p̂ − t̂|²)`` in the unit, for `BANDS`; their squares add up to the squared rmse (Parseval).

    Of fields on an even grid, whether periodic or not, as PDEBench's fRMSE, which averages shells instead (Takamoto et
    al., NeurIPS 2022, §B). NaN where the truth isn't known throughout; bands beyond the grid are left out.
    """
    error = np.asarray(prediction - truth, np.float64)
    power = np.abs(np.fft.fftn(error, axes=range(-rank, 0), norm="forward")) ** 2
    waves = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in error.shape[-rank:]), indexing="ij")
    shell = np.sqrt(sum(w**2 for w in waves))
    inside = {name: (shell >= low) & (shell < (high or np.inf)) for name, (low, high) in BANDS.items()}
    return {name: np.sqrt(power[..., own].sum(-1)) for name, own in inside.items() if own.any()}


class Flow:
    """A velocity ``(*kept, *space, d)`` on an even periodic grid with these periods, one component along every axis."""

    def __init__(self, velocity: np.ndarray, periods: Sequence[float]) -> None:
        self.velocity, self.periods = np.asarray(velocity, np.float64), tuple(periods)

    def energy(self) -> np.ndarray:
        """``½ ⟨|v|²⟩``."""
        return 0.5 * (self.velocity**2).sum(-1).mean(self._space)

    def energy_spectrum(self) -> np.ndarray:
        """``½ Σ_{|k| in shell} |v̂|²``, shells as in `sciml.metrics.power_spectrum`."""
        each = [power_spectrum(self.velocity[..., i], self.periods)[1] for i in range(len(self.periods))]
        return np.sum(each, axis=0) / 2

    def enstrophy(self) -> np.ndarray:
        """``½ ⟨|∇ × v|²⟩``; of 1-D it is 0."""
        rates = self._rates()
        total = np.zeros(self.velocity.shape[: -len(self.periods) - 1])
        for i in range(len(rates)):
            for j in range(i):
                total = total + 0.5 * ((rates[i][..., j] - rates[j][..., i]) ** 2).mean(self._space)
        return total

    def divergence(self) -> np.ndarray:
        """``√(⟨(∇·v)²⟩ / ⟨|∇v|²⟩)``: 0 of an incompressible flow."""
        rates = self._rates()
        total = np.sum([rate[..., i] for i, rate in enumerate(rates)], axis=0)
        size = np.sum([(rate**2).sum(-1).mean(self._space) for rate in rates], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(np.where(size == 0, 0.0, (total**2).mean(self._space) / size))

    @property
    def _space(self) -> tuple[int, ...]:
        return tuple(range(-len(self.periods), 0))

    def _rates(self) -> list[np.ndarray]:
        """``∂_i v`` by axis i, each ``(*kept, *space, d)``, spectrally."""
        rank, found = len(self.periods), []
        for i, period in enumerate(self.periods):
            axis, n = i - rank - 1, self.velocity.shape[i - rank - 1]
            wave = np.fft.rfftfreq(n, period / n) * 2j * np.pi
            if n % 2 == 0:
                wave[-1] = 0
            shape = [1] * self.velocity.ndim
            shape[axis] = len(wave)
            found.append(np.fft.irfft(np.fft.rfft(self.velocity, axis=axis) * wave.reshape(shape), n, axis=axis))
        return found


def relative(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``|value − truth| / |truth|``; 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(value == truth, 0.0, np.abs(value - truth) / np.abs(truth))


def flow_scores(prediction: np.ndarray, truth: np.ndarray, periods: Sequence[float]) -> dict[str, np.ndarray]:
    """Of a velocity and the true one: what turbulence is judged by."""
    ours, theirs = Flow(prediction, periods), Flow(truth, periods)
    spectra = ours.energy_spectrum(), theirs.energy_spectrum()
    found = {"energy_error": relative(ours.energy(), theirs.energy()), "divergence": ours.divergence(),
             "energy_spectrum_ratio": spectrum_ratio(*spectra, (spectra[0].shape[-1] - 1) // 2)}
    if len(periods) > 1:
        found["enstrophy_error"] = relative(ours.enstrophy(), theirs.enstrophy())
    return found
