"""The bars of `benchmarks/volumes.py` and whether they were met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciml.cli.bench import load_script
from sciml.report.bench import Results

common = load_script(Path(__file__).with_name("common.py"))
Bar: Any = common.Bar

DATA = "hippocampus"


def all_bars() -> list[Any]:
    long, floor = f"{DATA}/long", "mean_atlas"
    made = [Bar("Dice, anterior", f"{long}/dice_anterior", floor, least=0.902),
            Bar("Dice, posterior", f"{long}/dice_posterior", floor, least=0.888),
            Bar("HD95, anterior", f"{long}/hd95_anterior", floor),
            Bar("HD95, posterior", f"{long}/hd95_posterior", floor),
            Bar("parameters", f"{long}/parameters", None, most=5e6),
            Bar("training, CPU seconds", f"{long}/cpu_seconds", None, most=2700)]
    made += [Bar(f"mean Dice beside {peer}, the same seconds", f"{DATA}/peers/dice", peer, ahead=True)
             for peer in ("unet", "segresnet", "swinunetr")]
    made += [Bar("5 labelled volumes, 1 - Dice", f"{DATA}/few_5/error", "scratch", ratio=0.75),
             Bar("slices of 3 mm, mean Dice", f"{DATA}/thick_3/dice", "as_it_is", loss=0.02),
             Bar("512x512x300, memory above it", "sliding/512x512x300/peak_above_volume", "monai", most=1.5),
             Bar("512x512x300, CPU seconds", "sliding/512x512x300/cpu_seconds", "monai", ratio=1.0)]
    return made


def summary(results: Results) -> list[dict[str, Any]]:
    """what, bar, ours, peer (with its name), verdict: met, missed, beside, or not measured. Restored images are to have
    higher PSNR and SSIM than every reference that was measured beside them."""
    restored = [row for row in results.rows if row.metric.endswith(("/psnr", "/ssim")) and row.peer is not None]
    made: list[dict[str, Any]] = common.judged([*all_bars(), *(
        Bar(f"{row.metric} beside {row.peer_name}", row.metric, row.peer_name, ahead=True) for row in restored)],
        results)
    return made
