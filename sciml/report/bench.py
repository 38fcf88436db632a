"""Results of a benchmark: one schema, written atomically after every row, resumed by row.

A script ``benchmarks/<name>.py`` defines ``run() -> Bench``::

    def run() -> Bench:
        bench = Bench.load_or_new("series", seeds=(0, 1))
        for horizon in (96, 192):
            metric = f"etth1/{horizon}/mse"
            if not bench.has(metric, "ridge"):
                bench.add(Row(metric=metric, unit="1", ours=..., peer=..., peer_name="ridge"))
        return bench
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from sciml.assets import folder
from sciml.data.files import replacing
from sciml.errors import InputError
from sciml.recipe import Section, validate
from sciml.report import machine


class Row(Section):
    """One figure beside a peer's. metric: data/setting/measure; ratio: ours / peer, filled in if left out."""

    metric: str = Field(pattern=r"^[a-z0-9_.]+/[a-z0-9_.]+/[a-z0-9_.]+$")
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _ratio(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("ratio") is None and raw.get("peer"):
            return {**raw, "ratio": raw["ours"] / raw["peer"]}
        return raw


class Results(Section):
    """What ``benchmarks/results/<name>.json`` holds. date: UTC, when the first row was measured."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    seeds: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()


class Bench:
    """Results being measured. Rows go to ``<name>.partial.json``; `finish` makes that the result."""

    def __init__(self, results: Results, place: Path) -> None:
        self.results, self.place = results, place

    @classmethod
    def load_or_new(cls, name: str, *, seeds: Sequence[int] = (0,), place: Path | None = None,
                    parts: Collection[str] | None = None) -> Self:
        """Go on with a partial result of the same machine, versions and seeds, or start a new one in `place`.

        parts: what is measured now; a new result begins with the rows of the finished one, of the same machine and
        versions, whose metric names none of them (default: with none). `place` defaults to ``benchmarks/results`` of
        the checkout. Raises `InputError` if there is no checkout.
        """
        if place is None:
            home = folder("benchmarks")
            if home is None:
                raise InputError("benchmarks", found="no such folder", expected="a checkout of the repository",
                                 fix="run from a clone, or give `place`")
            place = home / "results"
        new = Results(name=name, date=datetime.now(UTC).isoformat(timespec="seconds"), machine=machine.describe(),
                      versions=machine.versions(), seeds=tuple(seeds))
        bench = cls(new, place)
        if bench.partial.is_file():
            old = load(bench.partial)
            if (old.machine, old.versions, old.seeds) == (new.machine, new.versions, new.seeds):
                bench.results = old
                return bench
        if parts is not None and bench.path.is_file():
            old = load(bench.path)
            if (old.machine, old.versions) == (new.machine, new.versions):
                rows = tuple(row for row in old.rows if set(parts).isdisjoint(row.metric.split("/")))
                bench.results = new.model_copy(update={"rows": rows})
        return bench

    @property
    def partial(self) -> Path:
        return self.place / f"{self.results.name}.partial.json"

    @property
    def path(self) -> Path:
        return self.place / f"{self.results.name}.json"

    def has(self, metric: str, peer_name: str | None = None) -> bool:
        """Whether that figure beside that peer has been measured."""
        return any((row.metric, row.peer_name) == (metric, peer_name) for row in self.results.rows)

    def add(self, row: Row) -> None:
        """Add a row, or replace the one of the same metric and peer, and write it down."""
        kept = [old for old in self.results.rows if (old.metric, old.peer_name) != (row.metric, row.peer_name)]
        self.results = self.results.model_copy(update={"rows": (*kept, row)})
        write_json(self.partial, self.results.model_dump(mode="json"))

    def finish(self) -> Path:
        """Make the rows the result, in one step, and return its path."""
        write_json(self.path, self.results.model_dump(mode="json"))
        self.partial.unlink(missing_ok=True)
        return self.path


def load(path: str | Path) -> Results:
    """Read a result. Raises `InputError` if it is not JSON of this schema."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(path, key=f"line {error.lineno}", found=error.msg, expected="JSON",
                         fix="delete the file and run the benchmark again") from None
    return validate(Results, raw, where=path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a sibling and rename it over `path`: a reader sees the old file or the new one."""
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
