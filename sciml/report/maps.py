"""Maps of fields as palette PNGs: predicted, true and error at chosen steps, on scales shared by all of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

MAX_SIDE = 160
PIXEL_BUDGET = 1_000_000
MAX_FRAMES = 21


@dataclass(frozen=True)
class Scale:
    """Which numbers the colours of a map stand for, `low` to `high` in `unit`."""

    low: float
    high: float
    palette: str
    unit: str

    def ticks(self) -> tuple[str, str, str]:
        return figure_(self.low), figure_((self.low + self.high) / 2), figure_(self.high)

    def gradient(self) -> str:
        """CSS gradient from low to high."""
        colors = _palette(self.palette)
        stops = [colors[int(i)] for i in np.linspace(1, 255, 13)]
        return "linear-gradient(to right," + ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in stops) + ")"


@dataclass(frozen=True)
class Map:
    """One picture: what it shows, its data URL, its words for who can't see it."""

    role: str
    src: str
    alt: str


@dataclass(frozen=True)
class Frame:
    """The maps at one step and the line under them."""

    label: str
    note: str
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Panel:
    """All that is shown of one variable of one sample. aspect: width / height of a map."""

    title: str
    frames: tuple[Frame, ...]
    values: Scale
    errors: Scale | None
    caption: str
    aspect: float = 1.0


def chosen(count: int, shape: tuple[int, int], panels: int = 1) -> np.ndarray:
    """Indices of the steps shown: the first, the last and evenly between, as many as the size of the page allows.

    >>> chosen(100, (64, 64)).tolist()[:4], len(chosen(100, (64, 64))), chosen(3, (64, 64)).tolist()
    ([0, 5, 10, 15], 21, [0, 1, 2])
    """
    room = PIXEL_BUDGET // (3 * panels * min(shape[0], MAX_SIDE) * min(shape[1], MAX_SIDE))
    frames = max(2, min(MAX_FRAMES, room, count))
    return np.unique(np.round(np.linspace(0, count - 1, frames)).astype(int))


def value_scale(arrays: Sequence[np.ndarray], unit: str) -> Scale:
    """Shared by predicted and true: from the truth where there is one, 0.1 to 99.9 per cent of it, symmetric about 0
    if the field takes both signs."""
    low, high = _percentiles(arrays, (0.1, 99.9))
    if low < 0 < high and min(-low, high) > 0.2 * max(-low, high):
        bound = max(-low, high)
        return Scale(-bound, bound, "RdBu_r", unit)
    return Scale(low, high if high > low else low + 1.0, "cividis", unit)


def error_scale(arrays: Sequence[np.ndarray], unit: str) -> Scale:
    """Symmetric about 0 and shared by all steps: 99.5 per cent of the absolute error."""
    bound = _percentiles([np.abs(a) for a in arrays], (99.5,))[0]
    return Scale(-bound if bound > 0 else -1.0, bound if bound > 0 else 1.0, "PuOr_r", unit)


def picture(values: np.ndarray, scale: Scale) -> str:
    """``(x, y)`` values as a data URL, x to the right and y up; what is not finite is grey."""
    from PIL import Image

    values = thin(values)
    with np.errstate(invalid="ignore"):
        level = np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)
    index = np.where(np.isfinite(values), 1 + np.round(254 * np.nan_to_num(level)), 0).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(index.T[::-1]))
    image.putpalette(_palette(scale.palette).tobytes())
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thin(values: np.ndarray) -> np.ndarray:
    """Every n-th cell, so that no side is longer than `MAX_SIDE`."""
    step = stride(values.shape[:2])
    return values[::step[0], ::step[1]]


def stride(shape: tuple[int, ...]) -> tuple[int, int]:
    """Which cells of a large field are shown.

    >>> stride((64, 512))
    (1, 4)
    """
    return -(-shape[0] // MAX_SIDE), -(-shape[1] // MAX_SIDE)


def figure_(value: float) -> str:
    """A figure on a scale, with a proper minus sign.

    >>> figure_(-0.5), figure_(1e-20 - 1e-20)
    ('−0.5', '0')
    """
    return f"{value:.3g}".replace("-", "−")


def _palette(name: str) -> np.ndarray:
    from matplotlib import colormaps

    colors = (colormaps[name](np.linspace(0, 1, 255))[:, :3] * 255).round().astype(np.uint8)
    return np.concatenate([np.array([[150, 150, 150]], np.uint8), colors])


def _percentiles(arrays: Sequence[np.ndarray], which: tuple[float, ...]) -> list[float]:
    values = np.concatenate([a[np.isfinite(a)].ravel() for a in arrays])
    return [float(v) for v in np.percentile(values, which)] if len(values) else [0.0 for _ in which]
