"""Run a potential's own molecular dynamics, and have its frames labelled by the theory it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sciml.cli import console
from sciml.errors import InputError

if TYPE_CHECKING:
    from sciml.data.schema import SplitName


@click.command("oracle")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", "store", required=True, metavar="STORE", help="Store whose first configuration to start from.")
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Of molecular dynamics.")
@click.option("--every", type=click.IntRange(min=1), default=20, show_default=True, help="Steps between labels.")
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True,
              help="Copies with velocities of their own.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="A picture, FILE.svg.")
@click.option("--json", "json_", is_flag=True, help="Print errors over time and distributions as JSON.")
@click.pass_context
def oracle(ctx: click.Context, checkpoint: Path, assignments: tuple[str, ...], store: str, steps: int, every: int,
           replicas: int, split: SplitName, out: Path | None, json_: bool) -> None:
    """Run the dynamics of CHECKPOINT, label its frames by GFN2-xTB, and run the oracle's dynamics from the same start.

    Only for models trained on labels of that theory. KEY=VALUE changes the domain's section
    (domains.molecules.dynamics.temperature_k=500); there is a Langevin thermostat unless one says otherwise. What was
    found is written to the run folder, where `sciml report` reads it. Exits with 1 if the dynamics blew up.
    """
    from sciml.checkpoint import load, resolve
    from sciml.cli.evaluate import run_of
    from sciml.cli.rollout import with_options
    from sciml.data.store import open_store
    from sciml.handles.oracle import Plan, consult, rows_of
    from sciml.report.bench import write_json
    from sciml.report.molecules import consulted
    from sciml.report.pictures import write_svg

    if out is not None and out.suffix != ".svg":
        raise InputError("command line", key="--out", found=out.name, expected="FILE.svg", fix="choose that ending")
    opened = open_store(store)
    thermostat = f"domains.{opened.meta.domain}.dynamics.thermostat=langevin"
    predictor = with_options(load(checkpoint), opened.meta.domain, (thermostat, *assignments))
    with console.progress("oracle") as progress:
        found = consult(predictor, opened, split, Plan(steps, every, replicas), progress)
    run = run_of(resolve(checkpoint))
    path = None if run is None else run / "oracle" / f"{opened.meta.dataset}.json"
    if path is not None:
        write_json(path, console.finite(found))
    if out is not None:
        write_svg(consulted(opened.meta.dataset, found), out)
    if json_:
        console.as_json(found)
    else:
        console.table(rows_of(found))
        for made in (path, out):
            if made is not None:
                click.echo(made)
        console.next_command(f"sciml report {run}" if run is not None
                             else f"sciml evaluate {checkpoint} --data {store}")
    if found["stopped"] is not None:
        click.echo(f"the model's dynamics is not finite at step {found['stopped']}", err=True)
        ctx.exit(1)


PLUGIN = oracle
