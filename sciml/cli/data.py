"""Look at a file, build a store from a source.yaml, inspect it, validate it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml.cli import console

if TYPE_CHECKING:
    from sciml.data.source import SourceSpec


@click.group("data")
def data() -> None:
    """Look at a file, build a store from a source.yaml, inspect it, validate it."""


@data.command()
@click.argument("file")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write a starter source.yaml here.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def sniff(file: str, out: Path | None, json_: bool) -> None:
    """Say what FILE is: format, domain, dimensions, units, what is missing or suspicious.

    FILE is a file, a folder or an fsspec URL; only a bounded part of it is read.
    """
    from sciml.data.readers._starter import gaps
    from sciml.data.sniff import sniff as look
    from sciml.errors import InputError

    if out is not None and out.exists():
        raise InputError(out, found="it exists", expected="a new file", fix="choose another name, or remove it")
    guess = look(file)
    starter = guess.source_yaml(Path(str(guess.path)).stem)
    if out is not None:
        out.write_text(starter, encoding="utf-8")
    if json_:
        console.as_json(guess.json())
        return
    console.table([dict(zip(("what", "name", "details"), row, strict=True)) for row in guess.table()], title=file)
    if out is None:
        console.next_command(f"sciml data sniff {shlex.quote(file)} -o source.yaml")
        return
    left, build = gaps(starter), f"sciml data build {shlex.quote(str(out))} STORE"
    console.next_command(f"fill in {out}, lines {', '.join(map(str, left))}; then {build}" if left else build)


@data.command()
@click.argument("source")
@click.argument("store")
@click.option("--overwrite", is_flag=True, help="Replace STORE; the old one stays until the new one is whole.")
def build(source: str, store: str, overwrite: bool) -> None:
    """Build STORE from SOURCE: a source.yaml, its folder, or a name in datasets/.

    Statistics, provenance and splits go into the store. It appears when it is whole, or not at all.
    """
    from sciml.data.build import build as make

    spec, command = _read(source), shlex.join(["sciml", *sys.argv[1:]])
    with console.progress("build") as progress:
        made = make(spec, store, overwrite=overwrite, progress=progress, command=command)
    click.echo(f"{store}: {made.meta.groups} {made.meta.group_dim}, {', '.join(made.meta.variables)}")
    for note in made.meta.notes:
        click.echo(f"note: {note}")
    console.next_command(f"sciml data inspect {shlex.quote(store)}")


def _read(source: str) -> SourceSpec:
    from sciml import assets
    from sciml.data.source import read_source

    return read_source(assets.dataset(source))


@data.command()
@click.argument("store")
@click.option("--json", "json_", is_flag=True, help="Print JSON, in full.")
def inspect(store: str, json_: bool) -> None:
    """Print what STORE holds: variables, axes, splits, statistics, where it came from."""
    from sciml.data.check import inspect as look
    from sciml.data.store import open_store

    found = look(open_store(store))
    if json_:
        console.as_json(found)
        return
    _print_inspection(found)
    console.next_command(f"sciml data validate {shlex.quote(store)}")


def _print_inspection(found: dict[str, Any]) -> None:
    step = f", dt {found['dt']:g}" if found["dt"] is not None else ""
    console.table([{**row, **{key: "×".join(map(str, row[key])) for key in ("shape", "chunk", "shard")},
                    "dims": ", ".join(row["dims"])} for row in found["variables"]],
                  title=f"{found['domain']}/{found['dataset']}: {found['groups']} {found['group_dim']}{step}, "
                        f"{_size(found['bytes'])} ({_size(found['stored_bytes'])} stored)")
    console.table(found["axes"], title="axes")
    if found["ragged"]:
        console.table(found["ragged"], title="ragged dimensions")
    console.table(found["splits"], title=f"splits, identity {found['split_identity']}")
    moments = list(found["moments"].items())
    shown = [{"statistics": key, **values} for key, values in moments[:20]]
    rest = f", the first 20 of {len(moments)}" if len(moments) > 20 else ""
    console.table(shown, title=f"training split{rest}")
    for key, tendency in list(found["tendency"].items())[:20]:
        pairs = zip(tendency["lead"], tendency["std"], strict=True)
        click.echo(f"std of change of {key}: " + ", ".join(f"{lead} steps {std:.4g}" for lead, std in pairs))
    origin = found["provenance"]
    for what, text in (("builder", f"{origin['builder']}, {origin['created']}"), ("command", origin["command"]),
                       *((f"file {name}", f"sha256 {digest}") for name, digest in origin["files"].items()),
                       ("licence", found["licence"]), ("citation", found["citation"]),
                       *(("note", note) for note in found["notes"])):
        if text:
            click.echo(f"{what}: {text}")


def _size(count: float) -> str:
    """Bytes as people read them.

    >>> _size(900), _size(3 << 20)
    ('900 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@data.command()
@click.argument("store")
@click.option("--source", metavar="SOURCE", help="Also compare the hashes of this source's files with the store's.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.pass_context
def validate(ctx: click.Context, store: str, source: str | None, json_: bool) -> None:
    """Hold STORE against what it says of itself; exits with 1 if something doesn't hold."""
    from sciml.data.check import as_rows
    from sciml.data.check import validate as check
    from sciml.data.store import open_store

    findings = check(open_store(store), source=None if source is None else _read(source))
    wrong = any(finding.level == "error" for finding in findings)
    if json_:
        console.as_json({"store": store, "ok": not wrong, "findings": as_rows(findings)})
    else:
        if findings:
            console.table(as_rows(findings), title=store)
        click.echo(f"{store}: " + ("errors found" if wrong else "valid"))
        console.next_command(f"sciml data build SOURCE {shlex.quote(store)} --overwrite" if wrong
                             else "sciml pretrain CONFIG --dry-run")
    if wrong:
        ctx.exit(1)


PLUGIN = data
