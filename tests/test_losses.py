"""Losses: one value per sample or segment, masked, zero at the truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sciml import losses
from sciml.losses import Segments
from sciml.tokens import TokenBatch, identity

ALL = {"mse": losses.mse, "mae": losses.mae, "relative_l2": losses.relative_l2, "poisson": losses.poisson}
Loss = Callable[..., Tensor]


def pair(name: str, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return prediction, target.exp() if name == "poisson" else target


@pytest.mark.parametrize("name", ALL)
def test_the_floor_is_zero_at_the_truth_with_a_finite_gradient(name: str) -> None:
    _, target = pair(name, 3, 5, 4, 2)
    prediction = (target.log() if name == "poisson" else target.clone()).requires_grad_()
    loss = ALL[name](prediction, target, torch.ones(1, dtype=torch.bool).expand(3, 1, 1, 1))
    torch.testing.assert_close(loss, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    loss.sum().backward()
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad.abs().max() < 1e-9 or name == "mae"


@pytest.mark.parametrize("name", ALL)
def test_one_value_per_sample_blind_to_masked_cells(name: str) -> None:
    prediction, target = pair(name, 3, 6, 2)
    mask = torch.arange(6).view(1, 6, 1) < torch.tensor([6, 4, 0]).view(3, 1, 1)
    loss = ALL[name](prediction, target, mask)
    alone = ALL[name](prediction[1:2, :4], target[1:2, :4], torch.ones(1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(loss[1:2], alone)
    assert loss[0] > 0
    assert loss[2] == 0
    changed = prediction.masked_fill(~mask, 7.0)
    torch.testing.assert_close(ALL[name](changed, target, mask), loss)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dim", [1, 2])
def test_packed_segments_equal_samples_one_at_a_time(name: str, dim: int) -> None:
    prediction, target = pair(name, 1, 5, 5, 2)
    index = torch.tensor([0, 0, 1, 2, 2])
    mask = torch.ones(1, 5, 5, 1, dtype=torch.bool)
    packed = ALL[name](prediction, target, mask, Segments(index, 4, dim))
    for segment in range(3):
        rows = (index == segment).nonzero()[:, 0]
        alone = ALL[name](*(x.index_select(dim, rows) for x in (prediction, target, mask)))
        torch.testing.assert_close(packed[segment : segment + 1], alone)
    assert packed.shape == (4,)
    assert packed[3] == 0


def test_segments_of_a_batch() -> None:
    axis = identity("atom", torch.zeros(3, dtype=torch.long), "element", segment=torch.tensor([0, 0, 1]))
    batch = TokenBatch("molecules", "d", torch.zeros(1, 3, 1), ("molecules/q",), (axis,), num_segments=2)
    segments = Segments.of(batch)
    assert segments is not None
    assert (segments.count, segments.dim, segments.index.tolist()) == (2, 1, [0, 0, 1])


def test_relative_l2_is_blind_to_the_scale_of_a_channel() -> None:
    prediction, target = pair("relative_l2", 2, 8, 3)
    scale = torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    torch.testing.assert_close(losses.relative_l2(prediction * scale, target * scale, mask),
                               losses.relative_l2(prediction, target, mask))
    zero = losses.relative_l2(torch.zeros_like(target), target, mask)
    torch.testing.assert_close(zero, torch.ones_like(zero))


def test_known_values() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    p, t = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert losses.mse(p, t, mask).tolist() == [12.5]
    assert losses.mae(p, t, mask).tolist() == [3.5]
    assert losses.relative_l2(p[..., None], t[..., None], mask[..., None]).tolist() == [1.25]
    torch.testing.assert_close(losses.poisson(torch.zeros(1, 1), torch.tensor([[2.0]]), mask),
                               torch.tensor([2 * torch.tensor(2.0).log() - 1]))


@pytest.mark.parametrize("name", ALL)
def test_gradients(name: str) -> None:
    prediction, target = pair(name, 2, 3, 2)
    mask = torch.tensor([True, False, True]).view(1, 3, 1)
    loss: Loss = ALL[name]
    assert torch.autograd.gradcheck(lambda x: loss(x, target, mask), prediction.requires_grad_())
