"""A rollout step compiled ahead of time: built once per machine, run without the code of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from sciml.adapter import Sample
from sciml.errors import InputError
from sciml.export.compare import Comparison, compare
from sciml.export.package import ExportedStep, build
from sciml.export.step import FieldsStep, StepForm, form_of, inputs_of
from sciml.predictor import Predictor
from sciml.rollout import BlowUp
from sciml.tokens import State

__all__ = ["Comparison", "ExportedStep", "StepForm", "build", "compare", "exported_rollout", "inputs_of", "load_step",
           "step_module"]


def load_step(predictor: Predictor, like: Sample | State) -> ExportedStep:
    """The compiled step for samples of that kind: from this machine's cache, or built, in one to three minutes.

    It serves every batch size and every lattice that `ExportedStep.form` admits, with the same axes, conditions, lead
    time and cells per token as `like`. Raises `InputError` for what can't be exported.
    """
    state = initial(predictor, like)
    return build(step_module(predictor, state), state.batch)


def step_module(predictor: Predictor, like: Sample | State) -> FieldsStep:
    """The step as a module of plain tensors, not compiled. Raises `InputError` for what can't be exported."""
    state = initial(predictor, like)
    return FieldsStep(predictor, state, form_of(predictor, state))


def initial(predictor: Predictor, like: Sample | State) -> State:
    return like if isinstance(like, State) else predictor.of(like).initial(like)


def exported_rollout(step: ExportedStep, initial: State, steps: int) -> Iterator[State]:
    """As `sciml.rollout.rollout`: the states after 1, 2, … `steps` steps, whose batches ask for nothing.

    Raises `InputError` if the state is of another form than the step, `BlowUp` at the first that is not finite.
    """
    state = replace(initial, batch=replace(initial.batch, targets={}))
    with torch.no_grad():
        for _ in range(steps):
            batch = state.batch
            values = step.run(*inputs_of(step.form, batch))
            number, lattice = state.step + 1, dict(batch.conditions.lattice)
            for name, forcing in state.extra.items():
                if number >= forcing.shape[1]:
                    raise InputError(batch.sources, key=name, found=f"{forcing.shape[1]} times",
                                     expected=f"step {number}", fix="give the forcing at every time of the rollout")
                lattice[name] = forcing[:, number]
            batch = replace(batch, values=values, conditions=replace(batch.conditions, lattice=lattice))
            state = replace(state, batch=batch, step=number, elapsed=state.elapsed + step.form.lead.elapsed)
            if not bool(torch.isfinite(values).all()):
                raise BlowUp(state.step, ", ".join(batch.sources))
            yield state
