"""What a block does to each token by itself: `sciml.operator.feed_forward`."""

from __future__ import annotations

import pytest
import torch

from sciml.operator.config import LevelConfig
from sciml.operator.feed_forward import FEEDS, FeedForward, GatedFeedForward
from sciml.recipe import InputError, validate


def test_gated_is_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = GatedFeedForward(12, 2.0).double(), torch.randn(3, 5, 12, dtype=torch.float64)
    hidden = layer.leave.in_features
    w1, w3 = layer.enter.weight[:hidden], layer.enter.weight[hidden:]
    b1, b3 = layer.enter.bias[:hidden], layer.enter.bias[hidden:]
    a = torch.einsum("hc,btc->bth", w1, x) + b1
    inner = a / (1 + torch.exp(-a)) * (torch.einsum("hc,btc->bth", w3, x) + b3)
    torch.testing.assert_close(layer(x), torch.einsum("ch,bth->btc", layer.leave.weight, inner) + layer.leave.bias)
    assert torch.autograd.gradcheck(layer, x[:1, :2].clone().requires_grad_())


@pytest.mark.parametrize("width", [48, 64, 96, 128])
@pytest.mark.parametrize("ratio", [2.0, 3.0, 4.0])
def test_both_have_as_many_weights(width: int, ratio: float) -> None:
    plain, gated = (sum(p.numel() for p in FEEDS[name](width, ratio).parameters()) for name in ("plain", "gated"))
    assert gated == pytest.approx(plain, rel=0.1)


def test_a_product_of_channels_is_learnt_by_the_gated_alone() -> None:
    """x₀ x₁ at four times the amplitudes that it was fitted at: a sum of bent lines doesn't go on as a product."""
    errors = {}
    for name, kind in FEEDS.items():
        torch.manual_seed(0)
        layer = kind(2, 16.0)
        optimizer = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.0)
        for _ in range(400):
            x = torch.randn(256, 2)
            optimizer.zero_grad()
            (layer(x)[:, 0] - x.prod(1)).square().mean().backward()
            optimizer.step()
        x = 4 * torch.randn(1024, 2)
        with torch.no_grad():
            errors[name] = float((layer(x)[:, 0] - x.prod(1)).norm() / x.prod(1).norm())
    assert errors["gated"] < errors["plain"] / 2


def test_a_level_takes_either_and_nothing_else() -> None:
    assert LevelConfig().ffn == "plain"
    assert set(FEEDS) == {"plain", "gated"}
    assert isinstance(FEEDS["plain"](8, 2.0), FeedForward)
    with pytest.raises(InputError, match="ffn"):
        validate(LevelConfig, {"ffn": "swish"}, where="recipe")
