"""The convolution stem and the refined head: shapes in any rank, names that are added, gradients, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sciml import tokens
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.convolution import Convolution, Narrow, channels_first, channels_last, repeat, strides
from sciml.operator.heads.refined import RefinedHead
from sciml.operator.operator import Operator, Ports
from sciml.tokens import Conditions, HeadSpec, TokenBatch, TokenSpec

NAMES = ("volumes/background", "volumes/anterior", "volumes/posterior")
CONFIG = OperatorConfig.model_validate({"stem_width": 4, "condition_width": 8, "levels": [
    {"width": 16, "depth": 1, "depth_up": 1, "mixers": ["local"], "head_width": 8},
    {"width": 24, "depth": 1, "mixers": ["full"], "head_width": 8}]})


def spec(outputs: tuple[str, ...] = NAMES, channels: tuple[str, ...] = ("volumes/mri",), patch: int = 4,
         head: str = "refined", stem: str = "convolution") -> TokenSpec:
    return TokenSpec("volumes", channels, {"label": HeadSpec(head, outputs, link="logit")},
                     lattice_conditions=("coil",), patch=patch, stem=stem)


def batch(lattice: tuple[int, ...] = (9, 8, 6), channels: tuple[str, ...] = ("volumes/mri",),
          samples: int = 2) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(samples, *lattice, len(channels), generator=generator)
    axes = tuple(tokens.space(name, (torch.arange(n) - (n - 1) / 2) / 32) if n > 1 else tokens.Axis(
        name, "space", torch.zeros(1, 1, 1), coarsen=True, measure=torch.ones(1, 1)) for name, n in zip("xyz", lattice))
    return TokenBatch("volumes", "a", values, channels, axes, num_segments=samples)


def make(given: TokenSpec | None = None, *, moved: bool = True) -> Operator:
    torch.manual_seed(1)
    operator = Operator(CONFIG, {"volumes": given or spec()})
    if moved:
        with torch.no_grad():
            for parameter in operator.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return operator.eval()


def port_of(operator: Operator) -> Ports:
    port = operator.ports["volumes"]
    assert isinstance(port, Ports)
    return port


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("lattice", [(9, 6, 7), (8, 4, 1), (12, 9), (10,)])
def test_outputs_have_the_cells_of_any_lattice(lattice: tuple[int, ...], patch: int) -> None:
    y = make(spec(patch=patch))(batch(lattice))["label"]
    assert y.shape == (2, *lattice, 3)
    assert y.isfinite().all()
    assert y.std() > 0.01


def test_the_untrained_head_says_the_baseline() -> None:
    assert (make(moved=False)(batch())["label"] == 0).all()


def test_a_plane_and_a_volume_of_one_slice_are_read_alike() -> None:
    stem, thick = port_of(make()).stem, batch((12, 8, 1))
    plane = replace(batch((12, 8)), values=thick.values[:, :, :, 0])
    with torch.no_grad():
        flat, fine = stem(plane, [4, 4])
        deep, others = stem(thick, [4, 4, 1])
    torch.testing.assert_close(flat, deep[:, :, :, 0])
    assert [tuple(each.shape) for each in fine] == [(2, 4, 12, 8, 1), (2, 8, 6, 4, 1), (2, 16, 3, 2, 1)]
    for one, two in zip(fine, others):
        torch.testing.assert_close(one, two)


def test_every_usable_weight_gets_a_gradient() -> None:
    operator, given = make().train(), batch()
    seen = torch.rand(given.values.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    given = replace(given, observed=seen, conditions=Conditions(lattice={"coil": torch.randn(2, 9, 8, 6)}))
    operator(given)["label"].square().sum().backward()
    port = port_of(operator)
    for name, parameter in [*port.stem.named_parameters(), *port.heads.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in operator.levels.named_parameters():  # the core takes part, at every level
        if "mixers" in name and "gain" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_what_is_added_keeps_the_weights_and_the_answers_that_are_there() -> None:
    operator, given = make(), batch()
    before = {name: weight.clone() for name, weight in operator.state_dict().items()}
    with torch.no_grad():
        old = operator(given)["label"]
        operator.extend(spec((*NAMES, "volumes/third"), ("volumes/mri", "volumes/t2")))
        new = operator(given)["label"]
        both = operator(batch(channels=("volumes/mri", "volumes/t2")))["label"]
    for name, weight in before.items():
        assert torch.equal(operator.state_dict()[name], weight), name
    torch.testing.assert_close(new[..., :3], old)
    assert (new[..., 3] == 0).all()
    assert both.shape == (2, 9, 8, 6, 4)


def test_a_refreshed_convolution_answers_as_before() -> None:
    torch.manual_seed(0)
    convolution, x = Convolution(3, 5), torch.randn(2, 3, 6, 5, 4)
    with torch.no_grad():
        convolution.kernel_matrix.mul_(torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])[:, None])
        before = convolution(x)
        convolution.refresh()
    size = convolution.kernel_matrix.square().mean(1).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, (2 / 81) ** 0.5))
    torch.testing.assert_close(convolution(x), before, rtol=1e-3, atol=1e-3)


def test_a_head_takes_over_the_way_back_of_the_one_that_it_replaces() -> None:
    masked = replace(spec(), heads={"image": HeadSpec("refined", ("volumes/mri",))})
    operator = make(masked)
    old = {name: weight.clone() for name, weight in port_of(operator).heads["image"].state_dict().items()}
    operator.extend(spec())
    port = port_of(operator)
    assert list(port.heads) == ["label"]
    new = port.heads["label"].state_dict()
    shared = {name for name in old if not name.startswith(("outputs", "offsets"))}
    assert shared
    assert all(torch.equal(new[name], old[name]) for name in shared)
    assert all((weight == 0).all() for name, weight in new.items() if name not in shared)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    operator, given = make(), batch()
    with torch.no_grad():
        together = operator(given)["label"]
        alone = operator(replace(given, values=given.values[1:], num_segments=1))["label"]
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_the_answer() -> None:
    operator, given = make(), batch((16, 16, 16))
    with torch.no_grad():
        exact = operator(given)["label"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = operator(given)["label"].float()
    assert torch.corrcoef(torch.stack([exact.flatten(), rough.flatten()]))[0, 1] > 0.99


def test_a_stem_without_fine_features_and_axes_without_an_order_are_refused() -> None:
    with pytest.raises(InputError, match="fine features"):
        make(spec(stem="patch"))(batch())
    given = batch((8, 8))
    units = replace(given, axes=(tokens.identity("unit", torch.arange(8), "a/unit"), given.axes[1]))
    with pytest.raises(InputError, match="patch"):
        make()(units)
    later = replace(given, axes=(given.axes[0], tokens.time("time", torch.arange(8) / 8.0, causal=True)))
    with pytest.raises(InputError, match="patch"):
        make()(later)


def test_a_convolution_is_a_normalised_convolution() -> None:
    torch.manual_seed(0)
    layer, x = Convolution(3, 5), torch.randn(2, 3, 6, 5, 4)
    plain = F.conv3d(x, layer.kernel_matrix.view(5, 3, 3, 3, 3), padding=1)
    flat = plain.flatten(2)
    expected = (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), F.leaky_relu(expected, 0.01).view_as(plain))
    torch.testing.assert_close(Narrow(3, 4)(x).shape, torch.Size([2, 4, 6, 5, 4]))


def test_layouts_and_steps() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert channels_first(x).shape == (2, 5, 3, 4, 1)
    assert torch.equal(channels_last(channels_first(x), 2), x)
    assert torch.equal(repeat(channels_first(x), (2, 1))[:, :, ::2], channels_first(x))
    assert strides([8, 1, 5], 2) == [(4, 1, 5), (2, 1, 1)]


DEEP = replace(spec(), heads={"label": HeadSpec("refined_deep", NAMES, link="logit")})


def test_deep_supervision_asks_every_resolution_in_training_alone() -> None:
    """Finest first; a coarser one says the same of all cells of a block of 2 or 4; the answer is the plain head's."""
    operator = make(DEEP)
    given = batch((8, 8, 6))
    y = operator.train()(given)["label"].detach()
    assert y.shape == (2, 8, 8, 6, 9)
    assert torch.equal(operator.eval()(given)["label"], y[..., :3])
    for size, part in ((2, y[..., 3:6]), (4, y[..., 6:])):
        blocks = part[:, :, :, :4].unflatten(3, (-1, size)).unflatten(2, (-1, size)).unflatten(1, (-1, size))
        assert torch.equal(blocks, blocks[:, :, :1, :, :1, :, :1].expand_as(blocks))
        assert part.unique().numel() > 8
    assert not torch.equal(y[..., 3:6], y[..., 6:])


def test_deep_supervision_can_be_begun_and_left() -> None:
    """Weights of the plain head stay when it is asked at every resolution, and when it no longer is; a loss of the
    coarsest answer moves its convolutions and not the finest ones."""
    operator = make()
    before = operator(batch())["label"].detach()
    operator.extend(DEEP)
    torch.testing.assert_close(operator(batch())["label"].detach(), before)
    head = port_of(operator).heads["label"]
    assert isinstance(head, RefinedHead)
    for rows in head.coarse.parameters():
        torch.nn.init.ones_(rows)
    (operator.train()(batch())["label"][..., 6:] - 1).square().sum().backward()
    moved = [sum(float(p.grad.abs().sum()) for p in each.parameters() if p.grad is not None)
             for each in head.convolutions]
    assert moved[0] == moved[1] == 0
    assert moved[2] > 0
    operator.extend(spec())
    assert len(head.coarse) == 0
    torch.testing.assert_close(operator.train()(batch())["label"].detach(), before)
