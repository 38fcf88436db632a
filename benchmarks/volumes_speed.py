"""Sliding windows of `benchmarks/volumes.py`: memory and time of a 512 × 512 × n volume, ours beside MONAI's.

The same small network, window, overlap and Gaussian weights for both; ours reads the file, normalises and writes the
label map, MONAI's is handed the normalised tensor and gives labels in memory. Each runs in a process of its own, on one
thread: this file is what it runs, ``python volumes_speed.py WHO FILE WINDOW OVERLAP``, and prints what it measured.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sciml.cli.bench import load_script
from sciml.domains.volumes.adapter import Volumes
from sciml.domains.volumes.config import Known
from sciml.errors import InputError
from sciml.handles.volumes import segment
from sciml.memory import keep_freed
from sciml.predictor import Predictor
from sciml.report.bench import Bench, Row

STRUCTURES = ("background", "anterior", "posterior")
ACROSS, DEPTHS = 512, (150, 300)
WINDOW, OVERLAP = 96, 0.25
GIB, MIB = 1 << 30, 1 << 20


def small() -> nn.Module:
    """Two convolutions: what is around a network is a larger share of the time than with any that is used."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, len(STRUCTURES), 3, padding=1)).eval()


def predictor_of(window: int, overlap: float) -> Predictor:
    """That network in the operator's place."""
    peers = load_script(Path(__file__).with_name("volumes_peers.py"))
    adapter = Volumes.create({"window": [window] * 3, "overlap": overlap})
    adapter = replace(adapter, task=replace(adapter.task, structures=STRUCTURES),  # type: ignore[type-var]
                      datasets={"made": Known(modalities={"mri": "1"}, structures=STRUCTURES)})
    return Predictor(peers.PeerOperator(small(), adapter), {adapter.name: adapter})


def write_volume(path: Path, shape: Sequence[int]) -> Path:
    """A NIfTI of int16 noise, written plane by plane."""
    nibabel: Any = importlib.import_module("nibabel")
    header, rng = nibabel.Nifti1Header(), np.random.default_rng(0)
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([0.8, 0.8, 1.0, 1.0]), 1)
    header.set_slope_inter(1, 0)
    with path.open("wb") as file:
        header.write_to(file)
        for _ in range(shape[2]):
            file.write(rng.integers(0, 1000, tuple(shape[:2]), np.int16).tobytes(order="F"))
    return path


def status(key: str) -> int:
    """Bytes of this process, such as VmRSS or VmHWM (the most so far)."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def ours(path: Path, window: int, overlap: float) -> None:
    segment(predictor_of(window, overlap), path, path.with_name(f"ours_{path.stem}.nii"))


def monais(path: Path, window: int, overlap: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slide: Any = importlib.import_module("monai.inferers").sliding_window_inference
    nibabel: Any = importlib.import_module("nibabel")
    stored = np.asarray(nibabel.load(path).dataobj)
    image = torch.from_numpy(stored.astype(np.float32))[None, None]
    image.sub_(image.mean()).div_(image.std())
    with torch.no_grad():
        logits: Tensor = slide(image, (window,) * 3, 1, small(), overlap=overlap, mode="gaussian")
        labels = logits.argmax(1)[0].to(torch.uint8).numpy()
    image_of = nibabel.Nifti1Image(labels, np.diag([0.8, 0.8, 1.0, 1.0]))
    nibabel.save(image_of, path.with_name(f"monai_{path.stem}.nii"))


def measured(who: str, path: Path, window: int, overlap: float) -> dict[str, float]:
    """In a process of its own: CPU seconds, and bytes at most above what it had before it began."""
    command = [sys.executable, "-P", __file__, who, str(path), str(window), str(overlap)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    if answer.returncode:
        raise InputError("benchmarks/volumes_speed.py", key=who, found=answer.stderr.strip()[-300:],
                         expected="figures", fix="run it alone")
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def measure_sliding(bench: Bench, peer: str, *, across: int = ACROSS, depths: Sequence[int] = DEPTHS,
                    window: int = WINDOW, overlap: float = OVERLAP) -> None:
    """Memory above the volume, at each depth, and CPU seconds. peer: why MONAI can't be measured, empty if it can."""
    label = f"{across}x{across}x"
    with tempfile.TemporaryDirectory() as folder:
        for depth in depths:
            metric = f"sliding/{label}{depth}"
            if bench.has(f"{metric}/cpu_seconds", None if peer else "monai"):
                continue
            path = write_volume(Path(folder) / f"{depth}.nii", (across, across, depth))
            volume = 2.0 * across * across * depth
            mine = measured("ours", path, window, overlap)
            theirs = None if peer else measured("monais", path, window, overlap)
            for name, unit, size in (("cpu_seconds", "s", 1.0), ("peak_above_volume", "GiB", GIB)):
                less = 0.0 if name == "cpu_seconds" else volume
                key = name if name == "cpu_seconds" else "peak"
                bench.add(Row(metric=f"{metric}/{name}", unit=unit, ours=(mine[key] - less) / size,
                              peer=None if theirs is None else (theirs[key] - less) / size,
                              peer_name=None if theirs is None else "monai"))
            path.unlink()


def main(who: str, path: str, window: str, overlap: str) -> None:
    torch.set_num_threads(1)
    keep_freed()
    run = {"ours": ours, "monais": monais}[who]
    warm = write_volume(Path(path).with_name(f"warm_{who}.nii"), (16, 16, 16))
    run(warm, 8, 0.25)  # imports and first calls
    before, began = status("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run(Path(path), int(window), float(overlap))
    print(json.dumps({"cpu_seconds": time.process_time() - began, "peak": float(status("VmHWM") - before)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
