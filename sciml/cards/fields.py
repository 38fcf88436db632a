"""The card of fields: long rollouts, their statistics beside the truth's. Asked for with ``--card steps=200``.

Limits are those of the project for turbulence between walls: mean profile within 3 %, root mean square of fluctuations
within 8 %, spectra within a factor of 1.5 up to half the Nyquist wavenumber.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from sciml.cards import Entry, Progress, judged
from sciml.cards import Entry as CardEntry
from sciml.cards.fields_rollouts import Followed, Plan, follow, joined
from sciml.data.schema import SplitName
from sciml.data.store import Store
from sciml.domains.fields.config import shortest
from sciml.domains.fields.growth import FIRST, THRESHOLD, together
from sciml.domains.fields.statistics import Layout, Statistics
from sciml.errors import InputError
from sciml.metrics import shell_factors
from sciml.predictor import Predictor
from sciml.recipe import Section, override, validate

MEAN_LIMIT, RMS_LIMIT, SPECTRUM_LIMIT = 0.03, 0.08, 1.5
NAMES = {"truth": "theirs", "model": "ours", "whole": "whole"}
"""As curves are named → as `Followed.gathered` does."""


class CardConfig(Section):
    """steps: length of the rollouts, by default as long as the truth is known; trajectories: how many of the split's
    first. skip: steps at the beginning that statistics leave out. profile: the axis that means are kept apart along, by
    default the only one that isn't periodic."""

    steps: int | None = Field(default=None, ge=1)
    trajectories: int = Field(default=2, ge=1)
    skip: int = Field(default=0, ge=0)
    profile: str = ""


class Curves(dict[str, Any]):
    """What a figure is drawn from: ``error``, ``spectra``, ``profiles``, ``stresses``; a table has no room for it."""

    def __str__(self) -> str:
        return ", ".join(name for name, part in self.items() if part)


@dataclass(frozen=True)
class Shown(CardEntry):
    """An entry with curves, which `sciml report` draws (`sciml.report.statistics`)."""

    curves: Mapping[str, Any] = field(default_factory=Curves)


def card(predictor: Predictor, store: Store, split: SplitName, assignments: Sequence[str] = (),
         progress: Progress | None = None) -> list[Entry]:
    """Roll the split's first states out; nothing unless it is asked for by a value of `CardConfig`. Raises `InputError`
    for steady data, or a split without a trajectory of two states."""
    if not assignments:
        return []
    config = validate(CardConfig, override(CardConfig().model_dump(mode="json"), assignments), where="command line")
    adapter: Any = predictor.adapter(store.meta.domain)
    starts = adapter.starts(store, split)
    count = min(config.trajectories, len(starts))
    longest = max((block.stop - block.start for block in starts.blocks[:count]), default=0)
    steps = config.steps or (longest - 1) // shortest(adapter.config.leads)
    if not count or steps < 1:
        raise InputError(store.url, key=f"split {split}", found="steady data" if store.meta.dt is None else
                         f"{count} trajectories of at most {longest} states", expected="trajectories to roll out",
                         fix="choose another split, or leave --card away")
    if config.skip >= steps:
        raise InputError("command line", key="skip", found=config.skip, expected=f"less than the {steps} steps",
                         fix="skip fewer steps")
    parts = []
    for index in range(count):
        parts.append(follow(predictor, starts, index, Plan(steps, config.skip, config.profile)))
        if progress is not None:
            progress(index + 1, count)
    return entries(parts, steps)


def entries(parts: Sequence[Followed], steps: int) -> list[Entry]:
    """Of several rollouts of one data set, each meant to be `steps` long."""
    whole, ours, theirs = (joined(parts, name) for name in ("whole", "ours", "theirs"))
    made = [_finite(parts, steps), *_errors(parts)]
    if ours is not None and theirs is not None:
        made += _beside(ours, theirs, f"{ours.count} states of each")
        if whole is not None and whole.count > ours.count:
            told = f"{whole.count} states beside {theirs.count} of the truth"
            made += _beside(whole, theirs, told, ", whole rollout")
    return made + _drifts(parts)


def _finite(parts: Sequence[Followed], steps: int) -> Entry:
    least = min(part.steps for part in parts)
    blown = [f"{part.source} blew up at step {part.steps + 1}" for part in parts if part.steps < steps]
    told = "; ".join(blown) or f"rollouts: {len(parts)}; truth known for {min(part.known for part in parts)} steps"
    entry = judged("finite steps", float(least), "steps", float(steps), told, least=True)
    return Shown(entry.name, entry.value, entry.unit, entry.limit, entry.verdict, entry.note, curves(parts))


def _errors(parts: Sequence[Followed]) -> list[Entry]:
    """Beside the truth, as far as it is known; not a number where a rollout didn't last as long."""
    known, contract, dt = min(part.known for part in parts), parts[0].contract, parts[0].dt
    if not known:
        return []
    first, lost = min(known, FIRST), any(part.lost for part in parts)
    gmean = [part.growth.gmean if part.growth.count >= first else np.nan for part in parts]
    held = float(np.mean([part.growth.held for part in parts]))
    made = [Entry(f"relative L2, geometric mean of {first} steps", float(np.mean(gmean)), "1", None, "",
                  "mean over channels; 1 for the zero field"),
            Entry(f"time of a correlation of {THRESHOLD:g}", held * dt, contract.time_unit, None, "",
                  f"truth known for {known * dt:.6g}")]
    rmse = np.sqrt(np.mean([part.growth.rmse**2 for part in parts], axis=0))
    told = "blew up while the truth was known" if lost else f"over {known} steps"
    return made + [Entry(f"rmse of {name}", np.nan if lost else float(rmse[i]), scaling.unit, None, "", told)
                   for i, (name, scaling) in enumerate(contract.states.items())]


def _beside(ours: Statistics, theirs: Statistics, told: str, which: str = "") -> list[Entry]:
    """Means, fluctuations, stresses and spectra beside the truth's; root mean squares along the profile. Errors of a
    mean are parts of the size of the channel, or of its whole vector, those of a stress of the product of the rms."""
    layout, across = theirs.layout, theirs.layout.across
    along = "" if layout.profile is None else f" along {layout.axes[layout.profile]}"
    made: list[Entry] = []
    for i, name in enumerate(layout.channels):
        mean = _part(_norm(ours.mean[i] - theirs.mean[i], across), _size(theirs, name))
        rms = _part(_norm(ours.rms[i] - theirs.rms[i], across), _norm(theirs.rms[i], across))
        made += [judged(f"mean of {name}{along}, error{which}", mean, "1", MEAN_LIMIT, told),
                 judged(f"rms of {name}{along}, error{which}", rms, "1", RMS_LIMIT, told)]
    for components in layout.vectors.values():
        for a, b in combinations(components.values(), 2):
            both = np.prod([theirs.rms[layout.channels.index(name)] for name in (a, b)], axis=0)
            error = _part(_norm(ours.stress(a, b) - theirs.stress(a, b), across), float(np.nansum(across * both)))
            made.append(Entry(f"stress ⟨{a}′ {b}′⟩{along}, error{which}", error, "1", None, "", told))
    for name, spectrum in theirs.spectra.items():
        if name in ours.spectra:
            pair = [s.overall(layout) for s in (ours.spectra[name], spectrum)]
            ratios = shell_factors(*pair)[1: 1 + (len(spectrum.k) - 1) // 2].tolist() or [np.nan]
            where = f"{told}; at wave {1 + int(np.argmax(ratios))} of {len(spectrum.k) - 1}"
            made.append(judged(f"spectrum {name}, largest factor{which}", max(ratios), "1", SPECTRUM_LIMIT, where))
    return made


def _drifts(parts: Sequence[Followed]) -> list[Entry]:
    """How far the mean over space got from its start, over the root mean square of the initial state."""
    made = []
    for i, (name, scaling) in enumerate(parts[0].contract.states.items()):
        ours, theirs = (max(float(part.drifts[which].relative[i]) for part in parts) for which in (0, 1))
        step = max(float(part.drifts[0].step[i]) for part in parts)
        unit = "" if scaling.unit == "1" else f" {scaling.unit}"
        made.append(Entry(f"drift of the mean of {name}", ours, "1", None, "",
                          f"at most {step:.3g}{unit} in a step; the truth drifts by {theirs:.3g}"))
    return made


def curves(parts: Sequence[Followed]) -> Curves:
    """Growth of the error in time, profiles and spectra: the truth's, the rollouts' over the same steps, and over all.
    """
    found = {name: statistics for name in ("truth", "model", "whole")
             if (statistics := joined(parts, NAMES[name])) is not None}
    if "model" in found and found["whole"].count == found["model"].count:
        del found["whole"]
    contract, dt, trace = parts[0].contract, parts[0].dt, together([part.growth for part in parts])
    error = {"time": [step * dt for step in trace.steps], "unit": contract.time_unit,
             "relative_l2": [values[0] for values in trace.values], "correlation": [v[1] for v in trace.values]}
    return Curves(error=error if trace.steps else {}, spectra=_spectra(parts[0], found),
                  profiles=_profiles(parts[0], found), stresses=_stresses(parts[0], found))


def _profiles(part: Followed, found: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    layout = part.layout
    if layout.profile is None:
        return []
    axis = part.contract.axes[layout.profile]
    return [{"name": name, "unit": scaling.unit, "axis": axis.name, "axis_unit": axis.unit,
             "place": layout.places[layout.profile].tolist(),
             "mean": {which: s.mean[i].tolist() for which, s in found.items()},
             "rms": {which: s.rms[i].tolist() for which, s in found.items()}}
            for i, (name, scaling) in enumerate(part.contract.states.items())]


def _stresses(part: Followed, found: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    """Along the profile, of every pair of components."""
    layout = part.layout
    if layout.profile is None:
        return []
    return [{"name": f"⟨{a}′ {b}′⟩", "place": layout.places[layout.profile].tolist(),
             "stress": {which: s.stress(a, b).tolist() for which, s in found.items()}}
            for components in layout.vectors.values() for a, b in combinations(components.values(), 2)]


def _spectra(part: Followed, found: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for s in found.values() for name in s.spectra)
    return [{"name": name, "axis_unit": part.contract.axes[0].unit,
             "k": next(s.spectra[name].k for s in found.values() if name in s.spectra).tolist(),
             "power": {which: s.spectra[name].overall(part.layout).tolist() for which, s in found.items()
                       if name in s.spectra}} for name in names]


def _size(statistics: Statistics, name: str) -> float:
    """Root mean square of a channel, or of the vector that it is a component of."""
    layout: Layout = statistics.layout
    own = next((list(parts.values()) for parts in layout.vectors.values() if name in parts.values()), [name])
    return float(np.sqrt(sum(statistics.size[layout.channels.index(each)] ** 2 for each in own)))


def _norm(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sqrt(np.nansum(weights * values**2)))


def _part(error: float, size: float) -> float:
    return 0.0 if error == 0 else error / size if size else float("inf")


PLUGIN = card
