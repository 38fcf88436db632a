"""(a) A periodic 2-D grid with lead time: a smooth field carried by a constant wind. Baseline: persistence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.adapter import Question
from sciml.tokens import Conditions, HeadSpec, Outputs, State, Target, TokenBatch, TokenSpec
from tiny_domains.common import Arrays, Listed, MemoryStore, Tiny, memory_store, tensor

DT, PERIOD = 0.25, 2.0
CHANNEL, HEAD = "tiny_grid/height", "state"


def make_store(shape: tuple[int, int] = (10, 8), groups: int = 6, frames: int = 6) -> MemoryStore:
    """Waves of wavenumber ≤ 2 carried by (1, 0.5) m/s on a 2 m × 2 m torus."""
    rng = np.random.default_rng(3)
    x, y = (np.arange(n) / n * PERIOD for n in shape)
    time = np.arange(frames) * DT
    samples = []
    for _ in range(groups):
        height = np.zeros((frames, *shape))
        for kx, ky in [(1, 0), (0, 1), (1, 1), (2, -1)]:
            phase = rng.uniform(0, 6) - np.pi * (kx + 0.5 * ky) * time[:, None, None]
            height += rng.normal() * np.cos(np.pi * (kx * x[:, None] + ky * y) + phase)
        samples.append(xr.Dataset(
            {"height": (("time", "x", "y"), 20 + 3 * height, {"units": "m"})},
            coords={"time": ("time", time, {"units": "s"}), "x": ("x", x, {"units": "m"}),
                    "y": ("y", y, {"units": "m"})}))
    return memory_store("tiny_grid", samples, state="height", unit="m", dt=DT)


@dataclass(frozen=True)
class Grid(Tiny):
    objective: str = "relative_l2"
    name: str = "tiny_grid"

    def fit(self, store: MemoryStore) -> Grid:
        height = np.stack([s["height"].values for s in store.of("train")])
        change = [np.std(height[:, lead:] - height[:, :-lead]) for lead in (1, 2)]
        return replace(self, dataset=store.meta.dataset, baseline=Arrays("persistence", {
            "center": height.mean(keepdims=True).ravel(), "scale": height.std(keepdims=True).ravel(),
            "change": np.array(change)}))

    def spec(self) -> TokenSpec:
        return TokenSpec(self.name, (CHANNEL,), {HEAD: HeadSpec("lattice", (CHANNEL,))}, patch=2,
                         vector_conditions=("lead_time",), units={CHANNEL: "m"})

    def open(self, store: MemoryStore, split: str, *, train: bool = False) -> Listed:
        return Listed([s.isel(time=[t, t + lead]) for s in store.of(split) for lead in (1, 2)
                       for t in range(s.sizes["time"] - lead)])

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        heights = tensor((sample["height"].values - self.baseline["center"]) / self.baseline["scale"])[..., None]
        lead = float(sample["time"][1] - sample["time"][0]) if sample.sizes["time"] == 2 else DT
        axes = tuple(tokens.space(n, tensor(sample[n].values / PERIOD), unit="m", period=1.0) for n in ("x", "y"))
        batch = TokenBatch(self.name, self.dataset, heights[:1], (CHANNEL,), axes,
                           conditions=Conditions({"lead_time": tensor([lead / DT])}), sources=(sample.attrs["source"],))
        target = self._ask(batch)
        if sample.sizes["time"] == 2:
            target = replace(target, value=heights[1:2], mask=torch.ones_like(target.mask))
        return replace(batch, targets={HEAD: target})

    def _ask(self, batch: TokenBatch) -> Target:
        change = tensor(self.baseline["change"]) / float(self.baseline["scale"][0])
        steps = batch.conditions.vector["lead_time"].round().long().clamp(max=len(change))
        scale = change[steps - 1].to(batch.values).view(-1, 1, 1, 1)
        return Target(batch.values, torch.zeros_like(scale, dtype=torch.bool), batch.values, scale)

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        height = predictions[HEAD][..., 0].detach().double().numpy() * self.baseline["scale"] + self.baseline["center"]
        coords = {a.name: (a.name, a.coord[0, :, 0].double().numpy() * PERIOD, {"units": "m"}) for a in batch.axes}
        return xr.Dataset({"height": (("sample", "x", "y"), height, {"units": "m"})}, coords=coords)

    def initial(self, sample: xr.Dataset) -> State:
        batch = self.encode(sample.isel(time=[0]))
        return State(batch)

    def advance(self, state: State, outputs: Outputs) -> State:
        batch = replace(state.batch, values=state.batch.targets[HEAD].predict(outputs[HEAD]))
        lead = float(batch.conditions.vector["lead_time"][0]) * DT
        return replace(state, batch=replace(batch, targets={HEAD: self._ask(batch)}), step=state.step + 1,
                       elapsed=state.elapsed + lead)

    def observe(self, state: State) -> xr.Dataset:
        now = self.decode(state.batch, {HEAD: state.batch.values})
        return now.assign_coords(time=((), state.elapsed, {"units": "s"}))

    def questions(self, store: MemoryStore, split: str) -> list[Question]:
        stretches = Listed([s.isel(time=slice(0, 4)) for s in store.of(split)])
        return [Question("direct", self.open(store, split)), Question("rollout_3", stretches, steps=3)]

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        error = (prediction["height"] - truth["height"]) ** 2
        return {"rmse": np.sqrt(error.mean(("x", "y")).to_numpy())}


PLUGIN = Grid
