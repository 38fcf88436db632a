"""What must hold of classes of subjects in a store of volumes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sciml.data.check import Finding
from sciml.data.store import Store

CATEGORY, CLASS = "category", "class"


def check(store: Store, names: tuple[str, ...]) -> Iterator[Finding]:
    """Findings about ``category``: its shape, its values, what training lacks, persons of two classes. names: of all
    subjects. Nothing where the store has none."""
    meta = store.meta
    if CATEGORY not in meta.variables:
        return
    dims = meta.variables[CATEGORY].dims
    if dims or CLASS not in meta.axes:
        found = f"dimensions {', '.join(dims)}" if dims else f"no coordinate {CLASS}"
        yield Finding("error", CATEGORY, found, f"one number a subject, and the names as the coordinate {CLASS}",
                      "mend the source and build the store anew")
        return
    classes = store.members(CLASS)
    codes = np.array([float(store.read(CATEGORY, subject)) for subject in range(meta.groups)])
    wrong = ~np.isnan(codes) & ~((codes >= 0) & (codes < len(classes)) & (codes == np.floor(codes)))
    if wrong.any():
        first = int(np.argmax(wrong))
        yield Finding("error", CATEGORY, f"{int(wrong.sum())}, first {names[first]}: {codes[first]:g}",
                      f"a number from 0 to {len(classes) - 1}, one of {', '.join(classes)}; NaN where not known",
                      "mend the source and build the store anew")
        return
    train = codes[[block.group for block in meta.splits.train]]
    absent = [name for number, name in enumerate(classes) if not (train == number).any()]
    if absent:
        yield Finding("warning", CATEGORY, f"no subject of {', '.join(absent)} in the training split",
                      "each class somewhere in training",
                      "nothing can be learned of them: leave them out, or split otherwise")
    yield from _persons(store, codes, names)


def _persons(store: Store, codes: np.ndarray, names: tuple[str, ...]) -> Iterator[Finding]:
    """One person's scans may be of two classes (before and after), which a mistake in the table looks like, too."""
    if "person" not in store.meta.variables:
        return
    persons = np.array([float(store.read("person", subject)) for subject in range(store.meta.groups)])
    pairs = []
    for person in np.unique(persons):
        mine = np.flatnonzero((persons == person) & ~np.isnan(codes))
        other = mine[codes[mine] != codes[mine[:1]]]
        if len(other):
            pairs.append((int(mine[0]), int(other[0])))
    if pairs:
        one, two = pairs[0]
        yield Finding("warning", f"{CATEGORY}, person", f"{len(pairs)} persons of two classes, first {names[one]} and "
                      f"{names[two]}", "one class of each person", "correct the table, unless their class did change")
