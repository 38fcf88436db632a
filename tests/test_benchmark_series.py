"""The harness of the series benchmark: what peers are given and how they are judged, hidden cells, look-backs, bars,
what the environment asks for. No accuracy is asserted."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.cli.bench import load_script
from sciml.data.store import Store
from sciml.errors import InputError
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.recipe import Recipe
from sciml.report.bench import Bench, Row
from sciml.tokens import TokenBatch

HERE = Path(__file__).parents[1] / "benchmarks"
LOOK_BACK, HORIZON = 24, 12


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_script(HERE / "series.py")


@pytest.fixture(scope="module")
def store(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    made: Store = bench.speed.hours(tmp_path_factory.mktemp("hours"), ("a", "b", "c"), 400)
    return made


def recipe_of(store: Store, horizons: tuple[int, ...] = (HORIZON,)) -> Recipe:
    return Recipe.model_validate({
        "name": "tiny", "data": [{"store": store.url, "batch": 4}], "train": {"steps": 1, "ema": 0.5},
        "domains": {"series": {"look_back": LOOK_BACK, "horizons": list(horizons), "patch": 12}},
        "operator": {"levels": [{"width": 16, "depth": 1, "mixers": ["axial"], "head_width": 8}], "stem_width": 8}})


class Last(torch.nn.Module):
    """The last value seen, times a weight: one series at a time, or all together."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.weight, self.together = torch.nn.Parameter(torch.ones(())), together

    def forward(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        seen = given["insample_y"]
        assert seen.shape[1:] == ((LOOK_BACK, 3) if self.together else (LOOK_BACK, 1))
        return self.weight * seen[:, -1:].expand(-1, HORIZON, -1)


def batch_of(bench: Any, store: Store, kind: str) -> tuple[Predictor, TokenBatch]:
    adapter = bench.peers.make_predictor("sciml", recipe_of(store), store).adapter("series")
    peer = bench.peers.PeerOperator(kind, Last(kind == "itransformer"), adapter)
    windows, rng = adapter.open(store, "validation"), np.random.default_rng(0)
    return Predictor(peer, {"series": adapter}), collate([adapter.encode(windows.draw(i, rng, rng)) for i in (0, 9)])


@pytest.mark.parametrize("kind", ["itransformer", "patchtst"])
def test_what_a_peer_says_is_the_forecast_in_standardised_units(bench: Any, store: Store, kind: str) -> None:
    predictor, batch = batch_of(bench, store, kind)
    windows = predictor.adapter("series").open(store, "validation")
    said = predictor.predict(windows.draw(9, *[np.random.default_rng(0)] * 2))
    for some in (batch, bench.peers.plainly(batch)):
        target = some.targets["value"]
        found = target.predict(predictor.forward(some)["value"])[..., LOOK_BACK:, 0]
        torch.testing.assert_close(found, target.value[..., LOOK_BACK - 1:LOOK_BACK, 0].expand_as(found))
    adapter: Any = predictor.adapter("series")
    known = adapter.datasets["hours"]
    np.testing.assert_allclose(said["value"][0].values.T, found[1].detach().numpy() * known.std[:, None]
                               + known.mean[:, None], rtol=1e-4, atol=1e-5)


def test_a_peer_does_not_see_the_truth_and_learns_its_plain_error(bench: Any, store: Store) -> None:
    predictor, batch = batch_of(bench, store, "dlinear")
    plain = bench.peers.plainly(batch)
    target = plain.targets["value"]
    assert target.baseline.abs().max() == 0
    assert (target.scale == 1).all()
    before = predictor.forward(batch)["value"]
    batch.targets["value"].value[..., LOOK_BACK:, :] += 5
    torch.testing.assert_close(predictor.forward(batch)["value"], before)


def test_the_weights_that_were_best_on_validation_are_scored(bench: Any, store: Store,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bench.peers.trainer("sciml", None, recipe_of(store), store, 100.0)
    judge, errors = bench.peers.Judge(trainer), iter([0.5, 0.1, 0.3])
    assert judge.at == 0
    monkeypatch.setattr(bench.peers.Judge, "_error", lambda self, predictor: next(errors))
    judge.best, seen = 1.0, []
    for _ in range(3):
        trainer.used += 1.0
        trainer.average.weights = {k: v + 1.0 for k, v in trainer.average.weights.items()}
        judge.look()
        seen.append({k: v.clone() for k, v in trainer.average.weights.items()})
    assert (judge.best, judge.at) == (0.1, 2.0)
    judge.scores()
    for name, value in trainer.predictor.operator.state_dict().items():
        torch.testing.assert_close(value, seen[1][name])


def test_a_trainer_stops_at_its_budget_and_learns(bench: Any, store: Store) -> None:
    made = bench.peers.trained([bench.peers.trainer("sciml", None, recipe_of(store, (6, HORIZON)), store, 0.3)])
    trainer = made[0].trainer
    assert len(made[0].batches) == 2
    assert trainer.step >= 2
    assert 0.3 <= trainer.used < 3
    assert made[0].best <= bench.peers.Judge(bench.peers.trainer("sciml", None, recipe_of(store, (6, HORIZON)), store,
                                                                 1.0)).best


def test_gaps_hide_the_share_asked_for_of_the_look_back_alone(bench: Any, store: Store) -> None:
    adapter = bench.peers.make_predictor("sciml", recipe_of(store), store).adapter("series")
    question, = bench.Gaps(adapter, 0.5, "blocks").questions(store, "validation")
    plain, = adapter.questions(store, "validation")
    rngs = [np.random.default_rng(0)] * 2
    holes, whole = (asked.windows.draw(3, *rngs)["value"].values for asked in (question, plain))
    assert np.isnan(holes[:LOOK_BACK]).mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(holes[LOOK_BACK:], whole[LOOK_BACK:])


def test_the_same_weights_are_asked_at_another_look_back(bench: Any, store: Store) -> None:
    predictor = bench.peers.make_predictor("sciml", recipe_of(store), store)
    shorter = bench.asked_at(predictor, "hours", 10)
    assert shorter.operator is predictor.operator
    question, = shorter.adapter("series").questions(store, "test")
    sample = question.windows.draw(0, *[np.random.default_rng(0)] * 2)
    assert sample.attrs["look_back"] == 10
    assert bench.peers.make_predictor("sciml", recipe_of(store), store).adapter("series").questions(
        store, "test")[0].options["look_back"] == LOOK_BACK
    assert shorter.predict(sample)["value"].shape == (1, HORIZON, 3)


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["itransformer", "patchtst", "dlinear"])
def test_neuralforecasts_networks_run(bench: Any, store: Store, kind: str) -> None:
    pytest.importorskip("neuralforecast", reason="neuralforecast is absent")
    trainer = bench.peers.trainer(kind, (1e-3, 4), recipe_of(store), store, 0.2)
    judge, = bench.peers.trained([trainer])
    assert np.isfinite(judge.best)
    assert set(judge.scores()) == {f"{HORIZON}/mse", f"{HORIZON}/mae"}


def test_why_a_peer_is_absent_is_said(bench: Any) -> None:
    if importlib.util.find_spec("neuralforecast") is None:
        assert "neuralforecast" in bench.peers.absent("patchtst")


def test_settings_are_searched_round_by_round(bench: Any) -> None:
    tried: list[int] = []

    def attempt(some: Any) -> dict[int, float]:
        tried.extend(some)
        return {x: (x - 3.0) ** 2 for x in some}

    rounds = [lambda _: (0, 4), lambda best: (best - 1, best + 1)]
    assert bench.common.search(attempt, rounds) == 3
    assert tried == [0, 4, 3, 5]
    assert bench.common.search(attempt, rounds, higher=True) == -1


def test_rows_of_seeds_are_averaged(bench: Any, tmp_path: Path) -> None:
    made = Bench.load_or_new("series", place=tmp_path)
    for seed, (ours, peer) in enumerate(((1.0, 3.0), (2.0, 5.0))):
        made.add(Row(metric=f"a/b/c_seed{seed}", unit="s", ours=ours, peer=peer, peer_name="ridge"))
    bench.average(made, "a/b/c", "ridge", (0, 1))
    found = bench.common.measured(made, "a/b/c", "ridge")
    assert (found.ours, found.peer, found.unit) == (1.5, 4.0, "s")
    assert bench.common.measured(made, "a/b/c_std").ours == 0.5


@pytest.fixture
def small(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The benchmark with an untrained model of 600 hours in place of every recipe and store."""
    store = bench.speed.hours(tmp_path, ("a",), 600)
    recipe = recipe_of(store, (HORIZON, 96))

    def asked(name: str, seed: int, *assigned: str) -> Recipe:
        horizons = [(int(each[25:-1]),) for each in assigned if each.startswith("domains.series.horizons=[")]
        return recipe_of(store, *horizons) if horizons else recipe

    monkeypatch.setattr(bench, "recipe_of", asked)
    monkeypatch.setattr(bench, "trained", lambda *_, **__: bench.peers.make_predictor("sciml", recipe, store))
    monkeypatch.setattr(bench.common, "store_of", lambda _: store)
    monkeypatch.setattr(bench, "WINDOWS", {"etth1": {str(HORIZON): 139, "96": 55}})
    monkeypatch.setattr(bench, "LOOK_BACKS", (12, LOOK_BACK))
    monkeypatch.setattr(bench, "SEEDS", (0,))
    monkeypatch.setattr(bench, "STRIDES", {"floors": 48, "intervals": 2})
    monkeypatch.setattr(bench, "asked_at", lambda p, name, n, plain=bench.asked_at: plain(p, "hours", n))
    return Bench.load_or_new("series", place=tmp_path, seeds=bench.SEEDS)


def test_every_part_writes_its_rows_and_does_not_measure_twice(bench: Any, small: Bench, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "statsforecast" else found(name))
    parts = (bench.measure_horizons, "etth1"), (bench.measure_look_backs,), (bench.measure_floors,), (
        bench.measure_missing,), (bench.measure_intervals,)
    with pytest.raises(InputError, match="etth1"):
        bench.measure_missing(small, tmp_path)
    for measure, *name in parts:
        measure(small, *name, tmp_path)
    rows = {(row.metric, row.peer_name): row for row in small.results.rows}
    for metric, peer in (("etth1/mean/mse", "ridge"), ("etth1/96/mae", "ridge"),
                         ("etth1/look_back_12/mse", "look_back_96"), ("etth1/backtest_96/mse", "seasonal_naive"),
                         ("etth1/missing_blocks/mse", "complete"), ("etth1/intervals/coverage", "split_conformal"),
                         ("etth1/intervals/wql", "own_quantiles")):
        assert rows[metric, peer].ours > 0, metric
    assert rows["etth1/missing_random/mse", "complete"].ratio > 1  # type: ignore[operator]
    assert rows["etth1/look_back_24/mse", "look_back_96"].ratio == pytest.approx(1)
    assert rows["etth1/mean/mse", "ridge"].ratio == pytest.approx(1, rel=0.1)
    monkeypatch.setattr(bench, "trained", None)
    for measure, *name in parts:
        measure(small, *name, tmp_path)


@pytest.mark.slow
def test_peers_are_tuned_trained_and_compared(bench: Any, small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(torch.nn.Linear):
        def forward(self, given: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
            return super().forward(given["insample_y"][..., 0])[..., None]

    monkeypatch.setattr(bench.peers, "KINDS", ("dlinear",))
    monkeypatch.setattr(bench.peers, "network", lambda kind, past, ahead, variates, seed=0: Flat(past, ahead))
    bench.compare(small, 0.2, 1)
    rows = {(row.metric, row.peer_name): row for row in small.results.rows}
    assert sum(metric.startswith("etth1_peers/tuning/dlinear") for metric, _ in rows) == 8
    for key in ("mse", "mae", "seconds_to_best"):
        assert rows[f"etth1/peers/{key}", "dlinear"].peer is not None
    assert rows["etth1/peers_96/mse_seed0", "dlinear"].peer > 0  # type: ignore[operator]
    monkeypatch.setattr(bench, "recipe_of", None)
    bench.compare(small, 0.2, 1)


def test_speed_is_measured_through_the_handle(bench: Any, store: Store, tmp_path: Path) -> None:
    one = bench.speed.hours(tmp_path, ("load",), 600)
    config = {"look_back": 96, "horizons": [24], "patch": 12}
    predictor = bench.speed.predictor_of(one, config, bench.speed.SIZES["small"])
    assert bench.speed.throughput(predictor, series=20, turns=1) > 0


def test_bars_are_judged(bench: Any, tmp_path: Path) -> None:
    made = Bench.load_or_new("series", place=tmp_path)
    for metric, ours, peer, name in (
            ("etth1/mean/mse", 0.424, 0.438, "ridge"), ("etth1/96/mse_high", -0.001, None, None),
            ("etth1/192/mse_high", 0.001, None, None), ("etth1/look_back_512/mse", 0.41, 0.42, "look_back_96"),
            ("etth1/intervals/coverage", 0.95, 0.9, "split_conformal"), ("etth1/peers/mse", 0.42, 0.41, "dlinear"),
            ("many/forecast/series_per_second_small", 12_000.0, None, None)):
        made.add(Row(metric=metric, unit="1", ours=ours, peer=peer, peer_name=name))
    verdicts = {row["what"]: row["verdict"] for row in bench.summary(made.results)}
    assert verdicts["ETTh1, look-back 96, mean MSE"] == "met"
    assert verdicts["ETTh1, horizon 96, upper bound of the difference"] == "met"
    assert verdicts["ETTh1, horizon 192, upper bound of the difference"] == "missed"
    assert verdicts["ETTh1, look-back 512, the same weights"] == "met"
    assert verdicts["90 % interval, adaptive: coverage"] == "missed"
    assert verdicts["mean MSE beside dlinear, the same seconds"] == "missed"
    assert verdicts["10,000 series of 100 steps, series per second"] == "met"
    assert verdicts["NATOPS, accuracy"] == "not measured"


def test_an_unknown_part_is_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIML_BENCH_SECONDS", "peers:5")
    assert bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS).seconds["peers"] == 5
    monkeypatch.setenv("SCIML_BENCH_PARTS", "etth1,rice")
    with pytest.raises(InputError, match="rice"):
        bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS)
