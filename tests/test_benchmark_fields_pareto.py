"""Surrogates against solvers: what is compared with what. No accuracy of a surrogate is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.workflow import new_predictor
from sciml.cli.bench import load_script
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.predictor import Predictor
from sciml.recipe import Recipe
from sciml.report.bench import Bench
from tests.e2e import tiny

HERE = Path(__file__).parents[1] / "benchmarks"
MADE: dict[str, dict[str, Any]] = {
    "navier_stokes": {"spin_up": 1.0, "frame_dt": 0.2, "resolution": 16},
    "euler": {"resolution": 16, "frame_dt": 0.02},
    "wave": {"resolution": 16, "solve_resolution": 16, "frame_dt": 0.04, "speed": (1.0, 1.0)},
    "reaction_diffusion": {"resolution": 16, "solve_resolution": 16, "spin_up": 20.0, "frame_dt": 5.0}}


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(HERE / "fields_pareto.py")


def made(name: str, folder: Path) -> tuple[Store, Predictor]:
    options = MADE[name] | {"trajectories": 4, "frames": 5}
    source = SourceSpec.model_validate({"name": name, "domain": "fields", "builder": name, "options": options,
                                        "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 2}}})
    store = build(source, folder / f"{name}.zarr")
    recipe = Recipe.model_validate({"name": "tiny", "data": [{"store": store.url}], "operator": tiny.OPERATOR,
                                    "domains": {"fields": {"augment": [], "leads": [1, 2]}}, "train": {"steps": 1}})
    return store, new_predictor(recipe, [store])


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_solver_on_its_own_grid_is_right_and_worse_on_a_coarser_one(name: str, script: Any, tmp_path: Path) -> None:
    store, predictor = made(name, tmp_path)
    truth = script.Truth.of(predictor, store, 4)
    (rival,) = {rival for rival in script.RIVALS.values() if rival.solver == name}
    for dtype, least in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        own = script.Solved("own", rival, truth, 16, {rival.option: rival.bounds[0]}, dtype)
        errors = script.judged(own, truth, 4, [1, 2])
        assert set(errors) == {"one_step", "rollout_4", "rollout_4_by_2"}
        assert 0 < max(errors.values()) < least
    coarse = script.Solved("coarse", rival, truth, 8, {rival.option: rival.bounds[0]})
    assert 1e-3 < script.judged(coarse, truth, 4, [1])["one_step"] < 0.7
    if name != "navier_stokes":  # that one has half as many frequencies as cells: no step of a finer grid is its own
        fine = script.Solved("fine", rival, truth, 32, {rival.option: rival.bounds[-1]})
        assert script.judged(fine, truth, 4, [1])["one_step"] < 0.3


def test_rows_of_a_case(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, predictor = made("navier_stokes", tmp_path)
    small = script.Rival("navier_stokes", (8, 16), "courant", (2.0, 50.0))
    for name, value in {"RIVALS": {"navier_stokes": small}, "REPEATS": 1, "LEAST_S": 0.0}.items():
        monkeypatch.setattr(script, name, value)
    bench = Bench.load_or_new("fields", place=tmp_path)
    script.pareto(bench, "darcy", {"sciml": predictor}, store, 4)
    assert not bench.results.rows
    script.pareto(bench, "navier_stokes", {"sciml": predictor, "fno": predictor}, store, 4)
    rows = {(row.metric, row.peer_name): row.ours for row in bench.results.rows}
    point = "navier_stokes/pareto_{}"
    assert rows[point.format("solver_16_courant_2_f64/one_step"), None] < 1e-5
    assert (point.format("sciml_by_2/rollout_4_by_2"), None) in rows
    assert (point.format("sciml_by_2/one_step"), None) not in rows
    assert all(rows[point.format(f"{label}/ms_{batch}"), None] > 0 for label in (
        "sciml", "sciml_by_2", "fno", "solver_8_courant_2") for batch in (1, 8))
    for measure in ("ahead_one_step_1", "factor_rollout_4_8", "factor_rollout_4_by_2_1"):
        assert {(f"navier_stokes/pareto/{measure}", peer) for peer in (None, "neuraloperator_fno")} <= set(rows)
    assert {rows[key] for key in rows if "/ahead_" in key[0]} <= {0.0, 1.0}
    picture = tmp_path / "pareto.png"
    load_script(HERE / "fields_pareto_figure.py").drawn(bench.results, picture)
    assert picture.stat().st_size > 10_000
    assert json.loads(bench.partial.read_text())["rows"]


def test_a_flow_that_is_lost_has_no_error(script: Any, tmp_path: Path) -> None:
    store, predictor = made("navier_stokes", tmp_path)
    truth = script.Truth.of(predictor, store, 4)
    truth.states["vorticity"][1, 0] = np.inf
    each = script.Solved("solver", script.RIVALS["navier_stokes"], truth, 16, {"courant": 2.0})
    assert set(script.judged(each, truth, 4, [1])) == set()


def test_a_point_is_ahead_if_no_rival_is_both_faster_and_better(script: Any) -> None:
    rivals = [(1.0, 1e-1), (10.0, 1e-3), (20.0, 1e-2)]
    found = script.against([(1.0, 1e-2)], rivals)
    assert found == {"ahead": 1.0, "factor": pytest.approx(10**0.5)}
    assert script.against([(10.0, 1e-3)], rivals) == {"ahead": 0.0, "factor": pytest.approx(1.0)}
    assert script.against([(20.0, 1e-4)], rivals) == {"ahead": 1.0, "factor": pytest.approx(0.5)}
    assert script.against([(2.0, 0.5), (5.0, 2e-1)], rivals) == {"ahead": 0.0, "factor": pytest.approx(0.5)}
