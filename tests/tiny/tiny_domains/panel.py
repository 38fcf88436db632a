"""(b) A panel (variate: set, time) with missing cells and a horizon to fill. Baseline: the look-back's mean."""

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

LOOK_BACK, HORIZON, DT = 12, 6, 1.0
VARIATES = ("load", "wind", "sun")
CHANNEL, HEAD = "tiny_panel/value", "value"


def make_store(groups: int = 6) -> MemoryStore:
    """Three sine waves of different period and level in MW, a sixth of all cells lost."""
    rng = np.random.default_rng(5)
    time = np.arange(LOOK_BACK + HORIZON) * DT
    samples = []
    for _ in range(groups):
        value = np.stack([50 * (i + 1) + 10 * np.sin(2 * np.pi * time / (6 + 2 * i) + rng.uniform(0, 6))
                          for i in range(len(VARIATES))], -1)
        value[rng.random(value.shape) < 1 / 6] = np.nan
        samples.append(xr.Dataset({"value": (("time", "variate"), value, {"units": "MW"})},
                                  coords={"time": ("time", time, {"units": "s"}), "variate": list(VARIATES)}))
    return memory_store("tiny_panel", samples, state="value", unit="MW", dt=DT)


@dataclass(frozen=True)
class Panel(Tiny):
    name: str = "tiny_panel"

    def fit(self, store: MemoryStore) -> Panel:
        value = np.concatenate([s["value"].values for s in store.of("train")])
        return replace(self, dataset=store.meta.dataset, baseline=Arrays("mean of the look-back", {
            "center": np.nanmean(value, 0), "scale": np.nanstd(value, 0)}))

    def spec(self) -> TokenSpec:
        return TokenSpec(self.name, (CHANNEL,), {HEAD: HeadSpec("lattice", (CHANNEL,))},
                         identities={"tiny_panel/variate": VARIATES}, patch=2, units={CHANNEL: "1"})

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        scaled = tensor((sample["value"].values - self.baseline["center"]) / self.baseline["scale"]).T[None, ..., None]
        return self._window(scaled[:, :, :LOOK_BACK], scaled[:, :, LOOK_BACK:], (sample.attrs["source"],), 0.0)

    def _window(self, past: Tensor, truth: Tensor, sources: tuple[str, ...], start: float) -> TokenBatch:
        """past ``(B, V, L, 1)``, truth ``(B, V, H, 1)``, both NaN where unknown."""
        known = past.isfinite()
        seen = past.nan_to_num()
        mean = (seen * known).sum(2, keepdim=True) / known.sum(2, keepdim=True).clamp_min(1)
        future = truth.new_zeros(len(past), len(VARIATES), HORIZON, 1)
        truth = truth if truth.shape[2] else torch.full_like(future, torch.nan)
        nothing = torch.zeros_like(known)
        target = Target(value=torch.cat([seen, truth.nan_to_num()], 2), mask=torch.cat([nothing, truth.isfinite()], 2),
                        baseline=mean.expand(-1, -1, LOOK_BACK + HORIZON, -1), scale=torch.ones_like(mean))
        time = start + torch.arange(LOOK_BACK + HORIZON, dtype=past.dtype) * DT
        return TokenBatch(
            self.name, self.dataset, torch.cat([seen, future], 2), (CHANNEL,),
            (tokens.identity("variate", torch.arange(len(VARIATES)), "tiny_panel/variate"),
             tokens.time("time", time / LOOK_BACK, unit="s")),
            observed=torch.cat([known, torch.zeros_like(future, dtype=torch.bool)], 2), targets={HEAD: target},
            num_segments=len(past), sources=sources)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        normal = predictions[HEAD].expand(batch.values.shape)[:, :, LOOK_BACK:, 0]
        asked = batch.targets[HEAD].mask[:, :, LOOK_BACK:, 0]
        return self._dataset(normal.masked_fill(~asked, torch.nan) if bool(asked.any()) else normal)

    def _dataset(self, normal: Tensor) -> xr.Dataset:
        value = normal.detach().double().numpy().swapaxes(1, 2) * self.baseline["scale"] + self.baseline["center"]
        return xr.Dataset({"value": (("sample", "time", "variate"), value, {"units": "MW"})},
                          coords={"variate": list(VARIATES)})

    def initial(self, sample: xr.Dataset) -> State:
        return State(self.encode(sample.isel(time=slice(0, LOOK_BACK))))

    def advance(self, state: State, outputs: Outputs) -> State:
        batch = state.batch
        filled = batch.targets[HEAD].predict(outputs[HEAD])[:, :, LOOK_BACK:]
        past = batch.values[:, :, :LOOK_BACK].masked_fill(~batch.observed[:, :, :LOOK_BACK], torch.nan)
        past = torch.cat([past, filled], 2)[:, :, -LOOK_BACK:]
        elapsed = state.elapsed + HORIZON * DT
        return replace(state, batch=self._window(past, filled[:, :, :0], batch.sources, elapsed), step=state.step + 1,
                       elapsed=elapsed)

    def observe(self, state: State) -> xr.Dataset:
        known = state.batch.observed[:, :, :LOOK_BACK, 0]
        past = state.batch.values[:, :, :LOOK_BACK, 0].masked_fill(~known, torch.nan)
        cells = past[:, :, -HORIZON:] if state.step else past
        last = state.elapsed + LOOK_BACK * DT
        times = last + (np.arange(cells.shape[2]) - cells.shape[2]) * DT
        return self._dataset(cells).assign_coords(
            valid_time=(("sample", "time"), np.broadcast_to(times, (len(cells), cells.shape[2]))))


PLUGIN = Panel
