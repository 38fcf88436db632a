"""The operator: one set of core weights for every domain's lattice; stems and heads by domain name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciml import registry
from sciml.errors import InputError
from sciml.mixers.geometry import Geometry, pair_axis_of
from sciml.operator.block import Block
from sciml.operator.conditions import ConditionVector, CrossAttention
from sciml.operator.config import OperatorConfig
from sciml.operator.heads.contract import HeadInput
from sciml.operator.lattice import cells_per_token, coarsen, crop, pad
from sciml.operator.norm import unit
from sciml.operator.patch import Merge, Split
from sciml.operator.stems import read_in
from sciml.tokens import Cache, Outputs, TokenBatch, TokenSpec


class Ports(nn.Module):
    """What belongs to one domain: stem, heads, condition rows, pair biases, a stem for its context."""

    def __init__(self, spec: TokenSpec, config: OperatorConfig) -> None:
        super().__init__()
        width = config.levels[0].width
        make_stem = registry.find("sciml.operator.stems", spec.stem or config.stem)
        self.stem = make_stem(spec, config)
        self.heads = nn.ModuleDict({name: registry.find("sciml.operator.heads", head.kind)(
            spec, head, config.stem_width, width) for name, head in spec.heads.items()})
        self.conditions = ConditionVector(spec.vector_conditions, config.condition_width)
        self.context_stem = None
        if spec.context is not None:
            make_stem = registry.find("sciml.operator.stems", spec.context.stem or config.stem)
            self.context_stem = make_stem(spec.context, config)
        self.biases = nn.ModuleDict()
        if spec.pair_bias is not None:
            make_bias = registry.find("sciml.operator.biases", spec.pair_bias)
            counts = sorted({level.width // level.head_width for level in config.levels})
            self.biases = nn.ModuleDict({str(heads): make_bias(heads) for heads in counts})

    def extend(self, spec: TokenSpec, config: OperatorConfig) -> None:
        """Add the rows of names that are new in `spec`; everything that exists keeps its weights, but for heads that it
        doesn't name any more, which go. A new head of a kind that went takes over what isn't about its outputs."""
        gone = [self.heads.pop(name) for name in sorted(set(self.heads) - set(spec.heads))]
        self.stem.extend(spec)
        self.conditions.rows.extend(spec.vector_conditions)
        for name, head in spec.heads.items():
            if name in self.heads:
                self.heads[name].extend(head, spec)  # type: ignore[operator]
            else:
                make = registry.find("sciml.operator.heads", head.kind)
                self.heads[name] = make(spec, head, config.stem_width, config.levels[0].width)
                _take_over(self.heads[name], [each for each in gone if type(each) is type(self.heads[name])])


def _take_over(head: nn.Module, others: Sequence[nn.Module]) -> None:
    """Weights of the first of `others` that have the same name and shape here; rows of outputs have their names."""
    own = head.state_dict()
    for other in others[:1]:
        same = {name: weight for name, weight in other.state_dict().items()
                if name in own and own[name].shape == weight.shape}
        head.load_state_dict(same, strict=False)


class Level(nn.Module):
    """One scale: blocks on the way down and up, a cross attention to the context, and the maps to the next scale.

    Each way is taken ``loops`` times with the same weights: ``x ← x + f(x) / loops``, fixed steps of a flow in depth.
    Sources: You et al., "Learning deep implicit Fourier neural operators", CMAME 398 (2022); of factorized attention,
    Yang, Wang & Wang, "Implicit factorized transformer approach to fast prediction of turbulent channel flows", 2024.
    """

    def __init__(self, config: OperatorConfig, index: int) -> None:
        super().__init__()
        own = config.levels[index]
        self.loops = own.loops
        self.down = nn.ModuleList(Block(own, i, config.condition_width, config.dropout, config.norm)
                                  for i in range(own.depth))
        self.context = CrossAttention(own.width, config.levels[0].width, own.head_width)
        self.up = nn.ModuleList(Block(own, own.depth + i, config.condition_width, config.dropout, config.norm)
                                for i in range(own.depth_up))
        if index + 1 < len(config.levels):
            self.merge = Merge(own.width, config.levels[index + 1].width)
            self.split = Split(config.levels[index + 1].width, own.width)

    def descent(self) -> Iterator[Block]:
        """Blocks of the way down, as often as they are applied."""
        return chain.from_iterable([self.down] * self.loops)  # type: ignore[list-item]

    def ascent(self) -> Iterator[Block]:
        """Blocks of the way up, as often as they are applied."""
        return chain.from_iterable([self.up] * self.loops)  # type: ignore[list-item]


class Operator(nn.Module):
    """``forward(batch) → Outputs``: stem, blocks at several scales (a U), heads.

    Core weights are named ``levels.*``, domain weights ``ports.<domain>.*``. Lattices of any rank and size go through
    the same core; axes that may not be coarsened keep their length at every level. compiled: whether the blocks are
    (`sciml.operator.compiled`); second derivatives, cached steps and packed samples run eagerly.
    """

    compiled = False

    def __init__(self, config: OperatorConfig, specs: Mapping[str, TokenSpec]) -> None:
        super().__init__()
        self.config = config
        self.specs = dict(specs)
        self.ports = nn.ModuleDict({name: Ports(spec, config) for name, spec in specs.items()})
        self.levels = nn.ModuleList(Level(config, i) for i in range(len(config.levels)))

    def extend(self, spec: TokenSpec) -> None:
        """Learn of a domain, or of more names in a known one; existing weights are untouched."""
        if spec.domain in self.specs:
            self.specs[spec.domain] = spec
            self._port(spec.domain).extend(spec, self.config)
        else:
            self.specs[spec.domain] = spec
            self.ports[spec.domain] = Ports(spec, self.config)

    @property
    def blocks(self) -> list[Block]:
        """All blocks in order of execution, down the levels and up again; one of a looped level as often as it is
        applied."""
        levels: list[Any] = list(self.levels)
        return [*(block for level in levels for block in level.descent()),
                *(block for level in reversed(levels[:-1]) for block in level.ascent())]

    def empty_cache(self) -> Cache:
        """A cache to start a causal rollout with: one entry per mixer and application, in order of execution."""
        return [() for block in self.blocks for _ in block.mixers]

    def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False,
                sizes: Sequence[int] | None = None) -> Outputs:
        """sizes: cells per token along each axis; None: what the axes' spacing asks for, which is read from them."""
        spec, port = self._spec(batch.domain), self._port(batch.domain)
        cells, cache = batch.lattice, None if cache is None else list(cache)
        sizes = cells_per_token(batch.axes, spec) if sizes is None else sizes
        deepest = 2 ** (len(self.levels) - 1)
        padded = pad(batch, [size * deepest if axis.coarsen else 1 for size, axis in zip(sizes, batch.axes)])
        c = port.conditions(batch.conditions.vector, batch.num_segments)  # (S, K)
        x, fine = read_in(port.stem, padded, sizes)
        x = x.to(batch.values.dtype)  # (B, *tokens, width); never in reduced precision
        geometry = Geometry(port.stem.axes(padded.axes, sizes), second_order, _pair_bias(port, padded))
        eagerly = self.compiled and runs_eagerly(batch, cache, second_order)
        with torch.compiler.set_stance("force_eager") if eagerly else nullcontext():
            tokens, levels = self._scales(x, c, geometry, self._context(batch, port), cache)
        read = F.dropout(unit(tokens, geometry, self.config.norm), self.config.head_dropout, self.training)
        given = HeadInput(read, sizes, padded, geometry, port.stem.identities, levels, fine)
        heads = {name: head(given) for name, head in port.heads.items()}
        on_lattice = {name for name, head in port.heads.items() if getattr(head, "on_lattice", False)}
        return Outputs({name: crop(y, cells) if name in on_lattice else y for name, y in heads.items()}, cache)

    def _scales(self, x: Tensor, c: Tensor, geometry: Geometry, context: Tensor | None,
                cache: Cache | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Down to the coarsest level and up again; returns the finest tokens and those of every level."""
        kept: list[tuple[Tensor, Geometry, list[int]]] = []
        for depth, level in enumerate(self.levels):
            for block in chain(level.down, level.up):  # type: ignore[arg-type]
                block.prepare(geometry)
            for block in level.descent():  # type: ignore[operator]
                x = block(x, c, geometry, cache)
            if context is not None:
                x = level.context(x, context, geometry.second_order)  # type: ignore[operator]
            if depth + 1 < len(self.levels):
                pairs = [2 if axis.coarsen else 1 for axis in geometry.axes]
                kept.append((x, geometry, pairs))
                x = level.merge(x, pairs)  # type: ignore[operator]
                geometry = Geometry(coarsen(geometry.axes, pairs), geometry.second_order, geometry.pair_bias)
        outputs = [x]
        for level, (skip, finer, pairs) in zip(reversed(self.levels[:-1]), reversed(kept)):
            x = skip + level.split(x, pairs)  # type: ignore[operator]
            for block in level.ascent():  # type: ignore[operator]
                x = block(x, c, finer, cache)
            outputs.append(x)
        return x, tuple(reversed(outputs))

    def _context(self, batch: TokenBatch, port: Ports) -> Tensor | None:
        context = batch.conditions.context
        if context is None:
            return None
        spec = self._spec(batch.domain).context
        assert spec is not None
        assert port.context_stem is not None
        sizes = cells_per_token(context.axes, spec)
        padded = pad(context, sizes)
        return read_in(port.context_stem, padded, sizes)[0].flatten(1, -2)

    def _spec(self, domain: str) -> TokenSpec:
        if domain not in self.specs:
            raise InputError("operator", key="domain", found=repr(domain), expected=f"one of {sorted(self.specs)}",
                             fix="fine-tune it on a store of that domain first")
        return self.specs[domain]

    def _port(self, domain: str) -> Ports:
        port = self.ports[domain]
        assert isinstance(port, Ports)
        return port


def _pair_bias(port: Ports, batch: TokenBatch) -> Callable[[int], Tensor] | None:
    """heads → additive attention term, computed once a forward pass from the coordinates of the axis it is about."""
    if not port.biases:
        return None
    place = pair_axis_of(batch.axes)
    made: dict[int, Tensor] = {}

    def bias(heads: int) -> Tensor:
        if heads not in made:
            made[heads] = port.biases[str(heads)](batch.axes[place])
        return made[heads]

    return bias


def runs_eagerly(batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> bool:
    """Whether blocks that are compiled run eagerly all the same: second derivatives, cached steps, packed samples."""
    return second_order or cache is not None or batch.packed_axis is not None


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def optimizer_groups(module: nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Hidden matrices of the core, stacks of them (``*_stack``) and kernels as matrices of stems and heads
    (``*_matrix``) for Muon; everything else for AdamW."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        matrix = parameter.ndim == 2 and not any(part in name for part in ("gain", "kernel", "modulate"))
        hidden = name.endswith("_matrix") or (name.startswith("levels.") and (matrix or name.endswith("_stack")))
        (matrices if hidden else rest).append(parameter)
    return matrices, rest
