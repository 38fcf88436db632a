"""History features: the definition bin by bin, causality, and that one bin at a time gives what all at once gives."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.spikes.history import CHUNK, Basis, History, HistoryState, Recording
from sciml.errors import InputError

DT_S = 0.05


def counts(length: int, units: int, seed: int = 0, missing: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.uniform(0.1, 2, units), (length, units)).astype(np.float64)
    x[rng.random(x.shape) < missing] = np.nan
    return torch.tensor(x)


def recording(x: torch.Tensor, train: float = 0.7) -> Recording:
    bins = torch.arange(len(x))
    return Recording(x, bins < int(train * len(x)), bins >= int(train * len(x)))


def test_features_are_bumps_of_standardised_counts_and_logs_of_averages() -> None:
    x = counts(200, 3, missing=0.05)
    basis = Basis(6, 3, time_constants_s=(0.2, 1.0), slow_scale=0.5)
    history = History.fit([recording(x)], basis, DT_S)
    train = x[:140].numpy()
    root = np.sqrt(train)
    np.testing.assert_allclose(history.rate, np.nanmean(train, 0))
    np.testing.assert_allclose(history.centre, np.nanmean(root, 0))
    np.testing.assert_allclose(history.spread, np.maximum(np.nanstd(root, 0), math.sqrt(10 / 140)))
    got = history.features(x)[0].unflatten(-1, (3, 5)).numpy()
    z = np.nan_to_num((np.sqrt(x.numpy()) - history.centre.numpy()) / history.spread.numpy())
    rate, average, kernels = history.rate.numpy(), np.zeros((2, 3)), basis.kernels()
    for t in range(len(x)):
        past = np.stack([z[t - lag] if t >= lag else np.zeros(3) for lag in range(6, 0, -1)])
        np.testing.assert_allclose(got[t, :, :3], (kernels @ past).T, atol=1e-12)
        for s, tau in enumerate(basis.time_constants_s):
            half = DT_S / (2 * tau)
            np.testing.assert_allclose(got[t, :, 3 + s], 0.5 * np.log((rate + average[s] + half) / (rate + half)),
                                       atol=1e-12)
            keep = math.exp(-DT_S / tau)
            average[s] = keep * average[s] + (1 - keep) * np.nan_to_num(x[t].numpy() - rate)


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, CHUNK + 3), cut=st.integers(0, CHUNK + 3), bins=st.integers(1, 7),
       bumps=st.integers(0, 7), slow=st.integers(0, 2), batch=st.integers(0, 1))
def test_one_bin_at_a_time_equals_all_at_once(length: int, cut: int, bins: int, bumps: int, slow: int,
                                              batch: int) -> None:
    basis = Basis(bins, min(bumps, bins), time_constants_s=(0.3, 40.0)[:slow])
    history = History.fit([recording(counts(80, 2))], basis, DT_S)
    x = counts(length, 2, seed=length, missing=0.1).expand(*[3] * batch, -1, -1)
    full, last = history.features(x)
    assert full.shape == (*[3] * batch, length, history.num_features)
    state = history.start(*[3] * batch, dtype=torch.float64)
    for t in range(length):
        torch.testing.assert_close(history.now(state), full[..., t, :], rtol=1e-9, atol=1e-11)
        state = history.push(state, x[..., t, :])
    cut = min(cut, length)
    head, middle = history.features(x[..., :cut, :])
    tail, end = history.features(x[..., cut:, :], middle)
    torch.testing.assert_close(torch.cat([head, tail], -2), full, rtol=1e-9, atol=1e-11)
    for a, b, c in zip(state, last, end):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(c, b, rtol=1e-9, atol=1e-11)


def test_causal_features_ignore_the_present_and_both_sides_see_it() -> None:
    x = counts(40, 2)
    changed = x.clone()
    changed[20] += 3
    for both, first in ((False, 21), (True, 16)):
        history = History.fit([recording(x)], Basis(4, 2, time_constants_s=(1.0,), both_sides=both), DT_S)
        moved = (history.features(changed)[0] - history.features(x)[0]).abs().amax(-1) > 1e-12
        assert int(moved.nonzero()[0]) == first
        assert bool(moved[24])
    ahead = history.features(x[:10], after=x[10:])[0]
    torch.testing.assert_close(ahead, history.features(x)[0][:10])


@pytest.mark.parametrize("basis", [Basis(20, 8), Basis(5, 0), Basis(7, 1), Basis(40, 10), Basis(6, 3, both_sides=True)])
def test_kernels_sum_to_one_and_reach_every_bin(basis: Basis) -> None:
    kernels = basis.kernels()
    assert len(kernels) == basis.per_unit()
    np.testing.assert_allclose(kernels.sum(1), 1)
    assert kernels.min() >= 0
    assert (kernels.sum(0) > 0).all()


def test_a_long_gap_forgets_and_a_constant_or_silent_unit_stays_finite() -> None:
    x = torch.zeros(400, 3, dtype=torch.float64)
    x[:, 1] = 2.0
    x[::3, 2] = 1.0
    history = History.fit([recording(x)], Basis(3, 0, time_constants_s=(0.5,)), DT_S)
    assert bool(torch.isfinite(history.features(x)[0]).all())
    assert float(history.features(x)[0].unflatten(-1, (3, 4))[:, :2].abs().max()) < 1e-12
    busy = HistoryState(torch.ones(3, 3).double(), torch.ones(3, 1).double())
    gap = torch.full((400, 3), torch.nan, dtype=torch.float64)
    assert float(history.features(gap, busy)[0][-1].abs().max()) < 1e-6


def test_round_trip_through_json_and_arrays() -> None:
    history = History.fit([recording(counts(90, 4))], Basis(5, 2, time_constants_s=(1.0, 9.0)), DT_S)
    config, arrays = history.state()
    again = History.restore(json.loads(json.dumps(config)), arrays)
    x = counts(30, 4, seed=5)
    assert again.basis == history.basis
    assert torch.equal(again.features(x)[0], history.features(x)[0])


def test_mistakes_are_named() -> None:
    for wrong in ({"bins": 0}, {"bins": 3, "bumps": 4}, {"power": 0.0}, {"time_constants_s": (-1.0,)}):
        with pytest.raises(InputError, match="Basis"):
            Basis(**wrong)
    x = counts(20, 2)
    mask = torch.ones(20, dtype=torch.bool)
    with pytest.raises(InputError, match="one split"):
        Recording(x, mask, mask)
    with pytest.raises(InputError, match="masks"):
        Recording(x, mask[:5], mask)
    with pytest.raises(InputError, match="counts ≥ 0"):
        History.fit([recording(x - 5)], Basis(2, 0), DT_S)
    with pytest.raises(InputError, match="no recorded bin"):
        History.fit([recording(x * torch.nan)], Basis(2, 0), DT_S)
    history = History.fit([recording(x)], Basis(2, 0, both_sides=True), DT_S)
    with pytest.raises(InputError, match="causal"):
        history.now(history.start())
