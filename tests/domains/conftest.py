"""Small stores of fields on any grid: a travelling wave and its harmonics, a forcing and a parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store


def waves(shape: tuple[int, ...], *, groups: int = 4, frames: int = 8, dt: float = 0.5, periodic: bool = True,
          states: tuple[str, ...] = ("u",), dataset: str = "waves", unit: str = "m/s") -> tuple[xr.Dataset, StoreDraft]:
    names = ("x", "y", "z")[: len(shape)]
    rng = np.random.default_rng(7)
    time = np.arange(frames) * dt
    grids = np.meshgrid(*(np.arange(n) / n * 2.0 for n in shape), indexing="ij")
    phase = np.pi * sum((i + 1) * g for i, g in enumerate(grids))
    shift = rng.uniform(0, 6, groups).reshape(-1, 1, *[1] * len(shape))
    t = time.reshape(1, -1, *[1] * len(shape))
    dims = ("trajectory", "time", *names)
    data = {s: (dims, (3 + (k + 2) * np.sin(phase + shift + t * (k + 1))).astype(np.float32))
            for k, s in enumerate(states)}
    data["force"] = (("trajectory", *names), np.broadcast_to(np.cos(phase), (groups, *shape)).astype(np.float32))
    data["nu"] = (("trajectory",), 10.0 ** -np.arange(1, groups + 1))
    coords = {"time": time} | {n: np.arange(m) / m * 2.0 for n, m in zip(names, shape)}
    variables = {s: Variable(role="state", unit=unit, dims=("time", *names)) for s in states}
    variables["force"] = Variable(role="forcing", unit="m/s2", dims=names)
    variables["nu"] = Variable(role="parameter", unit="m2/s", dims=())
    axes = {"time": AxisMeta(kind="time", unit="s")} | {
        n: AxisMeta(kind="space", unit="m", period=2.0 if periodic else None) for n in names}

    def blocks(members: range) -> tuple[Block, ...]:
        return tuple(Block(group=g, start=0, stop=frames) for g in members)

    splits = Splits(key="trajectory", train=blocks(range(groups - 2)), validation=blocks(range(groups - 2, groups - 1)),
                    test=blocks(range(groups - 1, groups)))
    draft = StoreDraft(domain="fields", dataset=dataset, group_dim="trajectory", groups=groups, variables=variables,
                       axes=axes, dt=dt, splits=splits, provenance=Provenance(builder="test"))
    return xr.Dataset(data, coords=coords), draft


@pytest.fixture
def wave_data() -> Callable[..., tuple[xr.Dataset, StoreDraft]]:
    return waves


@pytest.fixture
def wave_store(tmp_path: Path) -> Callable[..., Store]:
    """``wave_store(shape, **options of waves)`` writes a store and opens it."""
    def make(shape: tuple[int, ...], **options: Any) -> Store:
        dataset, draft = waves(shape, **options)
        return write_store(dataset, draft, tmp_path / f"{draft.dataset}_{len(shape)}.zarr", overwrite=True)
    return make
