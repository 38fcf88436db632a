"""Scores beside their baselines, and what they amount to in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from markupsafe import Markup

from sciml.report.fields import unit_text

WORDS = {"better": "better", "worse": "worse than the baseline", "no difference seen": "no difference seen"}
CLASSES = {"better": "better", "worse": "worse"}
SPANS = (1.1, 1.25, 2.0, 4.0, 10.0, 20.0, 50.0, 100.0)
_PRINTED = {"mse": "MSE", "mae": "MAE", "rmse": "RMSE", "mase": "MASE", "wape": "WAPE", "wql": "WQL", "l2": "L2",
            "gmean": "geometric mean of"}


@dataclass(frozen=True)
class Score:
    """A row of the table as it is printed."""

    question: str
    metric: str
    value: str
    baseline: str
    ratio: str
    interval: str
    verdict: str
    tone: str
    plot: Markup


@dataclass(frozen=True)
class Table:
    """The scores of a data set; the plots span 1/`span` to `span` on a logarithmic scale."""

    dataset: str
    span: float
    rows: tuple[Score, ...]
    warnings: tuple[str, ...]

    def ends(self) -> tuple[str, str]:
        return f"1/{self.span:g}", f"{self.span:g}"


def table(dataset: str, evaluation: Mapping[str, Any]) -> Table:
    """The rows of an evaluation, on the narrowest scale that holds all ratios."""
    ratios = [row["ratio"] for row in evaluation["rows"] if _known(row.get("ratio")) and row["ratio"] > 0]
    extent = [max(ratio, 1 / ratio) for ratio in ratios]
    span = next((s for s in SPANS if s >= max(extent, default=1.0)), SPANS[-1])
    return Table(dataset, span, tuple(_score(row, span) for row in evaluation["rows"]),
                 tuple(map(str, evaluation.get("warnings", ()))))


def _score(row: Mapping[str, Any], span: float) -> Score:
    verdict = str(row.get("verdict") or "no baseline")
    unit = unit_text(row.get("unit") or "")
    low, high = row.get("low"), row.get("high")
    interval = f"{text(low, 3)} … {text(high, 3)}" if _known(low) and _known(high) else "–"
    name = f" {row['baseline_name']}" if row.get("baseline_name") else ""
    count = row.get("blocks")
    blocks = "" if count is None else f" ({count} block{'' if count == 1 else 's'})"
    return Score(
        question=words(row["question"]), metric=f"{words(row['metric'])}{f', {unit}' if unit else ''}",
        value=text(row.get("value")), baseline=f"{text(row.get('baseline'))}{name}",
        ratio=ratio_text(row.get("ratio")), interval=interval, verdict=f"{WORDS.get(verdict, verdict)}{blocks}",
        tone=CLASSES.get(verdict, "open"), plot=interval_plot(row, span))


def words(name: object) -> str:
    """A name from the code as it is printed.

    >>> words("gmean_relative_l2"), words("rmse/vorticity"), words("96")
    ('geometric mean of relative L2', 'RMSE, vorticity', 'horizon 96')
    """
    if str(name).isdigit():
        return f"horizon {name}"
    spaced = str(name).replace("_", " ").replace("/", ", ")
    return re.sub(r"\w+", lambda match: _PRINTED.get(match[0], match[0]), spaced)


def interval_plot(row: Mapping[str, Any], span: float) -> Markup:
    """The ratio and its interval on a logarithmic scale from 1/span to span as a small SVG; the baseline is the middle.

    The interval is that of the difference over the baseline's mean; what lies beyond the scale is drawn at its end.
    """
    ratio, base, low, high = (row.get(key) for key in ("ratio", "baseline", "low", "high"))
    if not _known(ratio) or ratio <= 0:
        return Markup("")
    tone = CLASSES.get(str(row.get("verdict")), "open")
    parts = ['<line class="zero" x1="60" x2="60" y1="0" y2="18"/>']
    if base and _known(low) and _known(high):
        ends = sorted(_place(1 + end / base, span) for end in (low, high))
        parts.append(f'<line class="range" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="9" y2="9"/>')
    parts.append(f'<circle cx="{_place(ratio, span):.1f}" cy="9" r="3.5"/>')
    return Markup(f'<svg class="dot {tone}" viewBox="0 0 120 18" role="img" aria-label="ratio {text(ratio, 3)}">'
                  f"{''.join(parts)}</svg>")


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _place(ratio: float, span: float) -> float:
    if ratio <= 0:
        return 6.0
    return 60 + 54 * max(-1.0, min(1.0, math.log(ratio) / math.log(span)))


def sentence(dataset: str, evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """What the scores of a data set amount to, and its tone: better, worse or open.

    >>> row = {"question": "one_step", "metric": "relative_l2", "value": 0.1, "baseline": 0.4, "ratio": 0.25,
    ...        "baseline_name": "persistence", "verdict": "better"}
    >>> sentence("navier_stokes", {"rows": [row]})[0]
    'On navier_stokes the model beats persistence (one step: relative L2 0.1 beside 0.4).'
    >>> sentence("ili", {"rows": [{**row, "verdict": "no difference seen"}]})[0]
    'On ili the model does not beat persistence: on no score of 1 is it better (one step: relative L2 0.1 beside 0.4).'
    """
    rows = [row for row in evaluation["rows"] if row.get("verdict") is not None]
    if not rows:
        return f"On {dataset} there is no baseline to compare with.", "open"
    peer = _join(sorted({str(row.get("baseline_name") or "its baseline") for row in rows}))
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in {row["verdict"] for row in rows}}
    better, worse, total = count.get("better", 0), count.get("worse", 0), len(rows)
    few = sum(n for verdict, n in count.items() if str(verdict).startswith("too few"))
    first = rows[0]
    example = (f" ({words(first['question'])}: {words(first['metric'])} "
               f"{text(first.get('value'))} beside {text(first.get('baseline'))})")
    if better == total:
        scope = f" on all {total} scores" if total > 1 else ""
        return f"On {dataset} the model beats {peer}{scope}{example}.", "better"
    if few == total:
        return (f"On {dataset} there are too few independent blocks to say whether the model beats {peer}{example}.",
                "open")
    rest = [f"{worse} worse" if worse else "", f"{few} with too few independent blocks" if few else "",
            f"{total - better - worse - few} with no difference seen" if total - better - worse - few else ""]
    if better:
        return (f"On {dataset} the model beats {peer} on {better} of {total} scores, "
                f"{_join([part for part in rest if part])}{example}.", "worse" if worse else "open")
    tail = f", on {worse} it is worse" if worse else ""
    return f"On {dataset} the model does not beat {peer}: on no score of {total} is it better{tail}{example}.", "worse"


def text(value: Any, digits: int = 4) -> str:
    """A figure with a proper minus sign, a dash for nothing.

    >>> text(-0.25), text(None), text(1.23456e-6, 3), text(32.0)
    ('−0.25', '–', '1.23e−06', '32')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{float(value):.{digits}g}".replace("-", "−")


def ratio_text(value: float | None) -> str:
    """A ratio with three decimals near 1, three digits elsewhere.

    >>> ratio_text(1.0004), ratio_text(0.0512), ratio_text(None)
    ('1.000', '0.0512', '–')
    """
    return f"{value:.3f}" if _known(value) and 0.1 <= value < 10 else text(value, 3)


def duration(seconds: float) -> str:
    """Wall-clock time in words.

    >>> duration(192.4), duration(8000), duration(41)
    ('3 min 12 s', '2 h 13 min', '41 s')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


