"""The starter source.yaml that `Guess.source_yaml` writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sciml.data.conventions import convention_of

if TYPE_CHECKING:
    from sciml.data.readers.guess import AxisGuess, Guess

FILL = "  # FILL IN"


def starter(guess: Guess, name: str) -> str:
    """YAML text; units that are not known are null and marked, so that a build refuses until they are given."""
    lines = [f"# Starter for {os.path.basename(guess.path.rstrip('/'))}, recognised as {guess.format}.",
             "# Lines marked FILL IN need you."]
    lines += [f"# {what}: {text}" for what, texts in (("missing", guess.missing), ("suspicious", guess.suspicious),
                                                      ("note", guess.notes)) for text in _one_line(texts)]
    lines += [f"name: {re.sub('[^a-z0-9_]+', '_', name.lower()).strip('_') or 'my_data'}", f"domain: {guess.domain}",
              "files:", f"  - path: {_text(guess.path if '://' in guess.path else os.path.abspath(guess.path))}",
              "options:", f"  format: {guess.format}"]
    lines += [line for key, value in guess.options.items() for line in _option(key, value, "  ")]
    lines += list(_series(guess) if guess.domain == "series" else _fields(guess))
    lines += list(_axes(guess))
    lines += [_split(guess), "missing: refuse  # or mask: keep NaN and Inf as missing values (labels may have them)",
              'licence: ""  # FILL IN: what others may do with the data', 'citation: ""  # FILL IN: whom to cite']
    return "\n".join(lines) + "\n"


def gaps(text: str) -> list[int]:
    """Numbers of the lines that a starter marks to be filled in, from 1; a licence and a citation may be left out.

    >>> gaps("# Lines marked FILL IN need you.\\nunit: null  # FILL IN\\nlicence: ''  # FILL IN")
    [2]
    """
    return [number for number, line in enumerate(text.splitlines(), 1)
            if "FILL IN" in line and not line.startswith(("#", "licence:", "citation:"))]


def _option(key: str, value: object, indent: str) -> Iterator[str]:
    """In one line, but for what holds a null, which the user has to fill in."""
    if value is None:
        yield f"{indent}{key}: null{FILL}"
    elif isinstance(value, Mapping) and "null" in _text(value):
        yield f"{indent}{key}:"
        for inner, part in value.items():
            yield from _option(_text(inner), part, indent + "  ")
    else:
        yield f"{indent}{key}: {_text(value)}"


def _one_line(texts: tuple[str, ...]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def _text(value: object) -> str:
    """A scalar or flow collection that YAML reads back as it was (JSON is YAML)."""
    return json.dumps(value, ensure_ascii=False)


def _series(guess: Guess) -> Iterator[str]:
    if guess.format not in ("csv", "parquet", "numpy", "ts", "gluonts"):
        return
    columns = [axis for dim, axis in guess.axes.items() if dim in ("variate", "covariate", "static")]
    named = [pair for axis in columns for pair in zip(axis.labels, axis.label_units) if "=" not in pair[0]]
    known = all(unit for _, unit in named)
    yield "  units:" + ("" if known else f'{FILL}: the unit of each variate, "1" if it has none')
    for label, unit in named:
        yield f"    {_text(label)}: {_text(unit or None)}"


def _fields(guess: Guess) -> Iterator[str]:
    if convention_of(guess.domain).described and all(map(guess.unit_known, guess.variables)):
        return
    yield "variables:"
    for variable in guess.variables:
        known, ragged = guess.unit_known(variable), guess.axes[variable.dims[0]].kind == "ragged"
        entries = [f"role: {variable.role}"]
        entries += [f"unit: {_text(variable.unit)}"] if variable.unit or not known else []
        entries += [] if ragged else [f"dims: [{', '.join(variable.dims[1:])}]"]
        yield (f"  {_text(variable.name)}: {{{', '.join(entries)}}}"
               + ("" if known else f'{FILL} unit: for example "m/s", "1" if it has none'))


def _axes(guess: Guess) -> Iterator[str]:
    listed = {name: axis for name, axis in guess.axes.items() if axis.kind in ("space", "time")}
    if not listed:
        return
    yield "axes:"
    for name, axis in listed.items():
        entries = [f"kind: {axis.kind}", f"unit: {_text(axis.unit)}"]
        entries += [f"period: {_text(axis.period)}"] if axis.kind == "space" else []
        entries += ["reverse: true"] if _reversed(guess, name) else []
        yield f"  {name}: {{{', '.join(entries)}}}" + _remark(guess, name, axis)


def _reversed(guess: Guess, name: str) -> bool:
    return f"axis {name} is reversed (descending)" in guess.suspicious


def _remark(guess: Guess, name: str, axis: AxisGuess) -> str:
    wanted = [] if axis.unit else ["unit"]
    if any(text.startswith(f"periodicity of axis {name}:") for text in guess.missing):
        wanted.append("period, if the axis wraps around")
    return f"{FILL} {', '.join(wanted)}" if wanted else ""


def _split(guess: Guess) -> str:
    usual = convention_of(guess.domain).split
    if guess.domain == "series" and any(variable.role == "label" for variable in guess.variables):
        return ("split: {by: group, fractions: {train: 0.8, validation: 0.1, test: 0.1}, seed: 0}  # or {by: given}, "
                "of several files with options parts: [train, test]")
    if usual:
        return f"split: {usual}"
    if guess.axes[guess.group_dim].size < 3 and "time" in guess.axes:
        train, validation = (0.7, 0.1) if guess.axes["time"].size >= 20 else (0.6, 0.2)  # two steps at least
        return f"split: {{by: time, fractions: {{train: {train}, validation: {validation}, test: 0.2}}}}"
    return "split: {by: group, fractions: {train: 0.8, validation: 0.1, test: 0.1}, seed: 0}"
