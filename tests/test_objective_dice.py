"""Dice with cross entropy: zero at the truth, what does not count does not matter, gradients point the right way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciml import registry, tokens
from sciml.objectives import dice_cross_entropy, dice_cross_entropy_regions
from sciml.predictor import LINKS
from sciml.tokens import Outputs, Target, TokenBatch

KINDS = ("dice_cross_entropy", "dice_cross_entropy_regions")
LATTICE = (5, 4, 3)


def asked(kind: str, classes: int = 3, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    if kind == "dice_cross_entropy":
        value = torch.nn.functional.one_hot(torch.randint(0, classes, (2, *LATTICE), generator=generator), classes)
    else:
        value = torch.rand(2, *LATTICE, classes, generator=generator) < 0.4
    mask = torch.rand(2, *LATTICE, 1, generator=generator) < 0.8
    ones = (1,) * (len(LATTICE) + 1)
    return Target(value.float(), mask, torch.zeros(2, *ones), torch.ones(2, *ones))


def batch(*targets: Target) -> TokenBatch:
    axes = tuple(tokens.space(name, torch.arange(n) / 8.0) for name, n in zip("xyz", LATTICE))
    return TokenBatch("volumes", "a", torch.zeros(2, *LATTICE, 1), ("volumes/mri",), axes, num_segments=2,
                      targets={f"head{i}": target for i, target in enumerate(targets)})


def losses(kind: str, prediction: Tensor, target: Target) -> Tensor:
    objective = registry.find("sciml.objectives", kind)
    value: Tensor = objective(Outputs({"head0": prediction}), batch(target))
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_in_link_space_costs_nothing_and_anything_else_something(kind: str) -> None:
    target = asked(kind)
    truth = LINKS["logit"](target.value)
    assert losses(kind, truth, target).shape == (2,)
    assert losses(kind, truth, target).abs().max() <= 1e-4
    assert losses(kind, torch.zeros_like(truth), target).min() > 0.5
    assert losses(kind, -truth, target).min() > losses(kind, torch.zeros_like(truth), target).max()


@pytest.mark.parametrize("kind", KINDS)
def test_cells_that_do_not_count_change_neither_value_nor_gradient(kind: str) -> None:
    target = asked(kind)
    y = torch.randn(target.value.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = losses(kind, y, target)
    other = torch.where(target.mask, y.detach(), 7.0)
    torch.testing.assert_close(losses(kind, other, target), value.detach())
    value.sum().backward()
    assert y.grad is not None
    counted = target.mask.expand_as(y)
    assert (y.grad[~counted] == 0).all()
    assert (y.grad[counted] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_judged_alone_and_one_in_which_nothing_counts_is_free(kind: str) -> None:
    target = asked(kind)
    y = torch.randn(target.value.shape, generator=torch.Generator().manual_seed(2))
    blank = Target(target.value, torch.stack([target.mask[0], torch.zeros_like(target.mask[1])]), target.baseline,
                   target.scale)
    found = losses(kind, y, blank)
    torch.testing.assert_close(found[0], losses(kind, y, target)[0])
    assert found[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_descending_reaches_the_truth(kind: str) -> None:
    target = asked(kind)
    y = torch.zeros(target.value.shape, requires_grad=True)
    optimizer = torch.optim.Adam([y], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        losses(kind, y, target).sum().backward()
        optimizer.step()
    assert losses(kind, y, target).max() < 0.02


def test_classes_against_their_definition() -> None:
    """By hand: two cells, two classes, both half sure."""
    p = torch.tensor([0.5, 0.5]).log().expand(1, 2, 2)
    value = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = dice_cross_entropy.loss(p, value, torch.ones(1, 2, 1, dtype=torch.bool))
    expected = torch.tensor(2.0).log() + 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    torch.testing.assert_close(found, expected[None])


def test_regions_against_their_definition() -> None:
    value = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    found = dice_cross_entropy_regions.loss(torch.zeros(1, 2, 2), value, torch.ones(1, 2, 1, dtype=torch.bool))
    whole, inner = 1 - (2 * 1 + 1) / (1 + 2 + 1), 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    torch.testing.assert_close(found, torch.tensor(2.0).log()[None] + (whole + inner) / 2)


def test_regions_do_not_compete_but_classes_do() -> None:
    both = torch.tensor([[[9.0, 9.0, 9.0]] * 4])
    nested = torch.ones(1, 4, 3)
    mask = torch.ones(1, 4, 1, dtype=torch.bool)
    assert dice_cross_entropy_regions.loss(both, nested, mask) < 0.01
    one = torch.tensor([[[0.0, 1.0, 0.0]] * 4])
    assert dice_cross_entropy.loss(both, one, mask) > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_coarser_answers_weigh_half_as_much_each(kind: str) -> None:
    """Of three resolutions: 4/7, 2/7 and 1/7 of what each would cost alone."""
    target = asked(kind)
    levels = [torch.randn(target.value.shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    wanted = sum(weight * losses(kind, y, target) for weight, y in zip((4 / 7, 2 / 7, 1 / 7), levels))
    torch.testing.assert_close(losses(kind, torch.cat(levels, -1), target), wanted)


def test_what_is_repeated_is_asked_for_shares_of_its_cells() -> None:
    """Cross entropy and Dice of an answer that is the same in two cells are those of one cell whose truth is the mean,
    but for the cells that Dice adds to both halves."""
    value = torch.nn.functional.one_hot(torch.tensor([[[[0, 1]]]]), 2).float()
    y = torch.tensor([0.3, -0.2], requires_grad=True)
    ones = torch.ones(1, 1, 1, 2, 1, dtype=torch.bool)
    dice_cross_entropy.loss(y.expand(1, 1, 1, 2, 2), value, ones).sum().backward()
    p = y.detach().softmax(-1)
    share = torch.tensor([0.5, 0.5])
    entropy = p - share
    ratio_top, ratio_bottom = 2 * 2 * p[1] * 0.5 + 1, 2 * p[1] + 2 * 0.5 + 1
    slope = -(2 * ratio_bottom - 2 * ratio_top) / ratio_bottom**2 * p[1] * p[0]
    assert y.grad is not None
    torch.testing.assert_close(y.grad, entropy + slope * torch.tensor([-1.0, 1.0]))
