"""The harness of the kernel benchmarks: turns, rows, units, peers that compute the same. No timing is asserted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sciml import assets
from sciml.cli.bench import load_script
from sciml.mixers.contract import make_mixer
from sciml.mixers.geometry import Geometry
from sciml.report.bench import Bench
from sciml.tokens import space


@pytest.fixture(scope="module")
def kernels() -> Any:
    return load_script(assets.benchmark("kernels"))


@pytest.fixture(scope="module")
def time_to_error() -> Any:
    return load_script(assets.benchmark("time_to_error"))


def recorder(calls: list[str], name: str) -> Callable[[], None]:
    return lambda: calls.append(name)


def test_turns_alternate(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TURN_S", 0.0)
    calls: list[str] = []
    taken = kernels.interleaved({name: recorder(calls, name) for name in "abc"}, seconds=0.0, rounds=4)
    warm, turns = calls[:6], calls[6:]
    assert warm == ["a", "a", "b", "b", "c", "c"]
    assert turns == ["a", "b", "c"] * 4
    assert set(taken) == set("abc")
    assert min(taken.values()) > 0


def test_a_case_makes_rows_beside_the_same_runs_product_and_is_measured_once(
        kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(kernels, "gemm", lambda: int)
    monkeypatch.setattr(kernels, "interleaved",
                        lambda runs, **_: dict(zip(runs, (0.002, 0.008, 0.004), strict=True)))
    monkeypatch.setattr(kernels, "peak_bytes", lambda run: run())

    def make() -> dict[str, tuple[Callable[[], int], Callable[[], int]]]:
        made.append(1)
        return {"forward": (lambda: 2**20, lambda: 2**22)}

    case = kernels.Case("axial/n16", "naive", make, ("forward", "forward_memory"))
    bench = Bench.load_or_new("kernels", place=tmp_path)
    kernels.measure(bench, case)
    rows = {row.metric: row for row in bench.results.rows}
    assert {name: (row.ours, row.peer, row.ratio, row.unit) for name, row in rows.items()} == {
        "axial/n16/forward_ms": (2.0, 8.0, 0.25, "ms"), "axial/n16/forward_ms_gemms": (0.5, 2.0, 0.25, "1"),
        "axial/n16/forward_memory_mib": (1.0, 4.0, 0.25, "MiB")}
    kernels.measure(bench, case)
    assert made == [1]


def test_the_exponent_is_the_slope_and_is_kept_with_its_times(
        kernels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SIDES", (2, 4, 8))
    monkeypatch.setattr(kernels, "gemm", lambda: int)
    monkeypatch.setattr(kernels, "interleaved", lambda runs, **_: {
        name: 1.0 if name == kernels.GEMM else int(name) ** 3.0 for name in runs})
    bench = Bench.load_or_new("kernels", place=tmp_path)
    kernels.measure_exponent(bench, "local", "step")
    rows = {row.metric: row for row in bench.results.rows}
    assert rows["cost/local/step_exponent"].ours == pytest.approx(1.5)
    assert rows["cost/local/step_8x8_ms"].ratio == pytest.approx(64)


def test_peak_memory_is_of_what_is_alive_at_once(kernels: Any) -> None:
    def run() -> None:
        for _ in range(3):
            one = torch.ones(1 << 18)
            two = one + 1
            del one, two

    assert 2 << 20 <= kernels.peak_bytes(run) < 2.1 * (1 << 20)


def test_the_plain_axial_code_is_the_axial_mixer(kernels: Any) -> None:
    torch.manual_seed(0)
    mixer: Any = make_mixer("axial", {}, 16, 2).double()
    sizes = {"x": 4, "y": 3}
    geometry = Geometry(tuple(space(name, torch.arange(n).double() / n, period=1.0) for name, n in sizes.items()))
    x = torch.randn(2, 4, 3, 16, dtype=torch.float64)
    torch.testing.assert_close(kernels.naive_axial(mixer.projections, mixer.gain, x, geometry), mixer(x, geometry)[0])


def test_runs_of_every_kind_run(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "NUM_PACKED", 3)
    assert kernels.lengths(50) == [10, 22, 50]
    for pair in kernels.packed_against_padded(10).values():
        for run in pair:
            run()
    forward, step = kernels.mixer_work("axial", kernels.square(4), kernels.tokens(1, 4, 4)), kernels.cached_step
    y, slopes = forward.forward(), forward.step()
    assert y.shape == slopes[0].shape == (1, 4, 4, kernels.WIDTH)
    assert step("full", 5, batch=2)().shape == (2, 1, kernels.WIDTH)
    for run in kernels.second_order(1, 2, 3, 4)["force_step"]:
        assert all(slope.isfinite().all() for slope in run())


def test_equal_error_is_the_first_time_at_the_peers_best(time_to_error: Any) -> None:
    peer = [(10.0, 0.5), (20.0, 0.2), (30.0, 0.25)]
    assert time_to_error.equal_error([(5.0, 0.4), (10.0, 0.2), (15.0, 0.1)], peer) == (10.0, 20.0)
    assert time_to_error.equal_error([(5.0, 0.4)], peer) == (None, 20.0)


def test_a_seed_that_did_not_get_there_leaves_no_mean(time_to_error: Any, tmp_path: Path) -> None:
    setting, name = time_to_error.SETTINGS[0], "equal_error/train_seconds"
    bench = Bench.load_or_new("time_to_error", place=tmp_path)
    time_to_error.add(bench, setting, name, "s", [(5.0, 20.0), (None, 30.0), (7.0, 20.0)])
    assert [row.metric.rpartition("_")[2] for row in bench.results.rows] == ["seed0", "seed2"]
    time_to_error.add(bench, setting, name, "s", [(5.0, 20.0), (6.0, 30.0), (7.0, 10.0)])
    assert bench.results.rows[-1].metric == f"navier_stokes_64/{name}"
    assert bench.results.rows[-1].ratio == pytest.approx(0.3)


def test_the_larger_lattice_is_the_same_problem(time_to_error: Any) -> None:
    small, large = (time_to_error.source_of(setting) for setting in time_to_error.SETTINGS)
    assert (small.options["resolution"], large.options["resolution"]) == (64, 128)
    for key in ("viscosity", "forcing_amplitude", "frame_dt"):
        assert small.options[key] == large.options[key]
    assert sum(large.split.counts.model_dump().values()) == large.options["trajectories"]
