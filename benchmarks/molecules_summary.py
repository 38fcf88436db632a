"""The bars of `benchmarks/molecules.py` and whether they were met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sciml.report.bench import Results, Row


@dataclass(frozen=True)
class Bar:
    """most: of ours. ratio: of ours over the peer's. None of both: reported beside."""

    what: str
    metric: str
    peer: str | None
    most: float | None = None
    ratio: float | None = None

    @property
    def text(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return "-" if self.ratio is None else f"< {self.ratio:.3g} of the peer's"

    def holds(self, row: Row) -> bool | None:
        if self.most is not None:
            return row.ours <= self.most
        return None if self.ratio is None or not row.peer else row.ours / row.peer < self.ratio


def beside() -> list[Bar]:
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


def all_bars() -> list[Bar]:
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
    rows = {(row.metric, row.peer_name): row for row in results.rows}
    made = []
    for bar in all_bars():
        row = rows.get((bar.metric, bar.peer))
        if row is None:
            made.append({"what": bar.what, "bar": bar.text, "ours": "", "peer": bar.peer or "",
                         "verdict": "not measured"})
            continue
        holds = bar.holds(row)
        peer = "" if row.peer is None else f"{row.peer:.4g} ({row.peer_name})"
        made.append({"what": bar.what, "bar": bar.text, "ours": f"{row.ours:.4g} {row.unit}", "peer": peer,
                     "verdict": "beside" if holds is None else "met" if holds else "missed"})
    return made
