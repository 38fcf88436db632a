"""Ragged dimensions: which ones a dataset has, what is wrong with them, and where each group's rows lie.

CF conventions 9.3.3, contiguous ragged array: rows of group g are ``offset[g] … offset[g + 1]`` of all that lead with
the dimension; a variable of role rows with the attribute ``sample_dimension`` says how many each group has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from sciml.data.schema import AxisMeta, Variable
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

Mistakes = list[tuple[str, str]]
_LARGEST = float(1 << 62)


def dims_of(dataset: xr.Dataset) -> dict[str, str]:
    """Ragged dimension → its variable of role rows, as far as the variables' attributes say; nothing is checked."""
    return {str(array.attrs["sample_dimension"]): str(name) for name, array in dataset.data_vars.items()
            if array.attrs.get("role") == "rows" and "sample_dimension" in array.attrs}


def declared(dataset: xr.Dataset, group_dim: str, where: object) -> dict[str, str]:
    """Ragged dimension → its variable of role rows, by the attributes of the variables.

    Raises one `InputError` that names every variable which doesn't lead with the group or a ragged dimension, has both
    or two ragged ones, and every variable of role rows that is no ``(group_dim,)`` of whole numbers, or counts what
    there is not, what another one counts, or what has a coordinate.
    """
    found: dict[str, str] = {}
    mistakes: Mistakes = []
    for key, array in dataset.data_vars.items():
        if array.attrs.get("role") != "rows":
            continue
        name, dim = str(key), array.attrs.get("sample_dimension")
        if not isinstance(dim, str) or dim not in dataset.dims or dim == group_dim:
            mistakes.append((name, f"role rows, sample_dimension {dim!r}, which is no dimension of rows"))
        elif dim in found:
            mistakes.append((name, f"rows of {dim}, as {found[dim]} has"))
        else:
            found[dim] = name
        if array.dims != (group_dim,) or array.dtype.kind not in "iu":
            mistakes.append((name, f"{array.dtype} {array.dims}, expected whole numbers ({group_dim!r},)"))
    for dim in found:
        mistakes += [(str(name), f"a coordinate along the ragged dimension {dim}: make it a variable")
                     for name, coord in dataset.coords.items() if dim in coord.dims]
    mistakes += [mistake for name, array in dataset.data_vars.items()
                 for mistake in _misplaced(str(name), tuple(map(str, array.dims)), group_dim, found)]
    _refuse(mistakes, where, f"{group_dim} first, or a ragged dimension that one variable (role rows, attribute "
                             f"sample_dimension) counts by {group_dim}", "name its dims in the source file")
    return found


def _misplaced(name: str, dims: tuple[str, ...], group_dim: str, ragged: Iterable[str]) -> Mistakes:
    rest = [dim for dim in dims[1:] if dim in ragged or dim == group_dim]
    if dims[:1] == (group_dim,):
        return [(name, f"dimensions {dims}, both {group_dim} and {rest[0]}")] if rest else []
    return [(name, f"dimensions {dims}")] if dims[:1] == () or dims[0] not in ragged or rest else []


def check_described(variables: Mapping[str, Variable], axes: Mapping[str, AxisMeta], ragged: Mapping[str, str],
                    where: object) -> None:
    """Raises one `InputError` that names every ragged dimension which is an axis too, or not counted by a variable of
    role rows of its own, and every variable of unknown or misplaced dimensions."""
    mistakes: Mistakes = [(dim, "both an axis and ragged") for dim in ragged if dim in axes]
    for dim, name in ragged.items():
        if name not in variables or variables[name].role != "rows" or variables[name].dims:
            mistakes.append((dim, f"rows by {name}, which is no variable of role rows without dims"))
    counted = list(ragged.values())
    for name, variable in variables.items():
        if variable.role == "rows" and counted.count(name) != 1:
            mistakes.append((name, f"rows of {counted.count(name)} dimensions"))
        wrong = [dim for i, dim in enumerate(variable.dims) if dim not in axes and (dim not in ragged or i)]
        timed = [dim for dim in variable.dims if dim in axes and axes[dim].kind == "time"]
        if wrong or timed not in ([], list(variable.dims[:1])):
            mistakes.append((name, f"dimensions {variable.dims}"))
    _refuse(mistakes, where, f"dims among {', '.join((*axes, *ragged))}, time or a ragged one first",
            "describe axes, transpose time to the front, give each ragged dimension its rows")


def _refuse(mistakes: Mistakes, where: object, expected: str, fix: str) -> None:
    if mistakes:
        names = dict.fromkeys(name for name, _ in mistakes)
        found = mistakes[0][1] if len(mistakes) == 1 else "; ".join(f"{name}: {text}" for name, text in mistakes)
        raise InputError(where, key=", ".join(names), found=found, expected=expected, fix=fix)


def offsets(rows: np.ndarray, size: int, *, dim: str, name: str, where: object) -> np.ndarray:
    """Where each group's rows begin, and the end: ``(groups + 1,)`` int64 from ``(groups,)`` numbers of rows.

    Raises `InputError` unless they are whole, none is negative and they add up to `size`.

    >>> offsets(np.array([2, 0, 3]), 5, dim="spike", name="spike_count", where="doc").tolist()
    [0, 2, 2, 5]
    """
    fix = "count the rows of every group anew"
    if rows.dtype.kind not in "iu":
        raise InputError(where, key=name, found=f"values of type {rows.dtype}", expected="whole numbers", fix=fix)
    if (rows < 0).any():
        at = int(np.argmax(rows < 0))
        raise InputError(where, key=name, found=f"{rows[at]} rows of {dim} in group {at}", expected="at least 0",
                         fix=fix)
    about = float(rows.sum(dtype=np.float64))
    total = int(rows.sum(dtype=np.int64)) if about < _LARGEST else int(about)
    if total != size:
        raise InputError(where, key=name, found=f"{total} rows of {dim} in all", expected=f"{size}, its size", fix=fix)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(rows, dtype=np.int64)])


def offsets_of(dataset: xr.Dataset, ragged: Mapping[str, str], where: object) -> dict[str, np.ndarray]:
    """`offsets` of each ragged dimension of a (lazy) dataset; the variables of role rows are read, nothing else."""
    return {dim: offsets(np.asarray(dataset[name].values), dataset.sizes.get(dim, 0), dim=dim, name=name, where=where)
            for dim, name in ragged.items()}
