"""Error against time: surrogates beside the solvers that made their data, on coarser and finer grids, by longer steps.

`pareto` is the last part of a case of `benchmarks/fields.py`. A solver starts from the same saved states as a
surrogate, brought to its grid (spectrally, or as means over cells), stays there for all its frames and is judged after
its answer was brought back; that is off its clock. Times are CPU milliseconds per frame and trajectory on one thread,
the fastest of `REPEATS` rounds in which all take turns, for a batch of one and of eight alike. Errors are `relative_l2`
as in the evaluation: of one frame from every third state of the first test trajectories, and the geometric mean of a
rollout from the first.

Rows: ``<case>/pareto_<label>/ms_1``, ``ms_8``, ``one_step``, ``rollout_12`` of every surrogate and solver (single
precision unless its label ends in f64). A surrogate that was trained with longer leads is also asked for jumps of so
many frames (``<kind>_by_4``), which count as that many; then ``rollout_12_by_4`` is the error of every fourth frame, of
all who have them. Beside each peer, for every error and batch, of the best of their points,

- ``<case>/pareto/ahead_<error>_<batch>``: 1 if no solver is both as fast and as accurate.
- ``<case>/pareto/factor_<error>_<batch>``: the solver's time at the surrogate's error over the surrogate's time, along
  the solver's front in log–log; that of the front's nearer end where the error lies beyond it.
- ``<case>/pareto/solver_from_<error>_<batch>``: the time in ms from which the solver is at least as accurate as ours;
  none if it never is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import metrics, registry
from sciml.cli.bench import load_script
from sciml.data.builders._spectral import regrid
from sciml.data.builders.euler import conserved, primitive_of
from sciml.data.store import Store
from sciml.domains.fields.config import allowed
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.report.bench import Bench, Row
from sciml.solvers import SOLVERS, Given, Solver
from sciml.solvers import euler as gas
from sciml.solvers._cells import coarser, finer
from sciml.threads import one_thread
from sciml.tokens import State

say = load_script(Path(__file__).with_name("common.py")).say

SHOWN, EVERY, CHUNK, REPEATS, LEAST_S = 8, 3, 8, 5, 0.02
BATCHES = (1, 8)
PEERS = {kind: f"neuraloperator_{kind}" for kind in ("fno", "fno_chained", "tfno", "uno")}
Places = Sequence[tuple[int, int]]
"""Test trajectories and frames."""


@dataclass(frozen=True)
class Rival:
    """solver: of `sciml.solvers`; grids: cells per side; option: what bounds its step, and to what: the builder's own
    first, the limit of stability last. cells: whether its states are means over cells, else values at points. clocked:
    frames that it solves at one go on the clock, as it can in a rollout (coefficients are made once)."""

    solver: str
    grids: tuple[int, ...]
    option: str
    bounds: tuple[float, ...]
    cells: bool = False
    clocked: int = 1


EULER = Rival("euler", (16, 32, 64, 128), "courant", (0.8, 1.0), cells=True)
RIVALS = {
    "navier_stokes": Rival("navier_stokes", (16, 24, 32, 40, 48, 64), "courant", (2.0, 2.8)),
    "kelvin_helmholtz": EULER,
    "riemann": EULER,
    "gray_scott": Rival("reaction_diffusion", (16, 24, 32, 48, 64), "max_step", (2.5, 5.0, 12.5, 25.0), clocked=12),
    "wave": Rival("wave", (16, 32, 64, 128, 256), "courant", (0.5, 1.0), cells=True)}


@dataclass(frozen=True)
class Truth:
    """Trajectories as samples of the data set; variables: of each kind, float64 ``(trajectory, [time,] *space)``."""

    samples: tuple[xr.Dataset, ...]
    states: Mapping[str, Tensor]
    forcings: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    lengths: tuple[float, ...]
    periodic: tuple[bool, ...]
    dt: float

    @classmethod
    def of(cls, predictor: Predictor, store: Store, steps: int) -> Truth:
        adapter: Any = predictor.adapter("fields")
        known = adapter.datasets[store.meta.dataset]
        starts = [sample for sample in adapter.starts(store, "test")[:SHOWN] if sample.sizes["time"] > steps]
        samples = tuple(sample.isel(time=slice(steps + 1)) for sample in starts)

        def stacked(names: Mapping[str, Any]) -> dict[str, Tensor]:
            return {name: torch.from_numpy(np.stack([s[name].values for s in samples]).astype(np.float64))
                    for name in names}

        places = [samples[0][axis.name].values for axis in known.axes]
        return cls(samples, stacked(known.states), stacked(known.forcings), stacked(known.parameters),
                   tuple(axis.period or float(np.diff(place).mean()) * len(place)
                         for axis, place in zip(known.axes, places)),
                   tuple(axis.period is not None for axis in known.axes), known.dt)

    @property
    def size(self) -> int:
        return int(next(iter(self.states.values())).shape[-1])


class Contestant(Protocol):
    """What goes on from true states, `stride` frames at a time, `clocked` in a call that is timed; its answers are
    ``(B, *space)`` by variable."""

    @property
    def label(self) -> str: ...

    @property
    def stride(self) -> int: ...

    @property
    def clocked(self) -> int: ...

    def begin(self, places: Places) -> Any: ...

    def advance(self, state: Any, frames: int) -> Any: ...

    def answer(self, state: Any) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True)
class Surrogate:
    kind: str
    predictor: Predictor
    truth: Truth
    stride: int

    @property
    def label(self) -> str:
        return self.kind if self.stride == 1 else f"{self.kind}_by_{self.stride}"

    @property
    def clocked(self) -> int:
        return self.stride

    def begin(self, places: Places) -> State:
        adapter, lead = self.predictor.adapter("fields"), self.stride * self.truth.dt
        samples = [self.truth.samples[i].isel(time=slice(t, t + 1)).assign_attrs(lead_time=lead) for i, t in places]
        return State(collate([adapter.initial(sample).batch for sample in samples]))

    def advance(self, state: State, frames: int) -> State:
        for _ in range(frames // self.stride):
            state = self.predictor.step(state)
        return state

    def answer(self, state: State) -> dict[str, np.ndarray]:
        found = self.predictor.adapter("fields").observe(state)
        return {name: found[name].values for name in self.truth.states}


@dataclass(frozen=True)
class Solved:
    """A solver on `size` cells per side."""

    label: str
    rival: Rival
    truth: Truth
    size: int
    options: Mapping[str, float]
    dtype: torch.dtype = torch.float32
    stride: int = 1
    solver: Solver = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", registry.find(SOLVERS, self.rival.solver))

    def begin(self, places: Places) -> Given:
        truth, rows = self.truth, [i for i, _ in places]
        states = {name: torch.stack([values[i, t] for i, t in places]) for name, values in truth.states.items()}
        parameters = {name: values[rows].to(self.dtype) for name, values in truth.parameters.items()}
        forcings = {name: self._speed(values[rows]) if name == "speed" else self._moved(values[rows])
                    for name, values in truth.forcings.items()}
        given = Given(self._regridded(states, parameters, self.size), forcings, parameters, truth.lengths,
                      truth.periodic)
        return replace(given, states={n: v.to(self.dtype) for n, v in given.states.items()},
                       forcings={n: v.to(self.dtype) for n, v in given.forcings.items()})

    @property
    def clocked(self) -> int:
        return self.rival.clocked

    def advance(self, given: Given, frames: int) -> Given:
        return replace(given, states=self.solver(given, frames * self.truth.dt, **self.options))

    def answer(self, given: Given) -> dict[str, np.ndarray]:
        states = {name: values.double() for name, values in given.states.items()}
        return {n: v.numpy() for n, v in self._regridded(states, given.parameters, self.truth.size).items()}

    def _regridded(self, states: Mapping[str, Tensor], parameters: Mapping[str, Tensor],
                   size: int) -> dict[str, Tensor]:
        """Of gases what is conserved; to finer cells linear with limited slopes."""
        own = next(iter(states.values())).shape[-1]
        if self.rival.solver != "euler":
            return {name: self._moved(values, size) for name, values in states.items()}
        gamma = float(parameters["heat_capacity_ratio"][0])
        whole = conserved(torch.stack(list(states.values()), 1), gamma)
        border: Any = "periodic" if self.truth.periodic[0] else "open"
        moved = gas.finer(whole, size // own, border) if size > own else coarser(whole, own // size)
        return dict(zip(states, primitive_of(moved, gamma).unbind(1)))

    def _moved(self, values: Tensor, size: int | None = None) -> Tensor:
        size, own = size or self.size, values.shape[-1]
        if not self.rival.cells:
            return regrid(values, size, 2)
        return finer(values, size // own, self.truth.periodic) if size > own else coarser(values, own // size)  # type: ignore[arg-type]

    def _speed(self, speed: Tensor) -> Tensor:
        """Of the mean 1/c² of cells, or of the cell that one is a part of."""
        factor = self.size // speed.shape[-1]
        if factor >= 1:
            return speed.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        return coarser(speed**-2, speed.shape[-1] // self.size) ** -0.5


@dataclass(frozen=True)
class Point:
    """kind: of surrogate, or solver; ms: per frame and trajectory, by batch; errors: those that are finite, by name."""

    kind: str
    ms: Mapping[int, float]
    errors: Mapping[str, float]


def pareto(bench: Bench, name: str, predictors: Mapping[str, Predictor], store: Store, steps: int = 12) -> None:
    """Measure the surrogates (ours are ``sciml`` and what begins with ``sciml_``; peers) and the solver of a case, and
    add the rows; nothing for a case without a solver in `RIVALS`."""
    if name not in RIVALS:
        return
    truth = Truth.of(predictors["sciml"], store, steps)
    surrogates = [Surrogate(kind, predictor, truth, stride) for kind, predictor in predictors.items()
                  for stride in strides(predictor, steps)]
    rivals = solvers(RIVALS[name], truth)
    everyone: list[Contestant] = [*surrogates, *rivals]
    asked = sorted({each.stride for each in surrogates} | {1})
    with one_thread(), torch.no_grad():
        errors = {each.label: judged(each, truth, steps, asked) for each in everyone}
        ms = timed(everyone, len(truth.samples), steps // 2)
    kinds = {each.label: each.kind.partition("_")[0] for each in surrogates}
    points = {label: Point(kinds.get(label, "solver"), ms[label], errors[label]) for label in ms}
    for label, point in points.items():
        say(f"{name}/pareto {label}: ms {dict(point.ms)}, errors {dict(point.errors)}")
        for batch, value in point.ms.items():
            bench.add(Row(metric=f"{name}/pareto_{label}/ms_{batch}", unit="ms", ours=value))
        for error, value in point.errors.items():
            bench.add(Row(metric=f"{name}/pareto_{label}/{error}", unit="1", ours=value))
    for row in compared(name, list(points.values())):
        bench.add(row)


def strides(predictor: Predictor, steps: int) -> list[int]:
    """The leads of a model that divide a rollout of so many frames."""
    adapter: Any = predictor.adapter("fields")
    return [stride for stride in range(1, steps + 1) if steps % stride == 0 and allowed(adapter.config.leads, stride)]


def solvers(rival: Rival, truth: Truth) -> list[Solved]:
    """In single precision on every grid, on finer ones than the saved by the longest steps alone; on the saved one, by
    the builder's own step, in double precision too."""
    own = truth.size
    made = [Solved(f"solver_{size}_{rival.option}_{bound:g}", rival, truth, size, {rival.option: bound})
            for size in rival.grids for bound in (rival.bounds if size <= own else rival.bounds[-1:])]
    return [*made, Solved(f"solver_{own}_{rival.option}_{rival.bounds[0]:g}_f64", rival, truth, own,
                          {rival.option: rival.bounds[0]}, torch.float64)]


def judged(each: Contestant, truth: Truth, steps: int, strides: Sequence[int]) -> dict[str, float]:
    """Errors of one step and of every `stride` frames of rollouts, means over trajectories: those that are finite."""
    trajectories, found = range(len(truth.samples)), dict[str, float]()
    if each.stride == 1:
        pairs = [(i, t) for i in trajectories for t in range(0, steps, EVERY)]
        parts = [pairs[first:first + CHUNK] for first in range(0, len(pairs), CHUNK)]
        found["one_step"] = float(np.mean([_errors(each, part, truth, 1) for part in parts]))
    rolled = _errors(each, [(i, 0) for i in trajectories], truth, steps)
    for stride in strides:
        if stride % each.stride == 0:
            own = rolled[:, stride // each.stride - 1::stride // each.stride]
            found[f"rollout_{steps}" + f"_by_{stride}" * (stride > 1)] = float(metrics.gmean(own).mean())
    return {error: value for error, value in found.items() if math.isfinite(value)}


def _errors(each: Contestant, places: Places, truth: Truth, steps: int) -> np.ndarray:
    """``(places, steps / stride)``, NaN from where the states are lost."""
    frames = range(each.stride, steps + 1, each.stride)
    found = np.full((len(places), len(frames)), np.nan)
    with suppress(FloatingPointError):
        state = each.begin(places)
        for column, frame in enumerate(frames):
            state = each.advance(state, each.stride)
            answer = each.answer(state)
            if not all(np.isfinite(values).all() for values in answer.values()):
                break
            found[:, column] = np.mean([metrics.relative_l2(
                answer[name], torch.stack([values[i, t + frame] for i, t in places]).numpy())
                for name, values in truth.states.items()], axis=0)
    return found


def timed(contestants: Sequence[Contestant], trajectories: int, frame: int) -> dict[str, dict[int, float]]:
    """Label → batch → CPU ms per frame and trajectory; without those that lose the state."""
    ms: dict[str, dict[int, float]] = {}
    frames = {each.label: each.clocked for each in contestants}
    for batch in BATCHES:
        starts, counts, taken = {}, {}, dict[str, list[float]]()
        for each in contestants:
            try:
                starts[each.label] = each.begin([(i % trajectories, frame) for i in range(batch)])
                seconds = [_seconds(each, starts[each.label], 1) for _ in range(2)]
            except FloatingPointError:
                continue
            counts[each.label] = max(1, math.ceil(LEAST_S / max(seconds[1], 1e-6)))
        for _ in range(REPEATS):
            for each in contestants:
                if each.label in counts:
                    seconds_each = _seconds(each, starts[each.label], counts[each.label])
                    taken.setdefault(each.label, []).append(seconds_each)
        for label, listed in taken.items():
            ms.setdefault(label, {})[batch] = 1e3 * min(listed) / (batch * frames[label])
    return ms


def _seconds(each: Contestant, state: Any, count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        each.advance(state, each.clocked)
    return (time.process_time() - began) / count


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (time, error) that none is as good as in both and better in one, from the fastest to the most accurate.

    >>> front([(1.0, 0.3), (2.0, 0.4), (4.0, 0.1), (4.0, 0.2)])
    [(1.0, 0.3), (4.0, 0.1)]
    """
    kept: list[tuple[float, float]] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def time_at(error: float, best: Sequence[tuple[float, float]]) -> float:
    """The time at which a front comes to an error, linear between its points in log–log; beyond them, of its end.

    >>> round(time_at(0.1, [(1.0, 1.0), (100.0, 0.01)]), 6), time_at(2.0, [(1.0, 1.0), (100.0, 0.01)])
    (10.0, 1.0)
    """
    times, errors = np.log(np.array(best)).T
    return float(np.exp(np.interp(math.log(error), errors[::-1], times[::-1])))


def compared(name: str, points: Sequence[Point]) -> list[Row]:
    """The rows of ours beside each peer, against the solver's front."""
    rows = []
    for error in sorted({error for point in points for error in point.errors}):
        for batch in BATCHES:
            places: dict[str, list[tuple[float, float]]] = {}
            for point in points:
                if error in point.errors:
                    places.setdefault(point.kind, []).append((point.ms[batch], point.errors[error]))
            rivals, ours = places.pop("solver", []), places.get("sciml", [])
            if not rivals or not ours:
                continue
            found = {kind: against(own, rivals) for kind, own in places.items()}
            for measure, value in found.pop("sciml").items():
                metric = f"{name}/pareto/{measure}_{error}_{batch}"
                rows.append(Row(metric=metric, unit="1", ours=value))
                rows += [Row(metric=metric, unit="1", ours=value, peer=theirs[measure], peer_name=PEERS.get(kind, kind))
                         for kind, theirs in found.items()]
            enough = [ms for ms, e in rivals if e <= min(e for _, e in ours)]
            if enough:
                rows.append(Row(metric=f"{name}/pareto/solver_from_{error}_{batch}", unit="ms", ours=min(enough)))
    return rows


def against(own: Sequence[tuple[float, float]], rivals: Sequence[tuple[float, float]]) -> dict[str, float]:
    """ahead and factor of the best of some (time, error), as above.

    >>> against([(1.0, 0.1)], [(0.5, 0.2), (4.0, 0.1)]), against([(1.0, 0.3)], [(0.5, 0.2), (4.0, 0.1)])
    ({'ahead': 1.0, 'factor': 4.0}, {'ahead': 0.0, 'factor': 0.5})
    """
    best = front(rivals)
    ahead = any(not any(ms <= time and e <= error for ms, e in best) for time, error in own)
    return {"ahead": float(ahead), "factor": round(max(time_at(error, best) / time for time, error in own), 12)}
