"""Which trajectories disagree with the rest in what their channels seem to be, from a mean and spread of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

FEWEST = 4
"""Trajectories below which nothing can be said of the usual one."""
DEVIATIONS = 8.0
TIGHT = 4.0
"""How many times the distance of two channels is their spread over trajectories, at least."""
FACTOR = 10.0
SWAP_FIT = 0.25

Table = Mapping[str, np.ndarray]


def exchanged(mean: Table, std: Table) -> Iterator[tuple[str, str, np.ndarray]]:
    """Pairs of channels, and the trajectories in which each is as the other is elsewhere.

    mean, std: of each channel by trajectory, ``(groups,)``, in the channel's own numbers. A pair whose difference (of
    means, or of log standard deviations) is nearly the same in size in all trajectories but of two signs has changed
    places in the fewer of them, if both values then fit those of the rest. Works for any share of swapped trajectories.

    >>> mean = {"rho": np.array([1.0, 1.1, 5.0, 1.0, 0.9]), "p": np.array([5.0, 5.2, 1.0, 5.1, 4.9])}
    >>> [(a, b, groups.tolist()) for a, b, groups in exchanged(mean, {name: np.ones(5) for name in mean})]
    [('rho', 'p', [2])]
    """
    for a, b in combinations(mean, 2):
        if len(mean[a]) < FEWEST:
            return
        for table in (mean, {name: _log(values) for name, values in std.items()}):
            groups = _swapped(table[a], table[b])
            if len(groups):
                yield a, b, groups
                break


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values > 0, values, np.nan))


def _swapped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    none = np.zeros(0, np.int64)
    apart = a - b
    if not np.isfinite(apart).all() or (apart == 0).any():
        return none
    size = float(np.median(np.abs(apart)))
    if np.abs(np.abs(apart) - size).max() > size / 2 or _deviation(np.abs(apart)) * TIGHT > size:
        return none
    up = apart > 0
    fewer = up if up.sum() < len(up) / 2 or (up.sum() == len(up) / 2 and not up[0]) else ~up
    if not fewer.any() or fewer.all():
        return none
    here, there = [np.median(x[fewer]) for x in (a, b)], [np.median(x[~fewer]) for x in (a, b)]
    fits = max(abs(here[0] - there[1]), abs(here[1] - there[0])) < SWAP_FIT * size
    moved = min(abs(here[0] - there[0]), abs(here[1] - there[1])) > (1 - SWAP_FIT) * size
    return np.flatnonzero(fewer) if fits and moved else none


def _deviation(values: np.ndarray) -> float:
    """A robust standard deviation: 1.4826 times the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def outliers(mean: Table, std: Table) -> Iterator[tuple[str, np.ndarray, str]]:
    """Channel, trajectories, and what is unusual of the first: a mean beyond 8 robust deviations of all means and 5
    usual spreads, or a spread more than 10 times larger or smaller, and as far, than usual. Where spreads are of two
    kinds that far apart, the rarer one is unusual, of equally many the one that comes later.

    >>> usual = np.array([285.0, 286.0, 284.0, 285.5, 12.0])
    >>> [(name, groups.tolist(), text) for name, groups, text in outliers({"t": usual}, {"t": np.ones(5)})]
    [('t', [4], 'mean 12, elsewhere about 285; spread 1, elsewhere about 1')]
    """
    for name, means in mean.items():
        spreads = std[name]
        known = np.isfinite(means) & np.isfinite(spreads)
        center, usual = (float(np.median(x[known])) if known.any() else 0.0 for x in (means, spreads))
        if known.sum() < FEWEST or usual <= 0:
            continue
        far = np.abs(means - center) > max(DEVIATIONS * _deviation(means[known]), 5 * usual)
        logs = np.log(np.where(spreads > 0, spreads, usual) / usual)
        other = np.abs(logs) > max(np.log(FACTOR), DEVIATIONS * _deviation(logs[known]))
        odd = known & (far | other | _apart(logs, known))
        if odd.any():
            at = int(np.argmax(odd))
            center, usual = (float(np.median(x[known & ~odd])) if (known & ~odd).any() else np.nan
                             for x in (means, spreads))
            yield name, np.flatnonzero(odd), (f"mean {means[at]:.3g}, elsewhere about {center:.3g}; spread "
                                              f"{spreads[at]:.3g}, elsewhere about {usual:.3g}")


def _apart(logs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The fewer of two groups of logarithms, ``(groups,)``, whose gap is above `FACTOR` and twice what either spans."""
    order = np.sort(logs[known])
    gaps = np.diff(order)
    at = int(np.argmax(gaps))
    low = logs <= order[at]
    if gaps[at] < max(np.log(FACTOR), 2 * (order[at] - order[0]), 2 * (order[-1] - order[at + 1])):
        return np.zeros(len(logs), bool)
    count, half = int((low & known).sum()), known.sum() / 2
    return low if count < half or (count == half and not low[np.argmax(known)]) else ~low
