"""A cascade that says nothing is gradient descent; one that speaks is a rollout; references reach their minimum."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml import tokens
from sciml.domains.volumes import cascade, simulate
from sciml.domains.volumes.references import (
    divergence_adjoint,
    least_squares,
    optimality,
    slopes,
    total_variation,
)
from sciml.observations.contract import Observation, gradient, inner, make, norm
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.packing import collate, unpack
from sciml.tokens import HeadSpec, Outputs, Target, TokenBatch, TokenSpec

HEAD, STEPS = "image", 3
SHAPE = (6, 8, 4)
CHANNELS = {"identity": ("volumes/mri",), "fourier": ("volumes/mri", "volumes/mri.imaginary")}


def measured_batch(name: str, seed: int = 0) -> TokenBatch:
    """A batch of one whose values are the adjoint of a measurement, float64, with its truth."""
    rng = np.random.default_rng(seed)
    volume = rng.random(SHAPE)
    made = (simulate.scanned(volume, rng, coils=2, acceleration=2, centre=0.1) if name == "fourier"
            else simulate.noisy(volume, rng, noise=0.1))
    observation = make(name, made.options, {k: torch.from_numpy(v)[None] for k, v in made.tensors.items()})
    measurement = torch.from_numpy(made.measurement)[None]
    values = cascade.values_of(observation.adjoint(measurement))
    axes = tuple(tokens.space(name, torch.arange(size, dtype=torch.float64) / 32, unit="mm")
                 for name, size in zip("xyz", SHAPE))
    batch = TokenBatch("volumes", "lab", values, CHANNELS[name], axes, sources=(f"lab/{seed}",),
                       kept=cascade.kept_of(observation, measurement, step=0.5))
    truth = cascade.values_of(torch.from_numpy(made.truth)[None])
    ones = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    batch = replace(batch, targets={HEAD: Target(truth, ones, truth, truth)})
    return cascade.asked(batch, HEAD, cascade.observation_of(batch, name, {}), STEPS, scale=0.2)


def operator_for(name: str) -> Operator:
    names = CHANNELS[name]
    spec = TokenSpec("volumes", names, {HEAD: HeadSpec("lattice", names)}, patch=2,
                     lattice_conditions=cascade.gradient_names(names), vector_conditions=(cascade.PROGRESS,))
    torch.manual_seed(0)
    config = OperatorConfig.model_validate({"stem_width": 8, "condition_width": 8, "levels": [
        {"width": 16, "depth": 1, "mixers": ["local"], "head_width": 8}]})
    made = Operator(config, {"volumes": spec}).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made


def silent(batch: TokenBatch) -> Outputs:
    return Outputs({HEAD: torch.zeros_like(batch.values)})


@pytest.mark.parametrize("name", CHANNELS)
def test_silence_is_gradient_descent_on_the_likelihood(name: str) -> None:
    """x ← x − step A*(A x − y), and that is the baseline."""
    batch = measured_batch(name)
    observation = cascade.observation_of(batch, name, {})
    outputs = cascade.cascade(batch, silent, HEAD, observation, STEPS)
    found = batch.targets[HEAD].predict(outputs[HEAD])
    image = cascade.image_of(batch.values)
    y = torch.view_as_complex(batch.kept["measurement"]) if image.is_complex() else batch.kept["measurement"]
    for _ in range(STEPS):
        image = image - 0.5 * observation.adjoint(observation.forward(image) - y)
    assert torch.allclose(found, cascade.values_of(image), atol=1e-12)
    assert outputs[HEAD].abs().max() < 1e-10
    expected = least_squares(observation, y, cascade.image_of(batch.values), STEPS, 0.5)
    assert torch.allclose(found, cascade.values_of(expected), atol=1e-12)


def test_descent_lowers_the_misfit() -> None:
    batch = measured_batch("fourier")
    observation = cascade.observation_of(batch, "fourier", {})
    y, misfits, image = torch.view_as_complex(batch.kept["measurement"]), [], cascade.image_of(batch.values)
    assert float(norm(observation, image)) < 1.2
    for _ in range(6):
        gap = observation.forward(image) - y
        misfits.append(float(inner(gap, gap)))
        image = least_squares(observation, y, image, 1, 1.0)
    assert all(b < a for a, b in pairwise(misfits))


@pytest.mark.parametrize("name", CHANNELS)
def test_a_rollout_is_the_cascade(name: str) -> None:
    """Steps of `advanced`, one after the other, end where the cascade does; every step tells its gradient and
    progress."""
    batch, operator = measured_batch(name), operator_for(name)
    observation = cascade.observation_of(batch, name, {})
    whole = batch.targets[HEAD].predict(cascade.cascade(batch, operator, HEAD, observation, STEPS)[HEAD])
    state = cascade.told(batch, HEAD, observation, 0.0)
    seen: list[Tensor] = []
    for number in range(STEPS):
        seen.append(state.conditions.lattice["volumes/mri.gradient"])
        assert float(state.conditions.vector[cascade.PROGRESS]) == pytest.approx(number / STEPS)
        state = cascade.advanced(state, operator(state), HEAD, observation, (number + 1) / STEPS)
    assert torch.allclose(state.values, whole, atol=1e-12)
    assert not torch.allclose(seen[0], seen[-1])
    assert not torch.allclose(whole, batch.targets[HEAD].baseline, atol=1e-3)


@pytest.mark.parametrize("name", CHANNELS)
def test_every_weight_learns_through_all_steps(name: str) -> None:
    """Gradients of the last image reach every weight; they are those of finite differences."""
    batch, operator = measured_batch(name), operator_for(name)
    observation = cascade.observation_of(batch, name, {})

    def loss() -> Tensor:
        outputs = cascade.cascade(batch, operator, HEAD, observation, STEPS)
        return (batch.targets[HEAD].predict(outputs[HEAD]) - batch.targets[HEAD].value).square().mean()

    loss().backward()
    grads = {n: p.grad for n, p in operator.named_parameters()}
    reached = {n for n, g in grads.items() if g is not None and bool((g != 0).any())}
    assert any("given" in n and "gradient" in n for n in reached)
    weight = next(p for n, p in operator.named_parameters() if "widen.weight" in n)
    assert weight.grad is not None
    slope = float(weight.grad[0, 0])
    with torch.no_grad():
        ends = []
        for change in (1e-5, -2e-5):
            weight[0, 0] += change
            ends.append(float(loss()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-9)


def test_a_batch_of_two_is_two_batches_of_one() -> None:
    """Measurements, masks and coils of each stay its own through collate and unpack."""
    singles, operator = [measured_batch("fourier", seed) for seed in (0, 1)], operator_for("fourier")

    def run(batch: TokenBatch) -> Tensor:
        observation = cascade.observation_of(batch, "fourier", {})
        return cascade.cascade(batch, operator, HEAD, observation, STEPS)[HEAD]

    both = collate(singles)
    assert torch.allclose(run(both), torch.cat([run(b) for b in singles]), atol=1e-12)
    assert all(torch.equal(run(a), run(b)) for a, b in zip(unpack(both), singles))


def test_one_step_is_one_call() -> None:
    batch, operator = measured_batch("identity"), operator_for("identity")
    observation = cascade.observation_of(batch, "identity", {})
    once = cascade.cascade(cascade.asked(batch, HEAD, observation, 1, 0.2), operator, HEAD, observation, 1)
    assert torch.equal(once[HEAD], operator(batch)[HEAD])
    assert torch.equal(cascade.asked(batch, HEAD, observation, 1, 0.2).targets[HEAD].baseline, batch.values)


def blocks(seed: int = 0) -> tuple[Tensor, Observation, Tensor]:
    """An image of blocks, seen through a blur and noise."""
    image = torch.zeros(1, 14, 12, dtype=torch.float64)
    image[:, 3:9, 4:10] = 1.0
    blur = make("blur", {"width_cells": (0.8, 0.8)})
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return image, blur, blur.forward(image) + 0.05 * noise


def test_total_variation_reaches_its_minimum() -> None:
    """A*(A x − y) + ∇*q = 0 with a dual q that attains weight · Σ |∇x|; no other image near it is better."""
    _, observation, y = blocks()
    found = total_variation(observation, y, 0.02, iterations=1500)
    residual, gap = optimality(observation, y, 0.02, found)
    assert float(residual) < 1e-5
    assert 0 <= float(gap) + 1e-12 < 1e-3
    assert float(found.dual.square().sum(1).sqrt().max()) <= 0.02 * (1 + 1e-9)

    def cost(x: Tensor) -> float:
        return float((observation.forward(x) - y).square().sum() / 2 + 0.02 * slopes(x).square().sum(1).sqrt().sum())

    best = cost(found.image)
    for seed in range(5):
        other = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert cost(found.image + 1e-2 * other) > best
    assert best < cost(y)


def test_total_variation_helps_where_images_are_blocks() -> None:
    image, observation, y = blocks()
    error = {w: float((total_variation(observation, y, w).image - image).square().mean()) for w in (0.02, 0.0)}
    assert error[0.02] < 0.7 * float((y - image).square().mean())
    assert error[0.02] < 0.7 * error[0.0]
    assert float(total_variation(observation, y, 0.02, floor=0.0).image.min()) >= 0


def test_total_variation_of_complex_images() -> None:
    """Turning the phase of a measurement turns that of the answer: both parts are one image."""
    batch = measured_batch("fourier")
    observation = cascade.observation_of(batch, "fourier", {})
    y = torch.view_as_complex(batch.kept["measurement"])
    plain, turned = (total_variation(observation, y * turn, 0.01).image for turn in (1, 1j))
    assert torch.allclose(turned, 1j * plain, atol=1e-10)


def test_total_variation_forgets_its_start() -> None:
    """One minimum, from wherever and with whatever step is allowed."""
    _, observation, y = blocks()
    plain, other = (total_variation(observation, y, 0.02, iterations=1500, start=start, step=step).image
                    for start, step in ((None, None), (torch.ones_like(y), 0.5)))
    assert torch.allclose(plain, other, atol=1e-4)


def test_imaginary_parts_are_penalised() -> None:
    """At the minimum the penalty's slope is the likelihood's and the total variation's; a large one makes images
    real."""
    batch = measured_batch("fourier")
    observation = cascade.observation_of(batch, "fourier", {})
    y = torch.view_as_complex(batch.kept["measurement"])
    found = total_variation(observation, y, 0.01, iterations=3000, imaginary=0.5)
    slope = gradient(observation, found.image, y) + divergence_adjoint(found.dual)
    assert torch.allclose(slope + 0.5j * found.image.imag, torch.zeros_like(slope), atol=1e-4)
    plain, real = (total_variation(observation, y, 0.01, imaginary=weight).image for weight in (0.0, 1e6))
    assert float(real.imag.abs().max()) < 1e-4 < float(plain.imag.abs().max())


@pytest.mark.peer
def test_total_variation_equals_scikit_image() -> None:
    """With the identity, the dual algorithm of another author comes to the same image."""
    restoration = pytest.importorskip("skimage.restoration", reason="scikit-image is not installed")
    _, _, y = blocks()
    theirs = restoration.denoise_tv_chambolle(y[0].numpy(), weight=0.1, eps=1e-12, max_num_iter=2000)
    ours = total_variation(make("identity", {}), y, 0.1, iterations=2000).image[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-3


def test_slopes_and_their_adjoint() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=g)
    field = torch.randn(2, 3, 5, 4, 3, dtype=torch.float64, generator=g)
    assert torch.allclose(inner(slopes(image), field), inner(image, divergence_adjoint(field)))
