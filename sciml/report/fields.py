"""What a rollout of fields looks like: maps, error against step, spectra. Reads only the steps and samples it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from sciml.metrics import energy_spectrum, power_spectrum, relative_l2
from sciml.report import maps
from sciml.report.charts import HALO, MUTED, OURS, Line, Picture, draw, figure, legend, to_svg
from sciml.report.maps import Frame, Map, Panel, figure_

MAX_SAMPLES, MAX_VARIABLES, SPECTRUM_SAMPLES = 2, 3, 8
SPECTRUM_FLOOR = 1e-10


@dataclass(frozen=True)
class Source:
    """One variable of a rollout, ``(sample, time, *space)``, with the truth if it is known.

    stopped: sample → the step from which it is not finite.
    """

    dataset: str
    name: str
    predicted: xr.DataArray
    truth: xr.DataArray | None
    stopped: Mapping[str, int]

    @property
    def unit(self) -> str:
        return str(self.predicted.attrs.get("units", "1"))

    @property
    def space(self) -> tuple[str, ...]:
        return tuple(str(dim) for dim in self.predicted.dims[2:])

    @property
    def title(self) -> str:
        return str(self.predicted.attrs.get("long_name") or self.name.replace("_", " "))

    def read(self, sample: int, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Both fields ``(*space)`` in float64 at one step; None for a truth that isn't known there."""
        index = {self.predicted.dims[0]: sample, self.predicted.dims[1]: step}
        truth = None if self.truth is None else self.truth.isel(index).values.astype(np.float64)
        known = truth is not None and np.isfinite(truth).any()
        return self.predicted.isel(index).values.astype(np.float64), truth if known else None

    def label(self, step: int, sample: int = 0) -> str:
        """``step 20 · t = 2 s``, without the time where no coordinate tells it."""
        time = self.predicted.coords.get("time")
        if time is None:
            return f"step {step + 1}"
        value = time.isel({dim: sample if dim == "sample" else step for dim in time.dims}).values
        return f"step {step + 1} · t = {figure_(float(value))} {unit_text(time.attrs.get('units', ''))}".strip()


def sources(dataset: str, path: Path) -> list[Source]:
    """The predicted variables in a rollout store, at most three, opened lazily."""
    store = xr.open_zarr(path, consolidated=False, decode_timedelta=False)
    found = []
    for key, variable in store.data_vars.items():
        name = str(key)
        if name.endswith("_truth") or variable.dims[:2] != ("sample", "time") or "variate" in variable.dims:
            continue
        truth = store.get(f"{name}_truth")
        found.append(Source(dataset, name, variable, None if truth is None else truth.transpose(*variable.dims),
                            dict(store.attrs.get("stopped", {}))))
    return [source for source in found if source.space][:MAX_VARIABLES]


def panels(source: Source, budget: int) -> list[Panel]:
    """Maps of the first samples; `budget`: how many panels the whole page shares its size among."""
    count = min(MAX_SAMPLES, source.predicted.sizes["sample"])
    make = _space_time if len(source.space) == 1 else _frames
    return [make(source, sample, budget) for sample in range(count)]


def _frames(source: Source, sample: int, budget: int) -> Panel:
    shape = source.predicted.shape[2:4]
    steps = maps.chosen(source.predicted.sizes["time"], (shape[0], shape[1]), budget)
    pairs = [(_plane(p), None if t is None else _plane(t)) for p, t in (source.read(sample, int(s)) for s in steps)]
    known = [(p, t) for p, t in pairs if t is not None]
    values = maps.value_scale([t for _, t in known] or [p for p, _ in pairs], source.unit)
    errors = maps.error_scale([p - t for p, t in known], source.unit) if known else None
    frames = [_frame(source, source.label(int(s), sample), p, t, values, errors) for s, (p, t) in zip(steps, pairs)]
    caption = [f"Sample {sample + 1} of {source.predicted.sizes['sample']}.", *_axes_text(source)]
    if str(sample) in source.stopped:
        caption.append(f"The rollout stopped at step {source.stopped[str(sample)]}: not finite (grey).")
    if 0 < len(known) < len(pairs):
        caption.append("The truth is known for the first steps only.")
    thinning = maps.stride(shape)
    if thinning != (1, 1):
        caption.append(f"Every {' × '.join(f'{n}.' for n in thinning)} cell is shown.")
    if len(source.space) == 3:
        caption.append(f"The middle plane of {source.space[2]}.")
    return Panel(_title(source, sample), tuple(frames), values, errors, " ".join(caption), shape[0] / shape[1])


def _frame(source: Source, label: str, p: np.ndarray, t: np.ndarray | None, values: maps.Scale,
           errors: maps.Scale | None) -> Frame:
    pictures = [Map("predicted", maps.picture(p, values), f"Predicted {source.title} at {label}")]
    note = ""
    if not np.isfinite(p).all():
        note = f"{np.mean(~np.isfinite(p)):.0%} of the prediction is not finite (grey)"
    if t is not None and errors is not None:
        pictures += [Map("true", maps.picture(t, values), f"True {source.title} at {label}"),
                     Map("error", maps.picture(p - t, errors), f"Predicted minus true {source.title} at {label}")]
        note = note or f"relative L2 error {figure_(float(relative_l2(p[None], t[None])[0]))}"
    return Frame(label, note, tuple(pictures))


def _space_time(source: Source, sample: int, budget: int) -> Panel:
    """One dimension of space: a single map with the step to the right and the coordinate up."""
    count = source.predicted.sizes["time"]
    steps = np.unique(np.round(np.linspace(0, count - 1, min(count, maps.MAX_SIDE))).astype(int))
    pairs = [source.read(sample, int(step)) for step in steps]
    p = np.stack([a for a, _ in pairs])
    known = [np.full_like(a, np.nan) if b is None else b for a, b in pairs]
    t = np.stack(known) if any(b is not None for _, b in pairs) else None
    values = maps.value_scale([p if t is None else t], source.unit)
    errors = None if t is None else maps.error_scale([p - t], source.unit)
    frame = _frame(source, f"steps 1 to {count}", p, t, values, errors)
    caption = (f"Sample {sample + 1} of {source.predicted.sizes['sample']}. "
               f"Rollout step to the right, {source.space[0]} up.")
    return Panel(_title(source, sample), (frame,), values, errors, caption, 1.6)


def _plane(field: np.ndarray) -> np.ndarray:
    return field if field.ndim == 2 else field[:, :, field.shape[2] // 2]


def _title(source: Source, sample: int) -> str:
    return f"{source.title[:1].upper()}{source.title[1:]}, {source.dataset}, sample {sample + 1}"


def _axes_text(source: Source) -> list[str]:
    parts = []
    for dim, direction in zip(source.space[:2], ("to the right", "up")):
        coord = source.predicted.coords.get(dim)
        if coord is None or coord.size < 2:
            continue
        unit = unit_text(coord.attrs.get("units", ""))
        parts.append(f"{dim} {direction}, {figure_(float(coord[0]))} to {figure_(float(coord[-1]))} {unit}".strip())
    return [f"{'; '.join(parts)}."] if parts else []


def errors(source: Source) -> dict[str, list[float]] | None:
    """Relative L2 error against step, mean over the first samples, as far as the truth is known; None if it is not."""
    samples = range(min(SPECTRUM_SAMPLES, source.predicted.sizes["sample"]))
    ours: list[float] = []
    for step in range(source.predicted.sizes["time"]):
        scored = [float(relative_l2(p[None], t[None])[0]) for p, t in (source.read(s, step) for s in samples)
                  if t is not None]
        if not scored:
            break
        ours.append(float(np.mean(scored)))
    return {"step": [float(i + 1) for i in range(len(ours))], "ours": ours} if ours else None


def spectrum(source: Source, key: str) -> Picture | None:
    """Spectra of prediction and truth at the first, a middle and the last step; None in fewer than two dimensions.

    Kinetic energy if the variable is a vorticity in the plane, else the variance of the variable per shell.
    """
    lengths, periodic = _lengths(source)
    if len(source.space) < 2 or lengths is None:
        return None
    kinetic = "vorticity" in f"{source.name} {source.predicted.attrs.get('standard_name', '')}" and len(lengths) == 2
    count = source.predicted.sizes["time"]
    steps = np.unique([0, (count - 1) // 2, count - 1])
    nyquist = min(np.pi * n / length for n, length in zip(source.predicted.shape[2:], lengths))
    peak = 0.0
    with figure(1, len(steps), size=(2.75 * len(steps) + 0.6, 2.9), share=True) as (drawing, axes):
        for ax, step in zip(axes[0], steps):
            k, ours, truth = _spectra(source, int(step), lengths, kinetic, periodic)
            peak = max(peak, float(np.nanmax(ours if truth is None else truth, initial=0)))
            lines = [] if truth is None else [Line(k, truth, "truth", HALO, width=5)]
            predicted = [Line(k, ours, "predicted", OURS)] if np.isfinite(ours).any() else []
            draw(ax, [*lines, *predicted], log_x=True, log_y=True,
                 x_label=f"wavenumber, rad/{_length_unit(source)}")
            for place, name in ((nyquist, "Nyquist"), (nyquist / 2, "½")):
                ax.axvline(place, color=MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
                ax.annotate(name, (place, 1), xycoords=("data", "axes fraction"), xytext=(-2, -2), fontsize=7.5,
                            textcoords="offset points", ha="right", va="top", color=MUTED, rotation=90)
            ax.set_title(source.label(int(step)))
        if peak > 0:
            axes[0, 0].set_ylim(bottom=max(axes[0, 0].get_ylim()[0], peak * SPECTRUM_FLOOR))
        what = "kinetic energy a shell" if kinetic else f"variance a shell, ({source.unit})²"
        axes[0, 0].set_ylabel(what)
        legend(drawing, axes[0, 0])
        alt = f"Spectrum of {source.title} of prediction and truth at {', '.join(source.label(int(s)) for s in steps)}"
        svg = to_svg(drawing, alt, key)
    caption = f"{'Kinetic energy' if kinetic else 'Variance'} by wavenumber shell, mean over the first samples. " \
              "Dotted: the Nyquist wavenumber of the grid and half of it. Cut at 10⁻¹⁰ of the largest."
    if not periodic:
        caption += " The domain is not periodic: a Hann window was applied."
    title = f"{source.title[:1].upper()}{source.title[1:]}, {source.dataset}"
    return Picture(svg, caption, title)


def _spectra(source: Source, step: int, lengths: tuple[float, ...], kinetic: bool, periodic: bool
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    samples = range(min(SPECTRUM_SAMPLES, source.predicted.sizes["sample"]))
    pairs = [source.read(sample, step) for sample in samples]
    of = energy_spectrum if kinetic else power_spectrum

    def mean(fields: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        values = np.stack(fields)
        if not periodic:
            values = values - values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
            for axis, size in enumerate(values.shape[1:], 1):
                values = values * np.hanning(size).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        k, power = of(values, lengths)
        return k[1:], power.mean(0)[1:]

    k, ours = mean([p for p, _ in pairs])
    known = [t for _, t in pairs if t is not None]
    return k, ours, mean(known)[1] if len(known) == len(pairs) else None


def _lengths(source: Source) -> tuple[tuple[float, ...] | None, bool]:
    """The period of each axis, or its extent, and whether all are periodic; None without coordinates."""
    lengths, periodic = [], True
    for dim in source.space:
        coord = source.predicted.coords.get(dim)
        if coord is None or coord.size < 4:
            return None, False
        period = coord.attrs.get("period")
        periodic = periodic and period is not None
        spacing = float(coord[1] - coord[0])
        lengths.append(float(period) if period is not None else spacing * coord.size)
    return tuple(lengths), periodic


def _length_unit(source: Source) -> str:
    return unit_text(source.predicted.coords[source.space[0]].attrs.get("units", "")) or "length"


def unit_text(unit: object) -> str:
    """A unit as it is printed: nothing for a pure number.

    >>> unit_text("1"), unit_text("m s-1")
    ('', 'm s⁻¹')
    """
    import re

    text = str(unit)
    raised = re.sub(r"(?<=[A-Za-z])(-?\d)", lambda m: m[1].translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")), text)
    return "" if text in ("1", "dimensionless", "None") else raised
