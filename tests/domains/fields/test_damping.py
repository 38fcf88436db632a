"""Damped persistence as the baseline of fields: `sciml.domains.fields.damping`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.data.schema import AxisMeta, Variable
from sciml.data.store import Store
from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.damping import at
from sciml.packing import collate
from tests.domains.fields.stores import put

SHARE, DT, FRAMES, CELLS, WALL = 0.8, 0.5, 60, 8, 6


def noisy(folder: Path, name: str = "noisy") -> Store:
    """Independent cells that forget: x′(t + 1) = ρ x′(t) + √(1 − ρ²) noise about a parabola between walls."""
    rng = np.random.default_rng(0)
    y = np.linspace(0.0, 1.0, WALL)
    mean = 3 * y * (1 - y) + 1
    state = rng.normal(size=(6, CELLS, WALL))
    frames = []
    for _ in range(FRAMES):
        frames.append(mean + 0.2 * state)
        state = SHARE * state + np.sqrt(1 - SHARE**2) * rng.normal(size=state.shape)
    data = {"u": (("trajectory", "time", "x", "y"), np.stack(frames, 1).astype(np.float32))}
    coords = {"time": DT * np.arange(FRAMES), "x": np.arange(CELLS) / CELLS, "y": y}
    axes = {"time": AxisMeta(kind="time", unit="s"), "x": AxisMeta(kind="space", unit="m", period=1.0),
            "y": AxisMeta(kind="space", unit="m")}
    return put(folder, data, coords, {"u": Variable(role="state", unit="m/s", dims=("time", "x", "y"))}, axes, dt=DT,
               frames=FRAMES, dataset=name)


def fitted(store: Store, **config: Any) -> Fields:
    return Fields.create({"damped": True, "patch": 2, **config}).fit(store)


def pair(adapter: Fields, store: Store) -> Any:
    windows = adapter.open(store, "test")
    return collate([adapter.encode(windows.draw(3, *(np.random.default_rng(0) for _ in range(2))))])


def test_the_share_that_is_left_and_the_size_of_the_rest_are_those_of_the_process(tmp_path: Path) -> None:
    """ρⁿ after n steps, and √(1 − ρ²ⁿ) of the deviations, which here are .2 m/s about the parabola."""
    store = noisy(tmp_path)
    adapter = fitted(store, leads=[1, 2])
    scale, curve = adapter.datasets["noisy"].states["u"].scale, adapter.damping["noisy"]["u"]
    np.testing.assert_allclose(curve[0], [DT, 2 * DT])
    np.testing.assert_allclose(curve[1], [SHARE, SHARE**2], atol=0.02)
    expected = 0.2 / scale * np.sqrt(1 - np.array([SHARE, SHARE**2]) ** 2)
    np.testing.assert_allclose(curve[2], expected, rtol=0.03)
    profile = adapter.means["noisy"]["u"].profile
    assert profile.shape == (1, WALL)


def test_the_baseline_is_the_mean_and_a_share_of_the_deviation(tmp_path: Path) -> None:
    store = noisy(tmp_path)
    adapter = fitted(store)
    batch = pair(adapter, store)
    target, known = batch.targets["state"], adapter.damping["noisy"]["u"]
    share, missed = at(known, DT)
    mean = torch.as_tensor(adapter.means["noisy"]["u"].profile, dtype=torch.float32)[None, ..., None]
    torch.testing.assert_close(target.baseline, mean + share * (batch.values - mean))
    assert target.scale.flatten().tolist() == pytest.approx([missed])
    plain = pair(adapter.floor(), store).targets["state"]
    torch.testing.assert_close(plain.baseline, batch.values)  # what all are compared with stays persistence
    error = [float((t.value - t.baseline).square().mean()) for t in (target, plain)]
    assert error[0] < error[1]


def test_a_rollout_that_says_nothing_ends_at_the_mean_instead_of_where_it_began(tmp_path: Path) -> None:
    store = noisy(tmp_path)
    adapter = fitted(store)
    batch = pair(adapter, store)
    for _ in range(60):
        batch = adapter.restated(batch, batch.targets["state"].baseline)
    mean = torch.as_tensor(adapter.means["noisy"]["u"].profile, dtype=torch.float32)[None, ..., None]
    torch.testing.assert_close(batch.values, mean.expand_as(batch.values), atol=1e-4, rtol=0)


def test_a_checkpoint_keeps_it_and_another_recipe_can_leave_it_out(tmp_path: Path) -> None:
    store = noisy(tmp_path)
    adapter = fitted(store)
    again = Fields.restore(*adapter.state())
    for one in (again, again.fit(store)):
        torch.testing.assert_close(pair(one, store).targets["state"].baseline,
                                   pair(adapter, store).targets["state"].baseline)
    plain = again.reconfigured({"patch": 2})
    assert not plain.damping
    batch = pair(plain, store)
    torch.testing.assert_close(batch.targets["state"].baseline, batch.values)
    later = plain.reconfigured({"patch": 2, "damped": True}).fit(store)
    assert set(later.damping) == {"noisy"}


def test_each_data_set_has_its_own(tmp_path: Path) -> None:
    one, two = noisy(tmp_path), noisy(tmp_path, "other")
    adapter = fitted(one).fit(two)
    assert set(adapter.damping) == {"noisy", "other"}
    assert set(Fields.restore(*adapter.state()).damping) == {"noisy", "other"}


def test_cells_that_are_missing_do_not_count(tmp_path: Path) -> None:
    """A hole in the training data changes neither mean nor share beyond its noise, and nothing becomes NaN."""
    whole = noisy(tmp_path)
    data = whole.dataset().load()
    data["u"][:, ::3, :2] = np.nan
    store = put(tmp_path, {"u": (("trajectory", "time", "x", "y"), data["u"].values)}, dict(data.coords),
                whole.meta.variables, whole.meta.axes, dt=DT, frames=FRAMES, dataset="holes")
    adapter = fitted(store)
    curve = adapter.damping["holes"]["u"]
    assert np.isfinite(curve).all()
    assert curve[1, 0] == pytest.approx(SHARE, abs=0.03)
    assert bool(torch.isfinite(pair(adapter, store).targets["state"].baseline).all())
