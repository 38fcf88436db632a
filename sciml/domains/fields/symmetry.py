"""Symmetries of the equations as augmentation: samples rolled, mirrored and turned, components of vectors with them.

An element g of the group takes a field f to f′(g x) = g f(x). On a grid g permutes axes and runs along some of them
backwards: ``(g x)_i = s_i x_σ(i)`` about the middle of the box, with s = ±1. Hence v′_i = s_i v_σ(i) of a vector and
T′_ij = s_i s_j T_σ(i)σ(j) of a tensor; vorticity in a plane is the antisymmetric T_xy. (Weyl, The Classical Groups,
1939, on tensors; the signed permutations of axes are the hyperoctahedral group.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import numpy as np

from sciml.data.schema import StoreMeta, Variable
from sciml.domains.fields.grids import is_even
from sciml.errors import InputError

Parts = Mapping[str, tuple[str, int]]
"""Variable of the result → the variable it is made from, and its sign."""


@dataclass(frozen=True)
class Motion:
    """A symmetry of a grid: axis i of the result is axis ``source[i]``, backwards where ``flip[i]``, then rolled by
    ``shift[i]`` cells; parts: which variables become which."""

    space: tuple[str, ...]
    source: tuple[int, ...]
    flip: tuple[bool, ...]
    shift: tuple[int, ...]
    parts: Parts = field(default_factory=dict)

    def part(self, name: str) -> tuple[str, int]:
        return self.parts.get(name, (name, 1))

    def move(self, values: np.ndarray, dims: Sequence[str]) -> np.ndarray:
        """`values` with these dimensions, moved; those that aren't of space stay."""
        place = {dims.index(axis): self.space.index(axis) for axis in self.space if axis in dims}
        if not place:
            return values
        if self.source != tuple(range(len(self.space))):
            values = values.transpose([dims.index(self.space[self.source[place[d]]]) if d in place else d
                                       for d in range(len(dims))])
        mirrored = tuple(d for d, i in place.items() if self.flip[i])
        values = np.flip(values, mirrored) if mirrored else values
        rolled = tuple(d for d, i in place.items() if self.shift[i])
        if rolled:
            return np.roll(values, tuple(self.shift[place[d]] for d in rolled), rolled)
        return np.ascontiguousarray(values)


@dataclass(frozen=True)
class Symmetries:
    """All that training draws a motion from: elements of the group, and the sizes of the axes that are rolled (1 where
    they aren't)."""

    space: tuple[str, ...]
    elements: tuple[tuple[tuple[int, ...], tuple[bool, ...], Parts], ...]
    rolls: tuple[int, ...]

    @classmethod
    def of(cls, meta: StoreMeta, places: Mapping[str, np.ndarray], names: Sequence[str], where: object) -> Symmetries:
        """Those that a recipe's `augment` names, for a store with these coordinates ``(n,)`` of space.

        Raises `InputError` for an axis that a symmetry is asked about and doesn't have it, and, where samples are
        mirrored or turned, for vectors and boundaries that are given in part.
        """
        space = tuple(places)
        asked = [(kind, tuple(axes.split(",")) if axes else None)
                 for kind, _, axes in (name.partition(":") for name in names)]
        turns = {a: meta.axes[a].period for a in space}
        usable = {"shift": [a for a in space if turns[a] is not None and is_even(places[a], turns[a])],
                  "flip": [a for a in space if _mirrors(places[a])],
                  "rotate": [a for a in space if any(_equal(meta, places, a, b) for b in space if b != a)]}
        chosen: dict[str, set[str]] = {"shift": set(), "flip": set(), "rotate": set()}
        for kind, axes in asked:
            wrong = sorted(set(axes or ()) - set(usable[kind]))
            if wrong or (kind == "rotate" and not usable[kind]):
                raise InputError(where, key=", ".join(wrong) or "augment", found=f"augment {kind}",
                                 expected=WHY[kind], fix="leave it out of domains.fields.augment")
            chosen[kind] |= set(usable[kind] if axes is None else axes)
        found = [(source, flip, _parts(meta.variables, space, source, flip, where))
                 for source, flip in _elements(meta, places, chosen["flip"], chosen["rotate"])]
        return cls(space, tuple(found), tuple(len(places[a]) if a in chosen["shift"] else 1 for a in space))

    def draw(self, rng: np.random.Generator) -> Motion | None:
        """One of them, uniformly; None where there is only the identity."""
        if len(self.elements) == 1 and max(self.rolls) == 1:
            return None
        source, flip, parts = self.elements[int(rng.integers(len(self.elements)))]
        shift = tuple(int(rng.integers(n)) if n > 1 else 0 for n in self.rolls)
        return Motion(self.space, source, flip, shift, parts)


WHY = {"shift": "periodic, evenly spaced axes", "flip": "axes whose spacing is the same from both ends",
       "rotate": "two axes of equal size, spacing and period, the same from both ends"}


def _mirrors(place: np.ndarray) -> bool:
    steps = np.diff(place)
    return bool(np.allclose(steps, steps[::-1], rtol=1e-4, atol=0))


def _equal(meta: StoreMeta, places: Mapping[str, np.ndarray], a: str, b: str) -> bool:
    one, other = meta.axes[a], meta.axes[b]
    if len(places[a]) != len(places[b]) or one.unit != other.unit or (one.period is None) != (other.period is None):
        return False
    same = one.period is None or other.period is None or np.isclose(one.period, other.period)
    return bool(same) and _mirrors(places[a]) and bool(np.allclose(np.diff(places[a]), np.diff(places[b]), rtol=1e-4))


def _elements(meta: StoreMeta, places: Mapping[str, np.ndarray], flips: set[str],
              turned: set[str]) -> Iterator[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Signed permutations, the identity first: mirrored axes and, among equal axes that are turned, proper rotations
    (improper ones too if one of them is mirrored)."""
    space = tuple(places)
    classes = {a: frozenset(b for b in space if b in turned and a in turned and _equal(meta, places, a, b)) | {a}
               for a in space}
    for source in permutations(range(len(space))):
        if any(space[j] not in classes[space[i]] for i, j in enumerate(source)):
            continue
        for flip in product((False, True), repeat=len(space)):
            loose = all(not flip[i] or space[i] in flips or len(classes[space[i]]) > 1 for i in range(len(space)))
            if loose and all(own & flips or _proper(space, source, flip, own) for own in set(classes.values())):
                yield source, flip


def _proper(space: Sequence[str], source: Sequence[int], flip: Sequence[bool], own: frozenset[str]) -> bool:
    """Whether the determinant of the signed permutation of these axes is 1."""
    mine = [i for i, axis in enumerate(space) if axis in own]
    swaps = sum(source[i] > source[j] for n, i in enumerate(mine) for j in mine[n + 1:])
    return (swaps + sum(flip[i] for i in mine)) % 2 == 0


def _parts(variables: Mapping[str, Variable], space: Sequence[str], source: Sequence[int], flip: Sequence[bool],
           where: object) -> Parts:
    """Of components and of boundary codes, which belong to an end of an axis."""
    if tuple(source) == tuple(range(len(space))) and not any(flip):
        return {}
    moved = {axis: (space[source[i]], flip[i]) for i, axis in enumerate(space)}
    parts: dict[str, tuple[str, int]] = {}
    for name, variable in variables.items():
        if variable.role == "boundary":
            parts[name] = (_other_end(variables, name, moved, where), 1)
        elif variable.vector:
            family = {v.along: n for n, v in variables.items() if v.vector == variable.vector}
            _check_whole(variables, family, space, name, where)
            sign = (-1) ** sum(moved.get(axis, (axis, False))[1] for axis in variable.along)
            wanted = tuple(moved.get(axis, (axis, False))[0] for axis in variable.along)
            if wanted not in family:  # symmetric, or without a diagonal antisymmetric
                sign *= 1 if any(len(set(along)) == 1 for along in family) else -1
                wanted = wanted[::-1]
            parts[name] = (family[wanted], sign)
        elif ends := [axis for axis in space if name.endswith(f"_{axis}")]:
            vector = name.removesuffix(f"_{ends[0]}")
            raise InputError(where, key=name, found="no vector that it is a component of",
                             expected="attributes `vector` and `along`, or another name",
                             fix=f"in source.yaml: variables: {{{name}: {{vector: {vector}, along: [{ends[0]}]}}}}")
    return {name: part for name, part in parts.items() if part != (name, 1)}


def _check_whole(variables: Mapping[str, Variable], family: Mapping[tuple[str, ...], str], space: Sequence[str],
                 name: str, where: object) -> None:
    """Raises `InputError` unless all components of a vector or tensor along the axes are there, in one unit."""
    rank = len(next(iter(family)))
    diagonal = rank == 1 or any(len(set(along)) == 1 for along in family)
    for along in product(space, repeat=rank):
        there = along in family or along[::-1] in family or (not diagonal and len(set(along)) < rank)
        if not there:
            raise InputError(where, key=name, found=f"components along {sorted(' '.join(a) for a in family)}",
                             expected=f"one along {' '.join(along)}, too, of vector {variables[name].vector!r}",
                             fix="store all components, or leave flip and rotate out of domains.fields.augment")
    units = {variables[n].unit for n in family.values()}
    if len(units) > 1 or any(len(along) != rank for along in family) or rank > 2:
        raise InputError(where, key=name, found=f"units {sorted(units)}, along {sorted(map(' '.join, family))}",
                         expected="components of rank 1 or 2 in one unit", fix="convert them when the store is built")


def _other_end(variables: Mapping[str, Variable], name: str, moved: Mapping[str, tuple[str, bool]],
               where: object) -> str:
    """``boundary_x_low`` is made from the end that comes to lie there."""
    for axis, (source, flipped) in moved.items():
        for end, opposite in (("low", "high"), ("high", "low")):
            if name.endswith(f"{axis}_{end}"):
                found = f"{name.removesuffix(f'{axis}_{end}')}{source}_{opposite if flipped else end}"
                if found in variables:
                    return found
                raise InputError(where, key=name, found=f"no {found}", expected="the boundary of every end",
                                 fix="store it, or leave flip and rotate out of domains.fields.augment")
    return name
