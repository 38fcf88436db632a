"""Volumes in bricks: packing, boxes against numpy slices, and what reading a box touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data import bricks
from sciml.data.affines import from_spacing, refuse_bad_affine, same_grid, spacing
from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.errors import InputError

SHAPES = ((9, 17, 13), (4, 4, 4), (1, 30, 7), (21, 8, 11))
BRICKS = (7,)


def volume(i: int) -> np.ndarray:
    return np.random.default_rng(i).normal(size=SHAPES[i]).astype(np.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Store]:
    folder = tmp_path_factory.mktemp("volumes")
    for i in range(len(SHAPES)):
        np.save(folder / f"s{i}.npy", volume(i))
    spec = {"name": "toy", "domain": "volumes", "files": [str(folder)], "split": {"by": "fold", "folds": 4}}
    options = {"format": "volume_npy", "spacing_mm": [1, 1, 3], "orientation": "LPS", "modality": "ct"}
    return {brick: build(SourceSpec.model_validate(spec | {"options": options | {"brick": brick}}),
                         folder / f"{brick}.zarr") for brick in BRICKS}


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 10))
def test_a_packed_volume_is_unpacked_to_itself_and_holds_each_brick_as_one_stretch(shape: tuple[int, ...],
                                                                                   brick: int) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape)
    flat = bricks.pack(whole, brick)
    assert np.array_equal(bricks.unpack(flat, shape, brick), whole)
    _, columns, depth = shape
    for a, b, c in np.ndindex(*(-(-n // brick) for n in shape)):
        part = whole[a * brick:(a + 1) * brick, b * brick:(b + 1) * brick, c * brick:(c + 1) * brick]
        h, w, _ = part.shape
        start = a * brick * columns * depth + h * b * brick * depth + h * w * c * brick
        assert np.array_equal(flat[start:start + part.size], part.ravel())
    layers = [bricks.pack(whole[i:i + brick], brick) for i in range(0, shape[0], brick)]
    assert np.array_equal(np.concatenate(layers), flat)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), brick=st.sampled_from(BRICKS), subject=st.integers(0, len(SHAPES) - 1))
def test_a_box_is_the_slice_of_the_volume(stores: dict[int, Store], data: st.DataObject, brick: int,
                                          subject: int) -> None:
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in SHAPES[subject]]
    low, high = zip(*bounds, strict=True)
    box = bricks.read(stores[brick], "ct", subject, low, high)
    assert box.dtype == np.float32
    assert np.array_equal(box, volume(subject)[tuple(slice(*b) for b in bounds)])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), brick=st.sampled_from(BRICKS))
def test_only_bricks_that_the_box_meets_are_read(stores: dict[int, Store], data: st.DataObject, brick: int) -> None:
    store, shape, read = stores[brick], SHAPES[0], list[int]()

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def read(self, name: str, group: int, start: int | None = None, stop: int | None = None) -> np.ndarray:
            if start is not None and stop is not None:
                read.append(stop - start)
            return store.read(name, group, start, stop)

    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    bricks.read(Counting(), "ct", 0, *zip(*bounds, strict=True))  # type: ignore[arg-type]
    met = [min(-(-b // brick) * brick, n) - a // brick * brick for (a, b), n in zip(bounds, shape, strict=True)]
    assert sum(read) == (np.prod(met) if all(a < b for a, b in bounds) else 0)


def test_size_affine_names_and_boxes_that_are_not_there(stores: dict[int, Store]) -> None:
    store = stores[7]
    assert bricks.subjects(store) == ("s0", "s1", "s2", "s3")
    assert bricks.size(store, 3) == (21, 8, 11)
    assert np.array_equal(bricks.affine(store, 0), np.diag([-1.0, -1.0, 3.0, 1.0]))
    assert bricks.affine(store, 0).dtype == np.float64
    assert np.array_equal(bricks.read(store, "ct", 1), volume(1))
    for low, high in (((0, 0, 0), (10, 1, 1)), ((-1, 0, 0), None), ((2, 0, 0), (1, 1, 1)), ((0, 0), (1, 1))):
        with pytest.raises(IndexError, match=r"box .* of a volume \(9, 17, 13\)"):
            bricks.read(store, "ct", 0, low, high)
    with pytest.raises(InputError, match=r"\[mri\]: found no such variable"):
        bricks.read(store, "mri", 0, (0, 0, 0), (1, 1, 1)) if "mri" in store.meta.variables else store.read("mri", 0)


def test_the_store_is_described_as_agreed_and_split_by_fold(stores: dict[int, Store]) -> None:
    meta = stores[7].meta
    assert (meta.domain, meta.group_dim, meta.dt, meta.ragged) == ("volumes", "subject", None, {"voxel": "voxel_count"})
    found = {name: (v.role, v.unit, v.dims) for name, v in meta.variables.items()}
    assert found == {"voxel_count": ("rows", "1", ()), "size": ("parameter", "1", ("index",)),
                     "affine": ("parameter", "1", ("world", "column")), "brick": ("parameter", "1", ()),
                     "ct": ("state", "1", ("voxel",))}
    assert {name: stores[7].members(name) for name in meta.axes} == {
        "index": ("i", "j", "k"), "world": ("x", "y", "z", "1"), "column": ("i", "j", "k", "origin")}
    assert [[b.group for b in meta.splits.of(name)] for name in ("train", "validation", "test")] == [  # type: ignore[arg-type]
        [2, 3], [1], [0]]


def turned(angle: float = 0.3) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def test_affines_that_turn_flip_and_permute_are_fine_and_others_are_not() -> None:
    fine = np.eye(4)
    fine[:3, :3] = turned() @ np.diag([0.5, -2, 3])[:, [2, 0, 1]]
    refuse_bad_affine(fine, "a")
    assert spacing(fine) == pytest.approx([3, 0.5, 2])
    sheared, flat, broken, last = fine.copy(), fine.copy(), fine.copy(), fine.copy()
    sheared[:3, 1] += 0.05 * fine[:3, 2]
    flat[:3, 2] = 0
    broken[0, 0], last[3, 0] = np.nan, 1
    for matrix, words in ((sheared, r"\[affine\]: found axes .* degrees apart"), (broken, r"\[affine\]"),
                          (flat, r"\[spacing\]: found 3 × 0.5 × 0 mm"), (last, "end in 0, 0, 0, 1"),
                          (fine[:3], "4 × 4")):
        with pytest.raises(InputError, match=words):
            refuse_bad_affine(matrix, "a.nii")


def test_grids_are_the_same_if_their_far_corners_are() -> None:
    one, far = np.diag([1.0, 1.0, 3.0, 1.0]), np.diag([1.0, 1.0001, 3.0, 1.0])
    assert same_grid(one, far, (10, 100, 10))
    assert not same_grid(one, far, (10, 1000, 10))
    assert np.array_equal(from_spacing(np.array([2.0, 3, 4]), "PIR", "t")[:3, :3], [[0, 0, 4], [-2, 0, 0], [0, -3, 0]])
    for code in ("RAX", "RLS", "RA"):
        with pytest.raises(InputError, match=r"options.orientation"):
            from_spacing(np.ones(3), code, "t")
