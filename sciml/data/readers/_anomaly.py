"""Option ``anomaly_column`` of tables: a column of 0 and 1 says at which times a series is anomalous.

It is read along with the variates and becomes the variable ``anomaly (…, time)``, role label, by which the task
`anomaly` is scored and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.readers._lattice import variable
from sciml.errors import InputError

OPTION, NAME = "anomaly_column", "anomaly"


def with_column(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under which the column is read as one more variate, whatever is listed.

    >>> with_column({"anomaly_column": "bad", "columns": ["load"], "units": {"load": "kW"}})["columns"]
    ['load', 'bad']
    """
    name, made = options.get(OPTION), dict(options)
    if name is None:
        return made
    if isinstance(made.get("columns"), (list, tuple)):
        made["columns"] = [*(each for each in made["columns"] if each != name), name]
    if isinstance(made.get("units"), Mapping):
        made["units"] = {**made["units"], name: "1"}
    return made


def split_off(dataset: xr.Dataset, options: Mapping[str, Any], where: object) -> xr.Dataset:
    """The column taken out of the variates of ``value (…, time, variate)``; rows that were filled in are no anomalies.

    Raises `InputError` if there is no such column, no variate beside it, or a row in which it is neither 0 nor 1.
    """
    name = options.get(OPTION)
    if name is None:
        return dataset
    variates = [str(each) for each in dataset["variate"].values]
    if name not in variates or len(variates) == 1:
        raise InputError(where, key=f"options.{OPTION}", found=repr(name), fix="correct the name, or list more columns",
                         expected=f"one of {', '.join(variates)}, and a variate beside it")
    place = variates.index(name)
    kept = [i for i in range(len(variates)) if i != place]
    value = dataset["value"]
    labels = np.asarray(value.isel(variate=place).values, np.float64)
    empty = np.isnan(labels)
    filled = empty & np.isnan(value.isel(variate=kept).values).all(-1)
    bad = ~np.isin(labels, (0.0, 1.0)) & ~filled
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        row = f"row {at[-1] + 1}" + (f" of series {at[0] + 1}" if labels.ndim > 1 and labels.shape[0] > 1 else "")
        raise InputError(where, key=f"column {name}", found=f"{labels[at]:g} in {row}", expected="0 or 1 in every row",
                         fix="mend the row: 1 where the series is anomalous")
    rest = dataset.isel(variate=kept)
    dims = [str(dim) for dim in value.dims[:-1]]
    return rest.assign({NAME: variable(dims, np.where(filled, 0.0, labels), "label", "1")})
