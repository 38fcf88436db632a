"""The card of series: forecasts beside floors that need no training, and how far each variate's gate is open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from sciml.adapter import Meeting, Sample
from sciml.cards import Entry, Progress, judged
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.series.tasks.forecast import Forecast
from sciml.errors import InputError
from sciml.handles.series_backtest import CUTOFF, ETS, MODEL, NAIVE, OURS, RIDGE, backtest, scores
from sciml.handles.series_intervals import model_of_store
from sciml.mixers.geometry import Geometry
from sciml.mixers.variate_gate import VariateGate, is_set
from sciml.operator.operator import Operator
from sciml.predictor import Predictor

TITLES = {NAIVE: "the seasonal naive", ETS: "AutoETS"}
WINDOWS = 64
SHOWN = 8
"""Variates that an entry names; of more, the most and the least open half as many each."""


def openness(predictor: Predictor, samples: Sequence[Sample]) -> xr.DataArray:
    """``(block, variate)``: each gate's mean over samples, tokens and heads; 0 where a variate goes by its own history
    alone, 1 where it reads the others in full.

    The second dimension is the set axis's, with the samples' labels; NaN for a variate that no sample has. Raises
    `InputError` if the operator has no gate, or there are no samples.
    """
    gates = dict(_gates(predictor.operator))
    if not gates or not samples:
        raise InputError("openness", key="operator.levels.mixers", found="no gate" if samples else "no samples",
                         expected="the mixer variate_gate and a sample", fix="train with mixers: [variate_gate, …]")
    plain, found = replace(predictor, compiled=None), dict[tuple[str, str], list[float]]()
    name = "variate"
    for sample in samples:
        batch = plain.of(sample).encode(sample)
        with _watched(gates) as seen:
            plain.forward(batch)
        for block, opened, geometry in seen:
            index = next((i for i, axis in enumerate(geometry.axes) if is_set(axis)), None)
            if index is None:
                continue
            name = geometry.axes[index].name
            mean = opened.double().movedim(index + 1, 0).flatten(1).mean(1).tolist()
            labels = sample[name].values if name in sample.coords else range(len(mean))
            for label, value in zip(map(str, labels), mean, strict=True):
                found.setdefault((block, label), []).append(value)
    members = list(dict.fromkeys(label for _, label in found))
    values = [[np.mean(found.get((block, label), [np.nan])) for label in members] for block in gates]
    return xr.DataArray(np.array(values).reshape(len(gates), len(members)), dims=("block", name), name="openness",
                        coords={"block": list(gates), name: members},
                        attrs={"units": "1", "long_name": "openness of the gate to the others",
                               "samples": len(samples)})


def _gates(operator: Operator) -> Iterator[tuple[str, VariateGate]]:
    """By the place of their block; a second one in a block is numbered."""
    levels: Sequence[Any] = list(operator.levels)
    for depth, level in enumerate(levels):
        for way, blocks in (("down", level.down), ("up", level.up)):
            for i, block in enumerate(blocks):
                own = [mixer for mixer in block.mixers if isinstance(mixer, VariateGate)]
                for j, gate in enumerate(own):
                    yield f"level {depth}, {way} {i}" + (f", {j}" if j else ""), gate


@contextmanager
def _watched(gates: dict[str, VariateGate]) -> Iterator[list[tuple[str, Tensor, Geometry]]]:
    """Block, openness and geometry of every call of these gates."""
    seen: list[tuple[str, Tensor, Geometry]] = []

    def watch(block: str, gate: VariateGate) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append((block, gate.openness(args[0], args[1]).detach(), args[1]))
        return gate.register_forward_pre_hook(before)

    handles = [watch(block, gate) for block, gate in gates.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def card(predictor: Predictor, store: Store, split: SplitName, assignments: Sequence[str] = (),
         progress: Progress | None = None) -> list[Entry]:
    """`floors` of forecasts, and `gates`. Value: ``ets=true`` asks AutoETS, too. Raises `InputError` on others."""
    asked = dict(each.partition("=")[::2] for each in assignments)
    if set(asked) - {"ets"} or asked.get("ets", "true") not in ("true", "false"):
        raise InputError("command line", key="--card", found=", ".join(assignments), expected="ets=true",
                         fix="correct it, or leave --card away")
    adapter = predictor.adapter(store.meta.domain)
    if isinstance(adapter, Meeting):
        adapter = adapter.meeting(store)
        predictor = replace(predictor, adapters={**predictor.adapters, adapter.name: adapter})
    made = [*floors(predictor, store, split, ets=asked.get("ets") == "true"), *gates(predictor, store, split)]
    if progress is not None:
        progress(1, 1)
    return made


def floors(predictor: Predictor, store: Store, split: SplitName, *, ets: bool = False) -> list[Entry]:
    """An entry per horizon and floor beside the ridge, which every score stands beside: our mean squared error over the
    floor's, from origins a horizon apart; it holds if that is at most 1. None of other tasks, or where times follow no
    step. Raises `InputError` without statsforecast, if asked for AutoETS.
    """
    adapter: Any = predictor.adapter(store.meta.domain)
    if not isinstance(adapter.task, Forecast) or model_of_store(predictor, store).known.clock.stepless:
        return []
    made, titles = [], {NAIVE: TITLES[NAIVE]} | ({ETS: TITLES[ETS]} if ets else {})
    for horizon in (int(question.name) for question in adapter.questions(store, split)):
        try:
            frame = backtest(predictor, store, horizon=horizon, split=split, ets=ets)
        except InputError as error:
            if error.key != f"{split} split":
                raise
            made += [Entry(f"{horizon} steps: mse over that of {title}", float("nan"), "1", 1.0, "open", str(error))
                     for title in titles.values()]
            continue
        found = {row[MODEL]: row["mse"] for row in scores(frame)}
        told = (f"{frame[CUTOFF].nunique()} origins {horizon} steps apart, ours {found[OURS]:.4g}, "
                f"ridge {found[RIDGE]:.4g}")
        made += [judged(f"{horizon} steps: mse over that of {title}", found[OURS] / found[floor], "1", 1.0,
                        f"{told}, {title} {found[floor]:.4g}") for floor, title in titles.items()]
    return made


def gates(predictor: Predictor, store: Store, split: SplitName) -> list[Entry]:
    """One entry per gate, of at most 64 windows spread over the split: the mean over variates, and which variate how
    far; empty for a model without gates."""
    if not dict(_gates(predictor.operator)):
        return []
    windows = predictor.adapter(store.meta.domain).open(store, split)
    indices = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), WINDOWS)).round().astype(int))
    samples = [windows.draw(int(i), np.random.default_rng([0, int(i)]), np.random.default_rng([0, 0])) for i in indices]
    found = openness(predictor, samples)
    return [Entry(f"openness to other variates, {block.item()}", float(row.mean()), "1", None, "", _named(row))
            for block, row in zip(found["block"], found)]


def _named(row: xr.DataArray) -> str:
    """Variates in the order of their openness.

    >>> _named(xr.DataArray([0.25, 1.0], coords={"variate": ["OT", "HUFL"]}))
    'HUFL 1.00, OT 0.25'
    """
    order = np.argsort(-row.values, kind="stable")
    texts = [f"{row[row.dims[0]].values[i]} {row.values[i]:.2f}" for i in order]
    half = SHOWN // 2
    return ", ".join(texts if len(texts) <= SHOWN else [*texts[:half], "…", *texts[-half:]])


PLUGIN = card
