"""From a source's ``split`` to blocks of groups and time."""

from __future__ import annotations

import numpy as np

from sciml.data.schema import Block, Splits
from sciml.data.source import Fractions, GroupSplit, TimeSplit
from sciml.errors import InputError

NAMES = ("train", "validation", "test")


def make_splits(split: GroupSplit | TimeSplit, groups: int, steps: int, *, group_dim: str, where: object) -> Splits:
    """Blocks of all three splits. steps: length of the time axis (1 without one).

    Raises `InputError` if there are fewer groups, or time steps, than the split asks for.

    >>> from sciml.data.source import Counts
    >>> made = make_splits(TimeSplit(by="time", counts=Counts(train=5, validation=2, test=2), gap=1), 1, 12,
    ...                    group_dim="series", where="doc")
    >>> [(b.start, b.stop) for name in ("train", "validation", "test") for b in made.of(name)]
    [(0, 5), (6, 8), (9, 11)]
    """
    whole = groups if isinstance(split, GroupSplit) else steps
    gaps = 2 * split.gap if isinstance(split, TimeSplit) else 0
    counts = _counts(split, whole - gaps, where)
    if sum(counts) + gaps > whole:
        what = group_dim if isinstance(split, GroupSplit) else "time steps"
        raise InputError(where, key="split", found=f"{whole} {what}", expected=f"at least {sum(counts) + gaps}",
                         fix="lower counts or gap")
    if isinstance(split, GroupSplit):
        order = np.arange(groups) if split.seed is None else np.random.default_rng(split.seed).permutation(groups)
        cuts = np.split(order, np.cumsum(counts))[:3]
        blocks = [tuple(Block(group=int(g), start=0, stop=steps) for g in sorted(cut)) for cut in cuts]
        drawn = "in order" if split.seed is None else f"drawn with seed {split.seed}"
        return Splits(key=f"{group_dim}, {drawn}", train=blocks[0], validation=blocks[1], test=blocks[2])
    starts = [0, counts[0] + split.gap, counts[0] + counts[1] + 2 * split.gap]
    blocks = [tuple(Block(group=g, start=s, stop=s + n) for g in range(groups) if n)
              for s, n in zip(starts, counts, strict=True)]
    return Splits(key=f"time, gap {split.gap}", train=blocks[0], validation=blocks[1], test=blocks[2])


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
