"""Adapter + baseline + operator + statistics: what a checkpoint holds and what a user calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xarray as xr
from torch import nn

from sciml.adapter import DomainAdapter, Sample
from sciml.errors import InputError
from sciml.operator.operator import Operator
from sciml.tokens import Cache, Outputs, State, TokenBatch, TokenSpec


@dataclass
class Predictor:
    """One operator and the adapters of the domains it knows. recipe and provenance travel with the checkpoint.

    compiled: asked before the operator is run; what `sciml.traced.compile_forward` made for batches of one form.
    """

    operator: Operator
    adapters: dict[str, DomainAdapter]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    compiled: Callable[[TokenBatch], Outputs | None] | None = field(default=None, repr=False, compare=False)

    def adapter(self, domain: str) -> DomainAdapter:
        if domain not in self.adapters:
            raise InputError("checkpoint", key="domain", found=repr(domain), expected=f"one of {sorted(self.adapters)}",
                             fix="fine-tune the checkpoint on a store of that domain")
        return self.adapters[domain]

    def forward(self, batch: TokenBatch, cache: Cache | None = None) -> Outputs:
        """Heads, derived ones (forces) included; keeps no gradient of the weights. An empty cache is started."""
        adapter = self.adapter(batch.domain)
        found = self.compiled(batch) if self.compiled is not None and cache is None else None
        if found is not None:
            return found
        if cache is not None and not cache:
            cache = self.operator.empty_cache()
        with evaluating(self.operator), torch.set_grad_enabled(bool(adapter.differentiate)):
            return forward(adapter, self.operator, batch, cache)

    def step(self, state: State) -> State:
        """One rollout step: predict, then the domain's `advance`."""
        outputs = self.forward(state.batch, state.cache)
        with torch.no_grad():
            advanced = self.adapter(state.batch.domain).advance(state, outputs)
        return replace(advanced, cache=outputs.cache)

    def predict(self, sample: Sample) -> xr.Dataset:
        """The direct prediction of a sample's targets, in physical units and coordinates."""
        adapter = self.of(sample)
        batch = adapter.encode(sample)
        outputs = self.forward(batch)
        return adapter.decode(batch, predictions(batch, outputs))

    def rollout(self, dataset: Sample, steps: int) -> xr.Dataset:
        """`steps` steps forward from one state (or look-back): xarray in, xarray out along ``time``.

        Raises `InputError` if the data doesn't fit the checkpoint, `sciml.rollout.BlowUp` if a step is not finite.
        """
        from sciml.rollout import rollout_dataset

        return rollout_dataset(self, dataset, steps)

    def forecast(self, frame: Any, *, horizon: int | None = None, quantiles: Sequence[float] = (),
                 **options: Any) -> Any:
        """The steps that follow every series of a pandas frame, as a frame: `sciml.handles.series.forecast`."""
        from sciml.handles.series import forecast

        return forecast(self, frame, horizon=horizon, quantiles=quantiles, **options)

    def of(self, sample: Sample) -> DomainAdapter:
        """The adapter of a sample: by its attribute ``domain``, or the only one there is."""
        if "domain" in sample.attrs:
            return self.adapter(str(sample.attrs["domain"]))
        if len(self.adapters) == 1:
            return next(iter(self.adapters.values()))
        raise InputError("dataset", key="attrs['domain']", found="nothing", expected=f"one of {sorted(self.adapters)}",
                         fix="set dataset.attrs['domain']")


def forward(adapter: DomainAdapter, operator: nn.Module, batch: TokenBatch, cache: Cache | None = None,
            create_graph: bool = False) -> Outputs:
    """Operator and derived heads. create_graph: keep what a second derivative (training on forces) needs."""
    second_order = create_graph and bool(adapter.differentiate)
    return adapter.derive(batch, lambda given: operator(given, cache, second_order=second_order), create_graph)


def predictions(batch: TokenBatch, outputs: Outputs) -> dict[str, torch.Tensor]:
    """Head → prediction in link space, baseline included."""
    return {head: target.predict(outputs[head]) for head, target in batch.targets.items()}


def truths(spec: TokenSpec, batch: TokenBatch) -> dict[str, torch.Tensor]:
    """Head → what a perfect prediction would be, in link space."""
    return {head: LINKS[spec.heads[head].link if head in spec.heads else "identity"](target.value)
            for head, target in batch.targets.items()}


LINKS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda value: value,
    "log": lambda value: value.clamp_min(1e-6).log(),
    "logit": lambda value: value.clamp(1e-6, 1 - 1e-6).logit(),
}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    was = module.training
    if was:  # telling every module of it takes as long as a small one takes to run
        module.eval()
    try:
        yield
    finally:
        if was:
            module.train()
