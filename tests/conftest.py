"""One thread, fixed seeds, and the tiny domains installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml.kernels import dispatch

TINY = str(Path(__file__).parent / "tiny")
if TINY not in sys.path:
    sys.path.insert(0, TINY)


@pytest.fixture(autouse=True)
def _one_thread_and_seed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nor does a test see what the machine's owner has measured or downloaded."""
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    dispatch.set_table({})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
