"""What all commands share: tables and their JSON, numbers, the closing line, progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def number(value: Any, digits: int = 4) -> str:
    """A figure as a table shows it.

    >>> number(0.0123456), number(1234567.0), number(3), number(None), number("a"), number(float("nan"))
    ('0.01235', '1.235e+06', '3', '–', 'a', 'nan')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}g}"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, title: str = "") -> None:
    """Print rows under their keys: figures to the right; unwrapped and uncoloured when it is not a terminal."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(columns or dict.fromkeys(key for row in rows for key in row))
    grid = Table(title=title or None, box=SIMPLE, title_justify="left", pad_edge=False)
    for column in columns:
        figures = any(isinstance(row.get(column), int | float) for row in rows)
        grid.add_column(column.replace("_", " "), justify="right" if figures else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(number(row.get(column))) for column in columns))
    console = Console() if sys.stdout.isatty() else Console(width=240, color_system=None)
    with console.capture() as capture:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def as_json(value: Any) -> None:
    """Print one JSON document; what is not finite becomes null, because JSON has no NaN."""
    click.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: what is not finite becomes None."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def next_command(command: str) -> None:
    """The closing line of a command: what to run next."""
    click.echo(f"\nnext: {command}")


@contextmanager
def progress(label: str, *, every_s: float = 5.0) -> Iterator[Progress]:
    """A callable for (done, total): a bar on a terminal's stderr, elsewhere a line every few seconds and at the end."""
    if sys.stderr.isatty():
        with _bar(label) as bar:
            yield bar
        return
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every_s or done == total:
            last = now
            click.echo(f"{label}: {done}/{total}, {now - started:.0f} s", err=True)

    yield report


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def training_progress() -> Iterator[Callable[[Any], None]]:
    """A listener of a training loop: a bar with the loss on a terminal, otherwise a line every few seconds."""
    with progress("train") as report:
        yield lambda event: report(event.step, event.steps)


def planned(plan: Mapping[str, Any], command: str, *, json_: bool) -> None:
    """What a run would cost, and the command that makes it."""
    if json_:
        as_json(plan)
        return
    table([{"quantity": name.replace("_", " "), "value": value} for name, value in plan.items()])
    next_command(command)


def trained(folder: Any, recipe: Mapping[str, Any], *, json_: bool) -> None:
    """Where a run was left and how its last validation stood beside the baseline."""
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    checks = [line for line in lines if "validation" in line]
    best = min(checks, key=lambda line: line["score"]) if checks else None
    summary = {"run": str(folder), "name": recipe["name"], "steps": lines[-1]["step"] if lines else 0,
               "selected_step": best and best["step"], "validation": best and best["validation"],
               "baseline": best and best["baseline"]}
    if json_:
        as_json(summary)
        return
    if best is not None:
        table([{"dataset": name, "validation loss": value, "baseline": best["baseline"][name],
                "ratio": value / best["baseline"][name]} for name, value in best["validation"].items()])
    click.echo(f"{folder}: {summary['steps']} steps, selected step {summary['selected_step']}")
