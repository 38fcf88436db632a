"""Augmentation by the symmetries of the equations: laws of the group, of vectors and of solvers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.builders import navier_stokes
from sciml.data.schema import AxisMeta, Variable
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.measures import Flow
from sciml.domains.fields.symmetry import Motion, Symmetries
from sciml.errors import InputError
from tests.domains.fields.stores import flow_store, poisson_store

RNG = np.random.default_rng


class Meta:
    """Of a box with these sizes; state variables with the axes that they are components along."""

    def __init__(self, sizes: Mapping[str, int], variables: Mapping[str, tuple[str, tuple[str, ...]]], *,
                 periodic: bool = True) -> None:
        names = tuple(sizes)
        self.axes = {n: AxisMeta(kind="space", unit="m", period=m / 8 if periodic else None) for n, m in sizes.items()}
        self.variables = {name: Variable(role="state", unit="1", dims=names, vector=vector, along=along)
                          for name, (vector, along) in variables.items()}
        self.places = {n: np.arange(m) / 8 for n, m in sizes.items()}

    def symmetries(self, *augment: str) -> Symmetries:
        return Symmetries.of(self, self.places, augment, "test")  # type: ignore[arg-type]

    def motions(self, *augment: str) -> list[Motion]:
        found = self.symmetries(*augment)
        return [Motion(found.space, source, flip, (0,) * len(found.space), parts)
                for source, flip, parts in found.elements]


def moved(motion: Motion, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {}
    for name in fields:
        source, sign = motion.part(name)
        result[name] = sign * motion.move(fields[source], motion.space[: np.ndim(fields[source])])
    return result


def box(rank: int, size: int = 6) -> Meta:
    names = "xyz"[:rank]
    variables = {"p": ("", ()), **{f"v_{a}": ("v", (a,)) for a in names},
                 **{f"s_{a}{b}": ("s", (a, b)) for i, a in enumerate(names) for b in names[i:]},
                 **{f"w_{a}{b}": ("w", (a, b)) for i, a in enumerate(names) for b in names[i + 1:]}}
    return Meta(dict.fromkeys(names, size), variables)


def drawn(meta: Meta, seed: int) -> dict[str, np.ndarray]:
    rng, shape = RNG(seed), tuple(len(place) for place in meta.places.values())
    return {name: rng.normal(size=shape) for name in meta.variables}


@pytest.mark.parametrize(("rank", "augment", "count"), [
    (1, ("flip",), 2), (2, ("flip",), 4), (2, ("rotate",), 4), (2, ("flip", "rotate"), 8), (2, ("flip:x",), 2),
    (3, ("rotate",), 24), (3, ("flip", "rotate"), 48), (3, ("rotate:x,y",), 4), (3, ("flip:z", "rotate:x,y"), 8)])
def test_how_many_there_are(rank: int, augment: tuple[str, ...], count: int) -> None:
    elements = box(rank).symmetries(*augment).elements
    assert len(elements) == len({(source, flip) for source, flip, _ in elements}) == count
    assert elements[0][:2] == (tuple(range(rank)), (False,) * rank)


@given(rank=st.integers(1, 3), seed=st.integers(0, 50), picks=st.tuples(st.integers(0, 47), st.integers(0, 47)))
@settings(max_examples=40, deadline=None)
def test_one_after_the_other_is_a_third(rank: int, seed: int, picks: tuple[int, int]) -> None:
    meta = box(rank)
    motions = meta.motions("flip", *(("rotate",) if rank > 1 else ()))
    fields = drawn(meta, seed)
    first, second = (motions[pick % len(motions)] for pick in picks)
    both = moved(second, moved(first, fields))
    assert any(all(np.array_equal(both[n], alone[n]) for n in fields) for alone in (moved(m, fields) for m in motions))


@cache
def turns(rank: int) -> list[Motion]:
    return box(rank).motions("rotate")


@given(rank=st.integers(2, 3), seed=st.integers(0, 50), pick=st.integers(0, 23))
@settings(max_examples=20, deadline=None)
def test_four_quarter_turns_are_none(rank: int, seed: int, pick: int) -> None:
    fields, motions = drawn(box(rank), seed), turns(rank)
    turn = motions[pick % len(motions)]
    now = fields
    for _ in range(12):  # the order of a rotation of a square divides 4, of a cube 12
        now = moved(turn, now)
    assert all(np.array_equal(now[name], fields[name]) for name in fields)


@given(rank=st.integers(2, 3), pick=st.integers(0, 47), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_scalars_made_of_vectors_move_as_scalars(rank: int, pick: int, seed: int) -> None:
    """|v|², v·s·v, the divergence of v and its curl, which is the antisymmetric w."""
    meta = box(rank, 8)
    motions = meta.motions("flip", "rotate")
    motion, names, fields = motions[pick % len(motions)], "xyz"[:rank], drawn(meta, seed)

    def made(f: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rates = Flow(np.stack([f[f"v_{a}"] for a in names], -1), [1.0] * rank)._rates()
        product = sum(f[f"v_{a}"] * f[f"s_{min(a, b)}{max(a, b)}"] * f[f"v_{b}"] for a in names for b in names)
        curls = {f"w_{names[i]}{names[j]}": rates[i][..., j] - rates[j][..., i]
                 for i in range(rank) for j in range(i + 1, rank)}
        return {"p": product, "q": sum(rate[..., i] for i, rate in enumerate(rates)), **curls}

    before, after = made(fields), made(moved(motion, fields))
    for name in before:
        source, sign = motion.part(name)
        np.testing.assert_allclose(after[name], sign * motion.move(before[source], motion.space), atol=1e-9)


def test_solving_and_turning_commute() -> None:
    """Navier–Stokes: vorticity and the curl of the force change sign in a mirror, and keep it when turned."""
    meta = Meta({"x": 16, "y": 16}, {"vorticity": ("vorticity", ("x", "y")), "forcing": ("curl", ("x", "y"))})
    start = {"vorticity": navier_stokes.initial_vorticity(16, 3, 0, 6.0), "forcing": navier_stokes.forcing(16, 2.0)}

    def step(given: Mapping[str, np.ndarray]) -> np.ndarray:
        return navier_stokes.advance(given["vorticity"][None], 1e-2, given["forcing"], 0.5, 1)[0, 0]

    later = {**start, "vorticity": step(start)}
    motions = meta.motions("flip", "rotate")
    assert len(motions) == 8
    for motion in motions:
        turned = moved(motion, start)
        np.testing.assert_allclose(step(turned), moved(motion, later)["vorticity"], atol=1e-9)
    wrong = Meta({"x": 16, "y": 16}, {"vorticity": ("", ()), "forcing": ("", ())}).motions("flip")[1]
    assert not np.allclose(step(moved(wrong, start)), moved(wrong, later)["vorticity"], atol=1e-3)


def test_drawn_samples_are_moved_whole(tmp_path: Path) -> None:
    store = flow_store(tmp_path)
    adapter = Fields.create({"augment": ["shift", "flip", "rotate"]}).fit(store)
    plain, windows = adapter.open(store, "train"), adapter.open(store, "train", train=True)
    seen = set()
    for seed in range(12):
        one, other = plain.draw(3, RNG(0), RNG(0)), windows.draw(3, RNG(seed), RNG(0))
        names = ("velocity_x", "velocity_y")
        flow, same = (Flow(np.stack([s[n].values for n in names], -1), [1.0, 1.0]) for s in (one, other))
        np.testing.assert_allclose(same.energy(), flow.energy(), rtol=1e-5)
        assert float(same.divergence().max()) < 1e-5
        seen.add(float(other["velocity_x"].values[0, 0, 0]))
        ratio = [(s["force_x"] * s["velocity_x"] + s["force_y"] * s["velocity_y"]).sum().item() for s in (one, other)]
        assert ratio[1] == pytest.approx(ratio[0], rel=1e-4, abs=1e-3)
        assert all(np.array_equal(other[c].values, one[c].values) for c in ("x", "y", "time"))
        assert adapter.encode(other).values.shape == (1, 12, 12, 3)
    assert len(seen) > 8


def test_the_same_key_draws_the_same_motion(tmp_path: Path) -> None:
    store = flow_store(tmp_path)
    windows = Fields.create({"augment": ["flip", "rotate"]}).open(store, "train", train=True)
    one, same = (windows.draw(2, RNG(4), RNG(0)) for _ in range(2))
    assert one.identical(same)
    stretch = Fields.create({"augment": ["flip", "rotate"]}).stretches(store, "train", 2, train=True)
    assert stretch.draw(1, RNG(3), RNG(0)).sizes["time"] == 3


def test_boundaries_go_with_their_ends() -> None:
    meta = Meta({"x": 6, "y": 6}, {"u": ("", ())}, periodic=False)
    ends = [f"boundary_{axis}_{end}" for axis in "xy" for end in ("low", "high")]
    codes = {name: Variable(role="boundary", unit="1", dims=()) for name in ends}
    meta.variables |= codes
    for motion in meta.motions("flip", "rotate"):
        values = {name: np.array(i) for i, name in enumerate(codes)}
        marked = np.full((6, 6), -1.0)
        marked[0, 1:-1], marked[-1, 1:-1], marked[1:-1, 0], marked[1:-1, -1] = range(4)
        after, field = moved(motion, values), motion.move(marked, "xy")
        found = [field[0, 2], field[-1, 2], field[2, 0], field[2, -1]]
        assert [float(after[name]) for name in codes] == found
    del meta.variables["boundary_y_low"]
    with pytest.raises(InputError, match="boundary of every end"):
        meta.symmetries("rotate")


REFUSED: dict[str, tuple[Meta, str, str]] = {
    "part of a vector": (Meta({"x": 6, "y": 6}, {"velocity_x": ("velocity", ("x",))}), "flip", "velocity_x"),
    "part of a tensor": (Meta({"x": 6, "y": 6}, {"s_xx": ("s", ("x", "x")), "s_xy": ("s", ("x", "y"))}), "rotate",
                         "s_xx"),
    "a component that says nothing": (Meta({"x": 6, "y": 6}, {"velocity_x": ("", ())}), "flip", "velocity_x"),
    "axes that differ": (Meta({"x": 6, "y": 8}, {"u": ("", ())}), "rotate", "augment"),
    "an axis that is not there": (Meta({"x": 6, "y": 6}, {"u": ("", ())}), "flip:z", "z"),
    "walls that are rolled": (Meta({"x": 6}, {"u": ("", ())}, periodic=False), "shift:x", "x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_symmetry_is_refused(name: str) -> None:
    meta, augment, key = REFUSED[name]
    with pytest.raises(InputError) as raised:
        meta.symmetries(augment)
    assert raised.value.key == key
    assert raised.value.fix


def test_uneven_walls_are_mirrored_only_if_they_look_the_same_from_both_ends() -> None:
    meta = Meta({"x": 6, "y": 6}, {"u": ("", ())}, periodic=False)
    meta.places["y"] = np.array([0, 0.1, 0.3, 0.7, 0.9, 1.0])
    assert len(meta.symmetries("flip").elements) == 4
    meta.places["y"] = np.array([0, 0.1, 0.2, 0.4, 0.7, 1.0])
    assert len(meta.symmetries("flip").elements) == 2
    with pytest.raises(InputError, match="both ends"):
        meta.symmetries("flip:y")


def test_a_ring_is_shifted_only_where_its_places_fill_the_period() -> None:
    meta = Meta({"x": 6}, {"u": ("", ())})
    assert meta.symmetries("shift").rolls == (6,)
    meta.places["x"] = np.linspace(0, 6 / 8, 6)  # the first cell again at the end
    assert meta.symmetries("shift").rolls == (1,)
    with pytest.raises(InputError, match="evenly spaced"):
        meta.symmetries("shift:x")


def test_steady_problems_are_turned_with_their_coefficients(tmp_path: Path) -> None:
    store = poisson_store(tmp_path)
    windows = Fields.create({"augment": ["flip", "rotate"]}).open(store, "train", train=True)
    plain = Fields.create({}).open(store, "train").draw(0, RNG(0), RNG(0))
    ratio = float((plain["f"] * plain["u"]).sum())
    found = [windows.draw(0, RNG(seed), RNG(0)) for seed in range(8)]
    assert all(float((s["f"] * s["u"]).sum()) == pytest.approx(ratio, rel=1e-4) for s in found)
    assert len({float(s["u"].values[3, 5]) for s in found}) > 2


def test_recipes_name_symmetries() -> None:
    for augment in (["turn"], ["flip:"], ["rotate:x;y"]):
        with pytest.raises(InputError, match="augment"):
            Fields.create({"augment": augment})
    chosen: Any = Fields.create({"augment": ["shift", "flip:y", "rotate:x,z"]}).config
    assert chosen.augment == ("shift", "flip:y", "rotate:x,z")
    assert torch.get_default_dtype() == torch.float32
