"""Line charts as inline SVG whose colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, OURS, BASELINE, HALO = "#010101", "#020202", "#030303", "#040404", "#050505", "#0c0c0c"
SERIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
_CSS = {INK: "--ink", MUTED: "--muted", RULE: "--rule", OURS: "--ours", BASELINE: "--baseline", HALO: "--halo",
        **{color: f"--series-{i + 1}" for i, color in enumerate(SERIES)}}
_RC = {"svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
       "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "axes.titlesize": 9,
       "axes.titlelocation": "left", "axes.titlepad": 8, "axes.labelsize": 9, "axes.linewidth": 0.8,
       "axes.spines.top": False, "axes.spines.right": False, "xtick.color": RULE, "ytick.color": RULE,
       "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
       "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 0, "ytick.minor.size": 0,
       "text.color": MUTED, "lines.linewidth": 1.6, "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round",
       "legend.frameon": False, "legend.fontsize": 8.5, "legend.labelcolor": INK, "legend.handlelength": 1.6,
       "axes.formatter.useoffset": False, "path.simplify_threshold": 0.3}


@dataclass(frozen=True)
class Picture:
    """An inline SVG with the words that stand beside it."""

    svg: str
    caption: str
    title: str = ""


@dataclass(frozen=True)
class Line:
    """One curve: x and y ``(n,)``, its name in the legend, one of the colours above, a matplotlib line style."""

    x: np.ndarray
    y: np.ndarray
    label: str
    color: str
    dash: Any = "-"
    width: float = 1.6


@contextmanager
def figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float], share: bool = False
           ) -> Iterator[tuple[Figure, np.ndarray]]:
    """A matplotlib figure in the page's style and its axes ``(rows, columns)``; `size` in inches of 72 points."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        drawing = Figure(figsize=size, layout="constrained")
        yield drawing, drawing.subplots(rows, columns, squeeze=False, sharey="row" if share else False)


def to_svg(drawing: Figure, alt: str, key: str) -> str:
    """The figure as an ``<svg>`` element: no metadata, ids unique to `key`, colours as CSS variables."""
    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": key}):
        drawing.savefig(buffer, format="svg", transparent=True,
                        metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for color, variable in _CSS.items():
        svg = svg.replace(color, f"var({variable})")
    view = re.search(r'viewBox="([^"]+)"', svg)
    if view is None:
        raise AssertionError("matplotlib wrote an SVG without a viewBox")
    width = float(view[1].split()[2])
    head = (f'<svg viewBox="{view[1]}" role="img" aria-label="{_attribute(alt)}" '
            f'style="max-width:{width * 1.333:.0f}px" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">')
    return re.sub(r"\n\s*", "\n", head + svg[svg.index(">") + 1:])


def chart(lines: Sequence[Line], *, alt: str, key: str, x_label: str, y_label: str, log_x: bool = False,
          log_y: bool = False, size: tuple[float, float] = (6.6, 2.8)) -> str:
    """One set of axes with a legend above it."""
    with figure(size=size) as (drawing, axes):
        draw(axes[0, 0], lines, x_label=x_label, y_label=y_label, log_x=log_x, log_y=log_y)
        legend(drawing, axes[0, 0])
        return to_svg(drawing, alt, key)


def draw(ax: Axes, lines: Sequence[Line], *, x_label: str = "", y_label: str = "", log_x: bool = False,
         log_y: bool = False) -> None:
    """Curves on one set of axes; on a logarithmic scale points that are not positive are left out."""
    from matplotlib.ticker import MaxNLocator

    for line in lines:
        y = np.where(line.y > 0, line.y, np.nan) if log_y else line.y
        marker = "o" if np.isfinite(y).sum() == 1 else ""
        ax.plot(line.x, y, linestyle=line.dash, color=line.color, label=line.label, linewidth=line.width, marker=marker,
                markersize=3.5)
    if log_x:
        _log_axis(ax, "x")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=all(np.all(line.x == np.round(line.x)) for line in lines)))
    if log_y:
        _log_axis(ax, "y")
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
    ax.set_axisbelow(True)


def legend(drawing: Figure, ax: Axes, extra: Mapping[str, Any] | None = None) -> None:
    """The legend of `ax` in one row above the figure."""
    handles, labels = ax.get_legend_handles_labels()
    for label, handle in (extra or {}).items():
        handles.append(handle)
        labels.append(label)
    if handles:
        drawing.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5), borderpad=0,
                       columnspacing=1.6)


def _log_axis(ax: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    low, high = sorted(ax.get_xlim() if which == "x" else ax.get_ylim())
    decades = np.log10(high / low) if low > 0 else 2
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    axis.set_minor_formatter(NullFormatter())


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float) -> str:
    """A tick on a logarithmic scale.

    >>> power(0.02), power(100.0), power(1e-7), power(2e6)
    ('0.02', '100', '10⁻⁷', '2·10⁶')
    """
    if value <= 0 or 1e-3 <= value < 1e4:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    raised = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return raised if mantissa == "1" else f"{mantissa}·{raised}"


def smooth(y: np.ndarray, width: int) -> np.ndarray:
    """Median of the last `width` values, of fewer at the beginning: what is shown of a noisy loss.

    >>> smooth(np.array([4.0, 2.0, 9.0, 2.0]), 3).tolist()
    [4.0, 3.0, 4.0, 2.0]
    """
    return np.array([np.median(y[max(0, i + 1 - width):i + 1]) for i in range(len(y))])


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
