"""What of a store training may not read: its test split, until the weights are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.schema import StoreMeta, paced
from sciml.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

Stretch = tuple[int, int]


@dataclass(frozen=True)
class Withheld:
    """test: by group, the steps of its test blocks, ascending. closed: groups that nothing else is of."""

    test: dict[int, tuple[Stretch, ...]]
    closed: frozenset[int]

    @classmethod
    def of(cls, meta: StoreMeta) -> Withheld:
        test: dict[int, tuple[Stretch, ...]] = {}
        for block in meta.splits.test:
            test[block.group] = tuple(sorted((*test.get(block.group, ()), (block.start, block.stop))))
        open_groups = {block.group for block in (*meta.splits.train, *meta.splits.validation)}
        return cls(test, frozenset(test) - open_groups)

    def visible(self, meta: StoreMeta, variable: str, group: int, length: int,
                events: Callable[[], np.ndarray]) -> tuple[Stretch, ...]:
        """Stretches of the `length` steps or rows of a variable that are not of test.

        What has no steps of time goes with its group. Of rows that are events in time, those that lie in no test block;
        `events` gives the step of each. The clock of a series is no secret.
        """
        known, own = meta.variables[variable], paced(meta.variables, meta.axes, meta.ragged)
        if known.role == "rows" or group not in self.test or (own is not None and known.role == "event"):
            return ((0, length),)
        if group in self.closed:
            return ()
        if meta.evolves(variable) or (own is not None and known.dims[:1] == (own,)):
            return _between(self.test[group], length)
        timed = any(axis.kind == "time" for axis in meta.axes.values())
        if not timed or not known.dims or known.dims[0] not in meta.ragged:
            return ((0, length),)
        step = events()
        inside = np.zeros(length, bool)
        for start, stop in self.test[group]:
            inside |= (step >= start) & (step < stop)
        edges = np.flatnonzero(np.diff(np.concatenate([[True], inside, [True]])))
        return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]))


def _between(taken: Sequence[Stretch], length: int) -> tuple[Stretch, ...]:
    """What is left of ``0 … length``.

    >>> _between([(2, 4), (6, 9)], 9)
    ((0, 2), (4, 6))
    >>> _between([(0, 5), (1, 2)], 9)
    ((5, 9),)
    """
    starts = [0, *accumulate((stop for _, stop in taken), max)]
    stops = [*(start for start, _ in taken), length]
    return tuple((a, b) for a, b in zip(starts, stops) if a < b)


def refusal(url: str, variable: str, what: str) -> InputError:
    return InputError(url, key=variable, found=f"{what} read in training", expected="train and validation alone, until "
                      "the weights are chosen: this is of the test split",
                      fix="read what `Store.visible` names, by group; if a look-back of validation reaches into test, "
                          "split otherwise")


def without_values(dataset: xr.Dataset, names: Sequence[str], url: str) -> xr.Dataset:
    """The dataset with variables that have shape and type and refuse to be read."""
    import xarray as xr
    from xarray.backends import BackendArray
    from xarray.core.indexing import LazilyIndexedArray

    class Closed(BackendArray):
        def __init__(self, name: str) -> None:
            self.name, self.shape, self.dtype = name, dataset[name].shape, dataset[name].dtype

        def __getitem__(self, key: Any) -> Any:
            raise refusal(url, self.name, "all groups")

    return dataset.assign({name: xr.Variable(dataset[name].dims, LazilyIndexedArray(Closed(name)), dataset[name].attrs)
                           for name in names})
