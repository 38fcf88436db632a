"""The two transforms of the radial mixer are one, in any rank and on odd, even, periodic and bounded axes."""

from __future__ import annotations

import pytest
import torch

from sciml.mixers import radial
from sciml.mixers.geometry import Geometry
from sciml.tokens import space


@pytest.mark.parametrize("shape", [(9,), (8, 6), (5, 7), (4, 3, 6)], ids=str)
@pytest.mark.parametrize("bounded", [False, True])
def test_products_and_fft_agree(shape: tuple[int, ...], bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer = radial.Radial(8, 1).double()
    axes = tuple(space(name, torch.arange(n, dtype=torch.float64) / n * 3, period=None if bounded else 3.0)
                 for name, n in zip("xyz", shape))
    x = torch.randn(2, *shape, 8, dtype=torch.float64)
    dense = mixer(x, Geometry(axes))[0]
    monkeypatch.setattr(radial, "LONGEST_DENSE", 0)
    torch.testing.assert_close(mixer(x, Geometry(axes))[0], dense)


def test_a_derivative_is_the_derivative() -> None:
    """With a = 0 and b = 1 + |k| the mixer differentiates: ∂/∂x / 2π of a wave along x."""
    mixer = radial.Radial(4, 1).double()
    with torch.no_grad():
        mixer.even.zero_()
        mixer.odd.copy_((1 + torch.arange(radial.SHELLS, dtype=torch.float64))[:, None].expand(-1, 4))
        mixer.gain.weight.fill_(1.0)
        for linear in (mixer.enter, mixer.out):
            linear.weight.copy_(torch.eye(4))
    place = torch.arange(12, dtype=torch.float64) / 12
    axes = (space("x", place, period=1.0), space("y", place, period=1.0))
    phase = 2 * torch.pi * (3 * place[:, None] + 2 * place[None, :])
    y = mixer(phase.sin()[None, ..., None].expand(1, 12, 12, 4), Geometry(axes))[0]
    torch.testing.assert_close(y[0, ..., 0], (3 + 2) * phase.cos())
