"""Distances along our own dynamics of acetylacetone at 300 K beside those of the test frames: the part `md` of
`benchmarks/molecules.py`.

The model is that of the part `long`; nothing is chosen by what comes out. Eight copies start from test frames spread
over the split, with velocities of their own; BAOAB at 0.5 fs and 0.02 /fs; the first picosecond doesn't count. The
divergence of the two halves of the test frames stands beside ours: the frames are consecutive pieces of reference
dynamics, so halves of them differ too. The picture goes to ``docs/pictures/molecules_md.png``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sciml import checkpoint
from sciml.cards.molecules_motion import with_dynamics
from sciml.data.store import Store
from sciml.domains.molecules.dynamics import BOLTZMANN
from sciml.domains.molecules.elements import symbols_of
from sciml.errors import InputError
from sciml.handles.bonds import bonds_of
from sciml.handles.distributions import Histogram, divergences, histograms
from sciml.handles.potential import pack, start
from sciml.report.bench import Bench, Row
from sciml.report.charts import figure
from sciml.rollout import rollout
from sciml.traced import compile_forward

PICTURE = Path(__file__).parent.parent / "docs/pictures/molecules_md.png"
REPLICAS, DT_FS, KELVIN, FRICTION, WARM_FS, EVERY = 8, 0.5, 300.0, 0.02, 1000.0, 10


def measure_motion(bench: Bench, folder: Path, store: Store, length_ps: float, picture: Path = PICTURE) -> None:
    """Temperature, and divergences of all pairs and of every kind of bond."""
    if not (folder / "checkpoints/best").is_dir():
        raise InputError(folder, found="no checkpoint", expected="the model of the part `long`",
                         fix="SCIML_BENCH_PARTS=long,md sciml bench molecules")
    predictor = checkpoint.load(folder)
    adapter: Any = predictor.adapter("molecules")
    layout = adapter.open(store, "test").layout
    frames = [layout.sample(int(g)) for g in np.sort(layout.members("test"))]
    samples = [frames[i] for i in np.linspace(0, len(frames) - 1, REPLICAS).astype(int)]
    moving = with_dynamics(predictor, thermostat="langevin", dt_fs=DT_FS, temperature_k=KELVIN,
                           friction_per_fs=FRICTION)
    packed = pack(moving, samples)
    fast = compile_forward(moving, packed.batch)
    places, kelvin = [], []
    for state in rollout(fast, start(moving, packed), round((WARM_FS + 1e3 * length_ps) / DT_FS)):
        if state.elapsed > WARM_FS and state.step % EVERY == 0:
            places.append(state.extra["position"].numpy().reshape(REPLICAS, -1, 3).copy())
            kelvin.append(state.extra["kinetic"].numpy() / (1.5 * BOLTZMANN * places[-1].shape[1]))
    symbols = symbols_of(np.asarray(samples[0]["number"].values, np.int64), "test")
    bonds = bonds_of(predictor, pack(predictor, frames[:1]))
    pairs = np.stack([bonds.first, bonds.second], -1)
    truth = np.stack([frame["position"].values for frame in frames])
    half = len(truth) // 2
    ours, theirs = (histograms(p, symbols, pairs) for p in (np.concatenate(places), truth))
    floor = divergences(histograms(truth[:half], symbols, pairs), histograms(truth[half:], symbols, pairs))
    draw(ours, theirs, picture, f"{REPLICAS} × {length_ps:g} ps of ours", f"{len(truth)} test frames")
    means = np.array(kelvin).mean(0)
    bench.add(Row(metric="acac/md/temperature", unit="K", ours=float(means.mean()), peer=KELVIN,
                  peer_name="thermostat"))
    bench.add(Row(metric="acac/md/temperature_error", unit="K", ours=float(means.std(ddof=1) / REPLICAS**0.5)))
    for name, value in divergences(ours, theirs).items():
        short = name.replace(" ", "_").replace("–", "").lower()
        bench.add(Row(metric=f"acac/md/divergence_{short}", unit="bit", ours=value, peer=floor[name],
                      peer_name="halves_of_the_test_frames"))


def draw(ours: Mapping[str, Histogram], theirs: Mapping[str, Histogram], picture: Path, label: str,
         truth: str) -> None:
    """All pairs, then every kind of bond."""
    columns = -(-len(ours) // 2)
    with figure(2, columns, size=(3.0 * columns, 5.0)) as (drawing, axes):
        for ax, name in zip(axes.flat, ours):
            for one, text, color in ((theirs[name], truth, "0.8"), (ours[name], label, "#1f5fbf")):
                used = np.flatnonzero(one.counts)
                part = slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2)
                ax.stairs(one.density[part], one.edges[part.start: part.stop + 1], color=color, label=text,
                          fill=one is theirs[name])
            ax.set(title=name, xlabel="Å", yticks=[])
        for ax in list(axes.flat)[len(ours):]:
            ax.set_axis_off()
        axes.flat[0].legend(frameon=False, fontsize=7)
        drawing.savefig(picture, dpi=110)
