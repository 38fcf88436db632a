"""Long rollouts of fields: statistics beside the truth's, and what blew up is said, with the step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml import checkpoint, cli
from sciml.cards import card
from sciml.data.schema import AxisMeta, Variable
from sciml.data.store import Store
from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError
from sciml.evaluate import zero_outputs
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.report.run import Run
from sciml.report.statistics import of_run, pictures
from sciml.tokens import Cache, Outputs, TokenBatch
from tests.domains.fields.stores import flow_store, poisson_store, put
from tests.domains.fields.test_mesh import GRID, made
from tests.e2e import tiny


class Silent(torch.nn.Module):
    """Persistence; from call `quiet` on NaN."""

    def __init__(self, adapter: Fields, quiet: int | None = None) -> None:
        super().__init__()
        self.specs, self.quiet, self.calls = {"fields": adapter.spec()}, quiet, 0

    def forward(self, batch: TokenBatch, cache: Cache | None = None, second_order: bool = False) -> Outputs:
        self.calls += 1
        outputs = zero_outputs(batch)
        if self.quiet is not None and self.calls >= self.quiet:
            outputs = Outputs({name: torch.full_like(value, torch.nan) for name, value in outputs.heads.items()})
        return outputs


def silent(store: Store, quiet: int | None = None, **config: Any) -> Predictor:
    adapter = Fields.create(config).fit(store)
    return Predictor(Silent(adapter, quiet), {"fields": adapter})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny.navier_stokes(tmp_path_factory.mktemp("ns") / "ns_a.zarr", trajectories=4)


@pytest.fixture(scope="module")
def wall_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A flow between walls whose mean profile, fluctuations and stress are known; they don't change in time."""
    rng, y = np.random.default_rng(3), np.array([0.0, 0.2, 0.5, 1.0, 1.5, 1.8, 2.0])
    a, b = rng.normal(size=(2, 4, 6, 12, 7))
    u, v = y * (2 - y) * 5 + 0.3 * a, 0.2 * b - 0.1 * a
    dims = ("trajectory", "time", "x", "y")
    variables = {f"velocity_{n}": Variable(role="state", unit="m/s", dims=("time", "x", "y"), vector="velocity",
                                           along=(n,)) for n in "xy"}
    axes = {"time": AxisMeta(kind="time", unit="s"), "x": AxisMeta(kind="space", unit="m", period=3.0),
            "y": AxisMeta(kind="space", unit="m")}
    coords = {"time": np.arange(6) * 0.5, "x": np.arange(12) / 4, "y": y}
    return put(tmp_path_factory.mktemp("walls"), {"velocity_x": (dims, u), "velocity_y": (dims, v)}, coords, variables,
               axes, dt=0.5, frames=6, dataset="walls")


def rows(predictor: Predictor, store: Store, *assignments: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in card(predictor, store, "test", assignments)}


def test_nothing_is_rolled_out_unless_it_is_asked_for(store: Store) -> None:
    assert card(silent(store), store, "test") == []


def test_persistence_conserves_everything(store: Store) -> None:
    ticks: list[tuple[int, int]] = []
    entries = card(silent(store), store, "test", ("steps=20",), lambda done, of: ticks.append((done, of)))
    found = {row["name"]: row for row in entries}
    assert ticks == [(1, 1)]
    drift = found["drift of the mean of vorticity"]
    assert drift["value"] == 0.0
    assert "at most 0 1/s in a step" in drift["note"]
    assert (found["finite steps"]["value"], found["finite steps"]["verdict"]) == (20.0, "holds")
    assert "truth known for 7 steps" in found["finite steps"]["note"]
    assert found["mean of vorticity, error"]["note"] == "7 states of each"
    assert found["mean of vorticity, error, whole rollout"]["note"] == "20 states beside 7 of the truth"


def test_errors_are_those_of_the_formulas(store: Store) -> None:
    found = rows(silent(store), store, "steps=7")
    block = store.meta.splits.test[0]
    values = store.read("vorticity", block.group, block.start, block.stop).astype(np.float64)
    error = values[1:] - values[:1]
    assert found["rmse of vorticity"]["value"] == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-5)
    assert found["rmse of vorticity"]["unit"] == "1/s"
    relative = np.linalg.norm(error.reshape(7, -1), axis=1) / np.linalg.norm(values[1:].reshape(7, -1), axis=1)
    gmean = found["relative L2, geometric mean of 7 steps"]["value"]
    assert gmean == pytest.approx(float(np.exp(np.log(relative).mean())), rel=1e-5)
    assert found["time of a correlation of 0.8"]["unit"] == "s"
    assert found["rms of vorticity, error"]["value"] == pytest.approx(
        abs(values[0].std() - values[1:].std()) / values[1:].std(), rel=1e-3)
    curves = found["finite steps"]["curves"]
    assert curves["error"]["time"] == pytest.approx(np.arange(1, 8) * 0.5)
    assert curves["error"]["relative_l2"] == pytest.approx(relative, rel=1e-5)
    assert {one["name"] for one in curves["spectra"]} == {f"{n}/vorticity" for n in ("power", "energy", "enstrophy")}
    assert curves["profiles"] == []
    assert all("whole" not in one["power"] for one in curves["spectra"])


def test_statistics_between_walls_have_profiles_and_a_stress(wall_store: Store) -> None:
    found = rows(silent(wall_store), wall_store, "steps=5")
    block = wall_store.meta.splits.test[0]
    u, v = (wall_store.read(f"velocity_{n}", block.group).astype(np.float64)[:6] for n in "xy")
    weight = np.array([0.1, 0.25, 0.4, 0.5, 0.4, 0.25, 0.1]) / 2
    apart = np.sqrt((weight * (u[0].mean(0) - u[1:].mean((0, 1))) ** 2).sum())
    size = np.sqrt((weight * ((u[1:] ** 2).mean((0, 1)) + (v[1:] ** 2).mean((0, 1)))).sum())
    mean = found["mean of velocity_x along y, error"]
    assert mean["value"] == pytest.approx(apart / size, rel=1e-4)
    assert mean["limit"] == 0.03
    assert found["rms of velocity_y along y, error"]["value"] > 0.01
    assert found["stress ⟨velocity_x′ velocity_y′⟩ along y, error"]["value"] > 0
    assert "spectrum power_x/velocity_y, largest factor" in found
    profiles = found["finite steps"]["curves"]["profiles"]
    assert [one["name"] for one in profiles] == ["velocity_x", "velocity_y"]
    assert profiles[0]["mean"]["truth"] == pytest.approx(u[1:].mean((0, 1)), rel=1e-4)
    assert profiles[0]["place"] == pytest.approx([0.0, 0.2, 0.5, 1.0, 1.5, 1.8, 2.0])
    stress, = found["finite steps"]["curves"]["stresses"]
    apart_u, apart_v = (x[1:] - x[1:].mean((0, 1)) for x in (u, v))
    assert stress["stress"]["truth"] == pytest.approx((apart_u * apart_v).mean((0, 1)), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("quiet", "known"), [(4, False), (10, True)])
def test_a_blow_up_is_reported_with_its_step(store: Store, quiet: int, known: bool) -> None:
    found = rows(silent(store, quiet), store, "steps=12")
    finite = found["finite steps"]
    assert (finite["value"], finite["limit"], finite["verdict"]) == (quiet - 1, 12.0, "fails")
    assert f"blew up at step {quiet}" in finite["note"]
    for name in ("rmse of vorticity", "relative L2, geometric mean of 7 steps"):
        assert np.isfinite(found[name]["value"]) == known
    assert found["mean of vorticity, error"]["note"] == f"{min(quiet - 1, 7)} states of each"


def test_a_blow_up_at_the_first_step_leaves_no_statistics(store: Store) -> None:
    found = rows(silent(store, 1), store, "steps=3")
    assert found["finite steps"]["value"] == 0.0
    assert not any(name.startswith(("mean of", "rms of", "spectrum")) for name in found)
    assert pictures("ns", found["finite steps"]["curves"]) == []


def test_steps_that_are_skipped_do_not_count_in_statistics(store: Store) -> None:
    assert rows(silent(store), store, "steps=6", "skip=4")["mean of vorticity, error"]["note"] == "2 states of each"
    with pytest.raises(InputError, match="less than the 6 steps"):
        card(silent(store), store, "test", ("steps=6", "skip=6"))


def test_a_step_of_several_frames_is_compared_with_the_right_truth(store: Store) -> None:
    found = rows(silent(store, leads=[2]), store, "trajectories=1")
    values = store.read("vorticity", store.meta.splits.test[0].group).astype(np.float64)
    assert found["finite steps"]["value"] == 3.0
    assert found["rmse of vorticity"]["value"] == pytest.approx(
        float(np.sqrt(((values[2::2] - values[0]) ** 2)[:3].mean())), rel=1e-5)


def test_vectors_have_energies(tmp_path: Path) -> None:
    store = flow_store(tmp_path)
    found = rows(silent(store), store, "steps=4")
    assert {"spectrum energy/velocity, largest factor", "spectrum enstrophy/velocity, largest factor",
            "stress ⟨velocity_x′ velocity_y′⟩, error"} <= set(found)
    assert found["spectrum energy/velocity, largest factor"]["value"] > 1
    assert found["drift of the mean of tracer"]["value"] == 0.0


def test_points_have_means_and_no_spectra(tmp_path: Path) -> None:
    store = made(tmp_path, "scattered", builder="advection", options=GRID, points=50)
    found = rows(silent(store), store, "steps=9")
    assert found["finite steps"]["value"] == 9.0
    name, = store.meta.of_role("state")
    assert found[f"mean of {name}, error"]["note"] == "5 states of each"
    assert not [name for name in found if name.startswith("spectrum")]


@pytest.mark.parametrize("wrong", ["stepz=3", "steps=0", "profile=z", "trajectories=none"])
def test_wrong_values_are_named(store: Store, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong.partition("=")[0]):
        card(silent(store), store, "test", ("steps=3", wrong))


def test_steady_data_have_no_rollouts(tmp_path: Path) -> None:
    store = poisson_store(tmp_path)
    assert card(silent(store), store, "test") == []
    with pytest.raises(InputError, match="steady"):
        card(silent(store), store, "test", ("steps=3",))


def test_pictures_of_what_there_is(wall_store: Store) -> None:
    curves: Mapping[str, Any] = rows(silent(wall_store), wall_store, "steps=9")["finite steps"]["curves"]
    drawn = pictures("walls", json.loads(json.dumps(curves)), "1 rollout")
    assert [picture.title.partition(",")[0] for picture in drawn] == [
        "Growth of the error", "Spectra of long rollouts", "Profiles of long rollouts"]
    assert all(picture.svg.startswith("<svg") for picture in drawn)
    assert "whole rollout" in drawn[2].svg
    assert drawn[0].caption.endswith("1 rollout.")
    run = Run(Path("run"), evaluations={"walls": {"rows": [], "card": [{"name": "finite steps", "curves": curves}]},
                                        "other": {"rows": []}})
    assert len(of_run(run)) == 3


def test_sciml_evaluate_writes_the_curves(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = Fields.create({"patch": 4}).fit(store)
    operator = Operator(OperatorConfig.model_validate(tiny.OPERATOR), {"fields": adapter.spec()})
    place = tmp_path / "run" / "checkpoints" / "best"
    checkpoint.save(place, Predictor(operator, {"fields": adapter}))
    call = ["evaluate", str(place), "--data", store.url, "--max-windows", "1"]
    assert cli.run(call) == 0
    assert "Card" not in capsys.readouterr().out
    assert cli.run([*call, "--card", "steps=9"]) == 0
    printed = capsys.readouterr().out
    assert "spectrum energy/vorticity, largest factor" in printed
    assert max(map(len, printed.splitlines())) < 400
    written = json.loads((tmp_path / "run" / "evaluation" / "ns_a.json").read_text())
    assert len(pictures("ns_a", written["card"][0]["curves"])) == 2
