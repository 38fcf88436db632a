"""A rollout step ahead of time: equal to the eager one at every size, safe to load, runnable without sciml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml import cli
from sciml.data.store import Store
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.baseline import Mean, Persistence
from sciml.domains.fields.config import Contract, FieldsConfig, GridAxis, Scaling
from sciml.errors import InputError
from sciml.export import ExportedStep, compare, exported_rollout, inputs_of, load_step, package, step_module
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.rollout import BlowUp, rollout
from sciml.tokens import State

RADIAL = [{"width": 16, "depth": 1, "mixers": ["radial"], "head_width": 8}]
AXIAL = [{"width": 16, "depth": 1, "mixers": ["axial", "local"], "head_width": 8}, *RADIAL]
FORMS: list[dict[str, Any]] = [
    {}, {"spectral": 0.0, "hole": True}, {"spectral": 0.0, "periodic": False}, {"forcing": True}, {"axes": ("x",)},
    {"norm": "sample"}, {"norm": "sample", "spectral": 0.0, "periodic": False}, {"periodic": False}]


def predictor(levels: list[dict[str, Any]], *, axes: tuple[str, ...] = ("x", "y"), periodic: bool = True,
              spectral: float = 0.6, forcing: bool = False, norm: str = "token") -> Predictor:
    """Two variables in a box of 2 m, with a parameter, weights that are not at their beginning, and made-up curves."""
    torch.manual_seed(0)
    known = Contract(
        axes=tuple(GridAxis(name=name, unit="m", period=2.0 if periodic else None) for name in axes), dt=0.5,
        time_unit="s", length=2.0, time=0.5, spacing=2.0 / 32,
        states={"u": Scaling(unit="m/s", center=0.3, scale=2.0), "v": Scaling(unit="m/s", scale=1.5)},
        forcings={"f": Scaling(unit="1")} if forcing else {},
        parameters={"nu": Scaling(unit="m2/s", center=-3, transform="log10")})
    shells = np.arange(24)
    curve = np.stack([np.exp(-0.05 * shells), 0.1 * np.exp(-0.3 * shells), 1 + 6.0 * shells])
    adapter = Fields(
        FieldsConfig(spectral=spectral, fixed_patch=False), {"made_up": known},
        Persistence({"made_up": {name: np.array([[0.5, 1.0], [0.1, 0.3]]) for name in "uv"}}),
        {"made_up": {"u": {1: curve}, "v": {1: 0.5 * curve[:, :20]}}} if spectral else {})
    config = OperatorConfig.model_validate({"levels": levels, "stem_width": 8, "condition_width": 8, "norm": norm})
    operator = Operator(config, {"fields": adapter.spec()}).eval()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Predictor(operator, {"fields": adapter})


def sample(*sizes: int, axes: tuple[str, ...] = ("x", "y"), periodic: bool = True, hole: bool = False,
           forcing: bool = False, seed: int = 1, spectral: float = 0.6, **_: Any) -> xr.Dataset:
    rng, sizes = np.random.default_rng(seed), sizes[:len(axes)]
    attrs: dict[str, Any] = {"units": "m", **({"period": 2.0} if periodic else {})}
    coords: dict[str, Any] = {
        name: (name, 2.0 * np.arange(n) / n if periodic or spectral else np.sort(rng.uniform(0, 2, n)), attrs)
        for name, n in zip(axes, sizes)}
    states = {name: rng.standard_normal(sizes) for name in "uv"}
    if hole:
        states["u"][2:4, 3] = np.nan
    if forcing:
        coords["time"] = ("time", 0.5 * np.arange(5), {"units": "s"})
    dims = (*(["time"] if forcing else []), *axes)
    data: dict[str, Any] = {
        name: (dims, np.stack([x] * 5) if forcing else x, {"units": "m/s"}) for name, x in states.items()}
    data["nu"] = ((), 1e-3, {"units": "m2/s"})
    if forcing:
        data["f"] = (dims, rng.standard_normal((5, *sizes)))
    return xr.Dataset(data, coords, attrs={"domain": "fields", "dataset": "made_up"})


def initial(of: Predictor, *sizes: int, **form: Any) -> State:
    return of.adapter("fields").initial(sample(*sizes, **form))


def made(form: dict[str, Any], levels: list[dict[str, Any]] = RADIAL) -> Predictor:
    return predictor(levels, **{key: value for key, value in form.items() if key != "hole"})


def several(of: Predictor, count: int, *sizes: int) -> State:
    """A batch of initial states."""
    adapter = of.adapter("fields")
    encoded = [adapter.initial(sample(*sizes, seed=i)).batch for i in range(count)]
    return State(collate(encoded))


def uncompiled(of: Predictor, state: State) -> ExportedStep:
    module = step_module(of, state)
    return ExportedStep(module.form, Path(), {}, module)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_step_as_plain_tensors_is_the_rollouts(form: dict[str, Any]) -> None:
    ours = made(form)
    state = initial(ours, 24, 32, **form)
    step = uncompiled(ours, state)
    for eager, plain in zip(rollout(ours, state, 3), exported_rollout(step, state, 3), strict=True):
        torch.testing.assert_close(plain.batch.values, eager.batch.values, rtol=0, atol=1e-5)
        assert (plain.step, plain.elapsed) == (eager.step, eager.elapsed)
        for name, value in eager.batch.conditions.lattice.items():
            assert torch.equal(plain.batch.conditions.lattice[name], value)


@pytest.mark.parametrize("norm", ["token", "sample"])
def test_one_graph_serves_every_lattice_and_batch(norm: str) -> None:
    ours = predictor(AXIAL, norm=norm)
    module = step_module(ours, initial(ours, 24, 32))
    graph = package.trace(module, initial(ours, 24, 32).batch).module()
    for state in (several(ours, 1, 64, 24), several(ours, 5, 32, 48)):
        expected = ours.step(state).batch.values
        with torch.no_grad():
            torch.testing.assert_close(graph(*inputs_of(module.form, state.batch)), expected, rtol=0, atol=1e-5)


def test_a_mixer_that_is_no_graph_is_named() -> None:
    ours = predictor([{**RADIAL[0], "mixers": ["window"]}])
    state = initial(ours, 24, 32)
    with pytest.raises(InputError, match="window"):
        package.trace(step_module(ours, state), state.batch)


@pytest.mark.slow
def test_a_graph_made_for_one_size_alone_is_refused() -> None:
    ours = predictor([{**RADIAL[0], "mixers": ["spectral"]}])
    state = initial(ours, 24, 32)
    with pytest.raises(InputError, match="spectral"):
        package.trace(step_module(ours, state), state.batch)


def test_a_baseline_about_the_mean_is_refused() -> None:
    """The exported step goes on from the state itself: it would be another model."""
    ours = predictor(RADIAL, spectral=0.0, periodic=False)
    mean = Mean(np.zeros((1, 1)), (np.array([0.0]),) * 2, 1.0)
    curve = np.array([[0.5], [0.8], [0.3]])
    damped = replace(ours.adapter("fields"), means={"made_up": {"u": mean, "v": mean}},
                     damping={"made_up": {"u": curve, "v": curve}})
    ours = replace(ours, adapters={"fields": damped})
    state = initial(ours, 24, 32, periodic=False)
    with pytest.raises(InputError, match=r"domains\.fields\.damped.*about the training mean.*sciml rollout"):
        step_module(ours, state)


def test_sizes_that_do_not_fit_are_refused() -> None:
    ours = predictor(AXIAL)
    with pytest.raises(InputError, match="a multiple of 8 from 24 to 768"):
        step_module(ours, initial(ours, 20, 32))
    state = initial(ours, 24, 32)
    step = uncompiled(ours, state)
    given = inputs_of(step.form, state.batch)
    for wrong, message in (((given[0][:, :20], *given[1:]), "a multiple of 8"), (given[:-1], "4: "),
                           ((given[0].double(), *given[1:]), "float32"), ((given[0][..., :1], *given[1:]), "shape"),
                           ((given[0], given[1].repeat(2), *given[2:]), "vector:")):
        with pytest.raises(InputError, match=message):
            step.run(*wrong)
    with pytest.raises(InputError, match="'fields'"):
        step_module(replace(ours, adapters={"fields": object()}), state)  # type: ignore[dict-item]


def test_a_rollout_that_is_not_finite_stops() -> None:
    ours = predictor(RADIAL)
    state = initial(ours, 24, 32)
    step = replace(uncompiled(ours, state), call=lambda values, *_: values / 0)
    with pytest.raises(BlowUp, match="step 1"):
        list(exported_rollout(step, state, 2))


def test_the_key_follows_weights_form_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = predictor(RADIAL)
    state = initial(ours, 24, 32)
    key = package.key(step_module(ours, state))
    assert key == package.key(step_module(ours, initial(ours, 48, 64, seed=3)))
    other = predictor(RADIAL)
    with torch.no_grad():
        next(other.operator.parameters())[0] += 1e-3
    keys = {key, *(package.key(step_module(each, state)) for each in (other, predictor(RADIAL, spectral=0.5)))}
    for name in ("machine", "code"):
        monkeypatch.setattr(package, name, lambda *_: "another")
        keys.add(package.key(step_module(ours, state)))
    assert len(keys) == 5


def test_nothing_but_the_users_own_package_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path))
    ours = predictor(RADIAL)
    state = initial(ours, 24, 32)
    module = step_module(ours, state)
    folder = tmp_path / "export" / package.key(module)
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        path.chmod(0o700)
    for name, text in ((package.PACKAGE, "not a package"), (package.DESCRIPTION, json.dumps({"sha256": "0" * 64}))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    with pytest.raises(InputError, match="sha256"):
        load_step(ours, state)
    (folder / package.PACKAGE).chmod(0o666)
    with pytest.raises(InputError, match="this user alone"):
        load_step(ours, state)


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    ours = predictor(RADIAL)
    with pytest.raises(InputError, match=r"install g\+\+"):
        load_step(ours, initial(ours, 24, 32))


ALONE = """
import json, sys
import numpy as np, torch
folder, package = sys.argv[1:]
torch.set_num_threads(1)
step = torch._inductor.aoti_load_package(package)
given = json.load(open(f"{folder}/given.json"))
for sizes in given["cases"]:
    inputs = [torch.from_numpy(np.load(f"{folder}/{sizes}-{i}.npy")) for i in range(given["count"])]
    for _ in range(given["steps"]):
        inputs[0] = step(*inputs)
    np.save(f"{folder}/{sizes}-out.npy", inputs[0].numpy())
print(sorted(name for name in sys.modules if name.partition(".")[0] == "sciml"))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_runs_without_the_code_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built once, found again; a process that imports torch alone rolls it out over lattices it was not made at."""
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    ours = predictor(AXIAL)
    step = load_step(ours, initial(ours, 24, 32))
    assert step.path == load_step(ours, sample(40, 24)).path
    cases = {"one": several(ours, 1, 64, 24), "three": several(ours, 3, 48, 40)}
    for name, state in cases.items():
        states = zip(rollout(ours, state, 3), exported_rollout(step, state, 3), strict=True)
        for eager, exported in states:
            torch.testing.assert_close(exported.batch.values, eager.batch.values, rtol=0, atol=2e-5)
        assert compare(ours, step, state, rounds=2).difference < 1e-5
        for i, tensor in enumerate(inputs_of(step.form, state.batch)):
            np.save(tmp_path / f"{name}-{i}.npy", tensor.numpy())
    given = {"cases": list(cases), "count": len(step.form.inputs()), "steps": 3}
    (tmp_path / "given.json").write_text(json.dumps(given))
    assert json.loads(step.path.with_name("step.json").read_text())["inputs"] == list(step.form.inputs())
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path), str(step.path)], text=True,
                          capture_output=True, check=False, cwd=tmp_path,
                          env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for name, state in cases.items():
        *_, last = rollout(ours, state, 3)
        alone = torch.from_numpy(np.load(tmp_path / f"{name}-out.npy"))
        torch.testing.assert_close(alone, last.batch.values, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command(trained: Path, stores: tuple[Store, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path))
    for cached in (False, True):
        assert cli.run(["export", str(trained), "--like", stores[0].url, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["cached"] is cached
        assert told["difference"] < 1e-5
        assert Path(told["path"]).is_relative_to(tmp_path / "export")
    assert cli.run(["export", str(trained), "--like", stores[0].url]) == 0
    assert "next: " in capsys.readouterr().out
    assert cli.run(["export", str(trained), "--like", stores[2].url]) == 1
    assert "'fields'" in capsys.readouterr().err
