"""What a potential does: predictions against labels, its dynamics, the oracle's judgement, the conservation card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.errors import InputError
from sciml.report.charts import BASELINE, INK, MUTED, OURS, RULE, Line, Picture, draw, figure, legend, to_svg
from sciml.report.run import Run
from sciml.report.scores import text

MOST_POINTS, MOST_TIMES, PANELS = 1500, 600, 3
MILLI = {"energy": ("meV", 1e3), "forces": ("meV/Å", 1e3)}
FIRST = ("energy", "forces")
TONES = {"holds": "better", "fails": "worse"}


def cards(run: Run) -> list[tuple[str, list[dict[str, str]]]]:
    """Data set and rows of every card that an evaluation holds, as they are printed."""
    return [(name, [{"name": row["name"], "value": text(row.get("value")), "unit": _unit(row.get("unit")),
                     "limit": "" if row.get("limit") is None else text(row["limit"]), "verdict": row.get("verdict", ""),
                     "tone": TONES.get(row.get("verdict", ""), "open"), "note": row.get("note", "")}
                    for row in evaluation["card"]])
            for name, evaluation in run.evaluations.items() if evaluation.get("card")]


def predicted(dataset: str, path: Path) -> list[Picture]:
    """Of direct predictions: what was predicted against what is known, a panel per label; energies less the mean of the
    labels."""
    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False)
    names = [str(name) for name in store.data_vars if f"{name}_truth" in store and store[name].dtype.kind == "f"]
    names.sort(key=lambda name: (name not in FIRST, name))  # a folder lists its arrays in any order
    shown = [one for one in ((name, *_pairs(store, name)) for name in names) if len(one[1])][:PANELS]
    if not shown:
        return []
    words = []
    with figure(1, len(shown), size=(3.1 * len(shown), 3.0)) as (drawing, axes):
        for ax, (name, truth, ours) in zip(axes[0], shown):
            unit, factor = MILLI.get(name, (str(store[name].attrs.get("units", "")), 1.0))
            shift = 0.0 if name == "forces" else truth.mean()
            low, high = float((truth - shift).min()), float((truth - shift).max())
            kept = np.linspace(0, len(truth) - 1, min(len(truth), MOST_POINTS)).astype(int)
            ax.plot([low, high], [low, high], color=RULE, linewidth=1, zorder=1)
            ax.plot((truth - shift)[kept], (ours - shift)[kept], "o", color=OURS, markersize=2.2, alpha=0.5,
                    markeredgewidth=0)
            rmse = factor * float(np.sqrt(np.mean((ours - truth) ** 2)))
            plain = _unit(store[name].attrs.get("units", ""))
            ax.set(xlabel=f"label, {plain}", ylabel="predicted", title=name.replace("_", " "))
            ax.set_aspect("equal", adjustable="datalim")
            words.append(f"{name.replace('_', ' ')} RMSE {text(rmse)} {unit}")
        svg = to_svg(drawing, f"Predicted against labels: {'; '.join(words)}", f"parity {dataset} {path}")
    caption = (f"{store.sizes['sample']} configurations, spread over the split: {', '.join(words)}. What is one number "
               "for a configuration is shown less the mean of its labels.")
    return [Picture(svg, caption, f"Predicted against labels, {dataset}")]


def _pairs(store: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Known values and their predictions, flat."""
    truth, ours = (np.asarray(store[key].values, np.float64).ravel() for key in (f"{name}_truth", name))
    known = np.isfinite(truth) & np.isfinite(ours)
    return truth[known], ours[known]


def moved(dataset: str, path: Path) -> list[Picture]:
    """Of a rollout: energies against time and the distances between atoms, of its first sample."""
    from sciml.handles.distributions import RADIAL_ANGSTROM, all_pairs, distances, histogram

    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False).isel(sample=0)
    places = np.asarray(store["position"].values, np.float64)
    places = places[:, np.isfinite(np.asarray(store["number"].values)[0])]
    places = places[np.isfinite(places).all((1, 2))]
    if len(places) < 2:
        return []
    time = np.asarray(store["time"].values)[: len(places)]
    kept = np.linspace(0, len(time) - 1, min(len(time), MOST_TIMES)).astype(int)
    potential, kinetic = (1e3 * np.asarray(store[f"{kind}_energy"].values)[: len(places)]
                          for kind in ("potential", "kinetic"))
    total = potential + kinetic
    atoms = places.shape[1]
    with figure(1, 2, size=(8.2, 2.9)) as (drawing, axes):
        lines = [Line(time[kept], (values - values[0])[kept], label, color)
                 for label, values, color in (("potential", potential, BASELINE), ("kinetic", kinetic, MUTED),
                                              ("total", total, OURS))]
        draw(axes[0, 0], lines, x_label="fs", y_label="meV since the start")
        axes[0, 0].set_title("Energy")
        if atoms > 1:
            _distances(axes[0, 1], {"model": histogram(distances(places, all_pairs(atoms)).ravel(), RADIAL_ANGSTROM)})
            axes[0, 1].set_title("All distances between atoms")
        legend(drawing, axes[0, 0])
        spread = float(total.std() / atoms)
        svg = to_svg(drawing, f"Energy over {time[-1]:.0f} fs of dynamics, and the distances between atoms",
                     f"motion {dataset} {path}")
    stopped = dict(store.attrs.get("stopped", {})).get("0")
    end = f" It stopped at step {stopped}: not finite." if stopped is not None else ""
    return [Picture(svg, f"{time[-1] * 1e-3:.3g} ps of {atoms} atoms, mean kinetic temperature "
                         f"{_kelvin(kinetic, atoms):.0f} K; standard deviation of the total energy {text(spread)} "
                         f"meV/atom.{end}", f"Molecular dynamics, {dataset}")]


def _kelvin(kinetic_mev: np.ndarray, atoms: int) -> float:
    from sciml.domains.molecules.dynamics import BOLTZMANN

    return float(kinetic_mev.mean()) * 1e-3 / (1.5 * atoms * BOLTZMANN)


def _distances(ax: Any, shown: Mapping[str, Any]) -> None:
    for label, one in shown.items():
        used = np.flatnonzero(one.counts)
        part = slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2)
        ax.stairs(one.density[part], one.edges[part.start: part.stop + 1], color=OURS, label=label, linewidth=1.4)
    ax.set(xlabel="Å", ylabel="density, 1/Å")


def consulted(dataset: str, found: Mapping[str, Any]) -> list[Picture]:
    """Of the oracle's judgement: the error of forces along the model's own dynamics, and distributions of distances
    beside the oracle's."""
    pictures, errors = [], found["errors"]
    theory, length = found["theory"], found["steps"] * found["dt_fs"] * 1e-3
    if errors["time_fs"]:
        time = np.asarray(errors["time_fs"], np.float64)
        lines = [Line(time, np.asarray(errors[f"force_{kind}"], np.float64), label, color)
                 for kind, label, color in (("rmse", "root mean square", OURS), ("mae", "mean absolute", MUTED))]
        with figure(size=(6.6, 2.6)) as (drawing, axes):
            draw(axes[0, 0], lines, x_label="fs", y_label="force error, meV/Å")
            axes[0, 0].set_ylim(bottom=0)
            legend(drawing, axes[0, 0])
            svg = to_svg(drawing, f"Force error against {theory} over {length:.3g} ps", f"oracle error {dataset}")
        ends = [text(float(lines[0].y[i])) for i in (0, -1)]
        pictures.append(Picture(svg, f"{len(time)} frames of the model's own dynamics, labelled by {theory}: root mean "
                                     f"square {ends[0]} meV/Å in the first, {ends[1]} in the last.",
                                f"Force error along the model's dynamics, {dataset}"))
    rows = [one for one in found["distributions"] if one["divergence_bits"] is not None]
    return pictures + ([_beside(dataset, theory, rows, found)] if rows else [])


def _beside(dataset: str, theory: str, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Picture:
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    with figure(lines, columns, size=(2.9 * columns, 0.5 + 2.2 * lines)) as (drawing, axes):
        for ax, one in zip(axes.flat, rows):
            edges = np.asarray(one["edges"])
            ax.stairs(np.asarray(one["oracle"]), edges, color=INK, label=theory, linewidth=1.4)
            ax.stairs(np.asarray(one["model"]), edges, color=OURS, label="model", linewidth=1.4)
            ax.set(title=one["name"], xlabel="Å", yticks=[])
        for ax in list(axes.flat)[len(rows):]:
            ax.set_axis_off()
        legend(drawing, axes[0, 0])
        svg = to_svg(drawing, f"Distributions of distances of the model's and of {theory}'s dynamics",
                     f"oracle distances {dataset}")
    told = "; ".join(f"{one['name']} {text(one['divergence_bits'])} ({text(one['floor_bits'])})" for one in rows)
    return Picture(svg, f"Distances over {found['steps'] * found['dt_fs'] * 1e-3:.3g} ps of each, from the same start. "
                        f"Jensen–Shannon divergence in bits (beside it that of the oracle's two halves): {told}.",
                   f"Distances beside the oracle's, {dataset}")


def of_run(run: Run) -> list[Picture]:
    """What `sciml oracle` left in a run folder. Raises `InputError` for a file that is none of its own."""
    pictures = []
    for file in sorted((run.path / "oracle").glob("*.json")):
        try:
            pictures += consulted(file.stem, json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(file, found=f"{type(error).__name__}: {error}", expected="what `sciml oracle` wrote",
                             fix="delete the file and run `sciml oracle` again") from None
    return pictures


def _unit(unit: object) -> str:
    plain = {"1": "", "None": ""}.get(str(unit), str(unit))
    return plain.replace("angstrom", "Å").replace("^2", "²").replace("^3", "³")
