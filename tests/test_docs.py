"""The documentation: its Python runs, its commands exist with their options, its links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sciml import cli
from sciml.report.bench import Results, Row

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
WALKS = ("guide.md", "extending.md")
FENCE = re.compile(r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
REFERENCE = re.compile(r"`((?:sciml|pretrain|finetune|benchmarks|tests|docs)/[\w./-]+\.py)(?::([\w.]+))?`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is the content of, its text, the line it begins at."""

    page: Path
    language: str
    file: str | None
    text: str
    line: int

    def run(self, names: dict[str, Any]) -> None:
        code = compile("\n" * (self.line - 1) + self.text, str(self.page), "exec")
        exec(code, names)  # noqa: S102 (our own page)

    def commands(self) -> list[list[str]]:
        """The lines of a shell block that call sciml, as words."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["sciml"]]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, m["language"], m["file"], m["text"], text.count("\n", 0, m.start("text")) + 1)
            for m in FENCE.finditer(text)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``stores/demo`` and ``runs/demo`` as `sciml demo` leaves them, but small and hardly trained."""
    from pretrain.workflow import new_predictor
    from sciml import checkpoint
    from sciml.data.build import build
    from sciml.data.source import SourceSpec, read_source
    from sciml.recipe import Recipe, read_yaml

    folder = tmp_path_factory.mktemp("docs")
    waves = SourceSpec.model_validate({
        "name": "navier_stokes", "domain": "fields", "builder": "navier_stokes",
        "options": {"trajectories": 5, "frames": 6, "resolution": 16, "spin_up": 0.0, "viscosity": 1e-3},
        "split": {"by": "group", "counts": {"train": 3, "validation": 1, "test": 1}}})
    stores = [build(waves, folder / "stores/demo/navier_stokes.zarr"),
              build(read_source(ROOT / "datasets/ili/source.yaml"), folder / "stores/demo/ili.zarr")]
    raw = read_yaml(ROOT / "configs/demo.yaml")
    raw["operator"] = {"levels": [{"width": 16, "depth": 1, "head_width": 8}], "stem_width": 8, "condition_width": 16}
    predictor = new_predictor(Recipe.model_validate(raw), stores)
    checkpoint.save(folder / "runs/demo/checkpoints/best", predictor)
    return folder


def with_python() -> list[Path]:
    return [page for page in PAGES if page.name not in WALKS and any(b.language == "python" for b in blocks(page))]


@pytest.mark.parametrize("page", with_python(), ids=name)
def test_python_of_a_page_runs(page: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if block.language == "python":
            block.run(names)


@pytest.mark.parametrize("page", [ROOT / "docs" / walk for walk in WALKS], ids=name)
def test_a_walk_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loaded = set(sys.modules)
    names: dict[str, Any] = {"__name__": page.stem}
    done = 0
    for block in blocks(page):
        if block.file is not None:
            write(block, tmp_path)
        elif block.language == "python":
            block.run(names)
        elif block.language == "sh":
            for words in block.commands():
                assert cli.run([*words, *quicker(words)]) == 0, f"{page}: sciml {shlex.join(words)}"
                done += 1
    assert done
    for module in set(sys.modules) - loaded:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


def write(block: Block, folder: Path) -> None:
    """A file of the page; a pyproject.toml is installed at once."""
    assert block.file is not None
    path = folder / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if path.name == "pyproject.toml":
        project = tomllib.loads(block.text)["project"]
        info = folder / f"{project['name']}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".format(**project))
        (info / "entry_points.txt").write_text("\n".join(
            f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items())
            for group, points in project["entry-points"].items()))


def quicker(words: list[str]) -> list[str]:
    return ["train.steps=4", "train.validation_windows=4"] if words[0] in ("pretrain", "finetune") else []


def shown() -> Iterator[tuple[str, list[str], bool]]:
    """(where, words after `sciml`, whole) of every command in the pages; in a line of text it may be abridged."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                yield from ((name(page), words, True) for words in block.commands())
        for span in re.findall(r"`sciml ([^`]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
            yield name(page), shlex.split(span), False


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = cli.cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, "no such command"
        command = found
    return command, rest


@pytest.mark.parametrize(("where", "words", "whole"), list(shown()),
                         ids=lambda value: " ".join(value) if isinstance(value, list) else str(value))
def test_every_command_shown_exists(where: str, words: list[str], whole: bool) -> None:
    command, rest = resolve(words)
    if whole and "…" not in rest:
        # parses; raises on an unknown option or a missing argument
        command.make_context("sciml", rest, help_option_names=["-h", "--help"])
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
    assert {word for word in rest if word.startswith("-")} <= known


def test_help_texts_are_those_of_today() -> None:
    generate = load(ROOT / "docs/generate.py")
    page = generate.PAGE.read_text(encoding="utf-8")
    assert generate.filled(page) == page, "python docs/generate.py"
    missing = [words for words in generate.commands(cli.cli) if f"$ sciml {' '.join(words)} --help" not in page]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_references_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, attribute in REFERENCE.findall(text):
        assert (ROOT / file).is_file(), file
        if attribute:
            assert defines(ROOT / file, attribute.split(".")), f"{file}:{attribute}"
    for target, anchor in LINK.findall(text):
        other = (page.parent / target) if target else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings], anchor


def defines(path: Path, parts: list[str]) -> bool:
    """Whether a module defines that name, or that member of a class."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in parts:
        found = next((node for node in body if part in bound(node)), None)
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


def bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_show_the_figures_of_the_results() -> None:
    result = CliRunner().invoke(load(ROOT / "docs/tables.py").main, ["--check"])
    assert result.exit_code == 0, result.output


def test_measured_figures_are_written_and_checked(tmp_path: Path) -> None:
    tables = load(ROOT / "docs/tables.py")
    rows = (Row(metric="a/b/c", unit="1", ours=0.5, peer=2.0, peer_name="other"), Row(metric="a/b/d", unit="1", ours=7),
            Row(metric="a/b/c_seed0", unit="1", ours=0.4), Row(metric="a/b/c_std", unit="1", ours=0.01))
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks/results/some.json").write_text(Results(
        name="some", date="2026-01-02T03:04:05+00:00", machine={"processor": "P", "cores": 4}, versions={"torch": "2"},
        seeds=(0, 1), rows=rows).model_dump_json())
    readme, page = tmp_path / "README.md", tmp_path / "docs/page.md"
    readme.write_text("before\n<!-- measured: some/c -->\nstale\n<!-- measured: end -->\nafter\n")
    page.write_text("<!-- measured: some -->\n<!-- measured: end -->\n")
    call = ["--root", str(tmp_path)]
    assert CliRunner().invoke(tables.main, [*call, "--check"]).exit_code == 1
    assert "stale" in readme.read_text()
    assert CliRunner().invoke(tables.main, call).exit_code == 0
    assert CliRunner().invoke(tables.main, [*call, "--check"]).exit_code == 0
    text = readme.read_text()
    assert "| `a/b/c` | 1 | 0.5 ± 0.01 | 2 | other | 0.25 |" in text
    assert "a/b/d" not in text
    assert "seed0" not in text
    assert text.startswith("before\n<!-- measured: some/c -->\n")
    assert text.endswith("<!-- measured: end -->\nafter\n")
    assert "2 seeds" in text
    assert "a/b/d" in page.read_text()
    with pytest.raises(ValueError, match=r"no benchmarks/nobody\.py"):
        tables.filled("<!-- measured: nobody -->\n<!-- measured: end -->", [])
