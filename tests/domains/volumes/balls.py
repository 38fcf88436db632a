"""A store of labelled balls, a shell around a core, brighter inwards: any grid, any orientation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from sciml.data import bricks
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, write_store

STRUCTURES = ("background", "shell", "core")
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def ball(shape: Sequence[int], centre: Sequence[float]) -> np.ndarray:
    """0, 1 (shell), 2 (core), float32; places from −1 to 1 along each axis."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij"))
    radius = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0))
    return ((radius < 0.9).astype(np.float32) + (radius < 0.5)).astype(np.float32)


def balls_store(folder: Path, shape: tuple[int, int, int] = (8, 6, 5), *, subjects: int = 5, brick: int = 4,
                affine: np.ndarray = AFFINE, grow: int = 0, classes: Sequence[str] = (),
                dataset: str = "balls") -> Store:
    """The first three fifths train, then validation and test. grow: that many more voxels along x for each subject.
    classes: names, with `hollow` among them, which every second ball is, and `cored`, which the others are."""
    rng = np.random.default_rng(5)
    images, labels, shapes = [], [], []
    for number in range(subjects):
        own = (shape[0] + grow * number, *shape[1:])
        label = ball(own, rng.uniform(-0.2, 0.2, 3)).clip(0, 1 if classes and number % 2 else 2)
        images.append(bricks.pack((100 * (1 + label) + rng.normal(0, 5, own)).astype(np.float32), brick))
        labels.append(bricks.pack(label, brick))
        shapes.append(own)
    data = {"mri": (("voxel",), np.concatenate(images)), "label": (("voxel",), np.concatenate(labels)),
            "voxel_count": (("subject",), np.array([len(image) for image in images])),
            "size": (("subject", "index"), np.array(shapes, float)),
            "affine": (("subject", "world", "column"), np.tile(affine, (subjects, 1, 1))),
            "brick": (("subject",), np.full(subjects, float(brick)))}
    variables = {"mri": Variable(role="state", unit="1", dims=("voxel",)),
                 "label": Variable(role="label", unit="1", dims=("voxel",)),
                 "voxel_count": Variable(role="rows", unit="1", dims=()),
                 "size": Variable(role="parameter", unit="1", dims=("index",)),
                 "affine": Variable(role="parameter", unit="1", dims=("world", "column")),
                 "brick": Variable(role="parameter", unit="1", dims=())}
    coords = {"index": list("ijk"), "world": ["x", "y", "z", "1"], "column": ["i", "j", "k", "origin"],
              "structure": list(STRUCTURES), "subject": [f"s{i}" for i in range(subjects)]}
    if classes:
        codes = [float(classes.index("hollow" if number % 2 else "cored")) for number in range(subjects)]
        data["category"] = (("subject",), np.array(codes))
        variables["category"] = Variable(role="label", unit="1", dims=())
        coords["class"] = list(classes)
    cuts = np.split(np.arange(subjects), [3 * subjects // 5, 4 * subjects // 5])
    splits = Splits(key="subject", **{name: tuple(Block(group=int(g), start=0, stop=1) for g in cut)
                                      for name, cut in zip(("train", "validation", "test"), cuts)})
    sets = dict.fromkeys(set(coords) - {"subject"}, AxisMeta(kind="set", unit="1"))
    draft = StoreDraft(domain="volumes", dataset=dataset, group_dim="subject", groups=subjects, variables=variables,
                       axes=sets,
                       ragged={"voxel": "voxel_count"}, dt=None, splits=splits, provenance=Provenance(builder="test"))
    return write_store(xr.Dataset(data, coords=coords), draft, folder / f"{dataset}.zarr", overwrite=True)
