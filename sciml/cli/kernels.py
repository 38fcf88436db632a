"""Say which kernels a recipe's operator runs, on which lattice and why; measure them on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sciml.cli import console

if TYPE_CHECKING:
    from sciml.data.store import Store
    from sciml.operator.operator import Operator
    from sciml.recipe import Recipe

COLUMNS = ("domain", "place", "mixer", "lattice", "kernel", "calls", "why")


class Pass(NamedTuple):
    """A domain, an operator, and one forward pass of it, as in training. compiled: its blocks are graphs then."""

    domain: str
    operator: Operator
    run: Callable[[], Any]
    compiled: bool


@click.group("kernels")
def kernels() -> None:
    """Say which kernels a recipe's operator runs, on which lattice and why; measure them on this machine."""


@kernels.command()
@click.argument("config")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--lattice", metavar="64x64", help="Cells of a made-up field to run on instead of the recipe's stores.")
@click.option("--tune", "tune_", is_flag=True, help="Time every kernel that is correct, and keep what was measured.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def explain(config: str, assignments: tuple[str, ...], lattice: str | None, tune_: bool, json_: bool) -> None:
    """Run one forward pass of CONFIG's operator, as in training, and print the kernel of every mixer.

    The first training batch of every domain is used. With --lattice no store is needed: the values are made up, and
    the domain and its patch size are those of the recipe's section `domains`.
    """
    import torch

    from sciml.assets import config as find_config
    from sciml.kernels import dispatch
    from sciml.recipe import load_recipe
    from sciml.threads import fastest

    recipe = load_recipe(find_config(config), assignments)
    torch.set_num_threads(recipe.train.threads or fastest())
    passes = _real(recipe) if lattice is None else _made_up(recipe, lattice)
    left_out = _tune(passes) if tune_ else {}
    rows = [{"domain": own.domain, **line} for own in passes for line in _lines(own)]
    source = f"a made-up field of {lattice} cells" if lattice else "the first training batch of each domain"
    if json_:
        console.as_json({"batch": source, "threads": torch.get_num_threads(), "kernels": rows,
                         "table": dict(dispatch.table()), "not_timed": left_out})
        return
    console.table(rows, COLUMNS, title=f"{recipe.name} on {source}, {torch.get_num_threads()} threads")
    for request, why in left_out.items():
        click.echo(f"{request}: " + "; ".join(f"{kernel} {said}" for kernel, said in why.items()))
    given = shlex.join((config, *assignments))
    chosen = f"{given} --lattice {lattice}" if lattice else given
    console.next_command(f"sciml pretrain {given}" if tune_ else f"sciml kernels explain {chosen} --tune")


def _lines(own: Pass) -> list[dict[str, Any]]:
    from sciml.kernels.explain import Place
    from sciml.kernels.explain import explain as lines_of

    levels: Sequence[Any] = list(own.operator.levels)
    places = []
    for i, (level, config) in enumerate(zip(levels, own.operator.config.levels)):
        for j, block in enumerate((*level.down, *level.up)):
            way = f"down {j}" if j < len(level.down) else f"up {j - len(level.down)}"
            places += [Place(f"level {i}, {way}", named.name, mixer, own.compiled)
                       for named, mixer in zip(config.block_mixers(j), block.mixers)]
        places.append(Place(f"level {i}", "context", level.context))
    return [line.json() for line in lines_of(places, own.run)]


def _tune(passes: Sequence[Pass]) -> dict[str, dict[str, str]]:
    """Measure what these passes ask for, and decide by it from here on. Request → kernel → why it wasn't timed."""
    from sciml.kernels import dispatch, tune

    for own in passes:
        own.run()
    requests, left_out = dispatch.used_requests(), {}
    with console.progress("measure") as progress:
        for done, request in enumerate(requests, 1):
            left_out.update({key: timed.left_out for key, timed in tune.tune([request]).items() if timed.left_out})
            progress(done, len(requests))
    dispatch.set_table(None)
    return left_out


def _real(recipe: Recipe) -> list[Pass]:
    """The first training batch of every domain. Raises `InputError` for a store that can't be opened."""
    from sciml.errors import InputError
    from sciml.operator.operator import runs_eagerly
    from sciml.predictor import Predictor
    from sciml.runs import open_stores

    try:
        stores = open_stores(recipe)
    except InputError as error:
        raise InputError(error.where, key=error.key, found=error.found, expected=error.expected,
                         fix=f"{error.fix}; or run on made-up values: --lattice 64x64") from error
    adapters = _adapters(recipe, stores)
    predictor = Predictor(_operator(recipe, {name: adapter.spec() for name, adapter in adapters.items()}), adapters)
    passes: dict[str, Pass] = {}
    for entry, store in zip(recipe.data, stores):
        domain = store.meta.domain
        if domain not in passes:
            batch = _first_batch(adapters[domain], store, entry.batch)
            run = _forward(recipe, adapters[domain], predictor.operator, batch)
            eagerly = runs_eagerly(batch, second_order=bool(adapters[domain].differentiate))
            passes[domain] = Pass(domain, predictor.operator, run, recipe.train.compile and not eagerly)
    return list(passes.values())


def _adapters(recipe: Recipe, stores: Sequence[Store]) -> dict[str, Any]:
    from sciml import registry

    adapters: dict[str, Any] = {}
    for store in stores:
        domain = store.meta.domain
        if domain not in adapters:
            adapters[domain] = registry.find("sciml.domains", domain, where=store.url).create(
                recipe.domains.get(domain, {}))
        adapters[domain] = adapters[domain].fit(store)
    return adapters


def _operator(recipe: Recipe, specs: dict[str, Any]) -> Operator:
    import torch

    from sciml.operator.config import OperatorConfig
    from sciml.operator.operator import Operator
    from sciml.recipe import validate

    torch.manual_seed(recipe.seed)
    return Operator(validate(OperatorConfig, recipe.operator, where="recipe: operator"), specs)


def _first_batch(adapter: Any, store: Store, size: int) -> Any:
    import numpy as np

    from sciml.packing import collate

    windows = adapter.open(store, "train", train=True)
    return collate([adapter.encode(windows.draw(i, np.random.default_rng([0, i]), np.random.default_rng(0)))
                    for i in range(min(size, len(windows)))])


def _forward(recipe: Recipe, adapter: Any, operator: Operator, batch: Any) -> Callable[[], Any]:
    from sciml.predictor import forward
    from sciml.train import autocast

    def run() -> Any:
        with autocast(recipe.train):
            return forward(adapter, operator, batch, create_graph=True)
    return run


def _made_up(recipe: Recipe, lattice: str) -> list[Pass]:
    """A periodic field of that many cells, one channel, as many samples as the recipe's first batch.

    Tokens are those of the domain, which knows no data: one that keeps their physical length on all grids takes this
    one for its first, where they have `patch` cells.
    """
    import torch

    from sciml import registry
    from sciml.tokens import HeadSpec, TokenBatch, TokenSpec, space
    from sciml.train import autocast

    sizes = _cells(lattice)
    domain = next(iter(recipe.domains), "fields")
    known = registry.find("sciml.domains", domain, where="recipe").create(recipe.domains.get(domain, {})).spec()
    channel = f"{domain}/value"
    spec = TokenSpec(domain, (channel,), {"state": HeadSpec("lattice", (channel,))}, patch=known.patch,
                     patch_length=known.patch_length)
    operator = _operator(recipe, {domain: spec})
    axes = tuple(space(f"x{i}", torch.arange(n) / n, period=1.0) for i, n in enumerate(sizes))
    batch = TokenBatch(domain, "made up", torch.randn(recipe.data[0].batch, *sizes, 1), (channel,), axes,
                       num_segments=recipe.data[0].batch)

    def run() -> Any:
        with autocast(recipe.train):
            return operator(batch)
    return [Pass(domain, operator, run, recipe.train.compile)]


def _cells(lattice: str) -> list[int]:
    from sciml.errors import InputError

    parts = lattice.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError("command line", key="--lattice", found=repr(lattice), expected="sizes such as 64x64",
                         fix="write the number of cells along every axis")
    return [int(part) for part in parts]


PLUGIN = kernels
