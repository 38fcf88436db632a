"""Every domain that is installed keeps every promise: ours, the tiny ones, and one from a package made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_domains import atoms, events, grid, panel

from sciml import registry
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.testing import CHECKS, Subject, check_domain, prepare
from sciml.tokens import Outputs, State
from tests.domains.series.stores import gestures_store
from tests.domains.volumes.balls import balls_store
from tests.handles import toy

FULL = {"levels": [{"width": 32, "depth": 2, "mixers": ["full"], "head_width": 16}], "stem_width": 16,
        "condition_width": 16}


def fields_store(folder: Path, shape: tuple[int, ...] = (10, 8), *, periodic: bool = True) -> Store:
    names, frames, groups, dt = ("x", "y", "z")[: len(shape)], 5, 5, 0.5
    rng = np.random.default_rng(2)
    time = np.arange(frames) * dt
    grids = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    phase = rng.uniform(0, 6, (groups, 1, *[1] * len(shape))) + time.reshape(1, -1, *[1] * len(shape))
    u = 3 + np.sin(2 * np.pi * sum(grids) + phase) + np.cos(2 * np.pi * grids[0] - phase)
    data = {"u": (("trajectory", "time", *names), u.astype(np.float32)),
            "force": (("trajectory", *names), np.broadcast_to(np.cos(2 * np.pi * grids[-1]), (groups, *shape)).copy()),
            "nu": (("trajectory",), rng.uniform(0.1, 0.2, groups))}
    axes = {"time": AxisMeta(kind="time", unit="s")} | {
        n: AxisMeta(kind="space", unit="m", period=1.0 if periodic else None) for n in names}
    variables = {"u": Variable(role="state", unit="m/s", dims=("time", *names)),
                 "force": Variable(role="forcing", unit="m/s2", dims=names),
                 "nu": Variable(role="parameter", unit="m2/s", dims=())}
    coords = {"time": time} | {n: np.arange(m) / m for n, m in zip(names, shape)}
    return _write(folder, "fields", "waves", "trajectory", data, coords, variables, axes, dt,
                  *([Block(group=g, start=0, stop=frames) for g in members] for members in ([0, 1, 2], [3], [4])))


def series_store(folder: Path) -> Store:
    steps, rng = 400, np.random.default_rng(4)
    t = np.arange(steps)
    value = np.stack([5 + np.sin(2 * np.pi * t / 24 + i) + 0.1 * rng.normal(size=steps) for i in range(3)], -1)
    value[rng.random(value.shape) < 0.05] = np.nan
    time = np.datetime64("2021-01-01", "ns") + t * np.timedelta64(3600, "s")
    variables = {"value": Variable(role="state", unit="1", dims=("time", "variate"))}
    axes = {"time": AxisMeta(kind="time", unit="s"), "variate": AxisMeta(kind="set", unit="1")}
    coords = {"time": time, "variate": ["a", "b", "c"], "variate_unit": ("variate", ["MW", "MW", "K"])}
    return _write(folder, "series", "load", "series", {"value": (("series", "time", "variate"), value[None])}, coords,
                  variables, axes, 3600.0,
                  *([Block(group=0, start=a, stop=b)] for a, b in ((0, 260), (260, 330), (330, 400))))


def spikes_store(folder: Path) -> Store:
    """5 units that fire with a slow wave, which is also the behaviour."""
    steps, rng = 300, np.random.default_rng(3)
    wave = np.sin(np.arange(steps) / 6.0)
    count = rng.poisson(np.exp(np.outer(wave, rng.normal(size=5)))).astype(np.float32)
    data = {"count": (("recording", "time", "unit"), count[None]),
            "behaviour_value": (("recording", "time", "behaviour"), wave[None, :, None].astype(np.float32))}
    variables = {"count": Variable(role="state", unit="1", dims=("time", "unit")),
                 "behaviour_value": Variable(role="label", unit="m", dims=("time", "behaviour"))}
    axes = {"time": AxisMeta(kind="time", unit="s"), "unit": AxisMeta(kind="set", unit="1"),
            "behaviour": AxisMeta(kind="set", unit="1")}
    coords = {"time": np.arange(steps) * 0.05, "unit": [f"u{i}" for i in range(5)], "behaviour": ["x"]}
    return _write(folder, "spikes", "crowd", "recording", data, coords, variables, axes, 0.05,
                  *([Block(group=0, start=a, stop=b)] for a, b in ((0, 200), (205, 250), (255, 300))))


def _write(folder: Path, domain: str, dataset: str, group_dim: str, data: Any, coords: Any, variables: Any, axes: Any,
           dt: float, train: list[Block], validation: list[Block], test: list[Block]) -> Store:
    splits = Splits(key=group_dim, train=tuple(train), validation=tuple(validation), test=tuple(test))
    made = xr.Dataset(data, coords=coords)
    draft = StoreDraft(domain=domain, dataset=dataset, group_dim=group_dim, groups=made.sizes[group_dim],
                       variables=variables, axes=axes, dt=dt, splits=splits, provenance=Provenance(builder="test"))
    return write_store(made, draft, folder / f"{dataset}.zarr")


CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "fields": (fields_store, {"patch": 2, "leads": [1, 2]}),
    "series": (series_store, {"look_back": 24, "horizons": [6, 12], "patch": 6}),
    "spikes": (spikes_store, {"floor": "smoothed", "slow_s": [0.5, 4.0], "masks": {"dropout": 0.4}, "tasks": {
        "next": {"before": 8, "scored": 16}, "behaviour": {"before": 4, "scored": 16, "after": 4}}}),
    "molecules": (lambda folder: toy.store(folder / "toy.zarr"), {}),
    "volumes": (balls_store, {}),
    "tiny_atoms": (lambda _: atoms.make_store(), {}),
    "tiny_events": (lambda _: events.make_store(), {}),
    "tiny_grid": (lambda _: grid.make_store(), {}),
    "tiny_panel": (lambda _: panel.make_store(), {}),
}


def test_every_domain_that_is_installed_is_examined_here() -> None:
    assert set(registry.names("sciml.domains")) == set(CASES)


@pytest.fixture(scope="module", params=sorted(CASES))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    make, config = CASES[request.param]
    return prepare(request.param, [make(tmp_path_factory.mktemp(request.param))], config=config)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


@pytest.mark.parametrize("name", ["tiny_atoms", "tiny_events"])
def test_domains_of_sets_also_work_with_full_attention(name: str, tmp_path: Path) -> None:
    unused = check_domain(name, [CASES[name][0](tmp_path)], operator=FULL)
    assert not [p for p in unused if ".mixers." in p]


@pytest.mark.parametrize("config", [
    {"task": {"segment": {"regions": {"whole": [1, 2], "core": [2]}}}}, {"task": {"masked": {"scales": [2]}}},
    {"task": {"segment": {"head": "lattice"}}, "stem": "patch", "spacing_mm": [1.0, 1.0, 1.0]}],
    ids=["regions", "masked", "resampled"])
def test_tasks_of_volumes_conform(config: dict[str, Any], tmp_path: Path) -> None:
    check_domain("volumes", [balls_store(tmp_path)], config=config)


@pytest.mark.parametrize("config", [
    {"task": "impute"}, {"task": "stream"}, {"task": {"anomaly": {"block": 3}}},
    {"task": {"forecast": {"quantiles": [0.1, 0.5, 0.9]}}},
    {"task": {"forecast": {"student_t": True}}},
    {"shortest": 12, "missing": 0.3, "inputs": {"spread": True, "level": True, "identity": False}}],
    ids=["impute", "stream", "anomaly", "quantiles", "student_t", "inputs"])
def test_tasks_of_series_conform(config: dict[str, Any], tmp_path: Path) -> None:
    check_domain("series", [series_store(tmp_path)], config={**CASES["series"][1], **config})


def test_fields_with_details_of_cells_conform(tmp_path: Path) -> None:
    check_domain("fields", [CASES["fields"][0](tmp_path)], config={**CASES["fields"][1], "detail": True})


def test_classes_of_series_conform(tmp_path: Path) -> None:
    check_domain("series", [gestures_store(tmp_path)], config={"look_back": 24, "patch": 4, "task": {
        "classify": {"augment": {"noise": 0.1, "crop": 0.1, "warp": 0.2, "scale": 0.1}}}})


@pytest.mark.parametrize("config", [{}, {"mode": "cartesian"}, {"mode": "cartesian", "frames": True},
                                    {"forces": "direct"}], ids=["gradient", "cartesian", "frames", "direct"])
def test_molecules_conform_in_every_mode(config: dict[str, Any], tmp_path: Path) -> None:
    mixers = ["full"] if config.get("mode") else ["cluster"]
    levels = [{"width": 16, "depth": 2, "mixers": mixers, "head_width": 8}]
    check_domain("molecules", [toy.store(tmp_path / "toy.zarr")], config=config,
                 operator={"levels": levels, "stem_width": 8, "condition_width": 8})


@pytest.mark.parametrize("shape", [(12,), (6, 4, 4)], ids=["1d", "3d"])
def test_fields_conform_on_other_ranks_and_without_periods(shape: tuple[int, ...], tmp_path: Path) -> None:
    check_domain("fields", [fields_store(tmp_path, shape, periodic=False)], config={"patch": 2})


def test_unused_parameters_are_listed_with_their_reason(tmp_path: Path) -> None:
    unused = check_domain("tiny_atoms", [atoms.make_store()])
    reasons = set(unused.values())
    assert "Local has no use for it along the domain's axes" in reasons
    assert "the domain has no context" in reasons
    assert not [name for name in unused if ".ffn." in name or ".heads." in name]


@dataclass(frozen=True)
class Broken(grid.Grid):
    """A grid with one promise broken at a time."""

    fault: str = ""

    def encode(self, sample: xr.Dataset) -> Any:
        batch = super().encode(sample)
        if self.fault == "encode":
            return replace(batch, values=batch.values * torch.nan)
        return batch

    def spec(self) -> Any:
        spec = super().spec()
        return replace(spec, vector_conditions=("lead_time", "never_given")) if self.fault == "spec" else spec

    def decode(self, batch: Any, predictions: Any) -> xr.Dataset:
        decoded = super().decode(batch, predictions)
        if self.fault == "unit":
            decoded["height"].attrs["units"] = "mm"
        return decoded * 1.01 if self.fault == "decode" else decoded

    def advance(self, state: State, outputs: Outputs) -> State:
        advanced = super().advance(state, outputs)
        if self.fault == "time":
            return replace(advanced, elapsed=advanced.elapsed * 1.1)
        if self.fault == "slope":
            return replace(advanced, batch=replace(advanced.batch, values=advanced.batch.values.detach(), targets={
                k: replace(t, value=t.value.detach(), baseline=t.baseline.detach())
                for k, t in advanced.batch.targets.items()}))
        if self.fault == "memory":
            noise = torch.rand_like(advanced.batch.values)
            return replace(advanced, batch=replace(advanced.batch, values=advanced.batch.values + noise))
        return advanced

    def state(self) -> Any:
        config, arrays = super().state()
        return config, {k: v * (2 if self.fault == "state" and k == "scale" else 1) for k, v in arrays.items()}


@pytest.mark.parametrize(("fault", "check", "message"), [
    ("encode", "check_encoding", "values is not finite"),
    ("spec", "check_gradients", "never_given gets no gradient"),
    ("decode", "check_truth", "height decodes to other values"),
    ("unit", "check_truth", "height is decoded in 'mm', the sample has 'm'"),
    ("time", "check_advance", "2 steps move time by"),
    ("slope", "check_advance", "depends differentiably"),
    ("memory", "check_rollout", "3 steps are not 1 step and 2 more"),
    ("state", "check_restore", "encodes differently"),
])
def test_a_broken_promise_is_named_with_its_fix(fault: str, check: str, message: str) -> None:
    subject = prepare("tiny_grid", [grid.make_store()])
    adapter = Broken(subject.adapter.baseline, subject.adapter.dataset, fault=fault)
    if fault == "spec":
        subject.predictor.operator.extend(adapter.spec())
    broken = replace(subject, adapter=adapter, predictor=replace(subject.predictor, adapters={"tiny_grid": adapter}))
    with pytest.raises(AssertionError, match=message) as caught:
        next(c for c in CHECKS if c.__name__ == check)(broken)
    assert "Fix: " in str(caught.value)


def test_an_unregistered_domain_is_told_to_register() -> None:
    subject = prepare("tiny_grid", [grid.make_store()])
    nameless = replace(subject.adapter, name="nobody")
    with pytest.raises(AssertionError, match=r"not registered.*entry-points"):
        CHECKS[-1](replace(subject, adapter=nameless))


PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "throwaway"
version = "0.1"
[project.entry-points."sciml.domains"]
throwaway_grid = "throwaway_domain:PLUGIN"
[tool.hatch.build.targets.wheel]
packages = ["throwaway_domain.py"]
[tool.hatch.build.targets.wheel.force-include]
"throwaway_domain.py" = "throwaway_domain.py"
"""
OUTSIDER = """
from sciml import registry
from sciml.testing import check_domain
from throwaway_domain import make_store
assert "throwaway_grid" in registry.names("sciml.domains")
print(len(check_domain("throwaway_grid", [make_store()])), "unused")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_domain_of_a_separately_installed_package_is_found_and_conforms(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    own = Path(grid.__file__)
    text = (own.parent / "common.py").read_text() + own.read_text()
    text = text.replace("from __future__ import annotations\n", "").replace("tiny_grid", "throwaway_grid")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("from tiny_domains"))
    (source / "throwaway_domain.py").write_text("from __future__ import annotations\n" + text)
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([sys.executable, "-m", "pip", *install, str(target), str(source)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", OUTSIDER], env=environment, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unused" in done.stdout
