"""The waist of the hourglass: values on a lattice, its axes, what was observed, what conditions it, what is asked.

Domains make `TokenBatch`es and read `Outputs`; the operator does the opposite; neither knows the other. Shapes:
``B`` batch, ``*lattice`` one size per axis, ``C`` channels, ``S`` segments (``B`` where nothing is packed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

AxisKind = Literal["space", "time", "set"]


@dataclass(frozen=True)
class Axis:
    """One axis of a lattice.

    coord: ``(B or 1, n, d)`` in reference lengths of the domain; d = 0 for identity only, 3 for packed points.
    unit: of the coordinate before it was divided by the reference length. period: ``(d,)`` in the same lengths as
    coord, or ``(S, 3, 3)`` cells of packed samples, rows lattice vectors, zero where not periodic. measure: ``(B or 1,
    n)`` quadrature weight, 0 for padding. ids: ``(B or 1, n)`` rows of the embedding `namespace`. segment: ``(1, n)``
    which packed sample an index belongs to, ascending.
    """

    name: str
    kind: AxisKind
    coord: Tensor
    unit: str = "1"
    period: Tensor | None = None
    causal: bool = False
    coarsen: bool = False
    measure: Tensor | None = None
    ids: Tensor | None = None
    namespace: str | None = None
    segment: Tensor | None = None

    @property
    def size(self) -> int:
        return self.coord.shape[1]

    def weights(self) -> Tensor:
        """``(B or 1, n)`` quadrature weights; equal ones that sum to 1 where none were given."""
        if self.measure is not None:
            return self.measure
        return self.coord.new_full(self.coord.shape[:2], 1.0 / max(self.size, 1))


def space(name: str, coord: Tensor, *, unit: str = "1", period: float | None = None) -> Axis:
    """A spatial axis from ``(n,)`` coordinates, with trapezoid (periodic: cell) quadrature weights.

    >>> space("x", torch.tensor([0.0, 0.25, 0.5, 0.75]), period=1.0).weights().sum().item()
    1.0
    """
    wrap = None if period is None else torch.as_tensor([period], dtype=coord.dtype)
    return Axis(name, "space", coord[None, :, None], unit=unit, period=wrap, coarsen=True,
                measure=cell_widths(coord, period)[None])


def time(name: str, coord: Tensor, *, unit: str = "1", causal: bool = False) -> Axis:
    """A time axis from ``(n,)`` coordinates; merged by the hierarchy unless it is causal."""
    return Axis(name, "time", coord[None, :, None], unit=unit, causal=causal, coarsen=not causal)


def identity(name: str, ids: Tensor, namespace: str, *, coord: Tensor | None = None, unit: str = "1",
             causal: bool = False, segment: Tensor | None = None) -> Axis:
    """A set: ``(n,)`` ids that name rows of an embedding, with ``(n, d)`` coordinates if its members have a place."""
    place = ids.new_zeros((len(ids), 0), dtype=torch.get_default_dtype()) if coord is None else coord
    return Axis(name, "set", place[None], unit=unit, causal=causal, ids=ids[None], namespace=namespace,
                segment=None if segment is None else segment[None])


def cell_widths(coord: Tensor, period: float | None = None) -> Tensor:
    """``(n,)`` trapezoid weights of ascending coordinates; with a period, the cell between the two midpoints."""
    if len(coord) == 1:
        return torch.full_like(coord, 1.0 if period is None else period)
    gaps = coord.diff()
    if period is None:
        ends = gaps.new_zeros(1)
        return (torch.cat([ends, gaps]) + torch.cat([gaps, ends])) / 2
    gaps = torch.cat([gaps, (coord[0] + period - coord[-1])[None]])
    return (gaps + gaps.roll(1)) / 2


@dataclass(frozen=True)
class Conditions:
    """What a batch is conditioned on, in three forms.

    vector: name → ``(S,)`` numbers of order one, one per segment (adaptive norm). lattice: name →
    ``(B, *lattice)`` known everywhere, size 1 where constant along an axis (extra stem channels). context: another
    TokenBatch (cross attention).
    """

    vector: Mapping[str, Tensor] = field(default_factory=dict)
    lattice: Mapping[str, Tensor] = field(default_factory=dict)
    context: TokenBatch | None = None


@dataclass(frozen=True)
class Target:
    """What one head is asked for, in link space and normalised units.

    The prediction is ``baseline + scale * output``; value, baseline, scale and mask (True where it counts) broadcast
    to the shape of the head's output. spectrum: ``(B, *lattice with n // 2 + 1 last, C)`` gain that the output gets per
    wavenumber first, where what is missed has another size at every scale; along an axis with ends, the wavenumbers are
    those of the mirrored lattice.
    """

    value: Tensor
    mask: Tensor
    baseline: Tensor
    scale: Tensor
    spectrum: Tensor | None = None

    def predict(self, output: Tensor) -> Tensor:
        if self.spectrum is not None:
            output = filter_wavenumbers(output, self.spectrum)
        return self.baseline + self.scale * output


def filter_wavenumbers(x: Tensor, gain: Tensor) -> Tensor:
    """``(B, *lattice, C)`` with every wavenumber multiplied by its gain ``(B or 1, *half lattice, C)``.

    An axis that the gain has twice the size of has ends: it is continued by its mirror image, so that its waves are
    cosines, and neither end knows of the other.

    >>> x = torch.randn(1, 6, 5, 2)
    >>> bool(torch.allclose(filter_wavenumbers(x, torch.ones(1, 6, 3, 2)), x, atol=1e-6))
    True
    """
    dims = tuple(range(1, x.ndim - 1))
    whole = x
    for dim in dims:
        n = x.shape[dim]
        if gain.shape[dim] == (n + 1 if dim == dims[-1] else 2 * n):
            whole = torch.cat([whole, whole.flip(dim)], dim)
    filtered = torch.fft.irfftn(torch.fft.rfftn(whole, dim=dims) * gain, s=whole.shape[1:-1], dim=dims)
    return filtered[(slice(None), *(slice(n) for n in x.shape[1:-1]))]


@dataclass(frozen=True)
class TokenBatch:
    """Values on a lattice and all that the operator may know about them.

    values: ``(B, *lattice, C)`` normalised, finite everywhere. observed: bool, broadcastable to values (size 1 where
    shared), or None if all is observed; cells to be predicted are unobserved cells of the same lattice. channels: C
    names ``domain/quantity``. targets: by head. num_segments: S. sources: one name per segment, for messages. kept:
    name → ``(S, …)`` that the domain needs to make its answer of what the operator says, and the operator doesn't see
    (the scale of one image, a measurement).
    """

    domain: str
    dataset: str
    values: Tensor
    channels: tuple[str, ...]
    axes: tuple[Axis, ...]
    observed: Tensor | None = None
    conditions: Conditions = field(default_factory=Conditions)
    targets: Mapping[str, Target] = field(default_factory=dict)
    num_segments: int = 1
    sources: tuple[str, ...] = ()
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lattice = tuple(axis.size for axis in self.axes)
        if self.values.shape[1:-1] != lattice or self.values.shape[-1] != len(self.channels):
            shape = tuple(self.values.shape)
            raise ValueError(f"values {shape} do not fit lattice {lattice} and channels {self.channels}")

    @property
    def lattice(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def packed_axis(self) -> int | None:
        """Index of the axis that carries segments, or None."""
        return next((i for i, axis in enumerate(self.axes) if axis.segment is not None), None)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TokenBatch:
        """Move every tensor; `dtype` applies to floating point ones."""
        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
        return map_tensors(self, move)


@dataclass
class Outputs:
    """Head name → output; lattice heads ``(B, *lattice, C)``, pooled heads ``(S, C)``. cache: for causal steps."""

    heads: dict[str, Tensor]
    cache: Cache | None = None

    def __getitem__(self, head: str) -> Tensor:
        return self.heads[head]


Cache = list[Any]
"""One entry per mixer that keeps state, in the order of execution; tensors, tuples of tensors or None."""


@dataclass(frozen=True)
class State:
    """Everything a rollout step needs: batch, caches, random state, step index, elapsed time, integrator variables.

    cache: an empty list asks the predictor to start one. rng: state of the torch generator (``uint8``) for domains that
    sample. extra: named tensors, such as velocities.
    """

    batch: TokenBatch
    step: int = 0
    elapsed: float = 0.0
    cache: Cache | None = None
    rng: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadSpec:
    """A head: its kind (a name in ``sciml.operator.heads``), the names of its outputs, for `tied` the namespace whose
    embedding gives the logits, for `pooled` whether tokens are summed (extensive) or averaged. link: the prediction is
    this function of what a target's value holds: itself, log of a rate or count, logit of a probability or one-hot."""

    kind: str
    outputs: tuple[str, ...] = ()
    namespace: str | None = None
    reduction: Literal["sum", "mean"] = "sum"
    link: Literal["identity", "log", "logit"] = "identity"


@dataclass(frozen=True)
class Slots:
    """The set axis of that name is read by `count` slots; its members' names are in the namespaces ``…/<axis>``. own:
    lattice conditions that differ between members, who then have rows of their own for them."""

    axis: str
    count: int
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenSpec:
    """What an operator must know of a domain to have weights for it; JSON in a checkpoint.

    channels, lattice and vector conditions by name; identities: namespace → names, in row order; patch: that many
    cells of a coarsened axis make one token; patch_length: their length in reference lengths, if it is to stay the same
    on other grids (then the number of cells follows the grid); pair_bias: name in ``sciml.operator.biases``. stem: name
    in ``sciml.operator.stems``, empty for the one of the recipe. slots: what reads the members of a set, where a token
    for each would be too many.
    """

    domain: str
    channels: tuple[str, ...]
    heads: Mapping[str, HeadSpec]
    lattice_conditions: tuple[str, ...] = ()
    vector_conditions: tuple[str, ...] = ()
    identities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    patch: int = 1
    patch_length: float | None = None
    pair_bias: str | None = None
    stem: str = ""
    slots: Slots | None = None
    context: TokenSpec | None = None
    units: Mapping[str, str] = field(default_factory=dict)

    def merge(self, other: TokenSpec) -> TokenSpec:
        """The union with another data set of the same domain: known rows keep their place, new ones follow."""
        ours, theirs = ((spec.domain, spec.patch, spec.pair_bias, spec.stem, spec.slots) for spec in (self, other))
        if ours != theirs:
            raise ValueError(f"cannot merge {theirs} into {ours} (domain, patch, pair bias, stem, slots)")
        def union(a: Sequence[str], b: Sequence[str]) -> tuple[str, ...]:
            return tuple(dict.fromkeys((*a, *b)))
        spaces = dict.fromkeys((*self.identities, *other.identities))
        return replace(
            self, channels=union(self.channels, other.channels),
            heads={**self.heads, **{k: _merge_heads(self.heads.get(k), h) for k, h in other.heads.items()}},
            lattice_conditions=union(self.lattice_conditions, other.lattice_conditions),
            vector_conditions=union(self.vector_conditions, other.vector_conditions),
            identities={k: union(self.identities.get(k, ()), other.identities.get(k, ())) for k in spaces},
            units={**other.units, **self.units})


def _merge_heads(old: HeadSpec | None, new: HeadSpec) -> HeadSpec:
    if old is None:
        return new
    return replace(old, outputs=tuple(dict.fromkeys((*old.outputs, *new.outputs))))


def map_tensors(tree: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply `fn` to every tensor in nested dataclasses, mappings, lists and tuples."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        changed = {f.name: map_tensors(getattr(tree, f.name), fn) for f in fields(tree)}
        return replace(tree, **changed)
    if isinstance(tree, Mapping):
        return {k: map_tensors(v, fn) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(v, fn) for v in tree)
    return tree
