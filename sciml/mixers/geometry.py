"""What a mixer may know of the lattice it acts on: the axes at this level, and tables computed once per level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    """The axes of one level. second_order: kernels must have second derivatives. pair_bias: heads → ``(B or 1, H, n,
    n)``, an additive term of the logits between the members of one axis (`pair_axis`).

    Tables (rotary angles, key weights) are kept for the lifetime of the object, which is one forward pass, so that all
    blocks of a level share them.
    """

    axes: tuple[Axis, ...]
    second_order: bool = False
    pair_bias: Callable[[int], Tensor] | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def packed_axis(self) -> int | None:
        return next((i for i, axis in enumerate(self.axes) if axis.segment is not None), None)

    @property
    def pair_axis(self) -> int | None:
        """Index of the axis that the pair bias is about, or None without one. It takes the place of rotary positions
        there, in every mixer: absolute coordinates would break the symmetries that the bias has."""
        return None if self.pair_bias is None else pair_axis_of(self.axes)

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
        if len(c) == 1:
            return c.view(1, *[1] * len(self.axes), c.shape[-1])
        shape = [1] * len(self.axes)
        shape[packed] = segment.shape[1]
        return c[segment[0]].view(1, *shape, c.shape[-1])

    def sample_of_token(self, indices: tuple[int, ...]) -> Tensor | None:
        """``(N,)`` packed sample of every token of the flattened axes, or None if none of them is packed."""
        packed = self.packed_axis
        if packed is None or packed not in indices:
            return None
        segment = self.axes[packed].segment
        assert segment is not None
        sizes = [self.axes[i].size for i in indices]
        return segment[0].view([n if i == packed else 1 for i, n in zip(indices, sizes)]).expand(sizes).flatten()

    def key_bias(self, indices: tuple[int, ...]) -> Tensor | None:
        """Log quadrature weight of every key of the flattened axes, ``(B or 1, N)``, or None where all weigh the same.

        softmax(q·k + log w) is the integral over the axis, so that attention converges as the axis is refined; padding
        has weight 0, hence bias −inf. In a sample that has no weight at all everything weighs the same.
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
        return log_shares(total, 1)

    def pair_term(self, indices: tuple[int, ...], heads: int) -> Tensor | None:
        """The pair bias for attention over these axes, ``(B or 1, H, n, n)``; None where it is not about one of them.

        Raises `InputError` as `check_pair` does.
        """
        self.check_pair(indices)
        return self.pair_bias(heads) if self.pair_bias is not None and self.pair_axis in indices else None

    def check_pair(self, indices: tuple[int, ...]) -> None:
        """Raises `InputError` if the pair bias is about one of several axes: pairs of their products have none."""
        if self.pair_axis in indices and len(indices) > 1:
            raise InputError("mixer", key=", ".join(self.axes[i].name for i in indices),
                             found=f"a pair bias of one axis in attention over {len(indices)} at once",
                             expected="attention along that axis alone", fix="use the axial mixer for this domain")

    def check_alone(self, index: int) -> None:
        """Raises `InputError` if the axis packs several samples: a memory of keys is that of one."""
        segment = self.axes[index].segment
        if segment is not None and bool((segment != segment[:, :1]).any()):
            raise InputError("mixer", key=self.axes[index].name, found=f"{int(segment.max()) + 1} packed samples",
                             expected="one sample where a cache is kept", fix="roll out packed samples one at a time")

    def check_memory(self, index: int) -> None:
        """Raises `InputError` if keys along the axis can't be kept for later chunks: those of several packed samples,
        and those whose weight or pair bias would be needed together with keys that are still to come."""
        self.check_alone(index)
        axis = self.axes[index]
        if axis.measure is not None or self.pair_axis == index:
            raise InputError("mixer", key=axis.name, found="a measure" if self.pair_axis != index else "a pair bias",
                             expected="indices of equal weight and without a pair bias where a cache is kept",
                             fix="run the whole sequence without a cache")

    def rotary(self, indices: tuple[int, ...], head_width: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin, each ``(B or 1, 1, N, head_width / 2)``, of the flattened axes; None without coordinates.

        Pairs of head channels go to the coordinates in turn, those of the pair bias's axis left out. On a periodic
        coordinate the frequencies are the integer harmonics 1…8 of the period, elsewhere octaves of the reference
        length.
        """
        return self.once(("rotary", indices, head_width), lambda: self._rotary(indices, head_width // 2))

    def _rotary(self, indices: tuple[int, ...], pairs: int) -> tuple[Tensor, Tensor] | None:
        columns = [(i, k) for i in indices if i != self.pair_axis for k in range(self.axes[i].coord.shape[-1])]
        if not columns:
            return None
        sizes = [self.axes[i].size for i in indices]
        batch = torch.broadcast_shapes(*((self.axes[i].coord.shape[0],) for i, _ in columns))[0]
        angles = self.axes[columns[0][0]].coord.new_zeros(batch, *sizes, pairs)
        for place, (i, k) in enumerate(columns):
            own = _angles(self.axes[i], k, len(range(place, pairs, len(columns))))
            shape = [1] * len(indices)
            shape[indices.index(i)] = sizes[indices.index(i)]
            angles[..., place::len(columns)] = own.view(own.shape[0], *shape, own.shape[-1])
        angles = angles.flatten(1, -2).unsqueeze(1)
        return angles.cos(), angles.sin()


def pair_axis_of(axes: Sequence[Axis]) -> int:
    """Which axis a domain's pair bias is about: the packed one, else the first set of points in space, else the first.

    >>> pair_axis_of((Axis("time", "time", torch.rand(1, 4, 1)), Axis("atom", "set", torch.rand(1, 5, 3))))
    1
    """
    packed = [i for i, axis in enumerate(axes) if axis.segment is not None]
    points = [i for i, axis in enumerate(axes) if axis.kind == "set" and axis.coord.shape[-1] == 3]
    return [*packed, *points, 0][0]


def log_shares(weight: Tensor, dim: int) -> Tensor:
    """Log of weights relative to the largest along `dim`; zeros where there is none but 0."""
    most = weight.amax(dim, keepdim=True)
    return torch.where(most > 0, weight / most, 1.0).log()


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
