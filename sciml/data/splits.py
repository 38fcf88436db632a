"""From a source's ``split`` to blocks of groups and time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from sciml.data import units
from sciml.data.conventions import convention_of
from sciml.data.schema import Block, SplitName, Splits
from sciml.data.split_config import FoldSplit, Fractions, GivenSplit, GroupSplit, TimeSplit
from sciml.errors import InputError

NAMES: tuple[SplitName, ...] = ("train", "validation", "test")
FEWEST = 10
"""Of different values of what keeps groups together: with fewer, a split by them would be a split by chance."""


AnySplit = GroupSplit | FoldSplit | TimeSplit | GivenSplit


@dataclass(frozen=True)
class Clock:
    """The uniform time step, None if there is none, in `unit`."""

    step: float | None
    unit: str


def usual_split(split: AnySplit | None, dataset: xr.Dataset, domain: str, clock: Clock | None, *,
                where: object) -> AnySplit:
    """What a source asks for; where it doesn't say, what the data give (`part`, named by ``flag_meanings``), or what is
    usual in the domain (`sciml.data.conventions`).

    Raises `InputError` if the usual gap can't be counted in steps.

    >>> usual_split(None, xr.Dataset(), "spikes", Clock(0.02, "s"), where="doc").gap
    50
    """
    usual = convention_of(domain)
    if split is None and "part" in dataset and dataset["part"].attrs.get("flag_meanings") == " ".join(NAMES):
        split = GivenSplit(by="given")
    if split is None:
        split = TimeSplit(by="time") if usual.by == "time" else _by_group(dataset, usual.together)
    if isinstance(split, FoldSplit):
        kept = split.together or (usual.together if usual.together in dataset else None)
        return split.model_copy(update={"together": kept})
    if isinstance(split, GivenSplit):
        return split.model_copy(update={"stratify": split.stratify or ("label" if "label" in dataset else None)})
    shares = split.fractions or (usual.fractions if split.counts is None else None)
    if isinstance(split, GroupSplit):
        return split.model_copy(update={"fractions": shares})
    gap = split.gap if split.gap is not None else _gap(usual.gap_s, clock, where)
    return split.model_copy(update={"fractions": shares, "gap": gap})


def _by_group(dataset: xr.Dataset, together: str | None) -> GroupSplit:
    if together is None or together not in dataset:
        return GroupSplit()
    if len(np.unique(dataset[together].values)) < FEWEST:
        return GroupSplit(seed=None)
    return GroupSplit(together=together)


def _gap(seconds: float | None, clock: Clock | None, where: object) -> int:
    if seconds is None:
        return 0
    if clock is None or clock.step is None:
        raise InputError(where, key="split.gap", found="no uniform time step", expected="steps to leave out between "
                         f"blocks ({seconds:g} s)", fix="give it: split: {by: time, gap: STEPS}")
    return max(1, math.ceil(seconds / (clock.step * units.seconds_per(clock.unit, where=where, key="time")) - 1e-6))


def together(split: AnySplit, dataset: xr.Dataset, group_dim: str, *, where: object) -> np.ndarray | None:
    """``(groups,)`` numbers that name what each group belongs to, or None if every group stands for itself.

    Raises `InputError` unless the variable is there with one finite number per group.
    """
    name = None if isinstance(split, TimeSplit) else split.together
    return None if name is None else _numbers(dataset, name, group_dim, "split.together", where)


def _numbers(dataset: xr.Dataset, name: str, group_dim: str, key: str, where: object) -> np.ndarray:
    found = "no such variable" if name not in dataset else f"dimensions {dataset[name].dims}"
    if name not in dataset or dataset[name].dims != (group_dim,) or not np.isfinite(dataset[name].values).all():
        raise InputError(where, key=key, found=f"{name}: {found}", expected=f"a variable of one number per {group_dim}",
                         fix=f"name one that the data have, or leave {key.removeprefix('split.')} out")
    return np.asarray(dataset[name].values)


def given(split: AnySplit, dataset: xr.Dataset, group_dim: str, *, where: object) -> np.ndarray | None:
    """``(groups,)`` indices into `NAMES` of a split that the data give, validation cut from train where they have none.

    Raises `InputError` unless the variables are there and name both train and test.

    >>> data = xr.Dataset({"part": ("series", [0, 0, 0, 0, 2]), "label": ("series", [0, 1, 0, 1, 1])})
    >>> split = usual_split(GivenSplit(by="given", validation=0.5), data, "series", None, where="doc")
    >>> np.bincount(given(split, data, "series", where="doc")).tolist()
    [2, 2, 1]
    """
    if not isinstance(split, GivenSplit):
        return None
    parts = _numbers(dataset, split.part, group_dim, "split.part", where).astype(int)
    if not {0, 2} <= set(parts.tolist()) <= {0, 1, 2}:
        raise InputError(where, key="split.part", found=f"{split.part} of {sorted(set(parts.tolist()))[:5]}",
                         expected="0 (train), 1 (validation), 2 (test), the first and the last at least",
                         fix="say which file is what: options: {parts: [train, test]}; or split otherwise")
    if (parts == 1).any() or split.validation == 0:
        return parts
    strata = np.zeros(len(parts))
    if split.stratify is not None:
        known = dataset[[split.stratify]].fillna(-1.0) if split.stratify in dataset else dataset
        strata = _numbers(known, split.stratify, group_dim, "split.stratify", where)
    rng = np.random.default_rng(split.seed)
    for stratum in np.unique(strata):
        train = np.flatnonzero((parts == 0) & (strata == stratum))
        count = min(round(split.validation * len(train)), len(train) - 1)
        if count > 0:
            even = np.floor((np.arange(count) + 0.5) * len(train) / count).astype(int)
            parts[train[even] if split.seed is None else rng.permutation(train)[:count]] = 1
    return parts


def make_splits(split: AnySplit, groups: int, steps: int | np.ndarray, *, group_dim: str, where: object,
                keys: np.ndarray | None = None, parts: np.ndarray | None = None) -> Splits:
    """Blocks of all three splits. steps: length of the time axis (1 without one), or of each group, ``(groups,)``; a
    gap of None is none. keys: of `together`; then counts and fractions are of different keys. parts: of `given`.

    Raises `InputError` if there are fewer groups, or time steps, than the split asks for.

    >>> from sciml.data.split_config import Counts
    >>> made = make_splits(TimeSplit(by="time", counts=Counts(train=5, validation=2, test=2), gap=1), 1, 12,
    ...                    group_dim="series", where="doc")
    >>> [(b.start, b.stop) for name in ("train", "validation", "test") for b in made.of(name)]
    [(0, 5), (6, 8), (9, 11)]
    """
    members, lengths = _members(keys, groups), np.broadcast_to(steps, groups)
    if isinstance(split, FoldSplit):
        return _folds(split, members, lengths, group_dim, where)
    if isinstance(split, GivenSplit):
        assert parts is not None
        train, validation, test = (_whole(np.flatnonzero(parts == i), lengths) for i in range(3))
        key = f"{split.part} as given; without validation, {split.validation:g} of train, seed {split.seed}"
        return Splits(key=key, train=train, validation=validation, test=test)
    if isinstance(split, TimeSplit) and isinstance(steps, np.ndarray):
        return _last_steps(split, lengths, group_dim, where)
    whole = len(members) if isinstance(split, GroupSplit) else int(steps)
    gap = (split.gap or 0) if isinstance(split, TimeSplit) else 0
    gaps = 2 * gap
    counts = _counts(split, whole - gaps, where)
    if sum(counts) + gaps > whole:
        what = (split.together or group_dim) if isinstance(split, GroupSplit) else "time steps"
        raise InputError(where, key="split", found=f"{whole} {what}", expected=f"at least {sum(counts) + gaps}",
                         fix="lower counts or gap")
    if isinstance(split, GroupSplit):
        order = np.arange(whole) if split.seed is None else np.random.default_rng(split.seed).permutation(whole)
        cuts = np.split(order, np.cumsum(counts))[:3]
        blocks = [_whole(np.array(sorted(m for i in cut for m in members[i]), int), lengths) for cut in cuts]
        drawn = "in order" if split.seed is None else f"drawn with seed {split.seed}"
        key = f"{split.together or group_dim}, {drawn}"
        return Splits(key=key, train=blocks[0], validation=blocks[1], test=blocks[2])
    starts = [0, counts[0] + gap, counts[0] + counts[1] + 2 * gap]
    blocks = [tuple(Block(group=g, start=s, stop=s + n) for g in range(groups) if n)
              for s, n in zip(starts, counts, strict=True)]
    return Splits(key=f"time, gap {gap}", gap=gap, train=blocks[0], validation=blocks[1], test=blocks[2])


def _whole(groups: np.ndarray, lengths: np.ndarray) -> tuple[Block, ...]:
    return tuple(Block(group=int(g), start=0, stop=int(lengths[g])) for g in groups if lengths[g])


def _last_steps(split: TimeSplit, lengths: np.ndarray, group_dim: str, where: object) -> Splits:
    """The last steps of every group are test, those before validation, those before train."""
    gap = split.gap or 0
    blocks: dict[str, list[Block]] = {name: [] for name in NAMES}
    for group, length in enumerate(lengths.tolist()):
        try:
            train, validation, test = _counts(split, length - 2 * gap, where)
        except InputError as error:
            raise InputError(where, key="split", found=f"{length} steps in {group_dim} {group}",
                             expected=error.expected, fix="leave such short ones out (options: {shortest: STEPS}), or "
                             "split by group") from None
        middle = length - test - gap
        stops = (middle - validation - gap, middle, length)
        if stops[0] < 1:
            raise InputError(where, key="split", found=f"{length} steps in {group_dim} {group}",
                             expected=f"more than {validation + test + 2 * gap}", fix="lower counts or gap, or leave "
                             "such short ones out: options: {shortest: STEPS}")
        for name, stop, count in zip(NAMES, stops, (min(train, stops[0]), validation, test), strict=True):
            if count:
                blocks[name].append(Block(group=group, start=stop - count, stop=stop))
    train_, validation_, test_ = (tuple(blocks[name]) for name in NAMES)
    return Splits(key=f"last steps of every {group_dim}, gap {gap}", gap=gap, train=train_, validation=validation_,
                  test=test_)


def _folds(split: FoldSplit, members: list[np.ndarray], lengths: np.ndarray, group_dim: str, where: object) -> Splits:
    blocks: dict[str, list[Block]] = {name: [] for name in NAMES}
    for i, groups in enumerate(members):
        fold = i % split.folds
        name = "test" if fold == split.test else "validation" if fold == split.validation else "train"
        blocks[name] += _whole(groups, lengths)
    wanted = ["train", *(name for name in ("test", "validation") if getattr(split, name) is not None)]
    empty = [name for name in wanted if not blocks[name]]
    if empty:
        raise InputError(where, key="split", found=f"{len(members)} {split.together or group_dim}, none to "
                         f"{' or '.join(empty)}", expected="at least one for each split",
                         fix="choose folds that are there, or set test or validation to null")
    key = f"{split.together or group_dim}, fold of {split.folds}: test {split.test}, validation {split.validation}"
    train, validation, test = (tuple(sorted(blocks[name], key=lambda block: block.group)) for name in NAMES)
    return Splits(key=key, train=train, validation=validation, test=test)


def _members(keys: np.ndarray | None, groups: int) -> list[np.ndarray]:
    """Groups of every different key, keys in order of appearance."""
    if keys is None:
        return list(np.arange(groups)[:, None])
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return [np.flatnonzero(which == key) for key in np.argsort(first)]


@dataclass(frozen=True)
class Leak:
    """Blocks of two splits in one group that are too near; steps: between them, negative if they are shared."""

    splits: tuple[SplitName, SplitName]
    blocks: tuple[Block, Block]
    steps: int


def check_leak(splits: Splits) -> list[Leak]:
    """The worst leak of each pair of splits: blocks in one group that overlap or have less than ``splits.gap`` steps
    between them; empty if there is none.

    >>> near = {"train": [Block(group=0, start=0, stop=5)], "test": [Block(group=0, start=6, stop=8)]}
    >>> [leak.steps for leak in check_leak(Splits(key="time", gap=3, validation=[], **near))]
    [1]
    """
    by_group: dict[int, list[tuple[int, int, SplitName, Block]]] = {}
    for name in NAMES:
        for block in splits.of(name):
            by_group.setdefault(block.group, []).append((block.start, block.stop, name, block))
    worst: dict[tuple[SplitName, SplitName], Leak] = {}
    for blocks in by_group.values():
        last: dict[SplitName, Block] = {}
        for _, _, name, block in sorted(blocks, key=lambda item: item[:2]):
            for other, before in last.items():
                steps = block.start - (before.stop if block.start >= before.stop else min(before.stop, block.stop))
                forward = NAMES.index(other) < NAMES.index(name)
                pair, both = ((other, name), (before, block)) if forward else ((name, other), (block, before))
                if other != name and steps < splits.gap and (pair not in worst or steps < worst[pair].steps):
                    worst[pair] = Leak(pair, both, steps)
            if name not in last or last[name].stop < block.stop:
                last[name] = block
    return [worst[pair] for pair in sorted(worst, key=lambda pair: tuple(map(NAMES.index, pair)))]


def _counts(split: GroupSplit | TimeSplit, available: int, where: object) -> tuple[int, int, int]:
    if split.counts is not None:
        return split.counts.train, split.counts.validation, split.counts.test
    shares = split.fractions or Fractions()
    wanted = [getattr(shares, name) for name in NAMES]
    counts = [int(round(available * share, 9)) for share in wanted]
    if sum(wanted) > 1 - 1e-9:
        counts[0] = available - counts[1] - counts[2]
    for i, (count, share) in enumerate(zip(counts, wanted, strict=True)):
        if share > 0 and count < 1 and i > 0:
            counts[i], counts[0] = 1, counts[0] - 1
    if counts[0] < 1:
        what = "groups" if isinstance(split, GroupSplit) else "time steps"
        raise InputError(where, key="split", found=f"{available} {what} to split",
                         expected="at least one for each split", fix="split by time, or set a fraction to 0")
    return counts[0], counts[1], counts[2]
