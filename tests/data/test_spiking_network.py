"""The simulator of spiking networks against what is known of its neurons; its output against the layout of a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sciml.data.builders import spiking_network as sn
from sciml.data.builders.spiking_dynamics import Network, Neuron, Population, Wiring, draw_network, slow_signals
from sciml.errors import InputError

SMALL: dict[str, Any] = {"units": 30, "duration_s": 4.0, "recordings": 3, "seed": 5, "calibration_s": 3.0}


@pytest.fixture(scope="module")
def full() -> xr.Dataset:
    return sn.build({**SMALL, "unobserved": 0.2, "behaviour": 2, "stimulus": {"signals": 2}, "trials": {}})


def unconnected(units: int) -> Network:
    none = np.zeros((units, units))
    return Network(none, none.astype(int), np.zeros(units, dtype=bool))


def run(neuron: Neuron, network: Network, drive: float, seconds: float, step_ms: float = 1.0) -> np.ndarray:
    """Spikes per step, ``(steps, unit)``."""
    units, steps = len(network.weight), round(1000 * seconds / step_ms)
    step, unit = Population(neuron, network, step_ms).advance(np.full((steps, units), drive), np.random.default_rng(1))
    spikes = np.zeros((steps, units))
    spikes[step, unit] = 1
    return spikes


@pytest.mark.parametrize("drive", [16.0, 20.0, 40.0])
def test_a_free_neuron_without_noise_fires_at_the_analytic_period(drive: float) -> None:
    """T = t_ref + τ log(μ / (μ − θ))."""
    neuron, step = Neuron(noise_mv=0.0), 0.02
    fired = np.flatnonzero(run(neuron, unconnected(1), drive, 0.25, step)[:, 0])
    period = neuron.refractory_ms + neuron.membrane_ms * np.log(drive / (drive - neuron.threshold_mv))
    np.testing.assert_allclose(np.diff(fired) * step, period, atol=2 * step)
    assert not run(neuron, unconnected(1), neuron.threshold_mv - 0.1, 0.25, step).any()


def test_the_free_membrane_has_the_stated_noise() -> None:
    neuron = Neuron(noise_mv=2.0, threshold_mv=1e6)
    population = Population(neuron, unconnected(2000), 1.0)
    population.advance(np.full((200, 2000), 3.0), np.random.default_rng(0))
    assert population.potential.mean() == pytest.approx(3.0, abs=0.2)
    assert population.potential.std() == pytest.approx(2.0, rel=0.06)


def test_a_neuron_of_constant_escape_rate_is_a_poisson_process() -> None:
    """Rescaled by the analytic rate its intervals are exponential (Kolmogorov–Smirnov)."""
    neuron, drive = Neuron(model="glm", refractory_ms=0.0, after_mv=0.0), 8.0
    rate = neuron.escape_hz * np.exp((drive - neuron.threshold_mv) / neuron.softness_mv)
    fired = run(neuron, unconnected(30), drive, 20.0, step_ms=0.5)
    assert fired.sum() / 600 == pytest.approx(rate, rel=3 / np.sqrt(rate * 600) + rate * 0.5e-3)
    apart = np.concatenate([np.diff(np.flatnonzero(unit)) for unit in fired.T]) * 0.5e-3 * rate
    within = np.random.default_rng(2).uniform(-0.5, 0.5, len(apart)) * 0.5e-3 * rate
    assert stats.kstest(apart + within, "expon").pvalue > 0.01


def test_the_rate_is_clipped_and_refractoriness_kept() -> None:
    neuron = Neuron(model="glm", largest_hz=100.0, refractory_ms=3.0, after_mv=0.0)
    fired = run(neuron, unconnected(20), 100.0, 5.0)
    assert fired.mean() * 1000 == pytest.approx(1000 / (3 + 1 / (1 - np.exp(-0.1))), rel=0.03)
    assert min(np.diff(np.flatnonzero(unit)).min() for unit in fired.T) == 4


def test_one_spike_makes_a_potential_of_the_stated_peak_after_its_delay() -> None:
    neuron = Neuron(noise_mv=0.0)
    network = Network(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0, 0], [30, 0]]), np.zeros(2, dtype=bool))
    population, course = Population(neuron, network, 0.1), []
    for step in range(400):
        population.advance(np.array([[1e5 if step == 0 else 0.0, 0.0]]), np.random.default_rng(0))
        course.append(population.potential[1])
    assert np.flatnonzero(course)[0] == 30
    assert max(course) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("model", ["lif", "glm"])
@pytest.mark.parametrize("weight", [6.0, -6.0])
def test_a_strong_synapse_shows_in_the_correlogram_at_its_delay_with_its_sign(model: str, weight: float) -> None:
    neuron, sources, delay = Neuron.model_validate({"model": model}), 20, 5
    units = 2 * sources
    given, steps = np.zeros((units, units)), np.zeros((units, units), dtype=int)
    pairs = np.arange(sources)
    given[sources + pairs, pairs], steps[sources + pairs, pairs] = weight, delay
    fired = run(neuron, Network(given, steps, np.zeros(units, dtype=bool)), 11.0, 15.0)
    source, target = fired[:, :sources], fired[:, sources:]
    lags = np.arange(-15, 40)
    together = np.array([(source[20:-40] * target[20 + lag:len(target) - 40 + lag]).sum() for lag in lags])
    chance = together[lags < 0].mean()
    before, after = together[(lags >= 0) & (lags < delay)], together[(lags >= delay) & (lags < delay + 8)]
    assert abs(before.mean() - chance) < 4 * np.sqrt(chance / len(before))
    assert np.sign(weight) * (after.mean() - chance) > 5 * np.sqrt(chance / len(after))


def test_networks_obey_dale_and_are_as_dense_and_delayed_as_asked() -> None:
    wiring = Wiring(density=0.1, hubs=1.0, delay_ms=(2.0, 4.0), spread=0.5, inhibition=3.0, largest_mv=1e9)
    network = draw_network(wiring, 400, 0.5, np.random.default_rng(3))
    linked = network.weight != 0
    assert (network.weight[:, network.inhibitory] <= 0).all()
    assert (network.weight[:, ~network.inhibitory] >= 0).all()
    assert network.inhibitory.sum() == 80
    assert linked.mean() == pytest.approx(0.1, rel=0.1)
    assert not linked.diagonal().any()
    assert set(np.unique(network.delay[linked])) == {4, 5, 6, 7, 8}
    assert (network.delay[~linked] == 0).all()
    sizes = np.log(network.weight[network.weight > 0])
    assert np.exp(sizes.mean()) == pytest.approx(wiring.synapse_mv, rel=0.05)
    assert sizes.std() == pytest.approx(0.5, rel=0.05)
    assert np.median(network.weight[network.weight < 0]) == pytest.approx(-3 * wiring.synapse_mv, rel=0.05)
    alike = draw_network(Wiring(hubs=0.0), 400, 0.5, np.random.default_rng(3)).weight != 0
    assert linked.sum(axis=0).std() > 4 * alike.sum(axis=0).std()
    assert linked.sum(axis=1).std() < 1.5 * alike.sum(axis=1).std()


def test_slow_signals_have_unit_variance_and_the_stated_time() -> None:
    signals = slow_signals(200_000, [20.0, 100.0], 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(signals.std(axis=0), 1.0, rtol=0.1)
    for lag, signal in zip((20, 100), signals.T, strict=True):
        assert np.corrcoef(signal[lag:], signal[:-lag])[0, 1] == pytest.approx(np.exp(-1), abs=0.08)


def test_the_dataset_has_the_layout_of_the_domain(full: xr.Dataset) -> None:
    assert full.attrs["group_dim"] == "recording"
    assert full.attrs["domain"] == "spikes"
    assert {str(n): v.dims for n, v in full.data_vars.items()} == {
        "spike_time": ("spike",), "spike_unit": ("spike",), "spike_count": ("recording",),
        "weight": ("recording", "unit", "source"), "delay": ("recording", "unit", "source"),
        "behaviour_value": ("recording", "time", "behaviour"), "stimulus_value": ("recording", "time", "stimulus"),
        "trial": ("recording", "time")}
    assert full["behaviour"].values.tolist() == ["readout0", "readout1"]
    assert full["behaviour_unit"].values.tolist() == full["stimulus_unit"].values.tolist() == ["1", "1"]
    assert full["spike_count"].attrs["sample_dimension"] == "spike"
    assert full["spike_count"].values.sum() == full.sizes["spike"]
    assert (full["spike_time"].dtype, full["spike_unit"].dtype, full["spike_count"].dtype) == ("f8", "i4", "i8")
    np.testing.assert_allclose(full["time"], np.arange(800) * 0.005)
    ends = np.cumsum(full["spike_count"].values)
    for times in np.split(full["spike_time"].values, ends[:-1]):
        assert (np.diff(times) >= 0).all()
        assert times[0] > 0
        assert times[-1] < 4.0
    assert full["spike_unit"].values.min() == 0
    assert full["spike_unit"].values.max() == 23
    assert ((full["weight"] != 0) == np.isfinite(full["delay"])).all()
    assert (full["unit"].values == full["source"].values).all()


def test_unobserved_units_are_absent_but_at_work(full: xr.Dataset) -> None:
    experiment = sn.Experiment.of(sn.Options.model_validate(
        {**SMALL, "unobserved": 0.2, "behaviour": 2, "stimulus": {"signals": 2}, "trials": {}}))
    hidden = np.setdiff1d(np.arange(30), experiment.observed)
    assert full.attrs["unobserved_units"] == len(hidden) == 6
    assert full.sizes["unit"] == full.sizes["source"] == 24
    np.testing.assert_array_equal(
        full["weight"][0], experiment.network.weight[np.ix_(experiment.observed, experiment.observed)].astype("f4"))
    assert np.abs(experiment.network.weight[np.ix_(experiment.observed, hidden)]).max() > 0


def test_a_recording_depends_on_the_seed_and_its_number_alone() -> None:
    options = sn.Options.model_validate(SMALL)
    first = sn.Experiment.of(options)
    forward = [first.record(i) for i in range(3)]
    experiment = sn.Experiment.of(options)
    for i in (2, 0, 1):
        again = experiment.record(i)
        np.testing.assert_array_equal(again.time, forward[i].time)
        np.testing.assert_array_equal(again.unit, forward[i].unit)
    assert len(forward[0].time) != len(forward[1].time)
    longer = sn.Experiment.of(options.model_copy(update={"duration_s": 5.0, "recordings": 7})).record(1)
    np.testing.assert_array_equal(longer.time[longer.time < 4.0], forward[1].time)
    other = sn.Experiment.of(options.model_copy(update={"seed": 6}))
    assert not np.array_equal(other.network.weight, experiment.network.weight)


def test_trials_differ_in_length_and_carry_the_stimulus(full: xr.Dataset) -> None:
    trial, stimulus = full["trial"].values[0], full["stimulus_value"].values[0]
    lengths = [int((trial == k).sum()) for k in range(int(trial.max()) + 1)]
    assert len(lengths) >= 1
    assert all(200 <= n <= 400 for n in lengths)
    assert len({*lengths, *((full["trial"].values[1] == 0).sum(keepdims=True))}) > 1
    assert not stimulus[trial < 0].any()
    assert stimulus[trial >= 0].std() > 0.3


def test_rates_are_as_asked_and_irregular() -> None:
    data = sn.build({"units": 60, "duration_s": 10.0, "rate_hz": 6.0, "calibration_s": 8.0})
    unit, time = data["spike_unit"].values, data["spike_time"].values
    assert len(unit) / 60 / 10 == pytest.approx(6.0, rel=0.2)
    intervals = [np.diff(time[unit == u]) for u in range(60)]
    assert 0.7 < np.median([i.std() / i.mean() for i in intervals if len(i) > 20]) < 1.3


def test_behaviour_can_be_read_from_the_spikes() -> None:
    data = sn.build({"units": 80, "duration_s": 30.0, "behaviour": 1, "bin_ms": 100.0, "calibration_s": 4.0,
                     "shared": {"strength_mv": 2.0, "time_ms": 500.0}})
    counts = np.zeros((300, 80))
    np.add.at(counts, ((data["spike_time"].values / 0.1).astype(int), data["spike_unit"].values), 1)
    design, truth = np.c_[counts, np.ones(300)], data["behaviour_value"].values[0, :, 0]
    fitted = np.linalg.solve(design[:200].T @ design[:200] + 10 * np.eye(81), design[:200].T @ truth[:200])
    assert np.corrcoef(design[200:] @ fitted, truth[200:])[0, 1] > 0.5


@pytest.mark.parametrize(("wrong", "key"), [
    ({"bin_ms": 2.5}, "multiple"), ({"rate": 3}, "rate"), ({"behaviour": 1, "shared": {"signals": 0}}, "behaviour"),
    ({"wiring": {"delay_ms": (5, 1)}}, "delay_ms"), ({"units": 1, "unobserved": 0.9}, "unobserved")])
def test_wrong_options_are_named(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        sn.build(wrong)


def test_a_network_that_runs_away_is_refused() -> None:
    with pytest.raises(InputError, match="spikes/s a unit"):
        sn.build({"units": 40, "duration_s": 1.0, "calibration_s": 2.0,
                  "wiring": {"density": 0.8, "synapse_mv": 4.0, "inhibitory": 0.0}})
