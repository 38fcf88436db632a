"""Muon on stacks of matrices: one Newton–Schulz iteration for all hidden matrices of a shape, instead of one each.

A small model has dozens of small matrices; iterating them one by one costs more than the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: W ← (1 − lr·wd) W − lr·√max(1, rows/columns)·orth(g + μ·m), with m ← μ·m + g.

    A parameter of three dimensions is a stack of matrices, each orthogonalised by itself. orth is the quintic
    Newton–Schulz iteration that drives singular values towards 1, in bfloat16.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0,
                 momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks.setdefault(tuple(parameter.shape), []).append(parameter)
            for matrices in stacks.values():
                self._update(matrices, group)
        return loss

    def _update(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        weights: list[Tensor] = list(matrices)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        ahead = torch.stack(torch._foreach_add(gradients, buffers, alpha=momentum))
        rows, columns = ahead.shape[-2:]
        turned = orthogonalise(ahead.flatten(0, -3)).view_as(ahead).to(ahead.dtype)
        direction = turned * (group["lr"] * max(1.0, rows / columns) ** 0.5)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, list(direction.unbind()))


def orthogonalise(stack: Tensor) -> Tensor:
    """``(n, rows, columns)`` → nearly the polar factor of each: same singular vectors, singular values near 1.

    >>> values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 8, 16)).float())
    >>> bool((values > 0.5).all() and (values < 1.5).all())
    True
    """
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).to(torch.bfloat16)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
