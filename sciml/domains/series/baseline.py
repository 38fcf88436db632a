"""Ridge regression in closed form from Gram statistics: any look-back, horizon and missing pattern is a sub-block.

One matrix for all variates. With z a window of standardised values, o the observed look-back cells and m their mean,
the forecast of step h is ``m + Σ W[o, h] (z[o] − m)`` with ``W = (P G P + λ I)⁻¹ P (C − G 1/k)``: G and C are the raw
second moments of the look-back, and of it with the horizon, P removes the mean of the k cells, λ is relative to
trace(P G P)/k.
Hoerl & Kennard, Technometrics 12 (1970); the window's mean removed as in Kim et al., "RevIN", ICLR 2022.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

MEMO_SIZE = 256
COLUMNS = 1024
MOST_BYTES = 64 << 20
"""Of the Gram matrices that are solved at once where cells are missing."""


@dataclass(frozen=True)
class Moments:
    """Mean products over windows: gram ``(R, L, L)``, cross ``(L, H)``, power ``(H,)``.

    rows: ``(R,)`` windows × variates. Range r of the horizon, up to step ``ends[r]``, uses the windows that reach it.
    """

    ends: tuple[int, ...]
    gram: np.ndarray
    cross: np.ndarray
    power: np.ndarray
    rows: np.ndarray

    def range(self, r: int) -> slice:
        return slice(self.ends[r - 1] if r else 0, self.ends[r])


def moments(pieces: Sequence[np.ndarray], look_back: int, ends: Sequence[int]) -> Moments:
    """Of all windows that lie inside a piece ``(T, V)`` of standardised values, float64; NaN is missing.

    Entry (i, j) sums z[s + i] z[s + j] over the starts s: a difference of running sums of the products at lag j − i,
    so the cost is T V (L + H), not that times L. Where cells are missing, each product is averaged over the windows
    that have both factors, and the Gram matrix is projected on the positive semidefinite ones.
    """
    sums, pairs = _Sums(look_back, tuple(ends)), _Sums(look_back, tuple(ends))
    rows = np.zeros(len(ends), np.int64)
    for piece in _side_by_side(pieces):
        there = np.isfinite(piece)
        sums.add(np.where(there, piece, 0.0))
        pairs.add(there.astype(np.float64))
        rows += [piece.shape[1] * max(0, len(piece) - look_back - end + 1) for end in ends]
    gram, cross, power = (s / np.maximum(np.rint(p), 1) for s, p in zip(sums.parts(), pairs.parts()))
    for r, seen in enumerate(pairs.gram):
        if np.rint(seen).min() < rows[r]:
            gram[r] = _semidefinite(gram[r])
    return Moments(tuple(ends), gram, cross, power, rows)


def _side_by_side(pieces: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Pieces of one length as more columns of one: which variate a column is doesn't matter here."""
    by_length: dict[int, list[np.ndarray]] = {}
    for piece in pieces:
        by_length.setdefault(len(piece), []).append(piece)
    for alike in by_length.values():
        together = max(1, COLUMNS // alike[0].shape[1])
        for start in range(0, len(alike), together):
            yield np.concatenate(alike[start:start + together], 1)


class _Sums:
    """Sums of products over windows, as in `Moments`, before they are divided by how many there were."""

    def __init__(self, look_back: int, ends: tuple[int, ...]) -> None:
        self.ends = ends
        self.gram = np.zeros((len(ends), look_back, look_back))
        self.cross, self.power = np.zeros((look_back, ends[-1])), np.zeros(ends[-1])

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.gram, self.cross, self.power

    def add(self, values: np.ndarray) -> None:
        look_back = self.cross.shape[0]
        for lag in range(min(look_back + self.ends[-1], len(values))):
            running = np.zeros(len(values) - lag + 1)
            np.cumsum(np.einsum("tv,tv->t", values[:len(values) - lag], values[lag:]), out=running[1:])
            for r, (low, high) in enumerate(zip((0, *self.ends[:-1]), self.ends)):
                starts = len(values) - look_back - high + 1
                if starts <= 0:
                    break
                inside = np.arange(max(0, look_back - lag))
                total = running[inside + starts] - running[inside]
                self.gram[r, inside, inside + lag] += total
                if lag:
                    self.gram[r, inside + lag, inside] += total
                later = np.arange(max(0, look_back + low - lag), min(look_back, look_back + high - lag))
                self.cross[later, later + lag - look_back] += running[later + starts] - running[later]
                if lag == 0:
                    own = np.arange(look_back + low, look_back + high)
                    self.power[low:high] += running[own + starts] - running[own]


def _semidefinite(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def centred(statistics: Moments, r: int, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of range r and these look-back cells, less their mean: Gram ``(k, k)``, cross ``(k, n)``, power ``(n,)``."""
    gram = statistics.gram[r][np.ix_(cells, cells)]
    steps = statistics.range(r)
    cross = statistics.cross[cells, steps]
    row, mean = gram.mean(0), gram.mean()
    return (gram - row[:, None] - row + mean, cross - cross.mean(0) - (row - mean)[:, None],
            statistics.power[steps] - 2 * cross.mean(0) + mean)


def solve(gram: np.ndarray, cross: np.ndarray, strength: float) -> np.ndarray:
    """``(k, n)`` ridge weights; zero for a series that never leaves its mean."""
    scale = np.trace(gram) / len(gram)
    if scale <= 1e-12:
        return np.zeros_like(cross)
    return np.asarray(cho_solve(cho_factor(gram + strength * scale * np.eye(len(gram))), cross))


def squared_error(gram: np.ndarray, cross: np.ndarray, power: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared error ``(n,)`` of weights ``(k, n)`` on the windows the moments are of."""
    error = power - 2 * (weights * cross).sum(0) + (weights * (gram @ weights)).sum(0)
    return np.asarray(np.maximum(error, 0.0))


class Memo(OrderedDict[Any, Any]):
    """A bounded cache of what can be computed again: it is not pickled and never makes two objects differ."""

    def remember(self, key: Any, value: Any) -> Any:
        self[key] = value
        while len(self) > MEMO_SIZE:
            self.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, ()


@dataclass(frozen=True)
class Ridge:
    """The fitted baseline: training moments, a strength per range of the horizon, and how it came about."""

    moments: Moments
    strengths: tuple[float, ...]
    provenance: Mapping[str, Any]
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def fit(cls, train: Moments, validation: Moments, strengths: Sequence[float],
            look_backs: Sequence[int] = ()) -> Ridge:
        """Per range, the strength with the least error on validation, mean over these look-backs (default: the longest
        alone); where that has no window, the middle one, and the provenance says so by an error of None."""
        longest = train.gram.shape[1]
        lengths = tuple(look_backs) or (longest,)
        chosen, errors = [], []
        for r in range(len(train.ends)):
            pairs = [(centred(train, r, cells), centred(validation, r, cells))
                     for n in lengths for cells in [np.arange(longest - n, longest)]]
            tried = np.array([[squared_error(*asked, solve(*fitted[:2], s)).mean() for fitted, asked in pairs]
                              for s in strengths])
            known = validation.rows[r] > 0
            best = int(tried.mean(1).argmin()) if known else len(strengths) // 2
            chosen.append(float(strengths[best]))
            errors.append(tried[best].tolist() if known else None)
        provenance = {"ends": list(train.ends), "selected_on": "validation", "tried": list(map(float, strengths)),
                      "validation_mse": [None if e is None else float(np.mean(e)) for e in errors],
                      "look_backs": list(lengths), "validation_mse_by_look_back": errors,
                      "train_rows": train.rows.tolist(), "validation_rows": validation.rows.tolist()}
        return cls(train, tuple(chosen), provenance)

    @property
    def look_back(self) -> int:
        return self.moments.gram.shape[1]

    @property
    def horizon(self) -> int:
        return self.moments.ends[-1]

    def solved(self, observed: np.ndarray, horizon: int) -> tuple[Tensor, Tensor]:
        """For a pattern ``(look_back,)`` bool of observed cells: weights ``(look_back, horizon)`` with zero rows where
        nothing was observed, and the standard deviation ``(horizon,)`` of the training residual; float32."""
        key = (observed.tobytes(), len(observed), horizon)
        if key in self.memo:
            return self.memo[key]
        weights, spread = np.zeros((len(observed), horizon)), np.ones(horizon)
        cells = self.look_back - len(observed) + np.flatnonzero(observed)
        for r in range(len(self.moments.ends)):
            steps = self.moments.range(r)
            count = min(steps.stop, horizon) - steps.start
            if count <= 0:
                break
            inside = slice(steps.start, steps.start + count)
            if len(cells) == 0:
                spread[inside] = np.sqrt(self.moments.power[inside])
                continue
            gram, cross, power = centred(self.moments, r, cells)
            w = solve(gram, cross[:, :count], self.strengths[r])
            weights[observed, inside] = w
            spread[inside] = np.sqrt(squared_error(gram, cross[:, :count], power[:count], w))
        pair = torch.tensor(weights, dtype=torch.float32), torch.tensor(spread, dtype=torch.float32).clamp_min(1e-4)
        return self.memo.remember(key, pair)

    def scale(self, look_back: int, horizon: int) -> Tensor:
        """``(horizon,)`` residual standard deviation of a complete look-back, in standardised units."""
        return self.solved(np.ones(look_back, bool), horizon)[1]

    def forecast(self, history: Tensor, observed: Tensor, horizon: int) -> Tensor:
        """``(B, V, horizon)`` from ``(B, V, L)`` standardised values and which of them were observed; differentiable.

        Cells that were not observed don't enter; a variate of which nothing was observed is forecast by its mean, 0.
        """
        mean = observed_mean(history, observed)
        x = torch.where(observed, history - mean, 0.0)
        if bool(observed.all()):
            weights = self.solved(np.ones(history.shape[-1], bool), horizon)[0]
            return mean + x @ weights.to(x)
        return self.completed(history, observed, horizon)[..., history.shape[-1]:]

    def completed(self, history: Tensor, observed: Tensor, horizon: int = 0) -> Tensor:
        """``(B, V, L + horizon)`` what is expected of every cell, given those of ``(B, V, L)`` that were observed;
        differentiable.

        The same formula for cells of the look-back, whose C is G itself: interpolation, smoothed by λ where observed.
        """
        length = history.shape[-1]
        flat, seen = history.reshape(-1, length), observed.reshape(-1, length)
        rows = max(1, MOST_BYTES // (8 * length * length))
        parts = [self._completed(x.double(), m.double(), horizon) for x, m in zip(flat.split(rows), seen.split(rows))]
        return torch.cat(parts).to(history).unflatten(0, history.shape[:-1])

    def _completed(self, x: Tensor, seen: Tensor, horizon: int) -> Tensor:
        length = x.shape[1]
        count = seen.sum(1, keepdim=True).clamp_min(1)
        mean = (x * seen).sum(1, keepdim=True) / count
        centred_x, parts = (x - mean) * seen, []
        for r in range(len(self.moments.ends)):
            steps = self.moments.range(r)
            wanted = max(min(steps.stop, horizon) - steps.start, 0)
            if r and not wanted:
                break
            gram = torch.from_numpy(self.moments.gram[r][-length:, -length:]).to(x)
            weights, row = self._solved(gram, seen, centred_x, count, self.strengths[r])
            cross = torch.from_numpy(self.moments.cross[-length:, steps][:, :wanted]).to(x)
            less = (row * weights).sum(1, keepdim=True) / count
            parts += [weights @ gram - less] * (r == 0) + [weights @ cross - less]
        return mean + torch.cat(parts, 1)

    @staticmethod
    def _solved(gram: Tensor, seen: Tensor, x: Tensor, count: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """``P (P G P + λ I)⁻¹ P x`` and ``G m``, ``(n, L)`` each, for masks m ``(n, L)`` of what was observed."""
        row = seen @ gram
        centred_gram = gram - (row[:, :, None] + row[:, None]) / count[..., None]
        centred_gram = (centred_gram + ((row * seen).sum(1, keepdim=True) / count**2)[..., None])
        centred_gram = centred_gram * seen[:, :, None] * seen[:, None]
        scale = centred_gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) / count
        moves = scale > 1e-12
        added = torch.where(moves, seen * strength * scale + (1 - seen), 1.0)
        factor = torch.linalg.cholesky(centred_gram * moves[..., None] + torch.diag_embed(added))
        weights = torch.cholesky_solve((x * moves)[..., None], factor)[..., 0] * seen
        return (weights - weights.sum(1, keepdim=True) / count) * seen, row

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config = {"kind": "ridge", "ends": list(self.moments.ends), "strengths": list(self.strengths),
                  "provenance": dict(self.provenance)}
        arrays = {"gram": self.moments.gram, "cross": self.moments.cross, "power": self.moments.power,
                  "rows": self.moments.rows}
        return config, arrays

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        known = {name: np.asarray(arrays[name]) for name in ("gram", "cross", "power", "rows")}
        statistics = Moments(tuple(config["ends"]), **known)
        return cls(statistics, tuple(config["strengths"]), config["provenance"])

    def noted(self, **more: Any) -> Ridge:
        """The same with more provenance."""
        return replace(self, provenance={**self.provenance, **more}, memo=Memo())


def observed_mean(history: Tensor, observed: Tensor) -> Tensor:
    """``(B, V, 1)`` mean of the observed cells of ``(B, V, L)``; 0, the training mean, where there is none."""
    return torch.where(observed, history, 0.0).sum(-1, keepdim=True) / observed.sum(-1, keepdim=True).clamp_min(1)
