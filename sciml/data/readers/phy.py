"""A folder of Kilosort or Phy: ``spike_times.npy`` (samples), ``spike_clusters.npy``, ``params.py``, ``cluster_*.tsv``.

Options: `labels` (groups of clusters to keep, ``good`` unless told; ``all`` keeps every cluster), `label_column` (of
the tables; ``group``, else ``KSLabel``), `sample_rate` (Hz, where params.py has none), and those of all spikes.
``params.py`` is read as text, never run: a line ``sample_rate = 30000.``. The recording starts at sample 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciml.data.files import is_folder, local_path
from sciml.data.readers._combine import options_of
from sciml.data.readers._guarded import npy_array
from sciml.data.readers._spike_join import recordings
from sciml.data.readers._spikes import OPTIONS, Beside, by_unit, events_dataset, rules_of, unit_labels
from sciml.data.readers.guess import SAMPLE_BYTES, Guess, guess
from sciml.data.safety import Limits, limits_of
from sciml.errors import InputError

NEEDED = ("spike_times.npy", "spike_clusters.npy")
TABLES = ("cluster_info.tsv", "cluster_group.tsv", "cluster_KSLabel.tsv")
RATE = re.compile(r"^sample_rate\s*=\s*(\d+(?:\.\d*)?(?:[eE]\+?\d+)?)\s*(?:#.*)?$", re.MULTILINE)
TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class Phy:
    """Reads sorted spikes; one folder is one recording."""

    options: frozenset[str] = OPTIONS | {"labels", "label_column", "sample_rate"}

    def recognise(self, path: str, limit_bytes: int = SAMPLE_BYTES) -> Guess | None:
        folder = local_path(path)
        if folder is None or not is_folder(path) or not all((folder / name).exists() for name in NEEDED):
            return None
        return guess(self.read([path], None), path, limit_bytes=limit_bytes)

    def read(self, paths: Sequence[str], source: Any) -> xr.Dataset:
        """Events ``spike_time (spike)`` in s of the clusters kept."""
        options = options_of(source)
        return recordings([_read(str(path), options) for path in paths], paths, source)


PLUGIN = Phy()


def _read(path: str, options: Mapping[str, Any]) -> xr.Dataset:
    folder, limits, rules = local_path(path), limits_of(options, path), rules_of(options, path)
    if folder is None or not folder.is_dir():
        raise InputError(path, found="no folder of this machine", expected="a folder of Kilosort or Phy",
                         fix="copy it here and name the folder")
    rate = _sample_rate(folder, options)
    times, clusters = (_rows(folder / name, limits) for name in NEEDED)
    if times.shape != clusters.shape:
        raise InputError(folder / NEEDED[1], found=f"{len(clusters)} clusters for {len(times)} spikes",
                         expected="one per spike", fix="export both files again")
    present = np.unique(clusters)
    chosen, table, notes = _clusters(folder, present, options)
    empty = [int(i) for i in table.index if i not in set(present.tolist()) and i in set(chosen)]
    notes += [f"{len(empty)} listed clusters have no spikes"] if empty else []
    unlisted = [int(i) for i in present if i not in table.index] if len(table) else []
    notes += [f"{len(unlisted)} clusters with spikes are in no table and are left out"] if unlisted else []
    trains = by_unit(times, clusters, chosen, path)
    coords = {"depth": table["depth"].reindex(chosen).to_numpy(np.float64)} if "depth" in table else {}
    coords |= {"channel": table["ch"].reindex(chosen).to_numpy(np.float64)} if "ch" in table else {}
    rules = replace(rules, start=0.0 if rules.start is None else rules.start)
    return events_dataset([train / rate for train in trains], unit_labels(chosen, path), rules, where=path,
                          format="phy", beside=Beside(units=coords, notes=notes))


def _rows(path: Path, limits: Limits) -> np.ndarray:
    values = npy_array(path, limits)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(path, found=f"shape {values.shape} of {values.dtype}", expected="a list of whole numbers",
                         fix="export it again; for times in seconds use the formats npz or spike_table")
    return values


def _sample_rate(folder: Path, options: Mapping[str, Any]) -> float:
    given = options.get("sample_rate")
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < 1e9:
        return float(given)
    if given is not None:
        raise InputError(folder, key="options.sample_rate", found=repr(given)[:60], expected="samples per second",
                         fix="for example sample_rate: 30000")
    path = folder / "params.py"
    lines = RATE.findall(_text(path)) if path.exists() else []
    if len(lines) != 1 or not float(lines[0]) > 0:
        raise InputError(path, key="sample_rate", found=f"{len(lines)} lines that say it as a number" if path.exists()
                         else "no such file", expected="a line like sample_rate = 30000. (the file is not run)",
                         fix="give it in the source: options: {sample_rate: 30000}")
    return float(lines[0])


def _text(path: Path) -> str:
    if path.stat().st_size > TEXT_BYTES:
        raise InputError(path, found=f"{path.stat().st_size} bytes", expected=f"at most {TEXT_BYTES}",
                         fix="don't use this folder")
    return path.read_text(encoding="utf-8", errors="replace")


def _clusters(folder: Path, present: np.ndarray,
              options: Mapping[str, Any]) -> tuple[list[int], pd.DataFrame, list[str]]:
    """Ids of the clusters kept, ascending; the table by id; notes. Raises `InputError` if no table has the labels."""
    wanted, column = options.get("labels", "good"), options.get("label_column")
    if wanted == "all":
        table = next((t for name in TABLES if (t := _table(folder / name)) is not None), pd.DataFrame())
        return sorted({*present.tolist(), *table.index.tolist()}), table.reindex(
            sorted({*present.tolist(), *table.index.tolist()})), []
    labels = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in TABLES:
        table = _table(folder / name)
        for key in ((column,) if column else ("group", "KSLabel")):
            if table is not None and key in table and table[key].notna().any():
                kept = table.index[table[key].isin(labels)]
                counted = ", ".join(f"{n} {label}" for label, n in table[key].value_counts().items())
                if not len(kept):
                    raise InputError(folder / name, key=key, found=counted, expected=f"clusters that are {labels}",
                                     fix="options: {labels: [good, mua]}, or labels: all")
                return sorted(kept.tolist()), table, [f"clusters {key} in {labels} of {name} are kept ({counted})"]
    raise InputError(folder, key=str(column or "group"), found="no table with this column",
                     expected=f"labels of the clusters in one of {', '.join(TABLES)}",
                     fix="options: {labels: all} keeps every cluster; label_column names another column")


def _table(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    _text(path)
    try:
        table = pd.read_csv(path, sep="\t")
        key = "cluster_id" if "cluster_id" in table else "id"
        table = table.set_index(table[key].astype(np.int64))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(path, found=" ".join(str(error).split())[:120], expected="a table with cluster_id",
                         fix="export it again from Phy") from None
    if table.index.has_duplicates:
        raise InputError(path, key="cluster_id", found=f"{table.index[table.index.duplicated()][0]} twice",
                         expected="each cluster once", fix="export it again from Phy")
    return table
