"""The bars of `benchmarks/series.py` and whether they were met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciml.cli.bench import load_script
from sciml.report.bench import Results

common = load_script(Path(__file__).with_name("common.py"))


def all_bars() -> list[Any]:
    bar = common.Bar
    made = [bar("ETTh1, look-back 96, mean MSE", "etth1/mean/mse", "ridge", most=0.425)]
    made += [bar(f"ETTh1, horizon {h}, beside the ridge", f"etth1/{h}/mse", "ridge", ratio=1.0)
             for h in (96, 192, 336, 720)]
    made += [bar(f"ETTh1, horizon {h}, upper bound of the difference", f"etth1/{h}/mse_high", None, most=0.0)
             for h in (96, 192)]
    made += [bar(f"ETTh1, look-back {n}, the same weights", f"etth1/look_back_{n}/mse", "look_back_96", ratio=1.0)
             for n in (96, 192, 336, 512)]
    made += [bar("ILI, look-back 36, mean MSE", "ili/mean/mse", "ridge", most=2.10),
             bar("NATOPS, accuracy", "natops/test/accuracy", "ridge", least=0.95),
             bar("JapaneseVowels, accuracy", "japanese_vowels/test/accuracy", "ridge", least=0.988),
             bar("30 % missing at random", "etth1/missing_random/mse", "complete", ratio=1.10),
             bar("30 % missing in blocks", "etth1/missing_blocks/mse", "complete", ratio=1.20),
             bar("90 % interval, adaptive: coverage", "etth1/intervals/coverage", "split_conformal", least=0.87,
                 most=0.93),
             bar("90 % interval: mean width", "etth1/intervals/width", "split_conformal"),
             bar("weighted quantile loss", "etth1/intervals/wql", "split_conformal"),
             bar("zero-shot, ETTh1 at 96", "etth1/zero_shot/mse", "ridge", ratio=1.08)]
    for kind in ("itransformer", "patchtst", "dlinear"):
        made += [bar(f"mean MSE beside {kind}, the same seconds", "etth1/peers/mse", kind, ratio=1.0),
                 bar(f"seconds to best validation beside {kind}", "etth1/peers/seconds_to_best", kind, ratio=1.0)]
    made += [bar(f"ETTh1, backtest at {h}, beside {floor}", f"etth1/backtest_{h}/mse", floor, ratio=1.0)
             for h in (96, 192, 336, 720) for floor in ("seasonal_naive", "auto_ets")]
    return [*made, bar("10,000 series of 100 steps, series per second", "many/forecast/series_per_second_small", None,
                       least=10_000),
            bar("a step after 8160 steps beside one after 96", "stream/step/milliseconds_8160", "history_96",
                ratio=1.3)]


def summary(results: Results) -> list[dict[str, Any]]:
    """what, bar, ours, peer (with its name), verdict: met, missed, beside, or not measured."""
    made: list[dict[str, Any]] = common.judged(all_bars(), results)
    return made
