"""Behaviour and discrete states from counts in a window: Wiener filter (ridge in closed form), multinomial logistic.

Ridge: W = (Zᵀ Z + λ tr(Zᵀ Z)/F I)⁻¹ Zᵀ (y − ȳ), float64, Z the standardised counts of bins t − before … t + after.
Carmena et al., PLoS Biol. 1 (2003) e42; Hoerl & Kennard, Technometrics 12 (1970). Strengths and windows are chosen on
validation; bins of which the behaviour isn't known take no part, and counts that weren't recorded stand at their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.history import Recording
from sciml.errors import InputError

ROWS = 8192
STRENGTHS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Window:
    """Bins t − before … t + after of counts ** power."""

    before: int = 5
    after: int = 5
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 0 or self.power <= 0:
            raise InputError("Window", found=asdict(self), expected="bins ≥ 0 and a positive power",
                             fix="before and after are numbers of bins")


@dataclass(frozen=True)
class Windowed:
    """A window and the training mean and spread ``(N,)`` of each unit's count ** power, float64."""

    window: Window
    centre: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, recordings: Sequence[Recording], window: Window) -> Windowed:
        counts = torch.cat([r.counts[r.train] for r in recordings]).double()
        seen = torch.isfinite(counts)
        num = seen.sum(0).clamp_min(1)
        powered = torch.where(seen, counts, 0.0).pow(window.power)
        centre = powered.sum(0) / num
        variance = torch.where(seen, powered - centre, 0.0).square().sum(0) / num
        return cls(window, centre, variance.clamp_min(10 / max(10, len(counts))).sqrt())

    def rows(self, counts: Tensor, low: int, high: int) -> Tensor:
        """Features ``(..., high − low, N · (before + 1 + after))`` of bins low … high − 1 of counts ``(..., T, N)``;
        what is beyond either end of the recording stands at its mean."""
        first, last = low - self.window.before, high + self.window.after
        inside = counts[..., max(0, first):last, :]
        z = (inside.pow(self.window.power) - self.centre.to(inside)) / self.spread.to(inside)
        z = torch.where(torch.isfinite(z), z, 0.0)
        z = torch.nn.functional.pad(z, (0, 0, max(0, -first), max(0, last - counts.shape[-2])))
        return z.unfold(-2, self.window.before + 1 + self.window.after, 1).flatten(-2)

    def linear(self, counts: Tensor, weights: Tensor, offset: Tensor) -> Tensor:
        """``(..., T, P)``"""
        pieces = [self.rows(counts, low, min(low + ROWS, counts.shape[-2])) @ weights.to(counts)
                  for low in range(0, counts.shape[-2], ROWS)]
        return torch.cat(pieces, -2) + offset.to(counts)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return asdict(self.window), {"centre": self.centre.numpy(), "spread": self.spread.numpy()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(Window(**config), *_tensors(arrays, "centre", "spread"))


@dataclass(frozen=True)
class RidgeDecoder:
    """``weights (F, P)``, ``offset (P,)`` in the units of the behaviour, float64."""

    windowed: Windowed
    weights: Tensor
    offset: Tensor
    provenance: Mapping[str, Any]

    @classmethod
    def fit(cls, recordings: Sequence[Recording], behaviour: Sequence[Tensor], windows: Sequence[Window] = (Window(),),
            strengths: Sequence[float] = STRENGTHS, refit: bool = False) -> RidgeDecoder:
        """Behaviour ``(T, P)`` of each recording, NaN where unknown. Per component, the strength with the least squared
        error on validation; of the windows, that with the greatest mean R² there (over its own mean). Provenance has
        the root mean squared errors there, too. refit: with what was chosen, on the training and validation bins
        together; validation is in-sample then."""
        best: tuple[float, RidgeDecoder] | None = None
        tried = []
        for window in windows:
            windowed = Windowed.fit(recordings, window)
            parts = sorted((part for alike in _alike(behaviour) for part in _ridges(
                windowed, recordings, [b[:, alike].double() for b in behaviour], alike, strengths)),
                key=lambda part: part.place)
            score = float(np.mean([part.score for part in parts]))
            tried.append({**asdict(window), "validation_r2": score, "strengths": [part.strength for part in parts]})
            made = cls(windowed, torch.stack([part.weights for part in parts], 1),
                       torch.stack([part.offset for part in parts]),
                       {**tried[-1], "validation_rmse": [part.error for part in parts]})
            if best is None or score > best[0]:
                best = score, made
        if best is None:
            raise InputError("RidgeDecoder.fit", key="windows", found="none", expected="one or more",
                             fix="pass a Window")
        chosen = best[1]
        provenance = {**chosen.provenance, "selected_on": "validation", "tried": tried, "refit": refit}
        if refit:
            chosen = _refitted(chosen, recordings, behaviour)
        return replace(chosen, provenance=provenance)

    def predict(self, counts: Tensor) -> Tensor:
        """``(..., T, P)`` of counts ``(..., T, N)``."""
        return self.windowed.linear(counts, self.weights, self.offset)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.windowed.state()
        return ({"kind": "ridge decoder", "window": config, "provenance": dict(self.provenance)},
                {**arrays, "weights": self.weights.numpy(), "offset": self.offset.numpy()})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        weights, offset = _tensors(arrays, "weights", "offset")
        return cls(Windowed.restore(config["window"], arrays), weights, offset, config["provenance"])


@dataclass(frozen=True)
class LogisticDecoder:
    """log p = log softmax(z · weights + offset): ``weights (F, C)``, ``offset (C,)``, ``classes (C,)`` ascending."""

    windowed: Windowed
    weights: Tensor
    offset: Tensor
    classes: Tensor
    provenance: Mapping[str, Any]

    @classmethod
    def fit(cls, recordings: Sequence[Recording], labels: Sequence[Tensor], window: Window = Window(5, 5),
            strengths: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)) -> LogisticDecoder:
        """Labels ``(T,)`` of each recording, NaN where unknown. Minimises the mean cross entropy + ½ strength Σ w²; the
        strength by the cross entropy of the validation bins."""
        windowed = Windowed.fit(recordings, window)
        x, y = _rows(windowed, recordings, labels, [r.train for r in recordings])
        z, asked = _rows(windowed, recordings, labels, [r.validation for r in recordings])
        classes = torch.unique(y)
        inside = torch.isin(asked, classes)
        if len(classes) < 2 or not bool(inside.any()):
            raise InputError("LogisticDecoder.fit", key="labels", found=f"{len(classes)} classes in training",
                             expected="two or more, and some in validation", fix="check the labels and the split")
        z, truth = z[inside], torch.searchsorted(classes, asked[inside])
        target, start = torch.searchsorted(classes, y), torch.zeros(x.shape[1] + 1, len(classes), dtype=torch.float64)
        best: tuple[float, float, Tensor] | None = None
        tried = []
        for strength in sorted(strengths, reverse=True):
            start = _multinomial(x, target, strength, start)
            loss = float(torch.nn.functional.cross_entropy(z @ start[:-1] + start[-1], truth))
            tried.append({"strength": strength, "validation_nats": loss})
            if best is None or loss < best[0]:
                best = loss, strength, start
        if best is None:
            raise InputError("LogisticDecoder.fit", key="strengths", found="none", expected="one or more",
                             fix="pass the strengths to choose from")
        provenance = {"strength": best[1], "validation_nats": best[0], "selected_on": "validation", "tried": tried}
        return cls(windowed, best[2][:-1], best[2][-1], classes, provenance)

    def log_probabilities(self, counts: Tensor) -> Tensor:
        """``(..., T, C)`` of counts ``(..., T, N)``."""
        return self.windowed.linear(counts, self.weights, self.offset).log_softmax(-1)

    def predict(self, counts: Tensor) -> Tensor:
        """``(..., T)`` the most probable class."""
        return self.classes[self.log_probabilities(counts).argmax(-1)]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.windowed.state()
        return ({"kind": "logistic decoder", "window": config, "provenance": dict(self.provenance)},
                {**arrays, "weights": self.weights.numpy(), "offset": self.offset.numpy(),
                 "classes": self.classes.numpy()})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        weights, offset, classes = _tensors(arrays, "weights", "offset", "classes")
        return cls(Windowed.restore(config["window"], arrays), weights, offset, classes, config["provenance"])


def _tensors(arrays: Mapping[str, np.ndarray], *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(np.asarray(arrays[name]), dtype=torch.float64) for name in names)


class Part(NamedTuple):
    """One component: its place, weights ``(F,)``, offset ``()``, strength, and R² and error on validation."""

    place: int
    weights: Tensor
    offset: Tensor
    strength: float
    score: float
    error: float


def _alike(behaviour: Sequence[Tensor]) -> list[list[int]]:
    """Components that are known in the same bins, which share a Gram matrix."""
    known = torch.isfinite(torch.cat(list(behaviour))).numpy()
    groups: dict[bytes, list[int]] = {}
    for p in range(known.shape[1]):
        groups.setdefault(np.packbits(known[:, p]).tobytes(), []).append(p)
    return list(groups.values())


def _rows(windowed: Windowed, recordings: Sequence[Recording], values: Sequence[Tensor], masks: Sequence[Tensor],
          ) -> tuple[Tensor, Tensor]:
    """float64 features and values, ``(T,)`` or ``(T, P)``, of the bins in the masks whose values are known."""
    x, y = [], []
    for r, v, mask in zip(recordings, values, masks, strict=True):
        for low in range(0, len(r.counts), ROWS):
            high = min(low + ROWS, len(r.counts))
            chosen = mask[low:high] & torch.isfinite(v[low:high].view(high - low, -1)).all(1)
            if bool(chosen.any()):
                x.append(windowed.rows(r.counts.double(), low, high)[chosen])
                y.append(v[low:high][chosen].double())
    width = len(windowed.centre) * (windowed.window.before + 1 + windowed.window.after)
    empty = torch.zeros(0, dtype=torch.float64)
    return torch.cat([empty.new_zeros(0, width), *x]), torch.cat([empty.new_zeros(0, *values[0].shape[1:]), *y])


def _ridges(windowed: Windowed, recordings: Sequence[Recording], values: Sequence[Tensor], places: Sequence[int],
            strengths: Sequence[float]) -> Iterator[Part]:
    """Of components ``(T, P)`` that are known in the same bins, each with its own strength."""
    x, y = _rows(windowed, recordings, values, [r.train for r in recordings])
    asked, truth = _rows(windowed, recordings, values, [r.validation for r in recordings])
    if len(y) < 2 or len(truth) < 2:
        raise InputError("RidgeDecoder.fit", key="behaviour", expected="two or more known values in each",
                         found=f"{len(y)} training and {len(truth)} validation bins",
                         fix="check the split, or leave the component out")
    middle, level = x.mean(0), y.mean(0)
    eigenvalues, vectors, turned = _turned(x, y)
    scale = eigenvalues.mean().clamp_min(1e-12)
    power = (truth - truth.mean(0)).square().sum(0).clamp_min(1e-30)
    weights = [vectors @ (turned / (eigenvalues + strength * scale)[:, None]) for strength in strengths]
    errors = torch.stack([(truth - level - (asked - middle) @ w).square().sum(0) for w in weights])  # (strengths, P)
    for i, best in enumerate(errors.argmin(0).tolist()):
        w, error = weights[best][:, i], errors[best, i]
        yield Part(places[i], w, level[i] - middle @ w, float(strengths[best]), float(1 - error / power[i]),
                   float((error / len(truth)).sqrt()))


def _turned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors of the centred Gram matrix, and the cross products in their basis."""
    middle = x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x - len(x) * torch.outer(middle, middle))
    return values.clamp_min(0), vectors, vectors.T @ (x.T @ (y - y.mean(0)))


def _refitted(decoder: RidgeDecoder, recordings: Sequence[Recording], behaviour: Sequence[Tensor]) -> RidgeDecoder:
    """The same window, standardisation and strengths, on training and validation bins."""
    weights, offset = [], []
    for p, strength in enumerate(decoder.provenance["strengths"]):
        x, y = _rows(decoder.windowed, recordings, [b[:, p].double() for b in behaviour],
                     [r.train | r.validation for r in recordings])
        values, vectors, turned = _turned(x, y)
        weights.append(vectors @ (turned / (values + strength * values.mean().clamp_min(1e-12))))
        offset.append(y.mean() - x.mean(0) @ weights[-1])
    return replace(decoder, weights=torch.stack(weights, 1), offset=torch.stack(offset))


def _multinomial(x: Tensor, target: Tensor, strength: float, start: Tensor) -> Tensor:
    """``(F + 1, C)`` at the optimum, by L-BFGS in float64; the last row is the offset and isn't penalised."""
    from scipy.optimize import minimize

    hot = torch.nn.functional.one_hot(target, start.shape[1]).to(x)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.as_tensor(flat).view_as(start)
        log_p = (x @ w[:-1] + w[-1]).log_softmax(-1)
        error = (log_p.exp() - hot) / len(x)
        gradient = torch.cat([x.T @ error + strength * w[:-1], error.sum(0, keepdim=True)])
        loss = -(log_p * hot).sum() / len(x) + strength * w[:-1].square().sum() / 2
        return float(loss), gradient.numpy().ravel()

    found = minimize(objective, start.numpy().ravel(), jac=True, method="L-BFGS-B",
                     options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-8, "maxcor": 20})
    if not np.isfinite(found.fun):
        raise InputError("LogisticDecoder.fit", found="a loss that isn't finite", expected="finite counts",
                         fix="check the counts for infinities")
    return torch.tensor(found.x).view_as(start)
