"""Connectivity read from models: what is planted is found, what isn't there is not, units may stand in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml import checkpoint, cli
from sciml.cli import connectivity as verb
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.config import WindowConfig
from sciml.domains.spikes.connectivity import ablation, impulse_response, signs_agreed, standardised
from sciml.domains.spikes.windows import SpikeWindows
from sciml.errors import InputError
from sciml.objectives.population import objective
from sciml.operator.attention import attention_weights
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.recipe import validate
from sciml.tokens import Outputs, TokenBatch

UNITS, BIN_S, LAG = 5, 0.005, 3
CONFIG: dict[str, Any] = {"floor": "smoothed", "slots": 4, "slow_s": [0.2], "lags": {"before": 4},
                          "tasks": {"next": {"before": 10, "scored": 190}}}
SMALL = {"stem_width": 8, "levels": [{"width": 16, "depth": 0, "head_width": 8}]}


def planted(seed: int = 0, steps: int = 16000) -> np.ndarray:
    """Counts ``(T, N)``: unit 1 follows unit 0 after 3 bins, unit 3 is silenced by unit 2 for bins 2 and 3 after."""
    rng = np.random.default_rng(seed)
    spikes = rng.random((steps, UNITS)) < [0.06, 0.06, 0.06, 0.25, 0.06]
    spikes[LAG:, 1] |= spikes[:-LAG, 0] & (rng.random(steps - LAG) < 0.5)
    for lag in (2, 3):
        spikes[lag:, 3] &= ~(spikes[:-lag, 2] & (rng.random(steps - lag) < 0.9))
    return spikes.astype(np.float32)


def stored(path: Path, counts: np.ndarray, name: str = "net") -> Store:
    """With the planted truth."""
    steps, units = counts.shape
    names = [f"u{i}" for i in range(units)]
    weight, delay = np.zeros((1, units, units), np.float32), np.full((1, units, units), np.nan, np.float32)
    weight[0, 1, 0], weight[0, 3, 2] = 1.0, -1.0
    delay[0, 1, 0], delay[0, 3, 2] = 3 * BIN_S, 2 * BIN_S
    parts = [(Block(group=0, start=low, stop=high),)
             for low, high in ((0, steps // 2), (steps // 2, 5 * steps // 8), (5 * steps // 8, steps))]
    pair = ("unit", "source")
    data = xr.Dataset(
        {"count": (("recording", "time", "unit"), counts[None]), "weight": (("recording", *pair), weight),
         "delay": (("recording", *pair), delay)},
        coords={"time": np.arange(steps) * BIN_S, "unit": names, "source": names})
    variables = {"count": Variable(role="state", unit="1", dims=("time", "unit")),
                 "weight": Variable(role="parameter", unit="mV", dims=pair),
                 "delay": Variable(role="parameter", unit="s", dims=pair)}
    axes = {"time": AxisMeta(kind="time", unit="s"), **{dim: AxisMeta(kind="set", unit="1") for dim in pair}}
    draft = StoreDraft(
        domain="spikes", dataset=name, group_dim="recording", groups=1, variables=variables, axes=axes, dt=BIN_S,
        splits=Splits(key="time", gap=0, train=parts[0], validation=parts[1], test=parts[2]),
        provenance=Provenance(builder="test"))
    return write_store(data, draft, path)


def windows_of(adapter: Binned, store: Store, before: int = 10, scored: int = 30) -> SpikeWindows:
    return replace(adapter.open(store, "test"), floor=False,
                   tasks={"next": WindowConfig(before=before, scored=scored)})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored(tmp_path_factory.mktemp("planted") / "net.zarr", planted())


@pytest.fixture(scope="module")
def adapter(store: Store) -> Binned:
    return Binned.create(CONFIG).fit(store)


@pytest.fixture(scope="module")
def trained(adapter: Binned, store: Store) -> Predictor:
    """A few seconds of Adam on the training half."""
    torch.manual_seed(0)
    operator = Operator(validate(OperatorConfig, SMALL, where="test"), {"spikes": adapter.spec()})
    windows = adapter.open(store, "train", train=True)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(operator.parameters(), lr=1e-2)
    for _ in range(80):
        drawn = (int(i) for i in rng.integers(0, len(windows), 4))
        batch = collate([adapter.encode(windows.draw(i, rng, rng)) for i in drawn])
        loss = objective(operator(batch), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Predictor(operator, {"spikes": adapter})


def linear(weights: np.ndarray) -> Callable[[TokenBatch], Outputs]:
    """A model whose log-rates add Σ weights[unit, source, lag − 1] · z_source(t − lag)."""
    w = torch.from_numpy(weights).float()

    def forward(batch: TokenBatch) -> Outputs:
        past = [batch.values[..., 0], *(batch.conditions.lattice[f"count_{-k}"] for k in range(1, w.shape[2]))]
        return Outputs({"next": torch.einsum("nsk,kbst->bnt", w, torch.stack(past))[..., None]})

    return forward


def test_the_response_of_a_linear_model_is_its_weights(adapter: Binned, store: Store) -> None:
    weights = np.random.default_rng(1).normal(size=(UNITS, UNITS, 4)) * 0.02
    found = impulse_response(linear(weights), adapter, windows_of(adapter, store), 3, 6)
    history = adapter.datasets["net"].history
    one = (history.prepared(torch.ones(1, UNITS))[0] - history.prepared(torch.zeros(1, UNITS))[0]).numpy()[0]
    expected = weights * one[None, :, None]
    ratio = found.log_rate[..., :4] / expected
    np.testing.assert_allclose(ratio, ratio[0, :, :1][None] * np.ones_like(ratio), rtol=1e-3)
    assert ((ratio > 0.4) & (ratio < 1.01)).all(), "the root of a second spike in a bin weighs less than the first"
    np.testing.assert_allclose(found.log_rate[..., 4:], 0, atol=1e-6)


def test_effect_sign_and_delay_of_a_planted_filter(adapter: Binned, store: Store) -> None:
    weights = np.zeros((UNITS, UNITS, 4))
    weights[1, 0, 2], weights[3, 2, 1:3] = 0.3, -0.4
    found = impulse_response(linear(weights), adapter, windows_of(adapter, store), 3, 5)
    assert found.effect[1, 0] > 0 > found.effect[3, 2]
    assert found.delay[1, 0] == pytest.approx(3 * BIN_S)
    assert found.delay[3, 2] == pytest.approx(2 * BIN_S)
    assert np.isnan(np.diag(found.effect)).all()
    others = found.effect.copy()
    others[1, 0] = others[3, 2] = 0
    np.testing.assert_allclose(others[~np.eye(UNITS, dtype=bool)], 0, atol=1e-6)


def test_ablation_of_units_without_a_link_changes_nothing(adapter: Binned, store: Store) -> None:
    weights = np.zeros((UNITS, UNITS, 4))
    weights[1, 0, 2] = 0.3
    found = ablation(linear(weights), adapter, windows_of(adapter, store), 8)
    assert found.expected[1, 0] > 0.01
    assert found.gain[1, 0] > 0.01
    assert found.p[1, 0] < 1e-3
    others = ~np.eye(UNITS, dtype=bool)
    others[1, 0] = False
    assert np.abs(found.expected[others]).max() < 1e-9
    assert np.abs(found.gain[others]).max() < 1e-9
    assert (found.p[others] > 0.4).all()


def test_ablation_of_a_link_that_is_not_there_does_not_pay(adapter: Binned, store: Store) -> None:
    weights = np.zeros((UNITS, UNITS, 4))
    weights[4, 0, 2] = 0.3
    found = ablation(linear(weights), adapter, windows_of(adapter, store), 8)
    assert found.expected[4, 0] > 0.01
    assert found.gain[4, 0] < 0
    assert found.p[4, 0] > 0.01


@settings(max_examples=3, deadline=None)
@given(order=st.permutations(range(UNITS)))
def test_permuting_units_permutes_the_matrices(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    counts, weights = planted(steps=1600), np.random.default_rng(2).normal(size=(UNITS, UNITS, 2)) * 0.05
    made = []
    for places in (list(range(UNITS)), order):
        own = stored(tmp_path_factory.mktemp("order") / "net.zarr", counts[:, places])
        fitted = Binned.create(CONFIG).fit(own)
        forward, windows = linear(weights[np.ix_(places, places)]), windows_of(fitted, own)
        made.append((impulse_response(forward, fitted, windows, 2, 4), ablation(forward, fitted, windows, 2)))
    (response, masked), (other, other_masked) = made
    pick = np.ix_(order, order)
    np.testing.assert_allclose(other.log_rate, response.log_rate[pick], atol=1e-5)
    np.testing.assert_allclose(other_masked.expected, masked.expected[pick], atol=1e-5)
    np.testing.assert_allclose(other_masked.gain, masked.gain[pick], atol=1e-4)


def test_a_trained_operator_finds_the_planted_links(trained: Predictor, adapter: Binned, store: Store) -> None:
    found = impulse_response(trained.forward, adapter, windows_of(adapter, store), 12, 5)
    order = np.argsort(-np.nan_to_num(np.abs(found.effect)), axis=None)[:2]
    assert {divmod(int(i), UNITS) for i in order} == {(1, 0), (3, 2)}
    assert found.effect[1, 0] > 1
    assert found.effect[3, 2] < -0.5
    assert found.delay[1, 0] == pytest.approx(3 * BIN_S)
    assert found.delay[3, 2] == pytest.approx(2 * BIN_S)
    masked = ablation(trained.forward, adapter, windows_of(adapter, store), 30)
    linked = np.zeros((UNITS, UNITS), bool)
    linked[1, 0] = linked[3, 2] = True
    others = ~linked & ~np.eye(UNITS, dtype=bool)
    assert masked.expected[linked].min() > 1.5 * masked.expected[others].max()
    assert masked.p[linked].max() < 1e-2
    assert np.nanmin(masked.expected) >= 0


def test_a_floor_that_is_corrected_is_part_of_the_model(store: Store) -> None:
    fitted = Binned.create({**CONFIG, "floor": "glm", "corrects": "floor"}).fit(store)
    silent = linear(np.zeros((UNITS, UNITS, 1)))
    found = impulse_response(silent, fitted, windows_of(fitted, store, 40, 10), 4, 5)
    assert found.effect[1, 0] > 1
    assert found.delay[1, 0] == pytest.approx(3 * BIN_S)
    assert found.effect[3, 2] < -0.5


def test_evidence_is_free_of_how_much_units_fire() -> None:
    rng = np.random.default_rng(0)
    noise, size = rng.normal(size=(40, 40)), np.exp(rng.normal(size=(2, 40)))
    found = standardised(noise * size[0][:, None] * size[1])
    off = ~np.eye(40, dtype=bool)
    assert np.corrcoef(found[off], noise[off])[0, 1] > 0.95
    assert 0.9 < found[off].std() < 1.2
    assert np.isnan(np.diag(found)).all()


def test_signs_of_a_source_agree() -> None:
    evidence = np.array([[np.nan, -5.0, 1.0], [3.0, np.nan, -2.0], [-1.0, -4.0, np.nan]])
    np.testing.assert_array_equal(signs_agreed(evidence), evidence * [1, -1, -1])


def test_mistakes_are_named(adapter: Binned, store: Store) -> None:
    forward = linear(np.zeros((UNITS, UNITS, 1)))
    with pytest.raises(InputError, match="windows that are longer"):
        impulse_response(forward, adapter, windows_of(adapter, store), 1, 40)
    masked = replace(windows_of(adapter, store), tasks={"masked": WindowConfig()})
    with pytest.raises(InputError, match="next among them"):
        ablation(forward, adapter, masked, 1)


@pytest.fixture(scope="module")
def attending(store: Store) -> Predictor:
    torch.manual_seed(0)
    own = Binned.create({**CONFIG, "slots": 0}).fit(store)
    config = {"stem_width": 8, "levels": [{"width": 16, "depth": 2, "head_width": 8, "mixers": ["axial"]}]}
    operator = Operator(validate(OperatorConfig, config, where="test"), {"spikes": own.spec()})
    return Predictor(operator, {"spikes": own})


def test_attention_follows_the_keys(attending: Predictor, store: Store) -> None:
    own: Any = attending.adapters["spikes"]
    batch = own.encode(windows_of(own, store).draw(0, np.random.default_rng(0), np.random.default_rng(0)))
    weights = attention_weights(attending.operator, batch, "unit")
    torch.testing.assert_close(weights.sum(1), torch.ones(UNITS))
    assert weights.std() > 1e-5
    axis = batch.axes[0]
    order = torch.tensor([2, 0, 1, 4, 3])
    turned = replace(
        batch, values=batch.values[:, order], observed=batch.observed[:, order],
        axes=(replace(axis, ids=axis.ids[:, order]), batch.axes[1]), targets={},
        conditions=replace(batch.conditions, lattice={n: v.expand(1, UNITS, -1)[:, order]
                                                      for n, v in batch.conditions.lattice.items()}))
    torch.testing.assert_close(attention_weights(attending.operator, turned, "unit"), weights[order][:, order])


def test_attention_between_slots_is_not_attention_between_units(trained: Predictor, adapter: Binned,
                                                                store: Store) -> None:
    batch = adapter.encode(windows_of(adapter, store).draw(0, np.random.default_rng(0), np.random.default_rng(0)))
    with pytest.raises(InputError, match="4 slots"):
        attention_weights(trained.operator, batch, "unit")


def test_the_command_prints_scores_and_saves(trained: Predictor, attending: Predictor, store: Store, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "model", trained)
    checkpoint.save(tmp_path / "tokens", attending)
    arguments = ["connectivity", str(tmp_path / "model"), "--data", store.url, "--lags", "8"]
    assert cli.run([*arguments, "-o", str(tmp_path / "out" / "links.npz"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["links"][0]["source"], said["links"][0]["target"]) in {("u0", "u1"), ("u2", "u3")}
    assert {row["method"] for row in said["scores"]} == {"impulse response", "ablation"}
    assert [row["auprc"] for row in said["scores"]] == [1.0, 1.0]
    with np.load(tmp_path / "out" / "links.npz", allow_pickle=False) as saved:
        assert saved["response"].shape == (UNITS, UNITS, 8)
        assert list(saved["units"]) == [f"u{i}" for i in range(UNITS)]
    assert cli.run([*arguments, "-o", str(tmp_path / "links.png"), "--contexts", "2"]) == 0
    printed = capsys.readouterr().out
    assert "attention between units is not defined" in printed
    assert "links are not read" in printed
    assert f"next: sciml evaluate {tmp_path / 'model'}" in printed
    assert (tmp_path / "links.png").stat().st_size > 5000
    arguments[1] = str(tmp_path / "tokens")
    assert cli.run([*arguments, "--contexts", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attention"] is True
    assert cli.run([*arguments, "-o", "links.csv"]) == 2
    assert verb.PLUGIN.name == "connectivity"
