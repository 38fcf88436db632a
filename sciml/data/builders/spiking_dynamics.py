"""Networks of spiking neurons in discrete time: drawing one, running it, finding its background drive.

Every unit has an exponential synaptic current I and a membrane potential v, in mV above rest, integrated exactly over
a step h: ``v ← v e^{−h/τm} + I κ``, ``κ = τs (e^{−h/τm} − e^{−h/τs}) / (τm − τs)``, ``I ← I e^{−h/τs}``. Two ways to
fire:

- ``lif``: the background drive μ(t) and white noise pass through the membrane; a spike when v reaches the threshold,
  then v rests at 0 for the refractory time (Brunel, J. Comput. Neurosci. 8, 2000).
- ``glm``: ``λ = λ0 exp((μ(t) + v − θ) / Δ)``, clipped, a spike with probability ``1 − e^{−λh}``; a spike lowers its
  own v (Gerstner et al., Neuronal Dynamics, 2014, chapter 9): the generalised linear model with exponential
  nonlinearity, whose coupling filters are the postsynaptic potentials divided by Δ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from sciml.errors import InputError
from sciml.recipe import Section

WARM_UP = 0.1
"""Seconds between two corrections of the background drive while it is being found."""


class Neuron(Section):
    """One unit. Times in ms, potentials in mV above rest.

    noise_mv: standard deviation of the free membrane (lif). softness_mv: Δ, and escape_hz: λ0 (glm). largest_hz: where
    the rate is clipped; after_mv: by how much a spike lowers its own potential, which recovers with membrane_ms (glm).
    """

    model: Literal["lif", "glm"] = "lif"
    membrane_ms: float = Field(default=20.0, gt=0)
    synapse_ms: float = Field(default=3.0, gt=0)
    refractory_ms: float = Field(default=2.0, ge=0)
    threshold_mv: float = Field(default=15.0, gt=0)
    noise_mv: float = Field(default=4.0, ge=0)
    softness_mv: float = Field(default=4.0, gt=0)
    escape_hz: float = Field(default=50.0, gt=0)
    largest_hz: float = Field(default=300.0, gt=0)
    after_mv: float = Field(default=5.0, ge=0)

    @model_validator(mode="after")
    def _distinct(self) -> Neuron:
        if self.membrane_ms == self.synapse_ms:
            raise ValueError("membrane_ms and synapse_ms must differ")
        return self

    @property
    def psp_peak(self) -> float:
        """Peak of v after a jump of I by 1 mV: ``τs / (τm − τs) (e^{−t/τm} − e^{−t/τs})`` at its maximum."""
        membrane, synapse = self.membrane_ms, self.synapse_ms
        peak = membrane * synapse / (membrane - synapse) * np.log(membrane / synapse)
        return float(synapse / (membrane - synapse) * (np.exp(-peak / membrane) - np.exp(-peak / synapse)))


class Wiring(Section):
    """How units are connected.

    density: share of the possible links; hubs: standard deviation of the logarithm of a unit's propensity to project
    (0: all alike). synapse_mv, spread: median peak and standard deviation of the logarithm of the peak of excitatory
    postsynaptic potentials, cut at largest_mv (the defaults are of layer 5 of rat cortex: Song et al., PLoS Biology 3,
    e68, 2005); inhibitory: share of units whose links are all negative, `inhibition` times as large. delay_ms: shortest
    and longest.
    """

    density: float = Field(default=0.1, ge=0, lt=1)
    hubs: float = Field(default=0.5, ge=0)
    synapse_mv: float = Field(default=0.5, gt=0)
    spread: float = Field(default=0.94, ge=0)
    largest_mv: float = Field(default=8.0, gt=0)
    inhibitory: float = Field(default=0.2, ge=0, le=1)
    inhibition: float = Field(default=3.0, ge=0)
    delay_ms: tuple[float, float] = (1.0, 5.0)

    @model_validator(mode="after")
    def _ordered(self) -> Wiring:
        if not 0 < self.delay_ms[0] <= self.delay_ms[1]:
            raise ValueError("delay_ms must be two positive times in order")
        return self


@dataclass(frozen=True)
class Network:
    """weight ``(unit, source)`` signed peak of the postsynaptic potential in mV, 0 without a link; delay ``(unit,
    source)`` in steps, 0 without a link; inhibitory ``(source,)`` bool."""

    weight: np.ndarray
    delay: np.ndarray
    inhibitory: np.ndarray


def draw_network(wiring: Wiring, units: int, step_ms: float, rng: np.random.Generator) -> Network:
    """A random network in which no unit projects to itself and every unit's links have one sign (Dale's law)."""
    inhibitory = np.zeros(units, dtype=bool)
    inhibitory[rng.permutation(units)[:round(wiring.inhibitory * units)]] = True
    propensity = np.exp(wiring.hubs * rng.standard_normal(units))
    probability = np.minimum(wiring.density * propensity / propensity.mean(), 0.9)
    linked = rng.random((units, units)) < probability[None]
    np.fill_diagonal(linked, False)
    size = wiring.synapse_mv * np.exp(wiring.spread * rng.standard_normal((units, units)))
    signed = np.minimum(size, wiring.largest_mv) * np.where(inhibitory, -wiring.inhibition, 1.0)[None]
    low, high = (max(1, round(delay / step_ms)) for delay in wiring.delay_ms)
    delay = rng.integers(low, high, size=(units, units), endpoint=True)
    return Network(np.where(linked, signed, 0.0), np.where(linked, delay, 0), inhibitory)


class Population:
    """All units of a network between two steps; `advance` carries them on."""

    def __init__(self, neuron: Neuron, network: Network, step_ms: float) -> None:
        units = len(network.weight)
        self.neuron, self.step_ms = neuron, step_ms
        self.membrane, self.synapse = np.exp(-step_ms / neuron.membrane_ms), np.exp(-step_ms / neuron.synapse_ms)
        self.potential, self.current = np.zeros(units), np.zeros(units)
        self.ready, self.clock = np.zeros(units, dtype=np.int64), 0
        self.arriving = np.zeros((int(network.delay.max(initial=0)) + 1, units))
        jump = network.weight / neuron.psp_peak
        targets = [np.flatnonzero(network.delay[:, source]) for source in range(units)]
        self.links = [(t, network.delay[t, source], jump[t, source]) for source, t in enumerate(targets)]

    def advance(self, drive: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Run under a background drive ``(steps, unit)`` in mV. Returns the step (from 0) and unit of each spike, in
        order of step, then unit; int64."""
        neuron, spent = self.neuron, round(self.neuron.refractory_ms / self.step_ms)
        gain = neuron.synapse_ms / (neuron.membrane_ms - neuron.synapse_ms) * (self.membrane - self.synapse)
        lif = neuron.model == "lif"
        entering, threshold = self._leaky(drive, rng) if lif else self._escaping(drive, rng)
        fired: list[np.ndarray] = []
        for step in range(len(drive)):
            slot = self.clock % len(self.arriving)
            self.current += self.arriving[slot]
            self.arriving[slot] = 0.0
            self.potential *= self.membrane
            self.potential += gain * self.current
            self.current *= self.synapse
            if lif:
                self.potential += entering[step]
                self.potential[self.ready > self.clock] = 0.0
            spiking = np.flatnonzero((self.potential >= threshold[step]) & (self.ready <= self.clock))
            fired.append(spiking)
            if len(spiking):
                self.ready[spiking] = self.clock + 1 + spent
                self.potential[spiking] = 0.0 if lif else self.potential[spiking] - neuron.after_mv
                self._send(spiking)
            self.clock += 1
        return np.repeat(np.arange(len(drive)), [len(f) for f in fired]), np.concatenate(fired or [np.zeros(0, int)])

    def _send(self, spiking: np.ndarray) -> None:
        for source in spiking:
            target, delay, jump = self.links[source]
            self.arriving[(self.clock + delay) % len(self.arriving), target] += jump

    def _leaky(self, drive: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        noise = rng.standard_normal(drive.shape) * (self.neuron.noise_mv * np.sqrt(1 - self.membrane**2))
        return drive * (1 - self.membrane) + noise, np.full(len(drive), self.neuron.threshold_mv)

    def _escaping(self, drive: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A spike if a standard exponential draw is below λh: as a random threshold of v, infinite above the clip."""
        draw, step_s, neuron = rng.standard_exponential(drive.shape), self.step_ms / 1000, self.neuron
        threshold = neuron.threshold_mv + neuron.softness_mv * np.log(draw / (neuron.escape_hz * step_s)) - drive
        return drive, np.where(draw < neuron.largest_hz * step_s, threshold, np.inf)


def find_drive(neuron: Neuron, network: Network, step_ms: float, rate_hz: np.ndarray, common: np.ndarray,
               rng: np.random.Generator) -> np.ndarray:
    """Background drive ``(unit,)`` in mV at which units fire at about `rate_hz` ``(unit,)``, under the signals `common`
    ``(steps, unit)`` in mV.

    Robbins and Monro (Ann. Math. Stat. 22, 1951): after each `WARM_UP` s the drive moves by the units' missing spikes,
    with a gain that is constant during the first half of the run, of the length of `common`, and then falls as 1/t.
    Raises `InputError` if the mean rate of its last quarter isn't within a half of the one aimed at: a network that
    excites itself so much has no steady state there.
    """
    soft = neuron.softness_mv
    alone = soft * np.log(rate_hz / neuron.escape_hz) if neuron.model == "glm" else -1.5 * neuron.noise_mv
    drive = np.full(len(rate_hz), neuron.threshold_mv) + alone - soft
    population, block = Population(neuron, network, step_ms), max(1, round(1000 * WARM_UP / step_ms))
    late = 0
    for first in range(0, len(common), block):
        given = common[first:first + block]
        _, unit = population.advance(drive + given, rng)
        late += len(unit) if first >= 0.75 * len(common) else 0
        missing = rate_hz * len(given) * step_ms / 1000 - np.bincount(unit, minlength=len(rate_hz))
        memory_s = 2.0 + max(0.0, (first - len(common) / 2) * step_ms / 1000)
        drive = drive + np.clip(soft * missing / (rate_hz * memory_s), -soft, soft)
    reached = late / (0.25 * len(common) * step_ms / 1000) / len(rate_hz)
    if not 0.5 < reached / rate_hz.mean() < 1.5:
        raise InputError("spiking_network options", key="wiring", found=f"{reached:.1f} spikes/s a unit",
                         expected=f"about {rate_hz.mean():.1f}",
                         fix="lower density, synapse_mv or units, or raise inhibition or softness_mv")
    return drive


def slow_signals(steps: int, times_ms: Sequence[float], step_ms: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary Ornstein–Uhlenbeck signals of unit variance, ``(steps, len(times_ms))``; a longer run begins with the
    same values."""
    from scipy.signal import lfilter

    noise = rng.standard_normal((steps, len(times_ms)))
    keep = np.exp(-step_ms / np.asarray(times_ms, dtype=np.float64))
    noise[1:] *= np.sqrt(1 - keep**2)
    for i, k in enumerate(keep):
        noise[:, i] = lfilter([1.0], [1.0, -k], noise[:, i])
    return noise
