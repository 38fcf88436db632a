"""How far to trust a prediction without knowing the truth: one jump of 2τ beside two of τ, which the flow of an
autonomous equation makes equal (its semigroup property). The difference estimates the error, as the step-size control
of solvers does by step doubling (Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, §II.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from sciml import metrics as formulas
from sciml.adapter import Windows
from sciml.data.schema import Block
from sciml.domains.fields.config import Leads, allowed, shortest

SPLIT = "split"
"""The head of two jumps; the attribute of a sample that asks for it; the end of a variable's name that answers it."""
ESTIMATE = "error_estimate"
RANKS = "error_estimate_correlation"


def splittable(leads: Leads, blocks: Sequence[Block]) -> int | None:
    """The shortest lead τ that the model knows together with 2τ, and that fits into a block; None if there is none."""
    longest = max((block.stop - block.start - 1 for block in blocks), default=0)
    found = (n for n in range(shortest(leads), longest // 2 + 1) if allowed(leads, n) and allowed(leads, 2 * n))
    return next(found, None)


@dataclass(frozen=True)
class Halved:
    """Windows of which the direct answer and that in two jumps are asked."""

    windows: Windows

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        return self.windows.draw(index, rng, batch_rng).assign_attrs({SPLIT: 1})


def error_estimate(prediction: xr.Dataset) -> np.ndarray:
    """``(sample,)``: ``‖Φ_2τ x − Φ_τ Φ_τ x‖ / ‖Φ_2τ x‖`` over space, mean over channels, of what
    ``predictor.predict(sample.assign_attrs(split=1, lead_time=…))`` answers.

    >>> answer = {"u": (("sample", "x"), [[3.0, 4.0]]), "u_split": (("sample", "x"), [[3.0, 3.0]])}
    >>> error_estimate(xr.Dataset(answer)).tolist()
    [0.2]
    """
    names = [str(name) for name in prediction.data_vars if f"{name}_{SPLIT}" in prediction]
    each = [formulas.relative_l2(prediction[f"{name}_{SPLIT}"].transpose(*prediction[name].dims).values,
                                 prediction[name].values) for name in names]
    return np.asarray(np.mean(each, axis=0))


def across(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With, for every sample, its part of Spearman's rank correlation of estimate and true error: the mean over samples
    is it; 0 where one of them is the same for all."""
    if ESTIMATE not in scores:
        return dict(scores)
    ranks = [rankdata(scores[name]) for name in (ESTIMATE, "relative_l2")]
    centred = [(r - r.mean()) / (r.std() or 1.0) for r in ranks]
    return {**scores, RANKS: centred[0] * centred[1]}
