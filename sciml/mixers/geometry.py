"""What a mixer may know of the lattice it acts on: the axes at this level, and tables computed once per level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sciml.errors import InputError
from sciml.kernels.fused import rotate as turn
from sciml.tokens import Axis

NUM_ROLES = 5
TIME_ROLE, SET_ROLE = 3, 4
MAX_HARMONIC = 8
LOWEST_OCTAVE, HIGHEST_OCTAVE = -4.0, 3.0

T = TypeVar("T")


@dataclass
class Geometry:
    """The axes of one level. second_order: kernels must have second derivatives. pair_bias: heads → ``(1, H, N, N)``.

    Tables (rotary angles, key weights, segment masks) are kept for the lifetime of the object, which is one forward
    pass, so that all blocks of a level share them.
    """

    axes: tuple[Axis, ...]
    second_order: bool = False
    pair_bias: Callable[[int], Tensor] | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def packed_axis(self) -> int | None:
        return next((i for i, axis in enumerate(self.axes) if axis.segment is not None), None)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """`make()`, computed at the first call with that key."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def role(self, index: int) -> int:
        """Row of an axis in a role table: its place among the spatial axes, or time, or set."""
        return roles_of(self.axes)[index]

    def per_token(self, c: Tensor) -> Tensor:
        """``(S, K)`` per segment → broadcastable to ``(B, *lattice, K)``."""
        packed = self.packed_axis
        if packed is None:
            return c.view(c.shape[0], *[1] * len(self.axes), c.shape[-1])
        segment = self.axes[packed].segment
        assert segment is not None
        shape = [1] * len(self.axes)
        shape[packed] = segment.shape[1]
        return c[segment[0]].view(1, *shape, c.shape[-1])

    def key_bias(self, indices: tuple[int, ...]) -> Tensor | None:
        """Log quadrature weight of every key of the flattened axes, ``(B or 1, N)``, or None where all weigh the same.

        softmax(q·k + log w) is the integral over the axis, so that attention converges as the axis is refined; padding
        has weight 0, hence bias −inf.
        """
        return self.once(("key_bias", indices), lambda: self._key_bias(indices))

    def _key_bias(self, indices: tuple[int, ...]) -> Tensor | None:
        weights = [self.axes[i].weights() for i in indices]
        known = not torch.compiler.is_exporting()  # an exported graph can't ask, and its weights always enter
        if known and all(bool((w == w[:, :1]).all()) or _nearly_uniform(w) for w in weights):
            return None
        batch = max(w.shape[0] for w in weights)
        total = weights[0].new_ones(batch, 1)
        for w in weights:
            total = (total[:, :, None] * w[:, None, :]).flatten(1)
        return (total / total.amax(1, keepdim=True)).log()

    def segment_mask(self, index: int) -> Tensor | None:
        """``(n, n)`` True where query and key belong to the same packed sample, or None."""
        segment = self.axes[index].segment
        if segment is None:
            return None
        return self.once(("segment", index), lambda: segment[0, :, None] == segment[0, None, :])

    def check_alone(self, index: int) -> None:
        """Raises `InputError` if the axis packs several samples: a memory of keys is that of one."""
        segment = self.axes[index].segment
        if segment is not None and bool((segment != segment[:, :1]).any()):
            raise InputError("mixer", key=self.axes[index].name, found=f"{int(segment.max()) + 1} packed samples",
                             expected="one sample where a cache is kept", fix="roll out packed samples one at a time")

    def rotary(self, indices: tuple[int, ...], head_width: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin, each ``(B or 1, 1, N, head_width / 2)``, of the flattened axes; None without coordinates.

        Pairs of head channels go to the coordinates in turn. On a periodic coordinate the frequencies are the integer
        harmonics 1…8 of the period, elsewhere octaves of the reference length.
        """
        return self.once(("rotary", indices, head_width), lambda: self._rotary(indices, head_width // 2))

    def _rotary(self, indices: tuple[int, ...], pairs: int) -> tuple[Tensor, Tensor] | None:
        columns = [(i, k) for i in indices for k in range(self.axes[i].coord.shape[-1])]
        if not columns or self.pair_bias is not None:
            return None
        sizes = [self.axes[i].size for i in indices]
        batch = max(self.axes[i].coord.shape[0] for i in indices)
        angles = self.axes[columns[0][0]].coord.new_zeros(batch, *sizes, pairs)
        for place, (i, k) in enumerate(columns):
            own = _angles(self.axes[i], k, len(range(place, pairs, len(columns))))
            shape = [1] * len(indices)
            shape[indices.index(i)] = sizes[indices.index(i)]
            angles[..., place::len(columns)] = own.view(own.shape[0], *shape, own.shape[-1])
        angles = angles.flatten(1, -2).unsqueeze(1)
        return angles.cos(), angles.sin()


def roles_of(axes: Iterable[Axis]) -> list[int]:
    """Of each axis, its row in a role table: x, y and z in order of appearance, time, set."""
    roles, spaces = [], 0
    for axis in axes:
        roles.append(min(spaces, 2) if axis.kind == "space" else TIME_ROLE if axis.kind == "time" else SET_ROLE)
        spaces += axis.kind == "space"
    return roles


def _nearly_uniform(w: Tensor) -> bool:
    return bool(torch.allclose(w, w[:, :1].expand_as(w), rtol=1e-4, atol=0))


def _angles(axis: Axis, column: int, count: int) -> Tensor:
    coord = axis.coord[..., column]
    if axis.period is not None and axis.period.ndim == 1:
        harmonics = 1 + torch.arange(count, device=coord.device) % MAX_HARMONIC
        return 2 * math.pi * (coord / axis.period[column])[..., None] * harmonics.to(coord.dtype)
    octaves = torch.linspace(LOWEST_OCTAVE, HIGHEST_OCTAVE, count, dtype=coord.dtype, device=coord.device)
    return 2 * math.pi * coord[..., None] * 2**octaves


def rotate(x: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotate channel pairs (i, i + D/2) of ``(B, H, N, D)`` by the angles of `table`."""
    if table is None:
        return x
    return turn(x, *table)
