"""The command line: quick to help, exact about whose fault it is, open to other packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import xarray as xr

from sciml import assets, cli
from sciml.cli import console, evaluate
from sciml.errors import InputError

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "xarray", "pandas", "zarr", "dask", "matplotlib", "pydantic")


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    search = ":".join(str(p) for p in (*path, ROOT))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": search, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "COLUMNS": "100"})


def test_help_is_cheap_and_imports_nothing_heavy() -> None:
    code = ("import resource, sys\nfrom sciml.cli import run\nassert run(['--help']) == 0\n"
            "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
            f"print([m for m in {HEAVY} if m in sys.modules], usage.ru_utime + usage.ru_stime)")
    done = python(code)
    assert done.returncode == 0, done.stderr
    heavy, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 0.3
    for name in ("doctor", "report", "checkpoint", "bench", "rollout", "evaluate"):
        assert f"  {name} " in done.stdout


def test_importing_a_command_imports_nothing_heavy() -> None:
    code = ("import sys\nfrom sciml.cli import cli\nimport click\nctx = click.Context(cli)\n"
            "[cli.get_command(ctx, n) for n in ('doctor', 'report', 'checkpoint', 'bench', 'rollout', 'evaluate')]\n"
            f"print([m for m in {HEAVY} if m in sys.modules])")
    done = python(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("doctor", "report", "checkpoint", "bench", "rollout", "evaluate"):
        assert cli.run([name, "--help"]) == 0
        assert cli.short_help(name)
        assert f"Usage: sciml {name}" in capsys.readouterr().out


def lab(tmp_path: Path, module: str) -> Path:
    """A package of a lab that brings the command ``weigh``."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text("" if module else "raise AssertionError('this was imported')\n")
    (tmp_path / "lab" / "weigh.py").write_text(f'"""Weigh a sample."""\n{module}\n')
    info = tmp_path / "lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sciml.commands]\nweigh = lab.weigh:weigh\n")
    return tmp_path


def test_help_lists_another_packages_command_without_importing_it(tmp_path: Path) -> None:
    done = python("from sciml.cli import main; main(['--help'])", lab(tmp_path, ""))
    assert done.returncode == 0, done.stderr
    assert "weigh " in done.stdout
    assert "Weigh a sample." in done.stdout


def test_another_packages_command_runs(tmp_path: Path) -> None:
    source = "import click\n@click.command()\n@click.argument('mass')\ndef weigh(mass):\n    click.echo(mass + ' g')\n"
    done = python("from sciml.cli import main; main(['weigh', '3'])", lab(tmp_path, source))
    assert (done.returncode, done.stdout) == (0, "3 g\n"), done.stderr


def test_a_command_that_can_not_be_imported_says_so(tmp_path: Path) -> None:
    done = python("from sciml.cli import main; main(['weigh', '3'])", lab(tmp_path, "import no_such_scale"))
    assert done.returncode == 1
    assert "no_such_scale" in done.stderr
    assert "Traceback" not in done.stderr


def raising(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(("error", "code", "words"), [
    (InputError("lab.h5", found="3 NaN", expected="numbers", fix="mask them"), 1, "lab.h5: found 3 NaN"),
    (InputError("command line", key="config", found="x", expected="y", fix="z"), 2, "found x; expected y. Fix: z"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (OSError(28, "No space left on device", "store.zarr"), 1, "store.zarr: No space left on device"),
])
def test_mistakes_end_with_their_code_and_no_traceback(error: BaseException, code: int, words: str,
                                                       monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: raising(error))
    assert cli.run(["doctor"]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.run(["doctor"])


@pytest.mark.parametrize("arguments", [["no-such-command"], ["report"], ["rollout", "c", "--steps", "0"],
                                       ["bench", "nope"], ["evaluate", "c", "--data", "s", "--split", "tset"]])
def test_wrong_calls_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "no/such/run"])
    assert stop.value.code == 1


def test_doctor_tells_as_json_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {row["check"]: row for row in found["checks"]}
    assert code == (0 if found["ok"] else 1)
    assert rows["python"]["status"] == "ok"
    assert rows["matrix multiply float32"]["found"].endswith("GFLOP/s")
    assert "doctor" in rows["sciml.cli"]["found"]
    assert all(row["fix"] for row in found["checks"] if row["status"] != "ok")


def test_doctor_ends_with_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["doctor"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: ")


def test_checkpoint_verify_names_the_altered_file(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    import sciml.checkpoint

    finding = {"file": "model.safetensors", "found": "aa", "expected": "bb"}
    monkeypatch.setattr(sciml.checkpoint, "verify", lambda path: [finding])
    monkeypatch.setattr(sciml.checkpoint, "resolve", Path)
    assert cli.run(["checkpoint", "verify", "c"]) == 1
    assert "model.safetensors" in capsys.readouterr().out
    assert cli.run(["checkpoint", "verify", "c", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"path": "c", "findings": [finding], "ok": False}


def test_evaluate_prints_scores_and_leaves_them_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    import sciml.checkpoint
    import sciml.data.store
    import sciml.evaluate

    row = {"dataset": "ili", "question": "24", "metric": "mse", "unit": "1", "value": 0.5, "baseline": 0.4,
           "baseline_name": "ridge", "ratio": 1.25, "low": float("nan"), "high": 0.2, "blocks": 3,
           "verdict": "too few independent blocks"}
    forecast = xr.Dataset({"value": (("sample", "time", "variate"), np.zeros((1, 3, 2)))},
                          coords={"variate": ["a", "b"], "valid_time": (("sample", "time"), [[0.0, 1.0, 2.0]])})
    content = {"rows": [row], "curves": {}, "warnings": ["seen before"]}
    result = SimpleNamespace(rows=[row], warnings=["seen before"], json=lambda: content)
    monkeypatch.setattr(sciml.checkpoint, "load", lambda path: SimpleNamespace(
        operator=SimpleNamespace(levels=()), adapter=lambda domain: SimpleNamespace(task=None)))
    monkeypatch.setattr(sciml.checkpoint, "resolve", lambda path: path / "checkpoints" / "best")
    store = SimpleNamespace(meta=SimpleNamespace(dataset="ili", domain="series"))
    monkeypatch.setattr(sciml.data.store, "open_store", lambda url: store)
    monkeypatch.setattr(sciml.evaluate, "evaluate", lambda *args, **options: result)
    monkeypatch.setattr(sciml.evaluate, "examples", lambda *args: forecast)
    assert cli.run(["evaluate", str(tmp_path), "--data", "ili.zarr"]) == 0
    printed = capsys.readouterr()
    assert "too few independent blocks" in printed.out
    assert "warning: seen before" in printed.err
    assert printed.out.splitlines()[-1] == f"next: sciml report {tmp_path}"
    assert xr.open_zarr(tmp_path / "forecast" / "ili.zarr", consolidated=False)["variate"].values.tolist() == ["a", "b"]
    written = json.loads((tmp_path / "evaluation" / "ili.json").read_text())
    assert written["rows"][0]["low"] is None
    assert cli.run(["evaluate", str(tmp_path), "--data", "ili.zarr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == 0.5


def test_bench_runs_a_script_and_prints_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lab.py").write_text(
        "from pathlib import Path\nfrom sciml.report.bench import Bench, Row\n"
        "def run():\n    bench = Bench.load_or_new('lab', place=Path(__file__).parent / 'results')\n"
        "    bench.add(Row(metric='a/b/c', unit='1', ours=2.0, peer=4.0, peer_name='fno'))\n    return bench\n")
    (tmp_path / "odd.py").write_text("def run():\n    return 3\n")
    monkeypatch.setattr(assets, "folder", lambda kind: tmp_path)
    assert cli.run(["bench", "lab", "--show"]) == 1
    assert cli.run(["bench", "lab"]) == 0
    assert "a/b/c" in capsys.readouterr().out
    assert cli.run(["bench", "lab", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["ratio"] == 0.5
    assert cli.run(["bench", "odd"]) == 1
    assert "run() that returns a Bench" in capsys.readouterr().err


def test_assets_are_found_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo.yaml").write_text("name: demo\n")
    (tmp_path / "ili").mkdir()
    (tmp_path / "ili" / "source.yaml").write_text("name: ili\n")
    monkeypatch.setattr(assets, "folder", lambda kind: tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("demo", "demo.yaml", "configs/demo.yaml", str(tmp_path / "demo.yaml")):
        assert assets.config(name) == tmp_path / "demo.yaml"
    (tmp_path / "ili" / "short.yaml").write_text("name: ili\n")
    for name in ("ili", "datasets/ili", "datasets/ili/source.yaml", str(tmp_path / "ili")):
        assert assets.dataset(name) == tmp_path / "ili" / "source.yaml"
    assert assets.dataset("ili/short") == tmp_path / "ili" / "short.yaml"
    assert assets.names("datasets") == ("ili", "ili/short")
    with pytest.raises(InputError, match="one of: demo"):
        assets.config("dmo")
    for outside in ("../demo", "configs/../../demo", "/etc/demo", "configs", ""):
        with pytest.raises(InputError, match="one of: demo"):
            assets.config(outside)


def test_assets_of_a_wheel_are_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site" / "sciml" / "_assets" / "configs"
    place.mkdir(parents=True)
    monkeypatch.setattr(assets, "_PACKAGE", tmp_path / "site" / "sciml")
    assert assets.folder("configs") == place
    assert assets.folder("benchmarks") is None


def test_plain_progress_ends_with_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("build") as progress:
        for done in range(1, 4):
            progress(done, 3)
    assert capsys.readouterr().err.splitlines() == ["build: 3/3, 0 s"]


def test_table_is_plain_and_unwrapped_when_it_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"name": "x" * 90, "value": 0.123456}, {"name": "[b]", "value": None}]
    console.table(rows)
    printed = capsys.readouterr().out
    assert "x" * 90 in printed
    assert "0.1235" in printed
    assert "[b]" in printed
    assert "\x1b" not in printed


def test_run_folder_of_a_checkpoint() -> None:
    assert evaluate.run_of(Path("a/checkpoints/step-1")) == Path("a")
