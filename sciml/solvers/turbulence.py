"""Two-dimensional turbulence as velocity or vorticity, with a tracer or without: the stores of that builder."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml.data.builders.turbulence import step, velocity_of, vorticity_of
from sciml.solvers import Given, need, unit_square


def advance(given: Given, dt: float, *, drag: float = 0.0, substeps: int | None = None) -> dict[str, Tensor]:
    """drag: in 1/s, an option of the builder that its stores don't repeat."""
    unit_square(given)
    (viscosity,) = need(given, "parameters", "viscosity")
    states = given.states
    if "vorticity" in states:
        vorticity = states["vorticity"]
    else:
        vorticity = vorticity_of(torch.stack(need(given, "states", "velocity_x", "velocity_y"), 1))
    traced = "tracer" in states
    state = torch.stack([vorticity, states["tracer"]] if traced else [vorticity], 1)
    diffusivity = need(given, "parameters", "diffusivity")[0] if traced else None
    later = step(state, dt, viscosity=viscosity, drag=drag, forcing=given.forcings.get("forcing"),
                 diffusivity=diffusivity, substeps=substeps)
    velocity = velocity_of(later[:, 0])
    found = {"vorticity": later[:, 0], "velocity_x": velocity[:, 0], "velocity_y": velocity[:, 1],
             "tracer": later[:, -1]}
    return {name: found[name] for name in states}


PLUGIN = advance
