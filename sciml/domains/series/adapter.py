"""The domain `series`: multivariate time series on the lattice (variate: set, time), forecast beyond a look-back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml.adapter import Arrays, Metric, Operate, Question, Windows, arrays_of, joined
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.series.calendar import PERIODS_NS
from sciml.domains.series.config import SeriesConfig
from sciml.domains.series.encode import CHANNEL, HEAD, VECTOR_CONDITIONS, Frame, Window, encode_window, window_of
from sciml.domains.series.fitted import Fitted
from sciml.domains.series.fitted import fit as fit_dataset
from sciml.domains.series.scores import declared
from sciml.domains.series.scores import score as score_windows
from sciml.domains.series.windows import Layout, split_windows
from sciml.errors import InputError
from sciml.recipe import validate
from sciml.tokens import HeadSpec, Outputs, State, TokenBatch, TokenSpec


@dataclass(frozen=True)
class Series:
    """Forecasts that correct a closed-form ridge, in standardised units (link space).

    datasets: what is known of each, by name. reference: look-back (steps) and step (seconds) of the first one fitted,
    by which coordinates are divided for good. A rollout step forecasts `horizon` cells and slides the look-back over
    them.
    """

    config: SeriesConfig
    datasets: Mapping[str, Fitted] = field(default_factory=dict)
    reference: tuple[int, float] | None = None
    name: str = "series"
    differentiate: tuple[str, ...] = ()

    @property
    def objective(self) -> str:
        return self.config.objective

    @property
    def baseline_name(self) -> str:
        return "ridge"

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Self:
        return cls(validate(SeriesConfig, dict(config), where="domains.series"))

    def reconfigured(self, config: Mapping[str, Any]) -> Self:
        return replace(self, config=validate(SeriesConfig, dict(config), where="domains.series"))

    def fit(self, store: Store) -> Self:
        """Reads the training and validation splits only. See `sciml.domains.series.fitted.fit`."""
        fitted = fit_dataset(store, self.config)
        reference = self.reference or (fitted.look_back, fitted.clock.dt)
        return replace(self, datasets={**self.datasets, fitted.name: fitted}, reference=reference)

    def floor(self) -> Self:
        """The same adapter with the plain ridge, without cycles, as the baseline: the floor of every score."""
        return replace(self, datasets={name: fit.floor() for name, fit in self.datasets.items()})

    def spec(self) -> TokenSpec:
        return TokenSpec(
            domain=self.name, channels=(CHANNEL,), heads={HEAD: HeadSpec("lattice", (CHANNEL,))},
            lattice_conditions=self._frame().lattice_conditions, vector_conditions=VECTOR_CONDITIONS,
            identities={f"{name}/variate": fit.variates for name, fit in self.datasets.items()},
            patch=self.config.patch, units={CHANNEL: "1"})

    def open(self, store: Store, split: SplitName, *, train: bool = False) -> Windows:
        """All windows of the longest horizon that fits the split; `train`: each batch draws one of the horizons."""
        name = store.meta.dataset
        horizons = self._known(name, store.url).horizons
        return split_windows(Layout.of(store), split, self.config.look_back_of(name), horizons, train=train,
                             missing=self.config.missing)

    def starts(self, store: Store, split: SplitName) -> list[xr.Dataset]:
        """The first window of every block, with all the block's truth; a rollout step is the shortest horizon."""
        name = store.meta.dataset
        fit, look_back = self._known(name, store.url), self.config.look_back_of(name)
        windows = split_windows(Layout.of(store), split, look_back, fit.horizons[:1])
        return [sample.assign_attrs(horizon=fit.horizons[0]) for sample in windows.whole_blocks()]

    def encode(self, sample: xr.Dataset) -> TokenBatch:
        """Attributes: dataset; look_back (default: as configured); horizon (default: what follows the look-back in the
        sample, else the shortest one fitted). Without a truth, the target's mask is False everywhere."""
        where = sample.attrs.get("source", "sample")
        name = sample.attrs.get("dataset") or self._only(where)
        fit = self._known(name, where)
        length = sample.sizes.get("time", 0)
        look_back = int(sample.attrs.get("look_back", min(length, self.config.look_back_of(name))))
        if "look_back" not in sample.attrs:
            sample = sample.isel(time=slice(length - look_back, None))
        horizon = int(sample.attrs.get("horizon", 0)) or sample.sizes["time"] - look_back or fit.horizons[0]
        return encode_window(fit, self._frame(), window_of(fit, sample, look_back, horizon))

    def decode(self, batch: TokenBatch, predictions: Mapping[str, Tensor]) -> xr.Dataset:
        """``value (sample, time, variate)`` of the horizon, in the variates' units, at ``valid_time (sample, time)``.

        ``known``: where the batch holds a truth.
        """
        past = _look_back(batch)
        target = batch.targets[HEAD]
        known = target.mask.expand(batch.values.shape)[..., past:, 0]
        values = predictions[HEAD].expand(batch.values.shape)[..., past:, 0]
        return self._dataset(batch, values, _ticks(batch)[:, past:], known=known)

    def derive(self, batch: TokenBatch, operate: Operate, create_graph: bool) -> Outputs:
        return operate(batch)

    def initial(self, sample: xr.Dataset) -> State:
        """From a look-back; the truth, if the sample has one, is not used."""
        batch = self.encode(sample)
        past = _look_back(batch)
        target = batch.targets[HEAD]
        assert batch.observed is not None
        extra = {"history": target.value[..., :past, 0], "observed": batch.observed[..., :past, 0],
                 "ticks": torch.from_numpy(_ticks(batch))}
        blind = replace(target, value=torch.cat([target.value[..., :past, :], torch.zeros_like(
            target.value[..., past:, :])], -2), mask=torch.zeros_like(target.mask))
        return State(batch=replace(batch, targets={HEAD: blind}), extra=extra)

    def advance(self, state: State, outputs: Outputs) -> State:
        """The horizon's forecast becomes the end of the look-back; time moves by horizon · dt."""
        batch, fit = state.batch, self._known(state.batch.dataset, "rollout")
        past, ticks = _look_back(batch), state.extra["ticks"].cpu().numpy()
        forecast = batch.targets[HEAD].predict(outputs[HEAD])[..., past:, 0]
        horizon = forecast.shape[-1]
        history = torch.cat([state.extra["history"], forecast], -1)[..., -past:]
        observed = torch.cat([state.extra["observed"], torch.ones_like(forecast, dtype=torch.bool)], -1)[..., -past:]
        ticks = ticks + horizon * fit.clock.step
        window = Window(history, observed, ticks, _members(batch), None, batch.sources)
        return replace(state, batch=encode_window(fit, self._frame(), window), step=state.step + 1,
                       elapsed=state.elapsed + horizon * fit.clock.dt,
                       extra={"history": history, "observed": observed, "forecast": forecast,
                              "ticks": torch.from_numpy(ticks)})

    def observe(self, state: State) -> xr.Dataset:
        """The cells forecast last; before the first step, the look-back. As `decode`, without ``known``."""
        past, ticks = _look_back(state.batch), state.extra["ticks"].cpu().numpy()
        if "forecast" not in state.extra:
            seen = torch.where(state.extra["observed"], state.extra["history"], torch.nan)
            return self._dataset(state.batch, seen, ticks[:, :past])
        forecast = state.extra["forecast"]
        horizon, step = forecast.shape[-1], self._known(state.batch.dataset, "rollout").clock.step
        return self._dataset(state.batch, forecast, ticks[:, past:past + 1] + step * np.arange(-horizon, 0))

    def questions(self, store: Store, split: SplitName) -> list[Question]:
        """One per horizon that fits the split, named by its steps; windows overlap by look-back and horizon."""
        name = store.meta.dataset
        layout, look_back, result = Layout.of(store), self.config.look_back_of(name), []
        fitting = split_windows(layout, split, look_back, self._known(name, store.url).horizons, train=True).horizons
        for horizon in fitting:
            windows = split_windows(layout, split, look_back, (horizon,))
            result.append(Question(str(horizon), windows, block=look_back + horizon, look_back=True,
                                   options={"dataset": name, "look_back": look_back, "horizon": horizon}))
        return result

    def metrics(self) -> tuple[Metric, ...]:
        return declared(self._unit())

    def score(self, question: Question, prediction: xr.Dataset, truth: xr.Dataset) -> dict[str, np.ndarray]:
        return score_windows(self._known(question.options["dataset"], "question"), self._unit(), prediction, truth)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        datasets, arrays = joined({name: fit.state() for name, fit in self.datasets.items()})
        return {"config": self.config.model_dump(mode="json"), "reference": self.reference,
                "datasets": datasets}, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Self:
        datasets = {name: Fitted.restore(name, part, arrays_of(name, arrays))
                    for name, part in config["datasets"].items()}
        reference = config["reference"]
        return cls(validate(SeriesConfig, config["config"], where="checkpoint"), datasets,
                   None if reference is None else (int(reference[0]), float(reference[1])))

    def _known(self, name: str, where: object) -> Fitted:
        if name not in self.datasets:
            known = ", ".join(self.datasets) or "none yet"
            raise InputError(where, key="dataset", found=name, expected=f"one of {known}",
                             fix="fit the adapter to its store first (sciml finetune)")
        return self.datasets[name]

    def _only(self, where: object) -> str:
        if len(self.datasets) != 1:
            raise InputError(where, key="dataset", found="no attribute", expected=f"one of {', '.join(self.datasets)}",
                             fix="set dataset.attrs['dataset']")
        return next(iter(self.datasets))

    def _frame(self) -> Frame:
        look_back, dt = self.reference or (self.config.look_back, 1.0)
        used = {period for fit in self.datasets.values() for period in fit.calendar}
        return Frame(look_back, dt, tuple(p for p in PERIODS_NS if p in used), self.config.spread, self.config.level)

    def _unit(self) -> str | None:
        units = {unit for fit in self.datasets.values() for unit in fit.units}
        return units.pop() if len(units) == 1 else None

    def _dataset(self, batch: TokenBatch, values: Tensor, ticks: np.ndarray, known: Tensor | None = None) -> xr.Dataset:
        """Standardised ``(B, V, T)`` values in physical units."""
        fit, members = self._known(batch.dataset, "batch"), _members(batch)
        physical = values.detach().cpu().double().numpy() * fit.std[members, None] + fit.mean[members, None]
        dims = ("sample", "time", "variate")
        data = {HEAD: (dims, physical.swapaxes(1, 2))}
        if known is not None:
            data["known"] = (dims, known.cpu().numpy().swapaxes(1, 2))
        times = fit.clock.times(np.broadcast_to(ticks, (len(physical), ticks.shape[1])))
        return xr.Dataset(data, coords={
            "valid_time": (("sample", "time"), times),
            "variate": [fit.variates[i] for i in members], "variate_unit": ("variate", [fit.units[i] for i in members]),
            "source": ("sample", list(batch.sources))}, attrs={"domain": self.name, "dataset": fit.name})


def _look_back(batch: TokenBatch) -> int:
    """Cells up to and with the last known time, whose coordinate is 0."""
    return int((batch.axes[1].coord[0, :, 0] <= 1e-6).sum())


def _ticks(batch: TokenBatch) -> np.ndarray:
    ids = batch.axes[1].ids
    assert ids is not None
    return ids.expand(batch.num_segments, -1).cpu().numpy()


def _members(batch: TokenBatch) -> np.ndarray:
    ids = batch.axes[0].ids
    assert ids is not None
    return ids[0].cpu().numpy()
