"""Scores beside their baselines, and what they amount to in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sciml.report.fields import unit_text

WORDS = {"better": "better", "worse": "worse than the baseline", "no difference seen": "no difference seen"}
CLASSES = {"better": "better", "worse": "worse"}
_SPAN = math.log(4.0)


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


def table(evaluation: Mapping[str, Any]) -> list[Score]:
    """The rows of an evaluation."""
    return [_score(row) for row in evaluation["rows"]]


def _score(row: Mapping[str, Any]) -> Score:
    verdict = str(row.get("verdict") or "no baseline")
    unit = unit_text(row.get("unit") or "")
    low, high = row.get("low"), row.get("high")
    interval = f"{text(low)} … {text(high)}" if low is not None and high is not None else "–"
    name = f" {row['baseline_name']}" if row.get("baseline_name") else ""
    blocks = f", {row['blocks']} blocks" if row.get("blocks") is not None else ""
    return Score(
        question=str(row["question"]).replace("_", " "),
        metric=f"{str(row['metric']).replace('_', ' ')}{f', {unit}' if unit else ''}",
        value=text(row.get("value")), baseline=f"{text(row.get('baseline'))}{name}",
        ratio=text(row.get("ratio"), 3), interval=interval, verdict=f"{WORDS.get(verdict, verdict)}{blocks}",
        tone=CLASSES.get(verdict, "open"), plot=interval_plot(row))


def interval_plot(row: Mapping[str, Any]) -> Markup:
    """The ratio and its interval on a logarithmic scale from ¼ to 4 as a small SVG; the baseline is the middle line."""
    ratio, base, low, high = (row.get(key) for key in ("ratio", "baseline", "low", "high"))
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return Markup("")
    tone = CLASSES.get(str(row.get("verdict")), "open")
    parts = ['<line class="zero" x1="60" x2="60" y1="0" y2="18"/>']
    if low is not None and high is not None and base:
        ends = sorted((_place(1 + low / base), _place(1 + high / base)))
        parts.append(f'<line class="range" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="9" y2="9"/>')
    center = _place(ratio)
    beyond = abs(math.log(ratio)) > _SPAN
    mark = (f'<path d="M{center - 4:.1f} 9 l7 -4 v8 z"/>' if ratio < 1 else f'<path d="M{center + 4:.1f} 9 l-7 -4 v8 z"/>'
            ) if beyond else f'<circle cx="{center:.1f}" cy="9" r="3.5"/>'
    return Markup(f'<svg class="dot {tone}" viewBox="0 0 120 18" role="img" aria-label="ratio {text(ratio, 3)}">'  # noqa: S704
                  f"{''.join(parts)}{mark}</svg>")


def _place(ratio: float) -> float:
    if ratio <= 0:
        return 6.0
    return 60 + 54 * max(-1.0, min(1.0, math.log(ratio) / _SPAN))


def sentence(dataset: str, evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """What the scores of a data set amount to, and its tone: better, worse or open.

    >>> row = {"question": "one_step", "metric": "relative_l2", "value": 0.1, "baseline": 0.4, "ratio": 0.25,
    ...        "baseline_name": "persistence", "verdict": "better"}
    >>> sentence("navier_stokes", {"rows": [row]})[0]
    'On navier_stokes the model beats persistence (one step: relative l2 0.1 beside 0.4).'
    >>> sentence("ili", {"rows": [{**row, "verdict": "no difference seen"}]})[0]
    'On ili the model does not beat persistence: on no score of 1 is it better (one step: relative l2 0.1 beside 0.4).'
    """
    rows = [row for row in evaluation["rows"] if row.get("verdict") is not None]
    if not rows:
        return f"On {dataset} there is no baseline to compare with.", "open"
    peer = _join(sorted({str(row.get("baseline_name") or "its baseline") for row in rows}))
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in {row["verdict"] for row in rows}}
    better, worse, total = count.get("better", 0), count.get("worse", 0), len(rows)
    few = sum(n for verdict, n in count.items() if str(verdict).startswith("too few"))
    first = rows[0]
    example = (f" ({str(first['question']).replace('_', ' ')}: {str(first['metric']).replace('_', ' ')} "
               f"{text(first.get('value'))} beside {text(first.get('baseline'))})")
    if better == total:
        return f"On {dataset} the model beats {peer}{f' on all {total} scores' if total > 1 else ''}{example}.", "better"
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


