"""Measure beside peers: run benchmarks/NAME.py and print its table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml import assets
from sciml.cli import console
from sciml.errors import InputError

if TYPE_CHECKING:
    from sciml.report.bench import Bench


@click.command("bench")
@click.argument("name")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
@click.option("--show", is_flag=True, help="Print the last result; measure nothing.")
def bench(name: str, json_: bool, show: bool) -> None:
    """Run benchmarks/NAME.py and write benchmarks/results/NAME.json.

    Rows are written down as they are measured; a script may go on from them after a stop, and says so.
    """
    from sciml.report import bench as benches

    script = assets.benchmark(name)
    path = script.parent / "results" / f"{name}.json"
    if not show:
        path = _run(script).finish()
    elif not path.is_file():
        raise InputError(path, found="no result", expected="a finished benchmark", fix=f"sciml bench {name}")
    results = benches.load(path)
    if json_:
        console.as_json(results.model_dump(mode="json"))
        return
    console.table([row.model_dump() for row in results.rows], ["metric", "unit", "ours", "peer", "peer_name", "ratio"],
                  title=f"{results.name}, {results.date[:10]}, {results.machine.get('processor', '')}")
    click.echo(path)
    console.next_command(f"git diff {path}")


def load_script(script: Path) -> Any:
    """The module of a benchmark script."""
    spec = importlib.util.spec_from_file_location(f"benchmarks.{script.stem}", script)
    if spec is None or spec.loader is None:
        raise InputError(script, found="no Python module", expected="a script with run()", fix="correct the file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def _run(script: Path) -> Bench:
    from sciml.report.bench import Bench

    module = load_script(script)
    result = module.run() if hasattr(module, "run") else None
    if not isinstance(result, Bench):
        raise InputError(script, key="run", found=f"a {type(result).__name__}", expected="run() that returns a Bench",
                         fix="see sciml.report.bench")
    return result


PLUGIN = bench
