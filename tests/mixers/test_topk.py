"""Top-k attention: the selection, its derivatives to any order, its memory, and where it is full attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mixer_laws import (
    assert_a_permuted_set_is_permuted,
    assert_autocast_is_near,
    assert_equals_reference,
    assert_only_relative_coordinates_matter,
    assert_packed_samples_are_apart,
    assert_padding_is_not_seen,
    noise,
    random,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sciml.errors import InputError
from sciml.mixers.contract import make_mixer
from sciml.mixers.full import Full
from sciml.mixers.geometry import Geometry
from sciml.mixers.topk import Dots, ScatteredSum, TopK, WeightedSum
from sciml.tokens import Axis, space

WIDTH, HEADS = 16, 2


def make(num_keys: int, block: int = 4) -> TopK:
    torch.manual_seed(0)
    return TopK(WIDTH, HEADS, num_keys=num_keys, block=block)


def lattice(kind: str) -> tuple[Tensor, tuple[Axis, ...]]:
    line = Axis("x", "space", random(1, 5, 1).cumsum(1), measure=random(1, 5) + 0.1)
    own = Axis("y", "time", random(2, 4, 1).cumsum(1), measure=random(2, 4) + 0.1)
    atoms = Axis("atoms", "set", random(1, 7, 3), segment=torch.tensor([[0, 0, 0, 0, 2, 2, 3]]))
    axes: tuple[Axis, ...] = {
        "plane": (line, own), "set": (Axis("variate", "set", torch.zeros(1, 9, 0)),), "packed": (atoms,),
        "padded": (replace(line, measure=torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0]])),),
        "packed plane": (line, atoms), "causal": (Axis("t", "time", random(1, 3, 1), causal=True), line, own),
    }[kind]
    return noise(axes, WIDTH), axes


@pytest.mark.parametrize("num_keys", [1, 3, 50])
@pytest.mark.parametrize("kind", ["plane", "set", "packed", "padded", "packed plane", "causal"])
def test_equals_its_reference_and_its_gradients_do(kind: str, num_keys: int) -> None:
    mixer, (x, axes) = make(num_keys), lattice(kind)
    slopes = assert_equals_reference(mixer, x, Geometry(axes))
    if num_keys > 1:  # the softmax of one score is 1, whatever the score
        assert all((slope != 0).any() for slope in slopes), "every parameter is used"


@pytest.mark.parametrize("kind", ["plane", "set", "packed", "padded"])
@pytest.mark.parametrize("block", [1, 5, 256])
def test_with_enough_keys_it_is_full_attention(kind: str, block: int) -> None:
    mixer, full, (x, axes) = make(20, block), Full(WIDTH, HEADS), lattice(kind)
    full.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x, Geometry(axes))[0], full(x, Geometry(axes))[0])
    sparse = make(1, block)
    assert not torch.allclose(sparse(x, Geometry(axes))[0], full(x, Geometry(axes))[0])


def test_a_query_sees_so_many_keys_and_those_of_highest_score() -> None:
    mixer, axis = make(3), Axis("variate", "set", torch.zeros(1, 9, 0))
    x = torch.randn(1, 9, WIDTH)
    q, k, v = mixer.projections.split(x)
    scores = torch.einsum("bihd,bjhd->bhij", q, k)
    best = scores.argsort(-1, descending=True)[..., :3]
    expected = torch.empty(1, 9, HEADS, WIDTH // HEADS)
    for h in range(HEADS):
        for i in range(9):
            share = (scores[0, h, i, best[0, h, i]] / (WIDTH // HEADS) ** 0.5).softmax(0)
            expected[0, i, h] = share @ v[0, best[0, h, i], h]
    torch.testing.assert_close(mixer(x, Geometry((axis,)))[0], mixer.projections.out(expected.flatten(2)))


@pytest.mark.parametrize("kind", ["plane", "packed"])
def test_the_block_does_not_matter(kind: str) -> None:
    x, axes = lattice(kind)
    whole = make(3, 256)(x, Geometry(axes))[0]
    for block in (1, 3, 20):
        torch.testing.assert_close(make(3, block)(x, Geometry(axes))[0], whole)


def test_a_permuted_set_gives_a_permuted_result() -> None:
    points = Axis("points", "set", random(1, 9, 3), measure=random(1, 9, seed=1))
    assert_a_permuted_set_is_permuted(make(3), points, WIDTH)


@pytest.mark.parametrize("num_keys", [2, 10, 50])
def test_cells_of_measure_zero_are_not_seen(num_keys: int) -> None:
    axes = (space("x", torch.tensor([0.0, 0.2, 0.5, 0.9])), space("y", torch.arange(3.0)))
    assert_padding_is_not_seen(make(num_keys), torch.randn(1, 4, 3, WIDTH), axes, 2)


@pytest.mark.parametrize("num_keys", [2, 10])
def test_packed_samples_do_not_see_each_other(num_keys: int) -> None:
    assert_packed_samples_are_apart(make(num_keys), WIDTH)


@pytest.mark.parametrize("width", [1, 3])
def test_only_relative_coordinates_matter(width: int) -> None:
    points = Axis("points", "set", random(2, 6, width))
    assert_only_relative_coordinates_matter(make(3), torch.randn(2, 6, WIDTH), points)


def test_pair_bias_chooses_and_is_differentiated() -> None:
    mixer, (x, axes) = make(2), lattice("packed")
    bias = (5 * torch.randn(1, HEADS, 7, 7)).requires_grad_()
    slopes = []
    for run in (lambda g: mixer(x, g)[0], lambda g: mixer.reference(x, g)):
        y = run(Geometry(axes, pair_bias=lambda heads: bias))
        slopes.append(torch.autograd.grad(y.square().sum(), bias)[0])
    torch.testing.assert_close(*slopes)
    assert (slopes[0] != 0).any()
    assert ((slopes[0] != 0).sum(-1) <= 2).all(), "only selected logits have a slope"


def test_a_causal_axis_is_left_alone() -> None:
    mixer, (x, axes) = make(3), lattice("causal")
    together, state = mixer(x, Geometry(axes), ())
    assert state == ()
    for t in range(3):
        torch.testing.assert_close(together[:, t], mixer(x[:, t], Geometry(axes[1:]))[0])
    assert (mixer(x[:, :, 0, 0], Geometry(axes[:1]))[0] == 0).all(), "no axis to act along"


def test_sparse_products_are_closed_under_differentiation() -> None:
    keys = torch.tensor([[0, 2], [2, 3], [1, 1], [4, 0], [2, 4]])
    one, many, weights = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (5, 3), (5, 2)))
    torch.testing.assert_close(Dots.apply(one, many, keys, 2), (one[:, None] * many[keys]).sum(-1))
    torch.testing.assert_close(WeightedSum.apply(weights, many, keys, 2), (weights[..., None] * many[keys]).sum(1))
    dense = torch.zeros(5, 5).scatter_add(1, keys, weights)
    torch.testing.assert_close(ScatteredSum.apply(weights, one, keys, 2, 5), dense.T @ one)
    for function, first, second, size in ((Dots, one, many, ()), (WeightedSum, weights, many, ()),
                                          (ScatteredSum, weights, one, (5,))):
        def run(a: Tensor, b: Tensor, function: type = function, size: tuple[int, ...] = size) -> Tensor:
            result: Tensor = function.apply(a, b, keys, 2, *size)  # type: ignore[attr-defined]
            return result
        assert torch.autograd.gradcheck(run, (first, second), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (first, second), fast_mode=True)


@pytest.mark.parametrize("function", [Dots, WeightedSum, ScatteredSum])
def test_derivatives_of_sparse_products_may_be_asked_for_under_autocast(
        function: type[torch.autograd.Function]) -> None:
    keys = torch.tensor([[0, 2], [2, 3], [1, 1], [4, 0], [2, 4]])
    first_shape = (5, 3) if function is Dots else (5, 2)
    inputs = [torch.randn(shape, dtype=torch.float32, requires_grad=True) for shape in (first_shape, (5, 3))]

    def slopes(autocast: bool) -> list[Tensor]:
        y = function.apply(*inputs, keys, 2, *((5,) if function is ScatteredSum else ()))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
            second = torch.autograd.grad([slope.pow(2).sum() for slope in first], inputs)
        return [*first, *second]

    for one, two in zip(slopes(True), slopes(False)):
        torch.testing.assert_close(one, two)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            # what is seen through a stride of zero takes no memory
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
        return result


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_memory_grows_with_tokens_times_block_not_tokens_squared(second_order: bool, packed: bool) -> None:
    n, block, num_keys = 512, 16, 4
    axis = Axis("points", "set", random(1, n, 3), measure=random(1, n),
                segment=(torch.arange(n) // 200)[None] if packed else None)
    x = torch.randn(1, n, WIDTH, requires_grad=True)
    with Largest() as largest:
        y = make(num_keys, block)(x, Geometry((axis,), second_order=second_order))[0]
        slope, = torch.autograd.grad(y.square().sum(), x, create_graph=second_order)
        if second_order:
            slope.square().sum().backward()
    assert largest.numel <= n * max(HEADS * block, 3 * WIDTH), "one block's logits, or all projections"


def test_options_are_checked_and_autocast_is_close() -> None:
    with pytest.raises(InputError, match="num_keys"):
        make_mixer("topk", {"num_keys": 0}, 16, 2)
    mixer = make_mixer("topk", {"num_keys": 20}, 32, 2).float()
    axis = Axis("variate", "set", torch.zeros(1, 40, 0))
    assert_autocast_is_near(mixer, torch.randn(1, 40, 32, dtype=torch.float32), (axis,))
