"""What `benchmarks/fields.py` trains side by side: ours, neuraloperator's FNO, TFNO and UNO, and a U-Net, as operators
of one adapter.

A peer gets the tokens that ours gets, as channels: states, forcings, parameters and lead time as constant fields. It
answers what the plain baseline misses (persistence; the training mean of steady data) in one scale, is trained by the
same objective on the same augmented samples, on the same clock, and is scored by the same evaluation.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.workflow import new_predictor
from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.memory import keep_freed
from sciml.packing import collate
from sciml.predictor import Predictor, evaluating, forward
from sciml.recipe import Named, Recipe
from sciml.report.bench import write_json
from sciml.tokens import Axis, Outputs, TokenBatch

common = load_script(Path(__file__).with_name("common.py"))

RUNS = Path("runs/bench_fields")
DOMAIN, HEAD = "fields", "state"
KINDS = ("fno", "tfno", "uno", "unet")
CHAINED = "fno_chained"
"""The FNO on the recipe's chain; without the suffix a peer is trained as it is published, on single steps."""
RATES, BATCHES = (1e-3, 3e-3, 6e-3), (4, 16)
OUR_RATES = (1e-3, 2e-3, 4e-3)
WIDTH = {1: 64, 2: 32, 3: 16}
MODES = {1: 32, 2: 16, 3: 8}
JUDGED = 96
"""Validation samples that settings are chosen on."""


class UNet(nn.Module):
    """Four scales of two 3-wide convolutions with group norms, as in PDEBench's baseline, periodic where the axes are.

    Source: Ronneberger, Fischer & Brox, MICCAI 2015; Takamoto et al., "PDEBench", NeurIPS 2022.
    """

    def __init__(self, rank: int, inputs: int, outputs: int, periodic: bool, width: int = 32, scales: int = 4) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1](2)

        def pair(into: int, out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for given in (into, out):
                layers += [convolution(given, out, 3, padding=1, padding_mode="circular" if periodic else "replicate"),
                           nn.GroupNorm(min(8, out), out), nn.GELU()]
            return nn.Sequential(*layers)

        widths = [width * 2**scale for scale in range(scales)]
        self.down = nn.ModuleList([pair(a, b) for a, b in zip([inputs, *widths], widths)])
        self.lift = nn.ModuleList([transposed(b, a, 2, stride=2) for a, b in itertools.pairwise(widths)])
        self.up = nn.ModuleList([pair(2 * a, a) for a in widths[:-1]])
        self.last = convolution(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for step, block in enumerate(self.down):
            x = block(x)
            if step + 1 < len(self.down):
                kept.append(x)
                x = self.pool(x)
        for lift, block, skip in zip(reversed(self.lift), reversed(self.up), reversed(kept)):
            x = block(torch.cat([skip, lift(x)], 1))
        answer: Tensor = self.last(x)
        return answer


def network(kind: str, rank: int, inputs: int, outputs: int, periodic: bool) -> nn.Module:
    """A peer at the size that its own examples give it for two dimensions; U-Net at width 32."""
    if kind == "unet":
        return UNet(rank, inputs, outputs, periodic)
    from neuralop import models

    width, modes = WIDTH[rank], (MODES[rank],) * rank
    made: nn.Module
    padding = None if periodic else 0.125
    if kind in ("fno", CHAINED):
        made = models.FNO(n_modes=modes, in_channels=inputs, out_channels=outputs, hidden_channels=width, n_layers=4,
                          domain_padding=padding)
    elif kind == "tfno":
        made = models.TFNO(n_modes=modes, in_channels=inputs, out_channels=outputs, hidden_channels=width, n_layers=4,
                           factorization="tucker", rank=0.42, domain_padding=padding)
    else:
        half = tuple(m // 2 for m in modes)
        with redirect_stdout(io.StringIO()):  # it prints its settings
            made = models.UNO(inputs, outputs, hidden_channels=width, lifting_channels=4 * width,
                              projection_channels=4 * width, n_layers=5, domain_padding=padding,
                              uno_out_channels=[width, 2 * width, 2 * width, 2 * width, width],
                              uno_n_modes=[modes, half, half, half, modes],
                              uno_scalings=[[1.0] * rank, [0.5] * rank, [1.0] * rank, [2.0] * rank, [1.0] * rank],
                              channel_mlp_skip="linear", horizontal_skips_map={4: 0, 3: 1})
    return made


class PeerOperator(nn.Module):
    """A network of channels first in the operator's place: ``(B, *space, C)`` → ``{state: (B, *space, C)}``."""

    def __init__(self, kind: str, predictor: Predictor, axes: tuple[Axis, ...]) -> None:
        super().__init__()
        self.specs = predictor.operator.specs
        spec, periodic = self.specs[DOMAIN], all(axis.period is not None for axis in axes)
        inputs = len(spec.channels) + len(spec.lattice_conditions) + len(spec.vector_conditions)
        self.net = network(kind, len(axes), inputs, len(spec.channels), periodic)

    def forward(self, batch: TokenBatch, cache: Any = None, second_order: bool = False) -> Outputs:
        spec, ones = self.specs[DOMAIN], (1,) * len(batch.axes)
        channels = [*batch.values.unbind(-1)]
        channels += [batch.conditions.lattice[name].expand_as(channels[0]) for name in spec.lattice_conditions]
        channels += [batch.conditions.vector[name].view(-1, *ones).expand_as(channels[0])
                     for name in spec.vector_conditions]
        return Outputs({HEAD: self.net(torch.stack(channels, 1)).movedim(1, -1)})


def make_predictor(kind: str, recipe: Recipe, store: Store) -> Predictor:
    """Ours (``sciml``) from the recipe, or a peer with the adapter's plain baseline; weights by the recipe's seed."""
    ours = new_predictor(recipe, [store])
    if kind == "sciml":
        return ours
    torch.manual_seed(recipe.seed)
    adapter: Any = ours.adapter(DOMAIN)
    windows = adapter.open(store, "validation")
    axes = adapter.encode(windows.draw(0, *(np.random.default_rng(0) for _ in range(2)))).axes
    return Predictor(PeerOperator(kind, ours, axes), {DOMAIN: adapter.floor()})  # type: ignore[arg-type]


def kinds_for(recipe: Recipe) -> tuple[str, ...]:
    """The peers of a recipe."""
    return KINDS if recipe == unchained(recipe) else (*KINDS, CHAINED)


def unchained(recipe: Recipe) -> Recipe:
    """The recipe on single steps."""
    plain = {"chain": Named(name="direct")}
    return recipe.model_copy(update={"data": tuple(each.model_copy(update=plain) for each in recipe.data)})


def trainer(kind: str, setting: tuple[float, int], recipe: Recipe, store: Store, seconds: float, seed: int = 0) -> Any:
    """setting: learning rate (of AdamW; ten times it is Muon's in ours) and batch."""
    keep_freed()
    torch.set_num_threads(1)
    rate, batch = setting
    recipe = recipe.model_copy(update={"seed": seed})
    if kind in KINDS:
        recipe = unchained(recipe)
    changes: dict[str, Any] = {"learning_rate": rate, "matrix_learning_rate": 10 * rate}
    if kind != "sciml":
        changes |= THEIRS
    return common.Trainer(kind, make_predictor(kind, recipe, store), store, recipe,
                          recipe.train.model_copy(update=changes), batch, seconds)


def tensors(predictor: Predictor) -> dict[str, Tensor]:
    """Parameters and buffers; a peer's `state_dict` also has what is no tensor."""
    return {**dict(predictor.operator.named_parameters()), **dict(predictor.operator.named_buffers())}


@torch.no_grad()
def validation(trainer: Any, count: int = JUDGED) -> float:
    """Mean objective of validation samples, at all leads of the recipe (or of steady ones), with averaged weights if
    they are averaged; inf if the model failed. Training goes on from the weights that it had."""
    if trainer.failed:
        return float("inf")
    adapter, rng = trainer.adapter, np.random.default_rng(0)
    windows = adapter.open(trainer.store, "validation")
    shown = np.unique(np.linspace(0, len(windows) - 1, count).astype(int))
    errors: list[Tensor] = []
    own = {name: value.detach().clone() for name, value in tensors(trainer.predictor).items()}
    predictor = trainer.averaged()
    with evaluating(predictor.operator):
        for part in np.array_split(shown, max(1, len(shown) // 16)):
            batch = collate([adapter.encode(windows.draw(int(i), rng, rng)) for i in part])
            errors.append(trainer.objective(forward(adapter, predictor.operator, batch), batch))
    for name, value in tensors(predictor).items():
        value.copy_(own[name])
    return float(torch.cat(errors).mean())


def settings(kind: str) -> list[tuple[float, int]]:
    """What is tried on a tenth of the budget each: as many for ours as for a peer."""
    return [(rate, batch) for rate in (OUR_RATES if kind == "sciml" else RATES) for batch in BATCHES]


def tuned(recipe: Recipe, store: Store, kinds: Sequence[str], seconds: float) -> dict[str, tuple[float, int]]:
    """Each model's best setting by validation, all trained in turns."""
    tries = [(kind, setting) for kind in kinds for setting in settings(kind)]
    trainers = [trainer(kind, setting, recipe, store, seconds) for kind, setting in tries]
    common.train_together(trainers)
    best: dict[str, tuple[float, tuple[float, int]]] = {}
    for (kind, setting), each in zip(tries, trainers):
        error = validation(each)
        common.say(f"tuning {kind}: rate {setting[0]:g}, batch {setting[1]}, {each.step} steps: {error:.4f}")
        best[kind] = min(best.get(kind, (float("inf"), setting)), (error, setting))
    return {kind: setting for kind, (_, setting) in best.items()}


def keep(trainer: Any, path: Path) -> None:
    """The averaged weights and steps of a trainer that is done; from then on the trainer has these weights too."""
    from safetensors.torch import save_file

    state = tensors(trainer.averaged())
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    save_file({name: value.detach().clone().contiguous() for name, value in state.items()}, str(aside),
              {"step": str(trainer.step), "failed": str(int(trainer.failed))})
    aside.rename(path)


def restore(trainer: Any, path: Path) -> bool:
    """Whether a trainer was kept there; if so it is as it was then, at the end of its budget."""
    from safetensors import safe_open

    if not path.exists():
        return False
    with safe_open(str(path), "pt") as file:
        with torch.no_grad():
            for name, value in tensors(trainer.predictor).items():
                value.copy_(file.get_tensor(name))
        trainer.step, trainer.failed = int(file.metadata()["step"]), file.metadata()["failed"] == "1"
    trainer.average, trainer.used = None, trainer.seconds
    return True


THEIRS = {"optimizer": "adamw", "ema": 0.0, "precision": "float32"}
"""Of the section ``train``, whatever our recipe says there."""
OURS = ("patch", "fixed_patch", "detail", "spectral", "damped")
"""Of the section ``domains.fields``: what says how our operator sees a grid, and what it is told beside it."""


@dataclass(frozen=True)
class Kept:
    """Settings and weights that a case has come to, in a folder. A file is named after what of the recipe reaches its
    kind of model, so that a peer is neither tuned nor trained again where our operator alone changed."""

    folder: Path
    recipe: Recipe

    def name(self, kind: str) -> str:
        recipe = unchained(self.recipe) if kind in KINDS else self.recipe
        told = recipe.model_dump(mode="json", exclude={"name", "seed"})
        if kind in (*KINDS, CHAINED):
            del told["operator"]
            for key in OURS:
                told["domains"]["fields"].pop(key, None)
            for key in ("learning_rate", "matrix_learning_rate", *THEIRS):
                del told["train"][key]
        return f"{kind}_{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]}"

    def settings(self, kinds: Sequence[str],
                 choose: Callable[[Sequence[str]], Mapping[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
        """The setting of every kind, by `choose` for those that have none yet."""
        files = {kind: self.folder / f"{self.name(kind)}.json" for kind in kinds}
        missing = [kind for kind in kinds if not files[kind].exists()]
        for kind, setting in (choose(missing) if missing else {}).items():
            write_json(files[kind], setting)
        found = {kind: json.loads(file.read_text()) for kind, file in files.items()}
        return {kind: (rate, batch) for kind, (rate, batch) in found.items()}

    def train_missing(self, runs: Mapping[tuple[str, int], Any]) -> None:
        """All trainers by (kind, seed) to the end of their budgets: restored, or else trained in turns and kept."""
        files = {(kind, seed): self.folder / f"{self.name(kind)}_{seed}.safetensors" for kind, seed in runs}
        missing = [key for key in runs if not restore(runs[key], files[key])]
        common.train_together([runs[key] for key in missing])
        for key in missing:
            keep(runs[key], files[key])


def kept_in(name: str, recipe: Recipe, store: Store, seconds: float) -> Kept:
    """What that recipe came to on these data in so many seconds."""
    told = json.dumps(store.meta.split_identity())
    return Kept(RUNS / f"{name}_{seconds:g}s_{hashlib.sha256(told.encode()).hexdigest()[:8]}", recipe)
