"""Frames of a stimulus: read as tiles, known in every bin, and worth something to a population that they drive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.domains.spikes.binned import Binned
from sciml.errors import InputError
from sciml.evaluate import evaluate
from sciml.objectives.population import objective
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate
from sciml.predictor import Predictor
from sciml.recipe import validate

BINS, HELD = 1600, 8
FRAMES: dict[str, Any] = {"movie": {"tiles": [2, 3], "unit": "1"}}


def film(path: Path) -> Path:
    """8 units whose log-rates are linear in the tiles of frames that are shown for eight bins each."""
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(BINS // HELD, 2, 3))
    shown = np.repeat(tiles, HELD, 0)
    field = rng.normal(size=(6, 8)) / 6**0.5
    counts = rng.poisson(np.exp(1.3 * shown.reshape(BINS, 6) @ field - 0.5))
    movie = shown.repeat(4, 1).repeat(2, 2) + 0.1 * rng.normal(size=(BINS, 8, 6))
    slow = tiles.repeat(4, 1).repeat(2, 2)
    np.savez(path, counts=counts, movie=movie, slow=slow, when=np.arange(len(tiles)) * HELD * 0.05)
    return path


def built(path: Path, store: Path, **options: Any) -> Store:
    chosen = {"format": "spikes_npz", "counts": "counts", "orientation": "bins_by_units", "bin_s": 0.05, **options}
    split = {"by": "time", "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}}
    spec = validate(SourceSpec, {"name": "film", "domain": "spikes", "files": [{"path": str(path)}], "split": split,
                                 "missing": "mask", "licence": "CC0-1.0", "options": chosen}, where="test")
    return build(spec, str(store))


def bits(store: Store) -> float:
    """Per spike of the next bin on test, after a short training."""
    adapter = Binned.create({"floor": "smoothed", "slow_s": [0.2], "tasks": {"next": {"before": 4, "scored": 28}}})
    adapter = adapter.fit(store)
    torch.manual_seed(0)
    level = {"width": 16, "depth": 1, "mixers": ["local"], "head_width": 16}
    config = validate(OperatorConfig, {"stem_width": 16, "condition_width": 8, "levels": [level]}, where="test")
    predictor = Predictor(Operator(config, {"spikes": adapter.spec()}), {"spikes": adapter})
    windows, rng = adapter.open(store, "train", train=True), np.random.default_rng(0)
    batch = collate([adapter.encode(windows.draw(int(i), rng, rng)) for i in range(0, len(windows), 32)])
    optimizer = torch.optim.Adam(predictor.operator.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(predictor.operator(batch), batch).mean().backward()
        optimizer.step()
    return next(row.value for row in evaluate(predictor, store, "test").scores if row.metric == "bits_per_spike")


def test_frames_become_tiles_of_every_bin(tmp_path: Path) -> None:
    path = film(tmp_path / "film.npz")
    store = built(path, tmp_path / "a.zarr", frames=FRAMES)
    assert store.members("stimulus") == tuple(f"movie_y{i}_x{j}" for i in range(2) for j in range(3))
    with np.load(path) as held:
        movie, slow = held["movie"], held["slow"]
    np.testing.assert_allclose(store.read("stimulus_value", 0)[:, 5], movie[:, 4:, 4:].mean((1, 2)), atol=1e-6)
    timed = built(path, tmp_path / "b.zarr", frames={"slow": {"tiles": [2, 3], "unit": "1", "times": "when"}})
    np.testing.assert_allclose(timed.read("stimulus_value", 0)[:, 0], np.repeat(slow[:, 0, 0], HELD), atol=1e-6)


def test_a_driven_population_is_predicted_better_with_frames(tmp_path: Path) -> None:
    path = film(tmp_path / "film.npz")
    without, given = (built(path, tmp_path / f"{len(extra)}.zarr", **extra) for extra in ({}, {"frames": FRAMES}))
    assert bits(given) > bits(without) + 0.05


def test_a_rollout_follows_the_frames_it_is_given(tmp_path: Path) -> None:
    store = built(film(tmp_path / "film.npz"), tmp_path / "a.zarr", frames=FRAMES)
    adapter = Binned.create({"floor": "smoothed", "slow_s": [0.2], "tasks": {"next": {"before": 4, "scored": 28}}})
    start = adapter.fit(store).starts(store, "test")[0]
    state = adapter.fit(store).initial(start)
    assert state.extra["stimulus"].shape[1:] == (start.sizes["time"] - 4, 6)
    np.testing.assert_allclose(state.extra["stimulus"][0], start["stimulus_value"].values[4:], rtol=1e-6)


@pytest.mark.parametrize(("frames", "says"), [
    ({"movie": {"tiles": [3, 3]}}, "whole tiles"), ({"slow": {"tiles": [2, 3]}}, "one per bin"),
    ({"movie": {"tiles": 4}}, "tiles"), ({"counts": {"tiles": [1, 1]}}, "frame, y, x"),
    ({"slow": {"tiles": [2, 3], "times": "counts"}}, "a list")])
def test_frames_that_do_not_fit_are_refused(frames: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        built(film(tmp_path / "film.npz"), tmp_path / "a.zarr", frames=frames)
