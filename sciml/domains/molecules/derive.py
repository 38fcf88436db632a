"""What is made of heads: forces and stress, derivatives of the energy by places and by strain; dipoles; charges."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sciml.adapter import Operate
from sciml.domains.molecules.config import DIPOLES, MoleculesConfig
from sciml.domains.molecules.encode import CHARGES, FORCES, PUSHES, STRESS
from sciml.domains.molecules.fitted import Fitted
from sciml.domains.molecules.frames import framed, unframed
from sciml.tokens import Axis, Outputs, TokenBatch

PLACES = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Voigt order: xx, yy, zz, yz, xz, xy."""
STRENGTH = 0.1
"""Of charges, so that those of a network that was not trained are of order one."""
SMALL = 1e-3
"""Of a dipole, below which its length is a little too long, so that it has a derivative."""


def derive_outputs(config: MoleculesConfig, fit: Fitted, batch: TokenBatch, operate: Operate,
                   create_graph: bool) -> Outputs:
    """The operator's outputs; with ``forces: gradient`` F = −∂E/∂r ``(1, n, 3)`` and, where there are cells, the stress
    ``(S, 6)`` σ = ∂E/∂ε / V in Voigt order, positive under tension; ε strains places and cells alike (Knuth et al.,
    Comput. Phys. Commun. 190, 33, 2015). Both in units of the targets' scales."""
    if config.forces != "gradient":
        return _operate(config, batch, operate)
    axis = batch.axes[0]
    coord = axis.coord.detach().requires_grad_()
    strain = None
    if axis.period is not None:
        strain = coord.new_zeros(batch.num_segments, 3, 3).requires_grad_()
    outputs = _operate(config, replace(batch, axes=(_strained(replace(axis, coord=coord), strain),)), operate)
    leaves = [coord] if strain is None else [coord, strain]
    slopes = torch.autograd.grad(outputs["energy"].sum(), leaves, create_graph=create_graph)
    energy = fit.scales["energy"]
    heads = {**outputs.heads, FORCES: -slopes[0] * (energy / config.cutoff_angstrom / fit.force_scale)}
    if strain is not None:
        heads[STRESS] = _stress(config, axis, slopes[1] * energy, batch)
    if not create_graph:
        heads = {name: head.detach() for name, head in heads.items()}
    return replace(outputs, heads=heads)


def _operate(config: MoleculesConfig, batch: TokenBatch, operate: Operate) -> Outputs:
    if config.frames:
        return unframed(operate(framed(batch)), batch)
    outputs = operate(batch)
    heads = dict(outputs.heads)
    for name, kind in config.properties.items():
        if kind == "atoms":
            heads[name] = own_numbers(heads[name], batch.axes[0])
        elif kind in DIPOLES:
            vector = dipole(own_numbers(heads.pop(f"{name}{CHARGES}"), batch.axes[0]), heads.pop(f"{name}{PUSHES}"),
                            batch)
            heads[name] = vector if kind == "dipole" else (vector.square().sum(-1, keepdim=True) + SMALL**2).sqrt()
    return replace(outputs, heads=heads)


def own_numbers(values: Tensor, axis: Axis) -> Tensor:
    """``(1, n, E)``, one for every element an atom could be, → ``(1, n, 1)`` that of the one it is."""
    assert axis.ids is not None
    return STRENGTH * values.gather(-1, axis.ids[..., None])


def dipole(charges: Tensor, pushes: Tensor, batch: TokenBatch) -> Tensor:
    """``(S, 3)`` Σ_i q_i r_i + p_i of charges ``(1, n, 1)``, less their mean over a molecule, so that it is the same
    from every origin, and of atoms' own dipoles ``(1, n, 3)``; turns and is mirrored as the places are."""
    axis = batch.axes[0]
    assert axis.segment is not None
    segment, number = axis.segment[0], batch.num_segments
    total = charges.new_zeros(number, 1).index_add(0, segment, charges[0])
    count = segment.bincount(minlength=number)[:, None].to(charges.dtype)
    neutral = charges[0] - (total / count)[segment]
    return pushes.new_zeros(number, 3).index_add(0, segment, neutral * axis.coord[0].to(charges.dtype) + pushes[0])


def _strained(axis: Axis, strain: Tensor | None) -> Axis:
    if strain is None:
        return axis
    assert axis.segment is not None
    assert axis.period is not None
    turn = torch.eye(3, dtype=strain.dtype, device=strain.device) + (strain + strain.mT) / 2
    coord = torch.einsum("bnx,nxy->bny", axis.coord, turn[axis.segment[0]])
    return replace(axis, coord=coord, period=axis.period @ turn)


def _stress(config: MoleculesConfig, axis: Axis, slope: Tensor, batch: TokenBatch) -> Tensor:
    """Of the derivatives ``(S, 3, 3)`` by strain, eV; zero for a sample without a cell."""
    assert axis.period is not None
    cells = axis.period * config.cutoff_angstrom
    gram = cells @ cells.mT + torch.diag_embed((cells.square().sum(-1) == 0).to(cells.dtype))
    volume = torch.linalg.det(gram).sqrt()
    periodic = (cells != 0).any(-1).any(-1)
    symmetric = (slope + slope.mT) / 2 * (periodic / volume)[:, None, None]
    stress = torch.stack([symmetric[:, i, j] for i, j in PLACES], -1)
    scale = batch.targets[STRESS].scale if STRESS in batch.targets else stress.new_ones(())
    return stress / scale
