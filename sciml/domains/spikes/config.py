"""The recipe's section ``domains.spikes``. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sciml.errors import InputError
from sciml.recipe import Section, validate

Task = Literal["next", "masked", "behaviour", "state", "embedding"]
LABELLED: tuple[Task, ...] = ("behaviour", "state", "embedding")
"""Tasks that need labels."""
SLOW_S = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)


class WindowConfig(Section):
    """Bins that a window scores, and how many it sees before and after them. Without any after, time is causal."""

    before: int = Field(default=32, ge=1)
    scored: int = Field(default=32, ge=1)
    after: int = Field(default=0, ge=0)

    @property
    def causal(self) -> bool:
        return self.after == 0


class MaskConfig(Section):
    """What training hides: for `masked`, held-out units and a share of time bins in spans, of units, or of single cells
    (one of the three is drawn per window, those of share 0 never); for every task, a share of units as if they weren't
    recorded, drawn up to `dropout`. Held-out units are named by label, or as a count drawn once with `held_out_seed`;
    `masked` never sees them."""

    time: float = Field(default=0.3, ge=0, lt=1)
    unit: float = Field(default=0.3, ge=0, lt=1)
    cell: float = Field(default=0.3, ge=0, lt=1)
    span: int = Field(default=3, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    held_out: int | tuple[str, ...] = 0
    held_out_seed: int = 0


class SamplingConfig(Section):
    """How generation draws: logits over `temperature`, then the fewest outcomes that hold `top_p` of the chance."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)


class EventConfig(Section):
    """Events: `tokens` per window at most (a longer stretch goes on in the next window, none is dropped), of which the
    first `before` are context; the hazard after an event is constant between `edges` log-spaced edges in time."""

    tokens: int = Field(default=256, ge=2)
    before: int = Field(default=64, ge=0)
    edges: int = Field(default=10, ge=2)

    @model_validator(mode="after")
    def _room(self) -> EventConfig:
        if self.before >= self.tokens:
            raise ValueError("before must leave room for events that are scored")
        return self


class LagConfig(Section):
    """Neighbouring bins of a unit that a cell is given beside its own: so many before it and, where time isn't causal,
    after it."""

    before: int = Field(default=0, ge=0)
    after: int = Field(default=0, ge=0)
    averages: bool = False


class EmbeddingConfig(Section):
    """dims: axes of the embedding. width: of the Gaussian of the distance of two bins' behaviours (root mean square
    over components, in training standard deviations) that says how much they are neighbours."""

    dims: int = Field(default=8, ge=1)
    width: float = Field(default=0.5, gt=0)


def _next_bin() -> dict[Task, WindowConfig]:
    return {"next": WindowConfig()}


class SpikesConfig(Section):
    """A recipe's section, as flat as its YAML.

    tokens: counts (or traces) in bins, or events. bin_s: width, a multiple of the store's (null: the same). tasks: what
    is asked, each with its window: `next` bin (causal), `masked` cells of the same bin, `behaviour`, discrete `state`,
    an `embedding` in which bins of like behaviour are neighbours. slots: that many tokens per bin read all units; 0: a
    token per unit and bin. patch: bins per token where time isn't causal. slow_s: time constants of the averages of
    each unit's past that the operator is given. behaviours: those to decode (null: all). labelled: the share of
    training time whose labels are used, in one contiguous part that `labelled_seed` places. floor: the classical
    predictor of rates that scores are printed beside (of traces: ridge). corrects: what the operator's output is added
    to: each unit's mean, or the floor. likelihood: of counts in training; the negative binomial has a dispersion of
    each unit beside its rate, for where `evaluate` finds more of it than Poisson has (scores stay Poisson's).
    """

    tokens: Literal["bins", "events"] = "bins"
    bin_s: float | None = Field(default=None, gt=0)
    tasks: dict[Task, WindowConfig] = Field(default_factory=_next_bin, min_length=1)
    slots: int = Field(default=1, ge=0)
    patch: int = Field(default=1, ge=1)
    slow_s: tuple[float, ...] = SLOW_S
    lags: LagConfig = LagConfig()
    behaviours: tuple[str, ...] | None = None
    labelled: float = Field(default=1.0, gt=0, le=1)
    labelled_seed: int = Field(default=0, ge=0)
    corrects: Literal["rate", "floor"] = "rate"
    likelihood: Literal["poisson", "negative_binomial"] = "poisson"
    floor: Literal["glm", "smoothed"] = "glm"
    masks: MaskConfig = MaskConfig()
    sampling: SamplingConfig = SamplingConfig()
    events: EventConfig = EventConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    objective: str = "population"

    @model_validator(mode="after")
    def _consistent(self) -> SpikesConfig:
        if "next" in self.tasks and not self.tasks["next"].causal:
            raise ValueError("tasks.next looks ahead: leave out its `after`")
        masks = self.masks
        if "masked" in self.tasks and not (masks.time or masks.unit or masks.cell or masks.held_out):
            raise ValueError("tasks.masked hides nothing: give masks.time, unit or cell a share, or hold units out")
        return self


def reconfigured(old: SpikesConfig, raw: Mapping[str, Any]) -> SpikesConfig:
    """Another section for what was fitted under `old`. Raises `InputError` if it is not valid or has other tokens."""
    made = validate(SpikesConfig, dict(raw), where="domains.spikes")
    if made.tokens != old.tokens:
        raise InputError("domains.spikes", key="tokens", found=made.tokens, expected=old.tokens,
                         fix="pretrain another checkpoint: bins and events have other tokens")
    return made
