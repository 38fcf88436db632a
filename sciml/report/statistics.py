"""What long rollouts do beside the truth: growth of the error, spectra, profiles; from the card of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sciml.report.charts import HALO, INK, MUTED, OURS, RULE, Line, Picture, draw, figure, legend, to_svg
from sciml.report.fields import unit_text
from sciml.report.run import Run
from sciml.report.scores import text

PANELS = 4
FLOOR = 1e-10
"""Of a spectrum's largest value, below which nothing is shown."""
FIRST = ("energy", "enstrophy", "power")
STYLES = {"truth": ("truth", HALO, "-", 5.0), "whole": ("model, whole rollout", MUTED, (0, (3, 2)), 1.3),
          "model": ("model", OURS, "-", 1.6)}


def of_run(run: Run) -> list[Picture]:
    """Of every evaluation whose card holds curves."""
    return [picture for dataset, evaluation in run.evaluations.items() for row in evaluation.get("card") or ()
            for picture in pictures(dataset, row.get("curves") or {}, str(row.get("note", "")))]


def pictures(dataset: str, curves: Mapping[str, Any], note: str = "") -> list[Picture]:
    """At most three; of what there are no curves there is no picture. note: what the first caption ends with."""
    made = [_growth(dataset, curves["error"])] if curves.get("error") else []
    made += [_spectra(dataset, curves["spectra"])] if curves.get("spectra") else []
    made += [_profiles(dataset, curves["profiles"], curves.get("stresses") or ())] if curves.get("profiles") else []
    if made and note:
        made[0] = Picture(made[0].svg, f"{made[0].caption} {note[:1].upper()}{note[1:]}.", made[0].title)
    return made


def _growth(dataset: str, error: Mapping[str, Any]) -> Picture:
    time, unit = _floats(error["time"]), unit_text(error["unit"])
    relative, correlation = _floats(error["relative_l2"]), _floats(error["correlation"])
    label = f"time, {unit}" if unit else "time"
    with figure(1, 2, size=(8.2, 2.7)) as (drawing, axes):
        draw(axes[0, 0], [Line(time, relative, "model", OURS)], x_label=label, y_label="relative L2 error", log_y=True)
        axes[0, 0].axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        draw(axes[0, 1], [Line(time, correlation, "model", OURS)], x_label=label, y_label="correlation")
        axes[0, 1].set_ylim(min(0.0, float(np.nanmin(correlation, initial=0.0))) - 0.02, 1.02)
        axes[0, 1].axhline(0.8, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        ends = f"relative L2 from {text(float(relative[0]))} to {text(float(relative[-1]))}"
        svg = to_svg(drawing, f"Error against time: {ends}", f"growth {dataset}")
    return Picture(svg, f"Mean over channels and rollouts: {ends}. Dotted: the zero field, and a correlation of 0.8.",
                   f"Growth of the error, {dataset}")


def _spectra(dataset: str, spectra: Sequence[Mapping[str, Any]]) -> Picture:
    kinds = sorted(spectra, key=lambda one: next(i for i, kind in enumerate(FIRST) if one["name"].startswith(kind)))
    shown = kinds[:PANELS]
    with figure(1, len(shown), size=(2.75 * len(shown) + 0.6, 2.9)) as (drawing, axes):
        for ax, one in zip(axes[0], shown):
            k, power = _floats(one["k"])[1:], {which: _floats(p)[1:] for which, p in one["power"].items()}
            unit = unit_text(one["axis_unit"])
            draw(ax, _lines(k, power), log_x=True, log_y=True, x_label=f"wavenumber, rad/{unit or 'length'}")
            peak = max((float(np.nanmax(p, initial=0)) for p in power.values()), default=0.0)
            if peak > 0:
                ax.set_ylim(bottom=max(ax.get_ylim()[0], peak * FLOOR))
            ax.axvline(k[-1] / 2, color=MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
            ax.set_title(_words(one["name"]))
        legend(drawing, axes[0, 0])
        svg = to_svg(drawing, f"Spectra of {', '.join(_words(one['name']) for one in shown)}", f"statistics {dataset}")
    more = f" {len(spectra) - len(shown)} more are in the evaluation's JSON." if len(spectra) > len(shown) else ""
    caption = ("Mean over time and rollouts, by wavenumber. Dotted: half the Nyquist wavenumber, up to which the card "
               f"compares. Cut at 10⁻¹⁰ of the largest.{more}")
    return Picture(svg, caption, f"Spectra of long rollouts, {dataset}")


def _profiles(dataset: str, profiles: Sequence[Mapping[str, Any]], stresses: Sequence[Mapping[str, Any]]) -> Picture:
    columns, rows = min(len(profiles), PANELS), 3 if stresses else 2
    first = profiles[0]
    axis = f"{first['axis']}, {unit_text(first['axis_unit'])}".removesuffix(", ")
    with figure(rows, columns, size=(2.6 * columns + 0.6, 2.3 * rows)) as (drawing, axes):
        for row, (kind, shown) in enumerate((("mean", profiles), ("rms", profiles), ("stress", stresses))[:rows]):
            for ax in axes[row, len(shown[:columns]):]:
                ax.set_axis_off()
            for ax, one in zip(axes[row], shown):
                lines = _lines(_floats(one["place"]), {which: _floats(v) for which, v in one[kind].items()})
                draw(ax, lines, x_label=axis if row == rows - 1 else "")
                unit = unit_text(one.get("unit", ""))
                told = "" if kind == "stress" else f", {kind}{f', {unit}' if unit else ''}"
                ax.set_title(f"{one['name'].replace('_', ' ')}{told}")
                ax.axhline(0.0, color=RULE, linewidth=0.8, zorder=0)
        legend(drawing, axes[0, 0])
        names = ", ".join(one["name"] for one in profiles[:columns])
        svg = to_svg(drawing, f"Profiles along {first['axis']} of {names}", f"profiles {dataset}")
    caption = "The mean over time, rollouts and the other axes; the root mean square of the fluctuation about it"
    return Picture(svg, f"{caption}{'; the stresses' if stresses else ''}.", f"Profiles of long rollouts, {dataset}")


def _lines(x: np.ndarray, curves: Mapping[str, np.ndarray]) -> list[Line]:
    """The truth first, wide and pale; alone, the model is ink."""
    return [Line(x, curves[which], label, color if len(curves) > 1 else INK, dash, width)
            for which, (label, color, dash, width) in STYLES.items() if which in curves]


def _words(name: str) -> str:
    """``energy_x/velocity`` as it is printed.

    >>> _words("energy_x/velocity"), _words("power/heat")
    ('energy of velocity along x', 'power of heat')
    """
    kind, _, what = name.partition("/")
    kind, _, axis = kind.partition("_")
    return f"{kind} of {what.replace('_', ' ')}" + (f" along {axis}" if axis else "")


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)
