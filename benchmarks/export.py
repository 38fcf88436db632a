"""A rollout step compiled ahead of time against the eager one, for the operators of the recipes that predict fields.

    sciml bench export

The operator, patch and power per wavenumber are the recipe's; weights, statistics and states are made up, because no
figure depends on them. 64² is a box of one reference length, 128² one of two at the same spacing: one package serves
both, and batches of 1 and 4. Every round steps each way once, in turn; medians are compared. Rows: milliseconds of the
exported step beside the eager one's, and their largest difference as a fraction of the largest value.
"""

from __future__ import annotations

import os

import click
import numpy as np
import torch
import xarray as xr

from sciml.assets import config as find_config
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.baseline import Persistence
from sciml.domains.fields.config import Contract, FieldsConfig, GridAxis, Scaling
from sciml.export import ExportedStep, compare, load_step
from sciml.memory import keep_freed
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.recipe import load_recipe, validate
from sciml.report.bench import Bench, Row
from sciml.threads import fastest
from sciml.tokens import State

ROUNDS = int(os.environ.get("SCIML_BENCH_ROUNDS", "31"))
RECIPES = ("navier_stokes", "demo")
SIZE = 64


def make_predictor(name: str) -> Predictor:
    """The recipe's operator for one variable on a periodic square, with weights that are not at their beginning."""
    recipe = load_recipe(find_config(name))
    known = Contract(axes=tuple(GridAxis(name=axis, unit="1", period=1.0) for axis in "xy"), dt=1.0, time_unit="s",
                     length=1.0, time=1.0, spacing=1 / SIZE, states={"vorticity": Scaling(unit="1/s")},
                     parameters={"viscosity": Scaling(unit="1", transform="log10", center=-3.0)})
    shells = np.arange(SIZE)
    curve = np.stack([np.exp(-0.02 * shells), 0.1 * np.exp(-0.2 * shells), 1 + 6.0 * shells])
    adapter = Fields(validate(FieldsConfig, recipe.domains["fields"], where=name), {"made_up": known},
                     Persistence({"made_up": {"vorticity": np.array([[1.0, 2.0], [0.1, 0.2]])}}),
                     {"made_up": {"vorticity": {1: curve}}})
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, recipe.operator, where=name), {"fields": adapter.spec()}).eval()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return Predictor(operator, {"fields": adapter})


def make_state(predictor: Predictor, size: int, batch: int) -> State:
    place, rng = np.arange(size) / SIZE, np.random.default_rng(0)
    coords = {name: (name, place, {"units": "1", "period": size / SIZE}) for name in "xy"}
    samples = [xr.Dataset({"vorticity": (("x", "y"), rng.standard_normal((size, size)), {"units": "1/s"}),
                           "viscosity": ((), 1e-3, {"units": "1"})}, coords,
                          attrs={"domain": "fields", "dataset": "made_up"}) for _ in range(batch)]
    adapter = predictor.adapter("fields")
    return State(collate([adapter.initial(sample).batch for sample in samples]))


def measure(bench: Bench, predictor: Predictor, step: ExportedStep, name: str, size: int, batch: int) -> None:
    place = f"export/{name}_{size}x{size}_batch{batch}"
    if bench.has(f"{place}/difference"):
        return
    found = compare(predictor, step, make_state(predictor, size, batch), rounds=ROUNDS)
    bench.add(Row(metric=f"{place}/step", unit="ms", ours=1e3 * found.exported, peer=1e3 * found.eager,
                  peer_name="eager"))
    bench.add(Row(metric=f"{place}/difference", unit="1", ours=found.difference))
    click.echo(f"{place}: {1e3 * found.exported:.2f} ms, eager {1e3 * found.eager:.2f} ms, {found.speed:.2f} times "
               f"faster, difference {found.difference:.1e}", err=True)


def run() -> Bench:
    """Resumed by recipe, lattice and batch. Takes a minute or three longer where a step isn't in the cache."""
    torch.set_num_threads(fastest())
    keep_freed()
    bench = Bench.load_or_new("export")
    for name in RECIPES:
        predictor = make_predictor(name)
        click.echo(f"{name}: loading, or compiling …", err=True)
        step = load_step(predictor, make_state(predictor, SIZE, 1))
        for size in (SIZE, 2 * SIZE):
            for batch in (1, 4):
                measure(bench, predictor, step, name, size, batch)
    return bench
