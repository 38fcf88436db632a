"""Pairs of points within one reference length, those across the faces of a periodic cell included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sciml.mixers.geometry import Geometry, pair_axis_of
from sciml.tokens import Axis

CUTOFF = 1.0
MOST_PAIRS = 1 << 20
"""Of one sample: with more, neighbours are found by a tree rather than by trying all pairs."""


@dataclass(frozen=True)
class Neighbours:
    """P directed pairs: index ``(P,)`` of the point that receives and of the one that sends, ascending in the first;
    vector ``(P, 3)`` from the first to the second and its length ``(P,)``, reference lengths, differentiable in the
    coordinates (and the cell); envelope ``(P,)``."""

    receiver: Tensor
    sender: Tensor
    vector: Tensor
    distance: Tensor
    envelope: Tensor


def neighbours_of(geometry: Geometry) -> Neighbours:
    """The pairs of the axis of points of a lattice, found once a level and forward pass."""
    return geometry.once("neighbours", lambda: find_neighbours(geometry.axes[pair_axis_of(geometry.axes)]))


def find_neighbours(axis: Axis, dtype: torch.dtype | None = None) -> Neighbours:
    """All ordered pairs of different points, or of a point and a periodic image, of the same sample nearer than 1.

    axis: coord ``(B, n, 3)``, of packed samples or of one in each row; points are counted through all rows. dtype: of
    the result, if coordinates are more precise (far from the origin their differences lose what float32 rounds).
    """
    coord, segment, cells = flattened(axis)
    with torch.no_grad():
        receiver, sender, image = _pairs(coord.detach(), segment, cells)
    vector = coord[sender] - coord[receiver]
    if image is not None and cells is not None:
        vector = vector + torch.einsum("pk,pkx->px", image.to(coord.dtype), cells[segment[receiver]])
    vector = vector if dtype is None else vector.to(dtype)
    distance = vector.square().sum(-1).clamp_min(1e-12).sqrt()
    return Neighbours(receiver, sender, vector, distance, envelope(distance))


def flattened(axis: Axis) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points ``(N, 3)`` of all samples one after another, the sample ``(N,)`` of each, cells ``(S, 3, 3)`` or None."""
    rows, size, _ = axis.coord.shape
    segment = torch.arange(rows, device=axis.coord.device).repeat_interleave(size)
    if axis.segment is not None:
        segment = axis.segment[0]
    cells = axis.period
    if cells is not None:
        count = rows if axis.segment is None else int(segment.max()) + 1
        cells = (torch.diag(cells)[None] if cells.ndim == 1 else cells).expand(count, 3, 3)
    return axis.coord.flatten(0, 1), segment, cells


def envelope(distance: Tensor, order: int = 6) -> Tensor:
    """1 − (p+1)(p+2)/2 rᵖ + p(p+2) rᵖ⁺¹ − p(p+1)/2 rᵖ⁺² below 1, 0 from there on: twice differentiable there
    (Gasteiger et al., "Directional message passing", ICLR 2020, equation 8, without its pole).

    >>> envelope(torch.tensor([0.0, 1.0, 2.0])).tolist()
    [1.0, 0.0, 0.0]
    """
    p, r = order, distance.clamp_max(CUTOFF)
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return 1 - r**p * (a - r * (b - c * r))


Found = tuple[Tensor, Tensor, Tensor | None]


def _pairs(coord: Tensor, segment: Tensor, cells: Tensor | None) -> Found:
    """Receiver, sender ``(P,)`` and lattice image of the sender ``(P, 3)``."""
    counts = segment.bincount()
    periodic = cells is not None and bool((cells != 0).any())
    if not periodic and int((counts * counts).max() if len(counts) else 0) <= MOST_PAIRS:
        return (*_all_pairs(coord, segment, counts), None)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    found = [_tree_pairs(coord[a:b].double().cpu().numpy(),
                         None if cells is None else cells[i].double().cpu().numpy(), int(a))
             for i, (a, b) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist()))]
    receiver, sender, image = (np.concatenate(parts) for parts in zip(*found))
    return tuple(torch.from_numpy(part).to(coord.device) for part in (receiver, sender, image))  # type: ignore[return-value]


def _all_pairs(coord: Tensor, segment: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of samples without periodic images, by trying every pair of a sample."""
    index = torch.arange(len(coord), device=coord.device)
    partners = counts[segment]
    receiver = index.repeat_interleave(partners)
    before = partners.cumsum(0) - partners
    start = (counts.cumsum(0) - counts)[segment]
    sender = torch.arange(len(receiver), device=coord.device) + (start - before)[receiver]
    near = (receiver != sender) & ((coord[sender] - coord[receiver]).square().sum(-1) < CUTOFF**2)
    return receiver[near], sender[near]


def _tree_pairs(points: np.ndarray, cell: np.ndarray | None, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one sample ``(n, 3)``, by a k-d tree over the points and the images of them that can be near one."""
    from scipy.spatial import cKDTree

    images = np.zeros((1, 3), np.int64) if cell is None else _images(points, cell)
    shift = np.zeros((1, 3)) if cell is None else images @ cell
    ghosts = (points[None] + shift[:, None]).reshape(-1, 3)
    low, high = points.min(0) - CUTOFF, points.max(0) + CUTOFF
    kept = np.flatnonzero(((ghosts >= low) & (ghosts <= high)).all(1))
    near = cKDTree(points).sparse_distance_matrix(cKDTree(ghosts[kept]), CUTOFF, output_type="ndarray")
    receiver, ghost = near["i"], kept[near["j"]]
    sender, image = ghost % len(points), images[ghost // len(points)]
    keep = ((receiver != sender) | (image != 0).any(1)) & (near["v"] < CUTOFF)
    order = np.lexsort((ghost[keep], receiver[keep]))
    return receiver[keep][order] + offset, sender[keep][order] + offset, image[keep][order]


def _images(points: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """``(M, 3)`` lattice translations that can bring a point within reach of another, the identity first."""
    periodic = (cell != 0).any(1)
    basis = cell.copy()
    if not periodic.all():  # any complement that is not in the plane of the periodic vectors
        left = np.linalg.svd(cell[periodic])[2][periodic.sum():] if periodic.any() else np.eye(3)
        basis[~periodic] = left
    inverse = np.linalg.inv(basis)
    fractional = points @ inverse
    reach = CUTOFF * np.linalg.norm(inverse, axis=0) + np.ptp(fractional, axis=0)
    most = np.where(periodic, np.ceil(reach), 0).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), -1).reshape(-1, 3)
    return grid[np.argsort(np.abs(grid).sum(1), kind="stable")]
