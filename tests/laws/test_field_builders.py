"""What holds for every generator of fields that is made of the shared pieces, and for these."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dask import compute
from scipy.integrate import solve_ivp

from sciml import registry
from sciml.data import check
from sciml.data.build import BUILDERS, build
from sciml.data.builders import _blocks, _spectral
from sciml.data.source import SourceSpec, read_source

ROOT = Path(__file__).parent.parent.parent
SMALL: dict[str, dict[str, Any]] = {
    "advection": {"resolution": 16, "frames": 3},
    "burgers": {"resolution": 16, "solve_resolution": 64, "frames": 3, "viscosity": [0.02, 0.01]},
    "elliptic": {"resolution": 8, "solve_resolution": 16},
    "kuramoto_sivashinsky": {"resolution": 16, "frames": 3, "length": 12.0, "spin_up": 5.0},
    "reaction_diffusion": {"resolution": 8, "solve_resolution": 16, "frames": 3, "spin_up": 10.0},
    "semilinear": {"resolution": 16, "solve_resolution": 32, "frames": 3, "length": 12.0, "spin_up": 2.0,
                   "linear": {2: -1.0, 3: [-0.3, 0.2], 4: -1.0}, "convection": 1.0},
    "wave": {"resolution": 8, "solve_resolution": 16, "frames": 3}}
SOURCES = sorted(path for name in SMALL for path in (ROOT / "datasets" / name).glob("*.yaml"))


@pytest.mark.parametrize("name", SMALL)
def test_a_trajectory_depends_on_seed_and_number_alone(name: str) -> None:
    maker = registry.find(BUILDERS, name)
    three, five, other = (maker({**SMALL[name], **given}) for given in (
        {"trajectories": 3, "block": 3}, {"trajectories": 5, "block": 2}, {"trajectories": 3, "seed": 1}))
    lazy = [n for n, v in three.data_vars.items() if v.chunks is not None]
    assert set(lazy) >= {n for n, v in three.data_vars.items() if v.attrs["role"] in ("state", "forcing")}
    three, five, other = compute(three, five, other)
    for variable in lazy:
        assert three[variable].dtype == np.float32
        scale = float(np.abs(three[variable]).max())
        np.testing.assert_allclose(five[variable][:3], three[variable], atol=1e-5 * scale)
        assert np.abs(three[variable][0] - three[variable][2]).max() > 1e-3 * scale
        assert np.abs(other[variable][0] - three[variable][0]).max() > 1e-3 * scale


@pytest.mark.parametrize("name", SMALL)
def test_a_store_of_it_is_sound(name: str, tmp_path: Path) -> None:
    source = SourceSpec(name=name, domain="fields", builder=name, options={**SMALL[name], "trajectories": 10},
                        licence="CC0-1.0", citation="none")
    store = build(source, tmp_path / "store.zarr")
    assert check.validate(store) == []
    assert (store.meta.dt is None) == (name == "elliptic")
    assert all(store.meta.moments[state].std > 0 for state in store.meta.of_role("state"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_sources_are_right_and_cards_name_what_is_in_them(path: Path) -> None:
    source = read_source(path)
    made = registry.find(BUILDERS, source.builder)(dict(source.options))
    assert made.sizes["trajectory"] == sum(source.split.counts.model_dump().values())  # type: ignore[union-attr]
    card = (path.parent / "card.md").read_text(encoding="utf-8")
    assert {str(n) for n in made.data_vars if f"`{n}`" not in card} == set()


def test_there_is_a_source_and_a_card_of_each() -> None:
    assert {path.parent.name for path in SOURCES if path.stem == "source"} == set(SMALL)


def test_a_field_that_is_not_finite_is_refused() -> None:
    def broken(options: _blocks.Draws, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"u": np.full((stop - start, 2), np.nan)}

    made = _blocks.lazy(broken, _blocks.Draws(trajectories=3, block=2), {"u": (2,)})
    with pytest.raises(FloatingPointError, match="u isn't finite in trajectories 2 to 2"):
        made["u"][2].compute()


def test_exponential_steps_are_exact_in_the_linear_and_of_order_four_in_the_rest() -> None:
    """``v' = −Λv + v − v³`` for a slow and a stiff Λ."""
    rates = np.array([0.5, -0.3, 40.0])
    first = np.array([0.4, -0.8, 0.5])
    solved = solve_ivp(lambda _, v: -rates * v + v - v**3, (0, 1), first, rtol=1e-12, atol=1e-14, method="DOP853")
    errors = []
    for steps in (8, 16, 32):
        scheme = _spectral.Exponential.of(torch.from_numpy(-rates), 1 / steps)
        v = torch.from_numpy(first)
        for _ in range(steps):
            v = scheme.step(v, lambda v: v - v**3)
        errors.append(np.abs(v.numpy() - solved.y[:, -1]).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert ((orders > 3.5) & (orders < 4.7)).all()
    alone = _spectral.Exponential.of(torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64), 0.7)
    kept = alone.step(torch.ones(3, dtype=torch.float64), torch.zeros_like)
    np.testing.assert_allclose(kept, np.exp(0.7 * np.array([-3.0, 0.0, 2.0])), rtol=1e-14)


@pytest.mark.parametrize("rank", [1, 2])
def test_resampling_keeps_what_both_grids_resolve(rank: int) -> None:
    def wave(n: int) -> np.ndarray:
        x = 2 * np.pi * np.arange(n) / n
        line = np.cos(3 * x) - 2 * np.sin(5 * x) + 0.3
        return line if rank == 1 else np.multiply.outer(line, np.sin(2 * x)) + np.add.outer(line, line)

    for n, m in ((16, 40), (40, 16), (16, 16)):
        np.testing.assert_allclose(_spectral.resample(wave(n)[None], m, rank)[0], wave(m), atol=1e-12)
        np.testing.assert_allclose(_spectral.regrid(torch.from_numpy(wave(n))[None], m, rank)[0], wave(m), atol=1e-12)


@pytest.mark.parametrize(("name", "changed"), [
    ("burgers", {"resolution": 64, "solve_resolution": 256, "frame_dt": 0.2}),
    ("burgers", {"resolution": 64, "solve_resolution": 256, "frame_dt": 0.2, "boundary": "dirichlet"}),
    ("kuramoto_sivashinsky", {"solve_resolution": 32}),
    ("reaction_diffusion", {"resolution": 32, "solve_resolution": 64, "length": 0.4, "spin_up": 100.0}),
    ("reaction_diffusion", {"model": "allen_cahn", "diffusivity_u": 1e-2, "frame_dt": 1.0})])
def test_the_differentiable_step_goes_on_with_what_was_saved(name: str, changed: dict[str, Any]) -> None:
    """From a frame at the saved resolution, told the parameters by the names in the data set, to the next one."""
    module = import_module(f"{BUILDERS}.{name}")
    given = {**SMALL[name], **changed, "trajectories": 2}
    made = module.PLUGIN(given).compute()
    roles = {role: [n for n, v in made.data_vars.items() if v.attrs["role"] == role] for role in ("state", "parameter")}
    states = torch.from_numpy(np.stack([made[n].values for n in roles["state"]], -1)).double()
    start = states[:, 1].requires_grad_()
    after = module.step(start, float(made["time"][2] - made["time"][1]), **module.setting(module.Options(**given)),
                        **{n: torch.from_numpy(made[n].values) for n in roles["parameter"]})
    change = float((states[:, 2] - states[:, 1]).norm())
    assert change > 0.02
    assert float((after.detach() - states[:, 2]).norm()) < 2e-3 * change
    slope, = torch.autograd.grad(after.square().sum(), start)
    assert float(slope.abs().max()) > 1e-3
