"""A process that imports everything once and forks a child per job, so that many runs can be killed at little cost.

Lines of JSON on stdin, one per job; a line with the child's exit status (negative: the signal) on stdout. A job:
``do`` (train or rollout), its arguments, and ``kill`` = [function, n]: SIGKILL as that function is called the n-th time.
``order``: a file that gets a line [step, micro-step in it, sources] per micro-batch.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import sciml
from pretrain import workflow
from sciml import recipe, rollout, train
from sciml.data import store

for slow in ("torch._dynamo", "dask.array", "zarr", "pint", "sciml.domains.fields.adapter", "sciml.data.write"):
    importlib.import_module(slow)


def kill_at(function: str, count: int) -> None:
    """Replace ``module:attribute`` by one that dies at its n-th call."""
    place, _, name = function.partition(":")
    owner: Any = importlib.import_module(place)
    *parents, last = name.split(".")
    owner = functools.reduce(getattr, parents, owner)
    original, calls = getattr(owner, last), [0]

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, last, counted)


def record_order(path: Path) -> None:
    """Append what every training step sees to a file."""
    original = train.train_step

    def step(run: Any, operator: Any, batches: Any) -> Any:
        def listened() -> Any:
            for micro, batch in enumerate(batches):
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps([run.step, micro, batch.sources]) + "\n")
                yield batch
        return original(run, operator, listened())

    train.train_step = step


def do(job: dict[str, Any]) -> None:
    if "order" in job:
        record_order(Path(job["order"]))
    if "kill" in job:
        kill_at(*job["kill"])
    if job["do"] == "train":
        workflow.pretrain(recipe.Recipe.model_validate(job["recipe"]), Path(job["folder"]))
    else:
        rollout.rollout_to_zarr(sciml.load(job["checkpoint"]), store.open_store(job["store"]), job["split"],
                                job["out"], steps=job["steps"], save_every=job["save_every"])


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                do(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
