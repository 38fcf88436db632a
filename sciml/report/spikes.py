"""What spikes look like: rasters, statistics of generated beside recorded activity, predicted rates, behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sciml.report.charts import BASELINE, INK, MUTED, OURS, RULE, Picture, figure, legend, to_svg
from sciml.report.fields import unit_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sciml.domains.spikes.matching import Activity

MAX_ROWS, MAX_WINDOWS, MAX_TICKS, RASTER_S = 4, 3, 4000, 20.0
EVENT_BIN_S = 0.02
"""In which events are counted, for correlations and sums."""


def generated(dataset: str, path: Path) -> list[Picture]:
    """Of a rollout: rasters, then rates, intervals and correlations of what was drawn beside what was recorded."""
    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False)
    ours, truth = _activities(store)
    if ours is None:
        return []
    shown = [("recorded", truth)] if truth is not None else []
    shown.append(("generated", ours))
    pictures = [_raster(dataset, shown, f"raster {dataset} {path}")]
    if truth is not None:
        pictures += [_statistics(dataset, ours, truth, f"statistics {dataset} {path}"),
                     _correlations(dataset, ours, truth, f"correlations {dataset} {path}")]
    return pictures


def predicted(dataset: str, path: Path, baseline: str = "baseline") -> list[Picture]:
    """Of direct predictions: rates against counts, or behaviour against truth."""
    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False)
    made = []
    for name, dim, what in (("count", "unit", "Predicted rates"), ("trace", "unit", "Predicted traces"),
                            ("behaviour_value", "behaviour", "Decoded behaviour")):
        if name in store and set(store[name].dims) == {"sample", "time", dim}:
            made.append(_windows(store, name, dim, (dataset, what, baseline), f"{name} {dataset} {path}"))
    return made


def _activities(store: xr.Dataset) -> tuple[Activity | None, Activity | None]:
    """The first sample as it was drawn, and as it was recorded in the same bins; None where that isn't known."""
    from sciml.domains.spikes.matching import activity_of_counts

    first = store.isel(sample=0)
    if "count" in store:
        time = first["time"].values
        dt = float(np.median(np.diff(time))) if len(time) > 1 else 1.0
        counts = [first[name].transpose("time", "unit").values if name in store else None
                  for name in ("count", "count_truth")]
        ours, truth = (None if c is None or not np.isfinite(c).any() else activity_of_counts(c, dt) for c in counts)
        return ours, truth
    if "spike_unit" not in store:
        return None, None
    return _of_events(first, store.sizes["unit"])


def _of_events(first: xr.Dataset, units: int) -> tuple[Activity | None, Activity | None]:
    """Over the time that both last, from the first event of either on; what was drawn alone where nothing was recorded
    beside it."""
    from sciml.domains.spikes.matching import activity_of_spikes

    both = []
    for end in ("", "_truth"):
        if f"spike_time{end}" in first:
            time, unit = (np.asarray(first[f"{name}{end}"].values, np.float64) for name in ("spike_time", "spike_unit"))
            known = np.isfinite(unit) & np.isfinite(time)
            both.append((time[known], unit[known].astype(int)))
    both = [(time, unit) for time, unit in both if len(time)]
    if not both:
        return None, None
    start, stop = min(time[0] for time, _ in both), min(time[-1] for time, _ in both)
    bins = max(1, int(np.ceil((stop - start) / EVENT_BIN_S - 1e-9)))
    made = [activity_of_spikes(time, unit, np.ones((bins, units), bool), float(start), EVENT_BIN_S)
            for time, unit in both]
    return made[0], made[1] if len(made) > 1 else None


def _raster(dataset: str, shown: list[tuple[str, Activity]], key: str) -> Picture:
    seconds = min(RASTER_S, *(len(a.counts) * a.dt for _, a in shown))
    rates = [sum(map(len, a.times)) / (len(a.counts) * a.dt) for _, a in shown]
    seconds = min(seconds, MAX_TICKS / max(1.0, *rates))
    units = shown[0][1].counts.shape[1]
    with figure(1, len(shown), size=(4.3 * len(shown), min(4.2, 1.1 + 0.07 * units)), share=True) as (drawing, axes):
        for ax, (name, activity) in zip(axes[0], shown):
            x, y = zip(*_ticks(activity, seconds))
            ax.plot(np.concatenate(x), np.concatenate(y), color=OURS if name == "generated" else INK, linewidth=0.8,
                    solid_capstyle="butt")
            ax.set(xlabel="s", xlim=(0, seconds), ylim=(-0.6, units - 0.4), title=name)
        axes[0, 0].set_ylabel("unit")
        alt = f"Spikes of {units} units over {seconds:.3g} s, {' and '.join(name for name, _ in shown)}"
        svg = to_svg(drawing, alt, key)
    beside = "" if len(shown) > 1 else " What was recorded then isn't in the rollout."
    caption = f"The first {seconds:.3g} s of the first sample, a tick per spike.{beside}"
    return Picture(svg, caption, f"Raster, {dataset}")


def _ticks(activity: Activity, seconds: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per unit, a short vertical line for every spike, between them gaps."""
    for unit, times in enumerate(activity.times):
        t = times[times < seconds]
        yield (np.repeat(t, 3), np.tile([unit - 0.4, unit + 0.4, np.nan], len(t)))


def _statistics(dataset: str, ours: Activity, truth: Activity, key: str) -> Picture:
    """Mean rates of units against one another, and the distributions of intervals between spikes."""
    from sciml.domains.spikes.matching import firing_rates, interspike_intervals, population_sums

    rates = firing_rates(truth), firing_rates(ours)
    with figure(1, 3, size=(8.6, 2.9)) as (drawing, axes):
        scatter, intervals, sums = axes[0]
        most = float(np.nanmax(np.concatenate(rates))) * 1.05 or 1.0
        scatter.plot([0, most], [0, most], color=RULE, linewidth=1)
        scatter.plot(*rates, "o", color=OURS, markersize=3.5)
        scatter.set(xlabel="recorded, spikes/s", ylabel="generated", title="Rate of each unit", xlim=(0, most),
                    ylim=(0, most), aspect="equal")
        gaps = [np.concatenate(interspike_intervals(a)) for a in (truth, ours)]
        _distributions(intervals, gaps, np.geomspace(min(truth.dt / 2, 0.002), 10, 31))
        intervals.set(xscale="log", xlabel="s", ylabel="share", title="Intervals between spikes")
        totals = [population_sums(a.counts) for a in (truth, ours)]
        top = max(float(t.max()) if len(t) else 1.0 for t in totals)
        _distributions(sums, totals, np.arange(-0.5, top + 1.5, max(1, round(top / 40))))
        sums.set(xlabel=f"spikes in {truth.dt:.3g} s", title="All units together")
        legend(drawing, intervals)
        r = float(np.corrcoef(*rates)[0, 1]) if len(rates[0]) > 1 else float("nan")
        svg = to_svg(drawing, f"Rates of units, generated against recorded: correlation {r:.3f}; distributions", key)
    return Picture(svg, f"Correlation of the units' rates {r:.3f}, over {len(truth.counts) * truth.dt:.3g} s of each.",
                   f"Generated beside recorded, {dataset}")


def _distributions(ax: Axes, values: list[np.ndarray], edges: np.ndarray) -> None:
    for part, (name, color) in zip(values, (("recorded", INK), ("generated", OURS))):
        share = np.histogram(part, edges)[0] / max(len(part), 1)
        ax.stairs(share, edges, color=color, label=name, linewidth=1.4)


def _correlations(dataset: str, ours: Activity, truth: Activity, key: str) -> Picture:
    from sciml.domains.spikes.matching import count_correlations

    found = [count_correlations(a.counts) for a in (truth, ours)]
    upper = np.triu_indices(len(found[0]), 1)
    pairs = np.stack([c[upper] for c in found])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    limit = max(float(np.quantile(np.abs(pairs), 0.99)), 1e-3) if pairs.size else 1.0
    with figure(1, 2, size=(7.0, 3.2)) as (drawing, axes):
        for ax, matrix, name in zip(axes[0], found, ("recorded", "generated")):
            shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
            image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            ax.set(title=name, xlabel="unit")
            ax.grid(visible=False)
        axes[0, 0].set_ylabel("unit")
        bar = drawing.colorbar(image, ax=axes[0].tolist(), shrink=0.8)
        bar.outline.set_visible(False)
        r = float(np.corrcoef(pairs)[0, 1]) if pairs.shape[1] > 1 else float("nan")
        svg = to_svg(drawing, f"Correlations of counts of pairs of units; recorded against generated: {r:.3f}", key)
    caption = (f"Correlations of counts in bins of {truth.dt:.3g} s. Over pairs of units, those of generated and "
               f"recorded activity correlate by {r:.3f}.")
    return Picture(svg, caption, f"Correlations, {dataset}")


def _windows(store: xr.Dataset, name: str, dim: str, words: tuple[str, str, str], key: str) -> Picture:
    """A grid: a row a unit (those that spike most) or component, a column a window."""
    dataset, what, baseline = words
    truth = store[f"{name}_truth"].transpose("sample", "time", dim).values if f"{name}_truth" in store else None
    size = store.sizes[dim]
    order = np.arange(size)
    if truth is not None and dim == "unit":
        order = np.argsort(-np.nan_to_num(np.nanmean(np.nan_to_num(truth), (0, 1))), kind="stable")
    rows = order[:MAX_ROWS]
    samples = np.unique(np.linspace(0, store.sizes["sample"] - 1, MAX_WINDOWS).round().astype(int))
    labels = [str(v) for v in store[dim].values] if dim in store.coords else [str(i) for i in range(size)]
    with figure(len(rows), len(samples), size=(2.75 * len(samples) + 0.6, 1.25 * len(rows) + 0.7), share=True) as (
            drawing, axes):
        for line, row in zip(axes, rows):
            for ax, sample in zip(line, samples):
                _window(ax, store.isel({"sample": int(sample), dim: int(row)}), name, baseline)
                ax.tick_params(labelbottom=row == rows[-1])
            line[0].set_title(labels[row].replace("_", " ") + _unit(store, name, dim, int(row)))
        for ax in axes[-1]:
            ax.set_xlabel("bin")
        legend(drawing, axes[0, 0])
        svg = to_svg(drawing, f"{what} of {', '.join(labels[r] for r in rows)} in {len(samples)} windows", key)
    chosen = "the most active ones" if dim == "unit" and truth is not None else "the first ones"
    caption = (f"{len(samples)} of {store.sizes['sample']} windows, spread over the split, and {len(rows)} of {size} "
               f"{dim}s, {chosen if len(rows) < size else 'all'}.")
    return Picture(svg, caption, f"{what}, {dataset}")


def _window(ax: Axes, window: xr.Dataset, name: str, baseline: str) -> None:
    from matplotlib.ticker import MaxNLocator

    def values(key: str) -> Any:
        return np.asarray(window[key].values, np.float64)

    steps = np.arange(window.sizes["time"])
    if f"{name}_truth" in window:
        if name == "count":
            ax.bar(steps, values(f"{name}_truth"), width=0.9, color=MUTED, alpha=0.35, label="counts")
        else:
            ax.plot(steps, values(f"{name}_truth"), color=INK, linewidth=1.2, label="truth")
    if f"{name}_baseline" in window:
        ax.plot(steps, values(f"{name}_baseline"), color=BASELINE, linewidth=1.2, linestyle=(0, (3, 2)), label=baseline)
    ax.plot(steps, values(name), color=OURS, linewidth=1.6, label="model")
    ax.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.7)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _unit(store: xr.Dataset, name: str, dim: str, row: int) -> str:
    known = store.coords.get(f"{dim}_unit")
    text = unit_text(known.values[row] if known is not None else store[name].attrs.get("units", ""))
    return f", {text}" if text else ""
