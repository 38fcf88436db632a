"""The baseline and the residual scale of fields by wavenumber."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.fft import dct, dctn, idct, idctn

from sciml.domains.fields.adapter import Fields
from sciml.domains.fields.spectral import gains, wavenumbers
from sciml.errors import InputError
from sciml.tokens import Outputs, filter_wavenumbers

RNG = np.random.default_rng(0)


def pair(adapter: Fields, store: Any) -> xr.Dataset:
    return adapter.open(store, "train").draw(0, RNG, RNG)


@pytest.fixture(params=[True, False], ids=["ring", "ends"])
def store(wave_store: Any, request: pytest.FixtureRequest) -> Any:
    return wave_store((16, 12), periodic=request.param)


def test_wavenumbers_count_cycles_per_reference_length() -> None:
    shell = wavenumbers((8, 8), (1.0, 1.0))
    assert shell.shape == (8, 5)
    assert (shell[0, 0], shell[1, 0], shell[-1, 0], shell[0, 4], shell[3, 4]) == (0, 1, 1, 4, 5)
    assert wavenumbers((8,), (0.5,)).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_the_damped_baseline_misses_no_more_than_persistence(store: Any, power: float) -> None:
    adapter = Fields.create({"spectral": power}).fit(store)
    windows = adapter.open(store, "train")
    missed = np.zeros(2)
    for index in range(len(windows)):
        sample = windows.draw(index, RNG, RNG)
        for which, each in enumerate((adapter, adapter.floor())):
            target = each.encode(sample).targets["state"]
            missed[which] += float((target.value - target.baseline).square().mean())
    assert missed[0] <= missed[1] * (1 + 1e-6)


def test_a_white_output_of_unit_size_gets_the_size_of_what_is_missed(store: Any) -> None:
    adapter = Fields.create({"spectral": 0.5}).fit(store)
    windows, missed, drawn = adapter.open(store, "train"), [], []
    for index in range(len(windows)):
        target = adapter.encode(windows.draw(index, RNG, RNG)).targets["state"]
        missed.append(float((target.value - target.baseline).square().mean()))
        noise = torch.randn(400, *target.value.shape[1:], generator=torch.Generator().manual_seed(index))
        drawn.append(float((target.predict(noise) - target.baseline).square().mean()))
    assert np.mean(drawn) == pytest.approx(np.mean(missed), rel=0.1)


def test_the_same_function_on_another_grid_has_the_same_baseline(wave_store: Any) -> None:
    store = wave_store((16, 12))
    adapter = Fields.create({"spectral": 0.5}).fit(store)
    sample = pair(adapter, store).isel(time=[0])
    coarse = adapter.encode(sample).targets["state"]
    name = next(iter(adapter.datasets.values())).names[0]
    size = sample.sizes[name]
    names = [str(d) for d in sample[name].dims] + [d for d in adapter.datasets[store.meta.dataset].names if d != name]
    fine_coords = {d: (d, np.arange(2 * sample.sizes[d]) * float(sample[d][1] - sample[d][0]) / 2, sample[d].attrs)
                   for d in names}
    fine = xr.Dataset(attrs=sample.attrs, coords={**fine_coords, "time": sample["time"]})
    for variable, array in sample.data_vars.items():
        axes = [array.dims.index(d) for d in names if d in array.dims]
        values = array.values.astype(np.float64)
        for axis in axes:
            values = upsample(values, axis)
        fine[variable] = (array.dims, values, array.attrs)
    dense = adapter.encode(fine).targets["state"]
    common = dense.baseline[(slice(None), *[slice(None, None, 2)] * len(names))]
    assert size * 2 == dense.baseline.shape[1]
    assert torch.allclose(common, coarse.baseline, atol=1e-5)


def upsample(values: np.ndarray, axis: int) -> np.ndarray:
    """Twice the points of a band-limited periodic function; its Nyquist coefficient must be zero."""
    n = values.shape[axis]
    spectrum = np.fft.rfft(values, axis=axis)
    kept = np.take(spectrum, range(n // 2), axis=axis)
    assert np.abs(np.take(spectrum, n // 2, axis=axis)).max() < 1e-4 * np.abs(spectrum).max()
    return np.fft.irfft(kept, n=2 * n, axis=axis) * 2


def test_state_and_restore_keep_the_curves_and_the_floor_is_plain_persistence(store: Any) -> None:
    adapter = Fields.create({"spectral": 0.7}).fit(store)
    again = Fields.restore(*adapter.state())
    sample = pair(adapter, store)
    one, other = (each.encode(sample).targets["state"] for each in (adapter, again))
    noise = torch.randn(one.value.shape)
    assert torch.equal(one.predict(noise), other.predict(noise))
    floor = adapter.floor().encode(sample)
    assert torch.equal(floor.targets["state"].baseline, floor.values)


def test_a_step_is_differentiable_through_the_filter(store: Any) -> None:
    adapter = Fields.create({"spectral": 0.7}).fit(store)
    state = adapter.initial(pair(adapter, store))
    output = torch.zeros_like(state.batch.values, requires_grad=True)
    advanced = adapter.advance(adapter.advance(state, Outputs({"state": output})), Outputs({"state": output}))
    advanced.batch.values.square().sum().backward()
    assert output.grad is not None
    assert bool(torch.isfinite(output.grad).all())
    assert float(output.grad.abs().max()) > 0


def test_along_an_axis_with_ends_waves_are_cosines() -> None:
    """Beside scipy's cosine transforms, in float64, with its gradient; the other axis stays a ring."""
    x = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    rng = np.random.default_rng(1)
    both = rng.uniform(size=(6, 5))  # of cosine (k, l)
    gain = np.concatenate([both, 0 * both[:1], both[:0:-1]])  # k and 12 − k are one wave, 6 is none
    gain = np.concatenate([gain, 0 * gain[:, :1]], 1)  # half of the mirrored 10: 0 … 5
    own = filter_wavenumbers(x, torch.from_numpy(gain)[None, ..., None])
    plain = x.detach().numpy()
    assert np.allclose(own.detach().numpy(), idctn(dctn(plain, axes=(1, 2)) * both[..., None], axes=(1, 2)))
    half = rng.uniform(size=(6, 3))  # of cosine k along the first axis, wave l around the second
    rows = np.concatenate([half, 0 * half[:1], half[:0:-1]])
    mixed = filter_wavenumbers(x, torch.from_numpy(rows)[None, ..., None])
    around = np.fft.rfft(dct(plain, axis=1), axis=2) * half[..., None]
    assert np.allclose(mixed.detach().numpy(), idct(np.fft.irfft(around, n=5, axis=2), axis=1))
    again = filter_wavenumbers(own.detach(), torch.from_numpy(gain)[None, ..., None])
    (gradient,) = torch.autograd.grad((own * own.detach()).sum(), x)
    assert torch.allclose(gradient, again)  # the filter is its own adjoint


def test_a_cosine_on_another_grid_gets_the_same_gain() -> None:
    curve = np.stack([np.linspace(1, 0, 9), np.linspace(2, 1, 9), 1.0 + np.arange(9)])
    found = []
    for n in (12, 24):
        damping, _ = gains(curve, [2 * n], [2.0], 0.5)
        places = (np.arange(n) + 0.5) / n
        waves = np.stack([np.cos(np.pi * k * places) for k in (0, 1, 3, 8)], -1)[None]
        filtered = filter_wavenumbers(torch.from_numpy(waves), torch.from_numpy(damping)[None, :, None]).numpy()
        found.append((filtered * waves).sum((0, 1)) / (waves**2).sum((0, 1)))
    assert np.allclose(found[0], curve[0][[0, 1, 2, 4]])  # half a wave goes up
    assert np.allclose(found[0], found[1])


def test_an_uneven_grid_has_no_wavenumbers(wave_store: Any) -> None:
    store = wave_store((16, 12), periodic=False)
    adapter = Fields.create({"spectral": 0.5}).fit(store)
    sample = pair(adapter, store).isel(time=[0])
    moved = sample["x"].values.copy()
    moved[3] += 0.02
    with pytest.raises(InputError, match=r"x.*spacings from 0\.105 to 0\.145"):
        adapter.initial(sample.assign_coords(x=("x", moved, sample["x"].attrs)))


def test_a_ring_whose_end_is_not_a_spacing_away_has_none(wave_store: Any) -> None:
    store = wave_store((16, 12), periodic=True)
    adapter = Fields.create({"spectral": 0.5}).fit(store)
    sample = pair(adapter, store).isel(time=[0])
    place = sample["x"].values.copy()
    spacing = float(np.diff(place).mean())
    with pytest.raises(InputError, match=rf"x.*spacings from {spacing:.4g} to {2 * spacing:.4g}"):
        adapter.initial(sample.isel(x=slice(0, -1)))
