"""Time the kernels that are correct for a request on this machine, and remember the fastest."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sciml.assets import cache_folder
from sciml.kernels.contract import Kernel, Request, Squares
from sciml.kernels.dispatch import admissible, kernels

MAX_BYTES = 1 << 20
REPEATS = 7
VERSION = 1
SHARE_OF_FREE = 0.25
"""A kernel isn't timed where its N × M matrices would take more of the memory that is free."""


class Timed(NamedTuple):
    """Kernel → seconds, and kernel → why it wasn't timed."""

    seconds: dict[str, float]
    left_out: dict[str, str]


def machine() -> str:
    """What a measurement holds for: processor, version of torch, threads."""
    return f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def path() -> Path:
    """Where this machine's table is: in ``$SCIML_CACHE``, or ``~/.cache/sciml``."""
    return cache_folder() / f"kernels-{hashlib.sha256(machine().encode()).hexdigest()[:16]}.json"


def load() -> dict[str, str]:
    """Request key → fastest kernel. Empty where nothing was measured: a file that isn't ours counts as none."""
    return {key: min(seconds, key=lambda name: seconds[name]) for key, seconds in _read(path()).items()}


def tune(requests: Iterable[Request], *, repeats: int = REPEATS) -> dict[str, Timed]:
    """Request key → seconds (median; with the backward pass where there will be one), which are added to the file.

    Packed requests are left out, because their parts are requests of their own, and so is what one kernel alone can
    answer, or could be timed on: a kernel whose matrices are too large for the memory that is free isn't.
    """
    measured: dict[str, Timed] = {}
    for request in requests:
        correct = [name for name, refusal in admissible(request).items() if refusal is None]
        if len(correct) > 1 and not request.packed and request.key() not in measured:
            left_out = _too_large(request, correct)
            names = [name for name in correct if name not in left_out]
            measured[request.key()] = Timed(seconds(request, names, repeats) if len(names) > 1 else {}, left_out)
    found = {key: timed.seconds for key, timed in measured.items() if timed.seconds}
    if found:
        _write(path(), {**_read(path()), **found})
    return measured


def _too_large(request: Request, names: Iterable[str]) -> dict[str, str]:
    """Kernel → why it isn't timed."""
    batch, heads, n, m, _, _ = request.shape
    free, matrix = free_bytes(request.device), batch * heads * n * m * getattr(torch, request.dtype).itemsize
    squares = {name: kernel for name in names if isinstance(kernel := kernels()[name], Squares)}
    wanted = {name: kernel.matrices(request) * matrix for name, kernel in squares.items()}
    return {name: f"not timed: up to {size / 2**30:.1f} GiB of {n} × {m} matrices, {free / 2**30:.1f} GiB are free"
            for name, size in wanted.items() if size > SHARE_OF_FREE * free}


def free_bytes(device: str) -> int:
    """What can be allocated there without taking it from another process; on a CPU that doesn't say, all it has."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def seconds(request: Request, names: Iterable[str], repeats: int = REPEATS) -> dict[str, float]:
    """Kernel → median seconds of calls that take turns, the first round not counted."""
    q, k, v, bias, slope = _tensors(request)
    inputs = [x for x in (q, k, v, bias) if x is not None and x.requires_grad]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, own in taken.items():
            began = time.perf_counter()
            _once(kernels()[name], request, (q, k, v, bias), inputs, slope)
            if turn:
                own.append(time.perf_counter() - began)
    return {name: statistics.median(own) for name, own in taken.items()}


def _once(kernel: Kernel, request: Request, given: tuple[Tensor, Tensor, Tensor, Tensor | None], inputs: list[Tensor],
          slope: Tensor) -> None:
    with torch.set_grad_enabled(bool(inputs)):
        y = kernel.run(request, *given, None)
        if inputs:
            first = torch.autograd.grad(y, inputs, slope, create_graph=request.second_order)
            if request.second_order:
                torch.autograd.grad([x.sum() for x in first], inputs)


def _tensors(request: Request) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Random queries, keys, values, bias and slope of the result."""
    batch, heads, n, m, d, e = request.shape
    dtype, generator = getattr(torch, request.dtype), torch.Generator().manual_seed(0)

    def random(*shape: int, grad: bool) -> Tensor:
        return torch.randn(*shape, generator=generator).to(request.device, dtype).requires_grad_(grad)

    grad = request.grad
    bias = None if request.bias == "none" else random(
        1, heads if request.bias == "full" else 1, n if request.bias == "full" else 1, m, grad=request.bias_grad)
    slope = random(batch, heads, n, e, grad=grad and request.second_order)
    return (random(batch, heads, n, d, grad=grad), random(batch, heads, m, d, grad=grad),
            random(batch, heads, m, e, grad=grad), bias, slope)


def _read(file: Path) -> dict[str, dict[str, float]]:
    """The measurements in a file; none if it is absent, too large, damaged or of another machine."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("version") != VERSION or content.get("machine") != machine():
        return {}
    entries = content.get("seconds")
    return {key: own for key, own in entries.items() if _sound(own)} if isinstance(entries, dict) else {}


def _sound(own: object) -> bool:
    return isinstance(own, dict) and bool(own) and all(
        type(value) in (int, float) and math.isfinite(value) and value > 0 for value in own.values())


def _write(file: Path, measured: dict[str, dict[str, float]]) -> None:
    """Whole or not at all: written beside it first, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part-{os.getpid()}")
    part.write_text(json.dumps({"version": VERSION, "machine": machine(), "seconds": measured}, indent=1))
    part.replace(file)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
