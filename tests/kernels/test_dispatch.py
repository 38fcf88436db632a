"""The choice of a kernel: rules, tables measured on a machine and frozen by a run, what is recorded and printed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sciml import cli, registry
from sciml.kernels import dispatch, tune
from sciml.kernels.attend import attend
from sciml.kernels.contract import GROUP, Request

SHORT = Request((64, 4, 16, 16, 32, 32), grad=True)
LONG = Request((4, 4, 256, 256, 32, 32), grad=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dispatch, "_used", {})
    dispatch.set_table(None)
    yield
    dispatch.set_table(None)


@pytest.mark.parametrize(("request_", "kernel", "why"), [
    (SHORT, "rows", "many short rows"),
    (LONG, "flash", "fused"),
    (Request((2, 2, 16, 16, 32, 32)), "flash", "fused"),
    (Request((4, 4, 256, 256, 32, 32), second_order=True), "rows", "derivatives that the fused kernel doesn't have"),
    (Request((1, 1, 4, 4, 32, 32), second_order=True), "plain", "no faster kernel is correct"),
    (Request((4, 4, 256, 256, 32, 32), bias="full", bias_grad=True), "rows", "derivatives that"),
    (Request((64, 4, 16, 16, 32, 32), device="cuda"), "flash", "fused"),
    (Request((64, 4, 16, 16, 32, 32), dtype="bfloat16"), "flash", "fused"),
    (Request((4, 4, 256, 256, 32, 16)), "plain", "no faster kernel is correct"),
    (Request((1, 4, 256, 256, 32, 32), packed=True), "packed", "one call per length"),
    (Request((1, 4, 8, 256, 32, 32), packed=True), "plain", "no faster kernel is correct"),
])
def test_rules(request_: Request, kernel: str, why: str) -> None:
    choice = dispatch.choose(request_)
    assert choice.kernel == kernel
    assert why in choice.reason


def test_a_table_decides_among_correct_kernels_only() -> None:
    forces = Request(LONG.shape, second_order=True, grad=True)
    with dispatch.frozen({LONG.key(): "rows", forces.key(): "flash", SHORT.key(): "no such kernel"}):
        assert dispatch.choose(LONG) == ("rows", "measured to be the fastest here")
        assert dispatch.choose(forces).kernel == "rows"
        assert dispatch.choose(SHORT).kernel == "rows"
    assert dispatch.choose(LONG).kernel == "flash"


def test_every_kernel_is_chosen_where_a_table_says_so_and_runs() -> None:
    q = torch.randn(4, 2, 6, 8)
    made = []
    for name in ("flash", "plain", "rows"):
        with dispatch.frozen({Request((4, 2, 6, 6, 8, 8)).key(): name}), dispatch.record() as entries:
            made.append(attend(q, q, q))
        assert [entry.kernel for entry in entries] == [name]
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[2], made[1])


def test_the_table_of_a_run_can_be_frozen_as_json() -> None:
    q = torch.randn(4, 2, 6, 8)
    attend(q, q, q)
    attend(q[:3], q[:3], q[:3])  # six rows are measured as eight
    (used,) = dispatch.used_requests()
    dispatch.set_table({used.key(): "plain"})
    frozen = json.loads(json.dumps(dict(dispatch.table())))
    dispatch.set_table({})
    assert dispatch.choose(used).kernel == "flash"
    dispatch.set_table(frozen)
    assert dispatch.choose(used).kernel == "plain"


def test_measured_tables_are_kept_and_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"rows": 3.0, "flash": 2.0, "plain": 1.0}
    monkeypatch.setattr(tune, "seconds", lambda request, names, repeats: {name: taken[name] for name in names})
    tune.tune([SHORT, SHORT, Request((1, 4, 64, 64, 32, 32), packed=True)])
    assert tune.load() == {SHORT.key(): "plain"}
    taken["flash"] = 0.5
    tune.tune([LONG])
    assert tune.load() == {SHORT.key(): "plain", LONG.key(): "flash"}
    assert [file.name for file in tune.path().parent.iterdir()] == [tune.path().name]
    dispatch.set_table(None)
    assert dispatch.choose(SHORT).kernel == "plain"


@pytest.mark.parametrize("request_", [
    Request((3, 2, 5, 5, 4, 4)), Request((3, 2, 5, 5, 4, 4), grad=True, bias="keys", causal=True),
    Request((3, 2, 5, 6, 4, 4), "float64", grad=True, bias="full", bias_grad=True, second_order=True)])
def test_correct_kernels_are_timed(request_: Request) -> None:
    (taken,) = tune.tune([request_], repeats=1).values()
    assert set(taken) == {name for name, refusal in dispatch.admissible(request_).items() if refusal is None}
    assert all(0 < seconds < 10 for seconds in taken.values())


def test_files_that_are_not_ours_count_as_none() -> None:
    good = {"version": tune.VERSION, "machine": tune.machine(), "seconds": {SHORT.key(): {"plain": 1.0}}}
    file = tune.path()
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(good))
    assert tune.load() == {SHORT.key(): "plain"}
    for content in (b"", b"{", b"[]", b"\xff\xfe", pickle.dumps(good), b" " * (tune.MAX_BYTES + 1), b"[" * 10**5,
                    json.dumps({**good, "machine": "another"}).encode(), json.dumps({**good, "version": 2}).encode(),
                    json.dumps({**good, "seconds": [1]}).encode()):
        file.write_bytes(content)
        assert tune.load() == {}
    for wrong in ({}, {"plain": "fast"}, {"plain": float("nan")}, {"plain": -1.0}, {"plain": True}, 3):
        file.write_text(json.dumps({**good, "seconds": {"a": wrong, SHORT.key(): {"rows": 2, "plain": 3}}}))
        assert tune.load() == {SHORT.key(): "rows"}


def test_the_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[None] = []
    monkeypatch.setattr(tune, "load", lambda: reads.append(None) or {})  # type: ignore[func-returns-value]
    dispatch.set_table(None)
    for request in (SHORT, LONG, SHORT):
        dispatch.choose(request)
    assert len(reads) == 1


def test_kernels_are_plug_ins() -> None:
    assert set(registry.names(GROUP)) == {"flash", "packed", "plain", "rows"}
    for name, kernel in dispatch.kernels().items():
        assert registry.find(GROUP, name) is kernel


RECIPE = """
name: tiny
data: [{store: nowhere.zarr, batch: 8}]
domains: {fields: {patch: 2}}
operator:
  levels:
    - {width: 16, depth: 1, depth_up: 1, mixers: [[axial, local], [full]], head_width: 8}
    - {width: 16, depth: 1, mixers: [full], head_width: 8}
  stem_width: 8
  condition_width: 16
train: {steps: 1, threads: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[dict[str, object]]]:
    assert cli.run(["kernels", "explain", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_explain_prints_what_runs_and_why(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kernels", "explain", str(recipe), "--lattice", "16x16"]) == 0
    printed = capsys.readouterr().out
    assert "a made-up field of 16x16 cells" in printed
    assert printed.splitlines()[-1] == f"next: sciml kernels explain {recipe} --lattice 16x16 --tune"
    lines = explained(capsys, str(recipe), "--lattice", "16x16")["kernels"]
    told = [(line["place"], line["mixer"], line["lattice"], line["kernel"], line["calls"]) for line in lines]
    assert told == [("level 0, down 0", "axial", "8×8", "rows", 2), ("level 0, down 0", "local", "8×8", "own", 1),
                    ("level 1, down 0", "full", "4×4", "flash", 1), ("level 0, up 0", "full", "8×8", "flash", 1)]
    assert lines[0]["why"] == "many short rows: 128 rows of 8 keys"
    assert "packed: nothing is packed" in str(lines[0]["refused"])
    assert "convolution" not in str(lines[0]["why"])
    assert lines[1]["why"]


def test_explain_measures_when_asked_to(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(capsys, str(recipe), "--lattice", "8x8", "--tune")
    assert tune.path().is_file()
    asked = [line for line in found["kernels"] if line["kernel"] != "own"]
    assert set(found["table"]) == {line["request"] for line in asked}
    assert all(str(line["why"]).startswith("measured to be the fastest here") for line in asked)


@pytest.mark.parametrize("lattice", ["", "8x", "ax8", "0x4", "-3"])
def test_explain_refuses_a_wrong_lattice(recipe: Path, lattice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kernels", "explain", str(recipe), f"--lattice={lattice}"]) in (1, 2)
    assert capsys.readouterr().err


def test_explain_without_its_stores_says_what_to_do(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kernels", "explain", str(recipe)]) == 1
    assert "--lattice" in capsys.readouterr().err


def test_explain_runs_the_first_batch_of_real_stores(recipe: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    from sciml.data.build import build
    from sciml.data.source import SourceSpec

    build(SourceSpec.model_validate({
        "name": "waves", "domain": "fields", "builder": "navier_stokes",
        "options": {"trajectories": 3, "frames": 4, "resolution": 8, "spin_up": 0.0, "viscosity": 1e-3},
        "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 1}}}), tmp_path / "waves.zarr")
    found = explained(capsys, str(recipe), f"data.0.store={tmp_path / 'waves.zarr'}", "data.0.batch=2")
    assert found["batch"] == "the first training batch of each domain"
    first = found["kernels"][0]
    assert (first["mixer"], first["lattice"], first["domain"]) == ("axial", "4×4", "fields")
