"""What a store of recordings holds, read once per recording: counts or traces in bins, events, and what goes with them.

``<dim>_value (recording, time, <dim>)``: behaviour (role label), the shares of the bin spent in each discrete state
(dim ``state``, whose labels are the names of the classes; role label), and of role covariate whatever is known beside
them: stimulus, LFP, temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sciml.data.schema import Block, SplitName
from sciml.data.store import Store
from sciml.errors import InputError


class Memo(dict[int, "Recorded"]):
    """What was read, by recording; not pickled, never makes two objects differ."""

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


@dataclass(frozen=True)
class Recorded:
    """One recording: ``count (T, N)``, counts or traces, with NaN where not recorded, ``behaviour (T, K)``, ``state
    (T, C)``, ``stimulus (T, P)``, all covariates, and, where the store has them, ``spike_time (S,)`` in seconds and
    ``spike_unit (S,)``, in order of time."""

    count: np.ndarray
    behaviour: np.ndarray
    state: np.ndarray
    stimulus: np.ndarray
    spike_time: np.ndarray | None = None
    spike_unit: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Labels and time grid of a store at a bin width; `Recorded` per recording, kept.

    labels: of ``unit``'s companions ``behaviour``, ``state`` and ``stimulus``; the last are all covariates, each
    ``<dim>_<label>``.
    """

    store: Store
    merge: int
    units: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def of(cls, store: Store, bin_s: float | None, behaviours: Sequence[str] | None = None) -> Layout:
        """Raises `InputError` unless the store holds counts, spike times or traces of units, and `bin_s` is a multiple
        of its bins."""
        meta = store.meta
        binned = any(meta.variables[n].dims == ("time", "unit") for n in ("count", "trace") if n in meta.variables)
        if not binned and "spike_time" not in meta.variables:
            found = f"domain {meta.domain} with {', '.join(f'{n} {v.dims}' for n, v in meta.variables.items())}"
            raise InputError(store.url, key="count", found=found,
                             expected="count (time, unit), spike_time (spike) or trace (time, unit)",
                             fix="build the store as domain spikes, or pass it to its own domain")
        if meta.dt is None:
            raise InputError(store.url, key="time", found="uneven bins", expected="bins of one width",
                             fix="build the store with a bin width")
        ratio = 1.0 if bin_s is None else bin_s / meta.dt
        if ratio < 1 - 1e-6 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise InputError(store.url, key="domains.spikes.bin_s", found=bin_s,
                             expected=f"a multiple of the store's bins of {meta.dt:g} s",
                             fix="choose a multiple, or build the store with narrower bins")
        labels = {dim: store.members(dim) if dim in meta.axes else () for dim in ("behaviour", "state")}
        labels["stimulus"] = tuple(f"{dim}_{label}" for dim in covariate_dims(store) for label in store.members(dim))
        if behaviours is not None:
            unknown = [name for name in behaviours if name not in labels["behaviour"]]
            if unknown:
                raise InputError(store.url, key="domains.spikes.behaviours", found=", ".join(unknown),
                                 expected=f"some of {', '.join(labels['behaviour']) or 'none'}",
                                 fix="correct the names")
            labels["behaviour"] = tuple(behaviours)
        return cls(store, round(ratio), store.members("unit"), labels)

    @property
    def bin_s(self) -> float:
        assert self.store.meta.dt is not None
        return self.store.meta.dt * self.merge

    @property
    def start_s(self) -> float:
        """Left edge of the first bin."""
        return float(self.store.coord("time")[0])

    @property
    def has_events(self) -> bool:
        return "spike_time" in self.store.meta.variables

    @property
    def signal(self) -> str:
        """``count``, also where only events are stored, or ``trace``."""
        known = self.store.meta.variables
        return "trace" if "trace" in known and "count" not in known and not self.has_events else "count"

    @property
    def unit(self) -> str:
        """Of what is counted (1) or traced."""
        return "1" if self.signal == "count" else self.store.meta.variables["trace"].unit

    @property
    def behaviour_units(self) -> tuple[str, ...]:
        if not self.labels["behaviour"]:
            return ()
        if "behaviour_unit" in self.store.lazy().coords:
            known = dict(zip(self.store.members("behaviour"), map(str, self.store.coord("behaviour_unit"))))
            return tuple(known[name] for name in self.labels["behaviour"])
        return (self.store.meta.variables["behaviour_value"].unit,) * len(self.labels["behaviour"])

    def blocks(self, split: SplitName) -> tuple[Block, ...]:
        """The split's blocks in merged bins, those that lie inside whole."""
        edges = ((b.group, -(-b.start // self.merge), b.stop // self.merge) for b in self.store.meta.splits.of(split))
        return tuple(Block(group=group, start=start, stop=stop) for group, start, stop in edges if stop > start)

    def recorded(self, group: int) -> Recorded:
        if group not in self.memo:
            self.memo[group] = self._read(group)
        return self.memo[group]

    def _read(self, group: int) -> Recorded:
        known = self.store.meta.variables
        steps = len(self.store.coord("time"))
        events = self._events(group) if self.has_events else (None, None)
        if self.signal in known:
            count = self._whole(self.signal, group, steps)
        else:
            assert events[0] is not None
            assert events[1] is not None
            count = self._binned(*events, steps)
            if self.store.visible("spike_time", group) != ((0, int(self.store.rows("spike")[group])),):
                for block in self.store.meta.splits.test:
                    count[block.start * (block.group == group):block.stop * (block.group == group)] = np.nan
        gap = np.zeros(steps, bool)
        if "recorded" in known:
            gap = ~(self._whole("recorded", group, steps) > 0)
            count[gap] = np.nan
        beside = [self._value(dim, group, steps) for dim in covariate_dims(self.store)]
        covariates = np.concatenate([np.zeros((steps // self.merge, 0), np.float32), *beside], 1)
        return Recorded(self._merged(count, np.sum if self.signal == "count" else np.mean),
                        self._labelled("behaviour", group, gap), self._labelled("state", group, gap), covariates,
                        *events)

    def _whole(self, name: str, group: int, steps: int) -> np.ndarray:
        """``(T, …)`` float32 of a recording, NaN where the store withholds it."""
        spans = self.store.visible(name, group)
        if spans == ((0, steps),):
            return np.asarray(self.store.read(name, group), np.float32)
        parts = [np.asarray(self.store.read(name, group, *span), np.float32) for span in spans]
        found = np.full((steps, *self.store.read(name, group, 0, 0).shape[1:]), np.nan, np.float32)
        for (start, stop), part in zip(spans, parts):
            found[start:stop] = part
        return found

    def _events(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        time, unit = (np.concatenate([self.store.read(name, group, 0, 0), *(
            self.store.read(name, group, *span) for span in self.store.visible(name, group))])
            for name in ("spike_time", "spike_unit"))
        return np.asarray(time, np.float64), np.asarray(unit, np.int64)

    def _binned(self, time: np.ndarray, unit: np.ndarray, steps: int) -> np.ndarray:
        """``(steps, units)`` events per bin of the store; edges belong to the later bin."""
        assert self.store.meta.dt is not None
        place = np.floor((time - self.start_s) / self.store.meta.dt + 1e-9).astype(np.int64)
        count = np.zeros((steps, len(self.units)), np.float32)
        inside = (place >= 0) & (place < steps)
        np.add.at(count, (place[inside], unit[inside]), 1)
        return count

    def _labelled(self, dim: str, group: int, gap: np.ndarray) -> np.ndarray:
        """Unknown where nothing was recorded (``gap (T,)``) that could tell it."""
        members = self.store.members(dim) if self.labels[dim] else ()
        values = self._value(dim, group, len(gap), gap)
        return values if members == self.labels[dim] else values[:, [members.index(n) for n in self.labels[dim]]]

    def _value(self, dim: str, group: int, steps: int, gap: np.ndarray | None = None) -> np.ndarray:
        if f"{dim}_value" not in self.store.meta.variables:
            return np.zeros((steps // self.merge, 0), np.float32)
        values = self._whole(f"{dim}_value", group, len(self.store.coord("time")))
        if gap is not None:
            values[gap] = np.nan
        return self._merged(values, np.mean)

    def _merged(self, values: np.ndarray, how: object) -> np.ndarray:
        """Every `merge` bins as one, NaN where any is; a rest at the end is left out."""
        if self.merge == 1:
            return values
        whole = values[:len(values) // self.merge * self.merge]
        return np.asarray(how(whole.reshape(-1, self.merge, whole.shape[1]), axis=1))  # type: ignore[operator]


def covariate_dims(store: Store) -> tuple[str, ...]:
    """Dimensions of the covariates ``<dim>_value (time, <dim>)``, in the order of the store."""
    return tuple(name.removesuffix("_value") for name, v in store.meta.variables.items()
                 if v.role == "covariate" and v.dims == ("time", name.removesuffix("_value")))
