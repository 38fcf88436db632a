"""What a backtest looks like: the last forecasts of some series with their interval, and the error by step, per model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.files import replacing
from sciml.errors import InputError
from sciml.handles.series import ID, MEAN, NAME, TIME
from sciml.handles.series_backtest import ADAPTIVE, CUTOFF, MODEL, OURS, RIDGE, SPLIT, TRUTH
from sciml.report.charts import BASELINE, HALO, INK, MUTED, RULE, SERIES, Picture, figure, legend, to_svg
from sciml.report.charts import OURS as BLUE
from sciml.report.pictures import write_svg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SERIES, MOST_WINDOWS = 3, 4
PARTS = (MODEL, ID, CUTOFF, TIME, NAME, TRUTH, MEAN)


def write(frame: pd.DataFrame, path: Path) -> Path:
    """The figure of a backtest as .svg, .png or .pdf; written whole or not at all."""
    refuse_ending(path)
    chosen = frame[[ID, NAME]].drop_duplicates().head(MOST_SERIES)
    with figure(len(chosen) + 1, 1, size=(7.2, 1.7 * len(chosen) + 2.2)) as (drawing, axes):
        for ax, (who, what) in zip(axes[:, 0], chosen.itertuples(index=False)):
            _windows(ax, frame[(frame[ID] == who) & (frame[NAME] == what)])
            ax.set_title(f"{who}, {what}" if frame[ID].nunique() > 1 else str(what).replace("_", " "))
        legend(drawing, axes[0, 0])
        _by_step(axes[-1, 0], frame)
        if path.suffix == ".svg":
            alt = f"Forecasts of {len(chosen)} series with truth, and the error by step of every model"
            return write_svg([Picture(to_svg(drawing, alt, f"backtest {path.name}"), "", "")], path)
        _paint(drawing)
        with replacing(path) as new:
            drawing.savefig(new, dpi=150, format=path.suffix[1:], facecolor=_palette()["paper"])
    return path


def refuse_ending(path: Path) -> None:
    """Raises `InputError` for a kind of file that isn't written."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise InputError("command line", key="--figure", found=path.name, expected="a name that ends in .svg, .png or "
                         ".pdf", fix="choose one of them")


def _windows(ax: Axes, rows: pd.DataFrame) -> None:
    """The last windows of a series that don't overlap: truth, ridge, our forecast and its widest interval, adaptive
    where there is one."""
    last = _apart(rows)
    levels = [name for name in rows.columns if name not in PARTS]
    band = next(name for name in (ADAPTIVE, SPLIT, OURS) if (rows[MODEL] == name).any())
    for i, cutoff in enumerate(last):
        here = rows[rows[CUTOFF] == cutoff]
        part = dict(iter(here.groupby(MODEL, sort=False)))
        label = [(name if i == len(last) - 1 else "") for name in ("interval", "truth", "ridge", "forecast")]
        if len(levels) > 1:
            wide, span = part[band], f"{levels[0]} … {levels[-1]}, {band.replace('_', ' ')}"
            ax.fill_between(wide[TIME].to_numpy(), wide[levels[0]], wide[levels[-1]], color=HALO, alpha=0.5,
                            linewidth=0, label=span if label[0] else "")
        ax.plot(part[OURS][TIME].to_numpy(), part[OURS][TRUTH], color=INK, linewidth=1.1, label=label[1])
        ax.plot(part[RIDGE][TIME].to_numpy(), part[RIDGE][MEAN], color=BASELINE, linewidth=1.2,
                linestyle=(0, (3, 2)), label=label[2])
        ax.plot(part[OURS][TIME].to_numpy(), part[OURS][MEAN], color=BLUE, linewidth=1.6, label=label[3])
        ax.axvline(cutoff, color=RULE, linewidth=0.8)
    ax.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
    if rows[TIME].dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        places = AutoDateLocator(maxticks=8)
        ax.xaxis.set_major_locator(places)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(places))


def _apart(rows: pd.DataFrame) -> list[Any]:
    """The last cutoffs such that none lies within the horizon of another."""
    ends = rows.groupby(CUTOFF)[TIME].max().sort_index()
    kept: list[Any] = []
    for cutoff, end in reversed(list(ends.items())):
        if not kept or end <= kept[0]:
            kept = [cutoff, *kept]
    return kept[-MOST_WINDOWS:]


def _by_step(ax: Axes, frame: pd.DataFrame) -> None:
    """Root mean squared error by step, in standard deviations of the target."""
    colours: dict[str, Any] = {OURS: BLUE, RIDGE: BASELINE}
    others = iter((MUTED, *SERIES[1:]))
    for name, rows in frame.groupby(MODEL, sort=False):
        if name in (SPLIT, ADAPTIVE):
            continue
        step = rows.groupby([ID, NAME, CUTOFF], sort=False).cumcount() + 1
        error = ((rows[MEAN] - rows[TRUTH]) / rows[NAME].map(frame.attrs["scale"])) ** 2
        found = np.sqrt(error.groupby(step).mean())
        ax.plot(found.index, found, color=colours.get(str(name)) or next(others), marker="o" if len(found) == 1 else "",
                label=str(name).replace("_", " "))
    ax.set(xlabel="steps ahead", ylabel="RMSE / SD")
    ax.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
    ax.legend(loc="best", ncols=2)


def _palette() -> dict[str, str]:
    css = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css[:css.index("@media")]))


def _paint(drawing: Figure) -> None:
    """The page's light colours in the place of what stands for them."""
    from matplotlib.colors import to_hex

    palette = _palette()
    names = {INK: "ink", MUTED: "muted", RULE: "rule", BLUE: "ours", BASELINE: "baseline", HALO: "halo",
             **{colour: f"series-{i + 1}" for i, colour in enumerate(SERIES)}}
    for artist in drawing.findobj():
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if get is None or put is None:
                continue
            found = np.atleast_1d(np.asarray(get(), dtype=object))
            try:
                name = names.get(to_hex(found if found.ndim == 1 and len(found) > 1 else found[0]))
            except (ValueError, IndexError, TypeError):
                continue
            if name is not None:
                put(palette[name])
