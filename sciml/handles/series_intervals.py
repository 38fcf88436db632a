"""How far intervals of forecasts were off on validation, kept beside a run: split conformal prediction of frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.files import replacing
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.series.conformal import Split, outside, widened
from sciml.domains.series.layout import CONSTANT, KNOWN_AHEAD, Layout
from sciml.errors import InputError
from sciml.handles._series import Histories, Made, Model, Progress, Windows, forecast, series_of
from sciml.predictor import Predictor

COVERAGES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
MOST_WINDOWS = 2000


@dataclass(frozen=True)
class Calibration:
    """Margins ``(C, H, V)`` in widths of the interval, of `windows` validation windows of a data set, per coverage."""

    dataset: str
    variates: tuple[str, ...]
    coverages: tuple[float, ...]
    windows: int
    margins: np.ndarray

    def applied(self, made: Made, levels: Sequence[float], dataset: str, members: np.ndarray) -> Made:
        """Quantiles q and 1 − q moved outwards, or inwards, by the margin of the coverage between them; beyond the
        calibrated horizon by that of its end. The median stays.

        Raises `InputError` for another data set, a level whose counterpart isn't asked for, and one not calibrated.
        """
        if dataset != self.dataset:
            raise InputError("calibration", key="dataset", found=self.dataset, expected=dataset,
                             fix="calibrate on a store of that data set")
        quantiles = made.quantiles.copy()
        steps = np.minimum(np.arange(made.mean.shape[-1]), self.margins.shape[1] - 1)
        for low, high, cover in pairs(levels):
            margin = self.margins[self._place(cover)][steps][:, members].T
            quantiles[..., low], quantiles[..., high] = widened(quantiles[..., low], quantiles[..., high], margin)
        return replace(made, quantiles=np.sort(quantiles, -1))

    def _place(self, cover: float) -> int:
        near = np.flatnonzero(np.isclose(self.coverages, cover, atol=1e-6))
        if not len(near):
            raise InputError("calibration", key="coverage", found=f"{cover:g}",
                             expected=f"one of {', '.join(f'{c:g}' for c in self.coverages)}",
                             fix="ask for other quantiles, or calibrate for these")
        return int(near[0])

    def save(self, path: Path) -> Path:
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"dataset": self.dataset, "variates": self.variates, "coverages": self.coverages,
                 "windows": self.windows}
        with replacing(path) as new:
            save_file({"margins": np.ascontiguousarray(self.margins)}, new, metadata={"calibration": json.dumps(about)})
        return path

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises `InputError` unless `save` wrote it."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                about: dict[str, Any] = json.loads(file.metadata()["calibration"])
                margins = np.asarray(file.get_tensor("margins"))
            made = cls(str(about["dataset"]), tuple(about["variates"]), tuple(map(float, about["coverages"])),
                       int(about["windows"]), margins)
            if margins.ndim != 3 or margins.shape[::2] != (len(made.coverages), len(made.variates)):
                raise ValueError(f"margins {margins.shape}")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, found=f"{error}"[:120], expected="a calibration", fix="delete it, or make it again "
                             "(sciml forecast --calibrate STORE)") from None
        return made


def pairs(levels: Sequence[float]) -> list[tuple[int, int, float]]:
    """(place of q, place of 1 − q, coverage) of every central interval of ascending levels.

    >>> pairs((0.1, 0.5, 0.9))
    [(0, 2, 0.8)]
    """
    made = []
    for low, level in enumerate(levels):
        if abs(level - 0.5) < 1e-9:
            continue
        other = [i for i, one in enumerate(levels) if abs(one + level - 1) < 1e-9]
        if not other:
            raise InputError("calibration", key="quantiles", found=f"{level:g} without {1 - level:g}",
                             expected="both ends of every interval", fix=f"ask for {1 - level:g}, too")
        if level < 0.5:
            made.append((low, other[0], round(1 - 2 * level, 9)))
    return made


def calibrate(predictor: Predictor, store: Store, *, coverages: Sequence[float] = COVERAGES,
              progress: Progress | None = None) -> Calibration:
    """Of a store's validation split: at most `MOST_WINDOWS` windows of the longest horizon fitted that it has room for,
    spread evenly over it. Raises `InputError` for a data set the checkpoint doesn't know, or without such windows."""
    model = model_of_store(predictor, store)
    if model.known.clock.stepless:
        raise InputError(store.url, key="step_time", found="times that follow no step",
                         expected="steps: intervals are calibrated for each of them",
                         fix="leave the calibration out; the model's own quantiles are kriging's")
    horizon = max((h for h in model.horizons if _room(store, h)), default=model.horizons[0])
    asked = windows_of(model, store, "validation", horizon, most=MOST_WINDOWS)
    levels = sorted({round(q, 9) for c in coverages for q in ((1 - c) / 2, (1 + c) / 2)})
    made = forecast(model, asked.given, horizon, levels, progress)
    q = made.quantiles
    margins = np.stack([Split.of(outside(q[..., low], q[..., high], asked.truth)).margin(cover).T
                        for low, high, cover in sorted(pairs(levels), key=lambda pair: pair[2])])
    covers = tuple(sorted(round(c, 9) for c in coverages))
    return Calibration(model.known.name, model.known.variates, covers, len(asked.truth), margins.astype(np.float32))


def model_of_store(predictor: Predictor, store: Store) -> Model:
    """The data set of a store; one that wasn't fitted as a guest. Raises `InputError` if the checkpoint can't take it.
    """
    adapter = series_of(predictor).meeting(store)
    return Model(predictor, adapter, adapter.datasets[store.meta.dataset])


def _room(store: Store, horizon: int) -> bool:
    return any(block.stop - block.start >= horizon for block in store.meta.splits.validation)


def windows_of(model: Model, store: Store, split: SplitName, horizon: int, *, stride: int = 1, before: int = 0,
               most: int | None = None) -> Windows:
    """Look-backs, or `before` cells if that is more, before origins `stride` apart, and what followed, whose every cell
    lies in the split; the last origin of a block is the last there is room for. most: so many windows, spread evenly.

    Raises `InputError` if the split has no room for one.
    """
    layout, known, before = Layout.of(store), model.known, max(before, model.look_back)
    dim = store.meta.group_dim
    names = store.coord(dim) if dim in store.lazy().coords else np.arange(store.meta.groups)
    found: list[tuple[np.ndarray, ...]] = []
    for block in store.meta.splits.of(split):
        start = max(block.start - before, 0)
        now = np.arange(block.stop - horizon, start + before - 1, -stride)[::-1] - start
        if not len(now):
            continue
        values = layout.values(block.group, start, block.stop).astype(np.float64)
        ticks = known.clock.ticks(layout.times(block.group, start, block.stop), where=store.url)
        past, later = now[:, None] + np.arange(-before, 0), now[:, None] + np.arange(horizon)
        more = []
        if known.covariates.names:
            read = store.read(KNOWN_AHEAD, block.group, start, block.stop)
            more.append(read[np.concatenate([past, later], 1)])
        if known.static.names:
            more.append(np.repeat(store.read(CONSTANT, block.group)[None], len(now), 0))
        found.append((values[past].swapaxes(1, 2), ticks[now - 1], values[later].swapaxes(1, 2),
                      np.full(len(now), names[block.group]), *more))
    if not found:
        raise InputError(store.url, key=f"{split} split", found="no block that long",
                         expected=f"room for look-back {before} and horizon {horizon}", fix="ask for a shorter horizon")
    history, last, truth, ids, *rest = (np.concatenate(parts) for parts in zip(*found))
    covariates = rest.pop(0) if known.covariates.names else None
    members = known.members(list(layout.variates), where=store.url)
    whole = Windows(Histories(history, last, members, covariates, rest[0] if rest else None), truth, ids)
    if most is None or len(truth) <= most:
        return whole
    return whole.rows(np.unique(np.linspace(0, len(truth) - 1, most).round().astype(int)))
