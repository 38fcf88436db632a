"""Scores beside the floor: every question, ours and the baseline's, with intervals over independent blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciml.adapter import Comparing, DomainAdapter, Meeting, Question, Sample
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.metrics import Interval, paired_blocks
from sciml.packing import alike, collate
from sciml.predictor import Predictor, predictions, truths
from sciml.rollout import BlowUp, rollout
from sciml.tokens import Outputs, State, TokenBatch

BATCH = 16


@dataclass(frozen=True)
class Row:
    """One score: ours and the baseline's means over `samples` windows, the interval of their paired difference, and the
    verdict that `Interval.verdict` gives; "worse" where ours is not finite and the baseline's is."""

    question: str
    metric: str
    unit: str
    value: float
    baseline: float
    baseline_name: str
    interval: Interval
    verdict: str
    samples: int

    @property
    def ratio(self) -> float:
        return self.value / self.baseline if self.baseline else float("nan")


@dataclass
class Evaluation:
    """All rows, the curves of rollouts (metric over steps, ours and baseline's) and what to say of them."""

    domain: str
    dataset: str
    split: str
    scores: list[Row] = field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat mapping per score, as tables and JSON have it."""
        return [{"domain": self.domain, "dataset": self.dataset, "question": row.question, "metric": row.metric,
                 "unit": row.unit, "value": row.value, "baseline": row.baseline, "baseline_name": row.baseline_name,
                 "ratio": row.ratio, "low": row.interval.low, "high": row.interval.high, "blocks": row.interval.blocks,
                 "verdict": row.verdict, "samples": row.samples} for row in self.scores]

    def json(self) -> dict[str, Any]:
        return {"domain": self.domain, "dataset": self.dataset, "split": self.split, "rows": self.rows,
                "curves": self.curves, "warnings": self.warnings}


def evaluate(predictor: Predictor, store: Store, split: SplitName = "test", *, questions: Sequence[str] | None = None,
             max_windows: int | None = None, progress: Callable[[int, int], None] | None = None) -> Evaluation:
    """Ask every question of the store's domain (or those named); `max_windows` takes evenly spread windows of each.

    Warns where the checkpoint has seen this data set under other splits: its test samples may have been trained on.
    """
    adapter = predictor.adapter(store.meta.domain)
    if isinstance(adapter, Meeting):
        adapter = adapter.meeting(store)
        predictor = replace(predictor, adapters={**predictor.adapters, adapter.name: adapter})
    result = Evaluation(adapter.name, store.meta.dataset, split)
    seen = dict(predictor.provenance.get("stores", {})).get(store.meta.dataset)
    if seen is not None and seen != store.meta.split_identity():
        result.warnings.append(f"{store.meta.dataset} was trained on under another split ({seen}, here "
                               f"{store.meta.split_identity()}): test samples may have been seen in training")
    result.warnings += getattr(adapter, "notes", [])
    asked = [q for q in adapter.questions(store, split) if questions is None or q.name in questions]
    plans = [(q, _indices(len(q.windows), max_windows)) for q in asked]
    total, done = sum(len(indices) for _, indices in plans), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for question, indices in plans:
        ours, floor = _answer(predictor, adapter, question, indices, tick)
        if isinstance(adapter, Comparing):
            ours, floor = adapter.across(ours), adapter.across(floor)
        block = max(1, round(question.block * len(indices) / max(len(question.windows), 1)))
        _summarise(result, adapter, question, ours, floor, block)
    return result


def _indices(size: int, limit: int | None) -> list[int]:
    if limit is None or size <= limit:
        return list(range(size))
    return [int(i) for i in np.unique(np.linspace(0, size - 1, limit).round())]


Scores = dict[str, np.ndarray]


def _answer(predictor: Predictor, adapter: DomainAdapter, question: Question, indices: Sequence[int],
            tick: Callable[[int], None]) -> tuple[Scores, Scores]:
    """Scores of all windows of a question: ours and the baseline's."""
    ours: list[Scores] = []
    floor: list[Scores] = []
    for start in range(0, len(indices), BATCH):
        rngs = [(np.random.default_rng([0, i]), np.random.default_rng([0, 0])) for i in indices[start: start + BATCH]]
        samples = [question.windows.draw(i, *rng) for i, rng in zip(indices[start: start + BATCH], rngs)]
        for prediction, baseline, truth in _predict(predictor, adapter, question, samples):
            ours.append(adapter.score(question, prediction, truth))
            floor.append(adapter.score(question, baseline, truth))
        tick(len(samples))
    return tuple({name: np.concatenate([part[name] for part in parts if name in part])
                  for name in dict.fromkeys(name for part in parts for name in part)}
                 for parts in (ours, floor))  # type: ignore[return-value]


def _predict(predictor: Predictor, adapter: DomainAdapter, question: Question,
             samples: Sequence[Sample]) -> Iterator[tuple[xr.Dataset, xr.Dataset, xr.Dataset]]:
    """(prediction, baseline, truth) with a leading dimension sample; for rollouts step follows."""
    floor = adapter.floor()
    if question.steps == 0:
        encoded = [adapter.encode(sample) for sample in samples]
        others = encoded if floor is adapter else [floor.encode(sample) for sample in samples]
        done = 0
        for some in alike(encoded):
            batch, plain = collate(some), collate(others[done: done + len(some)])
            done += len(some)
            truth = truths(predictor.operator.specs[adapter.name], batch)
            yield (adapter.decode(batch, predictions(batch, predictor.forward(batch))),
                   floor.decode(plain, predictions(plain, zero_outputs(plain))), adapter.decode(batch, truth))
        return
    for sample in samples:
        prediction = _frames(adapter, _until_blow_up(predictor, adapter.initial(sample), question.steps))
        baseline = _frames(floor, _baseline_states(floor, floor.initial(sample), question.steps))
        yield prediction, baseline, _truth(sample, prediction)


def _frames(adapter: DomainAdapter, states: Sequence[State]) -> xr.Dataset:
    frames = [adapter.observe(state).drop_vars("time") for state in states]
    return xr.concat(frames, dim="step", join="override", coords="minimal", compat="override").transpose(
        "sample", "step", ...)


def _truth(sample: Sample, prediction: xr.Dataset) -> xr.Dataset:
    """The sample's later times under the dimensions of a rollout."""
    later = sample[[str(name) for name in prediction.data_vars]].isel(time=slice(1, None))
    later = later.drop_vars("time", errors="ignore").rename(time="step")
    return later.expand_dims("sample").transpose("sample", "step", ...)


def _until_blow_up(predictor: Predictor, initial: State, steps: int) -> list[State]:
    """`steps` states; after a blow-up the last ones are NaN, which every metric counts as the worst."""
    states: list[State] = []
    with suppress(BlowUp):
        states.extend(rollout(predictor, initial, steps))
    last = states[-1] if states else initial
    lost = replace(last, batch=replace(last.batch, values=torch.full_like(last.batch.values, torch.nan)))
    return states + [lost] * (steps - len(states))


def _baseline_states(adapter: DomainAdapter, initial: State, steps: int) -> list[State]:
    states, state = [], initial
    for _ in range(steps):
        state = adapter.advance(state, zero_outputs(state.batch))
        states.append(state)
    return states


def zero_outputs(batch: TokenBatch) -> Outputs:
    """Every head that is asked for says nothing: the baseline's prediction."""
    return Outputs({head: torch.zeros_like(target.value) for head, target in batch.targets.items()})


def _summarise(result: Evaluation, adapter: DomainAdapter, question: Question, ours: Scores, floor: Scores,
               block: int) -> None:
    for metric in adapter.metrics():
        if metric.name not in ours or not len(ours[metric.name]):
            continue
        a, b = ours[metric.name], floor[metric.name]
        if a.ndim > 1:
            result.curves[f"{question.name}/{metric.name}"] = {
                "step": list(range(1, a.shape[1] + 1)), "ours": _mean(a, 0).tolist(), "baseline": _mean(b, 0).tolist()}
            a, b = _mean(a, 1), _mean(b, 1)
        interval = paired_blocks(a, b, block)
        lost = bool((~np.isfinite(a) & np.isfinite(b)).any())
        if lost:
            interval = replace(interval, difference=math.nan, low=math.nan, high=math.nan)
        ours_mean, floor_mean = (float(_mean(x, 0)) ** (0.5 if metric.root else 1) for x in (a, b))
        result.scores.append(Row(
            question.name, metric.name, metric.unit, ours_mean, floor_mean,
            question.baseline_name or adapter.baseline_name,
            interval, "worse" if lost else "" if metric.higher is None else interval.verdict(higher=metric.higher),
            len(a)))


def _mean(values: np.ndarray, axis: int) -> Any:
    """A plain mean: NaN (a rollout that blew up) is not forgiven."""
    if values.size:
        return values.mean(axis=axis)
    return np.full(values.shape[1 - axis], np.nan) if values.ndim > 1 else np.nan


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Along sample; parts of unequal lattices from their first cells, NaN beyond the smaller ones' ends."""
    if len(parts) == 1:
        return parts[0]
    lattices = [dim for dim in parts[0].dims if len({part.sizes[dim] for part in parts}) > 1 and dim != "sample"]
    counted = [part.assign_coords({dim: np.arange(part.sizes[dim]) for dim in lattices}) for part in parts]
    return xr.concat(counted, dim="sample", join="outer", coords="minimal", compat="override")


def examples(predictor: Predictor, store: Store, split: SplitName = "test") -> xr.Dataset | None:
    """Direct predictions to look at: as many windows of the longest direct question as it says (`Question.shown`).

    ``<name>``, ``<name>_truth``, ``<name>_baseline`` and, where a question says so (`Question.look_back`), ``history``
    ``(sample, past, …)`` with ``past_time``. None if the domain asks no direct question, or one that shows nothing.
    """
    adapter = predictor.adapter(store.meta.domain)
    asked = [q for q in adapter.questions(store, split) if q.steps == 0]
    if not asked or not asked[-1].shown:
        return None
    rng = np.random.default_rng([0, 0])
    samples = [asked[-1].windows.draw(i, rng, rng) for i in _indices(len(asked[-1].windows), asked[-1].shown)]
    ours, baseline, truth = map(_joined, zip(*_predict(predictor, adapter, asked[-1], samples)))
    names = [str(name) for name in ours.data_vars if name in truth and ours[name].dtype.kind == "f"]
    truth = truth.assign({n: truth[n].where(truth[f"{n}_known"]) for n in names if f"{n}_known" in truth})
    result = ours[names].assign({f"{n}_truth": truth[n] for n in names} | {f"{n}_baseline": baseline[n] for n in names})
    if asked[-1].look_back:
        past = [adapter.observe(adapter.initial(s)).rename(time="past", valid_time="past_time") for s in samples]
        result["history"] = xr.concat([p[names[0]] for p in past], dim="sample", join="override", coords="minimal",
                                      compat="override")
        result = result.assign_coords(past_time=(("sample", "past"), np.concatenate([p["past_time"] for p in past])))
    text = {name: coord.astype(object) for name, coord in result.coords.items() if coord.dtype.kind == "U"}
    return result.assign_coords(text).assign_attrs(question=asked[-1].name, split=split)
