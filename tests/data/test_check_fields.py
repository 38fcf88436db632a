"""What `validate` finds in stores of fields: one test per mistake, and none in sound stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data.build import prepare
from sciml.data.check import validate
from sciml.data.checks._exchanged import exchanged, outliers
from sciml.data.checks.fields import check
from sciml.data.schema import StoreMeta
from sciml.data.source import SourceSpec
from sciml.errors import InputError

N, T, X, Y = 6, 5, 6, 4
Make = Callable[..., Any]
SPLIT = {"by": "group", "counts": {"train": 4, "validation": 1, "test": 1}, "seed": None}


def flow() -> xr.Dataset:
    """A channel, periodic along x with walls along y: density, pressure, velocity, its forcing and a viscosity."""
    rng = np.random.default_rng(0)
    full, plane = ("trajectory", "time", "x", "y"), ("trajectory", "x", "y")

    def field(dims: tuple[str, ...], mean: float, std: float, role: str, unit: str, **attrs: str) -> Any:
        shape = [{"trajectory": N, "time": T, "x": X, "y": Y}[dim] for dim in dims]
        return dims, rng.normal(mean, std, shape).astype(np.float32), {"role": role, "units": unit, **attrs}

    return xr.Dataset(
        {"density": field(full, 1.2, 0.01, "state", "kg/m3"), "pressure": field(full, 1e5, 50.0, "state", "Pa"),
         "velocity_x": field(full, 0.0, 1.0, "state", "m/s", vector="velocity", along="x"),
         "velocity_y": field(full, 0.0, 1.0, "state", "m/s", vector="velocity", along="y"),
         "force_x": field(plane, 0.0, 1.0, "forcing", "N/kg"),
         "viscosity": field(("trajectory",), 1.0, 0.1, "parameter", "m2/s"),
         **{f"boundary_y_{side}": (("trajectory",), np.zeros(N, np.float32), {"role": "boundary", "units": "1"})
            for side in ("low", "high")}},
        coords={"time": ("time", np.arange(T) * 0.1, {"units": "s"}),
                "x": ("x", np.arange(X) / X, {"units": "m", "period": 1.0}),
                "y": ("y", np.tanh(np.linspace(-1, 1, Y)), {"units": "m"})},
        attrs={"domain": "fields", "group_dim": "trajectory"})


def steady() -> xr.Dataset:
    return flow().isel(time=0, drop=True)


class Memory:
    """What `check` asks of a store, answered from what a build would write."""

    url = "memory"

    def __init__(self, data: xr.Dataset, **source: Any) -> None:
        spec = SourceSpec.model_validate({"name": "toy", "builder": "toy", "domain": "fields", "split": SPLIT} | source)
        self._data, draft = prepare(spec, [])
        told = {name: getattr(draft, name) for name in StoreMeta.model_fields if hasattr(draft, name)}
        self.meta = StoreMeta(**told, moments={})

    def lazy(self) -> xr.Dataset:
        return self._data

    def coord(self, name: str) -> np.ndarray:
        return np.asarray(self._data[name].values)

    def read(self, name: str, group: int, start: int | None = None, stop: int | None = None) -> np.ndarray:
        values = self._data[name].values[group]
        return np.asarray(values[start:stop] if self.meta.evolves(name) else values)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Make:
    """The findings of a data set, as level and key, and the findings themselves."""
    def look(data: xr.Dataset, **source: Any) -> tuple[list[tuple[str, str]], list[Any]]:
        monkeypatch.setattr("sciml.data.build._load", lambda source, files: data)
        told = list(check(Memory(data, **source)))  # type: ignore[arg-type]
        return [(finding.level, finding.key) for finding in told], told
    return look


@pytest.mark.parametrize("make", [flow, steady])
def test_a_sound_store_has_no_findings(built: Make, make: Callable[[], xr.Dataset]) -> None:
    assert validate(built(make(), split=SPLIT)) == []


def _set(name: str, *index: Any, value: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        data[name].values[index] = value
        return data
    return change


def _swapped(*groups: int) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        for group in groups:
            a, b = data["density"].values[group].copy(), data["pressure"].values[group].copy()
            data["density"].values[group], data["pressure"].values[group] = b, a
        return data
    return change


def _copied(source: int, target: int) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        for name in ("density", "pressure", "velocity_x", "velocity_y"):
            data[name].values[target] = data[name].values[source]
        return data
    return change


def _about(name: str, **attrs: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        data[name].attrs.update(attrs)
        data[name].attrs = {key: value for key, value in data[name].attrs.items() if value is not None}
        return data
    return change


def _uneven(data: xr.Dataset) -> xr.Dataset:
    return data.assign_coords(time=("time", np.array([0, 0.1, 0.2, 0.5, 0.6]), {"units": "s"}))


def _closed(data: xr.Dataset) -> xr.Dataset:
    both = data.isel(x=[0, 1, 2, 3, 4, 5, 0])
    return both.assign_coords(x=("x", np.arange(7) / X, {"units": "m"})).assign(
        {f"boundary_x_{side}": data["boundary_y_low"] for side in ("low", "high")})


def _mixed(data: xr.Dataset) -> xr.Dataset:
    return data.assign(ground=data["force_x"].assign_attrs(role="state"))


MISTAKES: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], tuple[str, str], str]] = {
    "mixed dt": (_uneven, ("warning", "time"), r"from 0\.1 to 0\.3; usually 0\.1, 0\.3 after index 2"),
    "no boundary": (lambda data: data.drop_vars("boundary_y_high"), ("warning", "y"), "no boundary_y_high"),
    "unknown boundary": (_set("boundary_y_low", 3, value=7), ("error", "boundary_y_low"), "first trajectory 3: 7"),
    "periodic without a period": (_set("boundary_y_low", 2, value=2), ("error", "boundary_y_low"),
                                  "periodic in trajectory 2, but axis y has no period"),
    "a wall within a period": (lambda data: data.assign(boundary_x_low=data["boundary_y_low"]),
                               ("error", "boundary_x_low"), "wall in trajectory 0, but axis x has a period of 1"),
    "endpoint": (_closed, ("warning", "x"), "density is the same at both ends"),
    "half a vector": (_about("velocity_y", vector=None, along=None), ("error", "velocity"),
                      "velocity_x without the component along y"),
    "a dropped component": (lambda data: data.drop_vars("velocity_x"), ("error", "velocity"),
                            "velocity_y without the component along x"),
    "a component twice": (_about("density", vector="velocity", along="y"), ("error", "velocity"),
                          "density and velocity_y are one component"),
    "components in two units": (_about("velocity_y", units="km/h"), ("error", "velocity"), "state in km/h"),
    "vector and tensor": (_about("density", vector="velocity", along="x y"), ("error", "velocity"), "several ranks"),
    "half a tensor": (_about("density", vector="stress", along="x x"), ("error", "stress"),
                      "density without the component along x y"),
    "two lattices": (_mixed, ("error", "domain fields"), r"\(time, x, y\); \(x, y\)"),
    "NaN tail": (_set("pressure", 4, slice(3, None), 1, 2, value=np.nan), ("warning", "tail"),
                 r"1, first trajectory 4, pressure: NaN from step 3 on, of 5"),
    "nothing": (_set("pressure", 4, value=np.nan), ("error", "no value"), "first trajectory 4, pressure"),
    "standing still": (lambda data: _set("density", 1, slice(2, None), value=data["density"].values[1, 2])(data),
                       ("warning", "still"), "1, first trajectory 1, density: unchanged from step 2 on, of 5"),
    "constant": (_set("density", 1, value=1.2), ("warning", "constant"), r"trajectory 1, density: always 1\.2"),
    "copies in two splits": (_copied(0, 5), ("error", "splits"), "1 equal trajectories, first trajectory 0 and "
                             "trajectory 5"),
    "copies in one split": (_copied(0, 2), ("warning", "copies"), "first trajectory 0 and trajectory 2"),
    "swapped channels": (_swapped(1, 4), ("warning", "density, pressure"),
                         "in 2 of 6 trajectories density is as pressure is elsewhere, and pressure as density: 1, 4"),
    "half of all swapped": (_swapped(3, 4, 5), ("warning", "density, pressure"), "in 3 of 6.*: 3, 4, 5"),
    "another unit": (lambda data: _set("pressure", 2, value=data["pressure"].values[2] / 100)(data),
                     ("warning", "pressure"), r"1 trajectories unlike the others: 2; the first has mean 1e\+03, "
                     r"elsewhere about 1e\+05")}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(seen: Make, name: str) -> None:
    spoil, wanted, words = MISTAKES[name]
    told = {"axes": {"time": {"uniform": False}}} if name == "mixed dt" else {}
    keys, findings = seen(spoil(flow()), missing="mask", **told)
    assert keys == [wanted]
    [finding] = findings
    assert re.search(words, finding.found)
    assert finding.expected
    assert finding.fix


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda data: data.isel(y=slice(None, None, -1)), r"\[y\].*descending from.*reverse: true"),
    (lambda data: data.isel(y=[0, 2, 1, 3]), r"\[y\].*at index 2 after.*sort the file"),
    (_uneven, r"\[time\].*a step of 0\.3 after index 2.*uniform: false"),
    (_about("velocity_x", along="z"), r"\[velocity_x\].*along \('z',\)"),
    (_about("velocity_x", along=None), r"\[velocity_x\].*vector 'velocity' along \(\)")])
def test_what_a_build_refuses(seen: Make, spoil: Callable[[xr.Dataset], xr.Dataset], words: str) -> None:
    with pytest.raises(InputError, match=words):
        seen(spoil(flow()))


def test_a_build_says_where_values_are_missing(built: Make) -> None:
    with pytest.raises(InputError, match=r"\[pressure\].*first at trajectory 4, time 3, x 0, y 0"):
        built(_set("pressure", 4, slice(3, None), value=np.nan)(flow()), split=SPLIT)


def test_a_mistake_is_found_by_validate(built: Make) -> None:
    store = built(MISTAKES["swapped channels"][0](flow()), split=SPLIT)
    assert [(finding.level, finding.key) for finding in validate(store)] == [("warning", "density, pressure")]


def test_symmetric_and_antisymmetric_tensors_are_whole(seen: Make) -> None:
    data = flow().drop_vars(["density", "pressure", "velocity_y"])
    for name, along in (("stress_xx", "x x"), ("stress_xy", "x y"), ("stress_yy", "y y")):
        data[name] = data["velocity_x"].copy(data=np.random.default_rng(1).normal(size=(N, T, X, Y)))
        data[name].attrs |= {"vector": "stress", "along": along}
    data["vorticity"] = data["stress_xy"].copy(data=data["stress_xy"].values[::-1].copy())
    data["vorticity"].attrs["vector"] = "vorticity"
    assert seen(data.drop_vars("velocity_x"))[0] == []


def test_a_part_of_one_step_is_found(seen: Make) -> None:
    def cut(*counts: int) -> list[str]:
        split = {"by": "time", "counts": dict(zip(("train", "validation", "test"), counts))}
        return [finding.found for finding in seen(flow(), split=split)[1] if finding.key == "splits"]

    assert cut(2, 1, 2) == ["1 time step in every trajectory of validation"]
    assert cut(3, 0, 2) == []


def test_land_without_values_is_no_tail(seen: Make) -> None:
    data = flow()
    for name in ("density", "pressure", "velocity_x", "velocity_y"):
        data[name].values[..., 2:, 1] = np.nan
    assert seen(data, missing="mask")[0] == []


def test_long_trajectories_are_sampled_and_a_tail_is_still_found(seen: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = flow().isel(time=np.arange(40) % T).assign_coords(time=("time", np.arange(40.0), {"units": "s"}))
    data["density"].values[3, 29:] = np.nan
    monkeypatch.setattr("sciml.data.checks.fields.BUDGET_BYTES", 4 * N * 4 * X * Y * 4)
    [finding] = seen(data, missing="mask")[1]
    assert "first trajectory 3, density: NaN from step 29 on, of 40" in finding.found


def test_levels_are_no_direction_of_the_wind(seen: Make) -> None:
    data = flow().rename(x="longitude", y="latitude").expand_dims(level=3, axis=-1)
    data = data.drop_vars([name for name in data.data_vars if data[name].attrs["role"] in ("parameter", "boundary")])
    for name, axis in (("velocity_x", "longitude"), ("velocity_y", "latitude")):
        data[name].attrs["along"] = axis
    data = data.assign_coords(level=("level", [250.0, 500, 850], {"units": "hPa", "period": 1e4}),
                              longitude=("longitude", np.arange(X) * 60.0, {"units": "degrees_east", "period": 360.0}),
                              latitude=("latitude", np.arange(Y) * 30.0, {"units": "degrees_north"}))
    assert seen(data)[0] == []


def test_points_have_places_and_weights(seen: Make) -> None:
    data = flow().stack(point=("x", "y"), create_index=False).drop_vars(
        ["x", "y", "boundary_y_low", "boundary_y_high"])
    for name in ("velocity_x", "velocity_y"):
        data[name].attrs = {"role": "state", "units": "m/s"}
    place = np.random.default_rng(0).random((2, X * Y))
    data = data.assign_coords(point=("point", np.arange(X * Y), {"kind": "set"}),
                              point_x=("point", place[0], {"units": "m"}), point_y=("point", place[1], {"units": "m"}),
                              cell_measure=("point", np.ones(X * Y), {"units": "m2"}))
    assert seen(data)[0] == []
    place[:, 3], data["cell_measure"].values[5] = place[:, 4], 0.0
    wrong = data.assign_coords({f"point_{axis}": ("point", place[i], {"units": "m"}) for i, axis in enumerate("xy")})
    assert seen(wrong)[0] == [("warning", "point_x"), ("error", "cell_measure")]
    place[0, 7] = np.nan
    assert ("error", "point_x") in seen(wrong.assign_coords(point_x=("point", place[0], {"units": "m"})))[0]
    memory = Memory(wrong)
    half = memory.meta.variables["velocity_x"].model_copy(update={"vector": "velocity", "along": ("x",)})
    memory.meta = memory.meta.model_copy(update={"variables": {**memory.meta.variables, "velocity_x": half}})
    [finding] = [one for one in check(memory) if one.key == "velocity"]  # type: ignore[arg-type]
    assert "velocity_x without the component along y" in finding.found
    bare = data.drop_vars(["point_x", "point_y", "cell_measure"])
    assert seen(bare)[0] == [("error", "domain fields")]


def test_directions_alike_are_not_taken_for_swapped_ones() -> None:
    rng = np.random.default_rng(0)
    alike = {"u": rng.normal(0, 0.1, 40), "v": rng.normal(0, 0.1, 40)}
    spread = {"u": rng.uniform(0.5, 2, 40), "v": rng.uniform(0.5, 2, 40)}
    assert list(exchanged(alike, spread)) == []
    assert list(outliers(alike, spread)) == []
    turned = {"u": np.where(np.arange(40) % 2, 1.0, -1.0), "v": rng.normal(0, 0.01, 40)}
    assert list(exchanged(turned, {"u": np.ones(40), "v": np.ones(40)})) == []


def test_channels_that_differ_in_spread_alone() -> None:
    rng = np.random.default_rng(0)
    mean = {"u": rng.normal(0, 0.01, 20), "v": rng.normal(0, 0.01, 20)}
    std = {"u": np.full(20, 3.0) + rng.normal(0, 0.1, 20), "v": np.full(20, 0.2) + rng.normal(0, 0.01, 20)}
    std["u"][[4, 9]], std["v"][[4, 9]] = std["v"][[4, 9]], std["u"][[4, 9]]
    assert [(a, b, groups.tolist()) for a, b, groups in exchanged(mean, std)] == [("u", "v", [4, 9])]


def test_half_of_the_trajectories_in_another_unit_are_found() -> None:
    """One of two files is in kPa: no trajectory is unlike most others, but spreads are of two kinds."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(5, 20, 8) / np.repeat([1, 1000], 4)
    mean = 100 * rng.uniform(0.9, 1.1, 8) / np.repeat([1, 1000], 4)
    ((name, groups, text),) = outliers({"p": mean}, {"p": spread})
    assert (name, groups.tolist()) == ("p", [4, 5, 6, 7])
    assert re.match(r"mean 0\.\d+, elsewhere about \d\d", text)
    assert list(outliers({"p": mean[:4]}, {"p": spread[:4]})) == []
    assert list(outliers({"p": 0 * mean}, {"p": np.geomspace(1, 1000, 8)})) == [], "no gap"


@pytest.mark.parametrize(("left_out", "words"), [
    ((), r"velocity_x, velocity_y without vector and along$"),
    (("velocity_y",), r"velocity_x without vector and along, and no velocity_y$")])
def test_components_that_do_not_say_of_what_are_found(seen: Make, left_out: tuple[str, ...], words: str) -> None:
    data = flow().drop_vars(left_out)
    for name in {"velocity_x", "velocity_y"} - set(left_out):
        data[name].attrs = {"role": "state", "units": "m/s"}
    keys, (finding,) = seen(data)
    assert keys == [("warning", "velocity")]
    assert re.search(words, finding.found)
    assert "velocity_x: {vector: velocity, along: [x]}" in finding.fix
