"""Compiled steps on disk: built once per machine, found again by a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
import json
import os
import platform
import shutil
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciml.assets import cache_folder
from sciml.errors import InputError
from sciml.export.step import FieldsStep, StepForm, check_lattice, inputs_of
from sciml.mixers.contract import Mixer
from sciml.rollout import fingerprint
from sciml.tokens import TokenBatch

VERSION = 1
MOST_SAMPLES = 4096
PACKAGE, DESCRIPTION = "step.pt2", "step.json"
CONFIGS = {"cpp.dynamic_threads": True}
"""The kernels take as many threads as torch is set to when they run, not as it was when they were compiled."""


@dataclass(frozen=True)
class ExportedStep:
    """A compiled step: ``run(*inputs)`` gives the next normalised state. path: the package, inside the cache."""

    form: StepForm
    path: Path
    description: Mapping[str, Any]
    call: Callable[..., Any]

    def run(self, *inputs: Tensor) -> Tensor:
        """``(B, *lattice, C)`` from the inputs that `StepForm.inputs` names. Raises `InputError` if they don't fit."""
        names = self.form.inputs()
        if len(inputs) != len(names):
            raise InputError("exported step", key="inputs", found=len(inputs), expected=f"{len(names)}: {names}",
                             fix="see sciml.export.inputs_of")
        values = inputs[0]
        if values.ndim != len(self.form.axes) + 2 or values.shape[-1] != len(self.form.channels):
            raise InputError("exported step", key="values", found=f"shape {tuple(values.shape)}",
                             expected=f"(batch, {', '.join(axis.name for axis in self.form.axes)}, "
                             f"{len(self.form.channels)})", fix="see sciml.export.inputs_of")
        if not 1 <= values.shape[0] <= MOST_SAMPLES:
            raise InputError("exported step", key="values", found=f"{values.shape[0]} samples",
                             expected=f"1 to {MOST_SAMPLES}", fix="run it in parts")
        check_lattice(self.form, values.shape[1:-1], "exported step")
        for name, tensor, shape in zip(names, inputs, shapes(self.form, values.shape)):
            dtype = torch.bool if name == "observed" else getattr(torch, self.form.dtype)
            if tensor.shape != shape or tensor.dtype != dtype:
                raise InputError("exported step", key=name, found=f"{tensor.dtype} {tuple(tensor.shape)}",
                                 expected=f"{dtype} {tuple(shape)}", fix="see sciml.export.inputs_of")
        result: Tensor = self.call(*(tensor.contiguous() for tensor in inputs))
        return result


def shapes(form: StepForm, values: torch.Size) -> list[torch.Size]:
    """The shape of every input, for values of that shape."""
    sizes = {axis.name: size for axis, size in zip(form.axes, values[1:-1])}
    found = []
    for name in form.inputs():
        kind, _, of = name.partition(":")
        shape = {"values": [*values], "observed": [*values], "vector": [values[0]], "lattice": [*values[:-1]],
                 "period": [1]}.get(kind)
        found.append(torch.Size([sizes[of]] if shape is None else shape))
    return found


def build(module: FieldsStep, batch: TokenBatch, *, where: object = "export") -> ExportedStep:
    """The compiled step from the cache; made first, in one to three minutes, where it isn't there.

    Nothing outside the cache of this user is ever loaded: a package is machine code, so it doesn't travel with
    checkpoints. Raises `InputError` for a mixer that torch.export can't trace, and if there is no C++ compiler.
    """
    folder = cache_folder() / "export" / key(module)
    if not (folder / PACKAGE).is_file():
        _check_compiler(where)
        _write(module, batch, folder, where)
    return _load(module.form, folder)


def is_cached(module: FieldsStep) -> bool:
    return (cache_folder() / "export" / key(module) / PACKAGE).is_file()


def key(module: FieldsStep) -> str:
    """A hash of the weights and tables, of the form, and of whatever the machine code depends on."""
    operator = module.operator.config.model_dump(mode="json")
    parts = {"version": VERSION, "form": module.form.json(), "operator": operator, "weights": fingerprint(module),
             "code": code(module), "torch": torch.__version__, "machine": machine(), "configs": CONFIGS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def code(module: nn.Module) -> str:
    """A hash of the sources that a step is made of, those of plugged-in mixers included."""
    package = Path(__file__).resolve().parents[1]
    files = {package / "tokens.py", *(file for name in ("operator", "mixers", "kernels", "export")
                                      for file in (package / name).rglob("*.py"))}
    files |= {Path(inspect.getfile(type(part))).resolve() for part in module.modules()}
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in sorted(files))).hexdigest()


def machine() -> str:
    """The processor and what it can do: machine code for one may crash on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    told = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    return " | ".join([platform.system(), platform.machine(), torch.backends.cpu.get_cpu_capability(),
                       told.get("model name", platform.processor()), told.get("flags", told.get("Features", ""))])


def trace(module: FieldsStep, batch: TokenBatch, *, where: object = "export") -> torch.export.ExportedProgram:
    """The step as a graph with free batch and lattice sizes. Raises `InputError` that names the mixer in the way."""
    form, samples = module.form, torch.export.Dim("batch", min=1, max=MOST_SAMPLES)
    free: dict[int, Any] = {0: samples}
    units: dict[str, Any] = {}
    for i, axis in enumerate(form.axes):
        unit = torch.export.Dim(f"n{i}", min=axis.fewest // axis.multiple, max=axis.most // axis.multiple)
        free[1 + i] = units[axis.name] = axis.multiple * unit
    dims = []
    for name in form.inputs():
        kind, _, of = name.partition(":")
        dims.append({"vector": {0: samples}, "period": {}}.get(kind, {0: units[of]} if of in units else free))
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # torch prints partial graphs
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from inside of torch.export
            program = torch.export.export(module, _example(form, batch), dynamic_shapes={"inputs": tuple(dims)})
            _check_guards(program, form, len(form.channels))
    except (torch._dynamo.exc.UserError, RuntimeError, NotImplementedError, TypeError, ValueError,
            AssertionError) as error:
        raise InputError(where, key="mixers", found=f"{_culprit(module, error)}: {' '.join(str(error).split())[:400]}",
                         expected="mixers whose work depends on shapes alone, and on no single size (radial, axial, "
                         "local, full, linear)", fix="run this checkpoint with `sciml rollout`") from error
    return program


def _check_guards(program: torch.export.ExportedProgram, form: StepForm, channels: int) -> None:
    """What torch took for granted of the sizes must hold for all that the form admits; raises AssertionError if not.

    A compiled package doesn't check it any more. Tried: batches and sizes at both ends and in between, without memory.
    """
    guards: Any = program.module()._guards_fn
    units = [(low := axis.fewest // axis.multiple, low + 1, low + 3, (low + (high := axis.most // axis.multiple)) // 2,
              high) for axis in form.axes]
    for samples in (1, 2, 5, MOST_SAMPLES):
        for chosen in itertools.product(*units):
            sizes = [unit * axis.multiple for unit, axis in zip(chosen, form.axes)]
            guards(*(torch.empty(1).expand(own) for own in shapes(form, torch.Size([samples, *sizes, channels]))))


def _culprit(module: FieldsStep, error: BaseException) -> str:
    """The mixer that the error came from, or all there are where it arose from the graph as a whole."""
    chain, inner = [error], ""
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(cause)
    for one in chain:
        for frame, _ in traceback.walk_tb(one.__traceback__):
            own = frame.f_locals.get("self")
            inner = type(own).__name__.lower() if isinstance(own, Mixer) else inner
    return inner or " or ".join(sorted({type(m).__name__.lower() for m in module.modules() if isinstance(m, Mixer)}))


def _example(form: StepForm, batch: TokenBatch) -> tuple[Tensor, ...]:
    """Inputs of sizes that no two axes share and none of which is 1, so that nothing is taken for a constant."""
    values = batch.values
    sizes = [axis.fewest + (i + 1) * axis.multiple for i, axis in enumerate(form.axes)]
    shape = torch.Size([2 * max(len(form.axes), 2) + 3, *sizes, values.shape[-1]])
    given = dict(zip(form.inputs(), inputs_of(form, batch)))
    return tuple(torch.ones(own, dtype=given[name].dtype) for name, own in zip(given, shapes(form, shape)))


def _write(module: FieldsStep, batch: TokenBatch, folder: Path, where: object) -> None:
    """Trace, compile and put into the cache, whole or not at all."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    program = trace(module, batch, where=where)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    temporary.mkdir(mode=0o700)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own use of what it deprecates
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary / PACKAGE),
                                                     inductor_configs=dict(CONFIGS))
        text = json.dumps(describe(module, temporary / PACKAGE), indent=1, ensure_ascii=False)
        (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
        for name in (PACKAGE, DESCRIPTION):
            (temporary / name).chmod(0o600)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe(module: FieldsStep, package: Path) -> dict[str, Any]:
    """What a program needs to know that runs the package without sciml. JSON."""
    axes = [{"name": axis.name, "multiple": axis.multiple, "fewest": axis.fewest, "most": axis.most}
            for axis in module.form.axes]
    return {"inputs": list(module.form.inputs()), "layout": "contiguous", "channels": list(module.form.channels),
            "batch": {"fewest": 1, "most": MOST_SAMPLES}, "axes": axes, "form": module.form.json(),
            "normalisation": module.normalisation, "torch": torch.__version__, "machine": machine(),
            "threads": "as many as torch uses when it is called", "sha256": _sha256(package)}


def _load(form: StepForm, folder: Path) -> ExportedStep:
    for path in (folder.parent, folder, folder / PACKAGE, folder / DESCRIPTION):
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise InputError(path, key="owner", found=f"user {status.st_uid}, mode {status.st_mode & 0o777:o}",
                             expected="a file that this user alone can write: a package is machine code",
                             fix="delete it, or set SCIML_CACHE to a folder of your own")
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if description["sha256"] != _sha256(folder / PACKAGE):
        raise InputError(folder / PACKAGE, key="sha256", found="another file", expected="the one that was compiled",
                         fix="delete the folder; it will be made anew")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        call = torch._inductor.aoti_load_package(str(folder / PACKAGE))
    return ExportedStep(form, folder / PACKAGE, description, call)


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_compiler(where: object) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise InputError(where, key="compiler", found="no C++ compiler (g++, clang++ or $CXX)", expected="one",
                         fix="install g++; exporting compiles the step for this machine")
