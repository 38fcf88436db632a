"""Pretrain one operator on the stores of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from sciml.cli import console


@click.command("pretrain")
@click.argument("config")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Run folder.  [default: runs/<name>]")
@click.option("--dry-run", is_flag=True, help="Measure a few steps and print what the run would cost.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there; otherwise it goes on.")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def pretrain(config: str, assignments: tuple[str, ...], folder: Path | None, dry_run: bool, overwrite: bool,
             json_: bool) -> None:
    """Train the operator of CONFIG (a file, or a name under configs/) with KEY=VALUE put in place of its values.

    A run that was stopped goes on where it was. Under torchrun every process takes its share of each batch:
    torchrun --nproc-per-node=2 --no-python -- sciml pretrain CONFIG
    """
    from dataclasses import asdict

    from sciml.assets import config as find_config
    from sciml.recipe import load_recipe

    recipe = load_recipe(find_config(config), assignments)
    from pretrain import workflow

    if dry_run:
        plan = asdict(workflow.dry_run(recipe))
        console.planned(plan, f"sciml pretrain {config}", json_=json_)
        return
    folder = folder or Path("runs") / recipe.name
    with console.training_progress() as listen:
        predictor = workflow.pretrain(recipe, folder, overwrite=overwrite, listen=listen)
    console.trained(folder, predictor.recipe, json_=json_)
    store = recipe.data[0].store
    if not json_:
        console.next_command(f"sciml evaluate {folder} --data {store}")


PLUGIN = pretrain
