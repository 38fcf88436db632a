"""An exported step beside the eager one: how far apart, and how much faster."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from sciml.export.package import ExportedStep
from sciml.export.step import inputs_of
from sciml.predictor import Predictor
from sciml.tokens import State


@dataclass(frozen=True)
class Comparison:
    """difference: largest absolute one of the next state's values over the largest value; medians in seconds."""

    difference: float
    eager: float
    exported: float

    @property
    def speed(self) -> float:
        """How many times faster the exported step is."""
        return self.eager / self.exported


def compare(predictor: Predictor, step: ExportedStep, state: State, rounds: int = 15) -> Comparison:
    """One step from a state, in turn by the predictor and by the exported step; the first round isn't timed."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        began = time.perf_counter()
        ours = predictor.step(state).batch.values
        between = time.perf_counter()
        with torch.no_grad():
            theirs = step.run(*inputs_of(step.form, state.batch))
        if turn:
            taken[0].append(between - began)
            taken[1].append(time.perf_counter() - between)
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    return Comparison(difference, statistics.median(taken[0]), statistics.median(taken[1]))
