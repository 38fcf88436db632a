"""A linear classifier in closed form: the floor of classification, and a hard one where series are short and few.

Features are the standardised values of every variate at equal places between a series' beginning and its end, and 1.
Scores are the ridge regression on one-hot classes less their means (Hoerl & Kennard, Technometrics 12, 1970; classes as
targets: Hastie et al., Elements of Statistical Learning, §4.2), turned into log-probabilities by one temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

PLACES = 64
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SMOOTHING = 1.0
FOLDS = 5


@dataclass(frozen=True)
class Classifier:
    """weights ``(places · V + 1, K)``, prior ``(K,)``; how they came about in provenance. apart: ``(FOLDS, …)`` weights
    fitted without a fold of the training series; trained: ``(N,)`` their groups, in turn of one fold each, by which a
    series is judged that the operator is trained on."""

    weights: np.ndarray
    prior: np.ndarray
    places: int
    temperature: float
    provenance: Mapping[str, Any]
    apart: np.ndarray
    trained: np.ndarray

    @classmethod
    def fit(cls, train: Sequence[np.ndarray], labels: np.ndarray, validation: Sequence[np.ndarray],
            asked: np.ndarray, num_classes: int, groups: np.ndarray) -> Self:
        """From series ``(T, V)`` of standardised values, NaN where missing, their classes and groups. Strength and
        temperature are those with the least log loss on validation, or the middle ones where that is empty."""
        places = int(np.clip(np.median([len(x) for x in train]), 2, PLACES))
        counts = np.bincount(labels, minlength=num_classes) + SMOOTHING
        prior = counts / counts.sum()
        features = np.stack([features_of(x, places) for x in train])
        targets = np.eye(num_classes)[labels] - prior
        others = np.stack([features_of(x, places) for x in validation]) if len(validation) else features[:0]
        tried = []
        for strength in STRENGTHS:
            weights = _solve(features, targets, strength)
            temperature, loss = _temperature(others @ weights, prior, asked) if len(asked) else (0.1, 0.0)
            tried.append((loss, strength, temperature, weights))
        loss, strength, temperature, weights = min(tried, key=lambda each: each[0]) if len(asked) else tried[3]
        fold = np.arange(len(train)) % FOLDS
        apart = np.stack([_solve(features[fold != k], targets[fold != k], strength) for k in range(FOLDS)])
        return cls(weights, prior, places, temperature, apart=apart, trained=np.asarray(groups, np.int64), provenance={
            "selected_on": "validation", "strength": strength, "validation_log_loss": loss if len(asked) else None,
            "train": len(train), "validation": len(asked)})

    def logits(self, values: np.ndarray, group: int | None = None) -> np.ndarray:
        """``(K,)`` log-probabilities of a series ``(T, V)``; of one that was trained on, by the weights fitted without
        its fold."""
        place = np.flatnonzero(self.trained == (-1 if group is None else group))
        weights = self.apart[int(place[0]) % FOLDS] if len(place) else self.weights
        scores = features_of(values, self.places) @ weights
        return np.asarray(log_softmax(np.log(self.prior) + scores / self.temperature))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return ({"kind": "ridge_classifier", "places": self.places, "temperature": self.temperature,
                 "provenance": dict(self.provenance)}, {"weights": self.weights, "prior": self.prior,
                                                     "apart": self.apart, "trained": self.trained})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(np.asarray(arrays["weights"]), np.asarray(arrays["prior"]), int(config["places"]),
                   float(config["temperature"]), config["provenance"], np.asarray(arrays["apart"]),
                   np.asarray(arrays["trained"]))


def features_of(values: np.ndarray, places: int) -> np.ndarray:
    """``(places · V + 1,)``: each variate at equal places from first to last step, missing ones interpolated; 0 for a
    variate of which nothing is known."""
    steps = np.arange(len(values))
    asked = np.linspace(0, len(values) - 1, places)
    rows = []
    for column in np.asarray(values, np.float64).T:
        there = np.isfinite(column)
        rows.append(np.interp(asked, steps[there], column[there]) if there.any() else np.zeros(places))
    return np.append(np.concatenate(rows), 1.0)


def _solve(features: np.ndarray, targets: np.ndarray, strength: float) -> np.ndarray:
    """``(XᵀX + λ tr(XᵀX)/d I)⁻¹ Xᵀ Y`` by the smaller of the two Gram matrices."""
    scale = np.square(features).sum() / features.shape[1]
    if len(features) < features.shape[1]:
        gram = features @ features.T
        return np.asarray(features.T @ np.linalg.solve(gram + strength * scale * np.eye(len(gram)), targets))
    gram = features.T @ features
    return np.asarray(np.linalg.solve(gram + strength * scale * np.eye(len(gram)), features.T @ targets))


def _temperature(scores: np.ndarray, prior: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The temperature of scores ``(N, K)`` with the least log loss, and that loss. One series more than there are is
    taken to be of any class, else classes that are told apart without error would make it 0."""
    def loss(log_temperature: float) -> float:
        found = log_softmax(np.log(prior) + scores * np.exp(-log_temperature), axis=1)
        own, any_class = found[np.arange(len(labels)), labels].mean(), found.mean()
        return float(-(len(labels) * own + any_class) / (len(labels) + 1))
    best = minimize_scalar(loss, bounds=(-3.0, 2.0), method="bounded")
    return float(np.exp(best.x)), float(best.fun)
