"""The table of measured figures in README.md, made from benchmarks/results/*.json.

    python benchmarks/tables.py            rewrite the block between the two markers
    python benchmarks/tables.py --check    exit with 1 if the block is not what the results say
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from sciml.cli.console import number
from sciml.report.bench import Results, Row, load

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PER_SEED = re.compile(r"_seed\d+$")
NOTHING = "Nothing yet: `sciml bench NAME` measures, `python benchmarks/tables.py` writes this table."


def block(results: list[Results]) -> str:
    """Markdown of all results, one table each; rows of single seeds are left to the JSON file.

    >>> print(block([]))
    Nothing yet: `sciml bench NAME` measures, `python benchmarks/tables.py` writes this table.
    """
    return "\n\n".join(_table(each) for each in results) if results else NOTHING


def _table(results: Results) -> str:
    rows = [row for row in results.rows if not PER_SEED.search(row.metric)]
    versions = ", ".join(f"{name} {results.versions[name]}" for name in ("torch", "neuraloperator")
                         if name in results.versions)
    seeds = f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else "1 seed"
    machine = f"{results.machine.get('processor', 'unknown')}, {results.machine.get('cores', '?')} logical cores"
    head = f"`sciml bench {results.name}`, {results.date[:10]}, {machine}, {versions}, {seeds}:"
    lines = ["| metric | unit | sciml | peer | of | sciml / peer |", "|---|---|---|---|---|---|"]
    return "\n".join([head, "", *lines, *map(_line, rows)])


def _line(row: Row) -> str:
    figures = number(row.ours), number(row.peer), row.peer_name or "–", number(row.ratio, 3)
    cells = [f"`{row.metric}`", row.unit, *figures]
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
