"""Cross entropy of classes: pooled and lattice heads, shares, classes that are excluded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciml import registry, tokens
from sciml.losses import Segments
from sciml.objectives.cross_entropy import loss
from sciml.predictor import LINKS
from sciml.tokens import Outputs, Target, TokenBatch

objective = registry.find("sciml.objectives", "cross_entropy")


def classes(*shape: int, count: int = 3, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(drawn, count).float()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flags(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def asked(value: Tensor, mask: Tensor, baseline: Tensor | float = 0.0) -> TokenBatch:
    """A batch of two samples that asks for one value per sample, or per cell of its lattice."""
    lattice = value.shape[1:-1] or (4,)
    axes = tuple(tokens.space(name, torch.arange(n) / 8.0) for name, n in zip("xyz", lattice))
    target = Target(value, mask, torch.as_tensor(baseline), torch.ones(()))
    return TokenBatch("volumes", "a", torch.zeros(2, *lattice, 1), ("volumes/mri",), axes, num_segments=2,
                      targets={"class": target})


@pytest.mark.parametrize("shape", [(2,), (2, 4, 3)], ids=["pooled", "lattice"])
def test_it_is_torchs_and_0_at_the_truth(shape: tuple[int, ...]) -> None:
    value, logits = classes(*shape), normal(*shape, 3)
    batch = asked(value, flags(*shape, 1))
    flat = torch.nn.functional.cross_entropy(logits.reshape(-1, 3), value.reshape(-1, 3), reduction="none")
    torch.testing.assert_close(objective(Outputs({"class": logits}), batch), flat.reshape(2, -1).mean(1))
    assert objective(Outputs({"class": LINKS["logit"](value)}), batch).abs().max() < 1e-4


def test_shares_cost_nothing_where_they_are_predicted() -> None:
    shares = 0.9 * classes(2) + 0.1 / 3  # smoothed labels
    batch = asked(shares, flags(2, 1))
    assert objective(Outputs({"class": LINKS["log"](shares)}), batch).abs().max() < 1e-6
    entropy = -(shares * shares.log()).sum(-1)
    plain = torch.nn.functional.cross_entropy(normal(2, 3), shares, reduction="none")
    torch.testing.assert_close(objective(Outputs({"class": normal(2, 3)}), batch), plain - entropy)


def test_the_baseline_is_where_it_starts() -> None:
    prior = torch.tensor([[0.5, 0.3, 0.2]])
    value = torch.eye(3)[[0, 2]]
    found = objective(Outputs({"class": torch.zeros(2, 3)}), asked(value, flags(2, 1), prior.log()))
    assert found.tolist() == pytest.approx([-math.log(0.5), -math.log(0.2)])


def test_what_does_not_count_changes_neither_value_nor_gradient() -> None:
    value, mask = classes(2, 4), torch.tensor([[True, False, True, True], [False] * 4])[..., None]
    logits = torch.where(mask, normal(2, 4, 3), torch.inf).requires_grad_()
    found = loss(logits, value, mask)
    found.sum().backward()
    assert found[1] == 0
    assert logits.grad is not None
    assert (logits.grad[~mask[..., 0]] == 0).all()
    assert (logits.grad[mask[..., 0]] != 0).all()
    torch.testing.assert_close(loss(normal(2, 4, 3), value, mask), found)


def test_a_class_that_is_excluded_has_no_probability() -> None:
    value, logits, mask = torch.eye(3)[[0]], normal(1, 3), torch.tensor([[True, False, True]])
    expected = -logits[:, [0, 2]].log_softmax(-1)[:, 0]
    torch.testing.assert_close(loss(logits, value, mask), expected)


def test_packed_samples_are_judged_alone() -> None:
    value, logits, mask = classes(1, 5), normal(1, 5, 3), flags(1, 5, 1)
    segments = Segments(torch.tensor([0, 0, 1, 1, 1]), 2, 1)
    apart = torch.cat([loss(logits[:, cut], value[:, cut], mask[:, cut]) for cut in (slice(2), slice(2, 5))])
    torch.testing.assert_close(loss(logits, value, mask, segments), apart)
