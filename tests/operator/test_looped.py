"""Looped depth: the same blocks again and again, each time a fraction of a step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_domains import events, grid
from torch import Tensor

from sciml import tokens
from sciml.errors import InputError
from sciml.mixers.geometry import Geometry
from sciml.operator.compiled import compile_blocks
from sciml.operator.config import OperatorConfig
from sciml.operator.heads.contract import HeadInput
from sciml.operator.lattice import coarsen
from sciml.operator.operator import Level, Operator, count_parameters
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.testing import check_domain
from sciml.testing.parameters import stir
from sciml.tokens import Conditions, HeadSpec, TokenBatch, TokenSpec

SPEC = TokenSpec("torus", ("torus/u",), {"state": HeadSpec("lattice", ("torus/u",))}, vector_conditions=("lead",),
                 patch=2)


def config(first: int, second: int) -> dict[str, Any]:
    return {"stem_width": 16, "condition_width": 16, "levels": [
        {"width": 32, "depth": 2, "depth_up": 1, "mixers": ["axial", "local"], "head_width": 16, "loops": first},
        {"width": 48, "depth": 1, "mixers": ["axial"], "head_width": 16, "loops": second}]}


def make(first: int, second: int, spec: TokenSpec = SPEC) -> Operator:
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate(config(first, second)), {spec.domain: spec})
    stir(operator)
    return operator.eval()


def batch(dtype: torch.dtype = torch.float32) -> TokenBatch:
    axes = (tokens.space("x", torch.arange(8, dtype=dtype) / 8, period=1.0),
            tokens.space("y", torch.linspace(0, 1, 12, dtype=dtype) ** 1.5))
    values = torch.randn(2, 8, 12, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return TokenBatch("torus", "torus", values, ("torus/u",), axes, num_segments=2,
                      conditions=Conditions({"lead": torch.tensor([0.5, 1.0], dtype=dtype)}))


def added(block: Any, x: Tensor, c: Tensor, geometry: Geometry, share: float) -> Tensor:
    """A block by its definition, from the mixers' own references."""
    def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale + shift

    def modulation(module: Any) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate = module.linear(c)[:, None, None].chunk(3, -1)
        return shift, 1 + scale, 1 + gate

    shift, scale, gate = modulation(block.modulate_mix)
    h = norm(x, scale, shift)
    x = x + share * gate * sum(mixer.reference(h, geometry) for mixer in block.mixers)
    shift, scale, gate = modulation(block.modulate_ffn)
    hidden = block.ffn.enter(norm(x, scale, shift))
    return x + share * gate * block.ffn.leave(hidden * hidden.sigmoid())


def levels(operator: Operator) -> list[Any]:
    assert all(isinstance(level, Level) for level in operator.levels)
    return list(operator.levels)


def unrolled(operator: Operator, given: TokenBatch) -> Tensor:
    """The two levels with every application of every block written out."""
    port: Any = operator.ports["torus"]
    fine, coarse = levels(operator)
    c = port.conditions(given.conditions.vector, 2)
    above = Geometry(port.stem.axes(given.axes, [2, 2]))
    below = Geometry(coarsen(above.axes, [2, 2]))
    n, m = (level.loops for level in operator.config.levels)
    x = port.stem(given, [2, 2])
    for block in [*fine.down] * n:
        x = added(block, x, c, above, 1 / n)
    y = fine.merge(x, [2, 2])
    for block in [*coarse.down] * m:
        y = added(block, y, c, below, 1 / m)
    x = x + fine.split(y, [2, 2])
    for block in [*fine.up] * n:
        x = added(block, x, c, above, 1 / n)
    read = torch.nn.functional.rms_norm(x, x.shape[-1:])
    head: Tensor = port.heads["state"](HeadInput(read, [2, 2], given, above, port.stem.identities, (x, y), ()))
    return head


@pytest.mark.parametrize("loops", [(1, 1), (3, 2)])
def test_values_and_gradients_are_those_of_the_unrolled_blocks(loops: tuple[int, int]) -> None:
    operator, given = make(*loops).double(), batch(torch.float64)
    found = []
    for answer in (lambda: operator(given)["state"], lambda: unrolled(operator, given)):
        operator.zero_grad()
        y = answer()
        (y - given.values).square().sum().backward()
        found.append((y.detach(), {n: p.grad.clone() for n, p in operator.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-11, atol=1e-11)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-9, atol=1e-10, msg=name)


def test_loops_cost_no_parameters_and_change_no_draw() -> None:
    once, often = make(1, 1), make(4, 3)
    assert count_parameters(once) == count_parameters(often)
    assert all(torch.equal(one, often.state_dict()[name]) for name, one in once.state_dict().items())
    assert not torch.allclose(once(batch())["state"], often(batch())["state"])


def test_more_loops_come_nearer_to_one_flow() -> None:
    """Steps of 1 / n: the distance to twice as many shrinks by about half with n."""
    operators = [make(n, n) for n in (2, 4, 8, 16)]
    answers = [operator.double()(batch(torch.float64))["state"].detach() for operator in operators]
    apart = [float((a - b).norm()) for a, b in itertools.pairwise(answers)]
    assert apart[1] < 0.75 * apart[0]
    assert apart[2] < 0.75 * apart[1]


def units(given: TokenBatch) -> Tensor:
    ids = given.axes[0].ids
    assert ids is not None
    return ids[0]


def test_a_cache_has_an_entry_per_application() -> None:
    store = events.make_store()
    adapter = events.PLUGIN().fit(store)
    predictor = Predictor(make(3, 1, adapter.spec()), {adapter.name: adapter})
    assert len(predictor.operator.empty_cache()) == 2 * 2 * 3 + 1 + 2 * 3
    state = adapter.initial(next(iter(store.of("train"))))
    unit = units(state.batch)
    wait = state.batch.values[0, :, 0].expm1()
    for _ in range(4):
        state = predictor.step(state)
        unit = torch.cat([unit, units(state.batch)])
        wait = torch.cat([wait, state.batch.values[0, :, 0].expm1()])
    whole = predictor.forward(adapter._events(unit, wait, wait.cumsum(0), ("whole",)))
    last = predictor.forward(state.batch, state.cache)
    assert last["unit"].shape[1] == 1
    for head in ("unit", "wait"):
        torch.testing.assert_close(last[head][0, -1], whole[head][0, -1], rtol=1e-4, atol=1e-4)


def test_a_looped_operator_serves_a_domain() -> None:
    store = grid.make_store()
    check_domain(grid.PLUGIN, [store], operator=config(2, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
def test_looped_blocks_are_compiled_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, given = make(2, 2), batch()
    plain = operator(given)["state"]
    monkeypatch.setattr("sciml.operator.compiled.prepare_compiler", lambda where: None)
    compile_blocks(operator, backend="eager")
    torch.testing.assert_close(operator(given)["state"], plain)
    torch.compiler.reset()


@pytest.mark.parametrize("wrong", [{"loops": 0}, {"loops": 1.5}, {"depth": 0, "loops": 2}])
def test_loops_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="loops"):
        validate(OperatorConfig, {"levels": [wrong]}, where="operator")
