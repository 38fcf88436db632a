"""From what a run folder holds to one HTML file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciml.data.files import replacing
from sciml.errors import InputError
from sciml.report import fields, machine, molecules, scores, series, spikes, statistics, volumes
from sciml.report.charts import BASELINE, OURS, SERIES, Line, Picture, chart, smooth
from sciml.report.maps import Panel
from sciml.report.run import Log, Run

MAX_BYTES = 6_000_000


@dataclass(frozen=True)
class Part:
    """One run on the page: the pretraining, or the fine-tuning that followed. Empty lists are said to be absent."""

    run: Run
    kind: str
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[tuple[str, str], ...]
    tables: tuple[scores.Table, ...]
    training: tuple[Picture, ...]
    panels: tuple[Panel, ...]
    errors: tuple[Picture, ...]
    spectra: tuple[Picture, ...]
    forecasts: tuple[Picture, ...]


def render(run: Run, out: Path) -> Path:
    """Draw, fill the template, write `out` through a sibling and a rename. Raises `InputError` above 6 MB."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    panels = max(1, 2 * sum(len(r.rollouts) for r in (run, *run.children)))
    parts = [part(run, "Training", panels), *(part(child, "Fine-tuning", panels) for child in run.children)]
    environment = Environment(loader=PackageLoader("sciml.report", "templates"), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    place = Path(__file__).parent / "templates"
    inline = {name: Markup((place / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    environment.globals.update(provenance=provenance, cards=molecules.cards, kind=kind, **inline)
    html = environment.get_template("page.html").render(
        title=run.name, parts=parts, created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=machine.versions(), lead=lead(run))
    if len(html.encode()) > MAX_BYTES:
        raise InputError(out, found=f"{len(html.encode()) / 1e6:.1f} MB", expected=f"at most {MAX_BYTES / 1e6:.0f} MB",
                         fix="leave some of the stores out of the run's rollout/ and forecast/ folders")
    with replacing(out) as new:
        new.write_text(html, encoding="utf-8")
    return out


def part(run: Run, kind: str, budget: int) -> Part:
    """Draw all that one run folder holds."""
    drawn = {name: {path for path in (*run.rollouts.values(), *run.forecasts.values()) if domain_of(path) == name}
             for name in DRAWN}
    others = set().union(*drawn.values())
    sources = [source for name, path in run.rollouts.items() if path not in others
               for source in fields.sources(name, path)]
    spectra = [fields.spectrum(source, f"spectrum {kind} {source.dataset} {source.name}") for source in sources]
    return Part(
        run, kind, facts=facts(run),
        verdicts=tuple(scores.sentence(name, evaluation) for name, evaluation in run.evaluations.items()),
        tables=tuple(scores.table(name, evaluation) for name, evaluation in run.evaluations.items()),
        training=training(run.log, kind) if run.log is not None else (),
        panels=tuple(panel for source in sources for panel in fields.panels(source, budget)),
        errors=tuple(error_curves(run, sources, kind)),
        spectra=(*(s for s in spectra if s is not None), *statistics.of_run(run)),
        forecasts=(*(series.forecasts(name, path, _peer(run, name)) for name, path in run.forecasts.items()
                     if path not in others), *(picture for name, draw in DRAWN.items()
                                               for picture in draw(run, drawn[name]))))


def domain_of(path: Path) -> str:
    """What a rollout or forecast store says it is of."""
    return str(xr.open_zarr(path, consolidated=False, decode_timedelta=False).attrs.get("domain", ""))


def _of_spikes(run: Run, paths: Set[Path]) -> Iterator[Picture]:
    for name, path in run.rollouts.items():
        yield from spikes.generated(name, path) if path in paths else ()
    for name, path in run.forecasts.items():
        yield from spikes.predicted(name, path, _peer(run, name)) if path in paths else ()


def _of_molecules(run: Run, paths: Set[Path]) -> Iterator[Picture]:
    for name, path in run.forecasts.items():
        yield from molecules.predicted(name, path) if path in paths else ()
    for name, path in run.rollouts.items():
        yield from molecules.moved(name, path) if path in paths else ()
    yield from molecules.of_run(run)


def _of_volumes(run: Run, paths: Set[Path]) -> Iterator[Picture]:
    for name, path in run.forecasts.items():
        yield from volumes.pictures(name, path) if path in paths else ()


DRAWN: Mapping[str, Callable[[Run, Set[Path]], Iterator[Picture]]] = {
    "spikes": _of_spikes, "molecules": _of_molecules, "volumes": _of_volumes}
"""How what a domain predicted is drawn; of others, rollouts are fields and forecasts series."""


def kind(run: Run) -> str:
    """What the section of windows and trajectories is called."""
    only = " ".join(run.recipe.get("domains", {}))
    return only.capitalize() if only in DRAWN else "Series"


def lead(run: Run) -> str:
    """What was trained on what, in one sentence."""
    data = [_stem(source.get("store", "")) for source in run.recipe.get("data", [])]
    size = _number(run.checkpoint, "parameters")
    what = f"One operator{f' with {size:,} parameters' if size else ''}".replace(",", " ")
    on = f", trained on {' and '.join(data)}" if data else ""
    tuned = [_stem(s.get("store", "")) for child in run.children for s in child.recipe.get("data", [])]
    return f"{what}{on}{f', then fine-tuned on {chr(32).join(tuned)}' if tuned else ''}."


def facts(run: Run) -> tuple[tuple[str, str], ...]:
    """What the headline lists; what is not known is left out."""
    found: list[tuple[str, str]] = []
    if run.log is not None:
        found.append(("Steps", f"{run.log.steps:,}".replace(",", " ")))
        if run.log.samples:
            found.append(("Samples seen", f"{run.log.samples:,}".replace(",", " ")))
        if run.log.seconds:
            found.append(("Wall clock", scores.duration(run.log.seconds)))
    size = _number(run.checkpoint, "parameters")
    if size:
        found.append(("Parameters", f"{size:,}".replace(",", " ")))
    made = run.checkpoint.get("provenance", {})
    if made.get("machine"):
        found.append(("Machine", str(made["machine"])))
    if run.recipe.get("seed") is not None:
        found.append(("Seed", str(run.recipe["seed"])))
    return tuple(found)


def training(log: Log, key: str) -> tuple[Picture, ...]:
    """Loss by data set, validation beside its baseline; both on a logarithmic scale."""
    pictures = []
    colors = {name: SERIES[i % len(SERIES)] for i, name in enumerate(dict.fromkeys((*log.losses, *log.validation)))}
    size = (4.4, 2.9)
    if log.losses:
        longest = max(len(steps) for steps, _ in log.losses.values())
        width = max(1, longest // 60)
        lines = [Line(steps, smooth(values, width), name, colors[name]) for name, (steps, values) in log.losses.items()]
        shown = f"running median of {width} logged values" if width > 1 else "as logged"
        pictures.append(Picture(chart(lines, alt=f"Training loss by data set against step: {_ends(log.losses)}",
                                      key=f"loss {key}", x_label="step", y_label="loss", log_y=True, size=size),
                                f"Training loss, {shown}.", "Training loss"))
    if log.validation:
        lines = [Line(*points, name, colors[name]) for name, points in log.validation.items()]
        lines += [Line(*points, "_", colors.get(name, BASELINE), (0, (2, 2)), 1.2)
                  for name, points in log.baseline.items()]
        pictures.append(Picture(chart(lines, alt=f"Validation loss by data set against step: {_ends(log.validation)}",
                                      key=f"validation {key}", x_label="step", y_label="validation loss",
                                      log_y=True, size=size),
                                "Validation loss; dashed: the baseline alone on the same windows.", "Validation"))
    return tuple(pictures)


def error_curves(run: Run, sources: list[fields.Source], key: str) -> list[Picture]:
    """Error against rollout step from the evaluations; where they hold none, from the rollout itself."""
    pictures = []
    for dataset, evaluation in run.evaluations.items():
        for name, curve in (evaluation.get("curves") or {}).items():
            title = f"{scores.words(name)}, {dataset}"
            metric = scores.words(name.partition("/")[2] or name)
            pictures.append(_error_curve(title, metric, curve, _peer(run, dataset), f"{key} {dataset} {name}"))
    if pictures:
        return pictures
    for source in sources:
        errors = fields.errors(source)
        if errors is not None:
            title = f"relative L2 of {source.title}, {source.dataset}"
            pictures.append(_error_curve(title, "relative L2", errors, "", f"{key} {title}"))
    return pictures


def _error_curve(title: str, metric: str, curve: Mapping[str, list[float]], peer: str, key: str) -> Picture:
    step, log = np.asarray(curve["step"], np.float64), "correlation" not in title
    lines = [Line(step, _floats(curve["ours"]), "model", OURS)]
    if curve.get("baseline") is not None:
        lines.insert(0, Line(step, _floats(curve["baseline"]), peer, BASELINE, (0, (3, 2)), 1.4))
    ends = ", ".join(f"{line.label} from {scores.text(line.y[0])} to {scores.text(line.y[-1])}" for line in lines)
    svg = chart(lines, alt=f"{title} against rollout step: {ends}", key=f"error {key}", x_label="rollout step",
                y_label=metric, log_y=log, size=(4.4, 2.7))
    return Picture(svg, f"{ends[:1].upper()}{ends[1:]} over {int(step[-1])} steps.", f"{title[:1].upper()}{title[1:]}")


def provenance(run: Run) -> list[tuple[str, str]]:
    """Title and text of what the run was made from and with: the recipe and what the checkpoint says of itself."""
    found = [("Recipe", run.recipe_text)] if run.recipe_text else []
    titles = {"provenance": "Data sets with the hash of their files and splits, versions, machine",
              "files": "Checkpoint files and their SHA-256", "domains": "Channels and units"}
    for key, title in titles.items():
        if run.checkpoint.get(key):
            found.append((title, json.dumps(run.checkpoint[key], indent=2, ensure_ascii=False, default=str)))
    return found


def _peer(run: Run, dataset: str) -> str:
    rows = run.evaluations.get(dataset, {}).get("rows", [])
    return next((str(row["baseline_name"]) for row in rows if row.get("baseline_name")), "baseline")


def _ends(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    return "; ".join(f"{name} from {scores.text(y[0])} to {scores.text(y[-1])}" for name, (_, y) in curves.items())


def _floats(values: list[Any]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _number(mapping: Mapping[str, Any], key: str) -> int | None:
    value = mapping.get(key)
    return value if isinstance(value, int) else None


def _stem(url: str) -> str:
    return str(url).rstrip("/").rpartition("/")[2].removesuffix(".zarr")
