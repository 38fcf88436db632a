"""Every observation, ours or a plug-in, has the adjoint that it says; the ones we know give the numbers they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciml import registry
from sciml.errors import InputError
from sciml.observations.contract import GROUP, Observation, gradient, inner, make, norm, tensors_of

NAMES = registry.names(GROUP)


def example(name: str, lattice: tuple[int, ...], seed: int = 0) -> Observation:
    made: Observation = registry.find(GROUP, name).example(lattice, torch.Generator().manual_seed(seed))
    return made


def image_for(observation: Observation, lattice: tuple[int, ...], seed: int = 1, batch: int = 2) -> Tensor:
    dtype = torch.complex128 if observation.complex_image else torch.float64
    return torch.randn(batch, *lattice, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def matrix_of(observation: Observation, lattice: tuple[int, ...]) -> Tensor:
    """``(measurements, cells)`` of the linear map, one column per cell."""
    cells = math.prod(lattice)
    dtype = torch.complex128 if observation.complex_image else torch.float64
    return observation.forward(torch.eye(cells, dtype=dtype).view(cells, *lattice)).flatten(1).T


def test_all_are_found() -> None:
    assert {"fourier", "radon", "blur", "identity", "subsample"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(lattice=st.lists(st.integers(2, 7), min_size=2, max_size=3).map(tuple), seed=st.integers(0, 1000))
def test_adjoint(name: str, lattice: tuple[int, ...], seed: int) -> None:
    """Re⟨A x, y⟩ = Re⟨x, A* y⟩ in float64 on 2-D and 3-D lattices."""
    observation = example(name, lattice, seed)
    image = image_for(observation, lattice, seed)
    measured = observation.forward(image)
    other = torch.randn(measured.shape, dtype=measured.dtype, generator=torch.Generator().manual_seed(seed + 1))
    back = observation.adjoint(other)
    assert back.shape == image.shape
    size = (inner(measured, measured) * inner(other, other)).sqrt()
    assert ((inner(measured, other) - inner(image, back)).abs() <= 1e-12 * size + 1e-14).all()


@pytest.mark.parametrize("name", NAMES)
def test_explicit_matrix(name: str) -> None:
    """Linear, with the conjugate transpose as the adjoint and the largest singular value as the norm."""
    lattice = (4, 5)
    observation, image = example(name, lattice), image_for(example(name, lattice), lattice)
    matrix = matrix_of(observation, lattice)
    measured = observation.forward(image)
    assert torch.allclose(measured.flatten(1), image.flatten(1) @ matrix.T)
    assert torch.allclose(observation.adjoint(measured).flatten(1), measured.flatten(1) @ matrix.conj())
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    found = norm(observation, image, iterations=200)
    assert ((found <= largest * (1 + 1e-9)) & (found >= largest * 0.999)).all()
    assert (norm(observation, image) >= 0.9 * largest).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_derivative_of_the_likelihood(name: str) -> None:
    """By autograd through forward; and what came out can be differentiated again, in float32 too."""
    lattice = (4, 3, 5)
    observation = example(name, lattice)
    image = image_for(observation, lattice).requires_grad_()
    measured = observation.forward(image_for(observation, lattice, seed=5))
    gap = observation.forward(image) - measured
    slope, = torch.autograd.grad(inner(gap, gap).sum() / 2, image)
    found = gradient(observation, image, measured)
    assert torch.allclose(slope, found)
    curved, = torch.autograd.grad(inner(found, found).sum(), image)
    assert bool(curved.abs().sum() > 0)
    single = torch.complex64 if observation.complex_image else torch.float32
    short = gradient(observation, image.detach().to(single), measured.to(
        torch.complex64 if measured.is_complex() else torch.float32))
    assert short.dtype == single
    assert torch.allclose(short.to(found.dtype), found.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_mix(name: str) -> None:
    lattice = (5, 4)
    observation, image = example(name, lattice), image_for(example(name, lattice), lattice, batch=3)
    assert torch.allclose(observation.forward(image)[1:2], observation.forward(image[1:2]), atol=1e-14)


def test_fourier_samples_differ_and_coils_may_be_pairs_of_numbers() -> None:
    """A mask and coils per sample; made by name from tensors; an all-ones mask keeps lengths (Parseval)."""
    g = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 1, 5, 4, generator=g) < 0.5).double()
    coils = torch.randn(2, 3, 6, 5, 4, dtype=torch.complex128, generator=g)
    image = torch.randn(2, 6, 5, 4, dtype=torch.complex128, generator=g)
    both = make("fourier", {}, {"mask": mask, "coils": torch.view_as_real(coils)}).forward(image)
    for i in range(2):
        alone = make("fourier", {}, {"mask": mask[i:i + 1], "coils": coils[i:i + 1]}).forward(image[i:i + 1])
        assert torch.allclose(both[i:i + 1], alone)
    whole = make("fourier", {}, {"mask": torch.ones(1, 6, 5, 4)}).forward(image)
    assert torch.allclose(inner(whole, whole), inner(image, image))
    assert torch.allclose(whole[0, 0, 0, 0], image[0].sum() / math.sqrt(120))


@settings(max_examples=20, deadline=None)
@given(angles=st.integers(1, 6), first=st.floats(-90, 90), width=st.floats(0.4, 2.0),
       spacing=st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)))
def test_projections_keep_the_total(angles: int, first: float, width: float, spacing: tuple[float, float]) -> None:
    """Every view sees all of the image: Σ bins · bin_width = Σ cells · area."""
    scan = make("radon", {"size": (6, 9), "angles": angles, "first_deg": first, "bin_width": width, "spacing": spacing})
    image = torch.rand(1, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = scan.forward(image).sum(-1) * width
    assert torch.allclose(total, (image.sum() * math.prod(spacing)).expand_as(total), rtol=1e-6)


def test_projections_of_a_disc_are_chords() -> None:
    """2 √(r² − t²) at every angle, to the error of a disc made of cells."""
    n, radius = 96, 30.0
    x = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    disc = (radius - (x[:, None] ** 2 + x**2).sqrt() + 0.5).clamp(0, 1)
    scan = make("radon", {"size": (n, n), "angles": 7, "bins": 97})
    t = torch.arange(97, dtype=torch.float64) - 48
    chord = 2 * (radius**2 - t**2).clamp_min(0).sqrt()
    views = scan.forward(disc[None])[0]
    inside = t.abs() < 0.9 * radius
    assert (views - chord).abs()[:, inside].max() < 0.8
    assert (views - chord).abs().mean() < 0.25


def test_projections_of_slices_are_apart() -> None:
    """A volume is projected slice by slice, whichever two axes are the plane."""
    volume = torch.rand(2, 5, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scan = make("radon", {"size": [5, 6], "angles": 4, "plane": [0, 2]})
    flat = make("radon", {"size": (5, 6), "angles": 4})
    views = scan.forward(volume)
    assert views.shape[:3] == (2, 3, 4)
    for k in range(3):
        assert torch.allclose(views[:, k], flat.forward(volume[:, :, k]))


def test_blur_of_a_point_is_a_gaussian() -> None:
    point = torch.zeros(1, 31, 31, dtype=torch.float64)
    point[0, 15, 15] = 1
    seen = make("blur", {"width_cells": (2.0, 0.0)}).forward(point)[0]
    x = torch.arange(31, dtype=torch.float64) - 15
    assert torch.allclose(seen[:, 15], torch.exp(-(x**2) / 8) / math.sqrt(8 * math.pi), atol=1e-4)
    assert float(seen.sum()) == pytest.approx(1, abs=1e-12)
    assert float(seen[:, 14].abs().sum()) == 0


@pytest.mark.parametrize("periodic", [False, True])
def test_sensors_interpolate(periodic: bool) -> None:
    """Linear functions are found exactly between cells; outside is the border, or the other side."""
    grid = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in (4, 6)], indexing="ij")
    field = (2 * grid[0] - grid[1])[None]
    places = torch.tensor([[[1.25, 2.5], [2.0, 0.0], [3.5, -0.5]]], dtype=torch.float64)
    seen = make("subsample", {"lattice": (4, 6), "periodic": periodic}, {"places": places}).forward(field)[0]
    assert seen[:2].tolist() == [0.0, 4.0]
    assert float(seen[2]) == (pytest.approx(np.mean([6, 0, 1, -5])) if periodic else 6.0)


def test_made_by_name_from_what_it_was_taken_apart_into() -> None:
    first = example("fourier", (4, 5))
    again = make("fourier", {}, tensors_of(first))
    image = image_for(first, (4, 5))
    assert torch.equal(first.forward(image), again.forward(image))


@pytest.mark.parametrize(("name", "options", "key"), [
    ("sonar", {}, "sciml.observations"), ("blur", {"sigma": 1.0}, "blur.sigma"),
    ("radon", {"size": (3, 3)}, "radon.angles")])
def test_wrong_options_are_named(name: str, options: dict[str, object], key: str) -> None:
    with pytest.raises(InputError) as error:
        make(name, options)
    assert error.value.key == key
