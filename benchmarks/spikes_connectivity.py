"""Connectivity of a simulated network: what a model says, beside cross-correlation and a GLM, by length of recording.

    sciml bench spikes_connectivity

300 leaky integrate-and-fire units of which 60 are not recorded, 10 % of the possible links (`SETTING`), a common slow
input. `links`: an operator of one slot that predicts hidden units from all others, and links found beyond what it
predicts (`sciml.domains.spikes.coupling_links`); `links_alone`: without an operator; `links_population`: with the
smoothed rate of the population in its place. `impulse`, `ablation`: an operator that corrects a Poisson GLM whose
features are 20 ms of all units' counts and their slow averages; `attention`: one with a token per unit.

What was chosen, on which network: the links' estimator and its operator on networks 2 and 4; bases, priors, bins and
the scaling of evidence on network 1; that evidence takes the late response off the early one was decided after a run on
network 0 (AUPRC 0.173 → 0.167 at 10 s, 0.267 → 0.266 at 30 s). SCIML_BENCH_NETWORK: another network than 0;
SCIML_BENCH_SECONDS: lengths (default 10,30,100,300).

``…_dale``: one sign per source (`signs_agreed`), for all methods alike (links have it in their prior);
``…_floor``: the model's GLM without its operator. Classical methods have bins of 1 ms, which suit them better than 2.
``detected`` and what follows it: at an expected false-discovery rate of 10 % by p values, which for ablation don't hold
on bins of training, or by posteriors; a delay is right within 2 ms.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from pretrain.workflow import new_predictor
from sciml.cli.connectivity import attention_of, responses
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.config import WindowConfig
from sciml.domains.spikes.connectivity import impulse_response, signs_agreed, standardised
from sciml.domains.spikes.connectivity_scores import Estimate, score_connectivity
from sciml.domains.spikes.coupling import cross_correlation, poisson_glm
from sciml.domains.spikes.coupling_links import find_links, population_rate
from sciml.domains.spikes.coupling_shared import shared_log_rate
from sciml.domains.spikes.glm import Penalty, design, fit
from sciml.domains.spikes.history import Basis, Recording
from sciml.domains.spikes.layout import Layout
from sciml.predictor import Predictor
from sciml.recipe import Recipe, validate
from sciml.report.bench import Bench, Row
from sciml.runs import begin
from sciml.tokens import Outputs
from sciml.train import fit as run_training

SEED, FRESH = int(os.environ.get("SCIML_BENCH_NETWORK", "0")), 5
"""The network, and another one that nothing was chosen on."""
SECONDS, OPERATED_S, FRESH_S = (10, 30, 100, 300), 30, (10, 30)
"""Lengths, the longest at which all models are asked, and lengths of the fresh network, whose links alone are read."""
ASKED = {int(each) for each in os.environ.get("SCIML_BENCH_SECONDS", "10,30,100,300").split(",")}
SETTING = {"units": 300, "unobserved": 0.2, "calibration_s": 10.0}  # 5 Hz, density 0.1, median 0.5 mV: the defaults
BIN_S, CLASSICAL_S, SHARED_S = 0.002, 0.001, 0.004
BASIS = Basis(10, 3, 1.0, (0.1,), 1.0)
PRIOR, CONTEXTS, LAGS = 0.4, 8, 20
SPIKES = {"floor": "smoothed", "slots": 4, "slow_s": [0.02, 0.1, 1.0], "tasks": {"next": {"before": 16, "scored": 112}}}
TOKENS = {**SPIKES, "slots": 0, "tasks": {"next": {"before": 8, "scored": 24}}}
SHARED = {"floor": "smoothed", "slots": 1, "slow_s": [], "masks": {"time": 0.0, "cell": 0.0, "unit": 0.3},
          "tasks": {"masked": {"before": 8, "scored": 112, "after": 8}}}
NARROW = {"stem_width": 4, "levels": [{"width": 16, "depth": 1, "mixers": ["local"], "head_width": 16}]}
SMALL = {"stem_width": 16, "levels": [{"width": 32, "depth": 1, "mixers": [], "head_width": 16}]}
AXIAL = {"stem_width": 16, "levels": [{"width": 16, "depth": 1, "mixers": ["axial"], "head_width": 16}]}


def run() -> Bench:
    bench = Bench.load_or_new("spikes_connectivity", seeds=(SEED,))
    plan = [("network", SEED, s, s <= OPERATED_S) for s in SECONDS] + [("fresh", FRESH, s, False) for s in FRESH_S]
    for name, seed, seconds, operated in sorted(plan, key=lambda place: place[2]):
        if seconds not in ASKED or bench.has(f"{name}/{seconds}s/auprc_links", "glm"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            store = make(seconds, seed, Path(folder))
            found = {**classical(store), **links(store, Path(folder), peers=seconds <= OPERATED_S)}
            if operated:
                found |= model(store, Path(folder))
            add(bench, f"{name}/{seconds}s", {method: score(store, value) for method, value in found.items()})
    draw(bench, Path(__file__).parents[1] / "docs/pictures/spikes_connectivity.png")
    return bench


def add(bench: Bench, place: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Rows beside those of the GLM; of links last, as they tell that a place is done."""
    for name, values in sorted(scores.items(), key=lambda item: item[0] == "links"):
        click.echo(f"{place} {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()), err=True)
        for measure, value in values.items():
            same = "glm_dale" if "dale" in name else "glm"
            peer = None if name == same else scores[same].get(measure)
            bench.add(Row(metric=f"{place}/{measure}_{name}", unit="1", ours=value, peer=peer,
                          peer_name=None if peer is None else "glm"))


def draw(bench: Bench, path: Path) -> None:
    """AUPRC by length of recording."""
    from matplotlib.figure import Figure

    found = {row.metric: row.ours for row in bench.results.rows}
    drawing = Figure(figsize=(7, 4), layout="constrained")
    ax = drawing.subplots()
    for name, label, look in (("links", "model: links", "k"), ("links_alone", "links without an operator", "0.5"),
                              ("glm", "GLM, 1 ms", "C1"), ("correlation", "cross-correlation, 1 ms", "C2"),
                              ("impulse", "model: impulse response", "C0"), ("ablation", "model: ablation", "C3"),
                              ("attention", "model: attention", "C4")):
        for ending, dash in (("", "-"), ("_dale", "--")):
            y = [found.get(f"network/{s}s/auprc_{name}{ending}", np.nan) for s in SECONDS]
            if np.isfinite(y).any():
                ax.plot(SECONDS, y, dash, color=look, marker="o", markersize=4, label=label if not ending else None)
    ax.axhline(found[f"network/{SECONDS[0]}s/density_glm"], color="0.6", linewidth=0.8, linestyle=":", label="chance")
    ax.plot([], [], "k--", label="with one sign per source")
    ax.set(xscale="log", xlabel="recording (s)", ylabel="area under precision and recall", xticks=SECONDS,
           xticklabels=map(str, SECONDS), title="Links of 240 recorded units out of 300, 5 Hz")
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)


def make(seconds: int, seed: int, folder: Path) -> Store:
    """A recording of the network; its last tenth selects the operator's training step."""
    spec = validate(SourceSpec, {
        "name": "network", "domain": "spikes", "builder": "spiking_network", "missing": "mask", "licence": "CC0-1.0",
        "options": {**SETTING, "duration_s": float(seconds), "seed": seed, "bin_ms": 1e3 * CLASSICAL_S},
        "split": {"by": "time", "gap": 0, "fractions": {"train": 0.9, "validation": 0.1, "test": 0.0}}}, where="bench")
    return build(spec, folder / "network.zarr")


def classical(store: Store) -> dict[str, Estimate]:
    counts = Layout.of(store, CLASSICAL_S).recorded(0).count
    found = {}
    for name, method in (("correlation", cross_correlation), ("glm", poisson_glm)):
        made = method(counts, CLASSICAL_S)
        found[name] = Estimate(np.abs(made.score), made.score, made.delay, made.p)
        found[f"{name}_dale"] = replace(found[name], score=signs_agreed(made.score))
    scaled = standardised(found["glm"].effect)  # type: ignore[arg-type]
    return {**found, "glm_scaled": replace(found["glm"], score=np.abs(scaled), p_value=None),
            "glm_scaled_dale": replace(found["glm"], score=signs_agreed(scaled), p_value=None)}


def links(store: Store, folder: Path, *, peers: bool) -> dict[str, Estimate]:
    """Of an operator that predicts hidden units, beside those without one."""
    counts = Layout.of(store, CLASSICAL_S).recorded(0).count
    trained = fitted(store, folder / "shared", SHARED, NARROW, bin_s=SHARED_S, batch=8,
                     train={"steps": 150, "learning_rate": 1e-2, "matrix_learning_rate": 3e-3, "validate_every": 10})
    adapter: Any = trained.adapters["spikes"]
    (shared,) = shared_log_rate(trained.forward, adapter, adapter.open(store, "train"), (0,), CLASSICAL_S)
    made = {}
    others = {"links_population": population_rate(counts, CLASSICAL_S), "links_alone": None} if peers else {}
    for name, given in {"links": shared, **others}.items():
        own = find_links(counts, CLASSICAL_S, given)
        made[name] = Estimate(own.probability, own.effect, own.delay, probability=own.probability)
    return made


def model(store: Store, folder: Path) -> dict[str, Estimate]:
    """Ablation and impulse response of the operator that corrects the GLM; attention of one with a token per unit."""
    steps: dict[str, Any] = {"steps": 40, "learning_rate": 3e-4, "matrix_learning_rate": 1e-3}
    trained = fitted(store, folder / "slots", SPIKES, SMALL, train=steps, glm=True)
    found = responses(trained, trained.adapters["spikes"], store, "train", CONTEXTS, LAGS,  # type: ignore[arg-type]
                      quiet)
    adapter: Any = trained.adapters["spikes"]
    lost = found["expected"] * adapter.datasets["network"].history.rate.numpy()
    windows = replace(adapter.open(store, "train"), train=False, floor=False,
                      tasks={"next": WindowConfig(before=16, scored=LAGS)})
    alone = impulse_response(lambda batch: Outputs({"next": torch.zeros_like(batch.values)}), adapter, windows,
                             CONTEXTS, LAGS)
    tokens = fitted(store, folder / "tokens", TOKENS, AXIAL, train={**steps, "keep_best": False})
    reader: Any = tokens.adapters["spikes"]
    weights = attention_of(tokens, reader, replace(reader.open(store, "train"), train=False, floor=False), CONTEXTS)
    assert weights is not None
    return {"impulse": Estimate(np.abs(found["evidence"]), found["effect"], found["delay"], found["p"]),
            "impulse_dale": Estimate(signs_agreed(found["evidence"]), found["effect"], found["delay"], found["p"]),
            "impulse_floor": Estimate(np.abs(alone.evidence), alone.effect, alone.delay, alone.p),
            "impulse_floor_dale": Estimate(signs_agreed(alone.evidence), alone.effect, alone.delay, alone.p),
            "ablation": Estimate(lost, p_value=found["ablation_p"]), "attention": Estimate(weights)}


def quiet(done: int, total: int) -> None:
    """No progress."""


def fitted(store: Store, folder: Path, spikes: Mapping[str, Any], operator: Mapping[str, Any], *,
           train: Mapping[str, Any], bin_s: float = BIN_S, batch: int = 2, glm: bool = False) -> Predictor:
    training: dict[str, Any] = {"threads": 1, "validation_windows": 16, "keep_best": True, **train}
    recipe = validate(Recipe, {
        "name": "connectivity", "data": [{"store": store.url, "batch": batch}], "operator": dict(operator),
        "domains": {"spikes": {**spikes, "bin_s": bin_s}}, "train": training}, where="bench")
    predictor = new_predictor(recipe, [store])
    if glm:
        predictor.adapters["spikes"] = correcting(predictor.adapters["spikes"], store)  # type: ignore[arg-type]
    return run_training(begin(folder, recipe, predictor, [store]))


def correcting(adapter: Binned, store: Store) -> Binned:
    """The adapter with the GLM of all bins as the floor that the operator corrects."""
    counts = torch.from_numpy(Layout.of(store, BIN_S).recorded(0).count)
    everything = torch.ones(len(counts), dtype=torch.bool)
    work = design([Recording(counts, everything, ~everything)], BASIS, BIN_S)
    strength = 1 / (PRIOR**2 * float(counts.mean()) * len(counts))
    floor = fit(work, Penalty(strength, 0.1 * strength, 1e-3))
    known = {name: replace(own, floors={"next": floor}) for name, own in adapter.datasets.items()}
    return replace(adapter, config=adapter.config.model_copy(update={"corrects": "floor"}), datasets=known)


def score(store: Store, estimate: Estimate) -> dict[str, float]:
    result = score_connectivity(estimate, store.read("weight", 0), store.read("delay", 0), dt=BIN_S)
    row = {"auroc": result.auroc, "auprc": result.auprc, "density": result.density}
    own = result.by_probability or result.by_p_value
    if own is not None:
        row |= {"detected": float(own.num_detected), "precision": own.precision, "sign": own.sign_accuracy,
                "delay": own.delay_accuracy}
    return {name: value for name, value in row.items() if np.isfinite(value)}
