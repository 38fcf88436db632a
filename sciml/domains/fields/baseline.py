"""Persistence: x(t + lead) = x(t), with the size of what it misses as a function of lead time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np


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
