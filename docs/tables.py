"""The tables of measured figures in README.md and docs/*.md, made from benchmarks/results/*.json.

    python docs/tables.py            rewrite what stands between the markers
    python docs/tables.py --check    exit with 1 if that is not what the results say

``<!-- measured: fields long_range/accuracy -->`` begins the tables of these benchmarks, of the second only the rows
whose metric ends so (or, of several such entries, so or so); ``<!-- measured: end -->`` ends them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from sciml.cli.console import number
from sciml.report.bench import Results, Row, load

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- measured: (?!end)([a-z0-9_/ ]+) -->\n).*?(<!-- measured: end -->)", re.DOTALL)
ASIDE = re.compile(r"_(seed\d+|std|low|high|blocks|gemms)$")
"""Rows about another row: single seeds, spread over seeds, interval of the paired difference, in units of a product."""
NOTHING = "Nothing yet: `sciml bench NAME` measures, `python docs/tables.py` writes this table."


def block(results: list[Results]) -> str:
    """Markdown of all results, one table each; single seeds are left to the JSON file.

    >>> print(block([]))
    Nothing yet: `sciml bench NAME` measures, `python docs/tables.py` writes this table.
    """
    return "\n\n".join(_table(each) for each in results) if results else NOTHING


def _table(results: Results) -> str:
    figures = {row.metric: row.ours for row in results.rows if ASIDE.search(row.metric)}
    rows = [_cells(row, figures) for row in results.rows if not ASIDE.search(row.metric)]
    names = ["metric", "unit", "sciml", "peer", "of", "sciml / peer", "95 % of sciml − peer (blocks)"]
    shown = [i for i, _ in enumerate(names) if any(row[i] for row in rows)]
    lines = [_line([cells[i] for i in shown]) for cells in (names, ["---"] * len(names), *rows)]
    return "\n".join([_head(results, any(f"{row.metric}_std" in figures for row in results.rows)), "", *lines])


def _head(results: Results, spread: bool) -> str:
    machine = f"{results.machine.get('processor', 'unknown')}, {results.machine.get('cores', '?')} logical cores"
    versions = [f"{name} {results.versions[name]}" for name in ("torch", "neuraloperator") if name in results.versions]
    seeds = f"mean of {len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"
    seeds += ", several where ± is given" * (spread and len(results.seeds) == 1)
    return f"`sciml bench {results.name}`, {results.date[:10]}, {', '.join([machine, *versions, seeds])}:"


def _cells(row: Row, aside: Mapping[str, float]) -> list[str]:
    spread = f" ± {number(aside[f'{row.metric}_std'], 2)}" if f"{row.metric}_std" in aside else ""
    low, high, blocks = (aside.get(f"{row.metric}_{name}") for name in ("low", "high", "blocks"))
    interval = "" if low is None else f"{number(low, 3)} … {number(high, 3)} ({number(blocks, 3)})"
    peer = ["", "", ""] if row.peer is None else [number(row.peer), row.peer_name or "", number(row.ratio, 3)]
    return [f"`{row.metric}`", row.unit, number(row.ours) + spread, *peer, interval]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read(folder: Path) -> list[Results]:
    """Finished results by name; partial ones are left out."""
    return [load(path) for path in sorted(folder.glob("*.json")) if not path.name.endswith(".partial.json")]


def chosen(results: Sequence[Results], names: str) -> list[Results]:
    """The results that a marker names, in its order, cut down to the rows it wants; those without figures are left out.

    Raises `ValueError` for a name of which neither a result nor a script exists.
    """
    by_name, endings = {each.name: each for each in results}, dict[str, list[str]]()
    for entry in names.split():
        name, _, ending = entry.partition("/")
        if name not in by_name and not (ROOT / "benchmarks" / f"{name}.py").is_file():
            raise ValueError(f"a marker asks for the figures of {name}: there is no benchmarks/{name}.py")
        endings.setdefault(name, []).append(ending)
    return [by_name[name].model_copy(update={"rows": tuple(
        row for row in by_name[name].rows if ASIDE.sub("", row.metric).endswith(tuple(wanted)))})
        for name, wanted in endings.items() if name in by_name]


def filled(text: str, results: Sequence[Results]) -> str:
    """`text` with the tables that its markers ask for.

    >>> filled("<!-- measured: store -->\\nold\\n<!-- measured: end -->", []).splitlines()[1][:12]
    'Nothing yet:'
    """
    return BLOCK.sub(lambda match: f"{match[1]}{block(chosen(results, match[2]))}\n{match[3]}", text)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a page would change.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False, exists=True), default=ROOT,
              help="Folder with README.md, docs and benchmarks/results.")
def main(check: bool, root: Path) -> None:
    """Put the measured figures into the pages."""
    results, stale = read(root / "benchmarks" / "results"), []
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        old = page.read_text(encoding="utf-8")
        new = filled(old, results)
        if new != old and not check:
            page.write_text(new, encoding="utf-8")
        if new != old:
            stale.append(page)
            click.echo(page)
    if stale and check:
        click.echo("these pages don't show what benchmarks/results says. Fix: python docs/tables.py", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
