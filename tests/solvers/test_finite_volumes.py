"""Solvers on cells with ends: the builder's own answer, derivatives, finer cells, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml.data.builders import euler as gas
from sciml.data.builders import wave as sound
from sciml.data.builders._blocks import BOUNDARIES
from sciml.errors import InputError
from sciml.solvers import Given, ends, euler, wave
from sciml.solvers._cells import coarser, finer

ENDS: tuple[gas.Boundary, ...] = ("open", "wall", "periodic")


def codes(x: tuple[str, str], y: tuple[str, str]) -> dict[str, Tensor]:
    return {f"boundary_{axis}_{end}": torch.tensor([float(BOUNDARIES[kind])]) for axis, kinds in (("x", x), ("y", y))
            for end, kind in zip(("low", "high"), kinds) if kind != "periodic"}


def flow(border: gas.Boundary, n: int, trajectory: int = 0) -> Given:
    """Quadrants, moving through cells of a box twice as long as wide."""
    state = torch.from_numpy(gas.initial(gas.Options(resolution=max(n, 8)), trajectory))[:, :n, :n][None]
    parameters = {"heat_capacity_ratio": torch.full((1,), 1.4)} | codes((border, border), (border, border))
    states = {name: state[:, i] for i, name in enumerate(gas.STATES)}
    return Given(states, {}, parameters, (2.0, 1.0), (border == "periodic",) * 2)


def pulses(boundary_y: tuple[Any, Any], n: int) -> Given:
    options = sound.Options(resolution=n, solve_resolution=n, boundary_y=boundary_y)
    p, rate = torch.from_numpy(sound.initial(options, 0))[None].unbind(-1)
    speed = torch.from_numpy(sound.medium(options, 0))[None]
    return Given({"pressure": p, "pressure_rate": rate}, {"speed": speed}, codes(options.boundary_x, boundary_y),
                 (1.0, 1.0), (True, boundary_y[0] == "periodic"))


@pytest.mark.parametrize("border", ENDS)
def test_flow_is_the_builders_own(border: gas.Boundary) -> None:
    given = flow(border, 24)
    first = torch.stack(list(given.states.values()), 1)
    truth = gas.advance(first.numpy(), 0.1, 1, ends=border, size=(2.0, 1.0))[:, 0]
    found = torch.stack(list(euler.advance(given, 0.1).values()), 1)
    assert np.abs(truth - first.numpy()).max() > 0.1
    np.testing.assert_allclose(found.numpy(), truth, atol=1e-6)


@pytest.mark.parametrize("boundary_y", [("wall", "open"), ("open", "wall"), ("periodic", "periodic")])
def test_sound_is_the_builders_own(boundary_y: tuple[Any, Any]) -> None:
    given = pulses(boundary_y, 24)
    truth = sound.step(torch.stack(list(given.states.values()), -1), 0.3, speed=given.forcings["speed"],
                       boundary_y=boundary_y)
    found = wave.advance(given, 0.3)
    assert torch.equal(torch.stack([found["pressure"], found["pressure_rate"]], -1), truth)


@pytest.mark.parametrize("border", ENDS)
def test_derivatives_of_flow(border: gas.Boundary) -> None:
    """Of states without two equal neighbours: limiters have kinks there."""
    given, draws = flow(border, 4), torch.Generator().manual_seed(0)
    first = torch.stack(list(given.states.values()), 1)
    first = first + 0.1 * torch.rand(first.shape, generator=draws, dtype=torch.float64)

    def later(*states: Tensor) -> Tensor:
        asked = Given(dict(zip(gas.STATES, states)), {}, given.parameters, given.lengths, given.periodic)
        return torch.stack(list(euler.advance(asked, 0.1).values()))

    assert torch.autograd.gradcheck(later, [state.clone().requires_grad_() for state in first.unbind(1)],
                                    fast_mode=True)


@pytest.mark.parametrize("refine", [1, 2])
def test_uniform_flow_has_derivatives(refine: int) -> None:
    """Nothing changes from cell to cell, nor anything in time."""
    given = flow("open", 6)
    states = {name: torch.full_like(state, 0.5).requires_grad_() for name, state in given.states.items()}
    found = euler.advance(Given(states, {}, given.parameters, given.lengths, given.periodic), 0.1, refine=refine)
    for name, state in states.items():
        torch.testing.assert_close(found[name].detach(), torch.full_like(state, 0.5))
    grads = torch.autograd.grad(torch.stack(list(found.values())).square().sum(), list(states.values()))
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    assert any(bool((grad != 0).any()) for grad in grads)


def test_derivatives_of_sound() -> None:
    given = pulses(("wall", "open"), 8)

    def later(p: Tensor, rate: Tensor, speed: Tensor) -> Tensor:
        asked = Given({"pressure": p, "pressure_rate": rate}, {"speed": speed}, given.parameters, given.lengths,
                      given.periodic)
        return torch.stack(list(wave.advance(asked, 0.05, refine=2).values()))

    inputs = [t[:, :6, :6].clone().requires_grad_() for t in (*given.states.values(), given.forcings["speed"])]
    assert torch.autograd.gradcheck(later, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("factor", [2, 3])
def test_parts_of_cells_average_to_them(factor: int) -> None:
    field = torch.rand(2, 4, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    for periodic in ((True, True), (True, False), (False, False)):
        torch.testing.assert_close(coarser(finer(field, factor, periodic), factor), field)
    for border in ENDS:
        torch.testing.assert_close(coarser(euler.finer(field, factor, border), factor), field)


def test_parts_of_smooth_cells_are_of_order_five() -> None:
    def error(n: int) -> float:
        edges = torch.arange(2 * n + 1).double() / (2 * n) * 2 * torch.pi
        parts = (torch.sin(edges[1:]) - torch.sin(edges[:-1])) * n / torch.pi
        parts = parts[:, None] * torch.ones(2 * n)
        return float((finer(coarser(parts, 2), 2, (True, True)) - parts).abs().max())

    assert error(16) > 1e-7
    assert error(32) < error(16) / 2**4.5


def test_finer_cells_come_closer() -> None:
    """Towards what is solved on four times as many cells along each axis, from means over the coarse ones."""
    fine = flow("open", 64)
    truth = torch.stack(list(euler.advance(fine, 0.1).values()), 1)
    start = gas.primitive_of(coarser(gas.conserved(torch.stack(list(fine.states.values()), 1), 1.4), 4), 1.4)
    truth = gas.primitive_of(coarser(gas.conserved(truth, 1.4), 4), 1.4)
    coarse = Given(dict(zip(gas.STATES, start.unbind(1))), {}, fine.parameters, fine.lengths, fine.periodic)
    errors = [float((torch.stack(list(euler.advance(coarse, 0.1, refine=refine).values()), 1) - truth).norm())
              for refine in (1, 2)]
    assert errors[1] < 0.7 * errors[0]


def test_what_a_solver_does_not_know_is_refused() -> None:
    given = flow("open", 6)
    with pytest.raises(InputError, match=r"\[boundary_x\]: found open, neumann; expected each one of wall, open"):
        ends(Given({}, {}, {**given.parameters, "boundary_x_high": torch.tensor([4.0])}, (1.0, 1.0), (False, True)),
             "wall", "open")
    with pytest.raises(InputError, match=r"\[boundary_y_low\]: found 0 to 1 in one batch"):
        ends(Given({}, {}, {**given.parameters, "boundary_y_low": torch.tensor([0.0, 1.0])}, (1.0, 1.0), (True, False)),
             "wall", "open")
    mixed = Given(given.states, {}, given.parameters, given.lengths, (True, False))
    with pytest.raises(InputError, match="found open, periodic; expected the same at all ends"):
        euler.advance(mixed, 0.1)
    with pytest.raises(InputError, match=r"\[boundary_x_low\]: found parameters"):
        euler.advance(Given(given.states, {}, {"heat_capacity_ratio": torch.ones(1)}, (1.0, 1.0), (False, False)), 0.1)
    oblong = pulses(("wall", "open"), 8)
    with pytest.raises(InputError, match="expected squares"):
        wave.advance(Given(oblong.states, oblong.forcings, oblong.parameters, (1.0, 2.0), oblong.periodic), 0.1)


def test_a_flow_that_is_lost_is_said_to_be() -> None:
    given = flow("open", 6)
    with pytest.raises(FloatingPointError, match="isn't positive"):
        euler.advance(Given({**given.states, "pressure": -given.states["pressure"]}, {}, given.parameters,
                            given.lengths, given.periodic), 0.1)
