"""The bars of `benchmarks/molecules.py` and whether they were met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciml.cli.bench import load_script
from sciml.report.bench import Results

common = load_script(Path(__file__).with_name("common.py"))
Bar: Any = common.Bar


def beside() -> list[Any]:
    """Errors beside the peers' of the same budget."""
    made = []
    for data in ("acac", "ethanol"):
        for peer, ratio in (("schnet", 1.0), ("visnet", 1.0), ("mace", None)):
            made += [Bar(f"{data} {metric}, the same budget", f"{data}/peers/{metric}", peer, ratio=ratio)
                     for metric in ("forces_rmse", "forces_mae", "energy_rmse", "energy_mae")]
    made += [Bar(f"ethanol {metric}, geometric beside {peer}", f"ethanol/modes/{metric}", peer)
             for peer in ("cartesian_rotation", "cartesian_frames")
             for metric in ("forces_mae", "energy_mae", "rotation_error")]
    return [*made, *(Bar(f"QM9 {name}", f"qm9/{name}/{name}_mae", "schnet", ratio=1.0) for name in ("u0", "homo"))]


def all_bars() -> list[Any]:
    floor = "element_references"
    made = [Bar("AcAc force RMSE", "acac/long/forces_rmse", floor, most=15.0),
            Bar("AcAc energy RMSE", "acac/long/energy_rmse", floor, most=3.0),
            Bar("ethanol force MAE", "ethanol/long/forces_mae", floor, most=8.0),
            Bar("ethanol energy MAE", "ethanol/long/energy_mae", floor, most=1.5), *beside()]
    for name, most in (("forces_less_central_differences_float64", 1e-6), ("rotation_error_float32", 1e-5),
                       ("drift_at_constant_energy", 0.02), ("extensivity_float32", 1e-5),
                       ("curl_of_the_forces_float64", 1e-6)):
        made.append(Bar(name.replace("_", " "), f"ethanol/physics/{name}", "bar", most=most))
    made += [Bar(f"{kind.replace('_', ' ')}, {n} ethanol", f"ethanol/speed/{kind}_of_{n}", f"schnet_{size}", ratio=0.5)
             for kind in ("md_step", "compiled_md_step") for n in (1, 32) for size in ("small", "default")]
    return [*made, *(Bar(f"packed training step, {mix}", f"mixed/{mix}/train_step", "padded", ratio=1 / 3)
                     for mix in ("qm9", "5_to_25", "18_to_90", "9_and_45"))]


def summary(results: Results) -> list[dict[str, Any]]:
    """what, bar, ours, peer (with its name), verdict: met, missed, beside, or not measured."""
    made: list[dict[str, Any]] = common.judged(all_bars(), results)
    return made
