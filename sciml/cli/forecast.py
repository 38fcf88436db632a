"""Forecast a table: rows of known values in, the steps that follow with quantiles out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml.cli import console
from sciml.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from sciml.handles.series_intervals import Calibration
    from sciml.predictor import Predictor


@click.command("forecast")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--horizon", type=click.IntRange(min=1), help="Steps to forecast; of a model without steps, the times "
              "of --future are.")
@click.option("--quantiles", metavar="Q,Q,…", default="0.1,0.5,0.9", show_default=True, help="Levels; '' for none.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="A .csv or .parquet file.  [default: printed]")
@click.option("--id", "id_column", default="id", show_default=True, metavar="COLUMN",
              help="Names of series; a table without it is one series.")
@click.option("--time", "timestamp_column", default="timestamp", show_default=True, metavar="COLUMN", help="Times.")
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="To forecast; may be repeated.  "
              "[default: all other columns]")
@click.option("--future", type=click.Path(path_type=Path), help="Table of the times to come, with their covariates.")
@click.option("--static", type=click.Path(path_type=Path), help="Table of constants, a row per series.")
@click.option("--calibrate", "store", metavar="STORE",
              help="Store whose validation split tells how far intervals are off; kept in the run folder.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option("--json", "json_", is_flag=True, help="Print the forecast as JSON.")
def forecast(checkpoint: Path, file: Path, horizon: int | None, quantiles: str, out: Path | None, id_column: str,
             timestamp_column: str, targets: tuple[str, ...], future: Path | None, static: Path | None,
             store: str | None, overwrite: bool, json_: bool) -> None:
    """Forecast the steps that follow every series of FILE, a .csv or .parquet table.

    FILE has a row per series and time (long, with a column of names), or a row per time and a column per variate
    (wide). The result has a row per series, target and step, its forecast in `predictions` and a column per quantile.
    Intervals are conformal once --calibrate has been given.
    """
    import torch

    from sciml.checkpoint import load, resolve
    from sciml.cli.evaluate import run_of
    from sciml.handles import series
    from sciml.memory import keep_freed
    from sciml.threads import fastest

    levels = numbers(quantiles)
    if out is not None:
        refuse_output(out, overwrite)
    frame, later, constants = (None if path is None else read(path) for path in (file, future, static))
    assert frame is not None
    predictor = load(checkpoint)
    torch.set_num_threads(fastest())
    keep_freed()
    calibration = calibration_of(predictor, run_of(resolve(checkpoint)), store) if len(levels) > 1 else None
    with console.progress("forecast") as progress:
        made = series.forecast(predictor, frame, horizon=horizon, quantiles=levels, id_column=id_column,
                               timestamp_column=timestamp_column, target=targets or None, future=later,
                               static=constants, calibration=calibration, progress=progress)
    if out is not None:
        write(made, out)
    if json_:
        console.as_json(rows_of(made))
        return
    if out is None:
        console.table(rows_of(made))
    else:
        click.echo(f"{out}: {len(made)} rows")
    if calibration is None and len(levels) > 1:
        click.echo("intervals are the model's own, not calibrated", err=True)
    named = [("--id", id_column, "id"), ("--time", timestamp_column, "timestamp"),
             *(("--target", target, "") for target in targets)]
    columns = "".join(f" {option} {shlex.quote(given)}" for option, given, usual in named if given != usual)
    console.next_command(f"sciml evaluate {checkpoint} --data STORE" if horizon is None else
                         f"sciml backtest {checkpoint} --data {file} --horizon {horizon}{columns}")


def numbers(text: str) -> list[float]:
    """Levels from the command line. Raises `InputError` for what is no number."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError("command line", key="--quantiles", found=text, expected="numbers between 0 and 1",
                         fix="for example --quantiles 0.1,0.5,0.9") from None


def refuse_output(out: Path, overwrite: bool) -> None:
    """Raises `InputError` for another ending, and for a file that is there and may not be replaced."""
    if out.suffix not in (".csv", ".parquet"):
        raise InputError("command line", key="--out", found=out.name, expected="FILE.csv or FILE.parquet",
                         fix="choose that ending")
    if out.exists() and not overwrite:
        raise InputError(out, found="a file", expected="nothing there", fix="choose another name, or --overwrite")


def read(path: Path) -> pd.DataFrame:
    """A table. Raises `InputError` if it can't be read."""
    import pandas as pd

    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise InputError(path, found=f"a {path.suffix or 'nameless'} file" if path.is_file() else "no such file",
                         expected="a .csv or .parquet file", fix="check the path")
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:  # of pandas' parser and pyarrow
        raise InputError(path, found=" ".join(str(error).split())[:160], expected="a table with a header",
                         fix="mend the file") from None


def write(frame: pd.DataFrame, out: Path) -> None:
    """Whole or not at all."""
    from sciml.data.files import replacing

    with replacing(out) as new:
        if out.suffix == ".csv":
            frame.to_csv(new, index=False)
        else:
            frame.to_parquet(new, index=False)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as a table or JSON shows them, times as ISO text."""
    text = {name: frame[name].astype(str) for name in frame.columns if frame[name].dtype.kind in "Mm"
            or str(frame[name].dtype).startswith("datetime64")}
    return [{str(key): value for key, value in row.items()} for row in frame.assign(**text).to_dict("records")]


def calibration_of(predictor: Predictor, run: Path | None, store: str | None) -> Calibration | None:
    """Of the run folder, or made now of a store and left there; None where neither is there."""
    from sciml.data.store import open_store
    from sciml.handles.series_intervals import Calibration, calibrate

    path = None if run is None else run / "calibration" / "series.safetensors"
    if store is not None:
        with console.progress("calibrate") as progress:
            made = calibrate(predictor, open_store(store), progress=progress)
        if path is not None:
            made.save(path)
        return made
    return Calibration.load(path) if path is not None and path.is_file() else None


PLUGIN = forecast
