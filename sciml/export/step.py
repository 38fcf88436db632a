"""One rollout step of fields as a module of plain tensors: state and conditions in, the next state out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sciml.domains.fields import spectral
from sciml.domains.fields.adapter import HEAD, LEAD, Fields
from sciml.domains.fields.grids import is_even
from sciml.errors import InputError
from sciml.mixers.radial import LONGEST_DENSE, Radial, axis_waves
from sciml.operator.lattice import cells_per_token
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.tokens import Axis, Conditions, Outputs, State, TokenBatch

MOST_TOKENS = 1 << 18
FEWEST = 3
"""Tokens along an axis at the coarsest level: with fewer, torch takes other ways through a graph."""


@dataclass(frozen=True)
class AxisForm:
    """One axis of an exported lattice.

    cells: per token. multiple: its size is a multiple of this, at least `fewest`, at most `most`. even: periodic and
    evenly spaced, so that its coordinates follow from its size and period.
    """

    name: str
    unit: str
    periodic: bool
    even: bool
    cells: int
    multiple: int
    fewest: int
    most: int


class Lead(NamedTuple):
    """How far a step goes: as a condition, in reference times, and in the data set's unit of time."""

    condition: float
    elapsed: float


@dataclass(frozen=True)
class StepForm:
    """Everything that is fixed when a step is exported. Batch and lattice sizes, periods and conditions are not.

    vector, lattice: conditions by name, in the order of the inputs. observed: there are cells without a value.
    wavenumbers: baseline and residual scale are known per wavenumber.
    """

    domain: str
    dataset: str
    channels: tuple[str, ...]
    lead: Lead
    axes: tuple[AxisForm, ...]
    vector: tuple[str, ...]
    lattice: tuple[str, ...]
    observed: bool
    wavenumbers: bool
    dtype: str = "float32"

    def inputs(self) -> tuple[str, ...]:
        """Names of the step's inputs, in order.

        values ``(B, *lattice, C)`` normalised; vector:NAME ``(B,)``; lattice:NAME ``(B, *lattice)``; observed ``(B,
        *lattice, C)`` bool; of a periodic axis period:NAME ``(1,)``; unless it is even, coord:NAME ``(n,)`` and
        measure:NAME ``(n,)``. Lengths are in reference lengths.
        """
        names = ["values", *(f"vector:{name}" for name in self.vector), *(f"lattice:{name}" for name in self.lattice)]
        names += ["observed"] * self.observed
        for axis in self.axes:
            names += [f"period:{axis.name}"] * axis.periodic
            names += [] if axis.even else [f"coord:{axis.name}", f"measure:{axis.name}"]
        return tuple(names)

    def json(self) -> dict[str, Any]:
        return asdict(self)


def form_of(predictor: Predictor, state: State) -> StepForm:
    """The form of the step that a state asks for. Raises `InputError` for what can't be exported."""
    batch, adapter = state.batch, predictor.adapter(state.batch.domain)
    if not isinstance(adapter, Fields):
        raise InputError("export", key="domain", found=repr(batch.domain), expected="'fields'",
                         fix="export a step of fields; other domains are rolled out by `sciml rollout`")
    projections = adapter.config.project
    if projections.divergence_free or projections.mean:
        raise InputError("export", key="project", found="projections after every step", expected="none",
                         fix="roll it out with `sciml rollout`, which keeps them")
    if batch.conditions.context is not None or batch.packed_axis is not None:
        raise InputError("export", key="batch", found="a context or a packed axis", expected="one lattice of fields",
                         fix="roll it out with `sciml rollout`")
    if adapter.datasets[batch.dataset].scattered:
        raise InputError("export", key=batch.axes[0].name, found="scattered points", expected="a grid",
                         fix="roll it out with `sciml rollout`: its latent lattice follows from the points")
    operator = predictor.operator
    deepest, longest, axes = 2 ** (len(operator.levels) - 1), most_tokens(operator), []
    for axis, cells in zip(batch.axes, cells_per_token(batch.axes, operator.specs[batch.domain])):
        if axis.coord.shape[0] != 1 or (axis.period is not None and axis.period.ndim != 1):
            raise InputError(batch.sources, key=axis.name, found="coordinates of its own per sample",
                             expected="one grid for all samples of a batch", fix="export and roll out grid by grid")
        multiple, period = cells * deepest, axis.period
        even = period is not None and is_even(axis.coord[0, :, 0].cpu(), float(period[0]))
        axes.append(AxisForm(axis.name, axis.unit, axis.period is not None, even, cells, multiple,
                             FEWEST * multiple, cells * longest))
    advanced = _next(adapter, state)
    wavenumbers = advanced.batch.targets[HEAD].spectrum is not None
    if batch.dataset in adapter.damping and not wavenumbers:
        raise InputError("export", key="domains.fields.damped", found="a baseline about the training mean",
                         expected="the state itself, or damped per wavenumber",
                         fix="roll it out with `sciml rollout`, which knows the mean")
    form = StepForm(
        domain=batch.domain, dataset=batch.dataset, channels=batch.channels,
        lead=Lead(float(batch.conditions.vector[LEAD][0]), advanced.elapsed - state.elapsed), axes=tuple(axes),
        vector=tuple(name for name in batch.conditions.vector if name != LEAD),
        lattice=tuple(batch.conditions.lattice), observed=batch.observed is not None,
        wavenumbers=wavenumbers,
        dtype=str(batch.values.dtype).removeprefix("torch."))
    check_lattice(form, batch.lattice, batch.sources)
    return form


def most_tokens(operator: Operator) -> int:
    """The most tokens along an axis of the finest level: beyond, a radial mixer goes over to complex numbers."""
    deepest = 2 ** (len(operator.levels) - 1)
    own = [LONGEST_DENSE * 2**i for i, level in enumerate(operator.levels)
           if any(isinstance(module, Radial) for module in level.modules())]
    return min(own, default=MOST_TOKENS) // deepest * deepest


def check_lattice(form: StepForm, sizes: Sequence[int], where: object) -> None:
    """Raises `InputError` where the exported step can't take a lattice of that many cells."""
    for axis, size in zip(form.axes, sizes):
        if size % axis.multiple or not axis.fewest <= size <= axis.most:
            raise InputError(where, key=axis.name, found=f"{size} cells",
                             expected=f"a multiple of {axis.multiple} from {axis.fewest} to {axis.most}",
                             fix="resample the field to such a size, or roll it out with `sciml rollout`")


def inputs_of(form: StepForm, batch: TokenBatch) -> tuple[Tensor, ...]:
    """A batch as the inputs of the exported step, in the order of `StepForm.inputs`; contiguous, which it relies on."""
    shape, lattice = batch.values.shape, batch.conditions.lattice
    inputs = [batch.values, *(batch.conditions.vector[name] for name in form.vector),
              *(lattice[name].expand(shape[:-1]).contiguous() for name in form.lattice)]
    if batch.observed is not None:
        inputs.append(batch.observed.expand(shape).contiguous())
    for axis, own in zip(batch.axes, form.axes):
        if axis.period is not None:
            inputs.append(axis.period)
        if not own.even:
            inputs += [axis.coord[0, :, 0].contiguous(), axis.weights()[0].contiguous()]
    return tuple(tensor.contiguous() for tensor in inputs)


class FieldsStep(nn.Module):
    """``forward(*inputs) → (B, *lattice, C)``: what `Predictor.step` makes of a state of fields, in plain tensors.

    The operator's geometry follows from sizes and periods. Where baseline and scale are known per wavenumber, state and
    output meet in the basis of real waves of `sciml.mixers.radial`, so that no number is complex.
    """

    factors: Tensor
    scale: Tensor

    def __init__(self, predictor: Predictor, state: State, form: StepForm) -> None:
        super().__init__()
        adapter = predictor.adapter(form.domain)
        assert isinstance(adapter, Fields)
        self.form = form
        self.operator: Operator = copy.deepcopy(predictor.operator).eval()
        self.operator.compiled = False
        self.normalisation = normalisation(adapter, form)
        like = state.batch.values
        if form.wavenumbers:
            factors = np.concatenate(curves(adapter, form), -1)
            self.register_buffer("factors", like.new_tensor(factors))  # (K, 2 C): damping, gain
        else:
            scale = _next(adapter, state).batch.targets[HEAD].scale
            self.register_buffer("scale", scale.flatten(0, -2)[0].clone())  # (C,)

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.form.inputs(), inputs))
        batch = self._batch(given)
        x, y = batch.values, self.operator(batch, sizes=[axis.cells for axis in self.form.axes])[HEAD]
        if self.form.wavenumbers:
            values = self._by_wavenumber(x, y, batch.axes)
        else:
            values = x + self.scale * y
        if batch.observed is not None:
            values = values.masked_fill(~batch.observed, 0.0)
        return values.contiguous()  # it is the next step's input, which has to be

    def _batch(self, given: Mapping[str, Tensor]) -> TokenBatch:
        form, values = self.form, given["values"]
        axes = tuple(_axis(axis, given, values.shape[1 + i], values) for i, axis in enumerate(form.axes))
        vector = {LEAD: values.new_full((values.shape[0],), form.lead.condition)}
        return TokenBatch(
            form.domain, form.dataset, values, form.channels, axes, observed=given.get("observed"),
            conditions=Conditions(vector | {name: given[f"vector:{name}"] for name in form.vector},
                                  {name: given[f"lattice:{name}"] for name in form.lattice}),
            num_segments=values.shape[0])

    def _by_wavenumber(self, x: Tensor, y: Tensor, axes: Sequence[Axis]) -> Tensor:
        """damping(|κ|) x̂ + gain(|κ|) ŷ, both ``(B, *lattice, C)``, as `sciml.tokens.filter_wavenumbers` has it."""
        both = torch.cat([x, y], -1)
        synthesis, squares = [], []
        for i, axis in enumerate(axes):
            like = x.new_zeros(1, axis.size, 1)
            waves, m = axis_waves(Axis("", "space", like, period=None if axis.period is None else x.new_ones(1)))
            both = transform(waves.analysis, both, 1 + i)
            synthesis.append(waves.synthesis)
            shape = [1] * len(axes)
            shape[i] = axis.size
            squares.append((m / _repeats(axis)).square().view(shape))
        shells = (sum(squares[1:], squares[0]).sqrt() + spectral.TIE).round()
        shells = shells.clamp(max=self.factors.shape[0] - 1).long()  # (*lattice)
        # A compiled graph looks factors up anew for every sample, unless a product stands in between: by the identity.
        factors = self.factors[shells].flatten(0, -2) @ torch.eye(both.shape[-1], dtype=x.dtype, device=x.device)
        state, output = (both * factors.view(both.shape[1:])).chunk(2, -1)
        total = state + output
        for i, matrix in enumerate(synthesis):
            total = transform(matrix, total, 1 + i)
        return total


def transform(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """`matrix` ``(m, n)`` applied along a dimension, as one product: for few channels, moving them costs little."""
    moved = x.movedim(dim, -1)
    return (moved.reshape(-1, moved.shape[-1]) @ matrix.T).view(*moved.shape[:-1], matrix.shape[0]).movedim(-1, dim)


def curves(adapter: Fields, form: StepForm) -> tuple[np.ndarray, np.ndarray]:
    """Damping and gain of every channel ``(K, C)`` over whole wavenumbers; the shorter ones keep their last value."""
    known, columns = adapter.datasets[form.dataset], []
    for own in adapter.spectra[form.dataset].values():
        curve = spectral.between(own, form.lead.elapsed / known.dt)
        columns.append(spectral.gains(curve, [2 * (curve.shape[1] - 1)], [1.0], adapter.config.spectral))
    longest = max(len(damping) for damping, _ in columns)
    damping, gain = (np.stack([np.pad(column[part], (0, longest - len(column[part])), mode="edge")
                               for column in columns], -1) for part in (0, 1))
    return damping, gain


def normalisation(adapter: Fields, form: StepForm) -> dict[str, Any]:
    """How physical numbers become the step's: (transform(x) − center) / scale; lengths and times by reference. JSON."""
    known = adapter.datasets[form.dataset]
    kinds = {kind: {f"fields/{name}": scaling.model_dump(mode="json") for name, scaling in getattr(known, kind).items()}
             for kind in ("states", "forcings", "parameters")}
    return {**kinds, "reference_length": known.length, "reference_time": known.time, "time_unit": known.time_unit}


def _repeats(axis: Axis) -> Tensor:
    """`sciml.domains.fields.spectral.repeats` of an axis, ``(1,)``."""
    if axis.period is not None:
        return axis.period.double()
    place = axis.coord[0, :, 0].double()
    return 2 * axis.size * (place[-1:] - place[:1]) / (axis.size - 1)


def _axis(form: AxisForm, given: Mapping[str, Tensor], size: int, like: Tensor) -> Axis:
    period = given.get(f"period:{form.name}")
    if form.even:
        assert period is not None
        coord = torch.arange(size, dtype=like.dtype, device=like.device) * (period / size)
        measure = (period / size).expand(size)
    else:
        coord, measure = given[f"coord:{form.name}"], given[f"measure:{form.name}"]
    return Axis(form.name, "space", coord[None, :, None], unit=form.unit, period=period, coarsen=True,
                measure=measure[None])


def _next(adapter: Fields, state: State) -> State:
    """What the adapter asks for after this state, and how long it takes."""
    still = replace(state, extra={})
    return adapter.advance(still, Outputs({HEAD: torch.zeros_like(state.batch.values)}))
