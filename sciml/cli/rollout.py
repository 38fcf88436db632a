"""Step a checkpoint forward from the initial states of a store and stream the result to Zarr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sciml.cli import console
from sciml.errors import InputError

if TYPE_CHECKING:
    from sciml.data.schema import SplitName
    from sciml.data.store import Store
    from sciml.predictor import Predictor


@click.command("rollout")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--from", "store", required=True, metavar="STORE", help="Store that holds the initial states.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT.zarr")
@click.option("--steps", required=True, type=click.IntRange(min=1), help="How many steps.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--trajectories", type=click.IntRange(min=1), help="Only the first so many.  [default: all]")
@click.option("--compile", "compile_", is_flag=True,
              help="Compile the step of each molecule (half a minute, then several times faster).")
@click.option("--overwrite", is_flag=True, help="Replace OUT.zarr; otherwise a stopped rollout goes on.")
@click.option("--json", "json_", is_flag=True, help="Print where it is and which samples stopped, as JSON.")
@click.pass_context
def rollout(ctx: click.Context, checkpoint: Path, assignments: tuple[str, ...], store: str, out: Path, steps: int,
            split: SplitName, trajectories: int | None, compile_: bool, overwrite: bool, json_: bool) -> None:
    """Step CHECKPOINT forward from the initial states in STORE; KEY=VALUE changes the domain's section of its recipe
    (domains.molecules.dynamics.dt_fs=0.25).

    CHECKPOINT is a checkpoint folder, or a run folder. The result is written as it comes, in physical units and
    coordinates, in constant memory; started again, a stopped rollout goes on where it was. Exits with 1 if it blew up.
    """
    import zarr

    from sciml.checkpoint import load
    from sciml.data.store import open_store
    from sciml.memory import keep_freed
    from sciml.rollout import rollout_to_zarr

    keep_freed()
    opened = open_store(store)
    predictor = with_options(load(checkpoint), opened.meta.domain, assignments)
    said = [*assignments, *(["--compile"] if compile_ else [])]
    if not overwrite:
        check_options(out, said)
    if compile_:
        predictor = compiled(predictor, opened, split, said)
    with console.progress("rollout") as progress:
        path = rollout_to_zarr(predictor, opened, split, out, steps=steps, trajectories=trajectories,
                               overwrite=overwrite, progress=progress)
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
    molecules = opened.meta.domain == "molecules"
    console.next_command(f"sciml trajectory {path} -o {path.with_suffix('.xyz')}" if molecules
                         else f"sciml evaluate {checkpoint} --data {store}")


def with_options(predictor: Predictor, domain: str, assignments: Sequence[str]) -> Predictor:
    """The same with other values in the domain's section, noted in its provenance. Raises `InputError` on another key,
    and on a value that the fitted adapter can't take."""
    from sciml.recipe import override

    if not assignments:
        return predictor
    prefix = f"domains.{domain}."
    for assignment in assignments:
        if not assignment.startswith(prefix):
            raise InputError("command line", key=assignment.partition("=")[0], found=repr(assignment),
                             expected=f"{prefix}KEY=VALUE", fix="steps, split and samples have options of their own")
    sections = override({"domains": {domain: dict(predictor.recipe.get("domains", {}).get(domain, {}))}}, assignments)
    adapter = predictor.adapter(domain).reconfigured(sections["domains"][domain])
    return replace(predictor, adapters={**predictor.adapters, domain: adapter},
                   provenance={**predictor.provenance, "options": sorted(assignments)})


def compiled(predictor: Predictor, store: Store, split: SplitName, said: Sequence[str]) -> Predictor:
    """The same, compiling each molecule's step, which its provenance says: sums are rounded in another order. Raises
    `InputError` for states that no program can be made for."""
    from sciml.operator.compiled import prepare_compiler
    from sciml.traced import compile_as_met, recordable

    prepare_compiler("compile")
    adapter = predictor.adapter(store.meta.domain)
    for sample in adapter.starts(store, split)[:1]:
        recordable(adapter.initial(sample).batch)
    return compile_as_met(replace(predictor, provenance={**predictor.provenance, "options": sorted(said)}))


def check_options(out: Path, assignments: Sequence[str]) -> None:
    """Raises `InputError` if a rollout is there that was begun with other assignments."""
    import zarr

    if not (out / "zarr.json").is_file():
        return
    begun = dict(zarr.open_group(out, mode="r").attrs.get("checkpoint") or {}).get("options", [])
    if begun != sorted(assignments):
        raise InputError(out, key="options", found=" ".join(begun) or "none", expected=" ".join(assignments) or "none",
                         fix="give the same values to go on, or --overwrite")


PLUGIN = rollout
