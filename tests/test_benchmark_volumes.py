"""The harness of the volumes benchmark: what is cut and lengthened for peers, thick slices, few labels, bars, what the
environment asks for. No accuracy is asserted."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.cli.bench import load_script
from sciml.data.schema import Block, Splits
from sciml.domains.volumes import geometry
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.config import Known
from sciml.errors import InputError
from sciml.predictor import Predictor
from sciml.report.bench import Bench, Row

HERE = Path(__file__).parents[1] / "benchmarks"
STRUCTURES = ("background", "anterior", "posterior")


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_script(HERE / "volumes.py")


def adapter_of() -> Volumes:
    adapter = Volumes.create({"window": (16, 16, 16)})
    return replace(adapter, task=replace(adapter.task, structures=STRUCTURES),  # type: ignore[type-var]
                   datasets={"made": Known(modalities={"mri": "1"}, structures=STRUCTURES)})


def sample(shape: tuple[int, ...] = (6, 5, 8), seed: int = 0) -> xr.Dataset:
    rng, affine = np.random.default_rng(seed), np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 3.0, -2.0, 10.0
    return geometry.dataset_of({"mri": rng.normal(size=shape).astype(np.float32),
                                "label": rng.integers(0, 3, shape).astype(np.float32)}, affine)


def test_a_peer_answers_on_the_grid_it_was_given(bench: Any) -> None:
    net = torch.nn.Sequential(torch.nn.MaxPool3d(8), torch.nn.Upsample(scale_factor=8), torch.nn.Conv3d(1, 3, 1))
    adapter = adapter_of()
    peer = Predictor(bench.peers.PeerOperator(net, adapter, 8), {"volumes": adapter})
    batch = adapter.encode(sample())
    found = peer.forward(batch)["label"]
    assert found.shape == (1, 6, 5, 8, 3)
    largest = torch.cat([batch.values.flatten(), torch.zeros(1)]).max()
    torch.testing.assert_close(found[0, 0, 0, 0], net[2](largest.view(1, 1, 1, 1))[:, 0, 0, 0])


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["unet", "segresnet", "swinunetr"])
def test_monais_networks_run(bench: Any, kind: str) -> None:
    pytest.importorskip("monai", reason="MONAI is absent")
    adapter = adapter_of()
    peer = Predictor(bench.peers.PeerOperator(bench.peers.network(kind, 1, 3), adapter, bench.peers.MULTIPLE[kind]),
                     {"volumes": adapter})
    found = peer.forward(adapter.encode(sample((20, 33, 17))))["label"]
    assert found.shape == (1, 20, 33, 17, 3)
    assert torch.isfinite(found).all()


def test_why_a_peer_is_absent_is_said(bench: Any) -> None:
    if importlib.util.find_spec("monai") is None:
        assert "monai" in bench.peers.absent("unet")
    else:
        assert bench.peers.absent("unet") == ""


def test_thick_slices_are_means_of_thin_ones_where_these_were(bench: Any) -> None:
    thin = sample((4, 5, 8))
    made = bench.tasks.thickened(thin, 3)
    image = geometry.ras(thin)["mri"].values
    assert geometry.spacing(made) == pytest.approx((1, 1, 3))
    assert made["z"].values.tolist() == [11.0, 14.0, 17.0]
    np.testing.assert_allclose(made["mri"].values[..., 1], image[..., 3:6].mean(-1), rtol=1e-5)
    np.testing.assert_allclose(made["mri"].values[..., 2], (image[..., 6] + 2 * image[..., 7]) / 3, rtol=1e-5)
    np.testing.assert_array_equal(made["x"].values, geometry.ras(thin)["x"].values)


def test_labels_of_thick_slices_are_scored_on_the_original_grid(bench: Any) -> None:
    class Bright(torch.nn.Module):
        def __init__(self, adapter: Volumes) -> None:
            super().__init__()
            self.specs = {"volumes": adapter.spec()}

        def forward(self, batch: Any, cache: Any = None, second_order: bool = False) -> Any:
            value = batch.values[..., 0]
            return bench.peers.Outputs({"label": torch.stack([-value, value, -9 + 0 * value], -1)})

    ramp = np.broadcast_to(np.linspace(-1, 1, 12, dtype=np.float32), (4, 4, 12))
    thin = geometry.dataset_of({"mri": ramp.copy(), "label": (ramp > 0).astype(np.float32)}, np.eye(4))
    adapter = adapter_of()
    model = Predictor(Bright(adapter), {"volumes": adapter})  # type: ignore[arg-type]
    found = bench.tasks.labels_of(model, bench.tasks.thickened(thin, 3), thin)
    np.testing.assert_array_equal(found, thin["label"].values)


def test_few_labelled_subjects_are_drawn_from_training_alone(bench: Any) -> None:
    def part(start: int, stop: int) -> tuple[Block, ...]:
        return tuple(Block(group=g, start=0, stop=1) for g in range(start, stop))

    splits = Splits(key="subject", train=part(0, 12), validation=part(12, 14), test=part(14, 16))
    meta = SimpleNamespace(splits=splits, model_copy=lambda update: SimpleNamespace(**update))
    drawn = [bench.tasks.few(SimpleNamespace(meta=meta), 5, draw).meta.splits for draw in range(3)]
    assert all(len(each.train) == 5 and set(each.train) <= set(splits.train) for each in drawn)
    assert all(each.test == splits.test and each.validation == splits.validation for each in drawn)
    assert len({each.train for each in drawn}) == 3
    assert meta.splits is splits


def test_windows_are_measured_on_a_file_that_is_written_plane_by_plane(bench: Any, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel is absent")
    path = bench.speed.write_volume(tmp_path / "a.nii", (12, 10, 9))
    assert np.asarray(nibabel.load(path).dataobj).std() > 200
    bench.speed.ours(path, 8, 0.25)
    assert nibabel.load(tmp_path / "ours_a.nii").shape == (12, 10, 9)
    assert 1 << 24 < bench.speed.status("VmRSS") <= bench.speed.status("VmHWM")


@pytest.mark.slow
def test_memory_and_time_of_windows_are_measured_in_a_process_of_their_own(bench: Any, tmp_path: Path) -> None:
    made = Bench.load_or_new("volumes", place=tmp_path)
    bench.speed.measure_sliding(made, "absent", across=24, depths=(10,), window=12)
    rows = {row.metric: row for row in made.results.rows}
    assert set(rows) == {"sliding/24x24x10/cpu_seconds", "sliding/24x24x10/peak_above_volume"}
    assert rows["sliding/24x24x10/cpu_seconds"].ours > 0
    assert rows["sliding/24x24x10/peak_above_volume"].peer is None


def test_bars_are_judged(bench: Any, tmp_path: Path) -> None:
    made = Bench.load_or_new("volumes", place=tmp_path)
    for metric, ours, peer, name in (("hippocampus/long/dice_anterior", 0.91, 0.7, "mean_atlas"),
                                     ("hippocampus/thick_3/dice", 0.87, 0.9, "as_it_is"),
                                     ("hippocampus/few_5/error", 0.15, 0.22, "scratch"),
                                     ("sliding/512x512x300/peak_above_volume", 1.2, None, None),
                                     ("hippocampus/denoise_0.1/psnr", 30.0, 29.0, "non_local_means")):
        made.add(Row(metric=metric, unit="1", ours=ours, peer=peer, peer_name=name))
    verdicts = {row["what"]: row["verdict"] for row in bench.summary(made.results)}
    assert verdicts["Dice, anterior"] == "met"
    assert verdicts["Dice, posterior"] == "not measured"
    assert verdicts["slices of 3 mm, mean Dice"] == "missed"
    assert verdicts["5 labelled volumes, 1 - Dice"] == "met"
    assert verdicts["512x512x300, memory above it"] == "met"
    assert verdicts["hippocampus/denoise_0.1/psnr beside non_local_means"] == "met"


def test_an_unknown_part_is_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIML_BENCH_SECONDS", "dice:5")
    assert bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS).seconds["dice"] == 5
    monkeypatch.setenv("SCIML_BENCH_PARTS", "dice,rice")
    with pytest.raises(InputError, match="rice"):
        bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS)


@pytest.mark.parametrize(("key", "value"), [
    ("SCIML_BENCH_SECONDS", "dice:abc"), ("SCIML_BENCH_SECONDS", "dice"), ("SCIML_BENCH_SECONDS", "dice:-1"),
    ("SCIML_BENCH_SECONDS", "dice:inf"), ("SCIML_BENCH_SECONDS", "dice:1:2"), ("SCIML_BENCH_SEEDS", "0"),
    ("SCIML_BENCH_SEEDS", "1.5")])
def test_what_is_no_number_is_refused(bench: Any, monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=f"{key}.*{value}.*above 0"):
        bench.common.Plan.of_environment(bench.PARTS, bench.SECONDS)


def test_recipes_are_measured_once_beside_ours(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[str] = []

    def pretrain(recipe: Any, folder: Path, *, overwrite: bool) -> str:
        assert (recipe.train.steps, recipe.train.validate_every) == (300, 300)
        trained.append(recipe.name)
        return str(recipe.name)

    dices = {"hippocampus": 0.8, "hippocampus_dformer": 0.7, "hippocampus_segformer": 0.6}
    monkeypatch.setattr(bench, "pretrain", pretrain)
    monkeypatch.setattr(bench, "store_of", lambda name: name)
    monkeypatch.setattr(bench, "evaluate", lambda predictor, store, split: SimpleNamespace(
        scores=[SimpleNamespace(metric="hd95", value=9.0), SimpleNamespace(metric="dice", value=dices[predictor])]))
    made = Bench.load_or_new("volumes", place=tmp_path)
    for _ in range(2):
        bench.measure_recipes(made, tmp_path / "runs")
    assert trained == list(dices)
    assert {row.metric: (row.ours, row.peer, row.peer_name) for row in made.results.rows} == {
        "hippocampus_dformer/steps_300/dice": (0.7, 0.8, "hippocampus"),
        "hippocampus_segformer/steps_300/dice": (0.6, 0.8, "hippocampus")}
