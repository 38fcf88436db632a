"""Molecular dynamics from the command line: options, resumption, blow-up, export; beside ASE's integrators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from sciml import checkpoint, cli, traced
from sciml.cards.molecules_motion import with_dynamics
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.handles.extxyz import write_extxyz
from sciml.handles.potential import at, in_float64, pack, start
from sciml.rollout import rollout
from tests.handles import toy


@pytest.fixture(scope="module")
def model(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("model") / "model", toy.network(molecules))


def run(model: Path, molecules: Store, out: Path, *more: str) -> int:
    return cli.run(["rollout", str(model), "--from", molecules.url, "-o", str(out), "--split", "train",
                    "--trajectories", "1", *more])


def opened(path: Path) -> xr.Dataset:
    return xr.open_zarr(path, consolidated=False, decode_timedelta=False).load()


LANGEVIN = ("domains.molecules.dynamics.thermostat=langevin", "domains.molecules.dynamics.dt_fs=0.25")


def test_options_reach_the_integrator(model: Path, molecules: Store, tmp_path: Path) -> None:
    assert run(model, molecules, tmp_path / "a.zarr", "--steps", "6") == 0
    assert run(model, molecules, tmp_path / "b.zarr", "--steps", "6", *LANGEVIN) == 0
    a, b = (opened(tmp_path / f"{name}.zarr") for name in "ab")
    np.testing.assert_allclose(a["time"].values[0], 0.5 * np.arange(1, 7))
    np.testing.assert_allclose(b["time"].values[0], 0.25 * np.arange(1, 7))
    assert b.attrs["checkpoint"]["options"] == sorted(LANGEVIN)
    assert run(model, molecules, tmp_path / "c.zarr", "--steps", "3", "train.steps=3") == 2
    assert run(model, molecules, tmp_path / "c.zarr", "--steps", "3", "domains.molecules.mode=cartesian") == 1
    assert not (tmp_path / "c.zarr").exists()


def test_a_compiled_rollout_is_the_eager_one(model: Path, molecules: Store, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """One program for each of two molecules; recorded as in real use, run by torch instead of inductor."""
    record, made = traced.record, []

    def recorded(compute: Any, inputs: Any, backend: str) -> Any:
        made.append(inputs)
        return record(compute, inputs, "eager")

    monkeypatch.setattr(traced, "record", recorded)
    for name, more in (("eager", ()), ("compiled", ("--compile",))):
        assert cli.run(["rollout", str(model), "--from", molecules.url, "-o", str(tmp_path / f"{name}.zarr"), "--split",
                        "train", "--steps", "6", *LANGEVIN, *more]) == 0
    eager, compiled = (opened(tmp_path / f"{name}.zarr") for name in ("eager", "compiled"))
    assert len(made) == eager.sizes["sample"] == 2
    np.testing.assert_allclose(compiled["position"].values, eager["position"].values, atol=1e-5)
    assert compiled.attrs["checkpoint"]["options"] == ["--compile", *sorted(LANGEVIN)]
    assert run(model, molecules, tmp_path / "compiled.zarr", "--steps", "6", *LANGEVIN) == 1  # begun otherwise


def test_what_cannot_be_compiled_is_refused_before_anything_is_written(
        model: Path, molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "form_of", lambda batch: None)
    assert run(model, molecules, tmp_path / "a.zarr", "--steps", "6", "--compile") == 1
    assert not (tmp_path / "a.zarr").exists()


def test_places_far_from_the_origin_lose_nothing(molecules: Store) -> None:
    """Two copies 1700 Å apart have twice the energy of one, in float32."""
    predictor = toy.network(molecules)
    sample = predictor.adapter("molecules").open(molecules, "train").layout.sample(0)
    other = sample.assign(position=sample["position"] + 1e3)
    both = xr.concat([s[["number", "position"]] for s in (sample, other)], dim="atom").assign_attrs(sample.attrs)
    one, two = (at(predictor, pack(predictor, [s])).residual[0] for s in (sample, both))
    assert abs(two - 2 * one) < 1e-6
    direct = toy.network(molecules, forces="direct")
    assert pack(direct, [sample]).batch.axes[0].coord.dtype == torch.float32


def test_a_killed_run_goes_on_bit_for_bit(model: Path, molecules: Store, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sciml.predictor

    assert run(model, molecules, tmp_path / "whole.zarr", "--steps", "28", *LANGEVIN) == 0
    step, calls = sciml.predictor.Predictor.step, []

    def killed(self: Any, state: Any) -> Any:
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return step(self, state)

    monkeypatch.setattr(sciml.predictor.Predictor, "step", killed)
    assert run(model, molecules, tmp_path / "parts.zarr", "--steps", "28", *LANGEVIN) == 130
    monkeypatch.undo()
    assert run(model, molecules, tmp_path / "parts.zarr", "--steps", "28") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(model, molecules, tmp_path / "parts.zarr", "--steps", "28", *LANGEVIN) == 0
    whole, parts = opened(tmp_path / "whole.zarr"), opened(tmp_path / "parts.zarr")
    for name in whole.data_vars:
        np.testing.assert_array_equal(whole[name].values, parts[name].values)


def test_a_run_that_is_not_finite_stops_and_says_where(molecules: Store, tmp_path: Path) -> None:
    predictor = toy.network(molecules)
    with torch.no_grad():
        for parameter in predictor.operator.parameters():
            parameter.mul_(1e8)
    assert run(checkpoint.save(tmp_path / "wild", predictor), molecules, tmp_path / "out.zarr", "--steps", "20") == 1
    stopped = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs["stopped"]
    assert 1 <= stopped["0"] <= 20


def test_export_is_what_ase_reads(model: Path, molecules: Store, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    io = pytest.importorskip("ase.io")
    run(model, molecules, tmp_path / "md.zarr", "--steps", "6")
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: sciml trajectory")
    made = tmp_path / "md.xyz"
    assert cli.run(["trajectory", str(tmp_path / "md.zarr"), "-o", str(made), "--every", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(made), "frames": 3}
    assert cli.run(["trajectory", str(tmp_path / "md.zarr"), "-o", str(made)]) == 1
    frames, truth = io.read(made, ":"), opened(tmp_path / "md.zarr")
    assert [frame.info["time"] for frame in frames] == [1.0, 2.0, 3.0]
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.numbers, toy.NUMBERS)
        np.testing.assert_allclose(frame.positions, truth["position"].values[0, 2 * i + 1], atol=1e-9)
        assert not frame.pbc.any()
    # of the places after step 2 the energy is what step 3 found
    assert frames[0].get_potential_energy() == pytest.approx(truth["potential_energy"].values[0, 2], abs=1e-6)
    predicted = toy.network(molecules)
    from sciml.handles.ase import calculator

    frames[1].calc = calculator(predicted)
    assert frames[1].get_potential_energy() == pytest.approx(truth["potential_energy"].values[0, 4], abs=1e-4)
    assert frames[2].calc is None


def test_export_keeps_lattice_and_velocities_and_ends_where_the_run_did(tmp_path: Path) -> None:
    io = pytest.importorskip("ase.io")
    position, cell = np.arange(24.0).reshape(1, 4, 2, 3), np.diag([4.0, 5, 6])
    position[0, 3] = np.nan
    number = np.array([6.0, 1.0])
    xr.Dataset({"position": (("sample", "time", "atom", "xyz"), position),
                "velocity": (("sample", "time", "atom", "xyz"), 0.1 * position),
                "number": (("sample", "time", "atom"), np.broadcast_to(number, (1, 4, 2))),
                "cell": (("sample", "time", "lattice", "xyz"), np.broadcast_to(cell, (1, 4, 3, 3))),
                "time": (("sample", "time"), np.arange(4.0)[None])}, attrs={"domain": "molecules"}).to_zarr(
        tmp_path / "md.zarr", zarr_format=3, consolidated=False)
    assert write_extxyz(tmp_path / "md.zarr", tmp_path / "md.xyz") == 3
    last = io.read(tmp_path / "md.xyz", -1)
    assert last.get_chemical_symbols() == ["C", "H"]
    assert last.pbc.all()
    np.testing.assert_allclose(last.cell.array, cell)
    np.testing.assert_allclose(last.positions, position[0, 2])
    np.testing.assert_allclose(last.arrays["velo"], 0.1 * position[0, 2])
    with pytest.raises(InputError, match="0 to 0"):
        write_extxyz(tmp_path / "md.zarr", tmp_path / "b.xyz", sample=1)


def test_export_refuses_what_is_no_trajectory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Zarr group"):
        write_extxyz(tmp_path / "none.zarr", tmp_path / "a.xyz")
    zarr.create_group(tmp_path / "fields.zarr", attributes={"domain": "fields"})
    with pytest.raises(InputError, match="expected molecules"):
        write_extxyz(tmp_path / "fields.zarr", tmp_path / "a.xyz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fields.zarr"]


def test_constant_energy_is_the_trajectory_of_ase(molecules: Store) -> None:
    """To 1e-6 Å after 100 steps in float64, of the same potential from the same velocities."""
    ase = pytest.importorskip("ase")
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from sciml.handles.ase import calculator, sample_of

    predictor = in_float64(toy.exact(molecules))
    atoms = ase.Atoms(toy.NUMBERS, toy.TETRAHEDRON, calculator=calculator(predictor))
    velocity = np.random.default_rng(0).normal(0, 0.01, (4, 3))  # Å/fs
    atoms.set_velocities(velocity / units.fs)
    moving = with_dynamics(predictor, thermostat="none", dt_fs=0.5)
    state = start(moving, pack(moving, [sample_of(atoms, "toy")]), torch.from_numpy(velocity))
    VelocityVerlet(atoms, 0.5 * units.fs).run(100)
    *_, last = rollout(moving, state, 100)
    np.testing.assert_allclose(last.extra["position"].numpy(), atoms.positions, atol=1e-6)
    assert np.abs(atoms.positions - toy.TETRAHEDRON).max() > 0.1
