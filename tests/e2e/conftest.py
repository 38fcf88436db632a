"""Tiny stores, a tiny trained run and a process to kill runs in, made once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sciml.data.store import Store
from tests.e2e import jobs, tiny


@pytest.fixture(scope="session")
def device() -> str:
    """What to train on: the CPU, or what ``make gpu`` says."""
    return os.environ.get("SCIML_TEST_DEVICE", "cpu")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store, Store]:
    """Navier–Stokes at 16² and, with twice the viscosity, at 24²; a panel of two series."""
    folder = tmp_path_factory.mktemp("stores")
    return (tiny.navier_stokes(folder / "ns_a.zarr"),
            tiny.navier_stokes(folder / "ns_b.zarr", name="ns_b", resolution=24, viscosity=2e-3),
            tiny.panel(folder))


@pytest.fixture(scope="session")
def trained(stores: tuple[Store, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that was trained without interruption. Read it, don't change it."""
    from pretrain.workflow import pretrain

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(tiny.recipe(*(store.url for store in stores)), folder)
    return folder


@pytest.fixture(scope="session")
def run_job() -> Iterator[Callable[..., int]]:
    """``run_job(do=…, …)`` → exit status, see `tests.e2e.jobs`; runs one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen([sys.executable, jobs.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(**job: Any) -> int:
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield run
        stdin.close()
