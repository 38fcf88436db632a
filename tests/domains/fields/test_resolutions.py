"""Training at several resolutions of the same states: what is filtered, what is drawn, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.build import build
from sciml.data.builders._spectral import resample
from sciml.data.source import SourceSpec
from sciml.data.store import Store, write_store
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.resolutions import cut_waves
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.sampling import MicroBatches, Schedule, Source
from sciml.testing.conformance import OPERATOR
from sciml.testing.parameters import stir
from tests.domains.fields.stores import flow_store, poisson_store

RNG = np.random.default_rng
Make = Callable[..., Any]


def draw(adapter: Fields, store: Store, index: int = 0, batch: int = 0) -> Any:
    return adapter.open(store, "train", train=True).draw(index, RNG(1), RNG(batch))


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Store]:
    """The same solve on 48², saved at 32² and at 16²."""
    def made(resolution: int) -> Store:
        return build(SourceSpec.model_validate({
            "name": "flow", "domain": "fields", "builder": "navier_stokes",
            "options": {"trajectories": 3, "frames": 4, "resolution": resolution, "solve_resolution": 48,
                        "spin_up": 0.5, "viscosity": 1e-3},
            "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 1}}}),
            tmp_path_factory.mktemp("flows") / f"{resolution}.zarr")
    return {n: made(n) for n in (32, 16)}


@pytest.mark.parametrize("power", [0.0, 0.6], ids=["one scale", "by wavenumber"])
def test_a_filtered_sample_is_the_one_of_a_store_at_that_resolution(flows: dict[int, Store], power: float) -> None:
    """All that the operator is told and asked, by an adapter that knows the finer store."""
    config = {"augment": [], "spectral": power, "leads": [1, 2]}
    adapter = Fields.create({**config, "resolutions": [0.5]}).fit(flows[32])
    for index in range(3):
        one = adapter.encode(draw(adapter, flows[32], index))
        other = adapter.encode(draw(Fields.create(config), flows[16], index))
        assert one.lattice == (16, 16)
        same(one.values, other.values)
        for mine, theirs in zip(one.axes, other.axes):
            torch.testing.assert_close([mine.coord, mine.measure, mine.period],
                                       [theirs.coord, theirs.measure, theirs.period])
        torch.testing.assert_close(one.conditions.vector, other.conditions.vector)
        same(one.conditions.lattice, other.conditions.lattice)
        asked, wanted = one.targets["state"], other.targets["state"]
        assert (asked.spectrum is not None) == (power > 0)
        for name in ("value", "mask", "baseline", "scale", "spectrum"):
            same(getattr(asked, name), getattr(wanted, name))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(4, 20).map(lambda k: 2 * k), half=st.integers(1, 20))
def test_waves_are_cut_as_by_the_data_s_own_filter(n: int, half: int) -> None:
    field = RNG(n).normal(size=(3, n))
    cells = min(2 * half, n)
    np.testing.assert_allclose(cut_waves(field, cells), resample(field, cells, 1), atol=1e-12)
    odd = cut_waves(field, cells - 1)
    kept = np.fft.rfft(field, norm="forward")[:, :cells // 2]
    np.testing.assert_allclose(np.fft.rfft(odd, norm="forward"), kept, atol=1e-12)


def test_along_axes_with_ends_values_are_means_of_cells(wave_store: Make) -> None:
    store = wave_store((8, 12), periodic=False)
    config = {"augment": [], "patch": 2}
    whole, half = (draw(Fields.create({**config, "resolutions": [share]}), store, 3) for share in (1, 0.5))
    for name in ("u", "force"):
        values = whole[name].values
        means = values.reshape(*values.shape[:-2], 4, 2, 6, 2).mean((-3, -1))
        np.testing.assert_allclose(half[name].values, means, rtol=1e-5)
    np.testing.assert_allclose(half["y"].values, whole["y"].values.reshape(6, 2).mean(1))
    assert half["x"].attrs == whole["x"].attrs
    assert float(half["nu"]) == float(whole["nu"])
    assert half["time"].values.tolist() == whole["time"].values.tolist()


def test_a_velocity_stays_without_divergence(tmp_path: Path) -> None:
    store = flow_store(tmp_path)
    adapter = Fields.create({"resolutions": [0.5], "augment": ["shift", "flip", "rotate"],
                             "project": {"divergence_free": ["velocity"]}}).fit(store)
    velocity = np.stack([draw(adapter, store)[f"velocity_{a}"].values[0] for a in "xy"])
    waves = np.fft.fftfreq(6, 1 / 6)
    there = np.fft.fft2(velocity, axes=(1, 2))
    assert abs(waves[:, None] * there[0] + waves * there[1]).max() < 1e-5 < abs(there).max()


def test_steady_cases_are_drawn_at_several_resolutions(tmp_path: Path) -> None:
    store = poisson_store(tmp_path, periodic=True)
    adapter = Fields.create({"resolutions": [1, 0.5]}).fit(store)
    assert {adapter.encode(draw(adapter, store, 0, batch)).lattice for batch in range(8)} == {(16, 16), (8, 8)}


def test_a_batch_has_one_resolution_on_all_ranks_and_the_next_one_its_own(wave_store: Make) -> None:
    store = wave_store((8, 8))
    adapter = Fields.create({"resolutions": [1, 0.5]}).fit(store)
    source = Source("waves", adapter, adapter.open(store, "train", train=True), 4, 1.0)
    ranks = [MicroBatches((source,), Schedule.make(0, [1.0], 12), 0, rank, 2) for rank in range(2)]
    shapes = [[tuple(data[step].links[0].values.shape) for step in range(12)] for data in ranks]
    assert shapes[0] == shapes[1]
    assert set(shapes[0]) == {(2, 8, 8, 1), (2, 4, 4, 1)}
    torch.testing.assert_close(ranks[0][7].links[0].values, ranks[0][7].links[0].values, atol=0, rtol=0)
    other = MicroBatches((source,), Schedule.make(1, [1.0], 12), 1, 0, 2)
    assert [tuple(other[step].links[0].values.shape) for step in range(12)] != shapes[0]


def test_the_stored_resolution_alone_draws_nothing_and_evaluations_have_it(wave_store: Make) -> None:
    store = wave_store((8, 8))
    plain, several = Fields.create({}).fit(store), Fields.create({"resolutions": [0.5, 0.25]}).fit(store)
    rng, untouched = RNG(3), RNG(3)
    plain.open(store, "train", train=True).draw(2, RNG(0), rng)
    assert rng.random() == untouched.random()
    for split in ("train", "validation"):
        one, other = (a.open(store, split).draw(2, RNG(0), RNG(0)) for a in (plain, several))
        assert one.identical(other)
    for question in several.questions(store, "test"):
        assert question.windows.draw(0, RNG(0), RNG(0)).sizes["x"] == 8
    assert several.stretches(store, "train", 3, train=True).draw(0, RNG(0), RNG(0)).sizes["x"] < 8
    assert several.stretches(store, "validation", 3).draw(0, RNG(0), RNG(0)).sizes["x"] == 8


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_all_weights_learn_from_a_coarser_batch(wave_store: Make, share: float) -> None:
    """Of a token that has fewer cells than the stem's patch, too."""
    store = wave_store((16, 16))
    adapter = Fields.create({"resolutions": [share]}).fit(store)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"fields": adapter.spec()})
    stir(operator)
    batch = adapter.encode(draw(adapter, store))
    operator(batch)["state"].square().sum().backward()
    taps = {name: p.grad for name, p in operator.named_parameters() if name.endswith("taps.weight")}
    assert len(taps) > 2
    for name, slope in taps.items():
        assert slope is not None, name
        assert (slope.abs().amax((1, 2)) > 0).all(), name


def test_where_no_filter_is_consistent_it_is_refused(tmp_path: Path, wave_data: Make, wave_store: Make) -> None:
    def refused(store: Store, match: str, share: float) -> None:
        adapter = Fields.create({"resolutions": [1, share], "fixed_patch": False})
        adapter.open(store, "train")
        with pytest.raises(InputError, match=match):
            adapter.open(store, "train", train=True)

    refused(wave_store((8, 12)), r"\[x\]: found 0.3 of 8 cells; expected a whole number of them. Fix", 0.3)
    refused(wave_store((8, 12), periodic=False), r"\[x\]: found 0.75 of 8 cells; .*by which they can be divided", 0.75)
    dataset, draft = wave_data((8, 8), dataset="uneven", periodic=False)
    place = dataset["y"].values ** 1.5
    refused(write_store(dataset.assign_coords(y=place), draft, tmp_path / "uneven.zarr"), r"\[y\]: found uneven", 0.5)
    dataset, draft = wave_data((8, 8), dataset="holes")
    dataset["u"].values[0, 2, 3, 4] = np.nan
    refused(write_store(dataset, draft, tmp_path / "holes.zarr"), r"\[u\]: found a mask, missing cells", 0.5)
    dataset, draft = wave_data((8, 8), dataset="masked")
    dataset["inside"] = dataset["force"] > -0.5
    variables = {**draft.variables, "inside": draft.variables["force"].model_copy(update={"role": "mask", "unit": "1"})}
    masked = write_store(dataset, draft.model_copy(update={"variables": variables}), tmp_path / "masked.zarr")
    refused(masked, r"\[inside\]: found a mask", 0.5)
    points = build(SourceSpec.model_validate({
        "name": "points", "domain": "fields", "builder": "scattered",
        "options": {"builder": "advection", "points": 40, "options": {
            "trajectories": 3, "frames": 3, "resolution": 16, "frame_dt": 0.05, "velocity": [0.5, 0.5]}},
        "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 1}}}), tmp_path / "points.zarr")
    refused(points, r"\[point\]: found a mask, missing cells or scattered points", 0.5)


@pytest.mark.parametrize(("config", "match"), [
    ({"resolutions": []}, "at least one"), ({"resolutions": [1, 0.5, 0.5]}, "none twice"),
    ({"resolutions": [2]}, "less than or equal to 1"), ({"resolutions": [0]}, "greater than 0"),
    ({"resolutions": [1, 0.6]}, "tokens of 4, 2.4 cells"), ({"resolutions": [0.125]}, "tokens of 0.5 cells")])
def test_shares_that_a_recipe_cannot_have(config: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Fields.create(config)


def test_shares_of_cells_are_free_where_tokens_are(wave_store: Make) -> None:
    store = wave_store((10, 10))
    adapter = Fields.create({"resolutions": [0.6], "fixed_patch": False}).fit(store)
    assert adapter.encode(draw(adapter, store)).lattice == (6, 6)
