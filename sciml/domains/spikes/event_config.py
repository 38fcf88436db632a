"""What the section ``domains.spikes`` of a recipe has more of where tokens are events. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sciml.domains.spikes.config import EventConfig, SpikesConfig
from sciml.errors import InputError
from sciml.recipe import validate


class NextEventConfig(EventConfig):
    """dt: when the next event comes is told by a `hazard` per unit, constant between the edges, or by the chances of
    one class per unit and interval between them, `categorical` (as in Neuroformer, Antoniades et al., ICLR 2024).
    stimulus: whether known signals are given. stimulus_s: time constants of their averages, which drive the rates
    beside their present values."""

    dt: Literal["hazard", "categorical"] = "hazard"
    stimulus: bool = True
    stimulus_s: tuple[float, ...] = (0.03, 0.2)


class EventsConfig(SpikesConfig):
    """The section with ``tokens: events``."""

    events: NextEventConfig = NextEventConfig()


def reconfigured(old: EventsConfig, raw: Mapping[str, Any]) -> EventsConfig:
    """Another section for what was fitted under `old`. Raises `InputError` if it is not valid, or its tokens or the
    meaning of its outputs are others."""
    made = validate(EventsConfig, dict(raw), where="domains.spikes")
    for key, ours, theirs in (("tokens", old.tokens, made.tokens), ("events.dt", old.events.dt, made.events.dt)):
        if ours != theirs:
            raise InputError("domains.spikes", key=key, found=theirs, expected=ours,
                             fix="pretrain another checkpoint: its tokens or outputs mean something else")
    return made
