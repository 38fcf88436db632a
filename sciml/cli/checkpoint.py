"""Look into a checkpoint, or check that no file of it was altered; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sciml.cli import console


@click.group("checkpoint")
def checkpoint() -> None:
    """Look into a checkpoint folder, or a run folder's selected checkpoint; nothing in it is executed."""


@checkpoint.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "json_", is_flag=True, help="Print JSON, in full.")
def inspect(path: Path, json_: bool) -> None:
    """Print what the checkpoint says of itself."""
    from sciml import checkpoint as checkpoints

    found = checkpoints.inspect(path)
    if json_:
        console.as_json(found)
        return
    console.table([{"key": key, "value": value} for key, value in flatten(found)])
    console.next_command(f"sciml checkpoint verify {path}")


@checkpoint.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, path: Path, json_: bool) -> None:
    """Compare every file with its recorded hash; exits with 1 if one differs or is missing."""
    from sciml import checkpoint as checkpoints

    findings = list(checkpoints.verify(path))
    if json_:
        console.as_json({"path": str(checkpoints.resolve(path)), "findings": findings, "ok": not findings})
    elif findings:
        console.table(findings, title=f"{path}: altered")
    else:
        click.echo(f"{checkpoints.resolve(path)}: every file is as it was written")
        console.next_command(f"sciml evaluate {path} --data STORE")
    if findings:
        ctx.exit(1)


def flatten(value: Mapping[str, Any], prefix: str = "", depth: int = 2) -> list[tuple[str, str]]:
    """Nested mappings as dotted keys, `depth` levels deep, longer values cut at 100 characters.

    >>> flatten({"a": {"b": 1, "c": [1, 2]}})
    [('a.b', '1'), ('a.c', '[1, 2]')]
    """
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item and depth > 0:
            rows += flatten(item, f"{prefix}{key}.", depth - 1)
        else:
            text = " ".join(str(item).split())
            rows.append((f"{prefix}{key}", text if len(text) <= 100 else f"{text[:99]}…"))
    return rows


PLUGIN = checkpoint
