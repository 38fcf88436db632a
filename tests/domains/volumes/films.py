"""A store of films: a ball that moves to and fro, of as many frames as each subject is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.build import build
from sciml.data.source import SourceSpec
from sciml.data.store import Store
from tests.domains.volumes.balls import AFFINE, STRUCTURES, ball

STEP_S = 0.25


def film(shape: Sequence[int], frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image and label, ``(i, j, k, t)`` float32."""
    rng = np.random.default_rng([7, seed])
    middle = rng.uniform(-0.2, 0.2, 3)
    moved = 0.3 * np.sin(2 * np.pi * np.arange(frames) / frames)
    label = np.stack([ball(shape, middle + np.array([x, 0, 0])) for x in moved], -1)
    return (100 * (1 + label) + rng.normal(0, 5, label.shape)).astype(np.float32), label


def films_store(folder: Path, frames: Sequence[int] = (4, 4, 4, 4, 4), shape: tuple[int, int, int] = (8, 6, 5), *,
                moving: bool = True, affine: np.ndarray = AFFINE, brick: int = 4, name: str = "films",
                **options: Any) -> Store:
    """The third to fifth subject train, the first is test, the second validation. moving: a label map for each frame,
    else that of the first for all of them."""
    root = folder / f"{name}_files"
    root.mkdir()
    for number, count in enumerate(frames):
        image, label = film(shape, count, number)
        np.savez(root / f"s{number}.npz", mri=image, label=label if moving else label[..., 0], affine=affine)
    given = {"format": "volume_npy", "frames": "time", "step_s": STEP_S, "structures": list(STRUCTURES),
             "brick": brick, **options}
    spec = {"name": name, "domain": "volumes", "files": [str(root)], "options": given, "licence": "CC0",
            "citation": "us", "split": {"by": "fold", "folds": 5}}
    return build(SourceSpec.model_validate(spec), folder / f"{name}.zarr")
