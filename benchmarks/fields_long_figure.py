"""Two hundred steps of Navier–Stokes by the models that `sciml bench fields` trained, beside the solver's.

    python -P benchmarks/fields_long_figure.py docs/pictures/fields_long.png 1200

Seconds are those that the models were trained for; `runs/bench_fields` keeps their weights. Above, the vorticity of the
first test trajectory after 150 steps; below, of sixteen, the mean error and the median root mean square of the
vorticity, with the largest one of the training split.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from sciml.assets import config
from sciml.cli.bench import load_script
from sciml.metrics import relative_l2
from sciml.recipe import load_recipe

fields = load_script(Path(__file__).with_name("fields.py"))
NAME, SHOWN = "navier_stokes", 150
MODELS = {"sciml": ("sciml", "C0"), "fno": ("FNO", "C3"), "tfno": ("TFNO", "C1")}


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("seconds", type=float)
def main(out: Path, seconds: float) -> None:
    """Draw OUT from the weights of SECONDS."""
    from matplotlib.figure import Figure

    store = fields.store_of(fields.CASES[NAME])
    runs = fields.trained(NAME, load_recipe(config(NAME)), store, seconds, 1, tuple(MODELS))
    truth = fields.solver_rollout(store.url)
    curves = {"solver": (truth, "0.6")} | {
        label: (fields.followed(runs[kind, 0].averaged(), store, fields.LONG, len(truth)), colour)
        for kind, (label, colour) in MODELS.items()}
    drawing = Figure(figsize=(10, 5.6), layout="constrained")
    above, below = drawing.subfigures(2, 1, height_ratios=(1, 1.15))
    size = float(np.abs(truth[0, SHOWN - 1]).max())
    for ax, (label, (frames, _)) in zip(above.subplots(1, len(curves)), curves.items()):
        ax.imshow(frames[0, SHOWN - 1].T, origin="lower", vmin=-size, vmax=size, cmap="RdBu_r")
        error = float(relative_l2(frames[0, SHOWN - 1], truth[0, SHOWN - 1], keep=0))
        ax.set_title(f"{label} after {SHOWN} steps" if label == "solver" else f"{label}: {error:.2f}", fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    errors, strength = below.subplots(1, 2)
    steps = np.arange(1, fields.LONG + 1)
    for label, (frames, colour) in curves.items():
        if label != "solver":
            errors.plot(steps, relative_l2(frames, truth, keep=2).mean(0), color=colour, label=label)
        strength.plot(steps, np.nanmedian(frames.std((2, 3)), 0), color=colour, label=label,
                      linewidth=5 if label == "solver" else 1.5)
    largest = max(float(store.read("vorticity", block.group, block.start, block.stop).std((1, 2)).max())
                  for block in store.meta.splits.train)
    strength.axhline(largest, color="0.4", linestyle=":", linewidth=1)
    strength.annotate("largest in training", (2, largest), va="bottom", fontsize=8, color="0.4")
    errors.set_yscale("log")
    titles = ("relative error, mean of 16 trajectories", "root mean square of vorticity, median of 16")
    for ax, title in zip((errors, strength), titles):
        ax.set_title(title, loc="left", fontsize=9)
        ax.set_xlabel("step", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    drawing.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
