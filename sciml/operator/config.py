"""The recipe's section `operator`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sciml.recipe import Named, Section


class LevelConfig(Section):
    """One scale of the hierarchy: blocks on the way down (`depth`) and, but for the coarsest, on the way up.

    mixers: what every block adds up; or a list of such lists that the blocks take in turn (down, then up), as in
    ``[[window], [window], [full]]``. loops: how often all blocks of a way are applied with the same weights, each time
    adding 1 / loops of what they would add at once (docs/design/0028-looped-depth.md). ffn: of the feed-forward layers,
    whose hidden channels are ffn_ratio times as many as the width: ``plain``, or ``gated`` by a product of channels, at
    two thirds of the hidden channels and hence the same weights.
    """

    width: int = Field(default=64, ge=8)
    depth: int = Field(default=2, ge=0)
    depth_up: int = Field(default=0, ge=0)
    loops: int = Field(default=1, ge=1)
    mixers: tuple[tuple[Named, ...], ...] = ((Named(name="axial"), Named(name="local")),)
    head_width: int = Field(default=32, ge=4)
    ffn: Literal["plain", "gated"] = "plain"
    ffn_ratio: float = Field(default=2.0, gt=0)

    @field_validator("mixers", mode="before")
    @classmethod
    def _turns(cls, raw: object) -> object:
        if isinstance(raw, list | tuple) and not any(isinstance(turn, list | tuple) for turn in raw):
            return (tuple(raw),)
        return raw

    def block_mixers(self, index: int) -> tuple[Named, ...]:
        """The mixers of block `index` of the level, counted down and then up."""
        return self.mixers[index % len(self.mixers)] if self.mixers else ()

    @model_validator(mode="after")
    def _looped_blocks(self) -> LevelConfig:
        if self.loops > 1 and not self.depth + self.depth_up:
            raise ValueError("loops repeat the blocks of a level: it needs depth or depth_up")
        return self

    @model_validator(mode="after")
    def _whole_heads(self) -> LevelConfig:
        if self.width % self.head_width or self.head_width % 4:
            raise ValueError("width must be a multiple of head_width, and that a multiple of 4")
        return self


class OperatorConfig(Section):
    """Widths and mixers of every level, finest first; stem_width: channels of the linear patch map.

    norm: what tokens are divided by before a block and a head read them: the size of each ``token``, or that of the
    whole ``sample``, which keeps what is large in one place large beside the rest; ``bounded``: by nothing, but what
    a feed-forward layer adds has a largest size (`sciml.operator.norm`).
    dropout: in training, of what mixers and feed-forward layers add. head_dropout: of what heads read. member_dropout:
    of whole members of a set that is read by slots (a unit of a recording), for the slots alone."""

    levels: tuple[LevelConfig, ...] = Field(default=(LevelConfig(), LevelConfig(width=128)), min_length=1)
    stem: str = "patch"
    stem_width: int = Field(default=32, ge=4)
    condition_width: int = Field(default=64, ge=8)
    norm: Literal["token", "sample", "bounded"] = "token"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    member_dropout: float = Field(default=0.0, ge=0, lt=1)
