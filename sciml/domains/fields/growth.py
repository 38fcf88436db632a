"""How the error of a rollout grows, gathered step by step in memory that doesn't grow with their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sciml import metrics

FIRST = 100
"""Steps that the geometric mean is over, as APEBench's GMean100 (Koehler et al., NeurIPS 2024, §3)."""
THRESHOLD = 0.8
MOST = 128
"""Points of a trace."""


@dataclass(frozen=True)
class Trace:
    """Values at steps 1, 1 + stride, …; the stride doubles when there are more than `MOST` of them.

    >>> trace = Trace()
    >>> for step in range(1, 301):
    ...     trace = trace.add(step, (step / 10,))
    >>> trace.stride, len(trace.steps), trace.steps[:3], trace.values[1]
    (4, 75, (1, 5, 9), (0.5,))
    """

    steps: tuple[int, ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    stride: int = 1

    def add(self, step: int, values: tuple[float, ...]) -> Trace:
        if (step - 1) % self.stride:
            return self
        longer = replace(self, steps=(*self.steps, step), values=(*self.values, values))
        if len(longer.steps) <= MOST:
            return longer
        return Trace(longer.steps[::2], longer.values[::2], 2 * self.stride)


@dataclass(frozen=True)
class Growth:
    """Of `count` steps with a known truth. logs: sum of the logarithms of the relative errors of the first `FIRST`
    steps; held: steps from the start on whose correlation was at least 0.8; squares: ``(C,)`` sum over steps of the
    mean square error. trace: relative error and correlation, means over channels."""

    count: int = 0
    logs: float = 0.0
    held: int = 0
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))
    trace: Trace = field(default_factory=Trace)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> Growth:
        """With the next step ``(C, *space)``; NaN in the truth is missing."""
        relative = float(metrics.relative_l2(prediction, truth).mean())
        correlation = float(metrics.correlation(prediction, truth).mean())
        step = self.count + 1
        counts = step <= FIRST
        log = (math.log(relative) if relative > 0 else -math.inf if relative == 0 else math.nan) if counts else 0.0
        held = self.held + (self.held == self.count and correlation >= THRESHOLD)
        return Growth(step, self.logs + log, held, self.squares + metrics.mse(prediction, truth),
                      self.trace.add(step, (relative, correlation)))

    @property
    def rmse(self) -> np.ndarray:
        """``(C,)`` over all steps and space, each in its unit."""
        return np.sqrt(self.squares / self.count) if self.count else np.full_like(self.squares, np.nan)

    @property
    def gmean(self) -> float:
        """Geometric mean of the relative error over the first `FIRST` steps, or as many as there are."""
        return math.exp(self.logs / min(self.count, FIRST)) if self.count else math.nan


def together(growths: Sequence[Growth]) -> Trace:
    """The mean of traces at the steps that all of them have."""
    common = sorted(set.intersection(*(set(growth.trace.steps) for growth in growths))) if growths else []
    found = [dict(zip(growth.trace.steps, growth.trace.values)) for growth in growths]
    means = (tuple(np.mean([each[step] for each in found], axis=0).tolist()) for step in common)
    return Trace(tuple(common), tuple(means), max((growth.trace.stride for growth in growths), default=1))
