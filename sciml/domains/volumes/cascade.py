"""Reconstruction by steps that know the measurement: x ← x + operator(x, ∇) − step ∇, with ∇ = A*(A x − y).

The unrolled likelihood gradient of recurrent inference machines (Putzky & Welling, arXiv 1706.04008; Karkalousos et
al., "CIRIM", Phys. Med. Biol. 67, 124001, 2022) with one operator for all steps, which is told how far along it is.
What was measured travels in ``TokenBatch.kept``: ``measurement``, ``step`` ``(S,)`` and the observation's tensors
under ``observation.…``; complex numbers as a last dimension of 2. Complex images are two channels. An operator that
says nothing leaves plain gradient descent. Frames are measured each by itself: to an observation they are samples. """

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sciml.adapter import Operate
from sciml.domains.volumes.references import least_squares
from sciml.observations.contract import Observation, gradient, make, tensors_of
from sciml.tokens import Outputs, Target, TokenBatch

MEASUREMENT, STEP, OF_OBSERVATION = "measurement", "step", "observation."
PROGRESS = "volumes/progress"
"""Vector condition: the share of the steps that have been made."""


def gradient_names(channels: tuple[str, ...]) -> tuple[str, ...]:
    """The lattice conditions that tell the operator the gradient of each channel.

    >>> gradient_names(("volumes/mri",))
    ('volumes/mri.gradient',)
    """
    return tuple(f"{channel}.gradient" for channel in channels)


def kept_of(observation: Observation, measurement: Tensor, step: float, *, frames: bool = False) -> dict[str, Tensor]:
    """What a batch of one keeps of a measurement ``(1, …)``, or ``(T, …)`` of its frames; step: of the gradient
    descent, below 2 / ‖A‖²."""
    parts = {f"{OF_OBSERVATION}{name}": _real(value) for name, value in tensors_of(observation).items()}
    size = torch.full((1,), step, dtype=measurement.real.dtype, device=measurement.device)
    found = {MEASUREMENT: _real(measurement), **parts}
    return {STEP: size, **({name: each[None] for name, each in found.items()} if frames else found)}


def observation_of(batch: TokenBatch, name: str, options: Mapping[str, Any]) -> Observation:
    """The one that `kept_of` took apart."""
    tensors = {key.removeprefix(OF_OBSERVATION): value.flatten(0, _lead(batch)) for key, value in batch.kept.items()
               if key.startswith(OF_OBSERVATION)}
    return make(name, options, tensors, where=", ".join(batch.sources) or batch.dataset)


def image_of(values: Tensor) -> Tensor:
    """``(B, *lattice, 1 or 2)`` → ``(B, *lattice)``, complex from two channels."""
    return torch.view_as_complex(values.contiguous()) if values.shape[-1] == 2 else values[..., 0]


def values_of(image: Tensor) -> Tensor:
    """The inverse of `image_of`."""
    return torch.view_as_real(image) if image.is_complex() else image[..., None]


def asked(batch: TokenBatch, head: str, observation: Observation, steps: int, scale: float) -> TokenBatch:
    """The batch with what an image head is asked for: the baseline is what `steps` steps without the operator give;
    scale: size of what they miss. Without truth: nothing counts."""
    image = _image(batch)
    start = least_squares(observation, _measured(batch, image), image, steps if steps > 1 else 0,
                          _repeated(batch, batch.kept[STEP]))
    ones = (len(batch.values), *[1] * (batch.values.ndim - 1))
    target = Target(batch.values, torch.zeros(ones, dtype=torch.bool), _values(batch, start),
                    batch.values.new_full(ones, scale))
    known = batch.targets.get(head)
    if known is not None:
        target = replace(target, value=known.value, mask=known.mask)
    return replace(batch, targets={**batch.targets, head: target})


def cascade(batch: TokenBatch, operate: Operate, head: str, observation: Observation, steps: int) -> Outputs:
    """`steps` of `advanced` from the values of the batch, as one answer of `head`. One step: ``operate(batch)``, as the
    start knows all that the gradient could say."""
    if steps == 1:
        return operate(batch)
    state = told(batch, head, observation, 0.0)
    for number in range(1, steps + 1):
        state = advanced(state, operate(state), head, observation, number / steps)
    target = batch.targets[head]
    return Outputs({head: (state.values - target.baseline) / target.scale})


def advanced(batch: TokenBatch, outputs: Outputs, head: str, observation: Observation, progress: float) -> TokenBatch:
    """One step from what `told` made: values x + scale · output − step ∇, and the gradient there. progress: the share
    of steps now made."""
    names = gradient_names(batch.channels)
    descent = torch.stack([batch.conditions.lattice[name] for name in names], -1)
    values = batch.values + batch.targets[head].scale * (outputs[head] - descent)
    return told(replace(batch, values=values), head, observation, progress)


def told(batch: TokenBatch, head: str, observation: Observation, progress: float) -> TokenBatch:
    """The batch with what `advanced` and the operator read: step ∇ over the head's scale per channel, and the progress.
    The head is asked for what the values lack."""
    image, target = _image(batch), batch.targets[head]
    size = batch.kept[STEP].view(-1, *[1] * (batch.values.ndim - 1)) / target.scale
    with torch.autocast(image.device.type, enabled=False):  # what was measured is not rounded
        descent = size * _values(batch, gradient(observation, image, _measured(batch, image)))
    lattice = {**batch.conditions.lattice, **dict(zip(gradient_names(batch.channels), descent.unbind(-1)))}
    share = batch.values.new_full((batch.num_segments,), progress)
    vector = {**batch.conditions.vector, PROGRESS: share}
    return replace(batch, conditions=replace(batch.conditions, lattice=lattice, vector=vector),
                   targets={**batch.targets, head: replace(target, baseline=batch.values)})


def _lead(batch: TokenBatch) -> int:
    """How many axes of the lattice are samples to the observation: that of frames."""
    return int(batch.axes[0].kind == "time")


def _image(batch: TokenBatch) -> Tensor:
    """``(B, X, Y, Z)`` or, of frames, ``(B · T, X, Y, Z)``."""
    return image_of(batch.values).flatten(0, _lead(batch))


def _values(batch: TokenBatch, image: Tensor) -> Tensor:
    """The inverse of `_image`, as values of the batch."""
    return values_of(image).unflatten(0, batch.values.shape[:1 + _lead(batch)])


def _repeated(batch: TokenBatch, x: Tensor) -> Tensor:
    """``(B,)`` for every image of the batch."""
    return x.repeat_interleave(batch.lattice[0]) if _lead(batch) else x


def _measured(batch: TokenBatch, image: Tensor) -> Tensor:
    kept = batch.kept[MEASUREMENT].flatten(0, _lead(batch))
    return torch.view_as_complex(kept.contiguous()) if image.is_complex() else kept


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
