"""What is asked about a state: baseline and scale of the next one, per channel or per channel and wavenumber."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sciml import tokens
from sciml.domains.fields import damping, spectral
from sciml.domains.fields.baseline import Mean, Persistence
from sciml.domains.fields.config import Contract
from sciml.domains.fields.damping import Damping
from sciml.domains.fields.grids import is_even
from sciml.errors import InputError
from sciml.tokens import Axis, Target, TokenBatch


@dataclass(frozen=True)
class Fitted:
    """What is known of one data set: persistence, its curves by wavenumber (None: one scale) with the power of their
    gain, the training means of steady or damped states, and their damping (None: of plain persistence)."""

    persistence: Persistence
    spectra: spectral.Curves | None
    power: float
    means: Mapping[str, Mean]
    damping: Damping | None = None


def ask(batch: TokenBatch, known: Contract, leads: Sequence[float], fitted: Fitted) -> Target:
    """The unknown next state ``(B, *space, C)``, `leads` ``(B,)`` ahead in the data set's unit of time."""
    ones, count, like = (1,) * len(known.axes), len(batch.values), batch.values
    mask = torch.zeros((count, *ones, 1), dtype=torch.bool, device=like.device)
    if known.steady:
        expected = _mean(batch, known, fitted).expand(like.shape)
        scales = like.new_tensor([fitted.means[name].scale for name in known.states]).view(1, *ones, -1)
        return Target(value=expected, baseline=expected, mask=mask, scale=scales.expand(count, *ones, -1))
    if fitted.spectra is not None and batch.observed is None:
        return _by_wavenumber(batch, known, leads, fitted.spectra, fitted.power, mask)
    if fitted.damping is not None:
        found = {lead: [damping.at(fitted.damping[name], lead) for name in known.states] for lead in set(leads)}
        share, scale = like.new_tensor([found[lead] for lead in leads]).view(count, *ones, -1, 2).unbind(-1)
        return Target(value=like, baseline=torch.lerp(_mean(batch, known, fitted), like, share), mask=mask, scale=scale)
    each = {lead: [fitted.persistence.scale(batch.dataset, n, lead) / s.scale for n, s in known.states.items()]
            for lead in set(leads)}
    scale = like.new_tensor([each[lead] for lead in leads]).view(count, *ones, -1)
    return Target(value=like, baseline=like, mask=mask, scale=scale)


def _mean(batch: TokenBatch, known: Contract, fitted: Fitted) -> Tensor:
    """``(1, *space, C)`` training means at the batch's places."""
    places = [axis.coord[0, :, 0].detach().cpu().double().numpy() for axis in batch.axes]
    return batch.values.new_tensor(np.stack([fitted.means[name].at(places) for name in known.states], -1))[None]


def _by_wavenumber(batch: TokenBatch, known: Contract, leads: Sequence[float], spectra: spectral.Curves, power: float,
                   mask: Tensor) -> Target:
    sizes = [axis.size * (2 if axis.period is None else 1) for axis in batch.axes]
    boxes = [_repeats(axis, batch.sources, known.length) for axis in batch.axes]
    each = {}
    for lead in set(leads):
        parts = [spectral.gains(spectral.between(curves, lead / known.dt), sizes, boxes, power)
                 for curves in spectra.values()]
        each[lead] = np.stack([np.stack(part, -1) for part in zip(*parts)])  # (2, *half space, C)
    both = batch.values.new_tensor(np.stack([each[lead] for lead in leads], 1))
    return Target(value=batch.values, baseline=tokens.filter_wavenumbers(batch.values, both[0]), mask=mask,
                  scale=batch.values.new_ones(mask.shape), spectrum=both[1])


def _repeats(axis: Axis, where: object, unit: float) -> float:
    """`spectral.repeats` of an axis. Raises `InputError` if it is uneven; unit: the reference length."""
    place = axis.coord[0, :, 0].detach().double().cpu().numpy()
    period = None if axis.period is None else float(axis.period.flatten()[0])
    if not is_even(place, period):
        gaps = np.diff(place, append=[] if period is None else [place[0] + period])
        least, most = gaps.min() * unit, gaps.max() * unit
        raise InputError(where, key=axis.name, found=f"spacings from {least:.4g} to {most:.4g}",
                         expected="even ones, as on the grid whose wavenumbers were fitted (domains.fields.spectral)",
                         fix="interpolate it to an even grid")
    return spectral.repeats(place, period)
