"""Which ReLU units of a ticket are active on its data, beside those of the dense network.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018; Lu et al., Dying ReLU and Initialization, 2019.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import supermask
from supermask import Activity, Masks, Ticket
from supermask.weights.fitting import set_state

from ..contract.errors import Problems, RequestError, command_line, several_tasks, unknown
from ..contract.keyed import Keyed
from ..data.samples import HeldOut, Samples
from ..data.tasks import through_task
from ..data.trees import count, part
from ..deploy.networks import build_network
from ..running.ticket_code import find_code, find_factory, read_samples
from ..runs.experiment import load_data
from ..runs.folders import check_ticket_file, find_run, folder_of_ticket
from ..runs.names import TICKET
from ..runs.run import Run
from ..training.evaluation import BATCH, SPLITS, check_fit
from .evidence import Units
from .records import ticket_path

if TYPE_CHECKING:
    import pandas

# Enough inputs to tell a unit that never acts from one that seldom does.
_INPUTS = 2000
# What stands beside a ticket.
LEVEL_0 = "the dense network of the search, level 0"
RANDOM = "the same random weights without a mask"
START = "the untrained network without a mask"


@dataclass(frozen=True, eq=False)
class Activations(Keyed):
    """What `activations` finds: the ticket on the inputs of a split, and what stands `beside` it, if anything does.

    `what` says what that is, or why there is nothing.
    """

    ticket: Activity
    beside: Activity | None
    what: str
    data: str
    split: str

    def __repr__(self) -> str:
        return f"Activations({self.headline})"

    @property
    def headline(self) -> str:
        """What was found, in one or two sentences."""
        one, other = self.ticket, self.beside
        said = f"On {one.inputs:,} {self.split} inputs {one.never:,} of {one.units:,} ReLU units are never active"
        if one.emptied is not None and one.never:
            said += f", {one.never_and_emptied:,} of them emptied by pruning,"
        said += f" and {one.always:,} always"
        said += "" if other is None else f" (beside it: {other.never:,} and {other.always:,})"
        said += f". The ticket keeps {_percent(one.density)} of the weights; on an average input "
        said += f"{_percent(one.in_effect)} take part"
        return said + (
            "." if other is None else f" (beside it: {_percent(other.in_effect)} of {_percent(other.density)})."
        )

    @property
    def remarks(self) -> list[str]:
        """What the numbers do not say, in sentences."""
        found = []
        if self.beside is None:
            found.append(f"beside the ticket stands {self.what}")
        if self.ticket.unseen:
            found.append(
                f"how these take part is not followed, and no density counts them: {', '.join(self.ticket.unseen)}"
            )
        if self.ticket.unknown:
            found.append(f"which units pruning has emptied is not known: {self.ticket.unknown}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `ticket inspect --activations --json` prints them."""
        found = {"headline": self.headline, "data": self.data, "split": self.split, "what": self.what}
        return {
            **found, "remarks": self.remarks, "ticket": _plain(self.ticket),
            "beside": None if self.beside is None else _plain(self.beside),
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row for each unit: `relu unit share positions never always emptied`, and `beside`, the share there."""
        found = []
        others = None if self.beside is None else self.beside.calls
        for number, each in enumerate(self.ticket.calls):
            for unit in range(each.units):
                found.append({
                    "relu": each.name,
                    "layers": ", ".join(each.layers),
                    "unit": unit,
                    "share": float(each.share[unit]),
                    "positions": float(each.positions[unit]),
                    "never": bool(each.never[unit]),
                    "always": bool(each.always[unit]),
                    "emptied": None if each.emptied is None else bool(each.emptied[unit]),
                    "beside": None if others is None else float(others[number].share[unit]),
                })  # fmt: skip
        return found

    def frame(self) -> pandas.DataFrame:
        """A pandas DataFrame with a row for each unit (see `rows`).

        Raises:
            RequestError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise RequestError("a data frame is made by a package: pip install pandas") from None
        return pandas.DataFrame(self.rows())


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _plain(found: Activity) -> dict[str, Any]:
    keys = ("inputs", "units", "never", "always", "emptied", "never_and_emptied", "active", "density", "in_effect")
    calls = [
        {
            "name": each.name, "layers": list(each.layers), "units": each.units, "share": each.share.tolist(),
            "positions": each.positions.tolist(),
            "emptied": None if each.emptied is None else each.emptied.nonzero().flatten().tolist(),
        }
        for each in found.calls
    ]  # fmt: skip
    layers = [
        {"name": each.name, "size": each.size, "kept": each.kept, "in_effect": each.in_effect} for each in found.layers
    ]
    return {
        **{key: getattr(found, key) for key in keys},
        "calls": calls,
        "layers": layers,
        "unseen": list(found.unseen),
    }


def activations(
    ticket: str | os.PathLike[str] | Ticket | Run,
    *,
    split: HeldOut = "validation",
    inputs: int | None = None,
    beside: str | os.PathLike[str] | Ticket | Run | None = None,
    task: str | None = None,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    data_dir: str | None = None,
    runs: str | os.PathLike[str] = "runs",
) -> Activations:
    """Count on which inputs the ReLU units of a ticket are active, and how many of its weights take part.

        found = activations("runs/imp-...")
        print(found.headline)
        found.ticket.calls[0].share              # of the units of the first ReLU
        found.frame()

    Beside the ticket stands the dense network of its search. Where the search has none it is the same random weights
    without a mask, of weights that were never trained, or the untrained network that the ticket starts from.

    Args:
        ticket: a ticket or its file, or a finished run, its folder or its name under `runs`.
        split: `validation` or `test`.
        inputs: how many inputs of the split, from its first; all of them if not given.
        beside: another ticket or run of the same network in place of the dense network.
        task: which task of a ticket of several.
        model: what builds the network, where that is not known by name: a function, or `package.module:function`.
        data: the name of the data, or arrays, in place of those that the ticket names.
        data_dir: a folder that is searched for the data first.
        runs: the folder of all runs.

    Raises:
        RequestError: a run that is not finished, a network without ReLU or that is not known by name, data that cannot
            be had, or another request that cannot be met.
        TicketError: the file is no whole ticket.
    """
    problems = Problems()
    if split not in SPLITS:
        problems.add(unknown("split", split, SPLITS))
    if inputs is not None and inputs < 1:
        problems.add(f"inputs {inputs}: expected a number of inputs, 1 or more")
    problems.raise_if_any()
    found, path = _find(ticket, runs)
    found = _of_task(found, task)
    typed = {key: value for key, value in (("model", model), ("data", data)) if isinstance(value, str)}
    needs = [key for key, value in (("model", model), ("data", data)) if value is None or isinstance(value, str)]
    code = find_code(found, path or Path(), needs, **typed)
    factory = model if callable(model) else find_factory(code, typed.get("model"))
    if data is None or isinstance(data, str):
        samples = read_samples(found, code, data_dir)
    else:
        samples = load_data(data, code)
        check_fit(found, samples)
    samples = through_task(found.meta, samples)
    network = build_network(found, "final", factory)
    own = measure(network, found.masks, samples, split, inputs)
    if not own.calls:
        has = f"; its activations are {', '.join(own.others)}" if own.others else ""
        raise RequestError(f"the network of {_name_of(ticket)} calls no ReLU{has}")
    other, what = _find_beside(found, path, beside, task, runs, factory)
    dense = None if other is None else measure(*other, samples, split, inputs)
    if dense is not None and [each.units for each in dense.calls] != [each.units for each in own.calls]:
        raise RequestError(f"the network of {what} has other ReLU units than that of {_name_of(ticket)}")
    return Activations(own, dense, what, samples.name, split)


def count_silent(run: Run, samples: Samples, level: int | None, model: Any = None) -> tuple[Units, ...]:
    """The units behind each ReLU of a ticket that act on no validation input, beside those of its dense network.

    Empty where that cannot be told: the network has no ReLU, is not known by name, or cannot be followed. `model` is
    what builds one that is not known.
    """
    factory = model if callable(model) else None

    def measured(path: Path) -> Activity:
        ticket = supermask.load(path)
        return measure(build_network(ticket, "final", factory), ticket.masks, samples, "validation", _INPUTS)

    dense = ticket_path(run, 0)
    try:
        own = measured(ticket_path(run, level))
        others = measured(dense).calls if run.levels and dense.is_file() else [None] * len(own.calls)
    except RequestError:
        return ()
    return tuple(
        Units(
            each.name,
            each.units,
            int((each.never if each.emptied is None else each.never & ~each.emptied).sum()),
            None if other is None else int(other.never.sum()),
        )
        for each, other in zip(own.calls, others, strict=True)
    )


def _name_of(ticket: Any) -> str:
    return str(ticket.path) if isinstance(ticket, Run) else "the ticket" if isinstance(ticket, Ticket) else str(ticket)


def _find(ticket: str | os.PathLike[str] | Ticket | Run, runs: str | os.PathLike[str]) -> tuple[Ticket, Path | None]:
    """A ticket, and its file where it lies in one of ours."""
    if isinstance(ticket, Ticket):
        return ticket, None
    name = str(ticket.path) if isinstance(ticket, Run) else os.fspath(ticket)
    if supermask.tickets.hub.is_place(name):
        return supermask.load(name), None
    path = Path(name)
    if path.is_file():
        check_ticket_file(path)
    else:
        folder = find_run(name, runs)
        path = folder / TICKET
        if not path.exists():
            raise RequestError(f"the run {folder} is not finished; `{command_line('resume', folder)}` goes on")
    return supermask.load(path), path


def _of_task(ticket: Ticket, task: str | None) -> Ticket:
    if task is not None:
        return ticket.task(task)
    if ticket.tasks:
        raise RequestError(several_tasks(ticket.tasks))
    return ticket


def measure(network: nn.Module, masks: Masks, samples: Samples, split: HeldOut, inputs: int | None = None) -> Activity:
    """Count on which inputs of a split the ReLU units of a network are active; on the first `inputs` of them only.

    Raises:
        RequestError: a network whose units cannot be followed.
    """
    try:
        return supermask.activity(network, _inputs(samples, split, inputs), masks)
    except ValueError as error:
        raise RequestError(f"the network cannot be followed: {error}") from error


def _inputs(samples: Samples, split: HeldOut, most: int | None) -> Iterator[Any]:
    """The inputs of a split in batches, as many as are asked for."""
    left = samples.held_out_size(split) if most is None else most
    for x, _ in samples.batches(split, BATCH):
        if left <= 0:
            return
        size = min(left, count(x))
        yield part(x, 0, size)
        left -= size


def _find_beside(
    ticket: Ticket,
    path: Path | None,
    beside: str | os.PathLike[str] | Ticket | Run | None,
    task: str | None,
    runs: str | os.PathLike[str],
    factory: Callable[..., nn.Module] | None,
) -> tuple[tuple[nn.Module, Masks] | None, str]:
    """A network and its masks to stand beside the ticket, and what it is; or None, and why there is none."""
    if beside is not None:
        other, _ = _find(beside, runs)
        other = _of_task(other, task if task in other.tasks else None)
        return (build_network(other, "final", factory), other.masks), _name_of(beside)
    dense = None if path is None else folder_of_ticket(path) / "levels" / "00" / TICKET
    if dense is not None and dense.is_file():
        other = supermask.load(dense)
        return (build_network(other, "final", factory), other.masks), LEVEL_0
    whole = Masks({name: mask | True for name, mask in ticket.masks.items()}, ticket.masks.uncounted)
    for state, what in (("final", RANDOM), ("start", START)):
        if state in ticket.states and all(name in ticket.states[state].drawn for name in ticket.masks):
            network = build_network(ticket, state, factory)
            set_state(network, ticket.states[state].tensors({}))
            return (network, whole), what
    return None, "nothing: the search has no dense network, and the weights under the dropped ones are not known"
