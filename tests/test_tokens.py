"""Axes, batches, specs and targets."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from sciml import tokens
from sciml.checkpoint import spec_of
from sciml.tokens import Conditions, HeadSpec, State, Target, TokenBatch, TokenSpec, map_tensors


def test_quadrature_weights_of_a_period_sum_to_it() -> None:
    coord = torch.tensor([0.0, 0.1, 0.4, 0.8])
    torch.testing.assert_close(tokens.cell_widths(coord, 1.0), torch.tensor([0.15, 0.2, 0.35, 0.3]))
    torch.testing.assert_close(tokens.cell_widths(coord), torch.tensor([0.05, 0.2, 0.35, 0.2]))
    assert tokens.cell_widths(torch.zeros(1), 3.0).tolist() == [3.0]
    assert tokens.cell_widths(torch.zeros(1)).tolist() == [1.0]


def test_trapezoid_weights_integrate_linear_functions_exactly() -> None:
    coord = torch.tensor([0.0, 0.3, 0.35, 1.2], dtype=torch.float64)
    assert float((tokens.cell_widths(coord) * (2 * coord + 1)).sum()) == pytest.approx(1.2**2 + 1.2)


def test_presets_say_what_may_be_coarsened() -> None:
    coord, ids = torch.arange(4.0), torch.arange(4)
    assert tokens.space("x", coord).coarsen
    assert tokens.time("t", coord).coarsen
    assert not tokens.time("t", coord, causal=True).coarsen
    axis = tokens.identity("neuron", ids, "session/unit")
    assert not axis.coarsen
    assert axis.coord.shape == (1, 4, 0)
    assert axis.weights().sum() == 1
    assert tokens.identity("atom", ids, "element", coord=torch.rand(4, 3)).coord.shape == (1, 4, 3)


def test_a_batch_whose_values_do_not_fit_is_refused() -> None:
    axis = tokens.space("x", torch.arange(4.0))
    TokenBatch("d", "s", torch.zeros(1, 4, 2), ("d/a", "d/b"), (axis,))
    for values, channels in [(torch.zeros(1, 5, 2), ("d/a", "d/b")), (torch.zeros(1, 4, 2), ("d/a",)),
                             (torch.zeros(1, 4, 3, 2), ("d/a", "d/b"))]:
        with pytest.raises(ValueError, match="do not fit lattice"):
            TokenBatch("d", "s", values, channels, (axis,))


def test_moving_a_batch_moves_every_floating_tensor_and_only_those() -> None:
    axis = tokens.identity("atom", torch.arange(3), "element", coord=torch.rand(3, 3), segment=torch.zeros(3).long())
    target = Target(torch.zeros(1, 3, 1), torch.ones(1, 3, 1, dtype=torch.bool), torch.zeros(1), torch.ones(1))
    inner = TokenBatch("d", "s", torch.zeros(1, 3, 1), ("d/a",), (axis,))
    conditions = Conditions({"v": torch.ones(1)}, {"l": torch.ones(1, 3)}, inner)
    batch = replace(inner, targets={"h": target}, conditions=conditions)
    moved = batch.to(dtype=torch.float64)
    seen: list[torch.dtype] = []
    map_tensors(moved, lambda t: seen.append(t.dtype) or t)  # type: ignore[func-returns-value]
    assert set(seen) == {torch.float64, torch.int64, torch.bool}
    assert moved.conditions.context is not None
    assert moved.conditions.context.values.dtype == torch.float64
    assert batch.values.dtype == torch.float32
    assert batch.packed_axis == 0
    assert batch.lattice == (3,)


def test_a_prediction_is_baseline_plus_scaled_output() -> None:
    target = Target(torch.zeros(2, 3, 1), torch.ones(1), torch.full((2, 1, 1), 5.0), torch.tensor(2.0))
    assert target.predict(torch.ones(2, 3, 1)).unique().tolist() == [7.0]


def spec(*channels: str, **other: object) -> TokenSpec:
    return TokenSpec("d", channels, {"state": HeadSpec("lattice", channels)}, **other)  # type: ignore[arg-type]


def test_merging_specs_keeps_the_place_of_known_rows() -> None:
    ours = spec("d/b", "d/a", identities={"x/unit": ("u2", "u1")}, vector_conditions=("lead",), units={"d/a": "m"})
    theirs = spec("d/a", "d/c", identities={"x/unit": ("u1", "u3"), "y/unit": ("v",)}, lattice_conditions=("f",),
                  units={"d/a": "km", "d/c": "s"})
    both = ours.merge(theirs)
    assert both.channels == both.heads["state"].outputs == ("d/b", "d/a", "d/c")
    assert both.identities == {"x/unit": ("u2", "u1", "u3"), "y/unit": ("v",)}
    assert (both.vector_conditions, both.lattice_conditions) == (("lead",), ("f",))
    assert both.units == {"d/a": "m", "d/c": "s"}
    assert both.merge(theirs) == both


def test_specs_of_different_domain_or_patch_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        spec("d/a").merge(spec("d/a", patch=4))


def test_a_spec_survives_json() -> None:
    one = spec("d/a", identities={"x/unit": ("u",)}, patch=3, patch_length=0.25, pair_bias="radial",
               context=spec("d/c"))
    one = replace(one, heads={**one.heads, "next": HeadSpec("tied", namespace="x/unit", link="logit")})
    assert spec_of(json.loads(json.dumps(asdict(one)))) == one


def test_map_tensors_keeps_the_shape_of_the_tree() -> None:
    batch = TokenBatch("d", "s", torch.zeros(1, 2, 1), ("d/a",), (tokens.space("x", torch.arange(2.0)),))
    state = State(batch, 3, 1.5, [(), (torch.ones(2), 7)], None, {"v": torch.ones(1)})
    twice = map_tensors(state, lambda t: t * 2)
    assert (twice.step, twice.elapsed, twice.rng) == (3, 1.5, None)
    assert twice.cache[1][0].tolist() == [2.0, 2.0]
    assert twice.cache[1][1] == 7
    assert twice.cache[0] == ()
    assert twice.extra["v"].item() == 2
