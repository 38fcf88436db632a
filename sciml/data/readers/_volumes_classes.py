"""A class for every subject, from a table beside the images, such as the participants.tsv of a BIDS folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sciml.data.readers._volumes import Subject
from sciml.data.readers._volumes_files import stem
from sciml.data.readers._volumes_options import ClassTable
from sciml.errors import InputError

MOST_BYTES = 64 << 20
SUBJECT, CLASS = ("subject", "participant_id", "file"), ("class",)
"""Names of columns that are found without being named."""
ABSENT = ("", "n/a", "na", "nan")
"""What a table says of subjects whose class isn't known."""


def classified(subjects: Sequence[Subject], table: ClassTable, root: Path, suffixes: Sequence[str]) -> list[Subject]:
    """The subjects with their classes. A row is a subject's (or person's, whose frames it holds for) by name, or by the
    name of its file.

    Raises `InputError` for a table without these columns, two classes of one subject, and a subject without one.
    """
    path = root / table.table
    rows = _rows(path)
    header = list(rows[0])
    subject, column = _column(path, header, table.subject, SUBJECT, "subject"), _column(path, header, table.column,
                                                                                        CLASS, "column")
    classes: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, found = stem((row[subject] or "").strip(), suffixes), (row[column] or "").strip()
        if found.lower() in ABSENT:
            continue
        if classes.setdefault(name, found) != found:
            raise InputError(path, key=f"row {number}", found=f"{name}: {found}, before {classes[name]}",
                             expected="one class of each subject", fix="correct the table")
    return [replace(each, category=_of(each, classes, path, column)) for each in subjects]


def _of(subject: Subject, classes: Mapping[str, str], path: Path, column: str) -> str:
    found = classes.get(subject.name) or classes.get(subject.person)
    if not found:
        known = ", ".join(list(classes)[:3]) or "nobody"
        raise InputError(path, key=column, found=f"no class of {subject.name}",
                         expected=f"a row for every subject with images; there are {known}, …",
                         fix="add it, or take its images out of the folder")
    return found


def _column(path: Path, header: Sequence[str], given: str, usual: Sequence[str], key: str) -> str:
    found = given or next((name for name in usual if name in header), "")
    if found not in header:
        raise InputError(path, key=f"options.classes.{key}", found=", ".join(header) or "no header",
                         expected=f"a column {given or ' or '.join(usual)}",
                         fix=f"name it: options: {{classes: {{table: {path.name}, {key}: …}}}}")
    return found


def _rows(path: Path) -> list[dict[str, str | None]]:
    """Of a table with a header, separated by tabs, semicolons or commas, whichever its first line has most of."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
        raise InputError(path, key="options.classes", found=found, expected=f"a table of at most {MOST_BYTES} bytes",
                         fix="its path is relative to the folder of the images")
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max("\t;,", key=text.split("\n", 1)[0].count)
        rows = list(csv.DictReader(text.splitlines(), delimiter=separator))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, key="options.classes", found=str(error)[:80], expected="a table in UTF-8",
                         fix="write it as CSV or TSV") from None
    if not rows:
        raise InputError(path, key="options.classes", found="no row", expected="a header, and a row for every subject",
                         fix="fill it")
    return rows
