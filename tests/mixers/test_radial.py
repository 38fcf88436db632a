"""The two transforms of the radial mixer are one, in any rank and on odd, even, periodic and bounded axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciml.mixers import radial
from sciml.mixers.geometry import Geometry
from sciml.tokens import Axis, space


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


@pytest.mark.parametrize("longest_dense", [0, 96])
def test_every_sample_has_its_own_lengths(longest_dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open axes of other lengths in a batch: wavenumbers are those of each sample, in both transforms and gradients."""
    monkeypatch.setattr(radial, "LONGEST_DENSE", longest_dense)
    torch.manual_seed(0)
    mixer = radial.Radial(8, 1).double()
    scale = torch.tensor([1.0, 0.4, 2.5], dtype=torch.float64)
    def axis(name: str, n: int, batch: Tensor) -> Axis:
        place = torch.arange(n, dtype=torch.float64)[None, :, None] / n * batch[:, None, None]
        return Axis(name, "space", place, measure=(batch / n)[:, None].expand(-1, n))
    rest = space("z", torch.arange(4, dtype=torch.float64) / 4, period=2.0)
    x = torch.randn(3, 6, 5, 4, 8, dtype=torch.float64, requires_grad=True)
    y = mixer(x, Geometry((axis("x", 6, scale), axis("y", 5, scale.flip(0)), rest)))[0]
    slope, = torch.autograd.grad(y.square().sum(), x)
    for b in range(3):
        own = (axis("x", 6, scale[[b]]), axis("y", 5, scale.flip(0)[[b]]), rest)
        leaf = x[[b]].detach().requires_grad_()
        alone = mixer(leaf, Geometry(own))[0]
        torch.testing.assert_close(y[[b]], alone)
        torch.testing.assert_close(y[[b]], mixer.reference(x[[b]], Geometry(own)))
        torch.testing.assert_close(slope[[b]], torch.autograd.grad(alone.square().sum(), leaf)[0])
    assert not torch.allclose(y[0], mixer(x[[0]], Geometry((axis("x", 6, 2 * scale[[0]]), *own[1:])))[0][0])


def test_samples_of_one_length_share_their_tables() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    axis = Axis("x", "space", torch.rand(2, 4, 1).cumsum(1), measure=weight)
    assert radial.axis_waves(axis)[0].extent.tolist() == [2.0]
