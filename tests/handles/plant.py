"""A small plant whose load and oil follow the hour of the day, and an operator that was never trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.series.adapter import Series
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.testing.parameters import stir

NETWORK = {"levels": [{"width": 16, "depth": 1, "mixers": ["axial", "local"], "head_width": 8}], "stem_width": 8}
HOURS, LOOK_BACK, HORIZONS = 900, 24, [6, 12]
VARIATES = ("load", "oil")


def plant(folder: Path, *, covariate: bool = False, name: str = "plant") -> Store:
    """Two variates with a daily course, hourly, and if asked for a covariate that they follow."""
    rng = np.random.default_rng(3)
    shift = rng.integers(-1, 2, HOURS).astype(float)
    value = np.stack([5 + np.sin(2 * np.pi * np.arange(HOURS) / 24 + i) + 0.3 * rng.standard_normal(HOURS)
                      for i in range(2)], -1) + (shift[:, None] if covariate else 0.0)
    data: dict[str, Any] = {"value": (("series", "time", "variate"), value[None])}
    coords: dict[str, Any] = {"time": pd.date_range("2020-01-01", periods=HOURS, freq="h").to_numpy(),
                              "variate": list(VARIATES), "variate_unit": ("variate", ["MW", "degC"])}
    variables = {"value": Variable(role="state", unit="1", dims=("time", "variate"))}
    axes = {"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1")}
    if covariate:
        data |= {"covariate_value": (("series", "time", "covariate"), shift[None, :, None]),
                 "static_value": (("series", "static"), [[2.0]])}
        coords |= {"covariate": ["shift"], "static": ["size"]}
        variables |= {"covariate_value": Variable(role="forcing", unit="1", dims=("time", "covariate")),
                      "static_value": Variable(role="parameter", unit="1", dims=("static",))}
        axes |= {n: AxisMeta(kind="set", unit="1") for n in ("covariate", "static")}
    train, validation, test = ((Block(group=0, start=a, stop=b),) for a, b in ((0, 500), (500, 700), (700, HOURS)))
    splits = Splits(key="time", train=train, validation=validation, test=test)
    draft = StoreDraft(domain="series", dataset=name, group_dim="series", groups=1, variables=variables, axes=axes,
                       dt=3600.0, splits=splits, provenance=Provenance(builder="test"))
    return write_store(xr.Dataset(data, coords=coords), draft, folder / f"{name}.zarr")


def predictor_of(store: Store, size: float = 0.1, **config: Any) -> Predictor:
    adapter = Series.create({"look_back": LOOK_BACK, "horizons": HORIZONS, "patch": 6, **config}).fit(store)
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate(NETWORK), {"series": adapter.spec()})
    stir(operator, size=size)
    return Predictor(operator, {"series": adapter})


def frame_of(store: Store, start: int = 700, rows: int = LOOK_BACK) -> pd.DataFrame:
    value = store.read("value", 0, start, start + rows)
    return pd.DataFrame({"timestamp": store.coord("time")[start:start + rows], **dict(zip(VARIATES, value.T))})


def long_of(store: Store, names: list[Any], lengths: list[int]) -> pd.DataFrame:
    """The same plant at other times, under these names."""
    return pd.concat([frame_of(store, 300 + 31 * i, length).assign(id=name)
                      for i, (name, length) in enumerate(zip(names, lengths))], ignore_index=True)
