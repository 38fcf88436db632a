"""Damped persistence: the training mean, and of a state's deviation from it the share that is left after a lead.

x(t + lead) ≈ m + ρ (x(t) − m) with ρ = ⟨x′ y′⟩ / ⟨x′ x′⟩ over the training split, clipped to [0, 1]; σ is the size of
what that misses. A forecast's standard of comparison (Murphy, "Climatology, persistence, and their linear combination
as standards of reference in skill scores", Weather and Forecasting 7, 1992). A rollout whose answers are of size σ and
know nothing of its state keeps the size of the fluctuations, σ / √(1 − ρ²); beside plain persistence they grow without
end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sciml.data.store import Store
from sciml.domains.fields.baseline import Mean, states_of
from sciml.domains.fields.config import Contract, Leads
from sciml.domains.fields.spectral import knots

PREFIX = "damping:"

Damping = dict[str, np.ndarray]
"""Variable → ``(3, n)``: lead times in the data set's unit of time, ascending; ρ; σ in link space."""


def fit_damping(store: Store, contract: Contract, means: Mapping[str, Mean], allowed: Leads) -> Damping:
    """Over all training pairs at the `knots`, in float64 and one trajectory in memory at a time; cells that are masked
    or not finite don't count."""
    leads = knots(allowed, max(block.stop - block.start for block in store.meta.splits.train) - 1)
    result = {}
    for name in contract.states:
        sums = {lead: np.zeros(4) for lead in leads}
        for block in store.meta.splits.train:
            deviation = states_of(store, contract, name, block) - means[name].profile
            for lead in leads:
                x, y = deviation[:-lead], deviation[lead:]
                both = np.isfinite(x) & np.isfinite(y)
                x, y = np.where(both, x, 0.0), np.where(both, y, 0.0)
                sums[lead] += [both.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum()]
        rows = []
        for lead, (count, xx, xy, yy) in sums.items():
            share = float(np.clip(xy / xx, 0.0, 1.0)) if xx > 0 else 1.0
            missed = max(yy - 2 * share * xy + share**2 * xx, 0.0) / max(count, 1)
            rows.append([lead * contract.dt, share, max(float(np.sqrt(missed)), 1e-6)])
        result[name] = np.array(rows).T
    return result


def at(curve: np.ndarray, lead: float) -> tuple[float, float]:
    """ρ and σ at a lead time: linear in its logarithm between those fitted, constant beyond.

    >>> at(np.array([[1.0, 4.0], [0.75, 0.25], [0.5, 1.0]]), 2.0)
    (0.5, 0.75)
    """
    where = np.log(curve[0])
    share, missed = (float(np.interp(np.log(lead), where, row)) for row in curve[1:])
    return share, missed


def arrays(damping: Mapping[str, Damping]) -> dict[str, np.ndarray]:
    """Of all data sets by one name each, from which `of` makes them again."""
    return {f"{PREFIX}{dataset}/{variable}": curve for dataset, own in damping.items()
            for variable, curve in own.items()}


def of(arrays: Mapping[str, np.ndarray]) -> dict[str, Damping]:
    """Data set → variable → curve."""
    found: dict[str, Damping] = {}
    for name in arrays:
        if name.startswith(PREFIX):
            dataset, variable = name.removeprefix(PREFIX).split("/")
            found.setdefault(dataset, {})[variable] = np.asarray(arrays[name], np.float64)
    return found
