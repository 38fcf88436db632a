"""The data of the benchmark of few trajectories: `benchmarks/fields_few.py`. No accuracy is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sciml.cli.bench import load_script
from sciml.data.builders.semilinear import Options, coefficients
from sciml.domains.fields.contract import learn
from sciml.report.bench import Bench

HERE = Path(__file__).parents[1] / "benchmarks"
COUNTS = {"semilinear_family": (8, 1, 1), "allen_cahn": (4, 1, 1), "kuramoto_sivashinsky": (4, 1, 1)}


@pytest.fixture(name="few")
def _few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    script = load_script(HERE / "fields_few.py")
    monkeypatch.setattr(script, "PLACE", tmp_path)
    return script


def test_equations_are_well_posed_and_say_all_coefficients(few: Any) -> None:
    names = {name: set(coefficients(Options(**few.options(name)), 0, 1)) for name in few.COUNTS}
    assert len(set(map(frozenset, names.values()))) == 1
    assert len(names[few.FAMILY]) == len(few.TERMS)


def test_what_is_fine_tuned_on_was_never_pretrained_on(few: Any) -> None:
    """Kuramoto-Sivashinsky: convection and a₂ < 0. Allen-Cahn: growth and a cubic sink."""
    seen = coefficients(Options(**few.options(few.FAMILY)), 0, sum(few.COUNTS[few.FAMILY]))
    assert not ((seen["linear_2"] < 0) & (seen["convection"] != 0)).any()
    assert not ((seen["linear_0"] > 0) & (seen["cubic"] < 0)).any()
    chaos, bistable = (coefficients(Options(**few.options(name)), 0, 1) for name in few.UNSEEN[::-1])
    assert chaos["linear_2"][0] < 0 < chaos["convection"][0]
    assert bistable["cubic"][0] < 0 == bistable["quadratic"][0] < bistable["linear_0"][0]


def test_all_equations_are_in_the_scale_that_is_pretrained_in(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract keeps the statistics of known names; small stores are nested, with statistics of their own."""
    monkeypatch.setattr(few, "COUNTS", COUNTS)
    stores = {name: few.store_of(name) for name in COUNTS}
    known = {few.FAMILY: learn(stores[few.FAMILY], {})}
    for name in few.UNSEEN:
        own = learn(stores[name], known)
        assert own.states["u"].scale == known[few.FAMILY].states["u"].scale
        assert set(own.parameters) == set(known[few.FAMILY].parameters)
        small = few.few(stores[name], 2)
        first = stores[name].meta.splits.train[0].group
        np.testing.assert_array_equal(small.read("u", 0), stores[name].read("u", first))
        assert [len(small.meta.splits.of(split)) for split in ("train", "validation", "test")] == [2, 1, 1]
        assert small.meta.moments["u"].mean != stores[name].meta.moments["u"].mean


def test_gains_are_read_off_the_errors(few: Any, tmp_path: Path) -> None:
    """Fine-tuned is as good at 16 as from scratch at 64, and better at 256 than that ever gets."""
    bench = Bench.load_or_new("few_test", seeds=(0,), place=tmp_path)
    errors = {"from_scratch": (0.4, 0.2, 0.1), "neuraloperator_fno": (0.8, 0.4, 0.2)}
    for kind, theirs in errors.items():
        for count, ours, other in zip(few.SIZES, (0.2, 0.1, 0.05), theirs):
            bench.add(few.Row(metric=f"few/x/relative_l2_{count}", unit="1", ours=ours, peer=other, peer_name=kind))
    few.summarise(bench, "x")
    found = {row.metric: row.ours for row in bench.results.rows}
    assert found["few/x/efficiency_gain_16"] == pytest.approx(4)
    assert found["few/x/efficiency_gain_64"] == pytest.approx(4)
    assert found["few/x/efficiency_gain_at_least_256"] == pytest.approx(1)
    assert found["few/x/accuracy_gain_64_fno"] == pytest.approx(4)
