"""The harness of the molecules benchmark: padding computes the same, peers see rotations, bars, what the environment
asks for. No accuracy is asserted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciml.cli.bench import load_script
from sciml.domains.molecules.adapter import Molecules
from sciml.domains.molecules.fitted import Fitted
from sciml.domains.molecules.references import fit_references
from sciml.errors import InputError
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor
from sciml.report.bench import Bench, Row

HERE = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_script(HERE / "molecules.py")


def adapter_of(**config: Any) -> Molecules:
    elements = ("H", "C", "O")
    references = fit_references(elements, np.eye(3), np.zeros(3), "sum", "test")
    fit = Fitted("made", elements, {"energy": references}, {"energy": 1.0}, 1.0, {"energy": "eV"}, "", ())
    return Molecules(Molecules.create(config).config, {"made": fit})


def ours() -> Predictor:
    torch.manual_seed(0)
    adapter = adapter_of()
    levels = [{"width": 16, "depth": 1, "head_width": 16, "mixers": ["cluster"]}]
    config = OperatorConfig.model_validate({"levels": levels})
    return Predictor(Operator(config, {"molecules": adapter.spec()}), {"molecules": adapter})


def test_padding_computes_the_same_forces(bench: Any) -> None:
    predictor, rng = ours(), np.random.default_rng(0)
    samples = [bench.speed.molecule(size, rng) for size in (5, 9, 7)]
    packed = predictor.forward(bench.speed.encoded(predictor, samples))["forces"][0]
    filled = predictor.forward(bench.speed.encoded(predictor, [bench.speed.filled(s, 9) for s in samples]))["forces"][0]
    real = torch.cat([torch.arange(9 * i, 9 * i + s.sizes["atom"]) for i, s in enumerate(samples)])
    assert len(filled) == 27
    torch.testing.assert_close(filled[real], packed, atol=1e-4, rtol=1e-3)
    assert packed.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["schnet", "visnet"])
def test_a_peer_is_invariant_and_sees_only_its_own_molecule(bench: Any, kind: str) -> None:
    pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    adapter, rng = adapter_of(), np.random.default_rng(0)
    net = bench.peers.schnet(16, 1) if kind == "schnet" else bench.peers.visnet(16, 1)
    predictor = Predictor(bench.peers.PeerOperator(kind, net, adapter), {"molecules": adapter})
    samples = [bench.speed.molecule(size, rng) for size in (4, 6)]
    both = predictor.forward(bench.speed.encoded(predictor, samples))
    alone = [predictor.forward(bench.speed.encoded(predictor, [each])) for each in samples]
    torch.testing.assert_close(both["energy"], torch.cat([each["energy"] for each in alone]), atol=1e-5, rtol=1e-4)
    turned = samples[0].assign(position=samples[0]["position"][:, ::-1] * [1, 1, -1])
    after = predictor.forward(bench.speed.encoded(predictor, [turned]))
    torch.testing.assert_close(after["energy"], alone[0]["energy"], atol=1e-5, rtol=1e-4)
    assert both["forces"].shape == (1, 10, 3)


def test_pairs_are_those_of_one_molecule_within_the_cutoff(bench: Any) -> None:
    pos, segment = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [0, 0, 0]]), torch.tensor([0, 0, 0, 1])
    edges, vector = bench.peers.pairs(pos, segment, 4.5)
    assert sorted(zip(*edges.tolist())) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    torch.testing.assert_close(vector, pos[edges[0]] - pos[edges[1]])


def test_bars_are_judged(bench: Any, tmp_path: Path) -> None:
    made = Bench.load_or_new("molecules", place=tmp_path)
    made.add(Row(metric="acac/long/forces_rmse", unit="meV/angstrom", ours=14.0, peer=900.0,
                 peer_name="element_references"))
    made.add(Row(metric="ethanol/speed/md_step_of_1", unit="ms", ours=3.0, peer=5.0, peer_name="schnet_small"))
    verdicts: Mapping[str, str] = {row["what"]: row["verdict"] for row in bench.summary(made.results)}
    assert verdicts["AcAc force RMSE"] == "met"
    assert verdicts["AcAc energy RMSE"] == "not measured"
    assert "missed" in [row["verdict"] for row in bench.summary(made.results) if row["what"] == "md step, 1 ethanol"]


def test_an_unknown_part_is_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIML_BENCH_SECONDS", "long:5")
    assert bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS).seconds["long"] == 5
    monkeypatch.setenv("SCIML_BENCH_PARTS", "long,lang")
    with pytest.raises(InputError, match="lang"):
        bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS)
