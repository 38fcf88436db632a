"""A process that imports everything once and forks a child per job, so that many runs can be killed at little cost.

Lines of JSON on stdin, one per job; a line with the child's exit status (negative: the signal) on stdout. A job: ``do``
(train or rollout), its arguments, and ``kill`` = [function, n]: SIGKILL as that function is called the n-th time.
``order``: a file that gets a line [step, micro-step in it, data set, sources] per micro-batch. ``ranks``: that many
children under DDP, each with a file ``<order>-<rank>``; the status is the first one's.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import socket
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
                first = batch.links[0]
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps([run.step, micro, first.dataset, first.sources]) + "\n")
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


def fork(job: dict[str, Any], rank: int, ranks: int, port: int) -> int:
    """The process id of a child that does the job as one of several ranks."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if ranks > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(port))
            job["order"] = f"{job['order']}-{rank}"
        do(job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        ranks, port = job.get("ranks", 1), free_port()
        children = [fork(job, rank, ranks, port) for rank in range(ranks)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(statuses[0], flush=True)


if __name__ == "__main__":
    main()
