"""Compiled blocks: opt-in, one block at a time, from a cache that outlives the process."""

from __future__ import annotations

import os
import shutil

import torch

from sciml.assets import cache_folder
from sciml.errors import InputError
from sciml.operator.operator import Operator

RECOMPILE_LIMIT = 64
"""Variants of one block that may live in a process: levels × domains × (training, validation, rollout)."""


def prepare_compiler(where: object = "recipe") -> None:
    """Graphs are kept under ``$SCIML_CACHE/inductor``. Raises `InputError` if there is no C++ compiler."""
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise InputError(where, key="train.compile", found="no C++ compiler (g++, clang++ or $CXX)", expected="one",
                         fix="install g++, or set train.compile=false")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))


def compile_blocks(operator: Operator, *, backend: str = "inductor", where: object = "recipe") -> None:
    """From now on each block is compiled, as one graph, when it first meets a lattice.

    Blocks of equal structure share the result; it is kept under ``$SCIML_CACHE/inductor``, so that the next process
    loads it in seconds. Forces, cached steps and packed samples keep running eagerly: a compiled graph has no second
    derivative, and would be made anew for every history and every set of sample lengths.
    backend: of torch.compile. Raises `InputError` if there is no C++ compiler, or a mixer that cannot be compiled
    (`spectral`).
    """
    prepare_compiler(where)
    for block in operator.blocks:
        for mixer in block.mixers:
            if not mixer.compilable:
                raise InputError(where, key="train.compile", found=f"the mixer {type(mixer).__name__.lower()}",
                                 expected="mixers that compile as one graph",
                                 fix="leave the mixer out, or set train.compile=false")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for block in operator.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)
    operator.compiled = True
