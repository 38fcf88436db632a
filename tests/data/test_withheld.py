"""A store that training opens gives nothing of its test split, however that was split."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.errors import InputError

TEST = r"of the test split"


def blocks(*places: tuple[int, int, int]) -> tuple[Block, ...]:
    return tuple(Block(group=g, start=a, stop=b) for g, a, b in places)


def lattice(folder: Path, train: tuple[Block, ...], validation: tuple[Block, ...], test: tuple[Block, ...]) -> Store:
    """Three groups of 10 steps: ``w (time, x)``, ``f (x)``, ``nu ()``."""
    rng = np.random.default_rng(0)
    data = xr.Dataset({"w": (("run", "time", "x"), rng.normal(size=(3, 10, 4))),
                       "f": (("run", "x"), rng.normal(size=(3, 4))), "nu": (("run",), rng.normal(size=3))},
                      coords={"time": np.arange(10) * 0.5, "x": np.arange(4.0)})
    return write_store(data, StoreDraft(
        domain="fields", dataset="toy", group_dim="run", groups=3, dt=0.5,
        variables={"w": Variable(role="state", unit="1", dims=("time", "x")),
                   "f": Variable(role="forcing", unit="1", dims=("x",)),
                   "nu": Variable(role="parameter", unit="1", dims=())},
        axes={"time": AxisMeta(kind="time", unit="s"), "x": AxisMeta(kind="space", unit="m")},
        splits=Splits(key="toy", train=train, validation=validation, test=test),
        provenance=Provenance(builder="test")), folder / "toy.zarr")


def test_groups_of_test_are_closed(tmp_path: Path) -> None:
    store = lattice(tmp_path, blocks((0, 0, 10)), blocks((1, 0, 10)), blocks((2, 0, 10)))
    held = store.for_training()
    for name in ("w", "f", "nu"):
        for group in (0, 1):
            np.testing.assert_array_equal(held.read(name, group), store.read(name, group))
        with pytest.raises(InputError, match=TEST) as caught:
            held.read(name, 2)
        assert caught.value.key == name
        store.read(name, 2)
    assert held.visible("w", 1) == ((0, 10),)
    assert held.visible("w", 2) == held.visible("nu", 2) == ()
    assert held.read("w", 2, 4, 4).shape == (0, 4)
    assert held.meta.split_identity() == store.meta.split_identity()


def test_blocks_of_test_are_closed_to_the_step(tmp_path: Path) -> None:
    store = lattice(tmp_path, blocks((0, 0, 4), (1, 0, 4), (2, 0, 4)), blocks((0, 7, 10)),
                    blocks((1, 5, 8), (0, 4, 6)))
    held = store.for_training()
    assert held.visible("w", 0) == ((0, 4), (6, 10))
    assert held.visible("w", 1) == ((0, 5), (8, 10))
    for group, start, stop in ((0, 0, 4), (0, 6, 10), (1, 2, 5), (1, 8, 10), (2, 0, 10)):
        np.testing.assert_array_equal(held.read("w", group, start, stop), store.read("w", group, start, stop))
    for group, *span in ((0, 3, 5), (0, 5, 7), (0, 4, 6), (1, 0, 10), (0, None, None), (1, 7, None)):
        with pytest.raises(InputError, match=TEST):
            held.read("w", group, *span)
    for name in ("f", "nu"):  # what has no time is of the group, of which more than test is there
        held.read(name, 0)


@pytest.mark.parametrize("again", [False, True])
def test_no_variable_is_read_past_the_guard(tmp_path: Path, again: bool) -> None:
    held = lattice(tmp_path, blocks((0, 0, 10)), blocks((1, 0, 10)), blocks((2, 0, 10))).for_training()
    if again:
        held = pickle.loads(pickle.dumps(held))  # noqa: S301
    lazy = held.lazy()
    assert lazy["w"].dtype == np.float64
    assert lazy["w"].shape == (3, 10, 4)
    np.testing.assert_array_equal(lazy["x"], np.arange(4.0))
    for dataset in (lazy, held.dataset()):
        with pytest.raises(InputError, match=TEST):
            dataset["w"].isel(run=2).load()
    with pytest.raises(InputError, match=TEST):
        held.read("w", 2)


def test_a_store_without_test_hides_nothing(tmp_path: Path) -> None:
    held = lattice(tmp_path, blocks((0, 0, 10)), blocks((1, 0, 10)), ()).for_training()
    np.testing.assert_array_equal(held.read("w", 2), held.lazy()["w"].isel(run=2).values)
    assert np.isfinite(held.lazy()["w"].values).all()


def ragged(folder: Path, variables: dict[str, Variable], data: dict[str, np.ndarray], rows: list[int],
           axes: dict[str, AxisMeta], splits: Splits) -> Store:
    """Rows ``event`` of groups one after the other, on a time axis of 10 steps of half a second if there is one."""
    named = {name: (("event", *variables[name].dims[1:]), values) for name, values in data.items()}
    coords = {"time": np.arange(10) * 0.5} if "time" in axes else {}
    made = xr.Dataset({**named, "count": (("run",), np.array(rows))}, coords=coords)
    return write_store(made, StoreDraft(
        domain="toys", dataset="toy", group_dim="run", groups=len(rows), dt=0.5, axes=axes, ragged={"event": "count"},
        variables={**variables, "count": Variable(role="rows", unit="1", dims=())}, splits=splits,
        provenance=Provenance(builder="test")), folder / "toy.zarr")


def test_events_of_test_are_closed_by_their_time(tmp_path: Path) -> None:
    time = np.array([0.0, 0.4, 1.99, 2.0, 2.7, 3.0, 4.9, 0.1])
    store = ragged(tmp_path, {"at": Variable(role="event", unit="s", dims=("event",)),
                              "unit": Variable(role="event", unit="1", dims=("event",))},
                   {"at": time, "unit": np.arange(8)}, [7, 1], {"time": AxisMeta(kind="time", unit="s")},
                   Splits(key="time", train=blocks((0, 0, 4), (1, 0, 10)), validation=blocks((0, 6, 10)),
                          test=blocks((0, 4, 6))))
    held = store.for_training()
    assert held.visible("at", 0) == held.visible("unit", 0) == ((0, 3), (5, 7))
    assert held.read("unit", 0, 5, 7).tolist() == [5, 6]
    assert held.rows("event").tolist() == [7, 1]
    for span in ((2, 4), (3, 5), (None, None)):
        with pytest.raises(InputError, match=TEST):
            held.read("unit", 0, *span)
    assert held.read("unit", 1).tolist() == [7]


def test_series_of_their_own_time_are_closed_by_row(tmp_path: Path) -> None:
    store = ragged(tmp_path, {"step_time": Variable(role="event", unit="s", dims=("event",)),
                              "value": Variable(role="state", unit="1", dims=("event",))},
                   {"step_time": np.arange(8.0), "value": np.arange(8.0)}, [5, 3], {},
                   Splits(key="time", train=blocks((0, 0, 3)), validation=blocks((0, 3, 4)),
                          test=blocks((0, 4, 5), (1, 0, 3))))
    held = store.for_training()
    assert held.visible("value", 0) == ((0, 4),)
    assert held.read("step_time", 0).tolist() == [0, 1, 2, 3, 4]  # when is known, what is not
    for group, *span in ((0, None, None), (0, 4, 5), (1, 0, 1)):
        with pytest.raises(InputError, match=TEST):
            held.read("value", group, *span)
