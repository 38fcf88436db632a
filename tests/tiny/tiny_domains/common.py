"""What the tiny domains share: a store in memory, a baseline that is a few arrays, the plain half of an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Metric, Operate, Question
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, StoreMeta, Variable
from sciml.tokens import Outputs, TokenBatch


@dataclass(frozen=True)
class MemoryStore:
    """Samples held in memory, one per group; the last two groups are validation and test."""

    meta: StoreMeta
    samples: tuple[xr.Dataset, ...]
    url: str = "memory"

    def of(self, split: str) -> list[xr.Dataset]:
        return [self.samples[block.group] for block in self.meta.splits.of(split)]


def memory_store(domain: str, samples: Sequence[xr.Dataset], *, state: str, unit: str, dt: float | None) -> MemoryStore:
    blocks = [Block(group=i, start=0, stop=1) for i in range(len(samples))]
    splits = Splits(key="group", train=tuple(blocks[:-2]), validation=(blocks[-2],), test=(blocks[-1],))
    meta = StoreMeta(domain=domain, dataset=f"{domain}_data", group_dim="group", groups=len(samples),
                     variables={state: Variable(role="state", unit=unit, dims=("time",))},
                     axes={"time": AxisMeta(kind="time", unit="s")}, dt=dt, splits=splits, moments={},
                     provenance=Provenance(builder="memory"))
    named = [s.assign_attrs(domain=domain, dataset=meta.dataset, source=f"{domain}/group {i}")
             for i, s in enumerate(samples)]
    return MemoryStore(meta, tuple(named))


@dataclass(frozen=True)
class Listed:
    """Windows that are the samples themselves."""

    samples: Sequence[xr.Dataset]

    def __len__(self) -> int:
        return len(self.samples)

    def draw(self, index: int, rng: np.random.Generator, batch_rng: np.random.Generator) -> xr.Dataset:
        return self.samples[index]


@dataclass(frozen=True)
class Arrays:
    """A fitted baseline that is a few arrays."""

    kind: str = "unfitted"
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"kind": self.kind}, dict(self.arrays)

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(config["kind"], dict(arrays))


@dataclass(frozen=True)
class Tiny:
    """The half of an adapter that is the same for all of them. members: labels of identities."""

    baseline: Arrays = field(default_factory=Arrays)
    dataset: str = ""
    differentiate: tuple[str, ...] = ()
    objective: str = "mse"

    @property
    def baseline_name(self) -> str:
        return self.baseline.kind

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        return self

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(**config)

    def floor(self) -> Self:
        return self

    def open(self, store: MemoryStore, split: str, *, train: bool = False) -> Listed:
        return Listed(store.of(split))

    def starts(self, store: MemoryStore, split: str) -> list[xr.Dataset]:
        return store.of(split)

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def questions(self, store: MemoryStore, split: str) -> list[Question]:
        return [Question("direct", self.open(store, split))]  # type: ignore[arg-type]

    def metrics(self) -> tuple[Metric, ...]:
        return (Metric("rmse", "mixed", "root mean square over what is known of a sample, then mean", null=1.0),)

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        def squares(name: str) -> np.ndarray:
            return ((prediction[name] - truth[name]).to_numpy().astype(float) ** 2).reshape(len(truth[name]), -1)

        names = [str(n) for n in truth.data_vars if truth[n].dtype.kind == "f"]
        return {"rmse": np.sqrt(np.nanmean(np.concatenate([squares(n) for n in names], 1), 1))}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.baseline.state()
        return {"baseline": config, "dataset": self.dataset, "objective": self.objective}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(Arrays.restore(config["baseline"], arrays), config["dataset"], objective=config["objective"])


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())
