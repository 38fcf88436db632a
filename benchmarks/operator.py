"""The operator's training step against what the machine can do, and against SwinV2's.

    OMP_WAIT_POLICY=ACTIVE sciml bench operator

(on a machine that does nothing else: waiting threads then spin, which a step of so many short operations needs.)

Reference: batch 16, 64 × 64, patch 4, widths 64/128, two levels of two blocks, feed-forward ratio 2. A step is forward,
mean square and backward. The fraction is the rate of its matrix products (counted by torch's FlopCounterMode; nothing
else is counted) over the float32 rate of a 2048² product with as many threads, measured in the same rounds: every
round runs each variant once, and medians are compared.

Roofline: products at the rate of the 2048² product, plus everything that must be written and read between them at the
bandwidth of an elementwise sum, is the time that a program would take which fuses all that is elementwise
(`attainable`); with every operation of the eager program as a pass of its own it is `attainable_unfused`.

Peer: `Swinv2Model` of transformers (scOT's body), same lattice, widths, depths, heads and feed-forward ratio.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sciml.memory import keep_freed
from sciml.operator.compiled import compile_blocks
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.report.bench import Bench, Row
from sciml.tokens import Conditions, HeadSpec, TokenBatch, TokenSpec, space

ROUNDS = int(os.environ.get("SCIML_BENCH_ROUNDS", "15"))
SIZE, PATCH = 64, 4
SPEC = TokenSpec("torus", ("torus/u",), {"state": HeadSpec("lattice", ("torus/u",))}, lattice_conditions=("forcing",),
                 vector_conditions=("lead",), patch=PATCH)
MIXERS = {"radial": ["radial"], "axial": ["axial"], "axial_local": ["axial", "local"], "integral": ["integral"]}
WIDTHS = ((64, 128), (128, 256))
BFLOAT16_WIDTH = (256, 256)

Step = Callable[[], Any]


@dataclass(frozen=True)
class Variant:
    """One way to run one operator: `mixers` is a key of MIXERS."""

    mixers: str
    widths: tuple[int, ...]
    compiled: bool = False
    bfloat16: bool = False
    batch: int = 16

    @property
    def name(self) -> str:
        way = ("compiled" if self.compiled else "eager") + ("_bfloat16" if self.bfloat16 else "")
        return f"{self.mixers}_{way}"

    @property
    def place(self) -> str:
        return "_".join(map(str, self.widths))


def torus(batch: int) -> TokenBatch:
    places = torch.arange(SIZE) / SIZE
    return TokenBatch("torus", "torus", torch.randn(batch, SIZE, SIZE, 1), ("torus/u",),
                      tuple(space(name, places, period=1.0) for name in "xy"), num_segments=batch,
                      conditions=Conditions({"lead": torch.ones(batch)}, {"forcing": torch.randn(batch, SIZE, SIZE)}))


def make_operator(variant: Variant) -> Operator:
    torch.manual_seed(0)
    levels = [{"width": width, "depth": 2, "mixers": MIXERS[variant.mixers]} for width in variant.widths]
    operator = Operator(OperatorConfig.model_validate({"levels": levels}), {"torus": SPEC})
    if variant.compiled:
        compile_blocks(operator)
    return operator


def training_step(variant: Variant) -> Step:
    return partial(step, make_operator(variant), torus(variant.batch), variant.bfloat16)


def step(model: nn.Module, batch: TokenBatch, bfloat16: bool = False) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = model(batch)["state"]
    (y.float() - batch.values).square().mean().backward()


def swin_step(widths: tuple[int, ...], batch: int = 16) -> Step:
    """The same of SwinV2: its hidden state stands for the output, so it has neither head nor way up."""
    from transformers import Swinv2Config, Swinv2Model

    tokens = SIZE // PATCH
    model = Swinv2Model(Swinv2Config(
        image_size=SIZE, patch_size=PATCH, num_channels=2, embed_dim=widths[0], depths=[2] * len(widths),
        num_heads=[width // 32 for width in widths], window_size=tokens // 2, mlp_ratio=2.0, drop_path_rate=0.0))
    pixels = torch.randn(batch, 2, SIZE, SIZE)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(pixels).last_hidden_state.square().mean().backward()
    return run


def medians(steps: dict[str, Step], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each, one run a round in turn, after two rounds that don't count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + 2):
        for name, run in steps.items():
            began = time.perf_counter()
            run()
            if index >= 2:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def product() -> Step:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda: a @ b


def stream() -> Step:
    """An elementwise sum of arrays of a step's size (4096 tokens of 128 channels)."""
    a, b, out = (torch.randn(4096, 128) for _ in range(3))
    return lambda: [torch.add(a, b, out=out) for _ in range(10)]


STREAM_BYTES = 10 * 3 * 4096 * 128 * 4


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, matrix products apart."""

    PRODUCTS = ("aten.mm.", "aten.bmm.", "aten.addmm.", "aten.baddbmm.")

    def __init__(self) -> None:
        super().__init__()
        self.products, self.rest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            moved = sum(nbytes(leaf) for leaf in tree_leaves((args, kwargs, result)))
            if str(func).startswith(self.PRODUCTS):
                self.products += moved
            else:
                self.rest += moved
        return result


def nbytes(leaf: Any) -> int:
    """Of a tensor's distinct elements: an expanded dimension is read from where it is."""
    if not isinstance(leaf, Tensor):
        return 0
    distinct = 1
    for size, stride in zip(leaf.shape, leaf.stride()):
        distinct *= size if stride else 1
    return distinct * leaf.element_size()


def variants(widths: tuple[int, ...]) -> Iterator[Variant]:
    if widths == BFLOAT16_WIDTH:
        for compiled in (False, True):
            for bfloat16 in (False, True):
                yield Variant("radial", widths, compiled, bfloat16, batch=4)
                yield Variant("axial", widths, compiled, bfloat16, batch=4)
        return
    for mixers in MIXERS:
        for compiled in (False, True):
            yield Variant(mixers, widths, compiled)


def counted(variant: Variant) -> tuple[int, Traffic]:
    """Operations of the eager step's matrix products, and its traffic."""
    plain = training_step(Variant(variant.mixers, variant.widths, batch=variant.batch))
    with FlopCounterMode(display=False) as flops:
        plain()
    with Traffic() as traffic:
        plain()
    return flops.get_total_flops(), traffic


def measure(bench: Bench, widths: tuple[int, ...], threads: int) -> None:
    place = "_".join(map(str, widths)) + ("_one_thread" if threads == 1 else "")
    own = list(variants(widths))
    if bench.has(f"operator/{place}/{own[-1].name}_fraction"):
        return
    torch.set_num_threads(threads)
    steps: dict[str, Step] = {variant.name: training_step(variant) for variant in own}
    steps |= {"gemm": product(), "stream": stream()}
    if widths != BFLOAT16_WIDTH:
        steps["swinv2"] = swin_step(widths)
    click.echo(f"{place}: warming up (compilation) …", err=True)
    seconds = medians(steps)
    rate, bandwidth = 2 * 2048**3 / seconds["gemm"], STREAM_BYTES / seconds["stream"]
    bench.add(Row(metric=f"operator/{place}/gemm", unit="GFLOP/s", ours=rate / 1e9))
    bench.add(Row(metric=f"operator/{place}/stream", unit="GB/s", ours=bandwidth / 1e9))
    for variant in own:
        flops, traffic = counted(variant)
        name, taken = f"operator/{place}/{variant.name}", seconds[variant.name]
        if variant.bfloat16:
            single = seconds[Variant(variant.mixers, widths, variant.compiled).name]
            bench.add(Row(metric=f"{name}_step", unit="ms", ours=1e3 * taken, peer=1e3 * single, peer_name="float32"))
        elif "swinv2" in seconds:
            bench.add(Row(metric=f"{name}_step", unit="ms", ours=1e3 * taken, peer=1e3 * seconds["swinv2"],
                          peer_name="swinv2"))
        if not variant.compiled and not variant.bfloat16:
            at_rate = flops / rate
            for kind, moved in (("attainable", traffic.products), ("attainable_unfused", traffic.rest)):
                bench.add(Row(metric=f"operator/{place}/{variant.mixers}_{kind}", unit="1",
                              ours=at_rate / (at_rate + moved / bandwidth)))
        bench.add(Row(metric=f"{name}_fraction", unit="1", ours=flops / taken / rate))
        click.echo(f"{name}: {1e3 * taken:.1f} ms, fraction {flops / taken / rate:.3f}", err=True)


def run() -> Bench:
    """Resumed by pair of widths. All of it with torch's threads, the first pair with one thread too."""
    keep_freed()
    bench = Bench.load_or_new("operator")
    threads = torch.get_num_threads()
    for widths in (*WIDTHS, BFLOAT16_WIDTH):
        measure(bench, widths, threads)
    measure(bench, WIDTHS[0], 1)
    return bench
