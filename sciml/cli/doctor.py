"""Say whether this machine is ready: versions, speed, memory, disk, plug-ins, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Any, Literal

import click

from sciml import registry
from sciml.cli import console
from sciml.report import machine

Status = Literal["ok", "note", "missing"]
PLUGIN_GROUPS = ("sciml.commands", "sciml.cli", "sciml.domains", "sciml.data.readers", "sciml.data.builders",
                 "sciml.data.checks", "sciml.data.conventions", "sciml.cards", "sciml.mixers", "sciml.kernels",
                 "sciml.objectives", "sciml.operator.stems",
                 "sciml.operator.heads", "sciml.operator.biases")
MIN_MEMORY_GIB, MIN_DISK_GIB = 4, 2


@click.command("doctor")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, json_: bool) -> None:
    """Check this machine and installation; exits with 1 if something needed is missing."""
    rows = [*check_python(), *check_packages(), *check_speed(), *check_room(), *check_plugins()]
    ok = all(row["status"] != "missing" for row in rows)
    fix = next((row["fix"] for row in rows if row["status"] == "missing"), "")
    if json_:
        console.as_json({"ok": ok, "machine": machine.describe(), "versions": machine.versions(), "checks": rows})
    else:
        console.table(rows, ["check", "found", "status", "fix"])
        console.next_command("sciml demo" if ok else fix)
    if not ok:
        ctx.exit(1)


def check_python() -> list[dict[str, str]]:
    """Python's version and the environment it lives in."""
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return [_row("python", f"{found} in {sys.prefix}", "ok" if good else "missing", "install Python 3.11 or newer")]


def check_packages() -> list[dict[str, str]]:
    """Needed packages that are absent, and optional extras that are, with the command that installs them."""
    try:
        wanted = requires("sciml") or []
    except PackageNotFoundError:
        return [_row("package", "sciml is imported from a folder, not installed", "missing", "pip install -e .")]
    absent: dict[str, list[str]] = {}
    extras: set[str] = set()
    for requirement in wanted:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        match = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        extra = match[1] if match else ""
        extras.add(extra)
        if not _installed(name):
            absent.setdefault(extra, []).append(name)
    rows = [_row("packages", machine_versions(), "ok")]
    for extra in sorted(extras):
        label = f"extra {extra}" if extra else "needed packages"
        lacking = absent.get(extra, [])
        command = f"pip install 'sciml[{extra}]'" if extra else f"pip install {' '.join(lacking)}"
        if lacking:
            rows.append(_row(label, f"not installed: {', '.join(lacking)}", "note" if extra else "missing", command))
        else:
            rows.append(_row(label, "installed", "ok"))
    return rows


def machine_versions() -> str:
    return ", ".join(f"{name} {number}" for name, number in machine.versions().items() if name != "python")


def check_speed() -> list[dict[str, str]]:
    """Threads and matrix-multiply rates, measured for a third of a second each."""
    if importlib.util.find_spec("torch") is None:
        return [_row("torch", "not installed", "missing", "pip install torch")]
    import torch

    rows = [_row("processor", f"{machine.describe()['processor']}, {os.cpu_count()} logical cores, "
                              f"{torch.get_num_threads()} torch threads", "ok")]
    for dtype in ("float32", "bfloat16"):
        rows.append(_row(f"matrix multiply {dtype}", f"{machine.gemm_gflops(dtype):.0f} GFLOP/s", "ok"))
    if torch.cuda.is_available():
        rows.append(_row("gpu", torch.cuda.get_device_name(0), "ok"))
    return rows


def check_room() -> list[dict[str, str]]:
    """Memory, disk in the working folder, a cache folder that can be written."""
    total, free = (size / 2**30 for size in machine.memory_bytes())
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return [
        _row("memory", f"{free:.1f} of {total:.1f} GiB free", "ok" if free >= MIN_MEMORY_GIB else "note",
             f"close programs; the demo needs {MIN_MEMORY_GIB} GiB"),
        _row("disk", f"{disk:.1f} GiB free in {Path.cwd()}", "ok" if disk >= MIN_DISK_GIB else "note",
             f"free space; the demo needs {MIN_DISK_GIB} GiB"),
        _row("cache", str(cache), "ok" if _writable(cache) else "note", "set XDG_CACHE_HOME to a folder you can write"),
    ]


def check_plugins() -> list[dict[str, str]]:
    """What the registry finds, by group; a group with nothing in it is left out."""
    found = {group: registry.names(group) for group in PLUGIN_GROUPS if _group_exists(group)}
    return [_row(group, ", ".join(names), "ok") for group, names in found.items() if names]


def _group_exists(group: str) -> bool:
    parent = group.rpartition(".")[0]
    return importlib.util.find_spec(parent) is not None


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _row(check: str, found: Any, status: Status, fix: str = "") -> dict[str, str]:
    return {"check": check, "found": str(found), "status": status, "fix": "" if status == "ok" else fix}


PLUGIN = doctor
