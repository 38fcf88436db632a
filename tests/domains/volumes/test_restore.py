"""The task `restore`: held to the contract of domains, exact in its units, better with a measurement than without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciml.domains.volumes import cascade, geometry, measured
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.config import Known
from sciml.domains.volumes.tasks.restore import HEAD, LEFT, SCALE, Restore
from sciml.errors import InputError
from sciml.observations.contract import gradient
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator
from sciml.predictor import Predictor, predictions
from sciml.rollout import rollout
from sciml.testing import check_domain
from sciml.testing.parameters import stir
from sciml.tokens import Outputs, State, TokenBatch
from tests.domains.volumes.balls import balls_store

NOISE: dict[str, Any] = {"measurement": "noise", "options": {"noise": [0.05, 0.1]}}
SCAN: dict[str, Any] = {"measurement": "scan", "cascades": 3, "options": {"acceleration": 2, "coils": 2, "centre": 0.1}}
CT: dict[str, Any] = {"measurement": "projections", "cascades": 2, "options": {"angles": 9, "span_deg": 150.0}}
BLUR: dict[str, Any] = {"measurement": "blur", "cascades": 2,
                        "options": {"width_cells": [1.0, 1.0, 0.0], "noise": 0.01}}
SMOOTHED: list[dict[str, Any]] = [
    NOISE | {"weights": [0.3, 3.0]}, SCAN | {"cascades": 1, "weights": [0.2], "objective": "mse"}]
OPERATOR = {"stem_width": 8, "condition_width": 8, "levels": [
    {"width": 16, "depth": 1, "mixers": ["local"], "head_width": 8}]}


def section(task: dict[str, Any]) -> dict[str, Any]:
    return {"task": {"restore": {"head": "lattice", **task}}, "stem": "patch", "window": [8, 6, 6],
            "patches": {"augment": None}}


def ct_sample() -> xr.Dataset:
    """A cylinder of bone in water in air, Hounsfield units, stored right to left, 1.5 mm in the plane."""
    x, y, _ = np.meshgrid(np.arange(16) - 7.5, np.arange(14) - 6.5, np.arange(3), indexing="ij")
    radius = np.hypot(x, y)
    hounsfield = np.select([radius < 3, radius < 6], [500.0, 0.0], -1000.0).astype(np.float32)
    return geometry.dataset_of({"ct": hounsfield}, np.diag([-1.5, 1.5, 4.0, 1.0]),
                               {"domain": "volumes", "dataset": "ct", "source": "ct/1"}, units={"ct": "HU"})


def ct_adapter(task: dict[str, Any]) -> Volumes:
    made = Volumes.create(section(task))
    assert isinstance(made.task, Restore)
    return replace(made, task=replace(made.task, modality="ct"), datasets={"ct": Known(modalities={"ct": "HU"})})


def predictor_of(adapter: Volumes) -> Predictor:
    torch.manual_seed(0)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"volumes": adapter.spec()})
    stir(operator)
    return Predictor(operator.eval(), {"volumes": adapter})


@pytest.mark.parametrize("task", [NOISE, SCAN, SMOOTHED[1]], ids=["noise", "scan", "scan_tv"])
def test_contract_of_domains(task: dict[str, Any], tmp_path: Path) -> None:
    """Units, batches, gradients, silence as the baseline, rollouts, checkpoints."""
    unused = check_domain("volumes", [balls_store(tmp_path)], config=section(task), operator=OPERATOR)
    assert not [name for name in unused if ".given." in name], unused


def test_every_measurement_is_encoded_and_decoded_in_its_unit() -> None:
    """The truth comes back in Hounsfield units, the right way round; the baseline is an image of it, not noise."""
    sample = ct_sample()
    for task in (CT, BLUR | {"modality": "ct"}, NOISE | {"options": {"noise": 0.02, "rician": False}}):
        adapter = ct_adapter(task)
        drawn = adapter.task.draw(sample, np.random.default_rng(0), train=False)
        assert "simulated" in drawn.attrs
        batch = adapter.encode(drawn)
        decoded = adapter.decode(batch, {HEAD: batch.targets[HEAD].value})
        truth = geometry.ras(sample)["ct"].values
        assert np.allclose(decoded["ct"].values[0], truth, atol=0.05)
        near = np.corrcoef(decoded["ct_baseline"].values.ravel(), truth.ravel())[0, 1]
        assert near > 0.9
        assert decoded["ct"].attrs["units"] == "HU"


def test_a_silent_cascade_is_least_squares_from_the_measurement() -> None:
    """More steps explain the projections better; the answer of silence is the baseline."""
    misfits = []
    for cascades in (2, 12):
        adapter = ct_adapter(CT | {"cascades": cascades})
        batch = adapter.encode(adapter.task.draw(ct_sample(), np.random.default_rng(0), train=False))
        outputs = adapter.derive(batch, lambda b: Outputs({HEAD: torch.zeros_like(b.values)}), False)
        image = predictions(batch, outputs)[HEAD][..., 0]
        assert torch.allclose(image, batch.targets[HEAD].baseline[..., 0], atol=1e-5)
        assert isinstance(adapter.task, Restore)
        gap = adapter.task._observation(batch).forward(image) - batch.kept["measurement"]
        misfits.append(float(gap.square().sum()))
    assert misfits[1] < misfits[0]


@pytest.mark.parametrize("task", [SCAN, NOISE | {"cascades": 2}], ids=["scan", "noise"])
def test_a_rollout_of_steps_is_the_cascade(task: dict[str, Any], tmp_path: Path) -> None:
    adapter = Volumes.create(section(task)).fit(balls_store(tmp_path))
    predictor = predictor_of(adapter)
    batch = adapter.encode(adapter.open(balls_store(tmp_path), "train").draw(0, *(np.random.default_rng(0),) * 2))
    whole = predictions(batch, predictor.forward(batch))[HEAD]
    assert isinstance(adapter.task, Restore)
    state = State(adapter.task.initial(batch))
    assert int(state.batch.kept[LEFT][0]) == 1
    states = list(rollout(predictor, state, task["cascades"]))
    assert torch.allclose(states[-1].batch.values, whole, atol=1e-5)
    assert states[-1].elapsed == task["cascades"]
    assert not torch.allclose(states[0].batch.values, whole, atol=1e-3)


@pytest.mark.parametrize("task", [
    SMOOTHED[0], *(SMOOTHED[1] | {"options": {"acceleration": 4, "coils": coils}} for coils in (4, 1))],
    ids=["noise", "scan", "one_coil"])
def test_total_variation_makes_a_better_start(task: dict[str, Any], tmp_path: Path) -> None:
    """Nearer to the truth than without; what explains the measurement is still told: its gradient is that of the
    image's misfit, in the frame of its phase."""
    store = balls_store(tmp_path, (28, 26, 24))
    gaps = []
    for given in (task, {name: value for name, value in task.items() if name != "weights"}):
        adapter = Volumes.create(section(given)).fit(store)
        assert isinstance(adapter.task, Restore)
        batch = adapter.encode(adapter.open(store, "validation").draw(0, *(np.random.default_rng(0),) * 2))
        decoded = adapter.decode(batch, {HEAD: batch.targets[HEAD].value})
        truth = adapter.open(store, "validation").subjects.sample(adapter.open(store, "validation").members[0])
        assert np.allclose(decoded["mri"].values[0], geometry.ras(truth)["mri"].values, rtol=1e-4, atol=1e-3)
        gaps.append(float((batch.targets[HEAD].value - batch.targets[HEAD].baseline).square().mean()))
        image, y = cascade.image_of(batch.values), batch.kept[cascade.MEASUREMENT]
        y = torch.view_as_complex(y) if image.is_complex() else y
        slope = cascade.values_of(gradient(adapter.task._observation(batch), image, y))
        size = batch.kept[cascade.STEP].view(-1, 1, 1, 1, 1) / batch.targets[HEAD].scale
        told = batch.conditions.lattice
        if told:
            found = torch.stack([told[name] for name in cascade.gradient_names(batch.channels)], -1)
            assert torch.allclose(found, size * slope, atol=1e-4)
        assert bool(told) == ("weights" in given)
    assert gaps[0] < 0.9 * gaps[1]


def test_the_weight_is_chosen_on_training_volumes(tmp_path: Path) -> None:
    """Whatever the order, the better one; it goes through a checkpoint."""
    store = balls_store(tmp_path, (12, 10, 8))
    tried = {w: Volumes.create(section(NOISE | {"weights": w})).fit(store).task for w in ((0.4,), (30.0,), (30.0, 0.4))}
    assert all(isinstance(task, Restore) for task in tried.values())
    found, good, poor = (tried[w] for w in ((30.0, 0.4), (0.4,), (30.0,)))
    assert isinstance(found, Restore)
    assert isinstance(good, Restore)
    assert isinstance(poor, Restore)
    assert found.weight == 0.4
    assert found.residual == good.residual < poor.residual
    assert found.baseline_name == "total variation"
    again = Restore.create(found.config.model_dump()).restored(*found.state())
    assert again == found


def test_a_phase_is_taken_out_and_put_back() -> None:
    """A complex image: nearly real where the operator sees it, both parts as they were in the answer."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 18, 16)], indexing="ij")
    image = (100.0 + 50 * (x**2 + y**2 + z**2 < 0.5)) * np.exp(1.5j * (x - y))
    parts = {"re": image.real.astype(np.float32), "im": image.imag.astype(np.float32)}
    sample = geometry.dataset_of(parts, np.eye(4), {"domain": "volumes", "dataset": "lab", "source": "lab/1"},
                                 units=dict.fromkeys(parts, "1"))
    options = SCAN["options"] | {"noise": 0.005}
    made = Volumes.create(section(SMOOTHED[1] | {"modality": "re", "imaginary": "im", "options": options}))
    assert isinstance(made.task, Restore)
    adapter = replace(made, task=replace(made.task, modality="re", weight=0.1),
                      datasets={"lab": Known(modalities=dict.fromkeys(parts, "1"))})
    drawn = adapter.task.draw(sample, np.random.default_rng(0), train=False)
    truth = drawn["measured_truth"].values
    batch = adapter.encode(drawn)
    seen = batch.targets[HEAD].value
    assert float(seen[..., 1].square().mean()) < 0.1 * float(seen[..., 0].square().mean())
    assert np.square(truth.imag).mean() > 0.2 * np.square(truth.real).mean()
    decoded = adapter.decode(batch, {HEAD: seen})
    assert np.allclose(decoded["re"].values[0] + 1j * decoded["im"].values[0], truth, atol=1e-3)


def test_noise_levels_are_drawn_and_a_measurement_is_kept(tmp_path: Path) -> None:
    """A list of levels gives different ones; what was measured is not measured again; a noisy image alone is its
    own."""
    adapter = Volumes.create(section(NOISE)).fit(balls_store(tmp_path))
    plain = adapter.open(balls_store(tmp_path), "validation").subjects.sample(3)
    said = {adapter.task.draw(plain, np.random.default_rng(seed), train=True).attrs["simulated"] for seed in range(8)}
    assert len(said) == 2
    once = adapter.task.draw(plain, np.random.default_rng(0), train=True)
    assert adapter.task.draw(once, np.random.default_rng(1), train=True).identical(once)
    alone = adapter.encode(plain)
    unit = alone.values[0, ..., 0] * float(alone.kept[SCALE][0, 0])
    assert np.allclose(unit.numpy(), geometry.ras(plain)["mri"].values, rtol=1e-5)


def test_the_baseline_misses_about_one_scale(tmp_path: Path) -> None:
    """`fit` makes the head's output of order one."""
    store = balls_store(tmp_path, (12, 10, 8))
    for task in (NOISE, SCAN):
        adapter = Volumes.create(section(task)).fit(store)
        batch = adapter.encode(adapter.open(store, "validation").draw(0, *(np.random.default_rng(0),) * 2))
        target = batch.targets[HEAD]
        off = ((target.value - target.baseline) / target.scale).square().mean().sqrt()
        assert 0.4 < float(off) < 2.5


def test_off_the_volume_nothing_is_asked_or_decoded(tmp_path: Path) -> None:
    adapter = Volumes.create(section(NOISE)).fit(balls_store(tmp_path))
    sample = adapter.open(balls_store(tmp_path), "train").subjects.sample(0)
    sample["mri"][0] = np.nan
    batch = adapter.encode(adapter.task.draw(sample, np.random.default_rng(0), train=False))
    assert batch.observed is not None
    assert torch.isfinite(batch.values).all()
    decoded = adapter.decode(batch, {HEAD: batch.targets[HEAD].value})
    assert np.isnan(decoded["mri"].values[0, 0]).all()
    scores = adapter.task.score(decoded, decoded, (1.0, 1.5, 2.0))
    assert np.isinf(scores["psnr"][0])
    assert scores["ssim"][0] == pytest.approx(1)


def _kspace_lost(sample: xr.Dataset) -> xr.Dataset:
    return sample.drop_vars(measured.MEASURED)


def _kspace_cut(sample: xr.Dataset) -> xr.Dataset:
    return sample.isel({f"{measured.MEASURED}_1": slice(1, None)})


@pytest.mark.parametrize("spoil", [_kspace_lost, _kspace_cut])
def test_measurements_that_do_not_fit_are_refused(spoil: Any, tmp_path: Path) -> None:
    adapter = Volumes.create(section(SCAN)).fit(balls_store(tmp_path))
    sample = adapter.open(balls_store(tmp_path), "train").draw(0, *(np.random.default_rng(0),) * 2)
    with pytest.raises(InputError) as error:
        adapter.encode(spoil(sample))
    assert error.value.key == measured.MEASURED


@pytest.mark.parametrize(("task", "change", "key"), [
    (NOISE | {"options": {"level": 0.1}}, lambda s: s, "options of noise"),
    (NOISE, lambda s: s - 1000, "mri"),
    (CT, lambda s: s, "mri")])
def test_what_cannot_be_simulated_is_refused(task: dict[str, Any], change: Any, key: str, tmp_path: Path) -> None:
    """An option there isn't, a magnitude below zero, projections of what is no CT."""
    made = Volumes.create(section(task))
    assert isinstance(made.task, Restore)
    store = balls_store(tmp_path)
    plain = Volumes.create(section(NOISE)).fit(store).open(store, "train").subjects.sample(0)
    with xr.set_options(keep_attrs=True):
        sample = change(plain)
    with pytest.raises(InputError) as error:
        replace(made.task, modality="mri").draw(sample, np.random.default_rng(0), train=True)
    assert error.value.key == key


@pytest.mark.parametrize("options", [{"measurement": "sonar"}, {"cascades": 0}, {"coils": 4}, {"weights": [0.0]}])
def test_wrong_recipes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Restore.create(options)


def test_windows_are_blended_inside_every_step() -> None:
    """The measurement is of the whole image, the operator sees windows: a pointwise operator doesn't notice."""
    adapter = ct_adapter(CT)
    small = replace(adapter, config=adapter.config.model_copy(update={"window": (8, 8, 3)}))
    batch = adapter.encode(adapter.task.draw(ct_sample(), np.random.default_rng(0), train=False))

    def pointwise(b: TokenBatch) -> Outputs:
        return Outputs({HEAD: 0.1 * b.values - 0.2 * b.conditions.lattice["volumes/ct.gradient"][..., None]})

    one, several = (a.derive(batch, pointwise, False)[HEAD] for a in (adapter, small))
    assert torch.allclose(one, several, atol=1e-4)
