"""What `validate` finds in classes of subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import xarray as xr

from sciml.data.builders.phantoms import build
from sciml.data.check import validate
from sciml.data.store import Store

SMALL = {"subjects": 6, "field_mm": [24.0, 28.0, 20.0], "spacing_mm": [2.0, 2.5], "brick": 8, "hollow": 0.5}
SPLIT = {"by": "fold", "folds": 3}
"""Of six subjects, 2 and 5 are training, 1 and 4 validation, 0 and 3 test."""


def phantoms(codes: Sequence[float] | None, persons: Sequence[float] | None = None) -> xr.Dataset:
    data = build(SMALL).compute()
    names = {dim: ("subject", np.array(values, float), {"role": role, "units": "1"}) for dim, values, role in
             (("category", codes, "label"), ("person", persons, "parameter")) if values is not None}
    return data.assign(names)


def found(store: Store) -> dict[str, tuple[str, str]]:
    return {finding.key: (finding.level, finding.found) for finding in validate(store)}


@pytest.mark.parametrize(("codes", "persons", "told"), [
    ([0, 1, 0, 1, 0, 1], None, {}), ([0, 1, 0, 1, np.nan, 1], None, {}),
    ([0, 1, 0, 2, 0.5, 1], None, {"category": ("error", "2, first subject 3 (phantom_3): 2")}),
    ([0, 1, -1, 1, 0, 1], None, {"category": ("error", "1, first subject 2 (phantom_2): -1")}),
    ([0, 1, 1, 0, 0, 1], None, {"category": ("warning", "no subject of cored in the training split")}),
    ([0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2],
     {"category, person": ("warning", "3 persons of two classes, first subject 0 (phantom_0) and subject 3")}),
    ([0, 1, 0, 0, 1, np.nan], [0, 1, 2, 0, 1, 2],
     {"category": ("warning", "no subject of hollow in the training split")})])
def test_classes_are_judged(codes: list[float], persons: list[float] | None, told: dict[str, tuple[str, str]],
                            built: Callable[..., Store]) -> None:
    """By value, by what training has, and by person."""
    findings = {key: each for key, each in found(built(phantoms(codes, persons), split=SPLIT)).items()
                if key.startswith("category")}
    assert findings.keys() == told.keys(), findings
    for key, (level, words) in told.items():
        assert findings[key][0] == level
        assert words in findings[key][1], findings


def test_classes_without_names_are_an_error(built: Callable[..., Store]) -> None:
    store = built(phantoms([0, 1, 0, 1, 0, 1]).drop_vars("class"), split=SPLIT)
    assert found(store)["category"] == ("error", "no coordinate class")
