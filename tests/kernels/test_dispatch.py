"""The choice of a kernel: rules, tables measured on a machine and frozen by a run, what is recorded and printed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

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
    assert set(taken.seconds) == {name for name, refusal in dispatch.admissible(request_).items() if refusal is None}
    assert all(0 < seconds < 10 for seconds in taken.seconds.values())
    assert taken.left_out == {}


def test_kernels_with_matrices_too_large_for_the_memory_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[set[str]] = []

    def seconds(request: Request, names: list[str], repeats: int) -> dict[str, float]:
        timed.append(set(names))
        return dict.fromkeys(names, 1.0)

    monkeypatch.setattr(tune, "seconds", seconds)
    monkeypatch.setattr(tune, "free_bytes", lambda device: 4 << 30)
    huge, large = Request((1, 2, 4096, 4096, 32, 32), grad=True), Request((1, 2, 4096, 2048, 32, 32), grad=True)
    forces = replace(huge, second_order=True)
    found = tune.tune([huge, large, forces, LONG])
    assert timed == [{"flash", "rows"}, {"flash", "plain", "rows"}, {"flash", "plain", "rows"}]
    assert set(found[huge.key()].left_out) == {"plain"}
    assert "4096 × 4096" in found[huge.key()].left_out["plain"]
    assert set(found[forces.key()].left_out) == {"plain", "rows"}
    assert forces.key() not in tune.load(), "nothing was compared"


def test_what_is_free_is_read_from_the_machine() -> None:
    assert 1 << 20 < tune.free_bytes("cpu") < 1 << 50


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


def test_a_choice_by_a_table_is_forgotten_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another thread is still making it while the next table is set."""
    begun, go_on = Event(), Event()

    class Slow:
        def refuses(self, request: Request) -> str | None:
            begun.set()
            go_on.wait(10)
            return None

    monkeypatch.setitem(dispatch.kernels(), "plain", Slow())
    dispatch.set_table({LONG.key(): "plain"})
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(dispatch.choose, LONG)
        assert begun.wait(10)
        dispatch.set_table({LONG.key(): "rows"})
        go_on.set()
        assert early.result().kernel == "plain"
    assert dispatch.choose(LONG).kernel == "rows"


def test_records_may_be_nested() -> None:
    q = torch.randn(1, 1, 4, 8)
    with dispatch.record() as outer:
        with dispatch.record() as inner:
            attend(q, q, q)
        attend(q, q, q)
    assert (len(outer), len(inner)) == (2, 1)


def test_threads_do_not_see_each_others_calls() -> None:
    q = torch.randn(1, 1, 4, 8)

    def other() -> list[dispatch.Entry]:
        with dispatch.record() as own:
            attend(q, q, q)
        return own

    with dispatch.record() as entries, ThreadPoolExecutor(1) as pool, dispatch.answered(SHORT):
        (entry,) = pool.submit(other).result()
    assert entry.depth == 0
    assert [entry.request for entry in entries] == [SHORT]


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


def test_explain_tells_what_compiled_blocks_take(recipe: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """They go by rule, whatever was measured."""
    monkeypatch.setattr(tune, "seconds", lambda request, names, repeats: {n: 1.0 + (n != "plain") for n in names})
    told = {}
    for compiled in ("false", "true"):
        lines = explained(capsys, str(recipe), "--lattice", "16x16", "--tune", f"train.compile={compiled}")["kernels"]
        told[compiled] = [(line["kernel"], line["why"]) for line in lines if line["kernel"] != "own"]
    assert {kernel for kernel, _ in told["false"]} == {"plain"}
    assert told["true"] == [("rows", "compiled, many short rows: 128 rows of 8 keys"),
                            ("flash", "compiled, fused: 16 rows of 16 keys"),
                            ("flash", "compiled, fused: 16 rows of 64 keys")]


def test_explain_says_what_was_not_timed(recipe: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "free_bytes", lambda device: 4096)
    assert cli.run(["kernels", "explain", str(recipe), "--lattice", "8x8", "--tune"]) == 0
    assert "plain not timed: up to" in capsys.readouterr().out
    left_out = explained(capsys, str(recipe), "--lattice", "8x8", "--tune")["not_timed"]
    assert all(set(kernels) == {"plain", "rows"} for kernels in left_out.values())  # type: ignore[attr-defined]
    assert left_out


@pytest.mark.parametrize(("assignment", "length", "tokens"), [
    ("domains.fields={patch: 2}", None, "8×8"), ("domains.fields={}", None, "4×4"), ("domains={}", None, "4×4"),
    ("domains.fields={patch: 2}", 0.5, "2×2")])
def test_tokens_of_a_made_up_field_are_those_of_the_domain(
        recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, assignment: str,
        length: float | None, tokens: str) -> None:
    """Its default patch, or the length of a token, which on this grid is so many cells of the unit period."""
    from sciml.domains.fields.adapter import Fields

    spec = Fields.spec
    monkeypatch.setattr(Fields, "spec", lambda self: replace(spec(self), patch_length=length))
    lines = explained(capsys, str(recipe), assignment, "--lattice", "16x16")["kernels"]
    assert lines[0]["lattice"] == tokens


def test_explain_refuses_what_the_domain_does(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kernels", "explain", str(recipe), "domains.fields={patch: many}", "--lattice", "8x8"]) == 1
    assert "patch" in capsys.readouterr().err


@pytest.mark.parametrize("lattice", ["", "8x", "ax8", "0x4", "-3"])
def test_explain_refuses_a_wrong_lattice(recipe: Path, lattice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kernels", "explain", str(recipe), f"--lattice={lattice}"]) in (1, 2)
    assert capsys.readouterr().err


def test_explain_without_its_stores_says_what_to_do(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["kernels", "explain", str(recipe)]) == 1
    assert "--lattice" in capsys.readouterr().err


def test_explain_runs_the_first_batch_of_real_stores(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    from sciml.data.build import build
    from sciml.data.source import SourceSpec
    from sciml.domains.fields.adapter import Fields

    build(SourceSpec.model_validate({
        "name": "waves", "domain": "fields", "builder": "navier_stokes",
        "options": {"trajectories": 3, "frames": 4, "resolution": 8, "spin_up": 0.0, "viscosity": 1e-3},
        "split": {"by": "group", "counts": {"train": 1, "validation": 1, "test": 1}}}), tmp_path / "waves.zarr")
    words = (str(recipe), f"data.0.store={tmp_path / 'waves.zarr'}", "data.0.batch=2")
    found = explained(capsys, *words)
    assert found["batch"] == "the first training batch of each domain"
    first = found["kernels"][0]
    assert (first["mixer"], first["lattice"], first["domain"]) == ("axial", "4×4", "fields")
    compiled = explained(capsys, *words, "train.compile=true")["kernels"][0]
    assert str(compiled["why"]).startswith("compiled, ")
    create = Fields.create
    monkeypatch.setattr(Fields, "create", lambda config: replace(create(config), differentiate=("coord",)))
    eager = explained(capsys, *words, "train.compile=true")["kernels"][0]
    assert not str(eager["why"]).startswith("compiled, "), "a graph has no second derivative"
