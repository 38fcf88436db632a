"""The recipe's section `operator`. Torch-free."""

from __future__ import annotations

from pydantic import Field, model_validator

from sciml.recipe import Section


class LevelConfig(Section):
    """One scale of the hierarchy: blocks on the way down (`depth`) and, but for the coarsest, on the way up."""

    width: int = Field(default=64, ge=8)
    depth: int = Field(default=2, ge=0)
    depth_up: int = Field(default=0, ge=0)
    mixers: tuple[str, ...] = ("axial", "local")
    head_width: int = Field(default=32, ge=4)
    ffn_ratio: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _whole_heads(self) -> LevelConfig:
        if self.width % self.head_width or self.head_width % 4:
            raise ValueError("width must be a multiple of head_width, and that a multiple of 4")
        return self


class OperatorConfig(Section):
    """Widths and mixers of every level, finest first; stem_width: channels of the linear patch map."""

    levels: tuple[LevelConfig, ...] = Field(default=(LevelConfig(), LevelConfig(width=128)), min_length=1)
    stem: str = "patch"
    stem_width: int = Field(default=32, ge=4)
    condition_width: int = Field(default=64, ge=8)
    dropout: float = Field(default=0.0, ge=0, lt=1)
