"""The command line: one group whose commands are modules of this package or entry points of ``sciml.commands``.

A command is imported when it is called; ``sciml --help`` reads the first line of its module's docstring instead.
"""

from __future__ import annotations

import ast
import errno
import os
import sys
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import click

from sciml import __version__, registry
from sciml.errors import InputError

GROUPS = ("sciml.cli", "sciml.commands")
ORDER = ("doctor", "demo", "data", "pretrain", "finetune", "rollout", "forecast", "evaluate", "backtest", "segment",
         "report", "checkpoint", "export", "kernels", "bench")
_QUIET_ERRNO = {errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = {name for group in GROUPS for name in registry.names(group)}
        return [name for name in ORDER if name in found] + sorted(found.difference(ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        group = next((group for group in GROUPS if cmd_name in registry.names(group)), None)
        if group is None:
            return None
        try:
            command = registry.find(group, cmd_name)
        except ImportError as error:
            raise click.ClickException(f"the command {cmd_name!r} can't be imported: {error}. "
                                       "Fix: install what it needs; `sciml doctor` lists what is missing") from error
        if not isinstance(command, click.Command):
            raise click.ClickException(f"the plug-in {cmd_name!r} is a {type(command).__name__}, not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help(name)) for name in self.list_commands(ctx)])


def short_help(name: str) -> str:
    """The first line of the docstring of the module that defines a command, read without importing it."""
    ours = Path(__file__).parent / f"{name}.py"
    points = {point.name: point for point in entry_points(group=GROUPS[1])}
    source = ours if ours.is_file() else _source(points[name].module) if name in points else None
    if source is None:
        return ""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _source(module: str) -> Path | None:
    """The file of a module, found along ``sys.path`` without importing its parent packages."""
    path: Any = None
    spec = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sciml")
def cli() -> None:
    """Pretrain one operator on scientific data, fine-tune it on a lab's files, run it forward as a simulator."""


def main(args: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 called wrongly, 130 interrupted; mistakes print no traceback."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """As `main`, but return the exit code."""
    # OpenMP threads that spin while they wait make a step 20 times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = cli.main(args=args, prog_name="sciml", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        return 2 if error.where == "command line" else 1
    except OSError as error:
        if error.errno not in _QUIET_ERRNO:
            raise
        click.echo(f"error: {error.filename or 'file'}: {error.strerror}. Fix: free space or choose another folder; "
                   "nothing that existed was overwritten", err=True)
        return 1
    return code if isinstance(code, int) else 0
