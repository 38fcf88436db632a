"""Decoders: normal equations and stationarity against references, recovery, missing behaviour, windows, files."""

import json

import numpy as np
import pytest
import torch

from sciml.domains.spikes.decoders import LogisticDecoder, RidgeDecoder, Window, Windowed
from sciml.domains.spikes.history import Recording
from sciml.domains.spikes.metrics import mean_r2
from sciml.errors import InputError


def tuned(length: int = 1500, units: int = 6, seed: int = 0) -> tuple[Recording, torch.Tensor]:
    """Rates follow a smooth two-dimensional behaviour three bins later."""
    rng = np.random.default_rng(seed)
    slow = np.apply_along_axis(np.convolve, 0, rng.normal(size=(length + 40, 2)), np.ones(20) / 5, "same")[20:-20]
    preferred = rng.normal(size=(2, units))
    counts = rng.poisson(np.exp(np.roll(slow, 3, 0) @ preferred * 0.5))
    bins = torch.arange(length)
    record = Recording(torch.tensor(counts).double(), bins < 900, (bins >= 900) & (bins < 1200))
    return record, torch.tensor(slow) * 7 + 3


def assert_normal(model: RidgeDecoder, record: Recording, behaviour: torch.Tensor, mask: torch.Tensor, p: int) -> None:
    """The normal equations of component p on the bins of the mask."""
    rows = model.windowed.rows(record.counts, 0, len(record.counts))[mask]
    x, y = rows - rows.mean(0), behaviour[mask][:, p]
    residual = x.T @ (y - y.mean() - x @ model.weights[:, p])
    penalty = model.provenance["strengths"][p] * (x.T @ x).trace() / x.shape[1]
    torch.testing.assert_close(residual, penalty * model.weights[:, p], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.offset[p], y.mean() - rows.mean(0) @ model.weights[:, p])


def test_ridge_solves_its_normal_equations() -> None:
    record, behaviour = tuned()
    model = RidgeDecoder.fit([record], [behaviour], [Window(2, 1)], (0.1,))
    rows = model.windowed.rows(record.counts, 0, 1500)
    assert rows.shape == (1500, 6 * 4)
    x, y = rows[:900].numpy(), behaviour[:900].numpy()
    x = x - x.mean(0)
    w = np.linalg.solve(x.T @ x + 0.1 * np.trace(x.T @ x) / 24 * np.eye(24), x.T @ (y - y.mean(0)))
    np.testing.assert_allclose(model.weights, w, atol=1e-9)
    expected = (rows.numpy() - rows[:900].numpy().mean(0)) @ w + y.mean(0)
    np.testing.assert_allclose(model.predict(record.counts), expected, atol=1e-9)


def test_ridge_decodes_on_the_side_where_the_information_is() -> None:
    record, behaviour = tuned()
    model = RidgeDecoder.fit([record], [behaviour], [Window(8, 0), Window(0, 8)])
    assert model.windowed.window == Window(0, 8)
    assert len(model.provenance["tried"]) == 2
    test = slice(1220, None)
    assert mean_r2(model.predict(record.counts)[test], behaviour[test]) > 0.6


def test_unknown_behaviour_takes_no_part_and_refitting_uses_both_splits() -> None:
    record, behaviour = tuned()
    holes = behaviour.clone()
    holes[100:300, 0] = torch.nan
    model, other = (RidgeDecoder.fit([record], [b], [Window(2, 2)]) for b in (holes, behaviour))
    assert bool(torch.isfinite(model.predict(record.counts)).all())
    torch.testing.assert_close(model.weights[:, 1], other.weights[:, 1], atol=1e-12, rtol=1e-12)
    assert_normal(model, record, behaviour, record.train & ~torch.isnan(holes[:, 0]), 0)
    again = RidgeDecoder.fit([record], [behaviour], [Window(2, 2)], refit=True)
    assert again.provenance["strengths"] == other.provenance["strengths"]
    for p in range(2):
        assert_normal(again, record, behaviour, record.train | record.validation, p)
    with pytest.raises(InputError, match="two or more known values"):
        RidgeDecoder.fit([record], [behaviour * torch.nan])


def test_windows_are_padded_with_the_mean_and_ignore_what_is_outside() -> None:
    record, _ = tuned()
    windowed = Windowed.fit([record], Window(3, 2))
    whole = windowed.rows(record.counts, 0, 1500)
    assert torch.equal(windowed.rows(record.counts, 700, 950), whole[700:950])
    torch.testing.assert_close(whole[0].view(6, 6)[:, :3], torch.zeros(6, 3).double())
    torch.testing.assert_close(whole[-1].view(6, 6)[:, -2:], torch.zeros(6, 2).double())
    z = (record.counts - windowed.centre) / windowed.spread
    torch.testing.assert_close(whole[10].view(6, 6), z[7:13].T)
    gap = record.counts.clone()
    gap[10] = torch.nan
    torch.testing.assert_close(windowed.rows(gap, 10, 11)[0].view(6, 6)[:, 3], torch.zeros(6).double())


def test_logistic_is_at_its_optimum_and_finds_the_states() -> None:
    rng = np.random.default_rng(1)
    state = np.repeat(rng.integers(0, 3, 200), 8)
    rates = np.array([[0.3, 2, 1, 1], [2, 0.3, 1, 1], [1, 1, 2, 0.2]])
    counts = torch.tensor(rng.poisson(rates[state])).float()
    labels = torch.tensor(state).float() * 2 + 1
    labels[::9] = torch.nan
    bins = torch.arange(1600)
    record = Recording(counts, bins < 1000, (bins >= 1000) & (bins < 1300))
    model = LogisticDecoder.fit([record], [labels], Window(2, 2), (1.0, 0.03))
    assert model.classes.tolist() == [1, 3, 5]
    known = torch.isfinite(labels) & (bins >= 1300)
    assert float((model.predict(counts) == labels)[known].double().mean()) > 0.8
    torch.testing.assert_close(model.log_probabilities(counts).exp().sum(-1), torch.ones(1600))
    train = torch.isfinite(labels) & record.train
    x = model.windowed.rows(counts.double(), 0, 1600)[train]
    hot = (labels[train][:, None] == model.classes).double()
    error = ((x @ model.weights + model.offset).softmax(-1) - hot) / len(x)
    assert float((x.T @ error + model.provenance["strength"] * model.weights).abs().max()) < 1e-6
    assert float(error.sum(0).abs().max()) < 1e-6
    config, arrays = model.state()
    again = LogisticDecoder.restore(json.loads(json.dumps(config)), arrays)
    assert torch.equal(again.predict(counts), model.predict(counts))
    with pytest.raises(InputError, match="two or more"):
        LogisticDecoder.fit([record], [torch.ones(1600)])


def test_ridge_round_trip() -> None:
    record, behaviour = tuned()
    model = RidgeDecoder.fit([record], [behaviour], [Window(3, 0, 0.5)])
    config, arrays = model.state()
    again = RidgeDecoder.restore(json.loads(json.dumps(config)), arrays)
    assert torch.equal(again.predict(record.counts[None])[0], model.predict(record.counts))
    assert again.windowed.window == Window(3, 0, 0.5)
    with pytest.raises(InputError, match="Window"):
        Window(-1, 0)
