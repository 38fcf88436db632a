"""Where a store of series keeps what: a lattice with a common time axis, or ragged rows of unequal series."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from sciml.data import rhythm
from sciml.data.schema import StoreMeta
from sciml.data.store import Store
from sciml.errors import InputError

VARIABLE, LABEL, ANOMALY = "value", "label", "anomaly"
COVARIATE, STATIC, CLASSES = "covariate", "static", "class"
"""Dimensions; of the first two the variables are `KNOWN_AHEAD` and `CONSTANT`."""
KNOWN_AHEAD, CONSTANT = "covariate_value", "static_value"
STEP, CLOCK = "step", "step_time"
KEPT = 4096
"""Series whose coordinates are kept."""


@dataclass(frozen=True)
class Layout:
    """A store of series: labels, units, times and values of every one of them."""

    store: Store

    @classmethod
    def of(cls, store: Store) -> Layout:
        """Raises `InputError` unless the store holds ``value (time, variate)`` or, of unequal lengths, ``(step,
        variate)``."""
        known = store.meta.variables.get(VARIABLE)
        if known is None or known.dims not in (("time", "variate"), (STEP, "variate")):
            raise InputError(store.url, key=VARIABLE, found=_found(store.meta),
                             expected="a state variable value (time, variate)",
                             fix="build the store as domain series, or pass it to its own domain")
        return cls(store)

    @property
    def name(self) -> str:
        return self.store.meta.dataset

    @property
    def ragged(self) -> bool:
        return STEP in self.store.meta.ragged

    @cached_property
    def variates(self) -> tuple[str, ...]:
        return tuple(map(str, self.store.members("variate")))

    @cached_property
    def units(self) -> tuple[str, ...]:
        return tuple(map(str, self.store.coord("variate_unit")))

    @cached_property
    def covariates(self) -> tuple[str, ...]:
        """Known into the future."""
        return tuple(map(str, self.store.members(COVARIATE))) if KNOWN_AHEAD in self.store.meta.variables else ()

    @cached_property
    def static(self) -> tuple[str, ...]:
        return tuple(map(str, self.store.members(STATIC))) if CONSTANT in self.store.meta.variables else ()

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, self.store.members(CLASSES))) if CLASSES in self.store.meta.axes else ()

    @cached_property
    def time(self) -> np.ndarray | None:
        """``(T,)`` the common time axis; None where each series has its own."""
        return None if self.ragged else np.asarray(self.store.coord("time"))

    @cached_property
    def irregular(self) -> bool:
        """Whether times follow no step, and the source says so: ``irregular: keep``, or ``uniform: false`` of a common
        time axis."""
        if self.time is None:
            return bool(self.store.lazy()[CLOCK].attrs.get("freq") == rhythm.IRREGULAR)
        return self.store.meta.dt is None and not rhythm.stepped(self.time)

    def length(self, group: int) -> int:
        return int(self.store.rows(STEP)[group]) if self.time is None else len(self.time)

    def times(self, group: int, start: int, stop: int) -> np.ndarray:
        """``(T,)`` datetime64 or numbers."""
        if self.time is not None:
            return np.asarray(self.time[start:stop])
        stamps = self.store.read(CLOCK, group, start, stop)
        return stamps.astype("datetime64[ns]") if stamps.dtype.kind == "i" else stamps

    def values(self, group: int, start: int, stop: int) -> np.ndarray:
        """``(T, V)`` in the variates' units; NaN is missing."""
        return self.store.read(VARIABLE, group, start, stop)

    def label(self, group: int) -> int | None:
        """The class of a series; None where it isn't known."""
        found = float(self.store.read(LABEL, group)) if self.classes else np.nan
        return int(found) if np.isfinite(found) else None

    def sample(self, group: int, start: int, stop: int, values: np.ndarray | None = None,
               **attrs: object) -> xr.Dataset:
        """``value (time, variate)`` for start ≤ t < stop (or these `values`), with the covariates, constants and class
        that there are."""
        data: dict[str, tuple[tuple[str, ...], object]] = {
            VARIABLE: (("time", "variate"), self.values(group, start, stop) if values is None else values)}
        if self.covariates:
            data[KNOWN_AHEAD] = (("time", COVARIATE), self.store.read(KNOWN_AHEAD, group, start, stop))
        if self.static:
            data[CONSTANT] = ((STATIC,), self.store.read(CONSTANT, group))
        if ANOMALY in self.store.meta.variables:
            data[ANOMALY] = (("time",), self.store.read(ANOMALY, group, start, stop))
        label = self.label(group)
        if label is not None:
            data[LABEL] = ((), label)
        coords = self._coords(group).isel(time=slice(start, stop)).coords
        return xr.Dataset(data, coords=coords, attrs={
            "domain": "series", "dataset": self.name, "group": group,
            "source": f"{self.name}/{self.store.meta.group_dim} {group} @ {start}", **attrs})

    def _coords(self, group: int) -> xr.Dataset:
        """Of a whole series; kept, as making them takes longer than reading a window."""
        place = group if self.ragged else 0
        if place not in self._made:
            if len(self._made) >= KEPT:
                self._made.clear()
            pairs = ((COVARIATE, self.covariates), (STATIC, self.static))
            named = {name: list(names) for name, names in pairs if names}
            self._made[place] = xr.Dataset(coords={
                "time": self.times(group, 0, self.length(group)), "variate": list(self.variates),
                "variate_unit": ("variate", list(self.units)), **named})
        return self._made[place]

    @cached_property
    def _made(self) -> dict[int, xr.Dataset]:
        return {}


def _found(meta: StoreMeta) -> str:
    return f"domain {meta.domain} with {', '.join(f'{n} {v.dims}' for n, v in meta.variables.items())}"
