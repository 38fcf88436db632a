"""Whole gradients as one compiled graph, for domains whose outputs are derivatives themselves.

A compiled graph can't be differentiated twice. So what is compiled here is the result: the program of plain tensor
operations that computes loss and gradients, second derivatives included, recorded once and fused by inductor. Valid for
batches of one form, because Python's decisions (which samples have equal sizes) are recorded with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sciml.adapter import DomainAdapter
from sciml.errors import InputError
from sciml.operator.compiled import prepare_compiler
from sciml.predictor import Predictor, evaluating, forward
from sciml.tokens import Outputs, TokenBatch, map_tensors

DEPENDS_ON_VALUES = ("_local_scalar_dense", "data-dependent", "tracing tensor")
"""What torch says when a program can't be recorded because Python asked for a value."""
Loss = Callable[[Outputs, TokenBatch], Tensor]


def form_of(batch: TokenBatch) -> tuple[Any, ...] | None:
    """What must be equal for a recorded program to fit: data set, sizes, targets, conditions. None if none can be made:
    in periodic cells who is a neighbour depends on the places."""
    if any(axis.period is not None for axis in batch.axes) or batch.packed_axis is None:
        return None
    segment = batch.axes[batch.packed_axis].segment
    assert segment is not None
    shapes = tuple((tuple(t.shape), t.dtype) for t in tensors_of(batch))
    return (batch.domain, batch.dataset, batch.channels, tuple(segment[0].bincount().tolist()), tuple(batch.targets),
            tuple(batch.conditions.vector), shapes, batch.values.dtype, str(batch.values.device))


def recordable(batch: TokenBatch) -> tuple[Any, ...]:
    """Its form. Raises `InputError` for a batch that no program can be made for."""
    form = form_of(batch)
    if form is None:
        raise InputError(", ".join(batch.sources), key="compile", found="a periodic cell, or no packed samples",
                         expected="molecules", fix="run it without compiling")
    return form


class TracedGradients:
    """Adds the gradients of a batch's mean loss to the weights, like ``loss.mean().backward()``, and returns the loss.

    The program is recorded and compiled at the first call; every batch must have the form of that one.
    """

    def __init__(self, adapter: DomainAdapter, operator: nn.Module, loss: Loss, backend: str = "inductor") -> None:
        self.adapter, self.operator, self.loss, self.backend = adapter, operator, loss, backend
        self.names = [name for name, p in operator.named_parameters() if p.requires_grad]
        self.used: list[int] = []
        self.program: Callable[..., list[Tensor]] | None = None

    def __call__(self, batch: TokenBatch, share: float) -> Tensor:
        """share: factor of the gradients, one over the micro-batches of a step. Returns the mean loss."""
        weights = [self.operator.get_parameter(name) for name in self.names]
        inputs = ([w.detach() for w in weights], tensors_of(batch))
        if self.program is None:
            self.program = record(lambda own, tensors: self._compute(own, with_tensors(batch, tensors)), inputs,
                                  self.backend)
        with torch.no_grad():
            loss, *slopes = self.program(*inputs)
            for index, slope in zip(self.used, slopes, strict=True):
                grad = weights[index].grad
                weights[index].grad = slope * share if grad is None else grad.add_(slope, alpha=share)
        return loss

    def _compute(self, own: list[Tensor], batch: TokenBatch) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in own]
            names = dict(zip(self.names, leaves, strict=True))
            outputs = forward(self.adapter, lambda *given, **options: functional_call(  # type: ignore[arg-type]
                self.operator, names, given, options), batch, create_graph=True)
            loss = self.loss(outputs, batch).mean()
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
        self.used = [i for i, slope in enumerate(slopes) if slope is not None]
        return [loss.detach(), *(slope for slope in slopes if slope is not None)]


class TracedForward:
    """A predictor's heads of batches of one form and dtype, derived ones included, as one compiled graph."""

    def __init__(self, adapter: DomainAdapter, operator: nn.Module, example: TokenBatch,
                 backend: str = "inductor") -> None:
        self.heads: list[str] = []
        axis = example.axes[0]

        def compute(weights: list[Tensor], coord: Tensor) -> list[Tensor]:
            moved = replace(example, axes=(replace(axis, coord=coord), *example.axes[1:]))
            names = dict(zip(self.names, weights, strict=True))
            with torch.enable_grad():
                outputs = forward(adapter, lambda *given, **options: functional_call(  # type: ignore[arg-type]
                    operator, names, given, options), moved)
            self.heads = list(outputs.heads)
            return [head.detach() for head in outputs.heads.values()]

        self.names = [name for name, _ in operator.named_parameters()]
        self.weights = [p.detach() for _, p in operator.named_parameters()]
        with evaluating(operator):
            self.program = record(compute, (self.weights, axis.coord), backend)

    def __call__(self, coord: Tensor) -> Outputs:
        """coord ``(1, n, 3)`` of the first axis, in reference lengths; everything else is the example's."""
        with torch.no_grad():
            return Outputs(dict(zip(self.heads, self.program(self.weights, coord), strict=True)))


def compile_forward(predictor: Predictor, example: TokenBatch) -> Predictor:
    """The same predictor with a compiled program for batches that differ from the example in coordinates alone, such as
    the steps of molecular dynamics; others run as before. Raises `InputError` without a C++ compiler, and for an
    example that no program can be made for."""
    prepare_compiler("compile")
    form = recordable(example)
    program = TracedForward(predictor.adapter(example.domain), predictor.operator, example)
    kept = _kept(example)

    place = example.axes[0].coord

    def fits(batch: TokenBatch) -> bool:
        own, coord = _kept(batch), batch.axes[0].coord
        if coord.dtype != place.dtype or coord.shape != place.shape:
            return False  # compiled programs don't look at what they are given
        if len(own) == len(kept) and all(a is b for a, b in zip(own, kept)):  # as from step to step
            return batch.targets.keys() == example.targets.keys() and batch.axes[0].period is None
        return form_of(batch) == form and all(map(torch.equal, own, kept))

    return replace(predictor, compiled=lambda batch: program(batch.axes[0].coord.detach()) if fits(batch) else None)


def compile_as_met(predictor: Predictor) -> Predictor:
    """The same predictor that compiles a program when it meets a batch that its last one doesn't fit: one per sample of
    a rollout. Raises `InputError` as `compile_forward` does, at the first batch."""
    last: list[Callable[[TokenBatch], Outputs | None]] = []

    def answer(batch: TokenBatch) -> Outputs:
        found = last[0](batch) if last else None
        if found is None:
            made = compile_forward(predictor, batch).compiled
            assert made is not None
            last[:] = [made]
            found = made(batch)
        assert found is not None
        return found

    return replace(predictor, compiled=answer)


def _kept(batch: TokenBatch) -> list[Tensor]:
    """What a program takes from its example: values, identities, segments and conditions."""
    found = [batch.values, *(t for axis in batch.axes for t in (axis.ids, axis.segment) if t is not None)]
    return [*found, *batch.conditions.vector.values()]


def record(compute: Callable[..., list[Tensor]], inputs: tuple[Any, ...],
           backend: str = "inductor") -> Callable[..., list[Tensor]]:
    """The program of tensor operations that `compute` runs for these inputs, compiled. Takes up to a minute the first
    time, seconds where inductor's cache is warm; needs a C++ compiler. Raises `InputError` where what is computed
    depends on the values, as it does where neighbours are looked for (large samples, a head of direct forces)."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree

    flat, form = pytree.tree_flatten(inputs)
    try:
        graph = make_fx(lambda *given: compute(*pytree.tree_unflatten(list(given), form)))(*flat)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in DEPENDS_ON_VALUES):
            raise
        raise InputError("compile", key="operator", found=" ".join(str(error).split())[:120],
                         expected="operations that don't depend on the places",
                         fix="run it without compiling (train.compile=false; compile=False)") from None
    graph.graph.eliminate_dead_code()
    graph.recompile()
    program: Any = graph
    if backend == "inductor":  # without guards on every weight, which take longer than a small molecule's forces
        from torch import _inductor

        program = _inductor.compile(graph, flat)
    return lambda *given: list(program(*pytree.tree_leaves(given)))


def tensors_of(batch: TokenBatch) -> list[Tensor]:
    """All tensors of a batch but its segments, which are recorded, in a fixed order."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    map_tensors(_bare(batch), note)
    return found


def with_tensors(batch: TokenBatch, tensors: list[Tensor]) -> TokenBatch:
    """The batch with these in their places."""
    left = iter(tensors)
    changed: TokenBatch = map_tensors(_bare(batch), lambda t: next(left))
    return replace(changed, axes=tuple(replace(new, segment=old.segment) for new, old in zip(changed.axes, batch.axes)))


def _bare(batch: TokenBatch) -> TokenBatch:
    return replace(batch, axes=tuple(replace(axis, segment=None) for axis in batch.axes))
