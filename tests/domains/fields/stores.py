"""Small stores of fields that `tests.domains.conftest.waves` doesn't make: steady problems, and velocities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store


def put(folder: Path, data: Any, coords: Any, variables: Any, axes: Any, *, dt: float | None, frames: int,
        dataset: str) -> Store:
    made = xr.Dataset(data, coords=coords)
    count = made.sizes["trajectory"]

    def blocks(members: Sequence[int]) -> tuple[Block, ...]:
        return tuple(Block(group=g, start=0, stop=frames) for g in members)

    splits = Splits(key="trajectory", train=blocks(range(count - 2)), validation=blocks([count - 2]),
                    test=blocks([count - 1]))
    draft = StoreDraft(domain="fields", dataset=dataset, group_dim="trajectory", groups=count, variables=variables,
                       axes=axes, dt=dt, splits=splits, provenance=Provenance(builder="test"))
    return write_store(made, draft, folder / f"{dataset}.zarr", overwrite=True)


def poisson_store(folder: Path, size: int = 16, cases: int = 6, *, periodic: bool = False, noise: float = 0.0) -> Store:
    """−Δu = f: f and u are sines of walls (or of a periodic box) with amplitudes of their own, f has the sign +."""
    rng, names = np.random.default_rng(5), ("x", "y")
    place = np.arange(size) / size if periodic else np.linspace(0, 1, size)
    grid = np.meshgrid(place, place, indexing="ij")
    wave = 2 * np.pi if periodic else np.pi
    modes = [np.sin(wave * (i + 1) * grid[0]) * np.sin(wave * (j + 1) * grid[1]) for i in range(2) for j in range(2)]
    laplace = [wave**2 * ((i + 1) ** 2 + (j + 1) ** 2) for i in range(2) for j in range(2)]
    size_of = rng.normal(size=(cases, 4)) + (0 if periodic else np.array([4.0, 0, 0, 0]))
    f = np.einsum("cm,mxy->cxy", size_of, np.stack(modes))
    u = np.einsum("cm,mxy->cxy", size_of / np.array(laplace), np.stack(modes)) + noise * rng.normal(size=f.shape)
    dims = ("trajectory", *names)
    data = {"u": (dims, u.astype(np.float32)), "f": (dims, f.astype(np.float32))}
    variables = {"u": Variable(role="state", unit="K", dims=names),
                 "f": Variable(role="forcing", unit="K/m2", dims=names)}
    axes = {n: AxisMeta(kind="space", unit="m", period=1.0 if periodic else None) for n in names}
    return put(folder, data, dict.fromkeys(names, place), variables, axes, dt=None, frames=1, dataset="poisson")


def velocity(shape: Sequence[int], count: int, seed: int = 0) -> np.ndarray:
    """``(count, d, *shape)`` band-limited random velocities without divergence on the box of period 1."""
    rng = np.random.default_rng(seed)
    waves = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij")
    square = sum(w**2 for w in waves)
    keep = (square <= 30) & (square > 0)
    for wave, n in zip(waves, shape):
        keep &= 2 * abs(wave) < n
    field = np.fft.fftn(rng.normal(size=(count, len(shape), *shape)), axes=range(2, 2 + len(shape))) * keep
    along = sum(w * field[:, i] for i, w in enumerate(waves)) / np.where(square > 0, square, 1)
    field = field - np.stack([w * along for w in waves], 1)
    return np.fft.ifftn(field, axes=range(2, 2 + len(shape))).real


def flow_store(folder: Path, shape: Sequence[int] = (12, 12), frames: int = 5, groups: int = 5, *,
               vectors: bool = True) -> Store:
    """A decaying velocity without divergence, a tracer, a force, and codes of boundaries that nobody meets."""
    names = ("x", "y", "z")[: len(shape)]
    start = velocity(shape, 2 * groups).reshape(2, groups, len(shape), *shape)
    decay = np.exp(-0.3 * np.arange(frames)).reshape(1, -1, *[1] * len(shape))
    dims, data, variables = ("trajectory", "time", *names), {}, {}
    for i, name in enumerate(names):
        data[f"velocity_{name}"] = (dims, (start[0, :, i, None] * decay + 0.2 * start[1, :, i, None] * (1 - decay)
                                           ).astype(np.float32))
        variables[f"velocity_{name}"] = Variable(role="state", unit="m/s", dims=("time", *names),
                                                 along=(name,) * vectors, vector="velocity" * vectors)
        data[f"force_{name}"] = (("trajectory", *names), start[1, :, i].astype(np.float32))
        variables[f"force_{name}"] = Variable(role="forcing", unit="m/s2", dims=names, along=(name,) * vectors,
                                              vector="force" * vectors)
    data["tracer"] = (dims, (3 + start[1, :, 0, None] * decay).astype(np.float32))
    variables["tracer"] = Variable(role="state", unit="kg/m3", dims=("time", *names))
    axes = {"time": AxisMeta(kind="time", unit="s")} | {n: AxisMeta(kind="space", unit="m", period=1.0) for n in names}
    coords = {"time": np.arange(frames) * 0.5} | {n: np.arange(m) / m for n, m in zip(names, shape)}
    return put(folder, data, coords, variables, axes, dt=0.5, frames=frames, dataset="flow")
