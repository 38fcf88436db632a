"""One self-contained page about a run. `build` is the whole of it; `sciml.report.bench` is the schema of benchmarks."""

from __future__ import annotations

from pathlib import Path


def build(run: str | Path, out: str | Path) -> Path:
    """Read the run folder and write one HTML file that opens offline, at most 6 MB; returns its path.

    Whatever the run lacks is said so in its section. Raises `sciml.errors.InputError` if `run` is no folder or holds
    nothing that can be shown.
    """
    from sciml.report.page import render
    from sciml.report.run import read_run

    return render(read_run(Path(run)), Path(out))
