"""What a Zarr group must look like before anything of it is decoded: sizes, codecs and files that can be trusted.

Everything is judged from the one JSON document at the root (consolidated metadata), so no array metadata is parsed by
zarr before it was looked at here, and no codec is looked up that is not on the list.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sciml.errors import InputError

CODECS = frozenset({"bytes", "transpose", "zstd", "blosc", "gzip", "crc32c", "vlen-utf8", "sharding_indexed"})
DATA_TYPES = frozenset({"bool", "string", "float16", "float32", "float64",
                        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
MAX_METADATA_BYTES = 64 << 20
MAX_CHUNK_BYTES = 1 << 30
MAX_COORDINATE_BYTES = 1 << 30
MAX_ARRAY_BYTES = 1 << 50
MAX_RANK = 8
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.\- ]*$")


def local_path(url: str | os.PathLike[str]) -> str | None:
    """The path behind a local path or ``file://`` URL; None for any other URL.

    >>> local_path("file:///data/a.zarr"), local_path("a.zarr"), local_path("s3://bucket/a.zarr")
    ('/data/a.zarr', 'a.zarr', None)
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        return text.removeprefix("file://")
    return None if "://" in text else text


def read_metadata(url: str) -> dict[str, Any]:
    """The root ``zarr.json``, at most 64 MiB. Raises `InputError` if there is none or it is no JSON object."""
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url)
    name = f"{root.rstrip('/')}/zarr.json"
    try:
        with filesystem.open(name, "rb") as source:
            text = source.read(MAX_METADATA_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(url, found="no zarr.json", expected="a Zarr v3 group",
                         fix=_look_beside(url) or "build it: sciml data build SOURCE STORE") from None
    if len(text) > MAX_METADATA_BYTES:
        raise InputError(url, key="zarr.json", found=f"more than {MAX_METADATA_BYTES} bytes",
                         expected="metadata of a store", fix="don't use this file")
    try:
        root_json = json.loads(text)
    except ValueError as error:
        raise InputError(url, key="zarr.json", found=str(error)[:80], expected="JSON",
                         fix="build the store anew") from None
    if not isinstance(root_json, dict) or root_json.get("zarr_format") != 3 or root_json.get("node_type") != "group":
        raise InputError(url, key="zarr.json", found=f"zarr_format {_get(root_json, 'zarr_format')}, "
                         f"node_type {_get(root_json, 'node_type')}", expected="a Zarr v3 group",
                         fix="describe the file in a source.yaml and build a store: sciml data sniff")
    return root_json


def _get(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None


def _look_beside(url: str) -> str | None:
    path = local_path(url)
    if path is None:
        return None
    folder, name = os.path.split(path.rstrip("/"))
    kept = os.path.join(folder, f".{name}.replaced")
    return f"an overwrite was interrupted; put the old one back: mv {kept} {path}" if os.path.isdir(kept) else None


def check_arrays(url: str, root: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name → metadata of the arrays of a flat group; raises `InputError` on any that must not be opened.

    Refused: nested groups, names that are paths, data types and codecs that are not on the list (object, pickle,
    unknown), storage transformers, ranks above 8, chunks above 1 GiB, arrays above 1 PiB, coordinates above 1 GiB.
    """
    consolidated = root.get("consolidated_metadata")
    arrays = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    if not isinstance(arrays, dict) or not arrays:
        raise InputError(url, key="consolidated_metadata", found="none", expected="metadata of every array",
                         fix="the store is half-written; build it anew")
    for name, array in arrays.items():
        if not _NAME.match(name):
            raise InputError(url, key=name, found="a path", expected="a plain array name", fix="don't use this store")
        try:
            _check_array(url, name, array)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(url, key=name, found=f"malformed metadata ({error!r})"[:120],
                             expected="metadata of a Zarr v3 array", fix="build the store anew") from None
    return arrays


def _check_array(url: str, name: str, array: Mapping[str, Any]) -> None:
    def refuse(found: object, expected: str) -> InputError:
        return InputError(url, key=name, found=found, expected=expected, fix="don't use it, or build the store anew")

    if array["node_type"] != "array" or array["zarr_format"] != 3:
        raise refuse(f"node_type {array['node_type']!r}", "an array of Zarr v3")
    if array.get("storage_transformers"):
        raise refuse("storage transformers", "none")
    if array["data_type"] not in DATA_TYPES:
        raise refuse(f"data type {array['data_type']!r}", f"one of {', '.join(sorted(DATA_TYPES))}")
    for codec in _codecs(array["codecs"]):
        if codec not in CODECS:
            raise refuse(f"codec {codec!r}", f"codecs among {', '.join(sorted(CODECS))}")
    if array["chunk_grid"]["name"] != "regular":
        raise refuse(f"chunk grid {array['chunk_grid']['name']!r}", "regular")
    shape = [int(n) for n in array["shape"]]
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise refuse(f"shape {shape}", f"at most {MAX_RANK} dimensions")
    item = item_size(array["data_type"])
    chunk, shard = chunk_shapes(array)
    for what, size, limit in (("an array", shape, MAX_ARRAY_BYTES), ("a chunk", chunk, MAX_CHUNK_BYTES),
                              ("a shard", shard, 16 * MAX_CHUNK_BYTES)):
        if math.prod(size) * item > limit:
            raise refuse(f"{what} that declares {math.prod(size) * item} bytes", f"at most {limit}")
    if array.get("dimension_names") == [name] and math.prod(shape) * item > MAX_COORDINATE_BYTES:
        raise refuse(f"a coordinate of {math.prod(shape) * item} bytes", f"at most {MAX_COORDINATE_BYTES}")


def check_read_whole(url: str, name: str, array: Mapping[str, Any]) -> None:
    """Raises `InputError` if numbers of rows, which are read when a store is opened, are no int64 or beyond 1 GiB."""
    if array["data_type"] != "int64" or math.prod(int(n) for n in array["shape"]) * 8 > MAX_COORDINATE_BYTES:
        raise InputError(url, key=name, found=f"{array['data_type']} {array['shape']}",
                         expected=f"int64, at most {MAX_COORDINATE_BYTES} bytes", fix="build the store anew")


def _codecs(codecs: list[Any]) -> Iterator[str]:
    for codec in codecs:
        if isinstance(codec, str):
            yield codec
            continue
        yield codec["name"]
        inner = codec.get("configuration") or {}
        yield from _codecs(inner.get("codecs", []))
        yield from _codecs(inner.get("index_codecs", []))


def item_size(data_type: str) -> int:
    """Bytes of one value; 16 for a string (its handle).

    >>> item_size("float32"), item_size("bool"), item_size("string")
    (4, 1, 16)
    """
    if data_type in ("bool", "string"):
        return 1 if data_type == "bool" else 16
    return int("".join(c for c in data_type if c.isdigit())) // 8


def chunk_shapes(array: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a chunk (the unit that is decoded) and of a shard (the unit that is a file)."""
    shard = tuple(int(n) for n in array["chunk_grid"]["configuration"]["chunk_shape"])
    first = array["codecs"][0]
    if isinstance(first, dict) and first["name"] == "sharding_indexed":
        return tuple(int(n) for n in first["configuration"]["chunk_shape"]), shard
    return shard, shard


def refuse_links(path: str) -> None:
    """Raises `InputError` if anything below a local folder is a symbolic link or no regular file."""
    stack = [path]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    kind = f"a symbolic link to {os.readlink(entry.path)}" if entry.is_symlink() else "a special file"
                    raise InputError(path, key=os.path.relpath(entry.path, path), found=kind, expected="a regular file",
                                     fix="copy the store with its files (cp -rL) if you trust what it links to")
