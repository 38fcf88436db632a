"""The smoothed rate: each unit by its own recent past, an exponential average drawn towards the training mean.

λ[n, t] = (1 − a) mean[n] + a average[n, t], with the width and the share a of each unit chosen on validation; a < 1 is
the floor that keeps the log finite, and a = 0, the constant rate, is always among what is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sciml.domains.spikes.history import Basis, History, HistoryState, Recording

WIDTHS_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)
SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
PIECE = 1024


@dataclass(frozen=True)
class SmoothedRate:
    """History with one average per width, and ``mix (N, widths)``: per unit, its share at its width and 0 elsewhere."""

    history: History
    mix: Tensor
    provenance: Mapping[str, Any]

    @classmethod
    def fit(cls, recordings: Sequence[Recording], dt_s: float, widths_s: Sequence[float] = WIDTHS_S,
            shares: Sequence[float] = SHARES) -> SmoothedRate:
        """Mean rates of the training bins; width and share by the likelihood of the validation bins."""
        history = History.fit(recordings, Basis(1, 0, 1.0, tuple(widths_s)), dt_s)
        rate = _floored(history)
        score = torch.zeros(1 + len(widths_s) * len(shares), history.num_units, dtype=torch.float64)
        options = [(0, 0.0), *((w, a) for w in range(len(widths_s)) for a in shares)]
        for r in recordings:
            state = history.start(dtype=torch.float64).averages
            for low in range(0, len(r.counts), PIECE):
                counts, asked = r.counts[low:low + PIECE].double(), r.validation[low:low + PIECE]
                seen = torch.isfinite(counts)
                before, state = history.averages(torch.where(seen, counts - history.rate, 0.0), state)
                if not bool(asked.any()):
                    continue
                averages, y, known = before[asked].unbind(-1), counts[asked].nan_to_num(0.0), seen[asked]
                for i, (w, a) in enumerate(options):
                    value = (rate + a * averages[w]).clamp_min(1e-12)
                    score[i] += ((y * value.log() - value) * known).sum(0)
        best = score.argmax(0)
        mix = torch.zeros(history.num_units, len(widths_s), dtype=torch.float64)
        for n, i in enumerate(best.tolist()):
            mix[n, options[i][0]] = options[i][1]
        chosen = [widths_s[options[i][0]] if options[i][1] else None for i in best.tolist()]
        provenance = {"widths_s": chosen, "shares": mix.sum(1).tolist(), "selected_on": "validation"}
        return cls(history, mix, provenance)

    def log_rates(self, counts: Tensor, state: HistoryState | None = None) -> Tensor:
        """``(..., T, N)`` log spikes per bin from the bins before each; `state` is what came before the first."""
        state = state or self.history.start(*counts.shape[:-2], dtype=counts.dtype)
        seen = torch.isfinite(counts)
        excess = torch.where(seen, counts - self.history.rate.to(counts), 0.0)
        return self._log(self.history.averages(excess, state.averages)[0])

    def next_log_rates(self, state: HistoryState) -> Tensor:
        """``(..., N)`` of the bin after `state`; ``history.push`` takes the next step."""
        return self._log(state.averages)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config, arrays = self.history.state()
        return ({"kind": "smoothed rate", "history": config, "provenance": dict(self.provenance)},
                {**arrays, "mix": self.mix.numpy()})

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        mix = torch.tensor(np.asarray(arrays["mix"]), dtype=torch.float64)
        return cls(History.restore(config["history"], dict(arrays)), mix, config["provenance"])

    def _log(self, averages: Tensor) -> Tensor:
        rate = _floored(self.history).to(averages)
        return (rate + (averages * self.mix.to(averages)).sum(-1)).clamp_min(1e-12).log()


def _floored(history: History) -> Tensor:
    """``(N,)`` mean rates, never below 1e-6 spikes per bin."""
    return history.rate.clamp_min(1e-6)
