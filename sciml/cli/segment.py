"""Segment medical images: NIfTI in, NIfTI out on the same grid, volumes of structures in mm³."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml.cli import console
from sciml.errors import InputError

if TYPE_CHECKING:
    from sciml.data.readers._volumes_files import Case
    from sciml.handles.volumes import Calibration
    from sciml.predictor import Predictor


@click.command("segment")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="A folder, or of one INPUT a file.")
@click.option("--image", "patterns", multiple=True, metavar="MODALITY=PATTERN",
              help="Files of a modality below INPUT, such as t1={subject}_0000.nii.gz; may be repeated.")
@click.option("--mirror", metavar="x,y,z", help="Axes to also look at in the mirror.  [default: as the recipe says]")
@click.option("--calibrate", "store", metavar="STORE",
              help="Store whose validation split tells how far volumes are off; kept in the run folder.")
@click.option("--step-s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Between frames of 4-D images.  [default: as their headers say]")
@click.option("--overwrite", is_flag=True, help="Replace what was written before.")
@click.option("--json", "json_", is_flag=True, help="Print files and volumes as JSON.")
def segment(checkpoint: Path, inputs: tuple[Path, ...], out: Path, patterns: tuple[str, ...], mirror: str | None,
            store: str | None, step_s: float | None, overwrite: bool, json_: bool) -> None:
    """Write a label map of every image of INPUT, files or folders of NIfTI, on the image's own grid.

    Any orientation, spacing and size: large images are taken window by window and written plane by plane. Of 4-D images
    every frame has a label map, or all have one, as the checkpoint was trained. Volumes have a 90 % interval once
    --calibrate has been given: how far off they were on subjects that were not trained on.
    """
    import torch

    from sciml.checkpoint import load, resolve
    from sciml.cli.evaluate import run_of
    from sciml.handles import volumes
    from sciml.memory import keep_freed
    from sciml.threads import fastest

    mirrors = None if mirror is None else [name for name in mirror.split(",") if name]
    if not set(mirrors or ()) <= {"x", "y", "z"}:
        raise InputError("command line", key="--mirror", found=mirror, expected="some of x,y,z", fix="correct it")
    predictor = load(checkpoint)
    cases = cases_of(predictor, inputs, patterns)
    places = outputs_of(cases, inputs, out, overwrite=overwrite)
    torch.set_num_threads(fastest())
    keep_freed()
    run = run_of(resolve(checkpoint))
    calibration = _calibration(predictor, run, store)
    found: list[dict[str, Any]] = []
    for case, place in zip(cases, places):
        images = {name: Path(path) for name, path in case.images.items()}
        with console.progress(case.name) as progress:
            made = volumes.segment(predictor, images, place, mirrors=mirrors, calibration=calibration,
                                   step_s=step_s, progress=progress)
        found.append({"image": case.name, "out": str(place), "volumes": [asdict(each) for each in made]})
    if json_:
        console.as_json(found)
        return
    rows: list[dict[str, Any]] = [{"image": one["image"], **row} for one in found for row in one["volumes"]]
    told = ["image", *(["time_s"] if any(row["time_s"] is not None for row in rows) else []), "structure", "volume_mm3",
            *([] if calibration is None else ["low_mm3", "high_mm3"])]
    rows = [{key: row[key] for key in told} for row in rows]
    console.table(rows)
    for one in found:
        click.echo(one["out"])
    data = calibration.dataset if calibration else next(iter(predictor.adapter("volumes").state()[0]["datasets"]))
    console.next_command(f"sciml evaluate {checkpoint} --data stores/{data}.zarr" if calibration else
                         f"sciml segment {checkpoint} {' '.join(map(str, inputs))} -o {out} --overwrite "
                         f"--calibrate stores/{data}.zarr   (intervals of the volumes)")


def cases_of(predictor: Predictor, inputs: Sequence[Path], patterns: Sequence[str]) -> list[Case]:
    """The images of each subject among files and folders. Raises `InputError` if there are none, or a pattern is none.
    """
    from sciml.data.readers import _volumes_files as files
    from sciml.data.readers._volumes_options import VolumeOptions
    from sciml.data.readers.nifti import SUFFIXES
    from sciml.handles.volumes import segmenting

    adapter, _ = segmenting(predictor)
    pairs = [text.partition("=") for text in patterns]
    if any(not equals or name not in adapter.modalities for name, equals, _ in pairs):
        raise InputError("command line", key="--image", found=" ".join(patterns),
                         expected=f"MODALITY=PATTERN of {', '.join(adapter.modalities)}",
                         fix=f"for example --image {adapter.modalities[0]}={{subject}}_0000.nii.gz")
    for path in inputs:
        if not path.exists():
            raise InputError(path, found="nothing there", expected="a NIfTI file or a folder of them",
                             fix="check the path")
    options = VolumeOptions(images={name: pattern for name, _, pattern in pairs}, modality=adapter.modalities[0])
    return files.cases_of([str(path) for path in inputs], options, SUFFIXES)


def outputs_of(cases: Sequence[Case], inputs: Sequence[Path], out: Path, *, overwrite: bool) -> list[Path]:
    """Where every label map goes. Raises `InputError` if one would replace a file, or an image."""
    one = out.name.endswith((".nii", ".nii.gz"))
    if one and len(cases) > 1:
        raise InputError("command line", key="--out", found=f"{out.name} for {len(cases)} images", expected="a folder",
                         fix="give a folder")
    places = [out] if one else [out / f"{case.name}.nii.gz" for case in cases]
    images = {Path(path).resolve() for case in cases for path in case.images.values()}
    for place in places:
        if place.resolve() in images:
            raise InputError(place, found="an image of the input", expected="another place for its label map",
                             fix="choose another folder")
        if place.exists() and not overwrite:
            raise InputError(place, found="a file", expected="nothing there", fix="choose another name, or --overwrite")
    return places


def _calibration(predictor: Predictor, run: Path | None, store: str | None) -> Calibration | None:
    """Of the run folder, or made now of a store and left there; None where neither is there."""
    from sciml.data.store import open_store
    from sciml.handles.volumes import Calibration, calibrate
    from sciml.recipe import validate
    from sciml.report.bench import write_json

    path = None if run is None else run / "calibration" / "volumes.json"
    if store is not None:
        with console.progress("calibrate") as progress:
            made = calibrate(predictor, open_store(store), progress)
        if path is not None:
            write_json(path, made.model_dump(mode="json"))
        return made
    if path is None or not path.is_file():
        return None
    try:
        return validate(Calibration, json.loads(path.read_text(encoding="utf-8")), where=path)
    except ValueError as error:
        raise InputError(path, found=f"{error}"[:120], expected="what `sciml segment --calibrate` wrote",
                         fix="delete the file, or give --calibrate STORE again") from None


PLUGIN = segment
