"""Look into a store (`inspect`), and hold it against what it says of itself (`validate`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sciml import registry
from sciml.data import canonical, statistics, units
from sciml.data.schema import Block, Moments, SplitName, identity_dim, paced
from sciml.data.source import SourceSpec, find_files
from sciml.data.splits import check_leak
from sciml.data.store import Store
from sciml.errors import InputError

CHECKS = "sciml.data.checks"
"""Plug-ins by domain: a function ``Store → Iterable[Finding]`` of what holds in a sound store of the domain."""
SAMPLE_BYTES = 256 << 20
RELATIVE = 1e-6
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_NEW = "build the store anew"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (error) or should be looked at (warning)."""

    level: Literal["error", "warning"]
    key: str
    found: str
    expected: str
    fix: str


def inspect(store: Store) -> dict[str, Any]:
    """What a store holds, as plain data: sizes, variables, axes, splits, statistics, provenance."""
    meta, lazy = store.meta, store.lazy()
    declared = sum(int(lazy[name].nbytes) for name in meta.variables)
    return {
        "store": store.url, "domain": meta.domain, "dataset": meta.dataset, "schema_version": meta.schema_version,
        "group_dim": meta.group_dim, "groups": meta.groups, "dt": meta.dt, "bytes": declared,
        "stored_bytes": _stored_bytes(store.url), "split_identity": meta.split_identity(),
        "variables": [_variable(store, name) for name in meta.variables],
        "axes": [_axis(store, name) for name in meta.axes],
        "ragged": [_ragged(store, dim) for dim in meta.ragged],
        "splits": [{"split": name, "key": meta.splits.key, **_extent(meta.splits.of(name))} for name in SPLITS],
        "moments": {key: moments.model_dump() for key, moments in meta.moments.items()},
        "tendency": {key: tendency.model_dump() for key, tendency in meta.tendency.items()},
        "provenance": meta.provenance.model_dump(), "licence": meta.licence, "citation": meta.citation,
        "notes": list(meta.notes),
    }


def _stored_bytes(url: str) -> int:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url)
    return int(filesystem.du(root))


def _variable(store: Store, name: str) -> dict[str, Any]:
    variable, array = store.meta.variables[name], store.lazy()[name]
    chunk, shard = store.layout[name]
    return {"variable": name, "role": variable.role, "unit": variable.unit, "dims": list(map(str, array.dims)),
            "shape": list(array.shape), "type": str(array.dtype), "chunk": list(chunk), "shard": list(shard),
            "missing": sum(m.missing for m in _of(store, name).values())}


def _of(store: Store, name: str) -> dict[str, Moments]:
    return {k: m for k, m in store.meta.moments.items() if k == name or k.startswith(f"{name}/")}


def _axis(store: Store, name: str) -> dict[str, Any]:
    axis, values = store.meta.axes[name], store.coord(name)
    ends = [value.item() if values.dtype.kind in "fiu" else str(value) for value in (values[0], values[-1])]
    return {"axis": name, "kind": axis.kind, "unit": axis.unit, "size": len(values), "first": ends[0], "last": ends[1],
            "period": axis.period}


def _ragged(store: Store, dim: str) -> dict[str, Any]:
    rows = store.rows(dim)
    return {"ragged": dim, "counted_by": store.meta.ragged[dim], "rows": int(rows.sum()), "fewest": int(rows.min()),
            "most": int(rows.max())}


def _extent(blocks: tuple[Block, ...]) -> dict[str, int]:
    return {"blocks": len(blocks), "groups": len({b.group for b in blocks}),
            "steps": sum(b.stop - b.start for b in blocks)}


def validate(store: Store, *, source: SourceSpec | None = None) -> list[Finding]:
    """Everything about a store that doesn't hold; empty if all does.

    Statistics and missing values are recomputed where a variable's training split is at most 256 MiB, else its first
    256 MiB are held against the bounds. What is read, and as much of the other splits, is also checked against the
    checksums inside the chunks. What holds in the store's domain alone is checked by the plug-in of that name in
    `CHECKS`, if there is one. With `source`, the hashes of its files are compared with the ones the store was built
    from.
    """
    checks = (_check_splits, _check_units, _check_axes, _check_layout, _check_description, _check_values, _check_domain)
    findings = [finding for check in checks for finding in check(store)]
    return findings + (list(_check_files(store, source)) if source is not None else [])


def _check_splits(store: Store) -> Iterator[Finding]:
    meta = store.meta
    times = [d for d, axis in meta.axes.items() if axis.kind == "time"]
    own = _own(store)
    steps = np.broadcast_to(len(store.coord(times[0])) if times else 1 if own is None else store.rows(own), meta.groups)
    for name in SPLITS:
        blocks = meta.splits.of(name)
        if not blocks:
            yield Finding("error" if name == "train" else "warning", f"splits.{name}", "no block", "at least one",
                          "give it a share in the source file and build anew")
        for block in blocks:
            if block.group >= meta.groups or block.stop > steps[block.group] or block.start >= block.stop:
                yield Finding("error", f"splits.{name}", str(block),
                              f"group < {meta.groups}, start < stop ≤ {steps[:block.group + 1][-1]}", _NEW)
    for leak in check_leak(meta.splits):
        key, (a, b) = ", ".join(f"splits.{name}" for name in leak.splits), leak.blocks
        found, expected = (f"both hold {a}", "disjoint splits") if leak.steps < 0 else \
            (f"{leak.steps} steps between {a} and {b}", f"at least {meta.splits.gap}")
        yield Finding("error", key, found, expected, _NEW)


def _own(store: Store) -> str | None:
    return paced(store.meta.variables, store.meta.axes, store.meta.ragged)


def _check_units(store: Store) -> Iterator[Finding]:
    named = {name: v.unit for name, v in store.meta.variables.items() if v.unit != units.MIXED}
    named |= {name: axis.unit for name, axis in store.meta.axes.items()}
    for coord in store.lazy().coords.values():
        if str(coord.name).endswith("_unit"):
            named |= {f"{coord.name} {i}": str(unit) for i, unit in enumerate(coord.values)}
    for key, unit in named.items():
        try:
            units.parse(unit, where=store.url, key=key)
        except InputError as error:
            yield Finding("error", key, str(error.found), error.expected, error.fix)
    for name, variable in store.meta.variables.items():
        if variable.unit == units.MIXED and not any(f"{d}_unit" in store.lazy().coords for d in variable.dims):
            yield Finding("error", name, "unit 'mixed'", "a coordinate with the unit of each member", _NEW)


def _check_axes(store: Store) -> Iterator[Finding]:
    spec = SourceSpec(name=store.meta.dataset, domain=store.meta.domain, builder="store")
    for name, axis in store.meta.axes.items():
        if axis.kind == "set":
            continue
        try:
            canonical.check_ascending(spec, name, store.coord(name), axis.period)
        except InputError as error:
            yield Finding("error", name, str(error.found), error.expected, _NEW)
    step = canonical.time_step(store.lazy(), store.meta.axes)
    if (step is None) != (store.meta.dt is None) or (step and not math.isclose(step, store.meta.dt or 0, rel_tol=1e-6)):
        yield Finding("error", "dt", str(store.meta.dt), f"{step}, the step of the time axis", _NEW)


def _check_layout(store: Store) -> Iterator[Finding]:
    for name, (chunk, shard) in store.layout.items():
        item = store.lazy()[name].dtype.itemsize
        if any(s % c for s, c in zip(shard, chunk, strict=True)):
            yield Finding("error", name, f"chunk {chunk}, shard {shard}", "shards of whole chunks", _NEW)
        for what, shape, most in (("chunk", chunk, 16 << 20), ("shard", shard, 64 << 20)):
            if math.prod(shape) * item > most:
                yield Finding("warning", name, f"a {what} of {math.prod(shape) * item} bytes", f"at most {most}",
                              "reading it takes more memory and time than need be; build the store anew")
        if store.meta.evolves(name) and chunk[0] > 1:
            yield Finding("warning", name, f"chunks over {chunk[0]} groups", "chunks of one group", _NEW)


def _check_description(store: Store) -> Iterator[Finding]:
    meta = store.meta
    described = statistics.summarised(store.lazy(), meta.variables, meta.axes, meta.splits.train, meta.ragged,
                                      _own(store))
    expected = {key for name in described for key in _moment_keys(store, name)}
    for key in sorted(expected ^ set(meta.moments)):
        what = "no statistics" if key in expected else "statistics of nothing"
        yield Finding("error", key, what, "one entry per variable or member", _NEW)
    for key, text in (("licence", meta.licence), ("citation", meta.citation)):
        if not text:
            yield Finding("warning", key, "none", "where the data come from and what may be done with them",
                          f"add {key} to the source file")
    if meta.provenance.builder == "file" and not meta.provenance.files:
        yield Finding("warning", "provenance.files", "none", "files with hashes", _NEW)


def _moment_keys(store: Store, name: str) -> list[str]:
    member_dim = identity_dim(store.meta.variables[name], store.meta.axes)
    return [name] if member_dim is None else [f"{name}/{m}" for m in store.members(member_dim)]


def _check_values(store: Store) -> Iterator[Finding]:
    meta, lazy, own = store.meta, store.lazy(), _own(store)
    for name, variable in meta.variables.items() if meta.splits.train else ():
        sample, whole = _sample(store, name, meta.splits.train)
        others, _ = _sample(store, name, (*meta.splits.validation, *meta.splits.test))
        try:
            found, tendency = statistics.compute(lazy, {name: variable}, meta.axes, sample, ragged=meta.ragged,
                                                 own=own)
            unread = others if found else (*sample, *others)
            statistics.read_through(lazy[name], statistics.cells(lazy, variable, meta.axes, unread, meta.ragged, own),
                                    meta.evolves(name))
        except InputError as error:
            yield Finding("error", str(error.key), str(error.found), "finite training values", _NEW)
            continue
        except Exception as error:
            yield Finding("error", name, f"{type(error).__name__}: {str(error)[:120]}", "chunks that can be decoded",
                          "the files are damaged: copy them again, or build the store anew")
            continue
        for key in found.keys() & meta.moments.keys():
            yield from _compare(key, found[key], meta.moments[key], whole)
        for key, recomputed in tendency.items() if whole else ():
            recorded = meta.tendency.get(key)
            if recorded is None or not np.allclose(recomputed.std, recorded.std, rtol=RELATIVE, atol=0):
                yield Finding("error", f"tendency of {key}", str(recorded), str(recomputed.std), _NEW)


def _sample(store: Store, name: str, blocks: tuple[Block, ...]) -> tuple[tuple[Block, ...], bool]:
    """The leading blocks of at most 256 MiB (at least one), and whether they are all."""
    array, dims, evolves = store.lazy()[name], store.meta.variables[name].dims, store.meta.evolves(name)
    rows = store.rows(dims[0]) if dims[:1] and dims[0] in store.meta.ragged else None
    counted = evolves or dims[:1] == (_own(store),)
    step = array.nbytes / max(1, array.shape[0] * (array.shape[1] if evolves else 1))
    kept: list[Block] = []
    size = 0.0
    for block in blocks:
        length = 1 if rows is None else int(rows[block.group:block.group + 1].sum())
        size += step * (block.stop - block.start if counted else length)
        if kept and size > SAMPLE_BYTES:
            break
        kept.append(block)
    return tuple(kept), len(kept) == len(blocks)


def _check_domain(store: Store) -> Iterator[Finding]:
    domain = store.meta.domain
    if domain not in registry.names(CHECKS):
        return
    try:
        yield from registry.find(CHECKS, domain)(store)
    except Exception as error:
        yield Finding("error", f"domain {domain}", f"{type(error).__name__}: {str(error)[:120]}",
                      "values that can be read and checked", "mend what else was found, then validate again")


def _compare(key: str, found: Moments, recorded: Moments, whole: bool) -> Iterator[Finding]:
    tolerance = RELATIVE * max(abs(recorded.std), abs(recorded.mean) * 1e-6, 1e-300)
    if whole:
        exact = ("count", "missing", "minimum", "maximum")
        wrong = [name for name in exact if getattr(found, name) != getattr(recorded, name)]
        wrong += [name for name in ("mean", "std") if abs(getattr(found, name) - getattr(recorded, name)) > tolerance]
    else:
        wrong = [name for name, outside in (("minimum", found.minimum < recorded.minimum),
                                            ("maximum", found.maximum > recorded.maximum),
                                            ("count", found.count > recorded.count),
                                            ("missing", found.missing > recorded.missing)) if outside]
    for name in wrong:
        yield Finding("error", f"{key}.{name}", f"{getattr(recorded, name)} recorded",
                      f"{getattr(found, name)}, computed from the values",
                      "the values were changed after the store was built: build it anew")


def _check_files(store: Store, source: SourceSpec) -> Iterator[Finding]:
    now = {file.declared: file.sha256 for file in find_files(source)}
    then = store.meta.provenance.files
    for name in sorted(set(now) | set(then)):
        if now.get(name) != then.get(name):
            yield Finding("error", f"files.{name}", f"sha256 {now.get(name, 'none: not in the source')}",
                          then.get(name, "not among the files of the store"), "build the store anew from these files")


def as_rows(findings: list[Finding]) -> list[dict[str, Any]]:
    """Findings as plain data, for tables and JSON."""
    return [asdict(finding) for finding in findings]

