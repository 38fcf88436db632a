"""One small store of molecules a session."""

from __future__ import annotations

import pytest

from sciml.data.store import Store
from tests.handles import toy


@pytest.fixture(scope="session")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return toy.store(tmp_path_factory.mktemp("molecules") / "toy.zarr")
