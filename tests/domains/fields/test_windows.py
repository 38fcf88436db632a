"""Windows of fields: what is drawn, how it is shifted, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sciml.domains.fields.adapter import Fields
from sciml.errors import InputError

RNG = np.random.default_rng
Make = Callable[..., Any]


def test_pairs_stay_inside_their_blocks(wave_store: Make) -> None:
    store = wave_store((8, 8))
    windows = Fields.create({}).open(store, "train")
    drawn = [windows.draw(i, RNG(0), RNG(0)) for i in range(len(windows))]
    assert len(drawn) == 2 * 7
    assert {s.attrs["source"] for s in drawn} == {f"waves/trajectory {g} @ {t}" for g in (0, 1) for t in range(7)}
    for index, sample in enumerate(drawn):
        group, t = divmod(index, 7)
        np.testing.assert_array_equal(sample["u"].values, store.read("u", group, t, t + 2))
        assert sample["time"].values.tolist() == [0.5 * t, 0.5 * (t + 1)]
        assert float(sample["nu"]) == 10.0 ** -(group + 1)


def test_a_part_in_which_no_state_follows_another_is_refused(wave_store: Make) -> None:
    store = wave_store((8, 8))
    with pytest.raises(InputError, match=r"\[splits\]: found a part with less time than a lead; expected 2 states"):
        Fields.create({"leads": [8, 12]}).open(store, "train").draw(0, RNG(0), RNG(0))
    assert len(Fields.create({"leads": [7, 12]}).open(store, "train")) == 2


def test_training_draws_repeat_with_their_key_and_differ_between_keys(wave_store: Make) -> None:
    windows = Fields.create({}).open(wave_store((8, 8)), "train", train=True)
    one, same, other = (windows.draw(3, RNG(seed), RNG(0)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["u"], same["u"])
    assert not np.array_equal(one["u"], other["u"])


def test_a_shift_moves_state_truth_and_forcing_together(wave_store: Make) -> None:
    store = wave_store((8, 12))
    adapter = Fields.create({}).fit(store)
    plain = adapter.open(store, "train").draw(3, RNG(0), RNG(0))
    rng = RNG(5)
    shift = (int(rng.integers(8)), int(rng.integers(12)))
    assert shift != (0, 0)
    shifted = adapter.open(store, "train", train=True).draw(3, _skip_lead(RNG(5)), RNG(0))
    one, other = adapter.encode(plain), adapter.encode(shifted)
    torch.testing.assert_close(one.values.roll(shift, (1, 2)), other.values)
    target = one.targets["state"].value.roll(shift, (1, 2))
    torch.testing.assert_close(target, other.targets["state"].value)
    force = one.conditions.lattice["fields/force"].roll(shift, (1, 2))
    torch.testing.assert_close(force, other.conditions.lattice["fields/force"])
    torch.testing.assert_close(one.axes[0].coord, other.axes[0].coord)


class _skip_lead:
    """The generator of a shift: the first draw of a window is its lead, of which there is one."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.drawn = rng, 0

    def integers(self, high: int) -> int:
        self.drawn += 1
        return 0 if self.drawn == 1 else int(self.rng.integers(high))


def test_walls_and_switched_off_augmentation_are_not_shifted(wave_store: Make) -> None:
    walls = wave_store((8, 8), periodic=False)
    for config, store in (({}, walls), ({"augment": []}, wave_store((8, 8, 4)))):
        windows = Fields.create(config).open(store, "train", train=True)
        np.testing.assert_array_equal(windows.draw(0, RNG(1), RNG(0))["u"].values, store.read("u", 0, 0, 2))


def test_drawing_a_sample_is_cheap(wave_store: Make) -> None:
    store = wave_store((64, 64))
    adapter = Fields.create({}).fit(store)
    windows = adapter.open(store, "train", train=True)
    durations = []
    for index in range(60):
        start = time.process_time()
        windows.draw(index % len(windows), RNG(index), RNG(0))
        durations.append(time.process_time() - start)
    assert np.median(durations) < 3e-3
