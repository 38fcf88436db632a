"""Series beside floors and neuralforecast's iTransformer, PatchTST and DLinear; one set of weights for all horizons.

    SCIML_MIRROR=folder PYTHONPATH=folder_with_neuralforecast_and_statsforecast sciml bench series
    SCIML_BENCH_PARTS=etth1,ili,peers SCIML_BENCH_SECONDS=peers:60 SCIML_BENCH_SEEDS=2 sciml bench series

Standard borders, scaled units. Everything is selected on validation: ridge strength, the cycle of the baseline, the
training step (the untrained operator, which is the baseline, is among the candidates). The test split is read once per
seed. Rows are kept seed by seed and runs stay in ``runs/bench_series``, so that a run that was stopped goes on.
``…_low`` and ``…_high`` bound the paired difference of the first seed: 95 %, blocks of look-back + horizon;
``…_blocks`` says how many there are; too few have no bounds. The floor is the plain ridge without cycle or transform.
Parts:

- etth1, ili: our recipes at every horizon. look_backs: ETTh1, trained and asked at look-backs up to 512.
- floors: rolling-origin backtests of ETTh1 beside seasonal naive and AutoETS (of the last 480 hours, as many as the
  origins are apart keep it short).
- missing: the models of `etth1` with 30 % of the look-back hidden, beside the same ones on complete look-backs.
- intervals: ETTh1 at 96 hours with a quantile head; coverage and width of the 90 % interval, weighted quantile loss of
  0.05, 0.1, …, 0.95; adaptive conformal prediction beside split conformal and none.
- uea: NATOPS and JapaneseVowels, five seeds, beside the ridge classifier.
- zero_shot: ETTh1 at 96 hours by a checkpoint of synthetic series alone, beside the ridge that was fitted to ETTh1.
- peers: the same CPU seconds for each model, trained in turns; a peer's rate and batch are chosen on validation, a
  tenth of the budget a try (`benchmarks/series_peers.py`). SCIML_BENCH_SEEDS: of ours and all peers; 1 unless said.
- speed: 10,000 series × 100 steps; cost of a step after short and long histories (`benchmarks/series_speed.py`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.workflow import pretrain
from sciml.assets import config
from sciml.cli import console
from sciml.cli.bench import load_script
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.series.windows import Hidden, Pattern
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.handles.series_backtest import backtest
from sciml.handles.series_backtest import scores as backtest_scores
from sciml.predictor import Predictor
from sciml.recipe import Recipe, load_recipe
from sciml.report.bench import Bench, Row
from sciml.report.machine import gemm_gflops

HERE = Path(__file__).parent
common = load_script(HERE / "common.py")
peers = load_script(HERE / "series_peers.py")
speed = load_script(HERE / "series_speed.py")
summary = load_script(HERE / "series_summary.py").summary

PARTS = ("etth1", "look_backs", "ili", "floors", "missing", "intervals", "uea", "zero_shot", "peers", "speed")
SECONDS = {"peers": 60.0}
SEEDS = (0, 1, 2)
RUNS = Path("runs/bench_series")
WINDOWS = {"etth1": {"96": 2785, "192": 2689, "336": 2545, "720": 2161},
           "ili": {"24": 170, "36": 158, "48": 146, "60": 134}}
LOOK_BACKS = (96, 192, 336, 512)
LONG = ("domains.series.look_back=512", "domains.series.shortest=96", "domains.series.inputs.spread=true",
        "train.learning_rate=1e-4", "train.matrix_learning_rate=5e-4")
SHARE = 0.3
LEVELS = (0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95)
UEA = ("natops", "japanese_vowels")
STRIDES = {"floors": 96, "intervals": 4}


def run(place: Path | None = None, runs: Path = RUNS) -> Bench:
    """Measure what is missing; place: folder of the results."""
    torch.set_num_threads(1)
    plan, bench = common.Plan.of_environment(PARTS, SECONDS), Bench.load_or_new("series", seeds=SEEDS, place=place)
    for part in plan.parts:
        bench.add(Row(metric=f"machine/gemm/{part}", unit="GFLOP/s", ours=gemm_gflops()))
        if part in WINDOWS:
            measure_horizons(bench, part, runs)
        elif part == "look_backs":
            measure_look_backs(bench, runs)
        elif part == "floors":
            measure_floors(bench, runs)
        elif part == "missing":
            measure_missing(bench, runs)
        elif part == "intervals":
            measure_intervals(bench, runs)
        elif part == "uea":
            for name in UEA:
                measure_classes(bench, name, runs)
        elif part == "zero_shot":
            measure_zero_shot(bench, runs)
        elif part == "peers":
            compare(bench, plan.seconds["peers"], plan.seeds)
        else:
            speed.measure(bench)
    console.table(summary(bench.results), title="bars of issue 7")
    return bench


def recipe_of(name: str, seed: int, *assignments: str) -> Recipe:
    return load_recipe(config(name), ["train.threads=1", f"seed={seed}", *assignments])


def trained(name: str, seed: int, runs: Path, *assignments: str, label: str = "") -> Predictor:
    """By the recipe as users do, or as it was trained before."""
    common.store_of(Path(recipe_of(name, seed).data[0].store).stem)
    return pretrain(recipe_of(name, seed, *assignments), runs / f"{label or name}_{seed}")


def add(bench: Bench, metric: str, ours: float, peer: float | None = None, name: str | None = None) -> None:
    unit = "windows" if metric.endswith(("blocks", "windows")) else "1"
    bench.add(Row(metric=metric, unit=unit, ours=ours, peer=peer, peer_name=None if peer is None else name))


def average(bench: Bench, metric: str, peer: str, seeds: Sequence[int] = ()) -> None:
    """Rows ``metric`` and ``metric_std`` of the rows ``metric_seed0``, ``metric_seed1``, …"""
    rows = [common.measured(bench, f"{metric}_seed{seed}", peer) for seed in seeds or SEEDS]
    ours, others = ([getattr(row, key) for row in rows if row is not None] for key in ("ours", "peer"))
    unit = next(row.unit for row in rows if row is not None)
    bench.add(Row(metric=metric, unit=unit, ours=float(np.mean(ours)), peer=float(np.mean(others)), peer_name=peer))
    bench.add(Row(metric=f"{metric}_std", unit=unit, ours=float(np.std(ours))))


def measure_horizons(bench: Bench, name: str, runs: Path) -> None:
    """Test mse and mae at every horizon beside the ridge's, and their mean over horizons."""
    counts = WINDOWS[name]
    for seed in SEEDS:
        if not bench.has(f"{name}/mean/mse_seed{seed}", "ridge"):
            found = evaluate(trained(name, seed, runs), common.store_of(name), "test").rows
            add_horizons(bench, name, seed, {(row["question"], row["metric"]): row for row in found}, counts)
    for key in ("mse", "mae"):
        for horizon in (*counts, "mean"):
            average(bench, f"{name}/{horizon}/{key}", "ridge")


def add_horizons(bench: Bench, name: str, seed: int, rows: Mapping[tuple[str, str], Mapping[str, Any]],
                 counts: Mapping[str, int]) -> None:
    for horizon, count in counts.items():
        assert rows[horizon, "mse"]["samples"] == count, "the standard borders give another number of windows"
        bounds = {key: float(rows[horizon, "mse"][key]) for key in ("blocks", "low", "high")}
        for key, value in bounds.items():
            if seed == 0 and np.isfinite(value):
                add(bench, f"{name}/{horizon}/mse_{key}", value)
    for key in ("mae", "mse"):
        pairs = {h: (rows[h, key]["value"], rows[h, key]["baseline"]) for h in counts}
        pairs["mean"] = tuple(np.mean(list(pairs.values()), 0).tolist())
        for horizon, (ours, floor) in pairs.items():
            add(bench, f"{name}/{horizon}/{key}_seed{seed}", ours, floor, "ridge")
        common.say(f"{name}, seed {seed}, {key}: " + ", ".join(f"{h} {a:.4f} ({b:.4f})" for h, (a, b) in pairs.items()))


def mean_mse(predictor: Predictor, store: Store, split: SplitName = "test") -> tuple[float, float]:
    """Of all horizons: ours and the floor's."""
    rows = [row for row in evaluate(predictor, store, split).scores if row.metric == "mse"]
    return float(np.mean([row.value for row in rows])), float(np.mean([row.baseline for row in rows]))


def asked_at(predictor: Predictor, name: str, look_back: int) -> Predictor:
    """The same weights, asked with a shorter look-back."""
    adapter: Any = predictor.adapter("series")
    changed = adapter.config.model_dump(mode="json")
    changed["datasets"] = {**changed["datasets"], name: {**changed["datasets"].get(name, {}), "look_back": look_back}}
    return Predictor(predictor.operator, {"series": adapter.reconfigured(changed)})


def measure_look_backs(bench: Bench, runs: Path) -> None:
    """One set of weights at several look-backs, beside the result of the recipe whose look-back is 96."""
    reference = needed(bench, "etth1/mean/mse", "ridge", "etth1").ours
    for seed in SEEDS:
        if all(bench.has(f"etth1/look_back_{n}/mse_seed{seed}", "look_back_96") for n in LOOK_BACKS):
            continue
        predictor = trained("etth1", seed, runs, *LONG, label="etth1_long")
        for look_back in LOOK_BACKS:
            ours, floor = mean_mse(asked_at(predictor, "etth1", look_back), common.store_of("etth1"))
            add(bench, f"etth1/look_back_{look_back}/mse_seed{seed}", ours, reference, "look_back_96")
            add(bench, f"etth1/look_back_{look_back}/mse_seed{seed}", ours, floor, "ridge")
            common.say(f"look-back {look_back}, seed {seed}: mse {ours:.4f}, ridge {floor:.4f}")
    for look_back in LOOK_BACKS:
        for peer in ("look_back_96", "ridge"):
            average(bench, f"etth1/look_back_{look_back}/mse", peer)


def needed(bench: Bench, metric: str, peer: str, part: str) -> Row:
    row: Row | None = common.measured(bench, metric, peer)
    if row is None:
        raise InputError("benchmark series", key=metric, found="not measured", expected=f"the part `{part}` first",
                         fix=f"SCIML_BENCH_PARTS={part},… sciml bench series")
    return row


def measure_floors(bench: Bench, runs: Path) -> None:
    """Backtests of the first seed's model beside floors that need no training; AutoETS where statsforecast is."""
    store, ets = common.store_of("etth1"), importlib.util.find_spec("statsforecast") is not None
    floors = ("ridge", "seasonal_naive", "auto_ets") if ets else ("ridge", "seasonal_naive")
    for horizon in WINDOWS["etth1"]:
        label = f"etth1/backtest_{horizon}"
        if bench.has(f"{label}/mse", floors[-1]):
            continue
        frame = backtest(trained("etth1", 0, runs), store, horizon=int(horizon), stride=STRIDES["floors"], ets=ets)
        found = {row["model"]: row for row in backtest_scores(frame)}
        add(bench, f"{label}/windows", float(frame["cutoff"].nunique()))
        for peer in floors:
            for key in ("mae", "mse"):
                add(bench, f"{label}/{key}", found["sciml"][key], found[peer][key], peer)
        common.say(f"{label}: " + ", ".join(f"{name} {row['mse']:.4f}" for name, row in found.items()))


class Gaps:
    """A series adapter whose questions hide a share of the look-back."""

    def __init__(self, adapter: Any, share: float, pattern: Pattern) -> None:
        self.adapter, self.share, self.pattern = adapter, share, pattern

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)

    def meeting(self, store: Store) -> Gaps:
        return Gaps(self.adapter.meeting(store), self.share, self.pattern)

    def questions(self, store: Store, split: SplitName) -> list[Any]:
        return [replace(asked, windows=Hidden(asked.windows, self.share, self.pattern))
                for asked in self.adapter.questions(store, split)]


def measure_missing(bench: Bench, runs: Path) -> None:
    """Mean mse over horizons with cells of the look-back missing, beside the same model's with all of them."""
    patterns: tuple[Pattern, ...] = ("random", "blocks")
    for seed in SEEDS:
        if bench.has(f"etth1/missing_blocks/mse_seed{seed}", "complete"):
            continue
        predictor = trained("etth1", seed, runs)
        complete = needed(bench, f"etth1/mean/mse_seed{seed}", "ridge", "etth1").ours
        for pattern in patterns:
            gaps: Any = Gaps(predictor.adapter("series"), SHARE, pattern)
            ours, floor = mean_mse(Predictor(predictor.operator, {"series": gaps}), common.store_of("etth1"))
            for value, peer in ((complete, "complete"), (floor, "ridge")):
                add(bench, f"etth1/missing_{pattern}/mse_seed{seed}", ours, value, peer)
            common.say(f"{SHARE:.0%} missing ({pattern}), seed {seed}: {ours:.4f}, complete {complete:.4f}, "
                       f"ridge {floor:.4f}")
    for pattern in patterns:
        for peer in ("complete", "ridge"):
            average(bench, f"etth1/missing_{pattern}/mse", peer)


def measure_intervals(bench: Bench, runs: Path) -> None:
    """90 % intervals and quantiles, 96 hours ahead, adaptive beside split conformal and the model's own quantiles."""
    store, assigned = common.store_of("etth1"), f"domains.series.task={{forecast: {{quantiles: {list(LEVELS)}}}}}"
    for seed in SEEDS:
        if bench.has(f"etth1/intervals/wql_seed{seed}", "split_conformal"):
            continue
        predictor = trained("etth1", seed, runs, assigned, label="etth1_quantiles")
        frame = backtest(predictor, store, horizon=96, stride=STRIDES["intervals"], quantiles=LEVELS)
        found = {row["model"]: row for row in backtest_scores(frame)}
        for key in ("coverage", "width", "wql"):
            for peer, other in (("sciml", "own_quantiles"), ("ridge", "ridge"), ("seasonal_naive", "seasonal_naive"),
                                ("split_conformal", "split_conformal")):
                add(bench, f"etth1/intervals/{key}_seed{seed}", found["adaptive_conformal"][key], found[peer][key],
                    other)
        common.say(f"intervals, seed {seed}: " + ", ".join(
            f"{name} {row['coverage']:.3f}, width {row['width']:.3f}, wql {row['wql']:.4f}"
            for name, row in found.items()))
    for key in ("coverage", "width", "wql"):
        for other in ("own_quantiles", "ridge", "seasonal_naive", "split_conformal"):
            average(bench, f"etth1/intervals/{key}", other)


def measure_classes(bench: Bench, name: str, runs: Path, seeds: int = 5) -> None:
    """Test accuracy of every seed and their mean, beside the ridge classifier's."""
    found = []
    for seed in range(seeds):
        metric = f"{name}/test/accuracy_seed{seed}"
        if not bench.has(metric, "ridge"):
            rows = evaluate(trained(name, seed, runs), common.store_of(name), "test").scores
            row = next(row for row in rows if row.metric == "accuracy")
            add(bench, metric, row.value, row.baseline, "ridge")
            common.say(f"{name}, seed {seed}: accuracy {row.value:.4f}, ridge {row.baseline:.4f}")
        found.append(common.measured(bench, metric, "ridge"))
    add(bench, f"{name}/test/accuracy", float(np.mean([row.ours for row in found])), found[0].peer, "ridge")
    add(bench, f"{name}/test/accuracy_std", float(np.std([row.ours for row in found])))


def measure_zero_shot(bench: Bench, runs: Path) -> None:
    """A checkpoint of synthetic series on ETTh1, which it doesn't know, beside ETTh1's own ridge."""
    own = needed(bench, "etth1/96/mse", "ridge", "etth1").peer
    for seed in SEEDS:
        if bench.has(f"etth1/zero_shot/mse_seed{seed}", "ridge"):
            continue
        predictor = trained("synthetic_series", seed, runs)
        rows = evaluate(predictor, common.store_of("etth1"), "test", questions=["96"]).scores
        row = next(row for row in rows if row.metric == "mse")
        assert row.samples == WINDOWS["etth1"]["96"], "the standard borders give another number of windows"
        add(bench, f"etth1/zero_shot/mse_seed{seed}", row.value, own, "ridge")
        add(bench, f"etth1/zero_shot/mse_seed{seed}", row.value, row.baseline, "synthetic_ridge")
        common.say(f"zero-shot, seed {seed}: mse {row.value:.4f}, ridge of ETTh1 {own:.4f}, of the corpus "
                   f"{row.baseline:.4f}")
    for peer in ("ridge", "synthetic_ridge"):
        average(bench, "etth1/zero_shot/mse", peer)


def compare(bench: Bench, seconds: float, seeds: int) -> None:
    """Ours for all horizons beside a model of each peer and horizon, the same seconds for every one of them, in turns.

    Rows per horizon and peer: mse, mae, CPU seconds of training to the best validation, parameters.
    """
    store = common.store_of("etth1")
    present = []
    for kind in peers.KINDS:
        if reason := peers.absent(kind):
            common.say(f"no {kind}: {reason}")
            bench.add(Row(metric="etth1/peers/absent", unit="1", ours=1.0, peer_name=f"{kind}: {reason}"))
        else:
            present.append(kind)
    for seed in range(seeds):
        if all(bench.has(f"etth1/peers/mse_seed{seed}", kind) for kind in present):
            continue
        chosen = {(kind, h): tuned(bench, kind, h, store, seconds / 10) for kind in present for h in WINDOWS["etth1"]}
        trainers = [peers.trainer("sciml", None, recipe_of("etth1", seed), store, seconds)]
        trainers += [peers.trainer(kind, setting, recipe_of("etth1", seed, f"domains.series.horizons=[{horizon}]"),
                                   store, seconds) for (kind, horizon), setting in chosen.items()]
        judges = dict(zip([("sciml", ""), *chosen], peers.trained(trainers)))
        add_peers(bench, judges, present, seed)
    for kind in present:
        for key in ("mse", "mae", "seconds_to_best"):
            average(bench, f"etth1/peers/{key}", kind, range(seeds))


def add_peers(bench: Bench, judges: Mapping[tuple[str, str], Any], present: Sequence[str], seed: int) -> None:
    mine, horizons = judges["sciml", ""], list(WINDOWS["etth1"])
    ours = mine.scores()
    for kind in present:
        found = {horizon: judges[kind, horizon] for horizon in horizons}
        theirs: dict[str, float] = {}
        for each in found.values():
            theirs |= each.scores()
        for horizon, each in found.items():
            add(bench, f"etth1/peers_{horizon}/mse_seed{seed}", ours[f"{horizon}/mse"], theirs[f"{horizon}/mse"], kind)
            bench.add(Row(metric=f"etth1/peers_{horizon}/seconds_to_best_seed{seed}", unit="s", ours=mine.at,
                          peer=each.at, peer_name=kind))
        common.say(f"{kind}: {theirs}, best after {[round(each.at) for each in found.values()]} s; ours {ours}, best "
                   f"after {mine.at:.0f} s of {mine.trainer.used:.0f}")
        bench.add(Row(metric=f"etth1/peers/seconds_to_best_seed{seed}", unit="s", ours=mine.at,
                      peer=float(np.mean([each.at for each in found.values()])), peer_name=kind))
        bench.add(Row(metric="etth1/peers/parameters", unit="1", peer_name=kind,
                      ours=common.parameters(mine.trainer.predictor),
                      peer=sum(common.parameters(each.trainer.predictor) for each in found.values())))
        for key in ("mae", "mse"):
            add(bench, f"etth1/peers/{key}_seed{seed}", float(np.mean([ours[f"{h}/{key}"] for h in horizons])),
                float(np.mean([theirs[f"{h}/{key}"] for h in horizons])), kind)


def tuned(bench: Bench, kind: str, horizon: str, store: Store, seconds: float) -> tuple[float, int]:
    """The rate and batch of a peer that are best on validation: batches at the middle rate, then the other rates. What
    was tried is kept, so that a run that goes on doesn't try again."""
    recipe = recipe_of("etth1", 0, f"domains.series.horizons=[{horizon}]")

    def attempt(choices: Sequence[tuple[float, int]]) -> dict[tuple[float, int], float]:
        names = {each: f"etth1_peers/tuning/{kind}_{horizon}_{each[0]:g}_batch{each[1]}".replace("-", "m")
                 for each in choices}
        missing = [each for each in choices if not bench.has(names[each])]
        for each, judge in zip(missing, peers.trained([peers.trainer(kind, each, recipe, store, seconds)
                                                       for each in missing])):
            add(bench, names[each], min(judge.best, 1e9))
            common.say(f"{kind}, horizon {horizon}, {each}: {judge.trainer.step} steps, validation {judge.best:.4f}")
        return {each: common.measured(bench, names[each]).ours for each in choices}

    low, middle, high = peers.RATES
    best: tuple[float, int] = common.search(attempt, [
        lambda _: [(middle, batch) for batch in peers.BATCHES], lambda best: [(low, best[1]), (high, best[1])]])
    return best
