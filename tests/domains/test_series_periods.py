"""Periods that are there are found, those that are not aren't; tokens are contiguous cells that end now."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from sciml.domains.series.calendar import Clock
from sciml.domains.series.config import InputConfig
from sciml.domains.series.encode import CHANNEL, Frame, Window, plain_batch
from sciml.domains.series.known import Known
from sciml.domains.series.periods import Period, discover, patch_of
from sciml.operator.config import OperatorConfig
from sciml.operator.lattice import cells_per_token, pad
from sciml.operator.stems.patch import PatchStem
from sciml.tokens import HeadSpec, TokenBatch, TokenSpec


def red(steps: int, seed: int, memory: float = 0.8, variates: int = 1) -> np.ndarray:
    """``(T, V)`` of an AR(1) process."""
    noise = np.random.default_rng(seed).normal(size=(steps, variates))
    return np.asarray(lfilter([1.0], [1.0, -memory], noise, axis=0))


def wave(steps: int, period: float, phase: float = 0.0) -> np.ndarray:
    return np.sin(2 * np.pi * np.arange(steps) / period + phase)[:, None]


def steps_of(periods: tuple[Period, ...]) -> list[float]:
    return [period.steps for period in periods]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(period=st.floats(5.0, 170.0), phase=st.floats(0.0, 6.0), seed=st.integers(0, 99))
def test_a_wave_in_red_noise_is_found_to_a_percent(period: float, phase: float, seed: int) -> None:
    series = 2 * wave(1500, period, phase) + red(1500, seed, 0.6) + 0.01 * np.arange(1500)[:, None]
    assert steps_of(discover([series]))[0] == pytest.approx(period, rel=0.01)


def test_noise_without_a_period_shows_none() -> None:
    """White, red, and the same red five times; of 60, a chance of 1 % each."""
    makes: tuple[Callable[[int], list[np.ndarray]], ...] = (
        lambda seed: [red(900, seed, 0.0, 3)], lambda seed: [red(900, seed, 0.9, 3)],
        lambda seed: [red(600, seed).repeat(5, 1)], lambda seed: [red(n, seed + n) for n in (300, 500, 150)])
    assert sum(bool(discover(make(seed))) for make in makes for seed in range(15)) <= 3


def test_harmonics_are_one_period_and_two_periods_are_two() -> None:
    square = np.sign(wave(2000, 40.0, 0.1)) + red(2000, 0, 0.0)
    assert steps_of(discover([square])) == [pytest.approx(40, rel=0.01)]
    both = wave(3000, 24.0) + 0.5 * wave(3000, 168.0) + 0.4 * wave(3000, 12.0) + red(3000, 1, 0.0)
    found = discover([both])
    assert steps_of(found) == [pytest.approx(24, rel=0.01), pytest.approx(168, rel=0.01)]
    assert found[0].share == pytest.approx((0.5 + 0.08) / (0.5 + 0.125 + 0.08 + 1), abs=0.05)


def test_pieces_variates_and_gaps() -> None:
    """Of pieces of unequal length; with 30 % missing; in one of four variates, beside a constant one."""
    whole = 1.5 * wave(2000, 24.0) + red(2000, 2)
    assert round(discover([whole[:700], whole[650:1500], whole[1500:]])[0].steps) == 24
    holes = np.where(np.random.default_rng(0).random(whole.shape) < 0.3, np.nan, whole)
    assert round(discover([holes])[0].steps) == 24
    several = np.concatenate([3 * wave(2000, 24.0) + red(2000, 3), red(2000, 4, 0.5, 2), np.full((2000, 1), 7.0)], 1)
    assert round(discover([several])[0].steps) == 24
    np.testing.assert_allclose(steps_of(discover([several])), steps_of(discover([1e3 * several[:, ::-1] + 5])))


@pytest.mark.parametrize("pieces", [[], [np.zeros((500, 2))], [np.full((500, 1), np.nan)], [red(9, 0)],
                                    [np.zeros((500, 0))], [np.arange(500.0)[:, None]]])
def test_what_has_no_period_gives_none(pieces: list[np.ndarray]) -> None:
    assert discover(pieces) == ()


@pytest.mark.parametrize(("period", "most", "patch"), [
    (24.0, 96, 24), (23.9, 96, 24), (168.0, 96, 24), (144.0, 96, 24), (96.0, 96, 24), (52.1, 36, 26), (7.0, 96, 7),
    (365.2, 96, 73), (24.0, 18, 12), (53.0, 36, 24), (53.0, 20, 20)])
def test_a_patch_is_a_period_or_a_part_of_one(period: float, most: int, patch: int) -> None:
    assert patch_of([Period(period, 0.5), Period(17.0, 0.1)], most=most) == patch


def window(past: int, horizon: int, generator: torch.Generator) -> Window:
    values = torch.randn(2, 3, past + horizon, generator=generator)
    given_ = (torch.arange(past + horizon) < past).expand_as(values)
    ticks = np.arange(past + horizon)[None] + np.array([[100], [200]])
    return Window(values, torch.ones_like(given_), given_, past, ticks, np.arange(3), ("a", "b"),
                  torch.randn(2, past + horizon, 1, generator=generator))


KNOWN = Known("d", ("a", "b", "c"), ("1",) * 3, np.array([[0.0] * 3, [1.0] * 3]), np.ones(3), Clock("numeric", 1, 1.0))


def batch_of(given_: Window) -> TokenBatch:
    return plain_batch(KNOWN, Frame(96, 1.0, (), (), (), InputConfig()), given_).batch


@pytest.mark.parametrize(("past", "horizon", "patch"), [(96, 48, 24), (52, 24, 26), (48, 7, 12), (7, 30, 7)])
def test_a_token_is_contiguous_cells_and_one_ends_now(past: int, horizon: int, patch: int) -> None:
    """By the slopes of the stem: which cells of the batch each token hears of."""
    spec = TokenSpec("series", (CHANNEL,), {"value": HeadSpec("lattice", (CHANNEL,))},
                     identities={"d/variate": ("a", "b", "c")}, patch=patch)
    torch.manual_seed(0)
    stem = PatchStem(spec, OperatorConfig())
    batch = batch_of(window(past, horizon, torch.Generator().manual_seed(0)))
    sizes = cells_per_token(batch.axes, spec)
    padded, now = pad(batch, sizes), -(-past // patch) * patch

    def tokens(cells: torch.Tensor) -> torch.Tensor:
        values = torch.zeros_like(padded.values)
        values[0, 1, :, 0] = cells
        found: torch.Tensor = stem(TokenBatch("series", "d", values, (CHANNEL,), padded.axes), sizes)
        return found[0, 1]

    slopes = torch.autograd.functional.jacobian(tokens, torch.zeros(padded.lattice[1])).abs().amax(1)  # (tokens, cells)
    for token, heard in enumerate(slopes > 0):
        assert heard.nonzero()[:, 0].tolist() == list(range(token * patch, (token + 1) * patch))
    when = padded.axes[1].coord[0, :, 0]
    assert now % patch == 0
    assert when[now - 1] == pytest.approx(0.0, abs=1e-6)
    assert int(batch.axes[1].coord.shape[1]) == now + horizon
