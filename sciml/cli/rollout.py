"""Step a checkpoint forward from the initial states of a store and stream the result to Zarr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sciml.cli import console

if TYPE_CHECKING:
    from sciml.data.schema import SplitName


@click.command("rollout")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--from", "store", required=True, metavar="STORE", help="Store that holds the initial states.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT.zarr")
@click.option("--steps", required=True, type=click.IntRange(min=1), help="How many steps.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--trajectories", type=click.IntRange(min=1), help="Only the first so many.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Replace OUT.zarr; otherwise a stopped rollout goes on.")
@click.option("--json", "json_", is_flag=True, help="Print where it is and which samples stopped, as JSON.")
@click.pass_context
def rollout(ctx: click.Context, checkpoint: Path, store: str, out: Path, steps: int, split: SplitName,
            trajectories: int | None, overwrite: bool, json_: bool) -> None:
    """Step CHECKPOINT forward from the initial states in STORE.

    CHECKPOINT is a checkpoint folder, or a run folder. The result is written as it comes, in physical units and
    coordinates, in constant memory; started again, a stopped rollout goes on where it was. Exits with 1 if it blew up.
    """
    import zarr

    from sciml.checkpoint import load
    from sciml.data.store import open_store
    from sciml.memory import keep_freed
    from sciml.rollout import rollout_to_zarr

    keep_freed()
    with console.progress("rollout") as progress:
        path = rollout_to_zarr(load(checkpoint), open_store(store), split, out, steps=steps,
                               trajectories=trajectories, overwrite=overwrite, progress=progress)
    group = zarr.open_group(path, mode="r")
    stopped = {str(sample): int(step) for sample, step in dict(group.attrs.get("stopped") or {}).items()}
    if json_:
        console.as_json({"out": str(path), "steps": steps, "samples": dict(group.attrs["plan"])["samples"],
                         "stopped": stopped})
        ctx.exit(1 if stopped else 0)
    click.echo(path)
    for sample, step in stopped.items():
        click.echo(f"sample {sample} stopped at step {step}: not finite; NaN from there on", err=True)
    if stopped:
        ctx.exit(1)
    console.next_command(f"sciml evaluate {checkpoint} --data {store}")


PLUGIN = rollout
