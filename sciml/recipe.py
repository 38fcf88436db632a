"""A run described in one validated, frozen object, read from one YAML file. Torch-free.

The recipe knows its own top level only; each section is a raw mapping whose owner validates it: `operator` by
``sciml.operator.config``, ``domains.<name>`` by the domain's adapter, `train` by ``TrainRecipe`` below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sciml.errors import InputError

SCHEMA_VERSION = 1
MAX_YAML_BYTES = 1 << 20


class Section(BaseModel):
    """Base of every validated section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Named(Section):
    """A plug-in by name, with its options: `axial`, or ``{window: {size: 8}}``."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: object) -> object:
        """A name alone, or one name over its options."""
        if isinstance(raw, str):
            return {"name": raw}
        if isinstance(raw, dict) and len(raw) == 1 and "name" not in raw:
            (name, options), = raw.items()
            return {"name": name, "options": options or {}}
        return raw


class SourceRecipe(Section):
    """One store to train on: `batch` samples a micro-batch, drawn with probability proportional to `weight`; chain: a
    plug-in of `sciml.chains`, how far training goes on from its own answers before it is judged."""

    store: str
    batch: int = Field(default=4, ge=1)
    weight: float = Field(default=1.0, gt=0)
    chain: Named = Named(name="direct")
    options: dict[str, Any] = Field(default_factory=dict)


class TrainRecipe(Section):
    """How to train. Exactly one of `steps` and `minutes`; minutes are calibrated once and then frozen as steps.

    threads: of torch on the CPU; None: the fastest here, measured once and frozen, as sums depend on it. compile: run
    the operator's blocks as compiled graphs; costs a minute or more the first time, and needs a C++ compiler. weights:
    which are trained; `new` are those that fine-tuning adds (rows of a new session's units): the rest stays as it was.
    """

    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    micro_batches: int = Field(default=1, ge=1)
    weights: Literal["all", "new"] = "all"
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = Field(default=2e-3, gt=0)
    matrix_learning_rate: float = Field(default=2e-2, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.02, ge=0, lt=1)
    final_learning_rate: float = Field(default=0.01, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    validate_every: int = Field(default=0, ge=0)
    validation_windows: int = Field(default=64, ge=1)
    keep_best: bool = True
    checkpoint_every: int = Field(default=500, ge=1)
    workers: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    compile: bool = False
    device: str = "cpu"


class Recipe(Section):
    """One run. `name` is also the folder under ``runs/`` unless the command says otherwise."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(default=0, ge=0)
    data: tuple[SourceRecipe, ...] = Field(min_length=1)
    domains: dict[str, dict[str, Any]] = Field(default_factory=dict)
    operator: dict[str, Any] = Field(default_factory=dict)
    train: TrainRecipe


SectionT = TypeVar("SectionT", bound=BaseModel)


def validate(model: type[SectionT], raw: object, *, where: object) -> SectionT:
    """`raw` as `model`; Raises `InputError` that names the first wrong key, its value and what was expected."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or model.__name__
        raise InputError(where, key=key, found=repr(first.get("input"))[:80], expected=first["msg"],
                         fix=f"correct it; keys of {model.__name__}: {', '.join(model.model_fields)}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML file: plain scalars, lists and mappings only, no aliases, at most 1 MiB."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a YAML file", fix="check the path")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise InputError(path, found=f"{path.stat().st_size} bytes", expected=f"at most {MAX_YAML_BYTES}",
                         fix="split it; a description has no reason to be this large")
    text = path.read_text(encoding="utf-8")
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                mark: Any = event.start_mark
                raise InputError(path, key=f"line {mark.line + 1}", found=f"alias *{event.anchor}",
                                 expected="no aliases (they can expand without bound)", fix="write the value out")
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(path, found=" ".join(str(error).split())[:200], expected="valid YAML",
                         fix="correct the line named") from None
    if not isinstance(raw, dict):
        raise InputError(path, found=type(raw).__name__, expected="a mapping", fix="write `key: value` lines")
    return raw


def override(raw: Mapping[str, Any], assignments: Iterable[str], *, where: object = "command line") -> dict[str, Any]:
    """`raw` with dotted ``key=value`` assignments, values as YAML scalars; list items by index.

    >>> override({"train": {"steps": 5}, "data": [{"batch": 1}]}, ["train.steps=9", "data.0.batch=2"])
    {'train': {'steps': 9}, 'data': [{'batch': 2}]}
    """
    result = yaml.safe_load(yaml.safe_dump(dict(raw), sort_keys=False))
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise InputError(where, found=repr(assignment), expected="key=value", fix="for example train.steps=100")
        *parents, last = key.split(".")
        try:
            given = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(where, key=key, found=repr(value), expected=f"YAML ({' '.join(str(error).split())[:120]})",
                             fix="close its brackets and quotes, and quote the assignment in the shell") from None
        try:
            node = result
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
            if isinstance(node, list):
                node[int(last)] = given
            else:
                node[last] = given
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            raise InputError(where, key=key, found=repr(assignment), expected="a path into the recipe",
                             fix=f"top-level keys: {', '.join(result)}") from None
    return result


def load_recipe(path: str | Path, assignments: Iterable[str] = ()) -> Recipe:
    """Read, override and validate. Exactly one of train.steps and train.minutes must be given."""
    recipe = validate(Recipe, override(read_yaml(path), assignments), where=path)
    check_budget(recipe, where=path)
    return recipe


def check_budget(recipe: Recipe, *, where: object) -> None:
    if (recipe.train.steps is None) == (recipe.train.minutes is None):
        raise InputError(where, key="train", found=f"steps={recipe.train.steps}, minutes={recipe.train.minutes}",
                         expected="exactly one of steps and minutes", fix="set one of them, null the other")
