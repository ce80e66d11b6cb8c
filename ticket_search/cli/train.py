"""`ticket train`: train a ticket."""

from __future__ import annotations

import typer

from supermask import tickets

from .. import running
from ..contract.errors import Problems, RequestError
from ..contract.flags import public_fields
from ..running.read_config import find_kind
from ..running.request import LAUNCH_FLAGS, minutes_of, read_flags
from ..running.train import FIXED
from .search import carry_out, print_flags, stop_in_time
from .terminal import errors, harmless, output, print_definitions
from .tickets import ticket_path

_LAUNCH = ("--runs", "--name", "--max-minutes", "--again", "--dry-run", "--json", "--help")


def add_to(app: typer.Typer) -> None:
    """Add the command. Its words are parsed in the same way as those of `ticket search`."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("train", context_settings=settings, add_help_option=False)(train)


def train(context: typer.Context) -> None:
    """Train a ticket from its start or its final weights, on its own data or on other data."""
    words = list(context.args)
    if "--help" in words or not words:
        _print_help()
        return
    if words[0].startswith("--"):
        raise RequestError(f"expected the ticket first, as in ticket train TICKET {' '.join(words[:2])}")
    problems = Problems()
    given = read_flags(words[1:], problems, "train")
    launch = {key: given.pop(key) for key in _LAUNCH if key in given}
    flags = {key.removeprefix("--").replace("-", "_"): value for key, value in given.items()}
    problems.attempt(lambda: minutes_of(launch))
    problems.raise_if_any()
    stop_in_time(launch)
    place = launch.get("--runs", "runs")
    errors().print(harmless(f"train {words[0]}"), markup=False, highlight=False, soft_wrap=True)
    model, data = flags.pop("model", None), flags.pop("data", None)
    ticket = words[0] if tickets.hub.is_place(words[0]) else ticket_path(words[0], place)
    carry_out(running.search.check_training(ticket, model, data, flags, launch), place)


def _print_help() -> None:
    method = find_kind("train")
    output().print(f"Usage: ticket train TICKET [FLAGS]\n\n{method.idea}\n{method.paper}", highlight=False)
    fields = {key: entry for key, entry in public_fields(method.Config).items() if key not in FIXED}
    print_flags("flags; those that are not given are as in the training of the ticket", fields, defaults=False)
    print_definitions(
        "flags that are not part of the configuration",
        [(f"{key} {LAUNCH_FLAGS[key][0] or ''}".strip(), LAUNCH_FLAGS[key][1]) for key in _LAUNCH],
    )
