"""From a sample of fields to tokens: values standardised, axes in reference lengths, what is known beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sciml import tokens
from sciml.domains.fields import contract as contracts
from sciml.domains.fields import mesh
from sciml.domains.fields.config import Contract, Scaling
from sciml.tokens import Conditions, TokenBatch

DOMAIN = "fields"
HEAD = "state"
LEAD = "lead_time"


@dataclass(frozen=True)
class Encoded:
    """A batch of one, without targets; later: forcings that vary in time ``(times, *space)``; truth ``(1, *space, C)``
    with where it is known, None if the sample has no state at the time that is asked about."""

    batch: TokenBatch
    later: Mapping[str, Tensor]
    truth: tuple[Tensor, Tensor] | None


def encoded(known: Contract, dataset: str, sample: xr.Dataset, lead: float) -> Encoded:
    """values ``(1, *space, C)``; conditions: lead in reference times and parameters per segment, forcings and masks on
    the lattice. What isn't finite or is masked is unobserved; of steady data no state is observed, all is asked."""
    inside = contracts.interior(known, sample)
    states = standard(known, sample, "states", needed=False)
    stacked = np.stack(list(states.values()), -1)  # (time, *space, C)
    seen = np.isfinite(stacked) & inside[..., None]
    values = tensor(np.where(seen, stacked, 0.0))
    forcings = {n: tensor(f) for n, f in standard(known, sample, "forcings", inside=inside).items()}
    later = {n: f for n, f in forcings.items() if f.ndim > inside.ndim}
    lattice = {n: (f[0] if n in later else f)[None] for n, f in forcings.items()}
    if known.masks:
        lattice |= {f"{DOMAIN}/{n}": tensor(sample[n].transpose(*known.names).values)[None] for n in known.masks}
    vector = {n: tensor(v.reshape(1)) for n, v in standard(known, sample, "parameters").items()}
    given, observed, truth = values[:1], torch.from_numpy(seen[:1]), None
    if known.steady:
        given, observed = torch.zeros_like(given), torch.zeros_like(observed)
        truth = (values, torch.from_numpy(seen)) if seen.any() else None
    elif len(stacked) > 1:
        truth = values[1:2], torch.from_numpy(seen[:1] & seen[1:2])
    batch = TokenBatch(
        domain=DOMAIN, dataset=dataset, values=given, channels=tuple(states),
        axes=(mesh.points(sample, known),) if known.scattered else tuple(
            axis(sample.variables[name], known) for name in known.names),
        observed=None if bool(observed.all()) else observed,
        conditions=Conditions({LEAD: tensor(np.array([lead / known.time])), **vector}, lattice),
        sources=(str(sample.attrs.get("source", dataset)),))
    return Encoded(batch, later, truth)


def standard(known: Contract, sample: xr.Dataset, kind: str, *, needed: bool = True,
             inside: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The sample's variables of a kind, normalised, by channel name; zero outside `inside`."""
    scalings: dict[str, Scaling] = getattr(known, kind)
    result = {}
    for name, values in contracts.read(known, sample, kind).items():
        if inside is not None and known.masks:
            values = np.where(inside, values, scalings[name].center)
        result[f"{DOMAIN}/{name}"] = contracts.normalise(values, scalings[name], name=name, sample=sample,
                                                         needed=needed)
    return result


def tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.get_default_dtype())


def axis(coord: xr.Variable, known: Contract) -> tokens.Axis:
    period = coord.attrs.get("period")
    place, unit = np.asarray(coord.values, np.float64), str(coord.attrs.get("units", "1"))
    return _shared_axis(str(coord.dims[0]), place.tobytes(), unit, None if period is None else float(period),
                        known.length, torch.get_default_dtype())


@lru_cache(maxsize=64)
def _shared_axis(name: str, place: bytes, unit: str, period: float | None, length: float,
                 dtype: torch.dtype) -> tokens.Axis:
    """One axis object for all samples on the same grid: made once, and seen to be the same when they are stacked."""
    coord = torch.as_tensor(np.frombuffer(place, np.float64) / length, dtype=dtype)
    return tokens.space(name, coord, unit=unit, period=None if period is None else period / length)


def physical(known: Contract, batch: TokenBatch, normal: Tensor, suffix: str = "") -> xr.Dataset:
    """Normalised states ``(sample, *space, C)`` in their own units, with the axes' coordinates."""
    coords, attrs = dict[str, Any](), dict[str, Any]()
    for own, given in zip(known.axes, batch.axes):
        if own.places:
            where = given.coord[0].detach().cpu().double().numpy() * known.length
            coords |= {name: (own.name, place, {"units": own.unit}) for name, place in zip(own.places, where.T)}
            continue
        attrs = {"units": own.unit}
        if given.period is not None:
            attrs["period"] = float(given.period.flatten()[0]) * known.length
        place = given.coord[0, :, 0].detach().cpu().double().numpy()
        coords[own.name] = (own.name, place * known.length, attrs)
    dims = ("sample", *known.names)
    states = {}
    for i, (name, s) in enumerate(known.states.items()):
        attrs = {"units": s.unit} | ({"long_name": s.long_name} if s.long_name else {})
        states[name + suffix] = (dims, (normal[..., i].double() * s.scale + s.center).to(normal.dtype).numpy(), attrs)
    return xr.Dataset(states, coords=coords, attrs={"domain": DOMAIN, "dataset": batch.dataset})
