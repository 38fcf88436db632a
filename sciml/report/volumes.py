"""What is seen in a volume: outlines of structures on three slices, and images restored beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.domains.volumes.overlap import dice
from sciml.report.charts import BASELINE, OURS, Line, Picture, figure, legend, to_svg
from sciml.report.scores import text

DOMAIN, LABEL, IMAGE = "volumes", "label", "image"
PLANES = (("sagittal", 0, "posterior – anterior", "inferior – superior"),
          ("coronal", 1, "left – right", "inferior – superior"),
          ("axial", 2, "left – right", "posterior – anterior"))
"""Name, the axis that is cut, and what lies to the right and up of it, in RAS order."""
NONE = np.zeros(0)
TRUTH, PREDICTION = Line(NONE, NONE, "truth", BASELINE, width=1.6), Line(NONE, NONE, "prediction", OURS, (0, (2, 1.6)))
"""How outlines are drawn: where they coincide, both are seen."""
SHOWN = 4
ROW = 2.15
MISSED = np.array([0.85, 0.25, 0.2])
"""Colour of voxels where prediction and truth differ, which reads on any grey."""


def pictures(dataset: str, path: Path) -> list[Picture]:
    """Of direct predictions ``(sample, x, y, z)``: segmentations as outlines, anything else as images. Of films the
    frame whose truth is known of most samples, the first of these."""
    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False)
    if "time" in store.dims:
        frame, count = _best_known(store), store.sizes["time"]
        store, dataset = store.isel(time=frame), f"{dataset}, frame {frame + 1} of {count}"
    names = [str(name) for name in store.data_vars if f"{name}_truth" in store and store[name].ndim == 4]
    if LABEL in names:
        return [_outlined(dataset, store, path)]
    return [_restored(dataset, store, name, path) for name in names]


def _best_known(store: xr.Dataset) -> int:
    truths = [array for name, array in store.data_vars.items() if str(name).endswith("_truth") and "time" in array.dims]
    known = [sum(int(np.isfinite(array.isel(time=t).values).any((1, 2, 3)).sum()) for array in truths)
             for t in range(store.sizes["time"])]
    return int(np.argmax(known))


def _outlined(dataset: str, store: xr.Dataset, path: Path) -> Picture:
    """A row per sample: three slices with both outlines, and the axial one with what differs."""
    count = min(SHOWN, store.sizes["sample"])
    agreed = []
    with figure(count, 4, size=(8.6, ROW * count + 0.35)) as (drawing, axes):
        for i in range(count):
            ours, truth = (_cropped(store[name].values[i]) for name in (LABEL, f"{LABEL}_truth"))
            image = _cropped(store[IMAGE].values[i], truth.shape) if IMAGE in store else np.zeros(truth.shape)
            mm = _spacing(store, i)
            middle = centre(truth)
            for ax, (name, axis, right, up) in zip(axes[i], PLANES):
                cut = [_slice(x, axis, middle) for x in (image, truth, ours)]
                _show(ax, cut[0], mm, axis)
                _outlines(ax, cut[1], mm, axis, TRUTH)
                _outlines(ax, cut[2], mm, axis, PREDICTION)
                ax.set_title(f"{name}, {middle[axis] + 1} of {truth.shape[axis]}")
                if i == count - 1:
                    ax.set_xlabel(right)
                ax.set_ylabel(up)
            _show(axes[i, 3], _marked(*(_slice(x, 2, middle) for x in (image, truth, ours))), mm, 2)
            axes[i, 3].set_title("where they differ" if i == 0 else "")
            agreed.append([float(dice((ours == value) & np.isfinite(truth), truth == value)) for value in np.unique(
                truth[truth > 0])])
        _key(drawing, axes[0, 0])
        told = "; ".join(" / ".join(text(score) for score in scores) for scores in agreed)
        svg = to_svg(drawing, f"Outlines of structures in {count} volumes, prediction over truth; Dice {told}",
                     f"outlines {dataset} {path}")
    return Picture(svg, f"{count} volumes, spread over the split, on the slices that hold most of what is labelled; at "
                        f"the right the axial one, voxels of another label in red. Dice by structure: {told}.",
                   f"Segmented, {dataset}")


def _restored(dataset: str, store: xr.Dataset, name: str, path: Path) -> Picture:
    """A row per sample: what was measured, what was made of it, the truth, and the difference, on one grey scale."""
    count = min(SHOWN, store.sizes["sample"])
    columns = [(key, label) for key, label in ((f"{name}_baseline", "without the model"), (name, "model"),
                                               (f"{name}_truth", "truth")) if key in store]
    with figure(count, len(columns) + 1, size=(2.15 * (len(columns) + 1), ROW * count)) as (drawing, axes):
        for i in range(count):
            truth = _cropped(store[f"{name}_truth"].values[i])
            mm, middle = _spacing(store, i), centre(np.nan_to_num(np.abs(truth)) > np.nanmean(np.abs(truth)))
            low, high = np.nanpercentile(truth, [0.5, 99.8])
            cuts = {key: _slice(_cropped(store[key].values[i], truth.shape), 2, middle) for key, _ in columns}
            for ax, (key, label) in zip(axes[i], columns):
                _show(ax, cuts[key], mm, 2, (float(low), float(high)))
                ax.set_title(label if i == 0 else "")
            error, reach = cuts[name] - cuts[f"{name}_truth"], 0.25 * float(high - low)
            _show(axes[i, -1], error, mm, 2, (-reach, reach))
            axes[i, -1].set_title("model less truth, × 4" if i == 0 else "")
        svg = to_svg(drawing, f"Axial slices of {count} volumes restored, beside the truth",
                     f"restored {dataset} {path}")
    return Picture(svg, f"Axial slices of {count} volumes, spread over the split; grey from the 0.5th to the 99.8th "
                        "percentile of the truth.", f"Restored: {name}, {dataset}")


def centre(structure: np.ndarray) -> tuple[int, int, int]:
    """The slice along each axis that holds most of what isn't background; the middle one if nothing does.

    >>> made = np.zeros((4, 4, 4))
    >>> made[1, 1:3, 3] = 1
    >>> centre(made)
    (1, 1, 3)
    """
    inside = np.nan_to_num(structure) > 0
    counts = [inside.sum(tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    x, y, z = (int(count.argmax()) if count.any() else len(count) // 2 for count in counts)
    return x, y, z


def _slice(volume: np.ndarray, axis: int, place: Sequence[int]) -> np.ndarray:
    return np.asarray(np.take(volume, place[axis], axis))


def _cropped(volume: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
    """Without the NaN that joins samples of unequal size at the end of each axis; or of that shape."""
    if shape is None:
        known = np.isfinite(volume)
        ends = [int(np.flatnonzero(known.any(tuple(o for o in range(3) if o != axis)))[-1]) + 1 if known.any() else n
                for axis, n in enumerate(volume.shape)]
    else:
        ends = list(shape)
    return volume[tuple(slice(0, end) for end in ends)]


def _spacing(store: xr.Dataset, index: int) -> tuple[float, float, float]:
    if "spacing" not in store:
        return 1.0, 1.0, 1.0
    x, y, z = (float(mm) for mm in store["spacing"].values[index])
    return x, y, z


def _extent(shape: Sequence[int], mm: Sequence[float], axis: int) -> tuple[float, float, float, float]:
    """Of a slice, in mm from its first corner."""
    a, b = (mm[other] for other in range(3) if other != axis)
    return 0.0, shape[0] * a, 0.0, shape[1] * b


def _show(ax: Any, cut: np.ndarray, mm: Sequence[float], axis: int, limits: tuple[float, float] | None = None) -> None:
    """A slice ``(right, up[, rgb])`` in grey, with its own proportions."""
    if limits is None and cut.ndim == 2:
        known = cut[np.isfinite(cut)]
        limits = (float(known.min()), float(np.percentile(known, 99.8))) if len(known) else (0.0, 1.0)
    low, high = limits or (0.0, 1.0)
    ax.imshow(np.swapaxes(cut, 0, 1), cmap="gray", origin="lower", extent=_extent(cut.shape, mm, axis), vmin=low,
              vmax=high if high > low else low + 1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)


def _outlines(ax: Any, cut: np.ndarray, mm: Sequence[float], axis: int, style: Line) -> None:
    """The border of each structure."""
    left, right, bottom, top = _extent(cut.shape, mm, axis)
    x = (np.arange(cut.shape[0]) + 0.5) / cut.shape[0] * (right - left)
    y = (np.arange(cut.shape[1]) + 0.5) / cut.shape[1] * (top - bottom)
    for value in [value for value in np.unique(cut[np.isfinite(cut)]) if value]:
        inside = (cut == value).astype(float)
        if 0 < inside.mean() < 1 and min(inside.shape) > 1:
            ax.contour(x, y, inside.T, levels=[0.5], colors=[style.color], linewidths=[style.width],
                       linestyles=[style.dash])


def _marked(image: np.ndarray, truth: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """``(right, up, 3)``: the image in grey, voxels of unequal labels in red."""
    known = image[np.isfinite(image)]
    low, high = (known.min(), np.percentile(known, 99.8)) if len(known) else (0.0, 1.0)
    grey = np.clip((np.nan_to_num(image) - low) / (high - low or 1.0), 0, 1)
    marked = np.repeat(grey[..., None], 3, -1)
    differ = np.isfinite(truth) & (truth != ours)
    marked[differ] = 0.35 * marked[differ] + 0.65 * MISSED
    return marked


def _key(drawing: Any, ax: Any) -> None:
    from matplotlib.lines import Line2D

    legend(drawing, ax, {each.label: Line2D([], [], color=each.color, linewidth=each.width, linestyle=each.dash)
                         for each in (TRUTH, PREDICTION)})
