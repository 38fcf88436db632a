"""Rollouts of molecules as extended XYZ: what ASE, OVITO and VMD read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.files import replacing
from sciml.domains.molecules.elements import symbols_of
from sciml.errors import InputError


def write_extxyz(rollout: str | Path, out: str | Path, *, sample: int = 0, every: int = 1) -> int:
    """Write every `every`-th frame of one sample of a rollout's Zarr; returns how many there are. Positions in Å;
    ``energy`` (eV, element references included) and ``kinetic_energy``, known of all frames but the last; ``time`` in
    fs; velocities (Å/fs) and the lattice where the rollout has them. Constant memory; the file appears when whole.

    Raises `InputError` if it is no rollout of molecules, or has no such sample or no frame.
    """
    import zarr

    path, rollout = Path(out), Path(rollout)
    if not (rollout / "zarr.json").is_file():
        raise InputError(rollout, found="no Zarr group", expected="what `sciml rollout` wrote", fix="check the path")
    group = zarr.open_group(rollout, mode="r")
    if group.attrs.get("domain") != "molecules" or "position" not in group:
        raise InputError(rollout, key="domain", found=repr(group.attrs.get("domain")), expected="molecules",
                         fix="choose a rollout of a molecule")
    arrays: dict[str, Any] = dict(group.arrays())
    if not 0 <= sample < arrays["position"].shape[0]:
        raise InputError(rollout, key="sample", found=sample, expected=f"0 to {arrays['position'].shape[0] - 1}",
                         fix="choose another sample")
    written = 0
    with replacing(path) as partial:
        with open(partial, "w", encoding="utf-8") as file:
            for text in _frames(arrays, sample, every):
                file.write(text)
                written += 1
        if not written:
            raise InputError(rollout, key="position", found="no finite frame", expected="at least one",
                             fix="the rollout stopped at its first step, or has not begun")
    return written


def _frames(arrays: dict[str, Any], sample: int, every: int) -> Iterator[str]:
    """Until the rollout ends or stops; energies are those that the following step found."""
    steps = arrays["position"].shape[1]
    for step in range(every - 1, steps, every):
        numbers = np.asarray(arrays["number"][sample, step])
        present = np.isfinite(numbers)
        position = np.asarray(arrays["position"][sample, step])[present]
        if not present.any() or not np.isfinite(position).all():
            return
        columns, values = "species:S:1:pos:R:3", [position]
        if "velocity" in arrays:
            columns += ":velo:R:3"
            values.append(np.asarray(arrays["velocity"][sample, step])[present])
        said = [f"Properties={columns}", f"time={float(arrays['time'][sample, step]):.10g}"]
        for name, key in (("potential_energy", "energy"), ("kinetic_energy", "kinetic_energy")):
            value = float(arrays[name][sample, step + 1]) if name in arrays and step + 1 < steps else np.nan
            if np.isfinite(value):
                said.append(f"{key}={value:.12g}")
        said += _lattice(arrays, sample, step)
        rows = np.concatenate(values, 1)
        lines = [f"{symbol:<2} {' '.join(f'{x:.10f}' for x in row)}"
                 for symbol, row in zip(symbols_of(numbers[present].astype(int), "rollout"), rows)]
        yield "\n".join([str(len(rows)), " ".join(said), *lines, ""])


def _lattice(arrays: dict[str, Any], sample: int, step: int) -> list[str]:
    if "cell" not in arrays:
        return ['pbc="F F F"']
    cell = np.asarray(arrays["cell"][sample, step])
    flags = " ".join("T" if row.any() else "F" for row in cell)
    return [f'Lattice="{" ".join(f"{x:.10g}" for x in cell.ravel())}"', f'pbc="{flags}"']
