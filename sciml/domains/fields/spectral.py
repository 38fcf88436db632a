"""Persistence, damped per wavenumber: the best linear predictor of each Fourier coefficient from itself.

x̂(κ, t + lead) ≈ ρ(κ) x̂(κ, t) with ρ = ⟨x̂* ŷ⟩ / ⟨x̂* x̂⟩ over the training split, clipped to [0, 1], and σ(κ) the size of
what that misses. Energies of a smooth flow fall by many orders of magnitude with κ: an output of one size at every κ
would bury the small scales of a long rollout in its errors. Along an axis with ends the waves are cosines: those of the
field and its mirror image, which together are periodic in twice its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from sciml.data.store import Store
from sciml.domains.fields.config import Contract, Leads, fitting
from sciml.domains.fields.grids import is_even

NEGLIGIBLE = 1e-14
TIE = 1e-4
"""Added before rounding: half waves, which boxes with ends have, go up on every grid, whatever its own rounding is."""
PREFIX = "spectra:"


Curves = dict[str, dict[int, np.ndarray]]
"""Variable → lead in steps → ``(3, K)`` over whole wavenumbers κ (cycles per reference length): ρ, σ per coefficient in
link space (``norm="forward"``), and how many coefficients the fitted grid has there."""


def wavenumbers(sizes: Sequence[int], periods: Sequence[float]) -> np.ndarray:
    """Nearest whole |κ| of every coefficient of an rfftn, ``(n₁, …, n_d // 2 + 1)``; periods in reference lengths."""
    axes = [np.fft.fftfreq(n, 1 / n) / p for n, p in zip(sizes[:-1], periods[:-1])]
    axes.append(np.arange(sizes[-1] // 2 + 1) / periods[-1])
    return np.rint(np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij"))) + TIE).astype(int)


def knots(leads: Leads, longest: int) -> tuple[int, ...]:
    """The leads that curves are fitted at: those listed or, of a range, powers of two and the longest.

    >>> knots((1, 3), 9), knots("all", 9), knots(5, 9)
    ((1, 3), (1, 2, 4, 8, 9), (1, 2, 4, 5))
    """
    found = fitting(leads, longest)
    if isinstance(leads, tuple) or not found:
        return found
    return tuple(dict.fromkeys((*(1 << i for i in range(found[-1].bit_length())), found[-1])))


def between(curves: Mapping[int, np.ndarray], steps: float) -> np.ndarray:
    """``(3, K)`` at a lead in steps: linear in its logarithm between those fitted, the nearest one's beyond them."""
    steps = round(steps) if abs(steps - round(steps)) < 1e-5 * steps else steps
    below = max((lead for lead in curves if lead <= steps), default=min(curves))
    above = min((lead for lead in curves if lead >= steps), default=max(curves))
    if below == above:
        return curves[below]
    share = float(np.log(steps / below) / np.log(above / below))
    return (1 - share) * curves[below] + share * curves[above]


def fit_curves(store: Store, contract: Contract, allowed: Leads) -> Curves:
    """Over all training pairs at the `knots`, one trajectory in memory at a time, in float64."""
    leads = knots(allowed, max(block.stop - block.start for block in store.meta.splits.train) - 1)
    ends = [axis.period is None for axis in contract.axes]
    boxes = [repeats(store.coord(axis.name), axis.period) / contract.length for axis in contract.axes]
    sizes = [len(store.coord(axis.name)) * (2 if end else 1) for axis, end in zip(contract.axes, ends)]
    shell, result = wavenumbers(sizes, boxes), {}
    twice = np.full(shell.shape, 2.0)  # a coefficient of an rfftn stands for itself and its conjugate
    twice[..., 0] = 1.0
    if sizes[-1] % 2 == 0:
        twice[..., -1] = 1.0
    modes = np.maximum(np.bincount(shell.ravel(), (twice * _waves(shell.shape, sizes, ends)).ravel()), 1)
    over = tuple(range(1, len(sizes) + 1))
    for name, scaling in contract.states.items():
        sums, pairs = {lead: np.zeros((3, len(modes))) for lead in leads}, dict.fromkeys(leads, 0)
        for block in store.meta.splits.train:
            values = (store.read(name, block.group, block.start, block.stop) - scaling.center) / scaling.scale
            for axis in (1 + i for i, end in enumerate(ends) if end):
                values = np.concatenate([values, np.flip(values, axis)], axis)
            spectra = np.fft.rfftn(values.astype(np.float64), axes=over, norm="forward")
            for lead in leads:
                x, y = spectra[:-lead], spectra[lead:]
                pairs[lead] += len(x)
                for row, power in enumerate((np.abs(x) ** 2, (x.conj() * y).real, np.abs(y) ** 2)):
                    np.add.at(sums[lead][row], shell, power.sum(0) * twice)
        result[name] = {lead: _curve(sums[lead] / max(pairs[lead], 1), modes) for lead in leads if pairs[lead]}
    return result


def repeats(coord: np.ndarray, period: float | None) -> float:
    """Length after which an axis repeats: its period or, with ends, twice as many spacings as there are cells.

    >>> repeats(np.array([0.25, 0.75]), None)
    2.0
    """
    return period if period is not None else 2 * len(coord) * float(coord[-1] - coord[0]) / max(len(coord) - 1, 1)


def _waves(shape: Sequence[int], sizes: Sequence[int], ends: Sequence[bool]) -> np.ndarray:
    """How many waves a coefficient stands for, one on periodic axes: a cosine along an axis with ends is two of its
    mirrored lattice, but the constant is one, and that lattice's Nyquist wave none."""
    count = np.ones(shape)
    for i, (n, end) in enumerate(zip(sizes, ends)):
        if end:
            k = np.arange(shape[i])
            own = np.where(k == 0, 1.0, np.where(2 * k == n, 0.0, 0.5))
            count *= own.reshape([-1 if j == i else 1 for j in range(len(sizes))])
    return count


def _curve(power: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """ρ and σ per shell from ⟨x̂*x̂⟩, ⟨x̂*ŷ⟩, ⟨ŷ*ŷ⟩ summed over its modes; a shell without energy is left alone."""
    xx, xy, yy = power
    alive = xx > NEGLIGIBLE * xx.sum()
    damping = np.where(alive, np.clip(xy / np.where(alive, xx, 1.0), 0.0, 1.0), 1.0)
    missed = np.maximum(yy - 2 * damping * xy + damping**2 * xx, 0.0)
    return np.stack([damping, np.sqrt(missed / modes), modes])


def applies(store: Store, contract: Contract) -> bool:
    """Whether the grid is evenly spaced and free of masks and missing cells."""
    meta = store.meta
    even = all(is_even(store.coord(axis.name), axis.period) for axis in contract.axes)
    complete = not contract.masks and all(meta.moments[name].missing == 0 for name in contract.states)
    return even and complete and all(len(store.coord(a.name)) > 1 or a.period is not None for a in contract.axes)


@lru_cache(maxsize=64)
def _shells(sizes: tuple[int, ...], periods: tuple[float, ...]) -> np.ndarray:
    return wavenumbers(sizes, periods)


def gains(curve: np.ndarray, sizes: Sequence[int], periods: Sequence[float], power: float) -> tuple[np.ndarray, ...]:
    """(damping, gain of the output) per coefficient of any grid, from the curve fitted on one; along an axis with ends
    `sizes` and `periods` are those of the mirrored one.

    gain(κ) = σ(κ)^power, times a constant that gives a white output of unit size on the fitted grid the size of what
    was missed there. Beyond the fitted wavenumbers both keep their last value.
    """
    damping, sigma, modes = curve
    shell = np.minimum(_shells(tuple(sizes), tuple(periods)), len(sigma) - 1)
    own = np.maximum(sigma, 1e-12 * sigma.max()) ** power
    white = np.sqrt((modes * own**2).sum() / modes.sum())
    return damping[shell], own[shell] / white * np.sqrt((modes * sigma**2).sum())


def arrays(spectra: Mapping[str, Curves]) -> dict[str, np.ndarray]:
    """Curves of all data sets by one name each, from which `of` makes them again."""
    return {f"{PREFIX}{dataset}/{variable}/{lead}": curve for dataset, own in spectra.items()
            for variable, leads in own.items() for lead, curve in leads.items()}


def of(arrays: Mapping[str, np.ndarray], states: Mapping[str, Sequence[str]]) -> dict[str, Curves]:
    """Curves by data set, in the order of its states."""
    found: dict[str, Curves] = {}
    for name in arrays:
        if name.startswith(PREFIX):
            dataset, variable, lead = name.removeprefix(PREFIX).split("/")
            found.setdefault(dataset, {}).setdefault(variable, {})[int(lead)] = np.asarray(arrays[name], np.float64)
    return {dataset: {name: dict(sorted(own[name].items())) for name in states[dataset]}
            for dataset, own in found.items()}
