"""``train.jsonl``: what a run has done, a line per event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrainingLog:
    """Lines appended to `path`; those after `step`, from which a run resumes, are dropped. Silent if not `writing`.

    ``seconds`` is what the kept lines say the run has taken so far. One rank of a run writes.
    """

    def __init__(self, path: Path, step: int = 0, writing: bool = True) -> None:
        self.file, self.seconds = None, 0.0
        if not writing:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.exists() and step:
            for line in path.read_text().splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] <= step else []
                except ValueError:
                    break  # the line being written when the run was killed
        self.seconds = max((float(json.loads(line).get("seconds", 0.0)) for line in kept), default=0.0)
        temporary = path.with_suffix(".part")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(path)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, line: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
