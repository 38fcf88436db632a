"""``source.yaml``: what a data set is made from, described so that anybody can make it again."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sciml.assets import cache_folder
from sciml.data.conventions import convention_of
from sciml.data.guard import local_path
from sciml.data.schema import Role
from sciml.data.split_config import Split
from sciml.errors import InputError
from sciml.recipe import Section, read_yaml, validate

BLOCK = 1 << 20


class FileSource(Section):
    """A file or folder: a path (relative to the source.yaml; may be a glob pattern) or a URL that fsspec knows."""

    path: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class SourceVariable(Section):
    """What the file doesn't say, or says differently. key: its name in the file; dims: without the group dimension;
    vector, along: of which vector or tensor it is the component along which axes."""

    role: Role | None = None
    unit: str | None = None
    key: str | None = None
    dims: tuple[str, ...] | None = None
    long_name: str = ""
    vector: str = ""
    along: tuple[str, ...] = ()


class SourceAxis(Section):
    """What the file doesn't say of a dimension. reverse: flip a descending one; uniform: false accepts uneven time."""

    kind: Literal["space", "time", "set"] | None = None
    unit: str | None = None
    period: float | None = Field(default=None, gt=0)
    reverse: bool = False
    uniform: bool = True


def _as_files(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    return [{"path": f} if isinstance(f, str) else f for f in value] if isinstance(value, list | tuple) else value


Files = Annotated[tuple[FileSource, ...], BeforeValidator(_as_files)]


class SourceSpec(Section):
    """One data set. builder: ``file`` (read `files`) or a name in the group ``sciml.data.builders``. options: the
    builder's or reader's own. variables: if any are given, only these are kept. split: null is what is usual in the
    domain (`sciml.data.splits.usual_split`). missing: what NaN and Inf mean."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    domain: str
    builder: str = "file"
    files: Files = ()
    options: dict[str, Any] = Field(default_factory=dict)
    variables: dict[str, SourceVariable] = Field(default_factory=dict)
    axes: dict[str, SourceAxis] = Field(default_factory=dict)
    split: Split | None = None
    missing: Literal["refuse", "mask"] = "refuse"
    licence: str = ""
    citation: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> SourceSpec:
        if self.builder == "file" and not self.files:
            raise ValueError("builder `file` needs `files`")
        if self.split is not None and self.split.fractions is not None and self.split.counts is not None:
            raise ValueError("split takes fractions or counts, not both")
        return self


def read_source(path: str | Path) -> SourceSpec:
    """A validated source.yaml; relative paths in `files` become relative to its folder. Raises `InputError`."""
    raw = read_yaml(path)
    if isinstance(raw.get("split"), dict):
        raw["split"].setdefault("by", convention_of(raw.get("domain")).by)
    spec = validate(SourceSpec, raw, where=path)
    base = Path(path).resolve().parent
    files = tuple(f.model_copy(update={"path": _absolute(base, f.path)}) for f in spec.files)
    return spec.model_copy(update={"files": files})


def _absolute(base: Path, path: str) -> str:
    local = local_path(path)
    return path if local is None else os.path.normpath(base / local)


@dataclass(frozen=True)
class FoundFile:
    """Where a declared file was found, and its SHA-256."""

    declared: str
    path: str
    sha256: str


def find_files(spec: SourceSpec) -> list[FoundFile]:
    """Every file of the source, found, fetched if need be, and its hash compared with the declared one.

    A path is taken where it is; a URL, or a path that is missing, is looked for in ``$SCIML_MIRROR/<name>/<basename>``,
    by name and hash in all of the mirror, and in the cache (``$SCIML_CACHE`` or ``~/.cache/sciml``); a URL that is in
    neither is fetched into the cache.
    Folders behind URLs (Zarr) are read in place. Raises `InputError` if a file is not found or is another one.
    """
    found = _told_apart([one for file in spec.files for one in _find(spec, file)])
    for seen in ([f.declared for f in found], [f.path for f in found]):
        if len(set(seen)) < len(seen):
            twice = found[next(i for i, one in enumerate(seen) if one in seen[:i])].declared
            raise InputError(spec.name, key="files", found=f"{twice} twice", expected="each file once",
                             fix="remove one")
    return found


def _told_apart(found: Sequence[FoundFile]) -> list[FoundFile]:
    """Local files by their basename, those that share it (run1/out.pvd, run2/out.pvd) by what follows the folder that
    they have in common."""
    named = []
    for file in found:
        if local_path(file.declared) is not None:
            alike = [os.path.dirname(f.declared) for f in found
                     if local_path(f.declared) is not None
                     and os.path.basename(f.declared) == os.path.basename(file.declared)]
            file = replace(file, declared=os.path.relpath(file.declared, os.path.commonpath(alike)))
        named.append(file)
    return named


def _find(spec: SourceSpec, file: FileSource) -> Iterator[FoundFile]:
    local = local_path(file.path)
    matches = sorted(glob.glob(local)) if local is not None and not os.path.exists(local) else []
    if matches and file.sha256 is not None:
        raise InputError(spec.name, key=file.path, found="a pattern with a sha256", expected="one hash per file",
                         fix="list the files")
    for match in matches:
        yield FoundFile(os.path.abspath(match), match, sha256_of(match))
    if matches:
        return
    path = _locate(spec, file)
    digest = sha256_of(path)
    if file.sha256 is not None and digest != file.sha256:
        raise InputError(path, key="sha256", found=digest, expected=file.sha256,
                         fix="fetch the file again, or correct the hash if the data were meant to change")
    yield FoundFile(file.path if local is None else os.path.abspath(local), path, digest)


def _locate(spec: SourceSpec, file: FileSource) -> str:
    local = local_path(file.path)
    if local is not None and os.path.exists(local):
        return local
    basename = os.path.basename(file.path.partition("::")[0].rstrip("/")).partition("?")[0]
    cached = cache_folder() / spec.name / basename
    if local is None:
        tag = hashlib.sha256(f"{file.path} {file.sha256}".encode()).hexdigest()[:8]
        cached = cached.with_name(f"{tag}-{basename}")
    places = _mirrored(spec, file, basename)
    for place in (*places, cached):
        if place.exists():
            return str(place)
    if local is not None:
        searched = ", ".join(str(p) for p in (local, *places, cached))
        raise InputError(spec.name, key=basename, found=f"no such file ({searched})", expected="the file",
                         fix=f"put it there, or under $SCIML_MIRROR/{spec.name}/")
    return _fetch(spec, file.path, cached)


def _mirrored(spec: SourceSpec, file: FileSource, basename: str) -> list[Path]:
    """Where in the mirror a file may be: in the data set's folder, or wherever one of its name and hash is."""
    mirror = os.environ.get("SCIML_MIRROR")
    if not mirror:
        return []
    usual = Path(mirror) / spec.name / basename
    if usual.exists() or file.sha256 is None:
        return [usual]
    others = sorted(path for path in Path(mirror).rglob(glob.escape(basename)) if path.is_file())
    return [usual, *(path for path in others if sha256_of(str(path)) == file.sha256)]


def _fetch(spec: SourceSpec, url: str, target: Path) -> str:
    import fsspec

    partial: str | None = None
    try:
        filesystem, remote = fsspec.core.url_to_fs(url)
        if filesystem.isdir(remote):
            return url
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{target.name}.partial-", dir=target.parent)
        with os.fdopen(handle, "wb") as out, filesystem.open(remote, "rb") as source:
            while block := source.read(BLOCK):
                out.write(block)
        os.replace(partial, target)
        return str(target)
    except Exception as error:
        if partial is not None and os.path.exists(partial):
            os.unlink(partial)
        basename = target.name.partition("-")[2]
        raise InputError(spec.name, key=url, found=f"{type(error).__name__}: {str(error)[:120]}", expected="the file",
                         fix=f"check the URL and the network, or put it at $SCIML_MIRROR/{spec.name}/{basename}",
                         ) from error


def sha256_of(path: str) -> str:
    """SHA-256 of a file's bytes; of a folder, over the sorted names and hashes of its files (in a folder behind a URL:
    names and sizes).

    Raises `InputError` if it can't be read.
    """
    try:
        if local_path(path) is None:
            return _remote_hash(path)
        if not os.path.isdir(path):
            with open(path, "rb") as source:
                return hashlib.file_digest(source, "sha256").hexdigest()
        total = hashlib.sha256()
        for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
            total.update(f"{file.relative_to(path)} {sha256_of(str(file))}\n".encode())
        return total.hexdigest()
    except OSError as error:
        raise InputError(path, found=error.strerror or str(error), expected="a readable file",
                         fix="check its permissions") from None


def _remote_hash(url: str) -> str:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url)
    listing = filesystem.find(root, detail=True)
    lines = [f"{name[len(root):]} {info.get('size')}\n" for name, info in sorted(listing.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
