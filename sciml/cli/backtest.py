"""Forecast times that are known, from rolling origins, beside ridge, seasonal naive and AutoETS."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sciml.cli import console

if TYPE_CHECKING:
    from sciml.data.schema import SplitName


@click.command("backtest")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="STORE", help="A store, or a table as `sciml forecast` takes it.")
@click.option("--horizon", type=click.IntRange(min=1), help="Steps to forecast.  [default: the shortest one fitted]")
@click.option("--stride", type=click.IntRange(min=1), help="Steps between origins.  [default: the horizon]")
@click.option("--windows", type=click.IntRange(min=1), help="At most so many origins a series, the last ones.  "
              "[default: all of a store's split, 10 of a table]")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True,
              help="Of a store.")
@click.option("--quantiles", metavar="Q,Q,…", default="0.05,0.5,0.95", show_default=True, help="Levels; '' for none.")
@click.option("--ets", is_flag=True, help="Beside AutoETS, too; needs statsforecast, and fits it at every origin.")
@click.option("--id", "id_column", default="id", show_default=True, metavar="COLUMN",
              help="Of a table: names of series.")
@click.option("--time", "timestamp_column", default="timestamp", show_default=True, metavar="COLUMN",
              help="Of a table: times.")
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="Of a table; may be repeated.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="All forecasts as a .csv or .parquet file.")
@click.option("--figure", "picture", type=click.Path(path_type=Path), help="A .png, .svg or .pdf file.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option("--json", "json_", is_flag=True, help="Print the scores as JSON.")
def backtest(checkpoint: Path, data: str, horizon: int | None, stride: int | None, windows: int | None,
             split: SplitName, quantiles: str, ets: bool, id_column: str, timestamp_column: str,
             targets: tuple[str, ...], out: Path | None, picture: Path | None, overwrite: bool, json_: bool) -> None:
    """Score CHECKPOINT's forecasts from rolling origins beside its floors.

    Errors and widths are in standard deviations of each target. Rows of split and adaptive conformal intervals have
    the checkpoint's own forecasts; their intervals are widened by how it missed on validation, and for the adaptive
    ones on the origins before, as truths became known.
    """
    import torch

    from sciml.checkpoint import load
    from sciml.cli import forecast as tables
    from sciml.data.store import open_store
    from sciml.handles import series_backtest
    from sciml.memory import keep_freed
    from sciml.report import backtest as drawn
    from sciml.threads import fastest

    if out is not None:
        tables.refuse_output(out, overwrite)
    if picture is not None:
        drawn.refuse_ending(picture)
    levels, table = tables.numbers(quantiles), data.endswith((".csv", ".parquet"))
    given = tables.read(Path(data)) if table else open_store(data)
    predictor = load(checkpoint)
    torch.set_num_threads(fastest())
    keep_freed()
    with console.progress("backtest") as progress:
        frame = series_backtest.backtest(
            predictor, given, horizon=horizon, stride=stride, windows=windows or (10 if table else None),
            quantiles=levels, split=split, ets=ets, id_column=id_column, timestamp_column=timestamp_column,
            target=targets or None, progress=progress)
    if out is not None:
        tables.write(frame, out)
    if picture is not None:
        drawn.write(frame, picture)
    rows = series_backtest.scores(frame)
    if json_:
        console.as_json({"origins": int(frame["cutoff"].nunique()), "scores": rows})
        return
    console.table(rows, title=f"{frame['cutoff'].nunique()} origins, {frame['target_name'].nunique()} targets")
    for path in (out, picture):
        if path is not None:
            click.echo(path)
    if not table:
        console.next_command(f"sciml evaluate {checkpoint} --data {data}")
        return
    named = [("--id", id_column, "id"), ("--time", timestamp_column, "timestamp"),
             *(("--target", target, "") for target in targets)]
    columns = "".join(f" {option} {shlex.quote(given)}" for option, given, usual in named if given != usual)
    console.next_command(f"sciml forecast {checkpoint} {data} --horizon {horizon or 24}{columns}")


PLUGIN = backtest
