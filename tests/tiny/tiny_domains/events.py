"""(d) Events of several units on one causal packed axis, generated one by one from a cache and a random state.

Baseline: smoothed log-rates. Link space: logits of the next unit, log of the mean time until it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.tokens import HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec
from tiny_domains.common import Arrays, MemoryStore, Tiny, memory_store, tensor

UNITS = ("a", "b", "c", "d")
CHANNEL, UNIT, WAIT, SEED = "tiny_events/wait", "unit", "wait", 17


def make_store(groups: int = 8) -> MemoryStore:
    """A noisy cycle a, b, c, d, whose waits are longer after b."""
    rng = np.random.default_rng(13)
    samples = []
    for i in range(groups):
        count = 8 + i % 5
        unit = [int(rng.integers(4))]
        for _ in range(count - 1):
            unit.append((unit[-1] + 1) % 4 if rng.random() < 0.85 else int(rng.integers(4)))
        wait = rng.exponential(np.where(np.array([0, *unit[:-1]]) == 1, 2.0, 0.5)) + 1e-3
        samples.append(xr.Dataset({"unit": ("event", np.array(unit)), "wait": ("event", wait, {"units": "s"})}))
    return memory_store("tiny_events", samples, state="wait", unit="s", dt=None)


@dataclass(frozen=True)
class Events(Tiny):
    objective: str = "next_event"
    name: str = "tiny_events"

    def fit(self, store: MemoryStore) -> Events:
        samples = store.of("train")
        counts = np.bincount(np.concatenate([s["unit"].values for s in samples]), minlength=len(UNITS)) + 0.5
        return replace(self, dataset=store.meta.dataset, baseline=Arrays("smoothed log-rate", {
            "log_rate": np.log(counts / sum(float(s["wait"].sum()) for s in samples))}))

    def spec(self) -> TokenSpec:
        return TokenSpec(
            self.name, (CHANNEL,), {UNIT: HeadSpec("tied", namespace="tiny_events/unit", link="logit"),
                                    WAIT: HeadSpec("lattice", (CHANNEL,), link="log")},
            identities={"tiny_events/unit": UNITS}, units={CHANNEL: "s"})

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        unit, wait = torch.as_tensor(sample["unit"].values), tensor(sample["wait"].values)
        batch = self._events(unit, wait, wait.cumsum(0), (sample.attrs["source"],))
        later, asked = torch.roll(unit, -1), torch.arange(len(unit)) < len(unit) - 1
        targets = dict(batch.targets)
        one_hot = torch.nn.functional.one_hot(later, len(UNITS))[None].to(wait)
        targets[UNIT] = replace(targets[UNIT], value=one_hot, mask=asked[None, :, None])
        targets[WAIT] = replace(targets[WAIT], value=torch.roll(wait, -1)[None, :, None], mask=asked[None, :, None])
        return replace(batch, targets=targets)

    def _events(self, unit: Tensor, wait: Tensor, time: Tensor, sources: tuple[str, ...]) -> TokenBatch:
        log_rate = tensor(self.baseline["log_rate"]).to(wait)
        one, blind = wait.new_ones(1, 1, 1), torch.zeros(1, len(unit), 1, dtype=torch.bool)
        targets = {
            UNIT: Target(wait.new_zeros(1, len(unit), len(UNITS)), blind, log_rate[None, None], one),
            WAIT: Target(wait.new_ones(1, len(unit), 1), blind, -log_rate.logsumexp(0).view(1, 1, 1), one)}
        axis = tokens.identity("event", unit, "tiny_events/unit", coord=time[:, None], unit="s", causal=True,
                               segment=torch.zeros(len(unit), dtype=torch.long))
        return TokenBatch(self.name, self.dataset, wait.log1p()[None, :, None], (CHANNEL,), (axis,), targets=targets,
                          sources=sources)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """The units' probabilities and the mean wait ``(sample, event)`` of what follows each event but the last."""
        segment = batch.axes[0].segment[0]
        unit, wait = predictions[UNIT][0].argmax(-1).to(predictions[WAIT]), predictions[WAIT][0, :, 0].exp()
        rows = [[t[segment == i][:-1] for i in range(batch.num_segments)] for t in (unit, wait)]
        both = [torch.nn.utils.rnn.pad_sequence(r, batch_first=True, padding_value=torch.nan) for r in rows]
        dims = ("sample", "event")
        return xr.Dataset({"unit": (dims, both[0].detach().double().numpy()),
                           "wait": (dims, both[1].detach().double().numpy(), {"units": "s"})})

    def initial(self, sample: xr.Dataset) -> State:
        batch = self.encode(sample)
        return State(self._events(batch.axes[0].ids[0], tensor(sample["wait"].values), batch.axes[0].coord[0, :, 0],
                                  batch.sources), cache=[], rng=torch.Generator().manual_seed(SEED).get_state())

    def advance(self, state: State, outputs: Outputs) -> State:
        """Draw the next unit and its wait (an exponential by its quantile, hence differentiable in the mean)."""
        generator = torch.Generator()
        generator.set_state(state.rng)
        targets, last = state.batch.targets, state.batch.axes[0].coord[0, -1, 0]
        chance = targets[UNIT].predict(outputs[UNIT])[0, -1].softmax(-1)
        unit = torch.multinomial(chance.detach(), 1, generator=generator)
        quantile = torch.rand(1, generator=generator).to(last)
        wait = -torch.log1p(-quantile) * targets[WAIT].predict(outputs[WAIT])[0, -1].exp()
        return replace(state, batch=self._events(unit, wait, last + wait, state.batch.sources), step=state.step + 1,
                       elapsed=state.elapsed + float(wait.detach()), rng=generator.get_state())

    def observe(self, state: State) -> xr.Dataset:
        axis = state.batch.axes[0]
        wait = state.batch.values[:, -1, 0].detach().expm1().double().numpy()
        return xr.Dataset({"unit": (("sample",), axis.ids[:, -1].double().numpy()),
                           "wait": (("sample",), wait, {"units": "s"})},
                          coords={"time": ((), state.elapsed, {"units": "s"})})


PLUGIN = Events
