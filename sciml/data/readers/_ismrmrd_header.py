"""The XML header of ISMRMRD (Inati et al., Magn. Reson. Med. 77, 411, 2017), which fastMRI's files have, too.

Parsed by expat; a document type is refused, since nothing but entities would need one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.parsers import expat

from sciml.errors import InputError

MOST_BYTES, DEEPEST, LONGEST = 16 << 20, 32, 256
HEADER = "ismrmrd_header"
Elements = Mapping[str, str]
"""Texts by path without the root and without namespaces, the n-th ``encoding`` as ``encoding<n>``, from 0."""


@dataclass(frozen=True)
class Space:
    """An encoded or reconstructed space: cells and field of view in mm along readout, phase encoding and slices."""

    matrix: tuple[int, int, int]
    mm: tuple[float, float, float]


@dataclass(frozen=True)
class Steps:
    """Which phase encoding steps there are, and the one at frequency zero."""

    minimum: int
    maximum: int
    center: int


def elements(text: str | bytes, where: str) -> Elements:
    """The texts of a header. Raises `InputError` for what is no plain XML.

    >>> text = "<h:head xmlns:h='x'><h:encoding><h:trajectory> epi </h:trajectory></h:encoding></h:head>"
    >>> dict(elements(text, "doc"))
    {'encoding0/trajectory': 'epi'}
    """
    raw = text.encode() if isinstance(text, str) else bytes(text)
    found: dict[str, list[str]] = {}
    path: list[str] = []
    encodings = 0

    def refuse(what: str) -> InputError:
        return InputError(where, key=HEADER, found=what, expected=f"plain XML of at most {MOST_BYTES >> 20} MiB",
                          fix="the header is damaged or no ISMRMRD: copy the file again")

    def begin(name: str, _: object) -> None:
        nonlocal encodings
        name = name.rpartition(":")[2]
        if len(path) == 1 and name == "encoding":
            name, encodings = f"encoding{encodings}", encodings + 1
        if len(path) >= DEEPEST or len(name) > LONGEST:
            raise refuse(f"elements more than {DEEPEST} deep, or names of more than {LONGEST} letters")
        path.append(name)

    def told(text: str) -> None:
        found.setdefault("/".join(path[1:]), []).append(text)

    def no_type(*_: object) -> None:
        raise refuse("a document type")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = begin, lambda _: path.pop()
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = told, no_type
    if len(raw) > MOST_BYTES:
        raise refuse(f"{len(raw)} bytes")
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise refuse(str(error)) from None
    return {key: text for key, parts in found.items() if (text := "".join(parts).strip())}


def space(header: Elements, name: str, where: str, encoding: int = 0) -> Space:
    """``encodedSpace`` or ``reconSpace``. Raises `InputError` unless all its numbers are above 0.

    >>> text = "<head><encoding><reconSpace><matrixSize><x>4</x><y>2</y><z>1</z></matrixSize><fieldOfView_mm>"
    >>> text += "<x>8</x><y>4</y><z>3</z></fieldOfView_mm></reconSpace></encoding></head>"
    >>> space(elements(text, "doc"), "reconSpace", "doc")
    Space(matrix=(4, 2, 1), mm=(8.0, 4.0, 3.0))
    """
    found = []
    for key in ("matrixSize", "fieldOfView_mm"):
        texts = [header.get(f"encoding{encoding}/{name}/{key}/{axis}", "") for axis in "xyz"]
        numbers = [_number(text) for text in texts]
        if not all(0 < each < 1e6 for each in numbers) or (key == "matrixSize" and any(each % 1 for each in numbers)):
            raise InputError(where, key=f"{HEADER}: {name}", found=f"{key} {' × '.join(texts)}",
                             expected="matrixSize and fieldOfView_mm, x, y and z above 0",
                             fix="the header is damaged: copy the file again")
        found.append(numbers)
    (nx, ny, nz), (x, y, z) = found
    return Space((int(nx), int(ny), int(nz)), (x, y, z))


def steps(header: Elements, number: int, count: int, where: str, encoding: int = 0) -> Steps:
    """The limits of phase encoding 1 or 2, all `count` cells where the header has none. Raises `InputError`."""
    base = f"encoding{encoding}/encodingLimits/kspace_encoding_step_{number}"
    texts = {key: header.get(f"{base}/{key}") for key in ("minimum", "maximum", "center")}
    if not any(texts.values()):
        return Steps(0, count - 1, count // 2)
    low, high, centre = (_number(text or "") for text in texts.values())
    if not (0 <= low <= high <= 65535 and low <= centre <= high) or any(each % 1 for each in (low, high, centre)):
        raise InputError(where, key=f"{HEADER}: kspace_encoding_step_{number}", found=texts,
                         expected="whole numbers, minimum ≤ center ≤ maximum",
                         fix="the header is damaged: copy the file again")
    return Steps(int(low), int(high), int(centre))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
