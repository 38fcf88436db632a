"""Stores: memory while building and reading as the data grow tenfold, and the reader beside the model it feeds.

    sciml bench store

Memory is the peak resident size of a fresh process beyond what importing everything costs. The tiny model is a
width-32, depth-2 operator on batches of four 64² fields; the reader is windows, encode and collate in the same process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sciml.report.bench import Bench, Row

SIZES_MB = (60, 600)
CACHE_BYTES = 64 << 20

CHILD = """
import json, resource, sys
import dask.array as da, numpy as np, xarray as xr
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import StoreDraft, open_store, write_store
import sciml.data.statistics, zarr
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
trajectories, path, cache = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
before = peak()
frames = da.random.default_rng(0).standard_normal((trajectories, 64, 64, 64), chunks=(1, 16, 64, 64)).astype("f4")
x = np.arange(64) / 64
data = xr.Dataset({"u": (("trajectory", "time", "x", "y"), frames)},
                  {"time": ("time", np.arange(64.0)), "x": ("x", x), "y": ("y", x)})
blocks = [Block(group=i, start=0, stop=64) for i in range(trajectories)]
axes = {"time": AxisMeta(kind="time", unit="s")} | {n: AxisMeta(kind="space", unit="m", period=1.0) for n in "xy"}
draft = StoreDraft(domain="fields", dataset="noise", group_dim="trajectory", groups=trajectories,
                   variables={"u": Variable(role="state", unit="m/s", dims=("time", "x", "y"))}, axes=axes, dt=1.0,
                   splits=Splits(key="group", train=tuple(blocks[1:-1]), validation=tuple(blocks[:1]),
                                 test=tuple(blocks[-1:])),
                   provenance=Provenance(builder="noise"))
store = write_store(data, draft, path)
built = peak() - before
store, rng = open_store(path, cache_bytes=cache), np.random.default_rng(0)
for _ in range(trajectories * 40):
    t = int(rng.integers(0, 63)); store.read("u", int(rng.integers(0, trajectories)), t, t + 2)
print(json.dumps({"built": built, "read": peak() - before, "amplification": store.amplification}))
"""


def memory(folder: Path, megabytes: int) -> dict[str, float]:
    """Peak MiB of a process that builds and then reads a store of that size at random."""
    command = [sys.executable, "-c", CHILD, str(megabytes), str(folder / f"{megabytes}.zarr"), str(CACHE_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def reader_and_model(path: Path, batches: int = 40) -> tuple[float, float, float]:
    """Median seconds to make a batch of four from disk, again from the cache, and to train the tiny model on it."""
    from pretrain.workflow import new_predictor
    from sciml.data.store import open_store
    from sciml.objectives.relative_l2 import objective
    from sciml.optim import make_optimizers
    from sciml.recipe import Recipe
    from sciml.sampling import MicroBatches, Schedule, Source

    level = {"width": 32, "depth": 2, "mixers": ["axial", "local"]}
    recipe = Recipe.model_validate({"name": "tiny", "data": [{"store": str(path)}], "operator": {"levels": [level]},
                                    "train": {"steps": 1}})
    store = open_store(path)
    predictor = new_predictor(recipe, [store])
    adapter = predictor.adapter("fields")
    source = Source("noise", adapter, adapter.open(store, "train", train=True), 4, 1.0)
    data = MicroBatches((source,), Schedule.make(0, [1.0], batches), 0)
    optimizers = make_optimizers(predictor.operator, recipe.train)
    cold, warm, train = [], [], []
    for times in (cold, warm):
        for i in range(batches):
            began = time.perf_counter()
            batch = data[i].links[0]
            read = time.perf_counter()
            objective(predictor.operator(batch), batch).mean().backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            times.append(read - began)
            train.append(time.perf_counter() - read)
    return float(np.median(cold)), float(np.median(warm)), float(np.median(train))


def run() -> Bench:
    bench = Bench.load_or_new("store")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = (memory(folder, size) for size in SIZES_MB)
        rows: list[dict[str, Any]] = [
            {"metric": "store/build_600mb/peak_memory", "unit": "MiB", "ours": large["built"], "peer": small["built"],
             "peer_name": "build_60mb"},
            {"metric": "store/read_600mb/peak_memory", "unit": "MiB", "ours": large["read"], "peer": small["read"],
             "peer_name": "read_60mb"},
            {"metric": "store/random_pairs/read_amplification", "unit": "1", "ours": large["amplification"]}]
        cold, warm, train = reader_and_model(folder / f"{SIZES_MB[0]}.zarr")
        rows += [{"metric": f"store/batch_of_4_{name}/seconds", "unit": "s", "ours": seconds, "peer": train,
                  "peer_name": "tiny_model_step"} for name, seconds in (("from_disk", cold), ("cached", warm))]
    for row in rows:
        bench.add(Row(**row))
    return bench
