"""The table of measured figures in README.md, made from benchmarks/results/*.json.

    python benchmarks/tables.py            rewrite the block between the two markers
    python benchmarks/tables.py --check    exit with 1 if the block is not what the results say
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from sciml.cli.console import number
from sciml.report.bench import Results, Row, load

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ASIDE = re.compile(r"_(seed\d+|std|low|high|blocks)$")
"""Rows about another row: of single seeds, spread over seeds, interval of the paired difference."""
NOTHING = "Nothing yet: `sciml bench NAME` measures, `python benchmarks/tables.py` writes this table."


def block(results: list[Results]) -> str:
    """Markdown of all results, one table each; single seeds are left to the JSON file.

    >>> print(block([]))
    Nothing yet: `sciml bench NAME` measures, `python benchmarks/tables.py` writes this table.
    """
    return "\n\n".join(_table(each) for each in results) if results else NOTHING


def _table(results: Results) -> str:
    figures = {row.metric: row.ours for row in results.rows if ASIDE.search(row.metric)}
    rows = [_cells(row, figures) for row in results.rows if not ASIDE.search(row.metric)]
    names = ["metric", "unit", "sciml", "peer", "of", "sciml / peer", "95 % of sciml − peer (blocks)"]
    shown = [i for i, _ in enumerate(names) if any(row[i] for row in rows)]
    lines = [_line([cells[i] for i in shown]) for cells in (names, ["---"] * len(names), *rows)]
    return "\n".join([_head(results), "", *lines])


def _head(results: Results) -> str:
    machine = f"{results.machine.get('processor', 'unknown')}, {results.machine.get('cores', '?')} logical cores"
    versions = [f"{name} {results.versions[name]}" for name in ("torch", "neuraloperator") if name in results.versions]
    seeds = f"mean of {len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"
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


def filled(text: str, inside: str) -> str:
    """`text` with `inside` between the markers. Raises `ValueError` unless it has each marker once, in order.

    >>> filled(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\\nnew\\n{END} b"
    True
    """
    if (text.count(BEGIN), text.count(END)) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md must hold {BEGIN} and {END} once each, in this order")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if README.md would change.")
@click.option("--readme", type=click.Path(path_type=Path, exists=True), default=HERE.parent / "README.md")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=HERE / "results")
def main(check: bool, readme: Path, results: Path) -> None:
    """Put the measured figures into README.md."""
    old = readme.read_text(encoding="utf-8")
    new = filled(old, block(read(results)))
    if new == old:
        return
    if check:
        click.echo(f"{readme}: the measured figures are not those of {results}. Fix: python benchmarks/tables.py",
                   err=True)
        sys.exit(1)
    readme.write_text(new, encoding="utf-8")
    click.echo(readme)


if __name__ == "__main__":
    main()
