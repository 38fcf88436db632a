"""The machine and the versions a figure was measured with, and the matrix-multiply rate that times are divided by."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sciml", "torch", "numpy", "xarray", "zarr", "neuraloperator")


def describe() -> dict[str, Any]:
    """Processor, cores and memory in GiB, torch threads if torch is loaded; JSON.

    >>> sorted(describe())
    ['cores', 'memory_gib', 'processor', 'system']
    """
    return {"processor": _processor(), "cores": os.cpu_count() or 1, "memory_gib": round(memory_bytes()[0] / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}"}


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def memory_bytes() -> tuple[int, int]:
    """Total and available memory in bytes; available equals total where the system doesn't tell."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024
    return total, total


def gemm_gflops(dtype: str = "float32", *, size: int = 1024, seconds: float = 0.3) -> float:
    """Rate of ``linear`` on square matrices, 2·size³ operations each, in GFLOP/s: the best of the calls that fit."""
    import torch

    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[dtype]
    a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).to(kind) for seed in (0, 1))
    best, stop = float("inf"), time.perf_counter() + seconds
    with torch.no_grad():
        torch.nn.functional.linear(a, b)
        while time.perf_counter() < stop:
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
