"""What fields are predicted as without a model: persistence, or of steady data the training mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from sciml.data.schema import Block
from sciml.data.store import Store
from sciml.domains.fields.config import Contract

MEANS = "means:"


@dataclass(frozen=True)
class Persistence:
    """Residual scales ``std(x(t + lead) − x(t))`` of the training split, by data set and variable.

    curves: data set → variable → ``(2, n)`` lead times (in the data set's unit of time, ascending) and scales (in the
    variable's unit). sources: data set → hash of the split they were fitted on.
    """

    curves: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def add(self, dataset: str, curves: Mapping[str, np.ndarray], source: str) -> Self:
        """A copy that knows another data set."""
        return type(self)({**self.curves, dataset: dict(curves)}, {**self.sources, dataset: source})

    def scale(self, dataset: str, variable: str, lead_time: float) -> float:
        """The scale at a lead time: linear in log lead between those fitted, constant in log scale beyond them.

        >>> curve = np.array([[1.0, 4.0], [0.1, 0.3]])
        >>> Persistence().add("a", {"u": curve}, "").scale("a", "u", 2.0)
        0.2
        """
        lead, scale = self.curves[dataset][variable]
        return float(np.interp(np.log(lead_time), np.log(lead), scale))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {f"{dataset}/{variable}": curve for dataset, curves in self.curves.items()
                  for variable, curve in curves.items()}
        return {"kind": "persistence", "sources": dict(self.sources)}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        curves: dict[str, dict[str, np.ndarray]] = {}
        for name, curve in arrays.items():
            dataset, _, variable = name.partition("/")
            curves.setdefault(dataset, {})[variable] = np.asarray(curve, np.float64)
        return cls(curves, dict(config["sources"]))


@dataclass(frozen=True)
class Mean:
    """The training mean of a variable in link space, and how far from it the training data are.

    profile: over the fitted coordinates `places` (reference lengths) of the axes that have ends, size 1 along periodic
    ones and where a mean over all cells predicts the validation split better. scale: root of the mean square about it.
    """

    profile: np.ndarray
    places: tuple[np.ndarray, ...]
    scale: float

    def at(self, places: Sequence[np.ndarray]) -> np.ndarray:
        """``(*space)`` at coordinates in reference lengths, linear between the fitted ones, constant beyond.

        >>> Mean(np.array([0.0, 1.0]), (np.array([0.0, 0.5]),), 1.0).at([np.array([0.0, 0.25, 0.5])]).tolist()
        [0.0, 0.5, 1.0]
        """
        values = self.profile
        for axis, (fitted, wanted) in enumerate(zip(self.places, places)):
            if values.shape[axis] == 1:
                values = np.repeat(values, len(wanted), axis)
                continue
            right = np.clip(np.searchsorted(fitted, wanted), 1, len(fitted) - 1)
            share = np.clip((wanted - fitted[right - 1]) / (fitted[right] - fitted[right - 1]), 0.0, 1.0)
            share = share.reshape([-1 if d == axis else 1 for d in range(values.ndim)])
            values = values.take(right - 1, axis) * (1 - share) + values.take(right, axis) * share
        return values


def mean_arrays(means: Mapping[str, Mapping[str, Mean]]) -> dict[str, np.ndarray]:
    """Means of all data sets by one name each, from which `means_of` makes them again."""
    found: dict[str, np.ndarray] = {}
    for dataset, own in means.items():
        for name, mean in own.items():
            parts = {"profile": mean.profile, "scale": np.array([mean.scale])}
            parts |= {f"place{axis}": place for axis, place in enumerate(mean.places)}
            found |= {f"{MEANS}{dataset}/{name}/{key}": array for key, array in parts.items()}
    return found


def means_of(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Mean]]:
    """Data set → state → mean."""
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name in arrays:
        if name.startswith(MEANS):
            dataset, variable, key = name.removeprefix(MEANS).split("/")
            parts.setdefault((dataset, variable), {})[key] = np.asarray(arrays[name], np.float64)
    found: dict[str, dict[str, Mean]] = {}
    for (dataset, variable), own in parts.items():
        places = tuple(own[f"place{axis}"] for axis in range(own["profile"].ndim))
        found.setdefault(dataset, {})[variable] = Mean(own["profile"], places, float(own["scale"][0]))
    return found


def states_of(store: Store, contract: Contract, name: str, block: Block) -> np.ndarray:
    """``(times or 1, *space)`` of a state in link space and float64, NaN outside its masks."""
    scaling, meta = contract.states[name], store.meta
    part = (block.start, block.stop) if meta.evolves(name) else ()
    found = (store.read(name, block.group, *part).astype(np.float64) - scaling.center) / scaling.scale
    for mask in contract.masks:
        dims = meta.variables[mask].dims
        inside = store.read(mask, block.group).transpose([dims.index(axis) for axis in contract.names]) > 0
        found = np.where(inside, found, np.nan)
    return found if part else found[None]


def fit_means(store: Store, contract: Contract) -> dict[str, Mean]:
    """Of every state, inside its masks, in float64 and one case or trajectory in memory at a time.

    A profile says what walls do (a solution that is zero there), but must not single out places of a periodic axis, and
    of few cases is mostly their noise: it is kept if it predicts the validation split better than one number does.
    """
    return {name: _fit_mean(store, contract, name) for name in contract.states}


def _fit_mean(store: Store, contract: Contract, name: str) -> Mean:
    places = tuple(store.coord(axis).astype(np.float64) / contract.length for axis in contract.names)
    wraps = (0, *(i + 1 for i, axis in enumerate(contract.axes) if axis.period is not None or axis.places))

    def values(blocks: Sequence[Block]) -> Iterator[np.ndarray]:
        return (states_of(store, contract, name, block) for block in blocks)

    train, held = store.meta.splits.train, store.meta.splits.validation
    total, count = 0.0, 0.0
    for x in values(train):
        known = np.isfinite(x)
        total = total + np.where(known, x, 0.0).sum(wraps, keepdims=True)[0]
        count = count + known.sum(wraps, keepdims=True)[0]
    whole = np.full((1,) * len(places), np.sum(total) / max(np.sum(count), 1))
    profile = np.where(count > 0, total / np.maximum(count, 1), whole)
    judged = [[np.nanmean((x - mean) ** 2) for x in values(held)] for mean in (whole, profile)]
    chosen = profile if held and np.nanmean(judged[1]) < np.nanmean(judged[0]) else whole
    missed = [np.nanmean((x - chosen) ** 2) for x in values(train)]
    return Mean(chosen, places, max(float(np.sqrt(np.nanmean(missed))), 1e-6))
