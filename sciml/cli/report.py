"""Write one self-contained page about a run: curves, fields, spectra, forecasts, scores, provenance."""

from __future__ import annotations

from pathlib import Path

import click

from sciml.cli import console


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: RUN/report.html.")
def report(run: Path, out: Path | None) -> None:
    """Write one self-contained page about the run folder RUN; it opens offline."""
    from sciml.report import build

    path = build(run, out or run / "report.html")
    click.echo(f"{path}  ({path.stat().st_size / 1e6:.1f} MB)")
    console.next_command(f"open {path} in a browser")


PLUGIN = report
