"""Semilinear equations in one dimension against linear theory, a soliton, an energy, and a neighbour's solver."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml import registry
from sciml.data import check
from sciml.data.build import BUILDERS, build
from sciml.data.builders import _spectral, semilinear
from sciml.data.builders import kuramoto_sivashinsky as ks
from sciml.data.source import SourceSpec, read_source
from sciml.errors import InputError

FOLDER = Path(__file__).parent.parent.parent / "datasets" / "semilinear"
SMALL: dict[str, Any] = {"resolution": 16, "solve_resolution": 32, "frames": 3, "length": 12.0, "spin_up": 2.0,
                         "linear": {2: -1.0, 3: [-0.3, 0.2], 4: -1.0}, "convection": 1.0}


def start(n: int, count: int = 1, **given: Any) -> torch.Tensor:
    options = semilinear.Options(linear={2: 1.0}, resolution=n, solve_resolution=None, **given)
    return torch.from_numpy(np.stack([semilinear.initial(options, i) for i in range(count)]))[..., None]


def values(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    options = semilinear.Options(**given)
    return {name: torch.from_numpy(v)
            for name, v in semilinear.coefficients(options, 0, options.trajectories).items()}


def test_small_waves_grow_and_move_at_the_exact_complex_rates() -> None:
    """All seven derivatives, two sets of them in one batch: ``e^{ikx}`` becomes ``e^{ikx + t Σ a_j (ik)^j}``."""
    rows = ((0.3, 0.7, 0.2, -0.4, -0.1, 0.05, 0.02), (-0.1, -1.3, -0.5, 0.9, -0.2, -0.03, 0.0))
    given = {f"linear_{j}": torch.tensor(pair, dtype=torch.float64) for j, pair in enumerate(zip(*rows))}
    length, time, x = 20.0, 1.7, np.arange(64) / 64 * 20.0
    for m in (0, 1, 3, 7):
        k = 2 * np.pi * m / length
        first = torch.from_numpy(1e-9 * np.cos(k * x + 0.4))[None, :, None].expand(2, -1, -1)
        later = semilinear.step(first, time, length=length, convection=1.0, cubic=1.0, max_step=0.1, **given)
        for i, row in enumerate(rows):
            rate = sum(a * (1j * k) ** j for j, a in enumerate(row))
            exact = 1e-9 * np.exp(1j * (k * x + 0.4) + time * rate).real
            np.testing.assert_allclose(later[i, :, 0], exact, atol=1e-15)


def test_coefficients_of_a_step_are_right_for_small_and_large_eigenvalues() -> None:
    """Beside those of the real scheme, and beside power series where they are complex and small."""
    real = -torch.tensor([0.0, 1e-3, 0.3, 0.99, 1.01, 7.0, 300.0], dtype=torch.float64)
    made = _spectral.Exponential
    ours, theirs = made.of_complex(real + 0j, 0.5), made.of(real, 0.5)
    for name in ("full", "half", "inner", "first", "middle", "last"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name) + 0j, atol=1e-13, rtol=1e-11)
    z = torch.polar(torch.tensor([0.5, 0.999, 1.001, 1.5]).double(), torch.tensor([2.9, 1.6, -1.5, 1.5]).double())
    second, third = (sum(z**n / float(math.factorial(n + lift)) for n in range(40)) for lift in (2, 3))
    made = _spectral.Exponential.of_complex(z, 1.0, torch.complex128)
    torch.testing.assert_close(made.middle, second - 2 * third, atol=1e-14, rtol=0)
    torch.testing.assert_close(made.last, 4 * third - second, atol=1e-14, rtol=0)


def soliton(n: int, time: float, *, speed: float = 1.0, length: float = 48.0) -> torch.Tensor:
    """``c/2 sech²(√c (x − ct) / 2)``, which solves ``u_t + 6 u u_x + u_xxx = 0``."""
    x = (torch.arange(n).double() * length / n - speed * time) % length - length / 2
    return (speed / 2 / torch.cosh(0.5 * speed**0.5 * x) ** 2)[None, :, None]


def test_a_soliton_keeps_its_shape_and_speed() -> None:
    made = semilinear.step(soliton(192, 0.0), 10.0, length=48.0, linear_3=-1.0, convection=6.0, max_step=0.01)
    torch.testing.assert_close(made, soliton(192, 10.0), atol=2e-8, rtol=0)


@pytest.mark.parametrize("given", [
    {"linear_3": -1.0, "convection": 6.0}, {"linear_0": -0.5, "linear_2": 1.0, "cubic": -1.0, "quadratic": 0.7},
    {"linear_2": 0.5, "linear_3": 0.3, "gradient_norm": 1.5, "convection": 0.5, "quadratic": -0.2, "cubic": -0.4}])
def test_steps_in_time_converge_at_fourth_order(given: dict[str, float]) -> None:
    first = start(32, 2, length=20.0, harmonics=3, amplitude=0.5)

    def made(h: float) -> torch.Tensor:
        return semilinear.step(first, 1.0, length=20.0, max_step=h, **given)

    exact = made(1 / 256)
    errors = [float((made(h) - exact).abs().max()) for h in (1 / 16, 1 / 32, 1 / 64)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[0] > 1e-9
    assert (orders > 3.5).all()
    assert (orders < 4.7).all()


def test_the_nonlinear_terms_are_those_of_the_equation() -> None:
    """The change in a short time beside derivatives by hand, of a field whose products the grid holds."""
    x = np.arange(32) / 32 * 2 * np.pi
    u, slope = 0.4 + np.sin(x) - 0.5 * np.cos(2 * x), np.cos(x) + np.sin(2 * x)
    b, g, q, c, h = 0.7, 1.3, -0.6, 0.9, 1e-4
    first = torch.from_numpy(u)[None, :, None]
    ahead, behind = (semilinear.step(first, time, length=2 * np.pi, convection=b, gradient_norm=g, quadratic=q, cubic=c)
                     for time in (h, -h))
    exact = -b * u * slope - g / 2 * slope**2 + q * u**2 + c * u**3
    np.testing.assert_allclose((ahead - behind)[0, :, 0] / (2 * h), exact, atol=1e-6)


def test_it_is_the_solver_of_kuramoto_sivashinsky_for_that_equation() -> None:
    first = start(64, 2, length=30.0)
    given: dict[str, Any] = {"length": 30.0, "max_step": 0.125, "refine": 2}
    ours = semilinear.step(first, 3.0, linear_2=-1.0, linear_4=-1.0, convection=1.0, **given)
    torch.testing.assert_close(ours, ks.step(first, 3.0, **given), atol=1e-10, rtol=0)
    same: dict[str, Any] = {"trajectories": 2, "frames": 3, "spin_up": 5.0, "length": 30.0, "resolution": 64}
    made = semilinear.build({**same, "solve_resolution": None, "linear": {2: -1, 4: -1}, "convection": 1})
    np.testing.assert_allclose(made["u"], ks.build(same)["u"], atol=1e-6)


def test_the_mean_is_conserved_by_derivatives_and_convection_and_the_energy_by_dispersion() -> None:
    first = 0.3 + start(64, 2, length=30.0, amplitude=0.5)
    later = semilinear.step(first, 2.0, length=30.0, linear_2=-1.0, linear_3=0.4, linear_4=-1.0, convection=1.5)
    torch.testing.assert_close(later.mean(1), first.mean(1), atol=1e-13, rtol=0)
    assert float((later - first).abs().max()) > 0.1
    turned = semilinear.step(first, 2.0, length=30.0, linear_3=-1.0, convection=1.5, max_step=0.01)
    torch.testing.assert_close((turned**2).mean(1), (first**2).mean(1), atol=1e-7, rtol=0)


def test_the_energy_of_swift_and_hohenberg_never_grows() -> None:
    """``∫ ½ ((1 + ∂²) u)² − ½ r u² − q/3 u³ + ¼ u⁴``, whose gradient flow the equation is."""
    r, q, length, n = 0.6, 0.8, 40.0, 128
    now, energies = start(n, 3, length=length, amplitude=0.5), []
    square = (2 * np.pi / length * np.arange(n // 2 + 1)) ** 2
    for _ in range(25):
        u = now[..., 0].numpy()
        bent = np.fft.irfft((1 - square) * np.fft.rfft(u), n)
        energies.append((bent**2 / 2 - r * u**2 / 2 - q * u**3 / 3 + u**4 / 4).mean(-1))
        now = semilinear.step(now, 0.5, length=length, linear_0=r - 1, linear_2=-2.0, linear_4=-1.0, quadratic=q,
                              cubic=-1.0)
    changes = np.diff(energies, axis=0)
    assert (changes < 1e-12).all()
    assert (energies[-1] < -0.05).all()


def test_a_mirror_image_is_solved_alike() -> None:
    """What the attributes `vector` say: with convection ``−u(−x)``, and odd coefficients, q and g change signs."""
    first = start(32, length=20.0, amplitude=0.5)
    even, odd = {"linear_2": 1.0, "convection": 0.8, "cubic": -0.5}, {"linear_1": 0.3, "linear_3": -0.4,
                                                                    "gradient_norm": 0.9, "quadratic": -0.2}
    later = semilinear.step(first, 1.0, length=20.0, **even, **odd)
    mirrored = first.flip(1).roll(1, 1)
    other = semilinear.step(-mirrored, 1.0, length=20.0, **even, **{name: -a for name, a in odd.items()})
    torch.testing.assert_close(-other.flip(1).roll(1, 1), later, atol=1e-12, rtol=0)


def test_the_step_is_differentiable_and_keeps_its_type() -> None:
    given = {"linear_0": -0.3, "linear_2": 0.5, "linear_3": -0.5, "convection": 1.0, "cubic": -0.5, "quadratic": 0.3,
             "gradient_norm": 0.2}
    first = start(16, length=20.0, harmonics=2).requires_grad_()
    rate = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda u, a: semilinear.step(u, 0.2, length=20.0, **{**given, "linear_3": a}), (first, rate))
    both = semilinear.step(start(32, 2, length=20.0).float(), 0.5, length=20.0, **{
        **given, "cubic": torch.tensor([-0.5, 0.0])})
    assert both.dtype == torch.float32
    alone = semilinear.step(start(32, 2, length=20.0)[1:], 0.5, length=20.0, **{**given, "cubic": 0.0})
    torch.testing.assert_close(both[1:].double(), alone, atol=1e-4, rtol=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'viscosity'"):
        semilinear.step(first, 0.1, viscosity=1.0)


def test_the_step_goes_on_with_what_was_saved() -> None:
    given = {**SMALL, "resolution": 32, "solve_resolution": 64, "trajectories": 2}
    made = semilinear.build(given).compute()
    saved = torch.from_numpy(made["u"].values).double()[..., None]
    after = semilinear.step(saved[:, 1], 1.0, **semilinear.setting(semilinear.Options(**given)), **values(given))
    change = float((saved[:, 2] - saved[:, 1]).norm())
    assert change > 0.02
    assert float((after - saved[:, 2]).norm()) < 2e-3 * change


def test_a_trajectory_depends_on_seed_and_number_alone() -> None:
    given = {**SMALL, "linear": {0: [-0.2, 0.1], 2: 0.1}, "convection": [1.0, 0.0], "cubic": [0.0, -1.0, -0.5]}
    three, five, other = (semilinear.build({**given, **more})["u"].values for more in (
        {"trajectories": 3, "block": 3}, {"trajectories": 5, "block": 2}, {"trajectories": 3, "seed": 1}))
    np.testing.assert_allclose(five[:3], three, atol=1e-6)
    assert np.abs(other - three).max() > 0.1


def test_the_dataset_is_canonical_and_a_store_of_it_sound(tmp_path: Path) -> None:
    made = semilinear.build({**SMALL, "trajectories": 3, "cubic": 0, "gradient_norm": [0, 0.1, 0]})
    assert dict(made.sizes) == {"trajectory": 3, "time": 3, "x": 16}
    assert made["x"].attrs == {"units": "1", "period": 12.0}
    assert {str(n): (v.attrs["role"], v.attrs.get("vector")) for n, v in made.data_vars.items()} == {
        "u": ("state", "slope"), "linear_2": ("parameter", None), "linear_3": ("parameter", "linear_3"),
        "linear_4": ("parameter", None), "convection": ("parameter", None),
        "gradient_norm": ("parameter", "gradient_norm"), "cubic": ("parameter", None)}  # given, though 0
    assert made["linear_3"].values.tolist() == [-0.3, 0.2, -0.3]
    assert made["gradient_norm"].values.tolist() == [0.0, 0.1, 0.0]
    alone = semilinear.build({"linear": {1: 0.5, 2: 0.1}, "quadratic": -1.0})
    assert [str(n) for n, v in alone.data_vars.items() if "vector" in v.attrs] == ["linear_1"]
    source = SourceSpec(name="s", domain="fields", builder="semilinear", options={**SMALL, "trajectories": 10},
                        licence="CC0-1.0", citation="none")
    assert check.validate(build(source, tmp_path / "store.zarr")) == []


@pytest.mark.parametrize(("wrong", "message"), [
    ({"linear": {2: -1.0}}, "ill-posed in trajectory 0"), ({"linear": {2: [1.0, -0.1]}}, "ill-posed in trajectory 1"),
    ({"linear": {2: 1.0, 4: 1.0}}, "ill-posed"), ({"linear": {2: 1.0, 4: -1.0, 6: -0.1}}, "ill-posed"),
    ({"linear": {1: 1.0}, "convection": 1.0}, "steepens"), ({"linear": {7: 1.0}}, "less than or equal to 6"),
    ({"linear": {2: []}}, "linear_2 must be"), ({"cubic": float("nan")}, "cubic must be"), ({"length": -1}, "length"),
    ({"resolution": 17}, "resolution"), ({"hyperviscosity": 1.0}, "hyperviscosity")])
def test_wrong_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="semilinear options") as refused:
        semilinear.build({"linear": {2: 1.0}, **wrong})
    assert message in str(refused.value)
    with pytest.raises(InputError, match="linear"):
        semilinear.build({})


def test_a_blow_up_is_refused_by_its_trajectory() -> None:
    made = semilinear.build({"trajectories": 4, "block": 2, "frames": 3, "linear": {2: 0.1}, "cubic": [-1, -1, -1, 1],
                             "resolution": 16, "solve_resolution": None})
    assert np.isfinite(made["u"][:2]).all()
    with pytest.raises(InputError, match=r"no finite state in trajectories \[3\] at frame"):
        made["u"][3].compute()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_sources_are_right_and_the_card_names_what_is_in_them(path: Path) -> None:
    source = read_source(path)
    made = registry.find(BUILDERS, source.builder)(dict(source.options))
    assert made.sizes["trajectory"] == sum(source.split.counts.model_dump().values())  # type: ignore[union-attr]
    card = (FOLDER / "card.md").read_text(encoding="utf-8")
    assert {str(n) for n in made.data_vars if f"`{n}`" not in card} == set()


def test_waves_near_one_grow_in_nikolaevskiy_and_short_ones_are_damped() -> None:
    """``σ = k² (ε − (1 − k²)²)``."""
    options = dict(read_source(FOLDER / "nikolaevskiy.yaml").options)
    grid = _spectral.Grid(128, options["length"], 1)
    found = semilinear.symbol({name: v[:, None] for name, v in values(options).items()}, grid)
    k = grid.square().sqrt()
    excess = 1 - torch.from_numpy(semilinear.coefficients(semilinear.Options(**options), 0, 240)["linear_2"])
    torch.testing.assert_close(found.real, k**2 * (excess[:, None] - (1 - k**2) ** 2), atol=1e-9, rtol=1e-12)
    assert float(excess.min()) > 0.1
    near = (k - 1).abs() < 0.07
    assert near.any()
    assert (found.real[:, near] > 0).all()
    assert (found.real[:, k > 1.5] < 0).all()
