"""Score a checkpoint beside its baselines, with intervals over independent blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml.cli import console

if TYPE_CHECKING:
    import xarray as xr

    from sciml.data.schema import SplitName
    from sciml.data.store import Store
    from sciml.predictor import Predictor

COLUMNS = ("dataset", "question", "metric", "unit", "value", "baseline", "baseline_name", "ratio", "low", "high",
           "blocks", "verdict")


@click.command("evaluate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", "store", required=True, metavar="STORE", help="Store to score on.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--max-windows", type=click.IntRange(min=1), help="At most so many windows a question.  [default: all]")
@click.option("--card", "card_values", multiple=True, metavar="KEY=VALUE",
              help="A value of the domain's card, such as energy_ps=20; may be repeated.")
@click.option("--no-card", is_flag=True, help="Scores alone.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Default: the run's evaluation/DATASET.json.")
@click.option("--json", "json_", is_flag=True, help="Print scores and curves as JSON.")
def evaluate(checkpoint: Path, store: str, split: SplitName, max_windows: int | None, card_values: tuple[str, ...],
             no_card: bool, out: Path | None, json_: bool) -> None:
    """Score CHECKPOINT on STORE; every score stands beside the baseline's.

    CHECKPOINT is a checkpoint folder, or a run folder. Domains that have a card (molecules: what is conserved, and
    which symmetries hold) are checked against it. What was found is written to the run folder, where `sciml report`
    reads it.
    """
    import torch

    from sciml.checkpoint import load, resolve
    from sciml.data.store import open_store
    from sciml.evaluate import evaluate as score
    from sciml.evaluate import examples
    from sciml.memory import keep_freed
    from sciml.report.bench import write_json
    from sciml.threads import fastest

    opened = open_store(store)
    with console.progress("evaluate") as progress:
        torch.set_num_threads(fastest())
        keep_freed()
        predictor = load(checkpoint)
        result = score(predictor, opened, split, max_windows=max_windows, progress=progress)
    checked = [] if no_card else _card(predictor, opened, split, card_values)
    found = {**result.json(), **({"card": checked} if checked else {})}
    run = run_of(resolve(checkpoint))
    if run is not None and out is None:
        _write_examples(examples(predictor, opened, split), run / "forecast" / f"{opened.meta.dataset}.zarr")
    path = out or (None if run is None else run / "evaluation" / f"{opened.meta.dataset}.json")
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    if path is not None:
        write_json(path, console.finite(found))
    if json_:
        console.as_json(found)
        return
    rows: list[dict[str, Any]] = list(result.rows)
    console.table(rows, [name for name in COLUMNS if any(row.get(name) is not None for row in rows)])
    if checked:
        console.table(checked, title="Card")
    if path is not None:
        click.echo(path)
    console.next_command(f"sciml report {run}" if run is not None else f"sciml checkpoint inspect {checkpoint}")


def _card(predictor: Predictor, store: Store, split: SplitName, assignments: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of the domain's card; none if it has no card."""
    from sciml.cards import card

    with console.progress("card") as progress:
        return card(predictor, store, split, assignments, progress)


def _write_examples(shown: xr.Dataset | None, path: Path) -> None:
    """Windows to look at; names as objects, because Zarr has no fixed-width strings."""
    if shown is None:
        return
    names = {key: coord.astype(object) for key, coord in shown.coords.items() if coord.dtype.kind == "U"}
    shown.assign_coords(names).to_zarr(path, mode="w", zarr_format=3, consolidated=False)


def run_of(checkpoint: Path) -> Path | None:
    """The run folder a checkpoint folder belongs to, or None if it stands alone.

    >>> run_of(Path("runs/demo/checkpoints/best")).as_posix(), run_of(Path("downloads/model"))
    ('runs/demo', None)
    """
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


PLUGIN = evaluate
