"""The bars of `benchmarks/volumes.py` and whether they were met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sciml.report.bench import Results, Row

DATA = "hippocampus"


@dataclass(frozen=True)
class Bar:
    """least, most: of ours. ratio: of ours over the peer's. loss: that ours may be below the peer's. ahead: above it.
    None of all: reported beside."""

    what: str
    metric: str
    peer: str | None
    least: float | None = None
    most: float | None = None
    ratio: float | None = None
    loss: float | None = None
    ahead: bool = False

    @property
    def text(self) -> str:
        told = [f">= {self.least:g}" if self.least is not None else "", f"<= {self.most:g}" if self.most else "",
                f"<= {self.ratio:.3g} of the peer's" if self.ratio is not None else "",
                f"at most {self.loss:g} below" if self.loss is not None else "", "above the peer's" * self.ahead]
        return ", ".join(filter(None, told)) or "-"

    def holds(self, row: Row) -> bool | None:
        peer = row.peer
        checks = [None if self.least is None else row.ours >= self.least,
                  None if self.most is None else row.ours <= self.most,
                  None if self.ratio is None or peer is None else row.ours <= self.ratio * peer,
                  None if self.loss is None or peer is None else row.ours >= peer - self.loss,
                  None if not self.ahead or peer is None else row.ours > peer]
        asked = [check for check in checks if check is not None]
        return all(asked) if asked else None


def all_bars() -> list[Bar]:
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
    rows = {(row.metric, row.peer_name): row for row in results.rows}
    restored = [row for row in results.rows if row.metric.endswith(("/psnr", "/ssim")) and row.peer is not None]
    bars = all_bars() + [Bar(f"{row.metric} beside {row.peer_name}", row.metric, row.peer_name, ahead=True)
                         for row in restored]
    made = []
    for bar in bars:
        row = rows.get((bar.metric, bar.peer)) or (rows.get((bar.metric, None)) if bar.most else None)
        if row is None:
            made.append({"what": bar.what, "bar": bar.text, "ours": "", "peer": bar.peer or "",
                         "verdict": "not measured"})
            continue
        holds = bar.holds(row)
        peer = "" if row.peer is None else f"{row.peer:.4g} ({row.peer_name})"
        made.append({"what": bar.what, "bar": bar.text, "ours": f"{row.ours:.4g} {row.unit}", "peer": peer,
                     "verdict": "beside" if holds is None else "met" if holds else "missed"})
    return made
