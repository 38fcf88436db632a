"""Gray–Scott, Fisher–KPP and Allen–Cahn: the stores of the builder `reaction_diffusion`."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.data.builders.reaction_diffusion import KINETICS, Model, step
from sciml.errors import InputError
from sciml.solvers import Given, need, periods


def advance(given: Given, dt: float, *, model: Model = "gray_scott", refine: int = 1,
            max_step: float | None = None) -> dict[str, Tensor]:
    """model: an option of the builder that its stores don't repeat. It is solved on a grid `refine` times finer."""
    if model not in KINETICS:
        raise InputError("solver reaction_diffusion", key="model", found=model,
                         expected=f"one of {', '.join(KINETICS)}", fix="correct the name")
    names = tuple(KINETICS[model].states)
    parameters = dict(zip(KINETICS[model].parameters, need(given, "parameters", *KINETICS[model].parameters)))
    later = step(torch.stack(need(given, "states", *names), -1), dt, model=model, length=periods(given)[0],
                 refine=refine, max_step=max_step, **parameters)
    return dict(zip(names, later.unbind(-1)))


PLUGIN = advance
