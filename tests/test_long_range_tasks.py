"""The generators of `benchmarks/long_range_tasks.py`: answers by other means, splits apart, the same from one seed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sciml.cli.bench import load_script

ROOT = Path(__file__).parent.parent
WORDS = {15: "]", **{1 + digit: str(digit) for digit in range(10)},
         **{11 + i: f"[{name}" for i, name in enumerate(("MIN", "MAX", "MED", "SM"))}}


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    module: ModuleType = load_script(ROOT / "benchmarks/long_range_tasks.py")
    return module


def rewritten(text: str) -> int:
    """The value of an expression by rewriting innermost brackets in the text until one digit is left."""
    def value(match: re.Match[str]) -> str:
        numbers = sorted(map(int, match[2].split()))
        middle = (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) // 2
        return str({"MIN": numbers[0], "MAX": numbers[-1], "MED": middle, "SM": sum(numbers) % 10}[match[1]])
    while "[" in text:
        text = re.sub(r"\[(MIN|MAX|MED|SM)((?: \d)+) \]", value, text)
    return int(text)


@pytest.mark.parametrize("length", [64, 65, 129, 256, 1024])
def test_listops_fill_their_length_and_their_values_are_right(tasks: ModuleType, length: int) -> None:
    rng = random.Random(length)
    for _ in range(20):
        tokens, value = tasks.listops(rng, length)
        assert tokens.shape == (length,)
        assert rewritten(" ".join(WORDS[int(token)] for token in tokens)) == value


def test_the_rewriter_knows_what_it_checks() -> None:
    assert rewritten("[MED [MAX 1 7 ] [SM 9 4 ] [MIN 5 2 ] 8 ]") == 5
    assert rewritten("[MED 1 2 4 ]") == 2


def test_a_bag_cannot_tell_the_two_kinds_of_sections_apart(tasks: ModuleType) -> None:
    """MIN and MAX are equally frequent, whichever has the majority of sections."""
    rng, shares = random.Random(0), []
    for _ in range(100):
        tokens, _ = tasks.listops(rng, 1024)
        counts = np.bincount(tokens, minlength=16)
        shares.append(counts[12] / (counts[11] + counts[12]))
    assert 0.48 < np.mean(shares) < 0.52
    assert np.std(shares) < 0.06


def test_every_class_of_listops_occurs(tasks: ModuleType) -> None:
    rng = random.Random(0)
    shares = np.bincount([tasks.listops(rng, 256)[1] for _ in range(1000)], minlength=10) / 1000
    assert shares.min() > 0.03
    assert shares.max() < 0.2


def connected(tokens: np.ndarray) -> bool:
    """Flood fill from one mark over drawn cells at most two apart: does it arrive at the other?"""
    drawn = {tuple(cell) for cell in np.argwhere(tokens > 0).tolist()}
    start, end = (tuple(cell) for cell in np.argwhere(tokens == 2).tolist())
    seen, front = {start}, [start]
    while front:
        row, column = front.pop()
        near = {(row + i, column + j) for i in range(-2, 3) for j in range(-2, 3)} & drawn - seen
        seen |= near
        front += near
    return end in seen


@pytest.mark.parametrize(("size", "count"), [(32, 60), (64, 20)])
def test_pathfinder_labels_agree_with_a_flood_fill(tasks: ModuleType, size: int, count: int) -> None:
    rng, labels = random.Random(size), []
    for _ in range(count):
        tokens, label = tasks.pathfinder(rng, size)
        assert tokens.shape == (size, size)
        assert (tokens == 2).sum() == 2
        assert connected(tokens) == bool(label)
        labels.append(label)
    assert 0.2 < np.mean(labels) < 0.8


def test_the_distance_of_the_marks_does_not_tell(tasks: ModuleType) -> None:
    rng = random.Random(1)
    found: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(300):
        tokens, label = tasks.pathfinder(rng, 32)
        one, two = np.argwhere(tokens == 2)
        found[label].append(float(np.hypot(*(one - two))))
    spread = np.std(found[0] + found[1]) * np.sqrt(1 / len(found[0]) + 1 / len(found[1]))
    assert abs(np.mean(found[0]) - np.mean(found[1])) < 4 * spread


@pytest.mark.parametrize(("name", "size"), [("listops", 128), ("pathfinder", 32)])
def test_splits_are_apart_and_made_from_the_seed_alone(tasks: ModuleType, name: str, size: int) -> None:
    counts = {"train": 60, "validation": 10, "test": 10}
    draw = getattr(tasks, name)
    one, again, other = (tasks.make(draw, size, counts, seed) for seed in (3, 3, 4))
    for split, number in counts.items():
        assert len(one[split][0]) == len(one[split][1]) == number
        assert np.array_equal(one[split][0], again[split][0])
        assert np.array_equal(one[split][1], again[split][1])
        assert not np.array_equal(one[split][0], other[split][0])
    contents = {split: {row.tobytes() for row in one[split][0]} for split in counts}
    foreign = {split: {row.tobytes() for row in other[split][0]} for split in counts}
    assert not contents["test"] & (contents["train"] | contents["validation"])
    assert not contents["test"] & (foreign["train"] | foreign["validation"])
    assert sum(map(len, contents.values())) == sum(counts.values())


def test_samples_drawn_twice_are_kept_once(tasks: ModuleType) -> None:
    def draw(rng: random.Random, size: int) -> tuple[np.ndarray, int]:
        return np.array([rng.randrange(200)], dtype=np.uint8), 0
    made = tasks.make(draw, 1, {"train": 50, "test": 5}, 0)
    rows = [int(row[0]) for split in made.values() for row in split[0]]
    assert len(rows) == len(set(rows)) == 55
