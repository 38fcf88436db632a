"""Chaotic systems, integrated by the classical Runge–Kutta scheme of order four; NumPy, float64.

All operations are elementwise over members ``(state, member)``, so that a trajectory doesn't depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SUBSTEPS = 8
Rate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def lorenz(x: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """``(10 (y − x), x (ρ − z) − y, x y − 8/3 z)``. Lorenz, J. Atmos. Sci. 20, 130 (1963)."""
    return np.stack([10 * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - (8 / 3) * x[2]])


def roessler(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``(−y − z, x + 0.2 y, 0.2 + z (x − c))``. Rössler, Phys. Lett. A 57, 397 (1976)."""
    return np.stack([-x[1] - x[2], x[0] + 0.2 * x[1], 0.2 + x[2] * (x[0] - c)])


@dataclass(frozen=True)
class Flow:
    """A system of ordinary differential equations with one parameter, drawn in a range where it is chaotic for most
    values. start: a point near the attractor; cycle: its usual time of return; shortest: saved steps per cycle, at
    least."""

    rate: Rate
    parameter: tuple[float, float]
    start: tuple[float, ...]
    cycle: float
    shortest: float

    def draw(self, steps: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """``(state, steps, member)``: after a transient of 20 cycles; a cycle takes `shortest` to 12 times that many
        steps, log-uniform."""
        parameter = np.array([rng.uniform(*self.parameter) for rng in rngs])
        per_cycle = np.array([self.shortest * 12 ** rng.random() for rng in rngs])
        x = np.array(self.start)[:, None] + np.array([rng.normal(0, 0.1, len(self.start)) for rng in rngs]).T
        settled = self.run(x, parameter, np.full(len(rngs), self.cycle / self.shortest), round(20 * self.shortest))
        return self.run(settled[:, -1], parameter, self.cycle / per_cycle, steps)

    def run(self, x: np.ndarray, parameter: np.ndarray, dt: np.ndarray, steps: int) -> np.ndarray:
        """``(state, steps, member)`` at dt, 2 dt, … after x ``(state, member)``; dt ``(member,)``."""
        saved = np.empty((len(x), steps, x.shape[1]))
        h = dt / SUBSTEPS
        for step in range(steps):
            for _ in range(SUBSTEPS):
                k1 = self.rate(x, parameter)
                k2 = self.rate(x + h / 2 * k1, parameter)
                k3 = self.rate(x + h / 2 * k2, parameter)
                x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + self.rate(x + h * k3, parameter))
            saved[:, step] = x
        return saved


@dataclass(frozen=True)
class MackeyGlass:
    """``ẋ = 0.2 x(t − delay) / (1 + x(t − delay)¹⁰) − 0.1 x``, chaotic for delays above 17; Mackey & Glass, Science
    197, 287 (1977). A delay takes 4, 8, 12 or 16 saved steps."""

    delay: tuple[float, float] = (17.0, 30.0)

    def draw(self, steps: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """``(1, steps, member)`` after a transient of 320 saved steps, at least 20 delays."""
        delay = np.array([rng.uniform(*self.delay) for rng in rngs])
        per_delay = 4 * np.array([int(rng.integers(1, 5)) for rng in rngs])
        first = np.array([rng.uniform(0.9, 1.3) for rng in rngs])
        return self.run(first, delay, per_delay, 320 + steps)[:, 320:]

    @staticmethod
    def run(first: np.ndarray, delay: np.ndarray, per_delay: np.ndarray, steps: int) -> np.ndarray:
        """``(1, steps, member)`` after a constant past `first`, with `per_delay` saved steps in a delay; the delayed
        value in the middle of an inner step is the mean of its neighbours."""
        lag = SUBSTEPS * per_delay
        h, x = delay / lag, first.copy()
        history, member = np.tile(first, (int(lag.max()) + 1, 1)), np.arange(len(first))
        saved = np.empty((1, steps, len(first)))
        for step in range(steps * SUBSTEPS):
            past = history[(step - lag) % len(history), member]
            following = history[(step + 1 - lag) % len(history), member]
            gain = [_mackey_glass_gain(d) for d in (past, (past + following) / 2, following)]
            k1 = gain[0] - 0.1 * x
            k2 = gain[1] - 0.1 * (x + h / 2 * k1)
            k3 = gain[1] - 0.1 * (x + h / 2 * k2)
            k4 = gain[2] - 0.1 * (x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            history[(step + 1) % len(history)] = x
            if (step + 1) % SUBSTEPS == 0:
                saved[0, step // SUBSTEPS] = x
        return saved


def _mackey_glass_gain(x: np.ndarray) -> np.ndarray:
    square = x * x
    fourth = square * square
    return 0.2 * x / (1 + fourth * fourth * square)


@dataclass(frozen=True)
class LogisticRing:
    """Three logistic maps on a ring, ``x ← (1 − ε) f(x) + ε/2 (f(left) + f(right))``, f(x) = r x (1 − x), r = 3.6 … 4,
    ε = 0 … 0.3, seen through a running mean of 1 to 24 steps; Kaneko, Prog. Theor. Phys. 72, 480 (1984)."""

    size: int = 3

    def draw(self, steps: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """``(size, steps, member)``."""
        r = np.array([rng.uniform(3.6, 4.0) for rng in rngs])
        coupling = np.array([rng.uniform(0, 0.3) for rng in rngs])
        width = np.array([int(rng.integers(1, 25)) for rng in rngs])
        x = np.array([rng.uniform(0.1, 0.9, self.size) for rng in rngs]).T
        states = self.run(x, r, coupling, 100 + steps)
        sums = np.cumsum(np.pad(states, ((0, 0), (1, 0), (0, 0))), axis=1)
        ends = np.arange(101, 101 + steps)
        member = np.arange(len(rngs))
        return np.asarray((sums[:, ends] - sums[:, ends[:, None] - width, member]) / width)

    @staticmethod
    def run(x: np.ndarray, r: np.ndarray, coupling: np.ndarray, steps: int) -> np.ndarray:
        """``(size, steps, member)`` after x ``(size, member)``."""
        saved = np.empty((len(x), steps, x.shape[1]))
        for step in range(steps):
            f = r * x * (1 - x)
            x = (1 - coupling) * f + coupling / 2 * (np.roll(f, 1, axis=0) + np.roll(f, -1, axis=0))
            saved[:, step] = x
        return saved


SYSTEMS: tuple[Flow | MackeyGlass | LogisticRing, ...] = (
    Flow(lorenz, (28.0, 60.0), (1.0, 1.0, 25.0), 0.7, 10.0),
    Flow(roessler, (5.0, 10.0), (1.0, -4.0, 0.1), 6.0, 10.0),
    MackeyGlass(),
    LogisticRing())


def draw_chaos(steps: int, number: int, rngs: Sequence[np.random.Generator]) -> list[np.ndarray]:
    """Per member ``(steps, state)`` of system ``(number + member) % 4``."""
    result: dict[int, np.ndarray] = {}
    for which, system in enumerate(SYSTEMS):
        members = [m for m in range(len(rngs)) if (number + m) % len(SYSTEMS) == which]
        if members:
            drawn = system.draw(steps, [rngs[m] for m in members])
            result |= {m: drawn[:, :, k].T for k, m in enumerate(members)}
    return [result[m] for m in range(len(rngs))]
