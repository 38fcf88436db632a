"""The gate between a member's own history and the others: closed it is axial attention alone, open it reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from mixer_laws import (
    assert_a_permuted_set_is_permuted,
    assert_autocast_is_near,
    assert_equals_reference,
    assert_only_relative_coordinates_matter,
    assert_packed_samples_are_apart,
    assert_padding_is_not_seen,
    assert_second_derivatives_equal,
    lengthened,
    noise,
    random,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sciml.errors import InputError
from sciml.mixers.axial import Axial
from sciml.mixers.contract import make_mixer
from sciml.mixers.geometry import Geometry
from sciml.mixers.variate_gate import VariateGate
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.tokens import Axis, HeadSpec, TokenBatch, TokenSpec, identity, space, time

WIDTH, HEADS = 16, 2
TIME = time("time", torch.tensor([0.0, 0.1, 0.4, 0.8, 0.9], dtype=torch.float64))
VARIATES = Axis("variate", "set", torch.zeros(1, 4, 0, dtype=torch.float64))


def make(*, own: bool = True) -> VariateGate:
    torch.manual_seed(0)
    return VariateGate(WIDTH, HEADS, own=own)


def shut(mixer: VariateGate, logit: float = -3.0) -> VariateGate:
    """With the gate closed (or, at 3, wide open) whatever the tokens say."""
    nn.init.zeros_(mixer.gate.weight)
    nn.init.constant_(mixer.gate.bias, logit)
    return mixer


def lattice(kind: str) -> tuple[Axis, ...]:
    weighed = replace(VARIATES, measure=torch.tensor([[0.5, 0.2, 0.0, 0.3]]))
    return {
        "series": (VARIATES, TIME), "time first": (TIME, VARIATES), "set": (VARIATES,), "history": (TIME,),
        "causal": (VARIATES, replace(TIME, causal=True)), "two sets": (VARIATES, TIME, replace(VARIATES, name="site")),
        "weighed": (weighed, lengthened(TIME, 2)),
        "of their own": (replace(weighed, coord=torch.zeros(3, 4, 0), measure=random(3, 4)), TIME),
        "none but one": (replace(VARIATES, measure=torch.tensor([[0.0, 0.2, 0.0, 0.0]])), TIME),
        "packed": (Axis("atoms", "set", random(1, 6, 3), segment=torch.tensor([[0, 0, 0, 1, 2, 2]])), TIME),
        "packed time": (VARIATES, replace(TIME, segment=torch.tensor([[0, 0, 1, 1, 1]]))),
        "places": (Axis("station", "set", random(2, 5, 3), measure=random(2, 5)), TIME,
                   space("x", torch.arange(3) / 2)),
    }[kind]


KINDS = ("series", "time first", "set", "history", "causal", "two sets", "weighed", "of their own", "none but one",
         "packed", "packed time", "places")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_equals_its_reference_and_its_gradients_do(kind: str, own: bool) -> None:
    mixer, axes = make(own=own), lattice(kind)
    slopes = assert_equals_reference(mixer, noise(axes, WIDTH), Geometry(axes))
    used = {name for (name, _), slope in zip(mixer.named_parameters(), slopes) if (slope != 0).any()}
    assert used == mixer.parameters_of(axes) or kind == "none but one"


@pytest.mark.parametrize("kind", ["series", "weighed", "causal", "packed"])
def test_second_derivatives_equal_the_references(kind: str) -> None:
    axes = lattice(kind)
    assert_second_derivatives_equal(make(), noise(axes, WIDTH), Geometry(axes, second_order=True))


def axial_like(mixer: VariateGate) -> Axial:
    axial = Axial(WIDTH, HEADS)
    axial.load_state_dict({k: v for k, v in mixer.state_dict().items() if not k.startswith("gate.")})
    return axial.to(mixer.gate.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_closed_it_is_axial_attention_along_time_of_each_variate_alone(dtype: torch.dtype) -> None:
    mixer = shut(make()).to(dtype)
    axial, x = axial_like(mixer), torch.randn(3, 4, 5, WIDTH, dtype=dtype)
    when = replace(TIME, coord=TIME.coord.to(dtype))
    y = mixer(x, Geometry((replace(VARIATES, coord=VARIATES.coord.to(dtype)), when)))[0]
    alone = axial(x.flatten(0, 1), Geometry((when,)))[0].unflatten(0, (3, 4))
    assert torch.equal(y, alone)
    for v in range(4):
        torch.testing.assert_close(y[:, v], axial(x[:, v], Geometry((when,)))[0], rtol=0, atol=1e-6)


def test_wide_open_it_reads_the_others_and_not_itself() -> None:
    """Of two members each is read whole, whatever the queries and keys are."""
    mixer, x = shut(make(own=False), 3.0), torch.randn(1, 2, WIDTH)
    pair = Axis("variate", "set", torch.zeros(1, 2, 0))
    value = mixer.projections.split(x)[2].flatten(2)
    expected = mixer.projections.out(mixer.gain(value, 4)).flip(1)
    torch.testing.assert_close(mixer(x, Geometry((pair,)))[0], expected)


def test_half_open_it_is_half_of_what_open_adds() -> None:
    x, geometry = torch.randn(2, 4, 5, WIDTH), Geometry((VARIATES, TIME))
    closed, half, wide = (shut(make(), logit)(x, geometry)[0] for logit in (-3.0, 0.0, 3.0))
    torch.testing.assert_close(half, (closed + wide) / 2)
    assert not torch.allclose(closed, wide)


def test_a_variate_without_others_reads_nothing() -> None:
    x, mixer = torch.randn(2, 1, 5, WIDTH), shut(make(), 3.0)
    one = Axis("variate", "set", torch.zeros(1, 1, 0))
    alone = axial_like(mixer)(x[:, 0], Geometry((TIME,)))[0]
    torch.testing.assert_close(mixer(x, Geometry((one, TIME)))[0][:, 0], alone)
    padded = torch.cat([x, torch.randn(2, 2, 5, WIDTH)], 1)
    y = mixer(padded, Geometry((lengthened(one, 2), TIME)))[0]
    torch.testing.assert_close(y[:, :1], mixer(x, Geometry((one, TIME)))[0])


def test_openness_is_of_the_variate_and_says_what_forward_used() -> None:
    mixer, x, geometry = make(), torch.randn(2, 4, 5, WIDTH), Geometry((VARIATES, TIME))
    nn.init.normal_(mixer.gate.weight)
    g = mixer.openness(x, geometry)
    assert g.shape == (2, 4, 1, HEADS)
    assert ((g >= 0) & (g <= 1)).all()
    own, others = shut(make()), make(own=False)
    others.gate.load_state_dict(mixer.gate.state_dict())
    both = mixer(x, geometry)[0]
    torch.testing.assert_close(both, own(x, geometry)[0] + others(x, geometry)[0])
    for logit, value in ((-2.5, 0.0), (2.5, 1.0), (0.0, 0.5)):
        torch.testing.assert_close(shut(make(), logit).openness(x, geometry), torch.full_like(g, value))


def test_openness_follows_the_content_of_tokens_alone() -> None:
    """Two variates of equal tokens have equal gates, a third one another; along a causal axis every moment has one."""
    mixer, x = make(), torch.randn(1, 4, 5, WIDTH)
    x[:, 1] = x[:, 0]
    g = mixer.openness(x, Geometry((VARIATES, TIME)))
    assert torch.equal(g[:, 0], g[:, 1])
    assert not torch.equal(g[:, 0], g[:, 2])
    assert mixer.openness(x, Geometry(lattice("causal"))).shape == (1, 4, 5, HEADS)


def test_openness_does_not_see_padding() -> None:
    mixer, x = make(), torch.randn(2, 4, 5, WIDTH)
    longer = torch.cat([x, 9 * torch.randn(2, 4, 3, WIDTH)], 2)
    torch.testing.assert_close(mixer.openness(longer, Geometry((VARIATES, lengthened(TIME, 3)))),
                               mixer.openness(x, Geometry((VARIATES, lengthened(TIME, 0)))))


@pytest.mark.parametrize("axes", [(TIME, VARIATES), (VARIATES, TIME)], ids=["time", "variates"])
def test_cells_of_measure_zero_are_not_seen(axes: tuple[Axis, ...]) -> None:
    sizes = [axis.size for axis in axes]
    assert_padding_is_not_seen(make(), torch.randn(2, *sizes, WIDTH), axes, 2)


def test_laws_of_sets() -> None:
    stations = Axis("station", "set", random(1, 5, 3), measure=random(1, 5, seed=1))
    assert_a_permuted_set_is_permuted(make(), stations, WIDTH, (TIME,))
    assert_only_relative_coordinates_matter(make(), torch.randn(2, 5, WIDTH), stations)
    assert_packed_samples_are_apart(make(), WIDTH, (TIME,))


def test_a_pair_bias_says_whom_to_read_and_is_differentiated() -> None:
    mixer, axes = make(), lattice("packed")
    bias, x = (3 * torch.randn(1, HEADS, 6, 6)).requires_grad_(), noise(axes, WIDTH)
    slopes = []
    for run in (lambda g: mixer(x, g)[0], lambda g: mixer.reference(x, g)):
        y = run(Geometry(axes, pair_bias=lambda heads: bias))
        slopes.append(torch.autograd.grad(y.square().sum(), bias)[0])
    torch.testing.assert_close(*slopes)
    assert (slopes[0][0, :, :3, :3] != 0).any()
    assert (slopes[0].diagonal(dim1=2, dim2=3) == 0).all()


@pytest.mark.parametrize("chunks", [(1,) * 5, (2, 1, 2)])
def test_steps_with_memory_equal_the_training_form(chunks: tuple[int, ...]) -> None:
    mixer, x, causal = make(), torch.randn(2, 4, 5, WIDTH), replace(TIME, causal=True)
    whole, state, start, parts = mixer(x, Geometry((VARIATES, causal)))[0], (), 0, []
    for size in chunks:
        part = slice(start, start + size)
        own = replace(causal, coord=causal.coord[:, part])
        y, state = mixer(x[:, :, part], Geometry((VARIATES, own)), state)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 2), whole)


def test_the_future_has_no_influence_and_without_own_nothing_is_kept() -> None:
    mixer, x, axes = make(), torch.randn(1, 4, 5, WIDTH, requires_grad=True), lattice("causal")
    for t in range(5):
        slope, = torch.autograd.grad(mixer(x, Geometry(axes))[0][:, :, t].square().sum(), x)
        by_time = slope.abs().amax((0, 1, 3))
        assert (by_time[t + 1:] == 0).all()
        assert (by_time[:t + 1] > 0).all()
    assert make(own=False)(x, Geometry(axes), ())[1] == ()


class Sizes(TorchDispatchMode):
    """Elements that operations made, in all."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel += sum(t.numel() for t in (result if isinstance(result, tuple | list) else (result,))
                          if isinstance(t, Tensor))
        return result


def test_reading_the_others_is_linear_in_time() -> None:
    def work(n: int) -> int:
        geometry = Geometry((VARIATES, time("time", torch.arange(n) / 10)))
        mixer = make(own=False)
        mixer.prepare(geometry)
        with Sizes() as sizes:
            mixer(torch.randn(1, 4, n, WIDTH), geometry)
        return sizes.numel
    assert work(400) - work(200) == 2 * (work(200) - work(100)) > 0


def test_bfloat16_is_near_and_options_are_checked() -> None:
    mixer, single = make_mixer("variate_gate", {}, 32, 2).float(), torch.float32
    axes = (replace(VARIATES, coord=torch.zeros(1, 4, 0, dtype=single)), replace(TIME, coord=TIME.coord.to(single)))
    assert_autocast_is_near(mixer, torch.randn(2, 4, 5, 32, dtype=single), axes)
    with pytest.raises(InputError, match="own"):
        make_mixer("variate_gate", {"open": True}, 16, 2)


def forecaster() -> tuple[Operator, Callable[[Tensor, list[int]], Tensor]]:
    """An operator on two scales whose mixers are the gate and a filter along time, and its forecasts ``(V, T)``."""
    spec = TokenSpec("series", ("series/value",), {"value": HeadSpec("lattice", ("series/value",))},
                     identities={"d/variate": ("a", "b", "c", "d")}, patch=3)
    levels = [{"width": width, "depth": 1, "depth_up": up, "head_width": 8, "mixers": ["variate_gate", "local"]}
              for width, up in ((16, 1), (24, 0))]
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate({"levels": levels}), {"series": spec}).eval()
    nn.init.normal_(next(operator.ports["series"].heads["value"].outputs.parameters()))  # type: ignore[union-attr, index]

    def forecast(values: Tensor, members: list[int]) -> Tensor:
        axes = (identity("variate", torch.tensor(members), "d/variate"), time("time", torch.arange(24) / 12))
        batch = TokenBatch("series", "d", values[None, ..., None], ("series/value",), axes)
        with torch.no_grad():
            return operator(batch)["value"][0, ..., 0]
    return operator, forecast


def test_with_closed_gates_a_forecast_does_not_depend_on_other_variates_and_with_open_ones_it_does() -> None:
    operator, forecast = forecaster()
    values, members = torch.randn(4, 24), [0, 1, 2, 3]
    replaced = torch.cat([values[:1], torch.randn(3, 24)])
    for logit, same in ((-3.0, True), (3.0, False)):
        for gate in (m for m in operator.modules() if isinstance(m, VariateGate)):
            shut(gate, logit)
        before = forecast(values, members)
        assert torch.equal(forecast(replaced, members)[0], before[0]) is same
        assert torch.equal(forecast(values[[0, 2, 3, 1]], members)[0], before[0]) is same
        torch.testing.assert_close(forecast(values[[0, 3, 1, 2]], [0, 3, 1, 2])[0], before[0])  # a set has no order
        assert bool(torch.allclose(forecast(values[:1], members[:1])[0], before[0])) is same
