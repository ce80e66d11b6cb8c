"""`ticket push`: a ticket and its model card to the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import supermask
from supermask import tickets

from ..contract.errors import RequestError, command_line
from .card import Companions, License, write_card
from .terminal import errors, output, print_json, print_table
from .tickets import TicketName, ticket_path


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("push")(push)


def push(
    ticket: TicketName,
    place: Annotated[str, typer.Argument(help="Where to: hf:USER/NAME, or hf:USER/NAME:FILE.safetensors.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only its owner sees.")] = False,
    message: Annotated[str, typer.Option("--message", help="The message of the commit.", show_default=False)] = "",
    license: License = "",
    card: Annotated[
        str, typer.Option("--card", help="A card of your own to send in place of the one that is made, or none.")
    ] = "",
    companions: Companions = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the ticket and the card that are there, without asking.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Send a ticket with its model card to the hub, where `supermask.load("hf:USER/NAME")` finds it."""
    hub, where = tickets.hub, tickets.hub.read_place(place)
    if where.revision:
        raise RequestError(
            f"{place}: a ticket is sent to the main branch, and its commit is told: leave out @{where.revision}"
        )
    path = ticket_path(ticket, runs)
    supermask.load(path)
    files = {where.file: path.read_bytes()}
    if card != "none":
        files[hub.CARD] = (_read_card(card) if card else write_card(path, where, license, companions, runs)).encode()
    if dry_run:
        _show(where, files, private, as_json)
        return
    there = hub.look(where)
    if there is not None:
        _check_there(where, there, list(files), private, overwrite)
    done = hub.send(where, files, message or f"Upload {where.file} with supermask", there, private)
    if as_json:
        print_json({"place": str(where), "commit": done.revision, "files": {name: len(files[name]) for name in files}})
        return
    output().print(
        f"sent {', '.join(files)} to {where}\nload it with\n  {command_line('evaluate', where)}\n"
        f'  python -c "import supermask; print(supermask.load(\'{where}\'))"\nand just this commit as\n  {done}',
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _read_card(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--card {path} cannot be read: {error}") from None


def _show(place: tickets.hub.Place, files: dict[str, bytes], private: bool, as_json: bool) -> None:
    if as_json:
        print_json({"place": str(place), "private": private, "files": {name: len(files[name]) for name in files}})
        return
    print_table(("file", "bytes"), [(name, len(content)) for name, content in files.items()])
    how = "a private repository if it is a new one" if private else "a public repository if it is a new one"
    text = f"would go to {place}, {how}. Nothing was sent, and the hub was not asked."
    output().print(text, markup=False, highlight=False, soft_wrap=True)


def _check_there(
    place: tickets.hub.Place, there: tickets.hub.Repository, names: list[str], private: bool, overwrite: bool
) -> None:
    """Ask before files that are there are replaced.

    Raises:
        RequestError: nobody can be asked, or a private repository was asked for where there is one that all can see.
        typer.Exit: the answer was no.
    """
    if private and not there.private:
        raise RequestError(
            f"--private: the repository {place.repository} is there already, and everybody can see it: choose another "
            "name, or make it private on its page"
        )
    replaced = [name for name in names if name in there.files]
    if not replaced or overwrite:
        return
    told = f"{place.repository} has {' and '.join(replaced)} already"
    if not sys.stdin.isatty():
        raise RequestError(
            f"{told}: --overwrite replaces {'them' if len(replaced) > 1 else 'it'}, "
            f"hf:{place.repository}:FILE.safetensors puts the ticket beside, and --card none leaves the card as it is"
        )
    if not typer.confirm(f"{told}; replace?", err=True):
        errors().print("nothing was sent", markup=False, highlight=False)
        raise typer.Exit(1)
