"""The picture of `benchmarks/fields_pareto.py`.

    python -P benchmarks/fields_pareto_figure.py benchmarks/results/fields.json docs/pictures/fields_pareto.png
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciml.report.bench import Results, load
from sciml.report.charts import power

POINT = re.compile(r"(?P<case>\w+)/pareto_(?P<label>[\w.]+)/(?P<measure>ms_\d+|one_step|rollout_\d+(_by_\d+)?)")
NAMES = {"sciml": "ours", "fno": "FNO", "tfno": "TFNO", "uno": "UNO", "unet": "U-Net"}
TITLES = {"navier_stokes": "Navier–Stokes", "kelvin_helmholtz": "Kelvin–Helmholtz", "riemann": "Riemann",
          "gray_scott": "Gray–Scott", "wave": "wave in layers"}
COLORS = {"sciml": "#c2410c", "fno": "#1d4ed8", "tfno": "#0e7490", "uno": "#7c3aed", "unet": "#15803d"}


def drawn(results: Results, place: Path, batch: int = 1) -> None:
    """A picture: a column per case, one step above and rollouts below; solver's points joined by resolution."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in results.rows:
        if part := POINT.fullmatch(row.metric):
            found.setdefault(part["case"], {}).setdefault(part["label"], {})[part["measure"]] = row.ours
    cases = [case for case in TITLES if case in found]
    measures = ["one_step", *sorted({m for points in found.values() for p in points.values() for m in p
                                     if m.startswith("rollout_")})]
    drawing = Figure(figsize=(3.1 * len(cases) + 0.4, 2.6 * len(measures) + 0.6), layout="constrained")
    axes = drawing.subplots(len(measures), len(cases), squeeze=False)
    for column, case in enumerate(cases):
        for row_axes, measure in zip(axes[:, column], measures):
            _panel(row_axes, found[case], f"ms_{batch}", measure)
        axes[0, column].set_title(TITLES[case], fontsize=10, loc="left")
        shown = [ax for ax, measure in zip(axes[:, column], measures)
                 if any(measure in each for each in found[case].values())]
        shown[-1].set_xlabel(f"CPU ms per frame, batch of {batch}", fontsize=8)
    for row_axes, measure in zip(axes[:, 0], measures):
        told = measure.replace("rollout_", "").replace("_by_", " steps, every ").replace("one_step", "one step")
        row_axes.set_ylabel(f"relative L2, {told}{' steps' * told.isdigit()}", fontsize=8)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels())}
    drawing.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    drawing.savefig(place, dpi=110)


def _panel(ax: Any, points: Mapping[str, Mapping[str, float]], clock: str, measure: str) -> None:
    """Solver's points that are finite, a line per grid with its size beside it; surrogates as marks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    grids: dict[int, list[tuple[float, float]]] = {}
    for label, values in points.items():
        if clock not in values or measure not in values:
            continue
        place = values[clock], values[measure]
        kind, _, stride = label.partition("_by_")
        if (kind := kind.partition("_")[0]) in NAMES:
            ax.plot(*place, marker="*" if kind == "sciml" else "o", color=COLORS[kind], linestyle="", zorder=3,
                    markersize=11 if kind == "sciml" else 6, label=NAMES[kind])
            ax.annotate(stride and f"jumps of {stride}", place, textcoords="offset points", xytext=(5, 5), fontsize=6.5)
        elif label.endswith("_f64"):
            ax.plot(*place, marker="x", color="#555555", linestyle="", markersize=5, label="solver, double precision")
        else:
            grids.setdefault(int(label.split("_")[1]), []).append(place)
    for size, line in sorted(grids.items()):
        ax.plot(*zip(*sorted(line)), color="#555555", marker=".", linewidth=0.9, markersize=5,
                label="solver, single precision (cells per side; its steps)")
        ax.annotate(str(size), min(line), textcoords="offset points", xytext=(-3, 4), fontsize=7, color="#555555",
                    ha="right")
    ax.set(xscale="log", yscale="log")
    ax.margins(0.1)
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        axis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=7)
    ax.set_visible(ax.has_data())
    ax.grid(which="major", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


if __name__ == "__main__":
    drawn(load(sys.argv[1]), Path(sys.argv[2]))
