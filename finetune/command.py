"""Adapt a checkpoint to a store."""

from __future__ import annotations

from pathlib import Path

import click

from sciml.cli import console


@click.command("finetune")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", "store", required=True, metavar="STORE", help="Store to adapt to.")
@click.option("--run", "folder", type=click.Path(path_type=Path),
              help="Run folder.  [default: finetune/DATASET in CHECKPOINT's run]")
@click.option("--dry-run", is_flag=True, help="Measure a few steps and print what the run would cost.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there; otherwise it goes on.")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def finetune(checkpoint: Path, assignments: tuple[str, ...], store: str, folder: Path | None, dry_run: bool,
             overwrite: bool, json_: bool) -> None:
    """Train CHECKPOINT on STORE alone, by its own recipe at lower rates; KEY=VALUE changes that (train.steps=1000).

    What the checkpoint knows keeps its weights and statistics; new variables, conditions and members get rows of
    their own, those of a new channel from the known one that fits best.
    """
    from dataclasses import asdict

    from finetune import workflow

    if dry_run:
        plan = asdict(workflow.dry_run(checkpoint, store, assignments))
        console.planned(plan, f"sciml finetune {checkpoint} --data {store}", json_=json_)
        return
    folder = folder or workflow.default_folder(checkpoint, store)
    with console.training_progress() as listen:
        predictor = workflow.finetune(checkpoint, store, folder, assignments=assignments, overwrite=overwrite,
                                      listen=listen)
    console.trained(folder, predictor.recipe, json_=json_)
    if not json_ and (started := predictor.provenance.get(workflow.STARTED)):
        click.echo(f"new channels began as known ones: {', '.join(f'{a} as {b}' for a, b in started.items())}")
    if not json_:
        console.next_command(f"sciml evaluate {folder} --data {store}")


PLUGIN = finetune
