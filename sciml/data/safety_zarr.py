"""The guard of foreign Zarr stores, v2 and v3: it reads their metadata and folders, and opens no array."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sciml.data.files import filesystem, local_path, require
from sciml.data.guard import refuse_links
from sciml.data.safety import DEFAULT, Limits, check_ratio, check_size
from sciml.errors import InputError

V2_CODECS = frozenset({"zlib", "gzip", "bz2", "lzma", "blosc", "zstd", "lz4", "delta", "fixedscaleoffset", "quantize",
                       "shuffle", "bitround", "packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32",
                       "vlen-utf8"})
V3_CODECS = frozenset({"bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed", "vlen-utf8",
                       *(f"numcodecs.{name}" for name in V2_CODECS)})
V3_ITEMSIZE = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4, "uint32": 4,
               "float32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16, "string": 8,
               "numpy.datetime64": 8, "numpy.timedelta64": 8}
ZARR_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zmetadata", ".zattrs")
MAX_DOCUMENT = 64 << 20


@dataclass(frozen=True)
class ZarrFacts:
    """What a guarded Zarr store is: its format version (2 or 3), and whether its metadata are consolidated."""

    version: int
    consolidated: bool


def check_zarr(url: str | Path, limits: Limits = DEFAULT) -> ZarrFacts:
    """Look through a foreign Zarr store (v2 or v3, local or fsspec) without opening an array.

    Refuses symbolic links and special files, codecs outside an allow-list (pickle and other object codecs), object
    types, names that climb out, and sizes beyond `limits`.
    """
    where, (fs, root) = str(url), filesystem(url)
    require(url)
    if local_path(url) is not None:
        refuse_links(root)
    found = fs.find(root, detail=True)
    stored = sum(int(info.get("size") or 0) for info in found.values())
    declared, version, consolidated = 0, 0, False
    for path, info in found.items():
        inside = path[len(root):].strip("/") if path.startswith(root) else path
        name = inside.rsplit("/", 1)[-1]
        if name not in ZARR_DOCUMENTS:
            continue
        check_size(where, inside, (int(info.get("size") or 0),), 1, MAX_DOCUMENT, "metadata")
        document = _read_json(where, fs, path, inside)
        if "/" not in inside:
            version = 3 if name == "zarr.json" else max(version, 2)
        declared += _check_zarr_document(where, inside, document, limits)
        copies = _consolidated(where, name, document)
        consolidated |= bool(copies) and "/" not in inside
        for key, copy in copies.items():
            _check_zarr_document(where, key, copy, limits)
    if not version:
        raise InputError(where, found=", ".join(sorted(p.rsplit("/", 1)[-1] for p in found)[:8]) or "an empty folder",
                         expected="a Zarr store (zarr.json, .zgroup or .zmetadata)", fix="check the path")
    check_size(where, "/", (declared,), 1, limits.total_bytes, "all arrays together")
    check_ratio(where, declared, stored, limits)
    return ZarrFacts(version, consolidated)


def _read_json(where: str, fs: Any, path: str, key: str) -> Mapping[str, Any]:
    try:
        document = json.loads(fs.cat_file(path))
    except (ValueError, RecursionError) as error:
        raise InputError(where, key=key, found=str(error)[:120], expected="JSON metadata",
                         fix="the store is damaged: copy or write it again") from None
    if not isinstance(document, dict):
        raise InputError(where, key=key, found=type(document).__name__, expected="a JSON object", fix="write it again")
    return document


def _consolidated(where: str, name: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    block = document if name == ".zmetadata" else document.get("consolidated_metadata") if name == "zarr.json" else None
    copies = block.get("metadata") if isinstance(block, dict) else None
    if copies is None:
        return {}
    for key, copy in copies.items():
        if key.startswith("/") or ".." in key.split("/") or not isinstance(copy, dict):
            raise InputError(where, key=key, found=f"consolidated entry {key!r}", expected="a name inside the store",
                             fix="don't trust the store; if it is yours, consolidate it again")
    return dict(copies)


def _check_zarr_document(where: str, key: str, document: Mapping[str, Any], limits: Limits) -> int:
    """Declared bytes of an array document (0 for groups and attributes), all its codecs being known ones."""
    if document.get("zarr_format") == 2 and "shape" in document:
        codecs = [document.get("compressor"), *(document.get("filters") or [])]
        names = [codec.get("id") for codec in codecs if codec]
        known, chunks, itemsize = V2_CODECS, document.get("chunks"), _v2_itemsize(where, key, document, names)
    elif document.get("node_type") == "array":
        names, chunks = _v3_codecs(document.get("codecs", []),
                                   _at(document, "chunk_grid", "configuration", "chunk_shape"))
        known, itemsize = V3_CODECS, _v3_itemsize(where, key, document)
        if document.get("storage_transformers"):
            raise InputError(where, key=key, found="storage transformers", expected="none", fix="write it without")
    else:
        return 0
    for name in names:
        if name not in known:
            raise InputError(where, key=key, found=f"codec {name!r}", expected=f"one of {', '.join(sorted(known))}",
                             fix="rewrite the array with numbers and a standard codec")
    try:
        shape = tuple(int(n) for n in document["shape"])
        chunk = tuple(int(n) for n in chunks or ())
    except (TypeError, ValueError, KeyError):
        raise InputError(where, key=key, found=f"shape {document.get('shape')!r}, chunks {chunks!r}",
                         expected="lists of whole numbers", fix="the store is damaged: write it again") from None
    check_size(where, key, tuple(map(min, chunk, shape)) if len(chunk) == len(shape) else chunk, itemsize,
               limits.chunk_bytes, "a chunk")
    return check_size(where, key, shape, itemsize, limits.total_bytes, "an array")


def _at(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _v3_codecs(codecs: list[Any], chunks: Any) -> tuple[list[Any], Any]:
    """Names of all codecs, those inside shards too, and the shape of the innermost chunk."""
    names: list[Any] = []
    for codec in codecs:
        name = codec.get("name") if isinstance(codec, dict) else codec
        names.append(name)
        if name == "sharding_indexed":
            inner, chunks = _v3_codecs(_at(codec, "configuration", "codecs") or [],
                                       _at(codec, "configuration", "chunk_shape"))
            names += inner + _v3_codecs(_at(codec, "configuration", "index_codecs") or [], None)[0]
    return names, chunks


def _v2_itemsize(where: str, key: str, document: Mapping[str, Any], codecs: list[Any]) -> int:
    import numpy as np

    text = document.get("dtype")
    try:
        dtype = np.dtype(text if isinstance(text, str) else [tuple(part) for part in text])  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise InputError(where, key=key, found=f"dtype {text!r}", expected="a NumPy type",
                         fix="write it again") from None
    if dtype.hasobject and "vlen-utf8" not in codecs:
        raise InputError(where, key=key, found=f"object type {text!r} with codecs {codecs}",
                         expected="numbers, or strings with vlen-utf8", fix="rewrite the array with a numeric type")
    return dtype.itemsize


def _v3_itemsize(where: str, key: str, document: Mapping[str, Any]) -> int:
    kind = document.get("data_type")
    name = kind.get("name") if isinstance(kind, dict) else kind
    if name in ("fixed_length_utf32", "null_terminated_bytes"):
        return int(_at(kind, "configuration", "length_bytes") or 1)
    if name not in V3_ITEMSIZE:
        raise InputError(where, key=key, found=f"data type {name!r}", expected=f"one of {', '.join(V3_ITEMSIZE)}",
                         fix="rewrite the array with a numeric type")
    return V3_ITEMSIZE[name]
