"""Small stores of simulated recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from sciml.recipe import validate


def network(path: Path, name: str = "net", **options: Any) -> Store:
    """12 units at 8 Hz for 40 s in bins of 20 ms, with behaviour and stimulus."""
    chosen = {"units": 12, "duration_s": 40.0, "bin_ms": 20.0, "rate_hz": 8.0, "behaviour": 2, "calibration_s": 5.0,
              "stimulus": {"signals": 2}, **options}
    spec = validate(SourceSpec, {"name": name, "domain": "spikes", "builder": "spiking_network", "options": chosen,
                                 "missing": "mask", "licence": "CC0-1.0"}, where="test")
    return build(spec, path / f"{name}.zarr", overwrite=True)


@pytest.fixture(scope="session")
def network_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """``network_store(name, **options)``, each made once."""
    made: dict[str, Store] = {}

    def make(name: str = "net", **options: Any) -> Store:
        if name not in made:
            made[name] = network(tmp_path_factory.mktemp("spikes"), name, **options)
        return made[name]

    return make
