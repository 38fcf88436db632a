"""One thread, fixed seeds, and the tiny domains installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TINY = str(Path(__file__).parent / "tiny")
if TINY not in sys.path:
    sys.path.insert(0, TINY)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
