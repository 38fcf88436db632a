"""Graphs of torch-geometric that are in memory: `dataset_of` makes configurations of them, files are never loaded.

``torch_geometric.loader`` and ``InMemoryDataset`` read files by pickle, which runs what a file says; so load them
yourself, if you trust them, and hand over the objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.readers import _molecules as molecules
from sciml.data.readers._molecules_frames import Judge
from sciml.data.readers._molecules_list import Frame, FrameList, per_atom
from sciml.data.readers._molecules_options import molecule_options
from sciml.errors import InputError

WHERE = "torch-geometric data"
LEFT = frozenset({"edge_index", "edge_attr", "edge_weight", "batch", "ptr", "num_nodes", "idx", "name", "x"})


def dataset_of(data: Iterable[Any], **options: Any) -> xr.Dataset:
    """``Data`` objects (a list, an ``InMemoryDataset``, anything that gives them) as configurations in the canonical
    layout.

    Of each, `z` are atomic numbers and `pos` positions; every other tensor of numbers is a key: of the atoms if its
    first axis is theirs, else of the frame (a leading axis of 1 is dropped; columns of `y` are `y_0`, `y_1`, … if
    there are several). `smiles` says what the molecule is, `cell` and `pbc` make it periodic. options: as in a
    source.yaml, such as ``energy="y_7", energy_unit="eV", length_unit="angstrom"``, because the objects have no units.
    Raises `InputError`.
    """
    items = list(data)
    tensors = [{key: _numbers(value) for key, value in _items(item, index)} for index, item in enumerate(items)]
    seen: dict[str, set[tuple[int, tuple[int, ...]]]] = {}
    for held in tensors:
        z = held.get("z")
        count = 0 if z is None else z.size
        for key, array in held.items():
            if array is not None and key not in LEFT | {"z", "pos", "cell", "pbc"}:
                seen.setdefault(key, set()).add((count, array.shape))
    of_atoms = {key for key, places in seen.items() if per_atom(places)}
    frames = [_frame(item, tensors[index], of_atoms, index) for index, item in enumerate(items)]
    chosen = molecule_options(options, WHERE)
    return molecules.dataset([FrameList.of(WHERE, frames, {})], chosen, Judge(), format="torch_geometric")


def _items(item: Any, index: int) -> list[tuple[str, Any]]:
    if not callable(getattr(item, "to_dict", None)):
        raise InputError(WHERE, key=f"frame {index}", found=type(item).__name__,
                         expected="torch_geometric.data.Data objects", fix="hand over a list of them, or a dataset")
    return list(item.to_dict().items())


def _numbers(value: Any) -> np.ndarray | None:
    """A tensor or number in float64; None for anything else."""
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu().numpy()
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.ndarray):
        return None
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind in "iufb" else None


def _frame(item: Any, held: Mapping[str, np.ndarray | None], of_atoms: set[str], index: int) -> Frame:
    z, pos = held.get("z"), held.get("pos")
    if z is None or pos is None:
        raise InputError(WHERE, key=f"frame {index}", found=f"keys {', '.join(sorted(held))}",
                         expected="z (atomic numbers) and pos (positions)", fix="rename them before handing them over")
    atoms: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for key, array in held.items():
        if array is None or key in LEFT or key in ("z", "pos", "cell", "pbc"):
            continue
        if key in of_atoms:
            atoms[key] = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
            continue
        array = array[0] if array.ndim > 1 and len(array) == 1 else array
        if key == "y" and array.ndim == 1 and len(array) > 1:
            values |= {f"y_{i}": np.asarray(value) for i, value in enumerate(array)}
        else:
            values[key] = array.reshape(()) if array.size == 1 else array
    cell, pbc = held.get("cell"), held.get("pbc")
    flags = (0, 0, 0) if cell is None else (-1, -1, -1)
    if cell is not None and pbc is not None:
        flags = (int(pbc.flat[0]), int(pbc.flat[1]), int(pbc.flat[2]))
    return Frame(z.reshape(-1).astype(np.int32), pos, atoms, values, None if cell is None else cell.reshape(3, 3),
                 flags, str(getattr(item, "smiles", "") or ""))
