"""Export a rollout of molecules to extended XYZ, for ASE, OVITO or VMD."""

from __future__ import annotations

from pathlib import Path

import click

from sciml.cli import console
from sciml.errors import InputError


@click.command("trajectory")
@click.argument("rollout", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT.xyz")
@click.option("--sample", type=click.IntRange(min=0), default=0, show_default=True, help="Which one of the rollout.")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Only every so many steps.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.xyz.")
@click.option("--json", "json_", is_flag=True, help="Print where it is and how many frames, as JSON.")
def trajectory(rollout: Path, out: Path, sample: int, every: int, overwrite: bool, json_: bool) -> None:
    """Write a sample of ROLLOUT, the Zarr of `sciml rollout`, as extended XYZ: elements, positions, energies."""
    from sciml.handles.extxyz import write_extxyz

    if out.exists() and not overwrite:
        raise InputError(out, found="a file", expected="nothing there", fix="choose another name, or --overwrite")
    frames = write_extxyz(rollout, out, sample=sample, every=every)
    if json_:
        console.as_json({"out": str(out), "frames": frames})
        return
    click.echo(f"{out}: {frames} frames")
    console.next_command(f"ase gui {out}")


PLUGIN = trajectory
