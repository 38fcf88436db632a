"""Long rollouts of fields beside the truth as far as it is known, one state of each in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
import xarray as xr

from sciml.data.schema import Block
from sciml.domains.fields import contract as contracts
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.config import Contract, shortest
from sciml.domains.fields.growth import Growth
from sciml.domains.fields.statistics import Drift, Layout, Statistics, begin, merge, one, then
from sciml.domains.fields.windows import Blocks, Frame
from sciml.errors import InputError
from sciml.predictor import Predictor
from sciml.rollout import BlowUp, rollout
from sciml.tokens import State


@dataclass(frozen=True)
class Plan:
    """How many steps, of which the first `skip` don't count in statistics; profile: as of `Layout.of`."""

    steps: int
    skip: int = 0
    profile: str = ""


@dataclass(frozen=True)
class Followed:
    """One rollout of steps of `dt`. steps: finite ones; known: steps whose truth the store has, of those asked for;
    drifts: the rollout's and, as far as it is known, the truth's. gathered: ``whole`` of all finite steps; ``ours`` and
    ``theirs`` of the finite steps with a known truth, the rollout's and the truth's; none where there is no such step.
    """

    source: str
    contract: Contract
    layout: Layout
    dt: float
    steps: int
    known: int
    growth: Growth
    drifts: tuple[Drift, Drift]
    gathered: Mapping[str, Statistics] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Whether it blew up while the truth was known."""
        return self.growth.count < self.known


def joined(parts: Sequence[Followed], name: str) -> Statistics | None:
    """What several rollouts have gathered under a name, as one; None if none has any."""
    found = [part.gathered[name] for part in parts if name in part.gathered]
    return reduce(merge, found) if found else None


def follow(predictor: Predictor, starts: Blocks, index: int, plan: Plan) -> Followed:
    """Roll the first state of a block forward. Raises `InputError` where forcings that vary in time end earlier."""
    adapter, frame, block = predictor.adapter("fields"), starts.frame, starts.blocks[index]
    assert isinstance(adapter, Fields)
    stride = shortest(adapter.config.leads)
    given = _given(frame, block, stride, plan.steps)
    known = adapter.datasets[contracts.resolve(adapter.datasets, given)]
    initial, layout = adapter.initial(given), Layout.of(known, given, plan.profile)
    ours, theirs = _values(adapter, known, initial), _truth(frame, known, block, 0)
    found = Followed(
        str(given.attrs["source"]), known, layout, known.dt * stride, 0,
        min(plan.steps, (block.stop - block.start - 1) // stride),
        Growth(squares=np.zeros(len(known.states))), (begin(layout, ours), begin(layout, theirs)))
    try:
        for state in rollout(predictor, initial, plan.steps):
            now = _values(adapter, known, state)
            truth = _truth(frame, known, block, state.step * stride) if state.step <= found.known else None
            found = _with(found, now, truth, counts=state.step > plan.skip)
    except BlowUp:
        return found  # its last step, below what was asked, is what the card judges
    return found


def _given(frame: Frame, block: Block, stride: int, steps: int) -> xr.Dataset:
    """The first state alone; with forcings that vary in time, their later times too."""
    meta = frame.store.meta
    varying = [name for role in ("forcing", "covariate") for name in meta.of_role(role) if meta.evolves(name)]
    if not varying:
        return frame.sample(block.group, (block.start,))
    times = range(block.start, block.stop, stride)
    if steps >= len(times):
        raise InputError(frame.store.url, key=varying[0], found=f"{len(times)} times", expected=f"{steps + 1}",
                         fix=f"ask for at most steps={len(times) - 1}: the forcing is not known beyond")
    return frame.sample(block.group, times)


def _with(found: Followed, now: np.ndarray, truth: np.ndarray | None, *, counts: bool) -> Followed:
    """With one more step; `counts`: in statistics too."""
    layout, (ours, theirs), growth = found.layout, found.drifts, found.growth
    gathered, latest = dict(found.gathered), dict[str, Statistics]()
    if counts:
        latest["whole"] = one(layout, now)
    if truth is not None:
        growth, theirs = growth.add(now, truth), then(layout, theirs, truth)
        if counts:
            latest |= {"ours": latest["whole"], "theirs": one(layout, truth)}
    for name, statistics in latest.items():
        gathered[name] = merge(gathered[name], statistics) if name in gathered else statistics
    return replace(found, steps=found.steps + 1, growth=growth, drifts=(then(layout, ours, now), theirs),
                   gathered=gathered)


def _values(adapter: Fields, known: Contract, state: State) -> np.ndarray:
    """``(C, *space)``, physical."""
    observed = adapter.observe(state).isel(sample=0)
    return np.stack([observed[name].transpose(*known.names).values for name in known.states]).astype(np.float64)


def _truth(frame: Frame, known: Contract, block: Block, later: int) -> np.ndarray:
    sample = frame.sample(block.group, (block.start + later,))
    read = contracts.read(known, sample, "states")
    return np.stack([read[name][0] for name in known.states])
