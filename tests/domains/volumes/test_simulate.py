"""Simulated measurements: as random as they say, with the noise they say, and never made by the model that undoes
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.domains.volumes import simulate
from sciml.domains.volumes.simulate import Measured
from sciml.errors import InputError
from sciml.observations.contract import Observation, gradient, make

KINDS: dict[str, Callable[..., Measured]] = {
    "noisy": lambda v, rng: simulate.noisy(v, rng, noise=0.05),
    "blurred": lambda v, rng: simulate.blurred(v, rng, width_cells=(1.0, 0.5, 0.0), noise=0.01),
    "scanned": lambda v, rng: simulate.scanned(v, rng),
    "single coil": lambda v, rng: simulate.scanned(v, rng, coils=1),
    "lines": lambda v, rng: simulate.scanned(v, rng, lines=0, centre=0.1),
    "projected": lambda v, rng: simulate.projected(v, rng, angles=12, photons=1e4)}


def volume() -> np.ndarray:
    """A ball with a hole in a box, of attenuation per voxel."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 24, 10)], indexing="ij")
    inside = (x**2 + y**2 + z**2 < 0.7) & ~((x - 0.3) ** 2 + y**2 < 0.04)
    return 0.02 * inside + 0.005


def observation_of(measured: Measured) -> Observation:
    return make(measured.observation, measured.options,
                {name: torch.from_numpy(value)[None] for name, value in measured.tensors.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides_everything(kind: str) -> None:
    """The same seed gives the same, another another; what is simulated says so; the volume is left as it was."""
    given_volume = volume()
    first, again, other = (KINDS[kind](given_volume, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first.measurement, again.measurement)
    assert not np.array_equal(first.measurement, other.measurement)
    assert all(np.array_equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert len(first.attrs["simulated"]) > 10
    assert np.array_equal(given_volume, volume())


@pytest.mark.parametrize("kind", KINDS)
def test_the_observation_explains_the_measurement_but_not_exactly(kind: str) -> None:
    """A x ≈ y for the truth x with a gap beyond the arithmetic (no inverse crime); measurements fit the observation."""
    measured = KINDS[kind](volume(), np.random.default_rng(0))
    observation, y = observation_of(measured), torch.from_numpy(measured.measurement)[None]
    explained = observation.forward(torch.from_numpy(measured.truth)[None])
    assert explained.shape == y.shape
    gap = float((explained - y).abs().square().sum().sqrt() / y.abs().square().sum().sqrt())
    assert 1e-3 < gap < 0.15
    assert np.allclose(np.abs(measured.truth), volume())
    start = observation.adjoint(y)
    assert torch.isfinite(gradient(observation, start, y).abs()).all()


@pytest.mark.parametrize("kind", ["scanned", "projected"])
def test_model_error_is_not_noise(kind: str) -> None:
    """Without noise there is still a gap: coils with calibration errors, a finer grid; without these errors there is
    none."""
    options: dict[str, Any] = {"noise": 0.0} if kind == "scanned" else {"angles": 12, "photons": 1e13}
    exact: dict[str, Any] = {"calibration": 0.0} if kind == "scanned" else {"finer": 1}
    gaps = []
    for more in ({}, exact):
        measured = getattr(simulate, kind)(volume(), np.random.default_rng(0), **options, **more)
        y = torch.from_numpy(measured.measurement)[None]
        gap = observation_of(measured).forward(torch.from_numpy(measured.truth)[None]) - y
        gaps.append(float(gap.abs().max() / y.abs().max()))
    assert gaps[0] > 1e-3
    assert gaps[1] < 1e-5


def test_rician_noise_has_its_moments() -> None:
    """E m² = x² + 2 σ² (Gudbjartsson & Patz), and the mean where nothing is, σ √(π / 2)."""
    flat = np.concatenate([np.ones((40, 40, 20)), np.zeros((40, 40, 20))], -1)
    seen = simulate.noisy(flat, np.random.default_rng(0), noise=0.1).measurement
    for part, size in ((seen[..., :20], 1.0), (seen[..., 20:], 0.0)):
        assert np.mean(part**2) == pytest.approx(size**2 + 0.02, abs=2e-3)
    assert seen[..., 20:].mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)
    assert simulate.noisy(flat, np.random.default_rng(0), noise=0.1, rician=False).measurement.min() < 0


def test_scale_of_a_volume_changes_nothing() -> None:
    """Noise is relative to the volume, whose numbers may be 10⁵ times as large."""
    for kind in ("noisy", "scanned"):
        small, large = (KINDS[kind](v, np.random.default_rng(0)).measurement for v in (volume(), 1e5 * volume()))
        assert np.allclose(large, 1e5 * small)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.just(1), st.integers(16, 40), st.integers(16, 40)), acceleration=st.floats(2, 8),
       seed=st.integers(0, 99))
def test_masks_sample_what_they_say(shape: tuple[int, ...], acceleration: float, seed: int) -> None:
    mask, middle = simulate.variable_density(shape, np.random.default_rng(seed), acceleration=acceleration)
    assert mask.shape == shape
    assert mask.sum() == round(mask.size / acceleration)
    assert mask[middle].all()
    assert middle[0, 0, 0]
    far = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[1]), np.fft.fftfreq(shape[2]), indexing="ij"))[None]
    assert far[mask].mean() < far.mean()


def test_a_scan_leaves_out_lines_or_points_and_reads_one_axis_whole() -> None:
    points = simulate.scanned(volume(), np.random.default_rng(0), readout=2)
    assert points.tensors["mask"].shape == (20, 24, 1)
    assert points.measurement.shape == points.tensors["coils"].shape == (4, 20, 24, 10)
    lines = simulate.scanned(volume(), np.random.default_rng(0), lines=1, coils=1, centre=0.1)
    assert lines.tensors["mask"].shape == (1, 24, 1)
    assert lines.tensors["mask"].mean() == pytest.approx(0.25)
    assert np.abs(lines.measurement[:, lines.tensors["mask"][0, :, 0] == 0]).max() == 0


def test_coils_and_phase_are_smooth() -> None:
    """Σ |coil|² = 1; neighbouring voxels differ little against the range of the whole."""
    maps = simulate.coil_maps((20, 24, 10), 4, np.random.default_rng(0))
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1)
    phase = simulate.smooth((60, 60), np.random.default_rng(0))
    assert np.abs(np.diff(phase, axis=0)).max() < 0.15 * np.ptp(phase)
    assert 0.3 < phase.std() < 2


def test_hounsfield_units() -> None:
    hounsfield = np.array([-1000.0, 0.0, 500.0])
    assert np.allclose(simulate.hounsfield_of(simulate.attenuation_of(hounsfield)), hounsfield)


@pytest.mark.parametrize(("wrong", "key"), [
    (lambda rng: simulate.projected(volume() - 1, rng, angles=3), "projected"),
    (lambda rng: simulate.scanned(volume()[0, 0], rng), "scanned"),
    (lambda rng: simulate.variable_density((1, 9, 9), rng, acceleration=9.0, centre=0.5), "centre")])
def test_impossible_requests_are_refused(wrong: Callable[[np.random.Generator], object], key: str) -> None:
    with pytest.raises(InputError) as error:
        wrong(np.random.default_rng(0))
    assert error.value.key == key
