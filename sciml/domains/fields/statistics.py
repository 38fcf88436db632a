"""Statistics of states that come one by one, in memory that doesn't grow with their number; float64, physical units.

A state is ``(C, *space)``. What is gathered of one state is a `Statistics` of count 1, and `merge` joins any two:
states of a rollout as they come, and trajectories with each other (Chan, Golub & LeVeque, Am. Stat. 37, 1983, eq. 2.1).
What is not observed is NaN and is left out, but for spectra, which then aren't taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import xarray as xr

from sciml.domains.fields.config import Contract, GridAxis
from sciml.domains.fields.grids import is_even
from sciml.domains.fields.mesh import MEASURE
from sciml.errors import InputError
from sciml.metrics import energy_spectrum, power_spectrum
from sciml.tokens import cell_widths

VORTICITY = "vorticity"


@dataclass(frozen=True)
class Layout:
    """What the numbers of a state are. weights: ``(n,)`` per axis, quadrature, their sum is 1. periods: per axis, None
    where waves can't be counted (not periodic, or uneven). vectors: vector → axis → channel. profile: the place of the
    axis that means are kept apart along; None: over all of space."""

    channels: tuple[str, ...]
    axes: tuple[str, ...]
    places: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    periods: tuple[float | None, ...]
    vectors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    profile: int | None = None

    @classmethod
    def of(cls, known: Contract, sample: xr.Dataset, profile: str = "") -> Layout:
        """On a sample's grid or points. profile: the name of an axis; by default the only one that isn't periodic.

        Raises `InputError` on a name that is no axis of space."""
        grid = [axis for axis in known.axes if not axis.places]
        ends = [axis.name for axis in grid if axis.period is None]
        chosen = profile or (ends[0] if len(ends) == 1 else "")
        if chosen and chosen not in [axis.name for axis in grid]:
            raise InputError("command line", key="profile", found=chosen,
                             expected=f"one of {[axis.name for axis in grid]}",
                             fix="name the axis that statistics change along")
        places, weights, periods = zip(*(_axis(sample, axis) for axis in known.axes))
        return cls(tuple(known.states), known.names, places, weights, periods, known.vectors,
                   known.names.index(chosen) if chosen else None)

    @property
    def across(self) -> np.ndarray:
        """``(n,)`` weights along the axis of the profile; one without it."""
        return np.ones(1) if self.profile is None else self.weights[self.profile]

    @property
    def whole(self) -> dict[str, list[int]]:
        """Vectors with a component along every axis: places of their channels, in the order of the axes."""
        return {name: [self.channels.index(parts[axis]) for axis in self.axes] for name, parts in self.vectors.items()
                if set(parts) == set(self.axes)}

    def planes(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The state as ``(C, n, cells)``, n along the profile, and weights ``(cells,)`` of what lies across it."""
        values = np.asarray(state, np.float64)
        others = [w for i, w in enumerate(self.weights) if i != self.profile]
        weight = np.ones(1)
        for other in others:
            weight = np.multiply.outer(weight, other).ravel()
        if self.profile is not None:
            values = np.moveaxis(values, 1 + self.profile, 1)
        return values.reshape(len(values), len(self.across), -1), weight


def _axis(sample: xr.Dataset, axis: GridAxis) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Place, weights and the period of waves. Points without an order have none, and are weighed by their cells."""
    if axis.places:
        count = sample.sizes[axis.name]
        share = np.asarray(sample[MEASURE].values, np.float64) if MEASURE in sample.coords else np.ones(count)
        return np.arange(count, dtype=np.float64), share / share.sum(), None
    place, period = np.asarray(sample[axis.name].values, np.float64), sample[axis.name].attrs.get("period")
    width = cell_widths(torch.tensor(place), period).numpy()
    waves = float(period) if period is not None and is_even(place, period) else None
    return place, width / width.sum(), waves


@dataclass(frozen=True)
class Spectrum:
    """Wavenumbers ``(K,)`` in radians per length and the mean power of each: ``(K,)`` by shell of |k|, or ``(n, K)``
    along one axis at every place of the profile."""

    k: np.ndarray
    power: np.ndarray

    def overall(self, layout: Layout) -> np.ndarray:
        """``(K,)``: with its mean along the profile."""
        return self.power if self.power.ndim == 1 else layout.across @ self.power


@dataclass(frozen=True)
class Statistics:
    """Of `count` states: mean ``(C, n)`` over time and over space across the profile; product ``(C, C, n)``, the sum
    over states of the mean products of deviations from it. spectra: those that every state has."""

    layout: Layout
    count: int
    mean: np.ndarray
    product: np.ndarray
    spectra: Mapping[str, Spectrum]

    @property
    def rms(self) -> np.ndarray:
        """``(C, n)``: of the fluctuation about the mean."""
        return np.sqrt(np.einsum("ccn->cn", self.product) / self.count)

    @property
    def size(self) -> np.ndarray:
        """``(C,)`` root mean square over all of space and time, mean included."""
        return np.sqrt(np.nansum((self.mean**2 + self.rms**2) * self.layout.across, axis=-1))

    def stress(self, first: str, second: str) -> np.ndarray:
        """``⟨a′b′⟩`` ``(n,)`` of two channels: of two components of a velocity, a Reynolds stress."""
        a, b = (self.layout.channels.index(name) for name in (first, second))
        return np.asarray(self.product[a, b] / self.count)


def one(layout: Layout, state: np.ndarray) -> Statistics:
    """Of a single state ``(C, *space)``."""
    values, weight = layout.planes(state)
    known = np.isfinite(values).all(0)
    share = np.where(known, weight, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = share / share.sum(-1, keepdims=True)
        mean = (np.where(known, values, 0.0) * share).sum(-1)
    apart = np.where(known, values - mean[..., None], 0.0).transpose(1, 0, 2)
    product = (apart * share[:, None]) @ apart.transpose(0, 2, 1)
    whole = np.asarray(state, np.float64)
    return Statistics(layout, 1, mean, product.transpose(1, 2, 0), spectra(layout, whole) if known.all() else {})


def merge(first: Statistics, second: Statistics) -> Statistics:
    """As if the states of both had been gathered by one."""
    count = first.count + second.count
    share = second.count / count
    apart = second.mean - first.mean
    product = first.product + second.product + first.count * share * np.einsum("cn,dn->cdn", apart, apart)
    both = {name: replace(s, power=s.power + share * (second.spectra[name].power - s.power))
            for name, s in first.spectra.items() if name in second.spectra}
    return Statistics(first.layout, count, first.mean + share * apart, product, both)


def spectra(layout: Layout, state: np.ndarray) -> dict[str, Spectrum]:
    """By name, each adding up to what it names: ``power/<channel>`` to the mean square, ``energy/<vector>`` to ½⟨|v|²⟩,
    ``enstrophy/<vector>`` to ½⟨|∇ × v|²⟩ (also of a channel that is the vorticity of a plane).

    By shells where space is periodic throughout (`sciml.metrics.power_spectrum`), else ``power_x`` and ``energy_x``
    along every even periodic axis.
    """
    periods = [period for period in layout.periods if period is not None]
    if len(periods) < len(layout.periods):
        return {name: s for axis in range(len(layout.axes)) for name, s in _along(layout, state, axis).items()}
    k, power = power_spectrum(state, periods)
    found = {f"power/{name}": Spectrum(k, power[i]) for i, name in enumerate(layout.channels)}
    for name, own in layout.whole.items():
        found[f"energy/{name}"] = Spectrum(k, power[own].sum(0) / 2)
        if len(periods) > 1:
            found[f"enstrophy/{name}"] = Spectrum(k, power_spectrum(curl(state[own], periods), periods)[1].sum(0) / 2)
    if len(periods) == 2 and VORTICITY in layout.channels:
        i = layout.channels.index(VORTICITY)
        found[f"energy/{VORTICITY}"] = Spectrum(*energy_spectrum(state[i], periods))
        found[f"enstrophy/{VORTICITY}"] = Spectrum(k, power[i] / 2)
    return found


def _along(layout: Layout, state: np.ndarray, axis: int) -> dict[str, Spectrum]:
    """Along one axis at every place of the profile, mean over what lies across both; none of an axis without waves or
    of the profile's own."""
    period = layout.periods[axis]
    if period is None or axis == layout.profile:
        return {}
    n = state.shape[1 + axis]
    power = np.abs(np.fft.rfft(np.asarray(state, np.float64), axis=1 + axis, norm="forward")) ** 2
    power = np.moveaxis(power, 1 + axis, -1)
    power[..., 1: (n + 1) // 2] *= 2
    rest = [i for i in range(len(layout.axes)) if i != axis]
    for place, i in reversed(list(enumerate(rest, 1))):
        if i != layout.profile:
            power = np.moveaxis(power, place, -1) @ layout.weights[i]
    power = power if layout.profile is not None else power[:, None]
    k = 2 * np.pi * np.arange(n // 2 + 1) / period
    name = layout.axes[axis]
    found = {f"power_{name}/{channel}": Spectrum(k, power[i]) for i, channel in enumerate(layout.channels)}
    return found | {f"energy_{name}/{v}": Spectrum(k, power[own].sum(0) / 2) for v, own in layout.whole.items()}


def curl(velocity: np.ndarray, periods: Sequence[float]) -> np.ndarray:
    """``∇ × v`` of ``(d, *space)`` on an even periodic grid, by Fourier: ``(1, *space)`` in two dimensions, 3 in three.
    The Nyquist wave, whose derivative the grid doesn't know, is left out."""
    values, rank = np.asarray(velocity, np.float64), len(periods)
    modes = np.fft.fftn(values, axes=range(1, rank + 1))
    waves = []
    for i, (n, period) in enumerate(zip(values.shape[1:], periods)):
        k = 2j * np.pi * np.fft.fftfreq(n, period / n)
        if n % 2 == 0:
            k[n // 2] = 0
        waves.append(k.reshape([-1 if j == i else 1 for j in range(rank)]))
    pairs = [(0, 1)] if rank == 2 else [(1, 2), (2, 0), (0, 1)]
    parts = np.stack([waves[i] * modes[j] - waves[j] * modes[i] for i, j in pairs])
    return np.fft.ifftn(parts, axes=range(1, rank + 1)).real


@dataclass(frozen=True)
class Drift:
    """Of the means over space ``(C,)``, which an equation may conserve: at the start and now, the furthest that they
    have been from the start, the largest change in one step, and the root mean square of the state at the start."""

    start: np.ndarray
    now: np.ndarray
    furthest: np.ndarray
    step: np.ndarray
    size: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """``(C,)`` furthest from the start, over the root mean square of the initial state; 0 where nothing moved."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.furthest == 0, 0.0, self.furthest / self.size)


def begin(layout: Layout, state: np.ndarray) -> Drift:
    """From a first state ``(C, *space)``."""
    mean, none = _space_mean(layout, state), np.zeros(len(layout.channels))
    return Drift(mean, mean, none, none, np.sqrt(_space_mean(layout, np.asarray(state, np.float64) ** 2)))


def then(layout: Layout, before: Drift, state: np.ndarray) -> Drift:
    """With the state that follows."""
    mean = _space_mean(layout, state)
    return replace(before, now=mean, furthest=np.maximum(before.furthest, np.abs(mean - before.start)),
                   step=np.maximum(before.step, np.abs(mean - before.now)))


def _space_mean(layout: Layout, state: np.ndarray) -> np.ndarray:
    values, weight = layout.planes(state)
    share = np.where(np.isfinite(values), layout.across[:, None] * weight, 0.0)
    total = (np.where(np.isfinite(values), values, 0.0) * share).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / share.sum((1, 2)))
