"""Mixers and their kernels beside what people use today: ratios in one run, measured in turns, medians.

    sciml bench kernels

Width 64 in two heads on periodic lattices, float32, torch's default number of threads. In every comparison ours, the
peer and a 2048² product of float32 matrices take turns of at least 20 ms, so that a machine that slows down slows all.
``…_gemms`` is the same row in units of that product's time, which carries over to other machines. A step is a forward
pass with gradients, and the gradients with respect to input and parameters. Memory: peak of what torch has allocated
beyond the inputs (torch's profiler). Rows that are there after a stop are not measured again.

What has to hold (sciml / peer):

| row | at most |
|---|---|
| full against the formula, 4096 tokens | 1/6 forward, 1/5 step |
| axial against full, 64² | 1/8 |
| axial against plain axial code, 128² | 1/3 forward, 1/2.5 step, 1/3 of the memory |
| axial integral against axial, 128² | 1/3 forward, 1/2.5 step |
| linear and gated compiled against eager | 1/1.6 forward, 1/2 step |
| exponent p of time ∝ tokens^p, 64² → 256² | 1.1, 1.25 at worst |
| packed against padded, lengths 5:1 | 1/3 |
| cached step of gated and scan, history 4000 against 100 | about 1 |
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from sciml.kernels.attend import attend, attend_plain
from sciml.mixers.contract import RoleGain, make_mixer
from sciml.mixers.geometry import Geometry, rotate
from sciml.mixers.projections import Projections
from sciml.report.bench import Bench, Row
from sciml.tokens import Axis, space
from sciml.tokens import time as time_axis

WIDTH, HEADS = 64, 2
SECONDS, ROUNDS, TURN_S = 3.0, 5, 0.02
LINEAR_COST = ("window", "dilated", "linear", "gated", "scan", "integral", "local", "radial", "spectral")
SIDES = (64, 128, 256)
HISTORIES = (100, 1000, 4000)
RECURRENT = ("gated", "scan")
NUM_PACKED, LENGTH_RATIO = 16, 5
GEMM = "gemm"

Run = Callable[[], object]
Pairs = Mapping[str, tuple[Run, Run]]


@dataclass(frozen=True)
class Work:
    """A map with its input and its parameters."""

    apply: Callable[[Tensor], Tensor]
    x: Tensor
    parameters: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def forward(self) -> object:
        return self.apply(self.x)

    def step(self) -> object:
        y = self.apply(self.x.requires_grad_())
        return torch.autograd.grad(y, [self.x, *self.parameters], torch.ones_like(y), allow_unused=True)


@dataclass(frozen=True)
class Case:
    """One comparison. name: data/setting; make: measure → (ours, peer), called only if a row is missing."""

    name: str
    peer_name: str
    make: Callable[[], Pairs]
    measures: tuple[str, ...] = ("forward", "step")


def interleaved(runs: Mapping[str, Run], *, seconds: float, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each, in turns of `TURN_S` or one call: for `seconds`, and `rounds` turns at least."""
    counts = {}
    for name, run in runs.items():
        run()
        began = time.perf_counter()
        run()
        counts[name] = max(1, math.ceil(TURN_S / max(time.perf_counter() - began, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + seconds
    for turn in itertools.count():
        if turn >= rounds and time.perf_counter() >= until:
            break
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(counts[name]):
                run()
            times[name].append((time.perf_counter() - began) / counts[name])
    return {name: float(np.median(own)) for name, own in times.items()}


def peak_bytes(run: Run) -> int:
    """The most that torch had allocated at once during `run()`, beyond what was there before."""
    run()
    gc.collect()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
    assert profile.kineto_results is not None
    found = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    found.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in found), default=0)


@cache
def gemm() -> Run:
    """A product of two 2048² float32 matrices."""
    a, b, out = (torch.randn(2048, 2048) for _ in range(3))
    return partial(torch.mm, a, b, out=out)


def square(n: int) -> Geometry:
    """A periodic n × n lattice."""
    return Geometry(tuple(space(name, torch.arange(n) / n, period=1.0) for name in "xy"))


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(0))


def mixer_work(name: str, geometry: Geometry, x: Tensor, *, compiled: bool = False) -> Work:
    """The mixer as an operator runs it: tables are prepared once, all blocks of a level share them."""
    torch.manual_seed(0)
    mixer: Any = make_mixer(name, {}, WIDTH, HEADS)
    mixer.prepare(geometry)
    call = torch.compile(mixer, fullgraph=True) if compiled else mixer
    return Work(lambda t: call(t, geometry)[0], x.clone(), tuple(mixer.parameters()))


def both(ours: Work, peer: Work) -> Pairs:
    return {"forward": (ours.forward, peer.forward), "step": (ours.step, peer.step)}


def plain_attention(module: Any, line: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention among the tokens of every line ``(…, n, C)``, by the formula."""
    q, k, v = (t.transpose(-2, -3) for t in module.split(line))  # (…, H, n, D)
    logits = rotate(q, table) @ rotate(k, table).transpose(-1, -2) / math.sqrt(module.head_width)
    return module.out((logits.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


def naive_axial(projections: Projections, gain: RoleGain, x: Tensor, geometry: Geometry) -> Tensor:
    """The axial mixer in plain code: per axis the axis moved to its place, the formula, and moved back."""
    q, k, v = projections.split(x)  # each (B, *lattice, H, D)
    total = torch.zeros_like(x)
    for index in range(len(geometry.axes)):
        table = geometry.rotary((index,), projections.head_width)
        one, two, three = (t.movedim(index + 1, -2) for t in (q, k, v))  # (B, *others, H, n, D)
        logits = rotate(one, table) @ rotate(two, table).transpose(-1, -2) / math.sqrt(projections.head_width)
        y = logits.softmax(-1) @ three
        total = total + gain(y.movedim(-2, index + 1).flatten(-2), geometry.role(index))
    return projections.out(total / len(geometry.axes))


def full_against_formula() -> Pairs:
    q, k, v = (torch.randn(2, HEADS, 4096, WIDTH // HEADS) for _ in range(3))
    k.requires_grad_()
    v.requires_grad_()
    return both(Work(lambda t: attend(t, k, v), q.clone(), (k, v)), Work(lambda t: attend_plain(t, k, v), q, (k, v)))


def axial_against_full() -> Pairs:
    return both(mixer_work("axial", square(64), tokens(1, 64, 64)), mixer_work("full", square(64), tokens(1, 64, 64)))


def axial_against_naive() -> Pairs:
    """The same map in plain code."""
    geometry, x = square(128), tokens(1, 128, 128)
    mixer: Any = make_mixer("axial", {}, WIDTH, HEADS)
    peer = Work(lambda t: naive_axial(mixer.projections, mixer.gain, t, geometry), x.clone(), tuple(mixer.parameters()))
    return both(mixer_work("axial", geometry, x), peer)


def axial_against_modules() -> Pairs:
    """As axial attention is usually written: an attention of its own, with its own weights, for every axis."""
    geometry, x = square(128), tokens(1, 128, 128)
    modules = torch.nn.ModuleList(Projections(WIDTH, HEADS) for _ in geometry.axes)
    tables = [geometry.rotary((index,), WIDTH // HEADS) for index in range(len(modules))]

    def plain(t: Tensor) -> Tensor:
        lines = [t.movedim(index + 1, -2) for index in range(len(modules))]
        rows = [plain_attention(module, line, table) for module, line, table in zip(modules, lines, tables)]
        return torch.stack([y.movedim(-2, index + 1) for index, y in enumerate(rows)]).sum(0)

    return both(mixer_work("axial", geometry, x), Work(plain, x.clone(), tuple(modules.parameters())))


def integral_against_axial() -> Pairs:
    geometry, x = square(128), tokens(1, 128, 128)
    return both(mixer_work("integral", geometry, x), mixer_work("axial", geometry, x))


def compiled_against_eager(name: str) -> Pairs:
    torch.compiler.reset()
    x = tokens(4, 64, 64)
    return both(mixer_work(name, square(64), x, compiled=True), mixer_work(name, square(64), x))


def lengths(longest: int) -> list[int]:
    """As in most collections many short and few long: evenly spaced in the logarithm from a fifth of the longest.

    >>> lengths(50)[::5]
    [10, 17, 29, 50]
    """
    return np.geomspace(longest / LENGTH_RATIO, longest, NUM_PACKED).round().astype(int).tolist()


def packed_against_padded(longest: int) -> Pairs:
    """The same samples on one packed axis, and as a batch whose padding has measure 0."""
    sizes = lengths(longest)
    coord = torch.rand(len(sizes), longest, 3, generator=torch.Generator().manual_seed(0))
    measure = torch.stack([(torch.arange(longest) < n).float() for n in sizes])
    padded = Geometry((Axis("atoms", "set", coord, measure=measure),))
    segment = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[None]
    inside = torch.cat([coord[i, :n] for i, n in enumerate(sizes)])[None]
    packed = Geometry((Axis("atoms", "set", inside, segment=segment),))
    ours, peer = tokens(1, sum(sizes)), tokens(len(sizes), longest)
    return both(mixer_work("full", packed, ours), mixer_work("full", padded, peer))


def force_step(kernel: Callable[..., Tensor], shape: Sequence[int]) -> Run:
    """Energies from `kernel`, forces as their gradient, and the gradient of a loss on the forces."""
    leaves = [torch.randn(*shape, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)]

    def run() -> object:
        energy = kernel(*leaves).square().sum()
        forces = torch.autograd.grad(energy, leaves, create_graph=True)
        loss = torch.stack([force.square().sum() for force in forces]).sum()
        return torch.autograd.grad(loss, leaves)

    return run


def second_order(*shape: int) -> Pairs:
    ours, peer = (force_step(kernel, shape) for kernel in (partial(attend, second_order=True), attend_plain))
    return {"force_step": (ours, peer)}


CASES = (
    Case("full/n4096", "naive", full_against_formula),
    Case("axial/n4096", "full", axial_against_full),
    *(Case("axial/128x128", name, make, ("forward", "step", "forward_memory", "step_memory"))
      for name, make in (("naive_axial", axial_against_naive), ("naive_axial_per_axis", axial_against_modules))),
    Case("integral/128x128", "axial", integral_against_axial),
    *(Case(f"{name}/compiled_64x64", f"eager_{name}", partial(compiled_against_eager, name))
      for name in ("linear", "gated")),
    *(Case(f"full/packed_{longest // LENGTH_RATIO}_to_{longest}", "padded", partial(packed_against_padded, longest))
      for longest in (50, 500)),
    Case("attend/molecules", "plain", partial(second_order, 64, HEADS, 21, WIDTH // HEADS), ("force_step",)),
    Case("attend/lines_64", "plain", partial(second_order, 128, HEADS, 64, WIDTH // HEADS), ("force_step",)),
)


def measure(bench: Bench, case: Case, seconds: float = SECONDS) -> None:
    """Add the rows of a case that are missing."""
    units = {name: "MiB" if name.endswith("_memory") else "ms" for name in case.measures}
    missing = [name for name in case.measures if not bench.has(f"{case.name}/{name}_{units[name].lower()}",
                                                               case.peer_name)]
    if not missing:
        return
    pairs = case.make()
    for name in missing:
        ours, peer = pairs[name.removesuffix("_memory")]
        metric = f"{case.name}/{name}_{units[name].lower()}"
        if units[name] == "MiB":
            bench.add(Row(metric=metric, unit="MiB", ours=peak_bytes(ours) / 2**20, peer=peak_bytes(peer) / 2**20,
                          peer_name=case.peer_name))
        else:
            taken = interleaved({"ours": ours, "peer": peer, GEMM: gemm()}, seconds=seconds)
            add_times(bench, metric, case.peer_name, taken["ours"], taken["peer"], taken[GEMM])
        click.echo(f"{metric}: {bench.results.rows[-1].ours:.4g} of {bench.results.rows[-1].peer:.4g} "
                   f"({case.peer_name})", err=True)


def add_times(bench: Bench, metric: str, peer_name: str, ours: float, peer: float, product: float) -> None:
    """A row in ms, after the same one in units of the matrix product: a row in ms says that both are there."""
    bench.add(Row(metric=f"{metric}_gemms", unit="1", ours=ours / product, peer=peer / product, peer_name=peer_name))
    bench.add(Row(metric=metric, unit="ms", ours=1e3 * ours, peer=1e3 * peer, peer_name=peer_name))


def measure_exponent(bench: Bench, name: str, kind: str, seconds: float = SECONDS) -> None:
    """p of time ∝ tokens^p over the three lattices, fitted to the logarithms, and the times of which it is made."""
    metric = f"cost/{name}/{kind}_exponent"
    if bench.has(metric):
        return
    runs = {str(n): getattr(mixer_work(name, square(n), tokens(1, n, n)), kind) for n in SIDES}
    taken = interleaved(runs | {GEMM: gemm()}, seconds=seconds)
    for n in SIDES[1:]:
        add_times(bench, f"cost/{name}/{kind}_{n}x{n}_ms", f"{SIDES[0]}x{SIDES[0]}", taken[str(n)],
                  taken[str(SIDES[0])], taken[GEMM])
    p = exponent([n * n for n in SIDES], [taken[str(n)] for n in SIDES])
    bench.add(Row(metric=metric, unit="1", ours=p))
    click.echo(f"{metric}: {p:.3f}, ms {[round(1e3 * taken[str(n)], 2) for n in SIDES]}", err=True)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log sizes."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def cached_step(name: str, history: int, batch: int = 16) -> Run:
    """One more token after `history` of them, with the mixer's memory of those."""
    torch.manual_seed(0)
    mixer: Any = make_mixer(name, {}, WIDTH, HEADS)
    x = tokens(batch, history + 1)
    axis = time_axis("time", torch.arange(history + 1) * 0.01, causal=True)
    past, last = (Geometry((replace(axis, coord=axis.coord[:, part]),))
                  for part in (slice(0, history), slice(history, None)))
    with torch.no_grad():
        _, state = mixer(x[:, :history], past, ())
    mixer.prepare(last)

    @torch.no_grad()
    def run() -> object:
        return mixer(x[:, history:], last, state)[0]

    return run


def measure_cached(bench: Bench, name: str, seconds: float = SECONDS) -> None:
    """Time of a cached step after long histories beside that after a short one."""
    metrics = {history: f"cached_step/{name}/after_{history}_ms" for history in HISTORIES[1:]}
    peer_name = f"after_{HISTORIES[0]}"
    if all(bench.has(metric, peer_name) for metric in metrics.values()):
        return
    runs = {str(history): cached_step(name, history) for history in HISTORIES}
    taken = interleaved(runs | {GEMM: gemm()}, seconds=seconds)
    for history, metric in metrics.items():
        add_times(bench, metric, peer_name, taken[str(history)], taken[str(HISTORIES[0])], taken[GEMM])
    click.echo(f"cached step of {name}: {[round(1e3 * taken[str(n)], 3) for n in HISTORIES]} ms", err=True)


def run() -> Bench:
    bench = Bench.load_or_new("kernels")
    if not bench.has("machine/gemm_2048/gflops"):
        seconds = interleaved({GEMM: gemm()}, seconds=SECONDS)[GEMM]
        bench.add(Row(metric="machine/gemm_2048/gflops", unit="GFLOP/s", ours=2 * 2048**3 / seconds / 1e9))
    for case in CASES:
        measure(bench, case)
    for name, kind in itertools.product(LINEAR_COST, ("forward", "step")):
        measure_exponent(bench, name, kind)
    for name in (*RECURRENT, "full"):
        measure_cached(bench, name)
    return bench
