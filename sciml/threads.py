"""How many threads a step of a small model is fastest with: more is often slower, and ruinous on a shared machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TOKENS, WIDTH, ROUNDS = 1024, 96, 12


def fastest() -> int:
    """1 or torch's default, whichever does a block-like piece of work sooner; takes a fraction of a second.

    >>> fastest() in (1, torch.get_num_threads())
    True
    """
    default = torch.get_num_threads()
    if default == 1:
        return 1
    seconds = {}
    try:
        for threads in (default, 1):
            torch.set_num_threads(threads)
            _work(2)
            began = time.perf_counter()
            _work(ROUNDS)
            seconds[threads] = time.perf_counter() - began
    finally:
        torch.set_num_threads(default)
    return min(seconds, key=lambda n: seconds[n])


def _work(rounds: int) -> None:
    """Projections, a softmax and elementwise maps, forward and backward, of the size of a small training step."""
    x = torch.randn(TOKENS, WIDTH)
    weights = [torch.randn(WIDTH, 3 * WIDTH, requires_grad=True), torch.randn(WIDTH, WIDTH, requires_grad=True)]
    for _ in range(rounds):
        q, k, v = (x @ weights[0]).view(64, 16, 3, WIDTH).unbind(2)
        y = (q @ k.mT).softmax(-1) @ v
        z = torch.nn.functional.gelu(y.reshape(TOKENS, WIDTH) @ weights[1]) * y.reshape(TOKENS, WIDTH)
        z.sum().backward()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums then don't depend on how they would be split over threads, and small work doesn't wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
