"""Compiled blocks: same values, same gradients, one graph for blocks of one structure, forces still possible."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from sciml import registry, tokens
from sciml.errors import InputError
from sciml.operator.compiled import compile_blocks
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator, runs_eagerly
from sciml.testing.parameters import stir
from sciml.tokens import Conditions, HeadSpec, TokenBatch, TokenSpec

SPEC = TokenSpec("torus", ("torus/u",), {"state": HeadSpec("lattice", ("torus/u",))}, vector_conditions=("lead",),
                 patch=2)
LEVEL = {"width": 16, "depth": 2, "head_width": 8}


def make(mixers: list[str], norm: str = "token") -> Operator:
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate({"levels": [{**LEVEL, "mixers": mixers}], "stem_width": 8,
                                                       "condition_width": 8, "norm": norm}), {"torus": SPEC})
    stir(operator)
    return operator


def batch(n: int) -> TokenBatch:
    axes = tuple(tokens.space(name, torch.arange(n) / n, period=1.0) for name in "xy")
    values = torch.randn(2, n, n, 1, generator=torch.Generator().manual_seed(n))
    return TokenBatch("torus", "torus", values, ("torus/u",), axes, conditions=Conditions({"lead": torch.ones(2)}),
                      num_segments=2)


def test_no_compiler_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"train\.compile.*no C\+\+ compiler"):
        compile_blocks(make(["local"]))


def test_a_mixer_that_cannot_be_compiled_is_named() -> None:
    with pytest.raises(InputError, match=r"train\.compile.*the mixer spectral"):
        compile_blocks(make(["spectral"]))


def test_what_a_graph_cannot_do_runs_eagerly() -> None:
    plain = batch(8)
    packed = replace(plain, axes=(replace(plain.axes[0], segment=torch.zeros(1, 8, dtype=torch.long)), plain.axes[1]))
    assert not runs_eagerly(plain)
    assert runs_eagerly(plain, second_order=True)
    assert runs_eagerly(plain, [])
    assert runs_eagerly(packed)


def compare(mixers: list[str], backend: str, norm: str = "token") -> None:
    torch.compiler.reset()
    counters.clear()
    eager, compiled = make(mixers, norm), make(mixers, norm)
    compile_blocks(compiled, backend=backend)
    found = []
    for operator in (eager, compiled):
        y = operator(batch(8))["state"]
        y.square().mean().backward()
        found.append((y.detach(), [p.grad for p in operator.parameters()]))
    assert counters["stats"]["unique_graphs"] == 1, "blocks of one structure share one graph"
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    torch.testing.assert_close(compiled(batch(12))["state"], eager(batch(12))["state"], rtol=1e-4, atol=1e-5)
    values = batch(8).values.requires_grad_()
    slope, = torch.autograd.grad(compiled(tokens.map_tensors(batch(8), lambda t: t if t.ndim < 4 else values),
                                          second_order=True)["state"].square().sum(), values, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), values)[0].isfinite().all()


COMPILABLE = [name for name in registry.names("sciml.mixers") if registry.find("sciml.mixers", name).compilable]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
@pytest.mark.parametrize("mixers", [["radial"], ["axial", "local"], ["gated"]], ids="+".join)
def test_compiled_equals_eager(mixers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compare(mixers, "inductor")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
@pytest.mark.parametrize("mixer", COMPILABLE)
def test_every_mixer_is_one_graph(mixer: str) -> None:
    compare([mixer], "eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
@pytest.mark.parametrize("norm", ["sample", "bounded"])
def test_norms_are_in_the_graph_too(norm: str) -> None:
    """Of a sample's, which weights are alike is asked before the graph, not in it."""
    compare(["radial", "local"], "eager", norm)
