"""Poisson GLM: the optimum against a reference, known networks recovered, steps, held-out and silent units, files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sciml.domains.spikes.glm import GLM, Penalty, design, fit, select
from sciml.domains.spikes.history import Basis, Recording
from sciml.domains.spikes.metrics import bits_per_spike
from sciml.domains.spikes.poisson import Problem, gradient, solve
from sciml.domains.spikes.smoothed import SmoothedRate
from sciml.errors import InputError

DT_S = 0.05
BASIS = Basis(3, 0, 1.0)


def network(length: int, weights: np.ndarray, base: float = -1.0, seed: int = 0) -> torch.Tensor:
    """Counts of units with log-rate base + weights ``(target, source)`` · the bin before."""
    rng = np.random.default_rng(seed)
    x = np.zeros((length, len(weights)))
    for t in range(1, length):
        x[t] = rng.poisson(np.exp(np.minimum(base + weights @ x[t - 1], 3.0)))
    return torch.tensor(x)


def drifting(length: int = 3000, units: int = 4, seed: int = 0) -> torch.Tensor:
    """A slow rhythm that all units share, in different measure."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(length) / 60)[:, None] * rng.uniform(0.5, 1.5, units)
    return torch.tensor(rng.poisson(np.exp(wave - 0.5)).astype(np.float32))


def split(x: torch.Tensor, train: float = 0.6, validation: float = 0.8) -> Recording:
    bins = torch.arange(len(x))
    return Recording(x, bins < int(train * len(x)), (bins >= int(train * len(x))) & (bins < int(validation * len(x))))


def test_the_solver_reaches_the_optimum_of_a_reference() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 5)) * [1, 2, 0.3, 1, 1]
    y = rng.poisson(np.exp(0.4 * x[:, :1] - 0.3 * x[:, 1:2] + [0.0, -2.0, 1.0]))
    counts = torch.tensor(y.astype(float))
    counts[:100, 2] = torch.nan
    own = torch.tensor([[0, 3], [1, 3], [2, 3]])
    problem = Problem.of(torch.tensor(x), counts, own)
    penalty = torch.tensor([0.02, 0.001], dtype=torch.float64)
    found = solve(problem, 0.3, penalty, tolerance=1e-9)
    assert float(found.decrement.max()) < 1e-9
    penalties = problem.penalties(0.3, penalty)
    assert float(gradient(problem, found.weights, penalties).abs().max()) < 1e-9
    for n in range(3):
        rows = np.arange(100 if n == 2 else 0, 300)
        p = np.full(5, 0.3)
        p[n], p[3] = 0.02, 0.001
        np.testing.assert_array_equal(penalties[:, n], p)

        def objective(w: np.ndarray, n: int = n, rows: np.ndarray = rows, p: np.ndarray = p) -> float:
            eta = x[rows] @ w[:5] + w[5]
            return float((np.exp(eta) - y[rows, n] * eta).mean() + (p * w[:5] ** 2).sum() / 2)

        reference = minimize(objective, np.zeros(6), method="BFGS", options={"gtol": 1e-7})
        got = np.append(found.weights.slope[:, n], found.weights.bias[n])
        assert objective(got) <= reference.fun + 1e-10
        np.testing.assert_allclose(got, reference.x, atol=2e-5)


def test_the_solver_survives_outliers_and_a_bad_start() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, 3))
    x[7] = 40.0
    y = torch.tensor(rng.poisson(0.3, (400, 2)).astype(float))
    problem = Problem.of(torch.tensor(x), y, torch.zeros(2, 0, dtype=torch.long))
    none = torch.zeros(0)
    cold = solve(problem, 0.01, none, tolerance=1e-8)
    warm = solve(problem, 0.01, none, cold.weights._replace(slope=torch.full((3, 2), 2.0).double()), tolerance=1e-8)
    torch.testing.assert_close(cold.weights.slope, warm.weights.slope, atol=1e-6, rtol=1e-5)
    assert solve(problem, 0.01, none, cold.weights, tolerance=1e-8).iterations == 0


def test_couplings_of_a_simulated_network_are_recovered() -> None:
    rng = np.random.default_rng(3)
    truth = np.where(rng.random((6, 6)) < 0.3, rng.choice([-0.6, 0.35], (6, 6)), 0.0)
    np.fill_diagonal(truth, -0.4)
    x = network(8000, truth)
    model = fit(design([split(x, 1.0, 1.0)], BASIS, DT_S), Penalty(1e-4, 1e-4, 1e-4))
    per_count = model.coupling() / model.history.spread[:, None]
    assert per_count.shape == (6, 6, 3)
    error = per_count[:, :, 0] - torch.tensor(truth)
    assert float(error.abs().max()) < 0.2
    assert float(error.square().mean().sqrt()) < 0.06
    assert float(per_count[:, :, 1:].abs().max()) < 0.2
    assert model.provenance["decrement"] < 1e-7


def test_the_bin_predicted_from_is_never_the_bin_itself() -> None:
    x = drifting()
    model = fit(design([split(x)], Basis(10, 4, time_constants_s=(1.0,)), DT_S), Penalty(0.05, 0.01, 0.001))
    changed = x.clone()
    changed[2500:] = torch.flip(changed[2500:], (0,)) + 2
    before, after = model.log_rates(x), model.log_rates(changed)
    torch.testing.assert_close(before[:2501], after[:2501])
    assert float((before[2501:2520] - after[2501:2520]).abs().max()) > 1e-3


def test_steps_equal_the_parallel_form_and_pieces_equal_the_whole() -> None:
    x, speed = drifting().double(), torch.linspace(-1, 1, 3000, dtype=torch.float64)[:, None]
    work = design([split(x)], Basis(10, 4, time_constants_s=(1.0, 8.0), slow_scale=0.5), DT_S, covariates=[speed])
    model = fit(work, Penalty(0.05, 0.01, 0.001))
    whole = model.log_rates(x, speed)
    state = model.history.start(dtype=torch.float64)
    for t in range(50):
        torch.testing.assert_close(model.next_log_rates(state, speed[t]), whole[t])
        state = model.history.push(state, x[t])
    torch.testing.assert_close(model.log_rates(x[50:], speed[50:], state), whole[50:])
    torch.testing.assert_close(model.log_rates(x[None].float(), speed[None].float())[0].double(), whole,
                               atol=2e-4, rtol=1e-4)


def test_long_recordings_are_read_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drifting().double()
    basis = Basis(4, 2, time_constants_s=(2.0,), both_sides=True)
    models = [fit(design([split(x)], basis, DT_S, held_in=(0, 2)), Penalty(0.1, 0.1, 0.1)),
              fit(design([split(x)], replace(basis, both_sides=False), DT_S), Penalty(0.1, 0.1, 0.1))]
    whole = [m.log_rates(x) for m in models]
    monkeypatch.setattr("sciml.domains.spikes.glm.ROWS", 701)
    for m, expected in zip(models, whole):
        torch.testing.assert_close(m.log_rates(x), expected, rtol=1e-9, atol=1e-10)


def test_held_out_units_are_predicted_from_the_others_alone() -> None:
    x = drifting(units=6)
    record = split(x)
    model = select([record], DT_S, [Basis(3, 0, both_sides=True), Basis(10, 4, both_sides=True)], (0.3, 0.1, 0.03),
                   held_in=(0, 1, 2, 5))
    assert model.targets == (3, 4)
    assert not model.forward()
    hidden = x.clone()
    hidden[:, [3, 4]] = torch.nan
    got = model.log_rates(hidden)
    assert torch.equal(got, model.log_rates(x))
    test = slice(2400, None)
    null = x[record.train][:, [3, 4]].mean(0)
    assert bits_per_spike(got[test].exp(), x[test][:, [3, 4]], null) > 0.1


def test_selection_reads_validation_and_lists_what_it_tried() -> None:
    x = drifting()
    record = split(x)
    model = select([record], DT_S, [BASIS, Basis(10, 4, time_constants_s=(1.0,))], (1.0, 0.1, 0.01))
    tried = model.provenance["tried"]
    best = max(tried, key=lambda entry: entry["validation_bits_per_spike"])
    assert model.history.basis.bins == best["bins"] == 10
    assert model.provenance["coupling"] == best["coupling"]
    null = x[record.train].mean(0)
    on_validation = bits_per_spike(model.log_rates(x)[record.validation].exp(), x[record.validation], null)
    assert on_validation == pytest.approx(best["validation_bits_per_spike"], abs=2e-4)
    other = x.clone()
    other[2400:] = 9.0
    torch.testing.assert_close(select([split(other)], DT_S, [BASIS], (1.0, 0.1)).slope,
                               select([record], DT_S, [BASIS], (1.0, 0.1)).slope)
    with pytest.raises(InputError, match="validation"):
        select([Recording(x, record.train, torch.zeros_like(record.train))], DT_S, [BASIS])


def test_a_stronger_penalty_gives_smaller_weights_and_the_strongest_the_mean_rate() -> None:
    x = drifting()
    work = design([split(x)], BASIS, DT_S)
    norms = [float(fit(work, Penalty(p, p, p)).slope.norm()) for p in (1e-3, 1e-1, 10.0)]
    assert norms[0] > norms[1] > norms[2]
    constant = fit(work, Penalty(1e6, 1e6, 1e6)).log_rates(x)
    torch.testing.assert_close(constant, x[:1800].mean(0).log().expand_as(constant), atol=1e-3, rtol=1e-3)
    tight, loose = (fit(work, Penalty(0.5, own, own)).coupling() for own in (0.5, 1e-4))
    assert bool((loose.diagonal().norm(dim=0) > tight.diagonal().norm(dim=0)).all())


def test_silent_constant_and_unrecorded_units_stay_finite() -> None:
    x = drifting().clone()
    x[:, 0], x[:, 1] = 0.0, 2.0
    x[500:900, 2], x[::7, 3] = torch.nan, torch.nan
    model = fit(design([split(x)], Basis(4, 2, time_constants_s=(1.0,)), DT_S), Penalty(0.1, 0.01, 0.01))
    late = x.clone()
    late[2500:, 0] = 5.0
    for counts in (x, late, torch.full_like(x, torch.nan), torch.full_like(x, 50.0)):
        assert bool(torch.isfinite(model.log_rates(counts)).all())
        assert bool((model.log_rates(counts) <= model.ceiling.float()).all())
    torch.testing.assert_close(model.log_rates(late)[:, 0].exp(), torch.full((3000,), 0.5 / 1800))
    torch.testing.assert_close(model.log_rates(x)[:, 1].exp(), torch.full((3000,), 2.0), rtol=1e-3, atol=1e-3)


def test_one_unit_and_several_recordings() -> None:
    x = network(4000, np.array([[-0.8]]), base=0.0)
    parts = [split(x[:2000]), split(x[2000:])]
    model = fit(design(parts, BASIS, DT_S), Penalty(1e-4, 1e-4, 1e-4))
    assert model.log_rates(x).shape == (4000, 1)
    assert float(model.coupling()[0, 0, 0] / model.history.spread[0]) == pytest.approx(-0.8, abs=0.1)
    assert model.provenance["train_bins"] == 2400


def test_round_trip_and_misuse() -> None:
    x, speed = drifting(), torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    model = fit(design([split(x)], BASIS, DT_S, covariates=[speed]), Penalty(0.1, 0.1, 0.1))
    config, arrays = model.state()
    again = GLM.restore(json.loads(json.dumps(config)), arrays)
    assert torch.equal(again.log_rates(x, speed), model.log_rates(x, speed))
    assert again.targets == model.targets
    assert again.provenance == model.provenance
    with pytest.raises(InputError, match="2 covariates"):
        model.log_rates(x)
    with pytest.raises(InputError, match="sees bin t itself"):
        design([split(x)], Basis(3, 0, both_sides=True), DT_S)


def test_covariates_explain_what_they_cause() -> None:
    rng = np.random.default_rng(4)
    drive = rng.normal(size=(4000, 1)) * 3 + 10
    x = torch.tensor(rng.poisson(np.exp((drive - 10) * [[0.2, -0.1]])).astype(np.float64))
    shown = torch.tensor(drive)
    shown[::50] = torch.nan
    model = fit(design([split(x)], BASIS, DT_S, covariates=[shown]), Penalty(1.0, 1e-4, 1.0))
    got = model.slope[-1] / model.covariates.spread
    torch.testing.assert_close(got, torch.tensor([0.2, -0.1]).double(), atol=0.02, rtol=0)


def test_smoothed_rates_follow_drift_and_fall_back_to_the_constant() -> None:
    x = drifting()
    steady = torch.tensor(np.random.default_rng(5).poisson(1.0, (3000, 1)).astype(np.float32))
    record = split(torch.cat([x, steady], 1))
    model = SmoothedRate.fit([record], DT_S)
    assert model.provenance["shares"][-1] <= 0.2
    assert min(model.provenance["shares"][:4]) > 0.2
    rates, test = model.log_rates(record.counts), slice(2400, None)
    null = record.counts[record.train].mean(0)
    assert bits_per_spike(rates[test, :4].exp(), x[test], null[:4]) > 0.1
    state = model.history.start()
    for t in range(40):
        torch.testing.assert_close(model.next_log_rates(state), rates[t], atol=1e-5, rtol=1e-5)
        state = model.history.push(state, record.counts[t])
    config, arrays = model.state()
    assert torch.equal(SmoothedRate.restore(json.loads(json.dumps(config)), arrays).log_rates(record.counts), rates)
    silent = SmoothedRate.fit([split(torch.zeros(100, 2))], DT_S)
    assert math.isfinite(float(silent.log_rates(torch.zeros(5, 2)).sum()))
