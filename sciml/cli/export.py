"""Compile a checkpoint's rollout step for this machine, and hold it against the eager one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml.cli import console

if TYPE_CHECKING:
    from sciml.adapter import DomainAdapter
    from sciml.data.store import Store
    from sciml.tokens import State

CLOSE = 1e-4
"""Largest difference of one step, as a fraction of the largest value, that rounding may explain."""


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--like", "store", required=True, metavar="STORE", help="Store with states of the kind to step forward.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.pass_context
def export(ctx: click.Context, checkpoint: Path, store: str, json_: bool) -> None:
    """Compile one rollout step of CHECKPOINT for states like those of STORE; takes one to three minutes, once.

    CHECKPOINT is a checkpoint folder, or a run folder. The package (.pt2) serves any batch size and lattices of any
    admissible size; it is machine code for this machine and stays in the cache. step.json beside it names the inputs.
    Exits with 1 if it differs from the eager step by more than rounding.
    """
    import torch

    from sciml.checkpoint import load
    from sciml.data.store import open_store
    from sciml.export import build, compare, step_module
    from sciml.export.package import is_cached
    from sciml.memory import keep_freed
    from sciml.threads import fastest

    torch.set_num_threads(fastest())
    keep_freed()
    predictor, opened = load(checkpoint), open_store(store)
    state = _state(predictor.adapter(opened.meta.domain), opened)
    module = step_module(predictor, state)
    cached = is_cached(module)
    if not cached:
        click.echo("compiling; takes one to three minutes …", err=True)
    step = build(module, state.batch, where=checkpoint)
    found = compare(predictor, step, state)
    told: dict[str, Any] = {
        "path": str(step.path), "cached": cached, "lattice": list(state.batch.lattice),
        "difference": found.difference, "eager_ms": 1e3 * found.eager, "exported_ms": 1e3 * found.exported,
        "times_faster": found.speed, "threads": torch.get_num_threads()}
    if json_:
        console.as_json({**told, "description": dict(step.description)})
    else:
        console.table([{"quantity": name.replace("_", " "), "value": value} for name, value in told.items()
                       if name != "path"])
        click.echo(step.path)
    if not found.difference < CLOSE:
        click.echo(f"error: the exported step differs by {found.difference:.2g} of the largest value; expected less "
                   f"than {CLOSE:g}. Fix: delete {step.path.parent} and export again; don't use it", err=True)
        ctx.exit(1)
    if not json_:
        console.next_command(f"cat {step.path.with_name('step.json')}")


def _state(adapter: DomainAdapter, store: Store) -> State:
    """The first initial state of the first split that has one."""
    from sciml.data.schema import SplitName
    from sciml.errors import InputError

    splits: tuple[SplitName, ...] = ("test", "validation", "train")
    starts = next((found for split in splits if len(found := adapter.starts(store, split))), None)
    if starts is None:
        raise InputError(store.url, key="splits", found="no block", expected="at least one initial state",
                         fix="build the store with more data")
    return adapter.initial(starts[0])


PLUGIN = export
