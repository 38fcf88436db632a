"""The domain `spikes`: one adapter for counts in bins, one for events; the recipe's ``tokens`` says which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sciml.adapter import Arrays
from sciml.domains.spikes.binned import Binned
from sciml.domains.spikes.events import Events

KINDS: Mapping[str, type[Binned] | type[Events]] = {"bins": Binned, "events": Events}


class Spikes:
    """Makes the adapter that a recipe or a checkpoint asks for."""

    @classmethod
    def create(cls, config: Mapping[str, Any]) -> Binned | Events:
        """Raises `InputError` on a section ``domains.spikes`` that isn't valid."""
        return KINDS.get(str(config.get("tokens", "bins")), Binned).create(config)

    @classmethod
    def restore(cls, config: Mapping[str, Any], arrays: Arrays) -> Binned | Events:
        return KINDS[config["config"]["tokens"]].restore(config, arrays)
