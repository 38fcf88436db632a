"""Run the main job on this machine in a few minutes: build, pretrain, fine-tune, simulate, evaluate, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from sciml.cli import console

STEPS, BINS = 100, 500
DATA = {"fields": "navier_stokes", "series": "ili", "spikes": "spiking_network"}
"""Domains that the demo pretrains one operator on, each with its data set."""
ALONE = {"molecules": "ethanol_morse", "volumes": "phantoms"}
"""Domains with a demo of their own: their operator has other mixers."""


def script(out: Path, stores: Path, domains: str, smallest: bool) -> list[list[str]]:
    """The commands of the demo, as a user would type them, without the leading ``sciml``."""
    if domains in ALONE:
        return _alone(domains, out, stores, smallest)
    fields, series, spikes = (domains in ("all", name) for name in DATA)
    waves, flu, network = (str(stores / f"{name}.zarr") for name in DATA.values())
    unseen = str(stores / "unseen_viscosity.zarr")
    chosen = [path for path, wanted in ((waves, fields), (flu, series), (network, spikes)) if wanted]
    sizes = ["train.steps=12", "train.minutes=null", "train.validation_windows=8"] if smallest else []
    data = [f"data={_flow(chosen)}"] if domains != "all" or stores != Path("stores/demo") else []
    some = ["--max-windows", "24"] if smallest else []
    commands = [["data", "build", "datasets/navier_stokes/demo.yaml", waves, "--overwrite"] if fields else [],
                ["data", "build", "datasets/navier_stokes/unseen.yaml", unseen, "--overwrite"] if fields else [],
                ["data", "build", "datasets/ili/source.yaml", flu, "--overwrite"] if series else [],
                ["data", "build", "datasets/spiking_network/demo.yaml", network, "--overwrite"] if spikes else [],
                ["pretrain", "demo", *sizes, *data, "--run", str(out), "--overwrite"]]
    if fields:
        tuned = str(out / "finetune" / "unseen_viscosity")
        tuning = ["train.steps=6", "train.validation_windows=4"] if smallest else ["train.steps=400"]
        commands += [
            ["evaluate", str(out), "--data", waves, *some],
            ["finetune", str(out), "--data", unseen, "--run", tuned, "--overwrite", *tuning],
            ["evaluate", tuned, "--data", unseen, "--max-windows", "24" if smallest else "120"],
            ["rollout", tuned, "--from", unseen, "-o", f"{tuned}/rollout/unseen_viscosity.zarr", "--steps",
             str(10 if smallest else STEPS), "--overwrite"]]
    if series:
        commands.append(["evaluate", str(out), "--data", flu, *some])
    if spikes:
        commands += [["evaluate", str(out), "--data", network, *some],
                     ["rollout", str(out), "--from", network, "-o", f"{out}/rollout/spiking_network.zarr", "--steps",
                      str(50 if smallest else BINS), "--overwrite"]]
    return [command for command in [*commands, ["report", str(out)]] if command]


def _alone(domain: str, out: Path, stores: Path, smallest: bool) -> list[list[str]]:
    name = ALONE[domain]
    store = str(stores / f"{name}.zarr")
    sizes = ["train.steps=12", "train.validation_windows=8"] if smallest else []
    data = [f"data.0.store={store}"] if stores != Path("stores/demo") else []
    moving = ["rollout", str(out), "--from", store, "-o", f"{out}/rollout/{name}.zarr", "--steps",
              str(10 if smallest else 2000), "--overwrite"]
    commands = [["data", "build", f"datasets/{name}/source.yaml", store, "--overwrite"],
                ["pretrain", f"demo_{domain}", *sizes, *data, "--run", str(out), "--overwrite"],
                ["evaluate", str(out), "--data", store, *(["--max-windows", "24", "--no-card"] if smallest else [])],
                moving if domain == "molecules" else [], ["report", str(out)]]
    return [command for command in commands if command]


def _flow(stores: Sequence[str]) -> str:
    batch = {"navier_stokes": 4, "ili": 16, "spiking_network": 8}
    return "[" + ", ".join(f"{{store: {s}, batch: {batch[Path(s).stem]}}}" for s in stores) + "]"


@click.command("demo")
@click.argument("domains", type=click.Choice(["all", *DATA, *ALONE]), default="all")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--stores", type=click.Path(path_type=Path), default=Path("stores/demo"), show_default=True)
@click.option("--smallest", is_flag=True, help="A few steps of everything: does it work, not how well.")
def demo(domains: str, out: Path, stores: Path, smallest: bool) -> None:
    """Pretrain one operator on Navier–Stokes, influenza and neural data, fine-tune it on a viscosity it hasn't seen,
    roll it out, score it beside its baselines and write a report. Molecules and volumes have demos of their own: a
    potential for ethanol, structures in images of phantoms.

    Every command is shown before it runs: they are the ones to type for data of your own.
    """
    import resource

    from sciml.cli import run

    began = time.perf_counter()
    for command in script(out, stores, domains, smallest):
        click.secho(f"\n$ sciml {' '.join(command)}", bold=True)
        if (code := run(command)) != 0:
            raise click.exceptions.Exit(code)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = summary(out)
    console.table(rows, title="What came out (test splits; better: a ratio below 1, of bits per spike and Dice above)")
    click.echo(f"{time.perf_counter() - began:.0f} s, {peak:.1f} GiB; open {out / 'report.html'}")
    store = stores / f"{(DATA | ALONE)['fields' if domains == 'all' else domains]}.zarr"
    console.next_command(f"sciml segment {out} IMAGE.nii.gz -o segmented" if domains == "volumes" else
                         f"sciml rollout {out} --from {store} -o {out / 'rollout.zarr'} --steps 50")


def summary(out: Path) -> list[dict[str, object]]:
    """The main score of every question that was asked, beside its baseline."""
    import json

    main = {"relative_l2", "gmean_relative_l2", "mse", "bits_per_spike", "energy_mae", "forces_mae", "dice"}
    rows = []
    for path in sorted([*out.glob("evaluation/*.json"), *out.glob("finetune/*/evaluation/*.json")]):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            rollout = row["question"].startswith("rollout")
            if row["metric"] in main and rollout == (row["metric"] == "gmean_relative_l2"):
                rows.append({"data": row["dataset"], "question": row["question"], "metric": row["metric"],
                             "ours": row["value"], "baseline": row["baseline"], "of": row["baseline_name"],
                             "ratio": row["ratio"], "verdict": row["verdict"]})
    return rows


PLUGIN = demo
