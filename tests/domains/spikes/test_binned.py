"""The domain spikes in bins: conformance, windows, what is hidden, generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sciml.data.store import Store
from sciml.domains.spikes.plugin import Spikes
from sciml.testing import check_domain

SMALL: dict[str, Any] = {"floor": "smoothed", "slow_s": [0.2, 2.0], "masks": {"held_out": 3, "dropout": 0.3},
                         "tasks": {"next": {"before": 8, "scored": 24}}}
MASKED = {**SMALL, "tasks": {"masked": {"before": 8, "scored": 16, "after": 8}, "next": {"before": 8, "scored": 24}}}
BEHAVIOUR = {**SMALL, "tasks": {"behaviour": {"before": 5, "scored": 22, "after": 5},
                                "next": {"before": 8, "scored": 24}}}


@pytest.mark.parametrize("config", [SMALL, {**SMALL, "slots": 0}, MASKED, BEHAVIOUR],
                         ids=["next", "lattice", "masked", "behaviour"])
def test_conformance(config: dict[str, Any], network_store: Callable[..., Store]) -> None:
    check_domain(Spikes, [network_store()], config=config)


EVENTS: dict[str, Any] = {"tokens": "events", "events": {"tokens": 24, "before": 8, "edges": 4}}


def test_conformance_of_events(network_store: Callable[..., Store]) -> None:
    check_domain(Spikes, [network_store()], config=EVENTS)
