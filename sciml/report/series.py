"""What forecasts of series look like: some variates, some windows, real dates, with truth and baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sciml.errors import InputError
from sciml.report.charts import BASELINE, INK, MUTED, OURS, RULE, Picture, figure, legend, to_svg
from sciml.report.fields import unit_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_VARIATES, MAX_WINDOWS = 4, 3


def forecasts(dataset: str, path: Path, baseline: str = "baseline") -> Picture:
    """A grid of forecasts: a row a variate, a column a window. Raises `InputError` if the store holds no `value`."""
    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False)
    if "value" not in store or set(store["value"].dims) != {"sample", "time", "variate"}:
        raise InputError(path, key="value", found=", ".join(map(str, store.data_vars)) or "nothing",
                         expected="value (sample, time, variate)", fix="write the forecasts again")
    samples = np.unique(np.round(np.linspace(0, store.sizes["sample"] - 1, MAX_WINDOWS)).astype(int))
    variates = range(min(MAX_VARIATES, store.sizes["variate"]))
    names = [str(v) for v in store["variate"].values]
    size = (2.75 * len(samples) + 0.6, 1.25 * len(variates) + 0.7)
    with figure(len(variates), len(samples), size=size, share=True) as (drawing, axes):
        for row, variate in zip(axes, variates):
            for ax, sample in zip(row, samples):
                _window(ax, store, int(sample), variate, baseline)
                ax.tick_params(labelbottom=variate == variates[-1])
            row[0].set_title(f"{names[variate].replace('_', ' ')}{_unit(store, variate)}")
        legend(drawing, axes[0, 0])
        alt = f"Forecasts of {', '.join(names[v] for v in variates)} in {len(samples)} windows with truth and baseline"
        svg = to_svg(drawing, alt, f"forecast {dataset} {path}")
    caption = (f"{len(samples)} of {store.sizes['sample']} windows, spread over the split, and {len(variates)} of "
               f"{store.sizes['variate']} variates. The vertical line is where the forecast starts.")
    return Picture(svg, caption, dataset)


def _window(ax: Axes, store: xr.Dataset, sample: int, variate: int, baseline: str) -> None:
    from matplotlib.ticker import MaxNLocator

    horizon = _times(store, "value", sample)
    start = horizon[0]
    if "history" in store:
        past, known = _times(store, "history", sample), _values(store, "history", sample, variate)
        ax.plot(past, known, color=MUTED, linewidth=1.0, label="known")
        start = past[-1]
    if "value_truth" in store:
        ax.plot(horizon, _values(store, "value_truth", sample, variate), color=INK, linewidth=1.2, label="truth")
    if "value_baseline" in store:
        ax.plot(horizon, _values(store, "value_baseline", sample, variate), color=BASELINE, linewidth=1.3,
                linestyle=(0, (3, 2)), label=baseline)
    ax.plot(horizon, _values(store, "value", sample, variate), color=OURS, linewidth=1.7, label="forecast")
    ax.axvline(start, color=RULE, linewidth=1)
    ax.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    _dates(ax, horizon)


def _values(store: xr.Dataset, name: str, sample: int, variate: int) -> np.ndarray:
    return np.asarray(store[name].isel(sample=sample, variate=variate).values, np.float64)


def _times(store: xr.Dataset, name: str, sample: int) -> np.ndarray:
    """Dates or numbers ``(n,)`` of a window: the coordinate along its dimension of time, by sample or shared."""
    dim = next(str(d) for d in store[name].dims if d not in ("sample", "variate"))
    along = [c for c in store[name].coords.values() if dim in c.dims and set(c.dims) <= {"sample", dim}]
    best = sorted(along, key=lambda c: (np.issubdtype(c.dtype, np.datetime64), c.ndim))[-1:]
    if best:
        coord = best[0]
        return np.asarray(coord.isel(sample=sample).values if "sample" in coord.dims else coord.values)
    length = store.sizes[dim]
    return np.arange(length) - (length if name == "history" else 0)


def _dates(ax: Axes, times: np.ndarray) -> None:
    from matplotlib import dates
    from matplotlib.ticker import MaxNLocator

    if np.issubdtype(times.dtype, np.datetime64):
        low, high = dates.num2date(ax.get_xlim())
        locator = dates.AutoDateLocator(minticks=2, maxticks=5)
        ticks = [t for t in locator.tick_values(low, high) if dates.date2num(low) <= t <= dates.date2num(high)]
        short = (high - low).days > 300
        ticks = ticks[::-(-len(ticks) // (4 if short else 3)) or 1]
        form = "%b ’%y" if short else "%d %b ’%y" if (high - low).days > 6 else "%d %b %H:%M"
        ax.set_xticks(ticks, [dates.num2date(tick).strftime(form) for tick in ticks])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))


def _unit(store: xr.Dataset, variate: int) -> str:
    units: Any = store.coords.get("variate_unit")
    text = units.values[variate] if units is not None else store["value"].attrs.get("units", "")
    return f", {unit_text(text)}" if unit_text(text) else ""
