"""Small stores of series: gestures of three classes in unequal pace, and a plant with a daily course."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store

NAMES = ("slow", "fast", "rising")


def gestures_store(folder: Path, count: int = 60, steps: int = 20, name: str = "gestures") -> Store:
    """``count`` series of `steps` steps of two variates; the class is the shape of the first."""
    rng = np.random.default_rng(5)
    t, label = np.linspace(0, 1, steps), np.arange(count) % len(NAMES)
    shapes = np.stack([np.sin(2 * np.pi * t), np.sin(6 * np.pi * t), 2 * t - 1])
    value = np.stack([shapes[label], np.broadcast_to(np.cos(2 * np.pi * t), (count, steps))], -1)
    value = value * rng.uniform(0.7, 1.3, (count, 1, 1)) + 0.2 * rng.normal(size=value.shape)
    data = {"value": (("series", "time", "variate"), value), "label": (("series",), label)}
    variables = {"value": Variable(role="state", unit="1", dims=("time", "variate")),
                 "label": Variable(role="label", unit="1", dims=())}
    axes = {"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1"),
            "class": AxisMeta(kind="set", unit="1")}
    coords = {"time": np.arange(steps) * 0.05, "variate": ["hand", "elbow"], "class": list(NAMES),
              "variate_unit": ("variate", ["m", "m"])}
    return written(folder, name, data, coords, variables, axes, steps, *(
        np.split(np.arange(count), [count // 2, 3 * count // 4])))


def written(folder: Path, name: str, data: Any, coords: Any, variables: Any, axes: Any, steps: int,
            *parts: np.ndarray) -> Store:
    train, validation, test = (tuple(Block(group=int(g), start=0, stop=steps) for g in part) for part in parts)
    made = xr.Dataset(data, coords=coords)
    draft = StoreDraft(domain="series", dataset=name, group_dim="series", groups=made.sizes["series"],
                       variables=variables, axes=axes, dt=float(np.diff(coords["time"][:2])[0]),
                       splits=Splits(key="series", train=train, validation=validation, test=test),
                       provenance=Provenance(builder="test"))
    return write_store(made, draft, folder / f"{name}.zarr")
