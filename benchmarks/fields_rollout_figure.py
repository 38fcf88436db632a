"""Twelve steps of the models that `sciml bench fields` trained, as pictures beside the truth.

    python -P benchmarks/fields_rollout_figure.py docs/pictures/fields_rollouts.png kelvin_helmholtz:120 gray_scott:30

A case with the seconds that its models were trained for, whose weights `runs/bench_fields` keeps: the first test
trajectory, true, ours, FNO's and TFNO's after 12 steps, on one scale; below each how far off it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from sciml.assets import config
from sciml.cli.bench import load_script
from sciml.metrics import relative_l2
from sciml.recipe import load_recipe
from sciml.rollout import rollout

fields = load_script(Path(__file__).with_name("fields.py"))
SHOWN = {"kelvin_helmholtz": "density", "riemann": "density", "gray_scott": "concentration_v"}
MODELS = {"sciml": "sciml", "fno": "FNO", "tfno": "TFNO"}


def panels(name: str, seconds: float, steps: int = 12) -> dict[str, np.ndarray]:
    """Last states of a rollout of the case's first variable (or the one named above) by model, after the truth's."""
    case = fields.CASES[name]
    store = fields.store_of(case)
    runs = fields.trained(name, load_recipe(config(name)), store, seconds, 1, tuple(MODELS))
    found: dict[str, np.ndarray] = {}
    for kind, label in MODELS.items():
        predictor = runs[kind, 0].averaged()
        adapter: Any = predictor.adapter("fields")
        sample = adapter.starts(store, "test")[0]
        variable = SHOWN.get(name, next(iter(adapter.datasets[store.meta.dataset].states)))
        found.setdefault("solver", sample[variable].isel(time=steps).values)
        *_, last = rollout(predictor, adapter.initial(sample), steps)
        found[label] = adapter.observe(last)[variable].values.reshape(found["solver"].shape)
    return found


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("cases", nargs=-1, required=True)
def main(out: Path, cases: tuple[str, ...]) -> None:
    """Draw CASES (NAME:SECONDS), a row each."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.2, 2.5 * len(cases)), layout="constrained")
    grid = drawing.subplots(len(cases), 1 + len(MODELS), squeeze=False)
    for row, case in zip(grid, cases):
        name, _, seconds = case.partition(":")
        found = panels(name, float(seconds))
        truth = found["solver"]
        low, high = np.quantile(truth, [0.002, 0.998])
        for ax, (label, state) in zip(row, found.items()):
            ax.imshow(state.T, origin="lower", vmin=low, vmax=high, cmap="RdBu_r" if low < 0 else "magma")
            error = "" if label == "solver" else f": {float(relative_l2(state, truth, keep=0)):.3f}"
            ax.set_title(f"{label}{error}", fontsize=9)
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(name.replace("_", " "), fontsize=9)
    drawing.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
