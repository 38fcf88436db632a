"""What a store of recordings holds, read once per recording: counts in bins, events, behaviour, stimulus."""

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
    """One recording: ``count (T, N)`` with NaN where not recorded, ``behaviour (T, K)``, ``stimulus (T, P)`` and, where
    the store has them, ``spike_time (S,)`` in seconds and ``spike_unit (S,)``, in order of time."""

    count: np.ndarray
    behaviour: np.ndarray
    stimulus: np.ndarray
    spike_time: np.ndarray | None = None
    spike_unit: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Labels and time grid of a store at a bin width; `Recorded` per recording, kept."""

    store: Store
    merge: int
    units: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def of(cls, store: Store, bin_s: float | None, behaviours: Sequence[str] | None = None) -> Layout:
        """Raises `InputError` unless the store holds counts or spike times of units, and `bin_s` is a multiple of its
        bins."""
        meta = store.meta
        counted = "count" in meta.variables and meta.variables["count"].dims == ("time", "unit")
        if not counted and "spike_time" not in meta.variables:
            found = f"domain {meta.domain} with {', '.join(f'{n} {v.dims}' for n, v in meta.variables.items())}"
            raise InputError(store.url, key="count", found=found, expected="count (time, unit) or spike_time (spike)",
                             fix="build the store as domain spikes, or pass it to its own domain")
        if meta.dt is None:
            raise InputError(store.url, key="time", found="uneven bins", expected="bins of one width",
                             fix="build the store with a bin width")
        ratio = 1.0 if bin_s is None else bin_s / meta.dt
        if ratio < 1 - 1e-6 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise InputError(store.url, key="domains.spikes.bin_s", found=bin_s,
                             expected=f"a multiple of the store's bins of {meta.dt:g} s",
                             fix="choose a multiple, or build the store with narrower bins")
        labels = {dim: store.members(dim) if dim in meta.axes else () for dim in ("behaviour", "stimulus")}
        if behaviours is not None:
            unknown = [name for name in behaviours if name not in labels["behaviour"]]
            if unknown:
                raise InputError(store.url, key="domains.spikes.behaviours", found=", ".join(unknown),
                                 expected=f"some of {', '.join(labels['behaviour']) or 'none'}", fix="correct the names")
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
    def behaviour_units(self) -> tuple[str, ...]:
        if not self.labels["behaviour"]:
            return ()
        if "behaviour_unit" in self.store.lazy().coords:
            known = dict(zip(self.store.members("behaviour"), map(str, self.store.coord("behaviour_unit"))))
            return tuple(known[name] for name in self.labels["behaviour"])
        return (self.store.meta.variables["behaviour_value"].unit,) * len(self.labels["behaviour"])

    def blocks(self, split: SplitName) -> tuple[Block, ...]:
        """The split's blocks in merged bins, those that lie inside whole."""
        merged = (Block(group=b.group, start=-(-b.start // self.merge), stop=max(b.stop // self.merge, 1))
                  for b in self.store.meta.splits.of(split))
        return tuple(b for b in merged if b.stop > b.start)

    def recorded(self, group: int) -> Recorded:
        if group not in self.memo:
            self.memo[group] = self._read(group)
        return self.memo[group]

    def _read(self, group: int) -> Recorded:
        known = self.store.meta.variables
        steps = len(self.store.coord("time"))
        events = self._events(group) if self.has_events else (None, None)
        if "count" in known:
            count = np.asarray(self.store.read("count", group), np.float32)
        else:
            assert events[0] is not None
            assert events[1] is not None
            count = self._binned(*events, steps)
        if "recorded" in known:
            count[self.store.read("recorded", group) == 0] = np.nan
        return Recorded(self._merged(count, np.sum), self._optional("behaviour_value", group, steps),
                        self._optional("stimulus_value", group, steps), *events)

    def _events(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        time, unit = self.store.read("spike_time", group), self.store.read("spike_unit", group)
        return np.asarray(time, np.float64), np.asarray(unit, np.int64)

    def _binned(self, time: np.ndarray, unit: np.ndarray, steps: int) -> np.ndarray:
        """``(steps, units)`` events per bin of the store; edges belong to the later bin."""
        assert self.store.meta.dt is not None
        place = np.floor((time - self.start_s) / self.store.meta.dt + 1e-9).astype(np.int64)
        count = np.zeros((steps, len(self.units)), np.float32)
        inside = (place >= 0) & (place < steps)
        np.add.at(count, (place[inside], unit[inside]), 1)
        return count

    def _optional(self, name: str, group: int, steps: int) -> np.ndarray:
        if name not in self.store.meta.variables:
            return np.zeros((steps // self.merge, 0), np.float32)
        dim = name.removesuffix("_value")
        members = self.store.members(dim)
        values = np.asarray(self.store.read(name, group), np.float32)
        return self._merged(values[:, [members.index(label) for label in self.labels[dim]]], np.mean)

    def _merged(self, values: np.ndarray, how: object) -> np.ndarray:
        """Every `merge` bins as one, NaN where any is; a rest at the end is left out."""
        if self.merge == 1:
            return values
        whole = values[:len(values) // self.merge * self.merge]
        return np.asarray(how(whole.reshape(-1, self.merge, whole.shape[1]), axis=1))  # type: ignore[operator]
