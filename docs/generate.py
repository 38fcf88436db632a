"""Rewrite the help texts in docs/commands.md from the commands themselves: `python docs/generate.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from sciml.cli import cli

PAGE = Path(__file__).resolve().parent / "commands.md"
BLOCK = re.compile(r"```text\n\$ sciml ?(?P<words>[a-z ]*) --help\n.*?```", re.DOTALL)


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that is not a group itself."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        elif command is not None:
            yield (*before, name)


def help_text(words: tuple[str, ...]) -> str:
    """What ``sciml WORDS --help`` prints on 80 columns."""
    result = CliRunner().invoke(cli, [*words, "--help"], prog_name="sciml", terminal_width=80)
    if result.exit_code != 0:
        raise RuntimeError(f"sciml {' '.join(words)} --help exits with {result.exit_code}: {result.output}")
    return result.output.rstrip() + "\n"


def filled(page: str) -> str:
    """The page with every block ``$ sciml … --help`` as it is printed today."""
    def block(match: re.Match[str]) -> str:
        words = tuple(match["words"].split())
        shown = " ".join(("sciml", *words, "--help"))
        return f"```text\n$ {shown}\n{help_text(words)}```"
    return BLOCK.sub(block, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
