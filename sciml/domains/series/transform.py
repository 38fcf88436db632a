"""A monotone function of the values, in which cycle and ridge are fitted: what varies in proportion to its level.

A forecast comes back as the mean of what it says: of a Gaussian ``y ~ N(f, σ²)``, ``E y² = f² + σ²`` and
``E exp y = exp(f + σ²/2)``. The square root steadies the variance of counts (Bartlett, J. R. Stat. Soc. Suppl. 3,
1936).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.series.config import TransformName
from sciml.domains.series.encode import Window
from sciml.domains.series.known import Known, Pieces
from sciml.errors import InputError

LEAST_SLOPE = 0.05
"""Of the inverse, in standardised units of both: the residual's scale doesn't vanish where values do."""
ROUNDING = 1e-4
"""Standard deviations by which float32 may make a value negative."""


@dataclass(frozen=True)
class Transform:
    """table: ``(4, V)`` mean and standard deviation over training of the values, and of the transformed ones."""

    name: TransformName
    table: np.ndarray

    @classmethod
    def fit(cls, name: TransformName, known: Known, train: Pieces) -> Self:
        """Raises `InputError` on training values that the function isn't defined for."""
        rows = np.stack([known.mean, known.std, np.zeros_like(known.mean), np.ones_like(known.std)])
        raw = cls(name, rows)
        everything = torch.from_numpy(np.concatenate(train.values).T.copy())
        changed = raw.forward(everything, np.arange(len(known.variates)), known.name).numpy()
        spread = np.nanstd(changed, axis=1)
        return cls(name, np.stack([*rows[:2], np.nanmean(changed, axis=1), np.where(spread > 0, spread, 1.0)]))

    def forward(self, scaled: Tensor, members: np.ndarray, where: object) -> Tensor:
        """``(…, V, T)`` standardised values as standardised transformed ones; NaN stays. Raises `InputError` on values
        below 0, for `log` on 0, too."""
        mean, std, centre, spread = self._rows(scaled, members)
        x = scaled * std + mean
        refused = x < -ROUNDING * std if self.name == "sqrt" else x < ROUNDING * std
        if bool(refused.any()):
            raise InputError(where, key="transform", found=f"{self.name} of {float(x[refused].min()):.4g}",
                             expected="values of at least 0" if self.name == "sqrt" else "values above 0",
                             fix="correct the values, or set the data set's transform to none and train again")
        y = x.clamp_min(0).sqrt() if self.name == "sqrt" else x.log()
        return (y - centre) / spread

    def window(self, window: Window) -> Window:
        """With the values that are given transformed, 0 elsewhere."""
        inside = torch.where(window.given, window.values, torch.nan)
        changed = self.forward(inside, window.members, window.sources[0])
        return replace(window, values=torch.where(window.given, changed, 0.0))

    def pieces(self, pieces: Pieces, where: object) -> Pieces:
        members = np.arange(self.table.shape[1])
        return replace(pieces, values=[self.forward(torch.from_numpy(v.T.copy()), members, where).numpy().T
                                       for v in pieces.values])

    def back(self, forecast: Tensor, sigma: Tensor, members: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and spread, standardised, of values whose transform is ``N(forecast, sigma²)``: ``(B, V, T)``."""
        mean, std, centre, spread = self._rows(forecast, members)
        y, s = forecast * spread + centre, sigma * spread
        if self.name == "sqrt":
            x, slope = y.clamp_min(0).square() + s.square(), 2 * y.clamp_min(0)
        else:
            x = (y + s.square() / 2).exp()
            slope = x
        return (x - mean) / std, torch.maximum(slope * s / std, LEAST_SLOPE * sigma)

    def _rows(self, like: Tensor, members: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(row).to(like)[:, None] for row in self.table[:, members])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"name": self.name}, {"table": self.table}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(config["name"], np.asarray(arrays["table"]))
