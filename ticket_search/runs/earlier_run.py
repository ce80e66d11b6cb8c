"""The weights that a search starts from (`--weights`): a checkpoint's, or those that a run of ours has trained.

A run, or its ticket file, gives tensors and numbers only: no code that its folder names is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
from pydantic import Field
from torch import Tensor

import supermask
from supermask import tickets

from ..contract.errors import RequestError, command_line
from ..models.checkpoints import read_checkpoint
from .folders import folder_of_ticket, inspect_folder, list_runs
from .forms import explain
from .names import CONFIG, SUMMARY, TICKET
from .records import read_record
from .versions import too_new

# Of numbers in a file that anyone may have written: such as a float can take.
_Count = Annotated[int, Field(ge=0, le=10**30)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Spent(pydantic.BaseModel, frozen=True):
    """What a training, or several, have cost: steps, operations of the dense network, and seconds."""

    steps: _Count
    flops: _Count
    seconds: _Amount

    def plus(self, other: Spent, share: float = 1.0) -> Spent:
        """What both have cost, of the other only a share."""
        steps, flops = round(self.steps + share * other.steps), round(self.flops + share * other.flops)
        return Spent(steps=steps, flops=flops, seconds=round(self.seconds + share * other.seconds, 3))


_NOTHING = Spent(steps=0, flops=0, seconds=0.0)


class _Cost(Spent):
    """The `cost` of a summary: `weights` is the part of it that lies behind the weights that the run started from."""

    dense_trainings: _Amount
    weights: _Cost | None = None

    @pydantic.model_validator(mode="after")
    def _holds_its_part(self) -> Self:
        keys = ("steps", "flops", "seconds", "dense_trainings")
        if self.weights and (more := [key for key in keys if getattr(self.weights, key) > getattr(self, key)]):
            raise ValueError(f"its part weights has more {', '.join(more)} than the whole")
        return self


class _Summary(pydantic.BaseModel):
    """What counts of a summary here."""

    cost: _Cost
    levels: list[dict[str, Any]] = []

    @property
    def is_whole(self) -> bool:
        """Whether what the run started from is counted, or costs nothing that we know of."""
        return self.cost.weights is not None or "weights" not in self.cost.model_fields_set

    def up_to(self, level: int) -> Spent:
        """What the search had cost when a level was done."""
        cost, before = self.cost, self.cost.weights
        known = before.dense_trainings if before else 0.0
        alone = cost.dense_trainings - known
        last = max(0, len(self.levels) - 1)
        done = trainings_up_to(min(level, last), self.levels, cost.dense_trainings, known) - known
        own = cost.plus(before, -1.0) if before else cost
        return (before or _NOTHING).plus(own, done / alone if alone else 1.0)


@dataclass(frozen=True)
class EarlierRun:
    """What is known of the run of ours whose final weights a search starts from.

    given: what `--weights` says.
    run: the name of the run's folder; of a ticket file that lies in none, its own.
    fingerprint: of the weights.
    kept, size: how many of the maskable weights its ticket keeps, and of how many. The others are zero.
    cost: what it has cost to train the weights, or why that is not known.
    """

    given: str
    run: str
    fingerprint: str
    kept: int
    size: int
    cost: Spent | str

    @property
    def parent(self) -> dict[str, Any]:
        """What a ticket records of the weights that its search started from."""
        return {"fingerprint": self.fingerprint, "state": "final", "density": self.kept / self.size if self.size else 1}

    def remarks(self) -> list[str]:
        """What to know of it before work begins."""
        found = []
        if dropped := self.size - self.kept:
            found.append(
                f"--weights {self.given}: its ticket keeps {self.kept:,} of {self.size:,} weights (density "
                f"{self.kept / self.size:.4g}); the other {dropped:,} start at zero"
            )
        if isinstance(self.cost, str):
            found.append(
                f"--weights {self.given}: what these weights have cost is not known, and so not counted: {self.cost}"
            )
        return found

    def add_to(self, own: Mapping[str, Any], training_flops: int) -> dict[str, Any]:
        """The cost of a search together with that of the weights, which is `weights` in it; None where it is not known.

        The weights' cost becomes trainings of this search's dense network by the operations that were counted for both.
        For the same network on samples of the same shape that is the ratio of the samples seen, whatever the sizes of
        the batches and the lengths of the trainings; trainings of the earlier run are of another length, and steps of
        another batch size.

        Args:
            own: of the search alone: `steps`, `flops`, `seconds`, `dense_trainings`.
            training_flops: the operations of one training of the dense network in this search.
        """
        before = self.cost
        if isinstance(before, str) or (before.steps and not (before.flops and training_flops)):
            return {**own, "weights": None}
        part = {
            "steps": before.steps,
            "flops": before.flops,
            "seconds": before.seconds,
            "dense_trainings": before.flops / training_flops if before.flops else 0.0,
        }
        total = {key: value + part[key] for key, value in own.items()}
        return {**total, "seconds": round(total["seconds"], 3), "weights": {"run": self.run, **part}}


def trainings_up_to(level: int, rows: Sequence[Mapping[str, Any]], total: float, before: float = 0.0) -> float:
    """The cost of a search when a level was done, in trainings of its dense network.

    Args:
        level: the level, 0 the dense network.
        rows: those of all its levels.
        total: the cost of the whole search.
        before: the part of it that lies behind the weights that it started from.
    """
    if len(rows) < 2 or rows[0].get("density") != 1:
        return total
    # All levels after the dense one take equally many steps. A network that was given trained takes none at level 0,
    # and so has no minimum of validation loss there.
    first = 1.0 if "min_validation_loss" in rows[0] else 0.0
    return before + first + level * (total - before - first) / (len(rows) - 1)


def read_weights(given: str) -> tuple[dict[str, Tensor], EarlierRun | None]:
    """The tensors that `--weights` names, by plain name, and the run that has trained them where it was one of ours.

    Of a run, or of a ticket file, they are those of its final state, in which dropped weights are zero.

    Args:
        given: the folder of a finished run, a ticket file, `hf:USER/NAME`, or what `read_checkpoint` takes.

    Raises:
        RequestError: a folder that is no finished run, a ticket without a final state, or a file that cannot be read.
    """
    path = _find_ticket(given)
    if path is None:
        return read_checkpoint(given), None
    try:
        ticket = supermask.load(path)
        if ticket.tasks:
            raise RequestError(
                f"--weights {given}: the ticket is of {len(ticket.tasks)} tasks; supermask.save(ticket.task("
                f"'{ticket.tasks[0]}'), FILE) makes a file of one"
            )
        if "final" not in ticket.states:
            there = ", ".join(ticket.states) or "none"
            raise RequestError(
                f"--weights {given}: the ticket has no final weights, which a search starts from; its states: {there}"
            )
        tensors = ticket.state_dict("final")
    except OSError as error:
        raise RequestError(f"--weights {given}: {path} cannot be read: {error.strerror}") from None
    except supermask.TicketError as error:
        # Of the hub the file is a copy in a cache, whose name tells nobody anything.
        told = str(error).replace(str(path), given) if tickets.hub.is_place(given) else str(error)
        raise RequestError(f"--weights {told}") from None
    place = path.resolve()
    folder = folder_of_ticket(place)
    name = folder.name if (folder / CONFIG).exists() else path.name
    fingerprint, masks = ticket.states["final"].fingerprint, ticket.masks
    return tensors, EarlierRun(given, name, fingerprint, masks.kept, masks.size, _cost_of(place))


def _find_ticket(given: str) -> Path | None:
    """The ticket file that `--weights` names by itself or by its run's folder; None where it names a checkpoint."""
    if tickets.hub.is_place(given):
        try:
            return tickets.hub.fetch(tickets.hub.read_place(given))
        except (supermask.TicketError, supermask.HubError) as error:
            raise RequestError(f"--weights {error}") from None
    file, _, key = (given, "", "") if Path(given).exists() else given.partition("#")
    place = Path(file)
    if place.is_dir():
        found = inspect_folder(place)
        if found.state == "unfinished":
            raise RequestError(
                f"--weights {file}: the run is not finished, so that it has no final weights yet; "
                f"`{command_line('resume', file)}` goes on"
            )
        if found.state != "finished":
            inside = list_runs(place)
            hint = f"; in it there are runs, as --weights {inside[0]}" if inside else ""
            raise RequestError(
                f"--weights {file}: {found.why or f'{file} holds no run'}; expected the folder of a finished run, a "
                f"ticket file or a checkpoint{hint}"
            )
        place /= TICKET
    elif not tickets.checkpoint.is_ticket(place):
        return None
    if key:
        raise RequestError(
            f"--weights {given}: a ticket holds no state dicts to choose from, its final weights are taken; "
            f"expected --weights {file}"
        )
    return place


def _cost_of(ticket: Path, seen: Set[Path] = frozenset()) -> Spent | str:
    """What it has cost to find a ticket, by the summary of the run that it lies in, or why that is not known.

    `ticket train` reports its own steps alone. Behind the weights that it ends with lies the search of its ticket too.
    """
    folder = folder_of_ticket(ticket)
    if inspect_folder(folder).state != "finished":
        return f"{ticket} does not lie in the folder of a finished run, whose summary would say it"
    if ticket.name != TICKET:
        return f"the summary of a run says it of its ticket and of those of its levels, not of {ticket.name}"
    if folder in seen:
        return f"the run {folder} trains its own ticket"
    config = read_record(folder, CONFIG)
    try:
        summary = _Summary.model_validate(read_record(folder, SUMMARY))
    except pydantic.ValidationError as error:
        raise RequestError(too_new(folder) or f"{folder / SUMMARY} is damaged: {explain(error)}") from None
    if not summary.is_whole:
        return f"the run {folder} started from weights of which it is not known"
    spent = summary.cost if ticket.parent == folder else summary.up_to(int(ticket.parent.name))
    if config["method"] != "train":
        return spent
    found = _cost_of(Path(str(config.get("ticket", ""))).resolve(), {*seen, folder})
    return found if isinstance(found, str) else spent.plus(found)
