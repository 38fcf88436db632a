"""The Kuramoto–Sivashinsky equation against its linear theory, its budget and its known equilibria."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sciml.data.builders import kuramoto_sivashinsky as ks
from sciml.errors import InputError


def start(n: int, length: float, count: int = 1, amplitude: float = 1.0) -> torch.Tensor:
    options = ks.Options(resolution=n, length=length)
    return amplitude * torch.from_numpy(np.stack([ks.initial(options, i) for i in range(count)]))[..., None]


@pytest.fixture(scope="module")
def turbulent() -> torch.Tensor:
    """Four states on the attractor of length 60, ``(4, 128, 1)``."""
    return ks.step(start(128, 60.0, 4), 120.0, length=60.0, max_step=0.25)


@pytest.mark.parametrize("nu", [1.0, 0.5])
def test_small_waves_grow_as_linear_theory_says(nu: float) -> None:
    length, x = 40.0, torch.arange(64) / 64
    for m in (1, 3, 5, 8):
        k = 2 * np.pi * m / length
        first = 1e-9 * torch.cos(2 * np.pi * m * x.double())[None, :, None]
        later = ks.step(first, 4.0, hyperviscosity=nu, length=length)
        torch.testing.assert_close(later, first * np.exp(4 * (k**2 - nu * k**4)), atol=1e-15, rtol=0)


@pytest.mark.parametrize(("length", "energy"), [(22 / 3, 1.5876), (22 / 2, 0.4382)])
def test_short_fronts_settle_in_the_known_equilibria(length: float, energy: float) -> None:
    """One third and one half of the equilibria E3 and E2 of length 22: their energies ½⟨u²⟩ in Cvitanović, Davidchack
    and Siminos, SIAM J. Appl. Dyn. Syst. 9 (2010)."""
    made = ks.step(start(32, length, 2), 600.0, length=length, max_step=0.5)
    np.testing.assert_allclose((made**2).mean((1, 2)) / 2, energy, atol=6e-5)
    torch.testing.assert_close(ks.step(made, 5.0, length=length, max_step=0.5), made, atol=1e-6, rtol=0)


def test_steps_in_time_converge_towards_fourth_order(turbulent: torch.Tensor) -> None:
    """Stiffness lowers the order of the scheme at long steps (Hochbruck and Ostermann 2005)."""
    exact = ks.step(turbulent, 0.5, length=60.0, max_step=1 / 256)
    errors = [(ks.step(turbulent, 0.5, length=60.0, max_step=h) - exact).abs().max().item()
              for h in (1 / 8, 1 / 16, 1 / 32, 1 / 64)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 2.8).all()
    assert 3.5 < orders[-1] < 4.5
    assert errors[0] < 3e-4


def test_refining_the_grid_converges_faster_than_any_low_order(turbulent: torch.Tensor) -> None:
    from sciml.data.builders._spectral import resample

    waves = torch.from_numpy(resample(turbulent[:, :, 0].numpy(), 64, 1))
    made = []
    for n in (64, 96, 192):
        first = torch.from_numpy(resample(waves.numpy(), n, 1))[..., None]
        made.append(resample(ks.step(first, 1.0, length=60.0)[..., 0].numpy(), 64, 1))
    errors = [np.abs(one - made[-1]).max() for one in made[:2]]
    assert errors[1] < 1e-3
    assert errors[0] > 1.5**8 * errors[1]


def test_the_mean_is_conserved_and_energy_follows_its_budget(turbulent: torch.Tensor) -> None:
    """d/dt ½⟨u²⟩ = ⟨u_x²⟩ − ν⟨u_xx²⟩."""
    frames = [turbulent + 0.3]
    for _ in range(2):
        frames.append(ks.step(frames[-1], 1e-3, length=60.0))
    u = torch.stack(frames)[..., 0].numpy()
    np.testing.assert_allclose(u.mean(-1), u[0].mean(-1)[None].repeat(3, 0), atol=1e-13)
    k = 2 * np.pi / 60 * np.arange(65)
    modes = np.fft.rfft(u[1])
    gain = (np.fft.irfft(1j * k * modes) ** 2).mean(-1) - (np.fft.irfft(k**2 * modes) ** 2).mean(-1)
    change = ((u[2] ** 2).mean(-1) - (u[0] ** 2).mean(-1)) / 2 / 2e-3
    np.testing.assert_allclose(change, gain, atol=1e-4)


def test_galilei_and_mirror(turbulent: torch.Tensor) -> None:
    later = ks.step(turbulent, 1.0, length=60.0)
    moved = ks.step(turbulent + 60 / 16, 1.0, length=60.0, max_step=0.05) - 60 / 16
    torch.testing.assert_close(moved, later.roll(128 // 16, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(-ks.step(-turbulent.flip(1), 1.0, length=60.0).flip(1), later, atol=1e-10, rtol=0)


def test_the_attractor_has_its_known_energy_and_spectrum(turbulent: torch.Tensor) -> None:
    """⟨u²⟩ is about 1.7 in long domains; the spectrum is flat at long waves, peaks near k = 0.7 to 0.9 and falls
    exponentially beyond."""
    now, square, power = turbulent, [], np.zeros(65)
    for _ in range(60):
        now = ks.step(now, 4.0, length=60.0, max_step=0.25)
        square.append(float((now**2).mean()))
        power += (np.abs(np.fft.rfft(now[..., 0].numpy())) ** 2).mean(0)
    assert np.mean(square) == pytest.approx(1.72, abs=0.15)
    assert 0.6 < 2 * np.pi / 60 * np.argmax(power) < 0.95
    assert power[40] < 1e-6 * power.max()


def test_nearby_states_part_at_the_lyapunov_rate(turbulent: torch.Tensor) -> None:
    """0.09 for length 60 (Edson, Bunder, Mattner and Roberts, ANZIAM J. 61 (2019))."""
    rng = np.random.default_rng(0)
    near, far, growth = turbulent, turbulent + 1e-7 * torch.from_numpy(rng.standard_normal(turbulent.shape)), []
    for _ in range(50):
        near, far = (ks.step(u, 4.0, length=60.0, max_step=0.25) for u in (near, far))
        gap = (far - near).square().mean((1, 2), keepdim=True).sqrt()
        growth.append(torch.log(gap / 1e-7).flatten())
        far = near + (far - near) * 1e-7 / gap
    rate = float(torch.stack(growth)[5:].mean()) / 4
    assert rate == pytest.approx(0.09, abs=0.02)


def test_the_step_is_differentiable_and_keeps_its_type() -> None:
    first = start(16, 20.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: ks.step(u, 0.2, length=20.0, hyperviscosity=0.8), (first,))
    both = ks.step(start(64, 20.0, 2).float(), 0.5, length=20.0, hyperviscosity=torch.tensor([1.0, 0.6]))
    assert both.dtype == torch.float32
    alone = ks.step(start(64, 20.0, 2)[1:], 0.5, length=20.0, hyperviscosity=0.6)
    torch.testing.assert_close(both[1:].double(), alone, atol=1e-4, rtol=0)


def test_the_dataset_is_canonical() -> None:
    made = ks.build({"trajectories": 3, "frames": 2, "resolution": 16, "length": 10.0, "spin_up": 1.0,
                     "hyperviscosity": [1.0, 0.5]})
    assert dict(made.sizes) == {"trajectory": 3, "time": 2, "x": 16}
    assert made["x"].attrs == {"units": "1", "period": 10.0}
    assert made["hyperviscosity"].values.tolist() == [1.0, 0.5, 1.0]
    assert {str(n): v.attrs["role"] for n, v in made.data_vars.items()} == {
        "u": "state", "hyperviscosity": "parameter"}
    assert (made["u"].attrs["vector"], made["u"].attrs["along"]) == ("slope", "x")


@pytest.mark.parametrize("wrong", [{"hyperviscosity": 0}, {"hyperviscosity": ()}, {"length": -1}, {"resolution": 17}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="kuramoto_sivashinsky options"):
        ks.build(wrong)
