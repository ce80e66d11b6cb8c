"""The command `ticket`: one file per command, over the functions of `ticket_search`. Starts without torch."""

from __future__ import annotations

import errno
import sys
import warnings
from functools import cache
from importlib import metadata
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from supermask.plugins.entry_points import DeclarationError

from ..contract.errors import RequestError, RunError, unknown
from ..contract.stops import STOPPED
from ..runs.progress import warn_in_a_line
from ..runs.ranks import TOLD, launched
from . import (
    bench,
    card,
    catalog,
    compare,
    connect,
    controls,
    diagnose,
    doctor,
    evaluate,
    export,
    inspect,
    push,
    resume,
    runs,
    search,
    signs,
    study,
    sweep,
    train,
)
from .terminal import complain, say_stopped

# What several processes can do together that torchrun has started.
_TOGETHER = ("search", "train", "resume")


class _Commands(typer.core.TyperGroup):
    """The commands. A word that is none of them is told as any other unknown word is, and help cuts no sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands with the first sentence about each, whole."""
        sentences = {name: " ".join((command.help or "").split()) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, f"{text.partition('. ')[0].rstrip('.')}.") for name, text in sentences.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word.

        Raises:
            RequestError: there is none, with the nearest or what the word means here.
        """
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise RequestError(unknown("command", args[0], self.commands))
        if launched().several and args[0] not in _TOGETHER:
            *others, last = _TOGETHER
            raise RequestError(
                f"ticket {args[0]} is for one process: expected it without torchrun, which {', '.join(others)} and "
                f"{last} are for"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Carry out the command; one that a signal ends says so, where it does not say more itself."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            say_stopped("stopped", getattr(stop, "status", STOPPED))


app = typer.Typer(
    name="ticket",
    cls=_Commands,
    help="Find subnetworks inside neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"supermask {metadata.version('supermask')}")
        raise typer.Exit


@app.callback()
def _ticket(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


search.add_to(app)
sweep.add_to(app)
train.add_to(app)
resume.add_to(app)
runs.add_to(app)
evaluate.add_to(app)
inspect.add_to(app)
export.add_to(app)
bench.add_to(app)
card.add_to(app)
push.add_to(app)
controls.add_to(app)
connect.add_to(app)
signs.add_to(app)
diagnose.add_to(app)
compare.add_to(app)
study.add_to(app)
catalog.add_to(app)
doctor.add_to(app)


@cache
def _command() -> Any:
    """The commands as what reads words, made once: that takes longer than most commands do."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line: exit 0 done, 1 the run failed, 2 the request was wrong, 130 or 75 stopped by a signal."""
    try:
        with warnings.catch_warnings():
            warn_in_a_line()
            _command()()
    except RequestError as error:
        for problem in [] if _is_told(error) else error.problems:
            complain(problem)
        sys.exit(2)
    except RunError as error:
        _complain(error, 1)
    except OSError as error:
        _complain(_describe(error), 1)
    except DeclarationError as error:
        _complain(error, 2)
    except ValueError as error:
        if type(error).__name__ != "TicketError":
            raise
        _complain(error, 2)


def _describe(error: OSError) -> str:
    """What a disk or a network has refused, with what to do where its disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = error.filename or "an output or a temporary file"
        return f"the disk is full, so that {what} cannot be written: make room, and the same command goes on"
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _complain(error: Exception | str, code: int) -> None:
    if isinstance(error, str) or not _is_told(error):
        complain(error)
    sys.exit(code)


def _is_told(error: Exception) -> bool:
    """Whether the first of several ranks tells of the same error."""
    return TOLD in getattr(error, "__notes__", ())
