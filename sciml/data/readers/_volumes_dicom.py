"""Slices of a DICOM series: what their headers say, in order of place and time, held against one another."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sciml.data.readers._volumes_stream import library
from sciml.errors import InputError

TAGS = ["SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns", "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "SamplesPerPixel", "NumberOfFrames",
        "SliceThickness", "TemporalPositionIdentifier", "TriggerTime", "FrameReferenceTime", "AcquisitionTime"]
DEFLATED = "1.2.840.10008.1.2.1.99"
UNEVEN = 0.05
"""Of the usual gap: how far a slice may be from where it should lie."""
TURNED = 1e-3
SAME_MM = 1e-3
"""How far slices of one place may be apart."""
HALF_DAY = 43200.0
"""Seconds; clocks that differ by more went past midnight."""


@dataclass(frozen=True)
class Slice:
    """One file: positions in mm in LPS; row, column: where the column and the row index point to; spacing: between rows
    and between columns, and the slice's own thickness, 0 where it isn't said; scale: slope and intercept; clocks: the
    number of its point of time, then s since the trigger, since the reference and of the day, NaN where not said."""

    path: str
    series: str
    modality: str
    shape: tuple[int, int]
    row: np.ndarray
    column: np.ndarray
    position: np.ndarray
    spacing: tuple[float, float, float]
    scale: tuple[float, float]
    clocks: tuple[float, ...]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    def pixels(self) -> np.ndarray:
        """``(row, column)`` float32, rescaled. Raises `InputError` if they can't be decoded."""
        pydicom = library("pydicom", self.path)
        try:
            stored = np.asarray(pydicom.dcmread(self.path).pixel_array)
        except Exception as error:
            raise InputError(self.path, key="PixelData",
                             found=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
                             expected="pixels that can be decoded",
                             fix="copy the file again if it is cut short; if it is compressed, gdcmconv --raw FILE "
                                 "NEW") from None
        if stored.shape != self.shape[::-1]:
            raise InputError(self.path, key="PixelData", found=f"{stored.shape}", expected=f"{self.shape[::-1]}",
                             fix="the file is damaged: copy it again")
        slope, intercept = self.scale
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def slices_of(files: Sequence[str], series: str | None) -> list[Slice]:
    """The slices of a series, in the order of their files.

    Raises `InputError` naming the file: several series (unless `series` names one), other sizes, spacings or
    orientations than the first one's.
    """
    slices = [_slice(file) for file in files]
    if series is not None:
        slices = [one for one in slices if one.series == series]
    if not slices:
        raise InputError(os.path.dirname(files[0]), key="series", found=f"no slice of {series}",
                         expected="a SeriesInstanceUID of the folder", fix="correct options.series")
    first = slices[0]
    for one in slices[1:]:
        if one.series != first.series:
            known = sorted({s.series for s in slices})
            raise InputError(one.path, key="SeriesInstanceUID", found=one.series,
                             expected=f"one series; {os.path.basename(first.path)} is of {first.series}",
                             fix=f"one folder per series, or options: {{series: …}}, one of {', '.join(known[:4])}")
        _alike(first, one)
    return slices


def stacked(slices: Sequence[Slice]) -> list[Slice]:
    """Slices in ascending order along their normal. Raises `InputError` for two at one place, and gaps where slices are
    missing."""
    places = _places(slices)
    order = np.argsort(places, kind="stable")
    ordered = [slices[i] for i in order]
    _refuse_gaps(ordered, places[order])
    return ordered


def frames_of(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices of several points of time as a stack for each: told apart, at every place, by the first of their clocks
    that differs between them. Raises `InputError` as `stacked` does, and if some places have fewer than others."""
    places = _places(slices)
    order = np.argsort(places, kind="stable")
    ends = np.flatnonzero(np.diff(places[order]) > SAME_MM) + 1
    spots = [[slices[i] for i in some] for some in np.split(order, ends)]
    most = max(spots, key=len)
    count = len(most)
    for spot in spots:
        if len(spot) < count:
            raise InputError(spot[0].path, key="ImagePositionPatient", found=f"{len(spot)} slices at its place",
                             expected=f"{count}, as at that of {os.path.basename(most[0].path)}",
                             fix="copy the missing slices, or leave out all of that point of time; remove copies")
    clocks = np.array([[one.clocks for one in spot] for spot in spots])  # (places, frames, clocks)
    for when in np.moveaxis(clocks, -1, 0) if count > 1 else ():
        ranked = np.argsort(when, 1, kind="stable")
        if (np.diff(np.take_along_axis(when, ranked, 1), axis=1) > 0).all() and _one_day(when):
            spots = [[spot[i] for i in rank] for spot, rank in zip(spots, ranked)]
            return [stacked(frame) for frame in zip(*spots)]
    return [stacked(slices)]


def seconds_of(frames: Sequence[Sequence[Slice]]) -> list[float]:
    """When frames were taken, from the first: medians over slices of the first clock in s that ascends; NaN after the
    first where there is none."""
    for clock in (1, 2, 3):
        when = np.array([np.median([one.clocks[clock] for one in frame]) for frame in frames])
        if np.isfinite(when).all() and (np.diff(when) > 0).all() and _one_day(when):
            return [float(each) for each in when - when[0]]
    return [0.0, *[float("nan")] * (len(frames) - 1)]


def _one_day(when: np.ndarray) -> bool:
    return float(np.ptp(when)) < HALF_DAY


def _places(slices: Sequence[Slice]) -> np.ndarray:
    """``(slices,)`` mm along their normal."""
    return np.array([one.position @ slices[0].normal for one in slices])


def _alike(first: Slice, one: Slice) -> None:
    def refuse(key: str, found: Any, expected: Any, what: str) -> InputError:
        return InputError(one.path, key=key, found=found, expected=f"{expected}, as {os.path.basename(first.path)} has",
                          fix=f"{what}: one folder per stack of parallel slices (a scout or localiser goes elsewhere)")

    if one.shape != first.shape:
        raise refuse("Rows, Columns", one.shape[::-1], first.shape[::-1], "mixed sizes")
    turned = max(np.abs(one.row - first.row).max(), np.abs(one.column - first.column).max())
    if turned > TURNED:
        raise refuse("ImageOrientationPatient", [*one.row.round(4).tolist(), *one.column.round(4).tolist()],
                     [*first.row.round(4).tolist(), *first.column.round(4).tolist()], "mixed orientations")
    if not np.allclose(one.spacing[:2], first.spacing[:2], rtol=1e-3):
        raise refuse("PixelSpacing", list(one.spacing[:2]), list(first.spacing[:2]), "mixed spacings")


def _refuse_gaps(slices: Sequence[Slice], places: np.ndarray) -> None:
    if len(slices) < 2:
        return
    steps = np.diff(places)
    usual = float(np.median(steps))
    if (same := np.flatnonzero(steps < 1e-3 * max(usual, 1e-3))).size:
        one, other = slices[same[0]], slices[same[0] + 1]
        raise InputError(other.path, key="ImagePositionPatient",
                         found=f"the same place as {os.path.basename(one.path)}",
                         expected="one slice at each place",
                         fix="options: {frames: time} if the headers say when they were taken; one folder per echo or "
                             "reconstruction; remove copies")
    at = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[at] - usual) > UNEVEN * usual:
        missing = round(steps[at] / usual) - 1
        raise InputError(slices[at + 1].path, key="ImagePositionPatient", found=f"{steps[at]:.4g} mm behind "
                         f"{os.path.basename(slices[at].path)}" + (f": {missing} slices missing" if missing > 0
                                                                   else ""),
                         expected=f"{usual:.4g} mm, the usual gap",
                         fix="copy the missing slices, or resample uneven ones")
    line = slices[0].position + np.outer(np.linspace(0, 1, len(slices)), slices[-1].position - slices[0].position)
    off = np.linalg.norm(np.array([one.position for one in slices]) - line, axis=1)
    if off.max() > UNEVEN * usual:
        raise InputError(slices[int(np.argmax(off))].path, key="ImagePositionPatient",
                         found=f"{off.max():.4g} mm beside the line through the others", expected="slices in one line",
                         fix="one folder per stack of parallel slices")


def _slice(file: str) -> Slice:
    pydicom = library("pydicom", file)
    try:
        if str(pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID", "")) == DEFLATED:
            raise ValueError("a deflated data set, whose size can't be known before it is inflated")
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
    except Exception as error:
        raise InputError(file, found=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
                         expected="a DICOM file",
                         fix="copy it again if it is damaged; dcmconv +te FILE NEW if it is deflated") from None
    shape = (_whole(header, file, "Columns"), _whole(header, file, "Rows"))
    if (int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)) != (1, 1):
        raise InputError(file, key="NumberOfFrames, SamplesPerPixel", found=f"{header.get('NumberOfFrames', 1)}, "
                         f"{header.get('SamplesPerPixel', 1)}", expected="one grey plane per file",
                         fix="convert multi-frame files with dcm2niix and read the NIfTI; colour is not read")
    around = _numbers(header, file, "ImageOrientationPatient", 6)
    spacing = _numbers(header, file, "PixelSpacing", 2)
    if (spacing <= 1e-6).any():
        raise InputError(file, key="PixelSpacing", found=spacing.tolist(), expected="above 0 mm",
                         fix="correct the header")
    scale = tuple(float(header.get(name, usual)) for name, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise InputError(file, key="RescaleSlope, RescaleIntercept", found=f"{scale[0]}, {scale[1]}",
                         expected="finite numbers, slope not 0", fix="correct the header")
    return Slice(file, str(header.get("SeriesInstanceUID", "")), str(header.get("Modality", "")), shape, around[:3],
                 around[3:], _numbers(header, file, "ImagePositionPatient", 3),
                 (spacing[0], spacing[1], float(header.get("SliceThickness") or 0.0)), (scale[0], scale[1]),
                 (_clock(header, "TemporalPositionIdentifier"), _clock(header, "TriggerTime") / 1e3,
                  _clock(header, "FrameReferenceTime") / 1e3, _of_day(str(header.get("AcquisitionTime") or ""))))


def _clock(header: Any, name: str) -> float:
    try:
        return float(header.get(name, "nan"))
    except (TypeError, ValueError):  # empty, or several
        return float("nan")


def _of_day(text: str) -> float:
    """Seconds since midnight of ``HHMMSS.ffffff``, NaN of anything else.

    >>> _of_day("010203.5"), _of_day("")
    (3723.5, nan)
    """
    if not re.fullmatch(r"\d{6}(\.\d{1,6})?", text.strip()):
        return float("nan")
    return 3600.0 * int(text[:2]) + 60.0 * int(text[2:4]) + float(text[4:])


def _whole(header: Any, file: str, name: str) -> int:
    value = int(header.get(name) or 0)
    if value < 1:
        raise InputError(file, key=name, found=value, expected="at least 1",
                         fix="the file holds no image: leave it out")
    return value


def _numbers(header: Any, file: str, name: str, count: int) -> np.ndarray:
    found = header.get(name)
    values = np.array([float(v) for v in found] if found is not None else [], np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError(file, key=name, found="none" if found is None else values.tolist(),
                         expected=f"{count} numbers",
                         fix="the file holds no slice of a volume: leave it out of the folder")
    return values
