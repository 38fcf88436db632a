"""Files that are not code: ``configs/`` and ``datasets/`` of a checkout, or their copies inside an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from sciml.errors import InputError

Kind = Literal["configs", "datasets", "benchmarks"]
_PACKAGE = Path(__file__).resolve().parent


def folder(kind: Kind) -> Path | None:
    """The folder of that kind: beside the package in a checkout, in ``sciml/_assets`` in a wheel, None if in neither.

    >>> folder("configs").name
    'configs'
    """
    checkout = (_PACKAGE.parent / "pyproject.toml").is_file()
    place = _PACKAGE.parent / kind if checkout else _PACKAGE / "_assets" / kind
    return place if place.is_dir() else None


def cache_folder() -> Path:
    """Where downloads, compiled blocks and measured kernels are kept: ``$SCIML_CACHE``, or ``~/.cache/sciml``."""
    return Path(os.environ.get("SCIML_CACHE") or Path.home() / ".cache" / "sciml")


def config(name: str | Path, *, where: object = "command line") -> Path:
    """The YAML file of a recipe: a path that exists, or the name of a file in ``configs/``, with or without ``.yaml``.

    Raises `InputError` that lists the names that exist.
    """
    found = Path(name) if Path(name).is_file() else _inside("configs", Path(name), ("", ".yaml"))
    if found is None:
        raise InputError(where, key="config", found=repr(str(name)),
                         expected=f"a YAML file, or one of: {', '.join(names('configs')) or 'none'}",
                         fix="check the path, or take a name from the list")
    return found


def dataset(name: str | Path, *, where: object = "command line") -> Path:
    """The description of a data set: a path that exists (the file, or the folder of ``source.yaml``), or a name in
    ``datasets/``: ``ili``, ``navier_stokes/demo``.

    Raises `InputError` that lists the names that exist.
    """
    here = (Path(name), Path(name) / "source.yaml")
    found = next((path for path in here if path.is_file()), None)
    found = found or _inside("datasets", Path(name), ("", ".yaml", "/source.yaml"))
    if found is None:
        raise InputError(where, key="source", found=repr(str(name)),
                         expected=f"a source.yaml, or one of: {', '.join(names('datasets')) or 'none'}",
                         fix="check the path, or take a name from the list")
    return found


def benchmark(name: str, *, where: object = "command line") -> Path:
    """The script ``benchmarks/<name>.py`` of a checkout. Raises `InputError`; wheels carry no benchmarks."""
    place = folder("benchmarks")
    if place is not None and name in names("benchmarks"):
        return place / f"{name}.py"
    raise InputError(where, key="benchmark", found=repr(name),
                     expected=f"one of: {', '.join(names('benchmarks')) or 'none'}",
                     fix="take a name from the list; benchmarks come with a clone of the repository, not with a wheel")


def names(kind: Kind) -> tuple[str, ...]:
    """What exists of that kind, sorted."""
    place = folder(kind)
    if place is None:
        return ()
    if kind == "datasets":
        paths = (path.relative_to(place) for path in place.glob("*/*.yaml"))
        return tuple(sorted(str(p.parent if p.stem == "source" else p.with_suffix("")) for p in paths))
    if kind == "benchmarks":
        scripts = (path for path in place.glob("*.py") if "\ndef run(" in "\n" + path.read_text(encoding="utf-8"))
        return tuple(sorted(path.stem for path in scripts))
    return tuple(sorted(path.stem for path in place.glob("*.yaml")))


def _inside(kind: Kind, name: Path, endings: tuple[str, ...]) -> Path | None:
    """The file that a name means inside the folder of that kind, and never outside of it."""
    place = folder(kind)
    relative = Path(*name.parts[1:]) if name.parts[:1] == (kind,) else name
    if place is None or relative.is_absolute() or ".." in relative.parts or not relative.parts:
        return None
    return next((path for path in (place / f"{relative}{ending}" for ending in endings) if path.is_file()), None)
