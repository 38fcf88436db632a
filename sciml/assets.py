"""Files that are not code: ``configs/`` and ``datasets/`` of a checkout, or their copies inside an installed wheel."""

from __future__ import annotations

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


def config(name: str | Path, *, where: object = "command line") -> Path:
    """The YAML file of a recipe: a path that exists, or the name of a file in ``configs/``, with or without ``.yaml``.

    Raises `InputError` that lists the names that exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.parent == Path("configs") or len(path.parts) == 1:
        found = _named("configs", path.name.removesuffix(".yaml"), "{}.yaml")
        if found is not None:
            return found
    raise InputError(where, key="config", found=repr(str(name)),
                     expected=f"a YAML file, or one of: {', '.join(names('configs')) or 'none'}",
                     fix="check the path, or take a name from the list")


def dataset(name: str | Path, *, where: object = "command line") -> Path:
    """The ``source.yaml`` of a data set: a path that exists (file, or folder that holds one), or a name in ``datasets/``.

    Raises `InputError` that lists the names that exist.
    """
    path = Path(name)
    for candidate in (path, path / "source.yaml"):
        if candidate.is_file():
            return candidate
    if path.parent == Path("datasets") or len(path.parts) == 1:
        found = _named("datasets", path.name, "{}/source.yaml")
        if found is not None:
            return found
    raise InputError(where, key="source", found=repr(str(name)),
                     expected=f"a source.yaml, or one of: {', '.join(names('datasets')) or 'none'}",
                     fix="check the path, or take a name from the list")


def benchmark(name: str, *, where: object = "command line") -> Path:
    """The script ``benchmarks/<name>.py`` of a checkout. Raises `InputError`; wheels carry no benchmarks."""
    found = _named("benchmarks", name, "{}.py")
    if found is not None:
        return found
    raise InputError(where, key="benchmark", found=repr(name),
                     expected=f"one of: {', '.join(names('benchmarks')) or 'none'}",
                     fix="take a name from the list; benchmarks come with a checkout of the repository, not with a wheel")


def names(kind: Kind) -> tuple[str, ...]:
    """What exists of that kind, sorted."""
    place = folder(kind)
    if place is None:
        return ()
    if kind == "datasets":
        return tuple(sorted(p.parent.name for p in place.glob("*/source.yaml")))
    suffix = {"configs": ".yaml", "benchmarks": ".py"}[kind]
    return tuple(sorted(p.stem for p in place.glob(f"*{suffix}") if not p.name.startswith("_")))


def _named(kind: Kind, name: str, pattern: str) -> Path | None:
    place = folder(kind)
    return place / pattern.format(name) if place is not None and name in names(kind) else None
