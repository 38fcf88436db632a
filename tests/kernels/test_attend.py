"""Every kernel against the formula: values, first, second and third derivatives, and which operations are run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sciml.kernels import dispatch, rows
from sciml.kernels.attend import attend, attend_plain, segment_lengths
from sciml.kernels.contract import Request, request_of

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu"
NAMES = tuple(dispatch.kernels())


@pytest.fixture(autouse=True)
def _rules_alone() -> Iterator[None]:
    """No table of the machine that runs the tests."""
    with dispatch.frozen({}):
        yield


class Ops(TorchDispatchMode):
    """Names of the operations that were run, and the number of elements of the largest tensor they made."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.largest = 0

    @property
    def names(self) -> set[str]:
        return set(self.count)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count[str(func.overloadpacket)] += 1
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and not made._is_view():
                self.largest = max(self.largest, made.numel())
        return out


def tensors(shape: tuple[int, int, int, int, int], bias: str = "none", *, seed: int = 0,
            dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    batch, heads, n, m, d = shape
    generator = torch.Generator().manual_seed(seed)
    form = {"none": None, "keys": (batch, 1, 1, m), "shared": (1, 1, n, m), "pair": (1, heads, n, m),
            "full": (batch, heads, n, m)}[bias]
    q, k, v = (torch.randn(batch, heads, size, d, generator=generator, dtype=dtype) for size in (n, m, m))
    return q, k, v, None if form is None else torch.randn(form, generator=generator, dtype=dtype)


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], bool]:
    n = draw(st.integers(1, 20))
    m = n if draw(st.booleans()) else draw(st.integers(n, 20))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), n, m, draw(st.integers(1, 9)))
    bias = draw(st.sampled_from(["none", "keys", "shared", "pair", "full"]))
    return tensors(shape, bias, seed=draw(st.integers(0, 99))), draw(st.booleans())


def slopes(y: Tensor, inputs: list[Tensor], orders: int) -> list[Tensor]:
    """The result and its derivatives of growing order, each of a nonlinear number made of the one before."""
    found = [y]
    for order in range(orders):
        total = sum(((x * x.detach().cos() + x**2).sum() for x in found[-len(inputs):]), torch.zeros(()))
        found += torch.autograd.grad(total, inputs, create_graph=order + 1 < orders)
    return found


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(problem=problems())
def test_kernels_equal_the_formula_and_so_do_their_derivatives(
        name: str, problem: tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], bool]) -> None:
    (q, k, v, bias), causal = problem
    kernel = dispatch.kernels()[name]
    for second_order, bias_grad in ((True, True), (True, False), (False, True), (False, False)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        own = bias if bias is None else bias.clone().requires_grad_(bias_grad)
        request = request_of(*leaves, own, causal=causal, packed=False, second_order=second_order, dtype=q.dtype,
                             autocast=False)
        if kernel.refuses(request) is not None:
            continue
        inputs = [*leaves, own] if own is not None and bias_grad else leaves
        orders = 2 if second_order else 1
        fast = slopes(kernel.run(request, *leaves, own, None), inputs, orders)
        for one, two in zip(fast, slopes(attend_plain(*leaves, bias=own, causal=causal), inputs, orders)):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def rows_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool = False) -> Tensor:
    return rows.PLUGIN.run(Request((1,) * 6, causal=causal), q, k, v, bias, None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", ["none", "keys", "pair"])
def test_derivatives_of_rows_equal_differences(bias: str, causal: bool) -> None:
    given = [x if x is None else x.requires_grad_() for x in tensors((2, 2, 3, 4, 2), bias)]
    def run(*given: Tensor) -> Tensor:
        return rows_kernel(*given, causal=causal)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_third_derivatives_of_rows_equal_the_formulas() -> None:
    leaves = [x.requires_grad_() for x in tensors((2, 1, 3, 3, 2), "pair") if x is not None]
    fast = slopes(rows_kernel(*leaves), leaves, 3)
    for one, two in zip(fast, slopes(attend_plain(*leaves[:3], bias=leaves[3]), leaves, 3)):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("keys", [8, 16, 32])
def test_derivatives_asked_for_under_autocast_equal_the_formulas(keys: int) -> None:
    """As forces are, whose gradient is a part of the forward pass; rows this short are computed in single precision."""
    given = tensors((128, 2, keys, keys, 8), "pair", dtype=torch.float32)
    leaves = [x.requires_grad_() for x in given if x is not None]
    exact = slopes(attend_plain(*leaves[:3], bias=leaves[3]), leaves, 2)
    for second_order, inputs in ((True, leaves), (False, leaves[:3])):
        bias = leaves[3] if second_order else leaves[3].detach()
        with torch.autocast("cpu", torch.bfloat16), dispatch.record() as entries:
            found = slopes(attend(*leaves[:3], bias=bias, second_order=second_order), inputs, 1 + second_order)
        assert [entry.kernel for entry in entries] == ["rows"]
        for one, two in zip(found, exact):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.detach().abs().max()))


@pytest.mark.parametrize("size", [1, 16, 10**9])
@pytest.mark.parametrize("bias", ["none", "keys", "pair"])
def test_rows_in_blocks_equal_rows_at_once(size: int, bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [x.requires_grad_() for x in tensors((7, 2, 5, 5, 4), bias) if x is not None]
    given = (*leaves, *[None] * (4 - len(leaves)))
    whole = slopes(rows_kernel(*given), leaves, 2)  # type: ignore[arg-type]
    monkeypatch.setattr(rows, "BLOCK_BYTES", size * 8 * 2 * 5 * 5)
    for one, two in zip(slopes(rows_kernel(*given), leaves, 2), whole):  # type: ignore[arg-type]
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("keys", [3, 15, 16, 20, 64])
def test_rows_in_single_precision_are_as_exact_as_the_formula(keys: int) -> None:
    """Both forms of softmax, short of a vector register and beyond; logits overflow if the largest isn't taken off."""
    q, k, v, _ = tensors((4, 2, 5, keys, 8))
    exact = attend_plain(30 * q, k, v)
    for kernel in (rows_kernel, lambda *given: attend_plain(*given[:3])):
        error = (kernel(30 * q.float(), k.float(), v.float(), None) - exact).abs().max()
        assert error < 2e-5


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("shape", [(4, 2, 20, 20, 8), (1, 2, 200, 200, 8), (128, 1, 8, 8, 8)])
@pytest.mark.parametrize("bias", ["none", "keys", "pair", "wants a gradient"])
def test_no_request_falls_to_the_slow_path_unnoticed(shape: tuple[int, int, int, int, int], bias: str,
                                                     second_order: bool) -> None:
    """torch takes its math path without a word; here it is either the fused kernel that runs, or one of ours."""
    q, k, v, given = tensors(shape, "pair" if bias == "wants a gradient" else bias, dtype=torch.float32)
    if bias == "wants a gradient" and given is not None:
        given.requires_grad_()
    with dispatch.record() as entries, Ops() as ops:
        y = attend(q.requires_grad_(), k, v, bias=given, second_order=second_order)
        y.sum().backward()
    (entry,) = entries
    fused = [name for name in ops.names if "scaled_dot_product" in name]
    assert sorted(fused) == ([FLASH, f"{FLASH}_backward"] if entry.kernel == "flash" else [])
    if second_order or bias == "wants a gradient":
        assert entry.kernel in ("rows", "plain")
    else:
        assert entry.kernel == ("rows" if shape[0] * shape[1] >= rows.FEWEST_ROWS else "flash")


def test_five_dimensions_are_refused() -> None:
    x = torch.randn(2, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="fold the lattice into B"):
        attend(x, x, x)


@pytest.mark.parametrize("keys", [64, 200])
@pytest.mark.parametrize("rows_of", [2, 256])
def test_short_rows_stay_in_single_precision_under_autocast(keys: int, rows_of: int) -> None:
    q, k, v, _ = tensors((rows_of, 1, 4, keys, 8), dtype=torch.float32)
    with dispatch.record() as entries, torch.autocast("cpu", torch.bfloat16):
        y = attend(q, k, v)
    assert y.dtype == (torch.float32 if keys == 64 else torch.bfloat16)
    assert entries[0].request.autocast
    assert entries[0].request.dtype == str(y.dtype).removeprefix("torch.")
    torch.testing.assert_close(y.float(), attend_plain(q, k, v), rtol=1e-6 if keys == 64 else 3e-2, atol=2e-2)


def test_values_of_reduced_precision_keep_their_dtype() -> None:
    q, k, v, _ = (x if x is None else x.bfloat16() for x in tensors((3, 2, 5, 5, 8)))
    assert attend(q, k, v).dtype == torch.bfloat16


def segments(lengths: tuple[int, ...]) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6).map(tuple), batch=st.integers(1, 2),
       bias=st.sampled_from(["none", "keys", "pair", "shared", "full"]), causal=st.booleans(),
       second_order=st.booleans())
def test_packed_samples_equal_each_on_its_own(lengths: tuple[int, ...], batch: int, bias: str, causal: bool,
                                              second_order: bool) -> None:
    n = sum(lengths)
    q, k, v, given = tensors((batch, 2, n, n, 4), bias)
    leaves = [x.requires_grad_() for x in (q, k, v, given) if x is not None]
    orders = 2 if second_order else 1
    packed = attend(q, k, v, bias=given, causal=causal, second_order=second_order, segment=segments(lengths))
    parts, start = [], 0
    for size in lengths:
        own = slice(start, start + size)
        block = given if given is None else given[..., own] if given.shape[2] == 1 else given[..., own, own]
        parts.append(attend_plain(q[:, :, own], k[:, :, own], v[:, :, own], bias=block, causal=causal))
        start += size
    for one, two in zip(slopes(packed, leaves, orders), slopes(torch.cat(parts, 2), leaves, orders)):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_packed_samples_cost_no_square_of_all_tokens() -> None:
    lengths = tuple(4 + i % 5 for i in range(60))
    n = sum(lengths)
    q, k, v, _ = tensors((1, 2, n, n, 8), dtype=torch.float32)
    known = segment_lengths(segments(lengths))
    for second_order in (False, True):
        with Ops() as ops:
            y = attend(q.requires_grad_(), k, v, segment=known, second_order=second_order)
            y.sum().backward()
        assert ops.largest < n * n / 4
    assert known == lengths


def test_packed_samples_of_one_length_make_one_call() -> None:
    q, k, v, _ = tensors((1, 2, 24, 24, 8))
    with dispatch.record() as entries, Ops() as ops:
        attend(q, k, v, segment=segments((3, 8, 5, 8)))
    assert [entry.kernel for entry in entries] == ["packed"]
    assert ops.count[FLASH] == 3
    with dispatch.record() as entries:
        attend(q, k, v, segment=segments((3, 8, 5, 8)), second_order=True)
    assert [entry.request.keys for entry in entries] == [24, 3, 5, 8]
    assert [entry.depth for entry in entries] == [0, 1, 1, 1]


def test_packed_samples_that_are_many_and_short_make_rows() -> None:
    q, k, v, _ = tensors((1, 2, 600, 600, 8))
    with dispatch.record() as entries:
        attend(q, k, v, segment=segments((6,) * 100))
    assert [(entry.kernel, entry.depth) for entry in entries] == [("packed", 0), ("rows", 1)]
