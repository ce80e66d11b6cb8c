"""search() and resume(): from a request to a finished run. The command line is a thin shell over these."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import supermask
from supermask.weights.fitting import state_of

from ..contract.errors import RequestError, unknown
from ..contract.flags import Config, differences, to_plain
from ..models.names import is_factory
from ..runs.experiment import (
    Setup,
    describe_model,
    exact_arithmetic,
    find_model,
    load_data,
    make_setup,
    own_random_numbers,
    resolve,
)
from ..runs.folders import choose_folder, find_run
from ..runs.names import TICKET
from ..runs.progress import Progress
from ..runs.run import Run
from ..training.conclude import summarize
from ..training.objective import make_objective
from .plan import plan_stages
from .read_config import read_config
from .request import name_problems, validate
from .train import REPEATED


def search(
    method: str,
    model: str | Callable[..., nn.Module] = "lenet-300-100",
    data: Any = "digits",
    *,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    progress: bool = True,
    **flags: Any,
) -> Run:
    """Search for a subnetwork and return the finished run.

        run = search("imp", model=lambda: MyNet(), data=(x, y), density=0.1, epochs=12, seed=0)
        run.ticket.density, run.summary["test_accuracy"], run.levels, run.path

    An unfinished run of the same configuration is resumed. Ctrl-C saves the state and raises `Interrupted`.

    Args:
        method: `dense`, `imp`, `edge-popup`, ... (`ticket methods`).
        model: a name, or a callable that builds a new module; it gets `input_shape` and `classes` if it takes them.
            The weights of a callable's module are kept for methods that train weights, unless `init` is given.
        data: a name, or `(x, y)` or `{"train": (x, y), "test": (x, y)}` of arrays or tensors.
        runs: the folder of all runs.
        name: of the run's folder.
        progress: show a progress line on stderr.
        flags: the method's flags by field name (`batch_size=60`; `ticket search --method X --help`).

    Raises:
        RequestError: every problem of the request at once; nothing is written.
        Interrupted: stopped by a signal; the run resumes.
    """
    config, setup = prepare(method, model, data, flags)
    folder = choose_folder(config, runs, name, setup.method.traits.dense)
    return carry_out(Run(folder, config, setup, Progress(progress)))


def resume(
    run: str | os.PathLike[str],
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    *,
    runs: str | os.PathLike[str] = "runs",
    progress: bool = True,
) -> Run:
    """Go on with a stopped run, as if it had never been stopped; a finished one is returned as it is.

    Args:
        run: its folder, or its name under `runs`.
        model: the callable, where the run was started with one.
        data: the arrays, where the run was started with some.
        runs: the folder of all runs.
        progress: show a progress line on stderr.

    Raises:
        RequestError: there is no such run, or it needs a model or data that are not built in and were not given.
    """
    folder = find_run(os.fspath(run), runs)
    config = read_config(folder)
    opened = Run(folder, config, progress=Progress(progress))
    if opened.finished:
        return opened
    values = to_plain(config)
    problems = name_problems(model or config.model, config.data if data is None else data)
    try:
        find_model(model or config.model)
    except RequestError as error:
        problems = problems or error.problems
    if problems:
        call = f'ticket_search.resume("{folder}", model=..., data=...)'
        raise RequestError([f"{problem}; the run was started in Python: {call} goes on" for problem in problems])
    again, setup = prepare(
        config.method,
        config.model if model is None else model,
        config.data if data is None else data,
        {key: value for key, value in values.items() if key not in ("method", "model", "data")},
        given=(),
    )
    if other := differences(values, to_plain(again)):
        raise RequestError(f"the run {folder} was started otherwise: {', '.join(other)}")
    return carry_out(Run(folder, config, setup, Progress(progress)))


def train(
    ticket: str | os.PathLike[str],
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    *,
    runs: str | os.PathLike[str] = "runs",
    name: str | None = None,
    progress: bool = True,
    **flags: Any,
) -> Run:
    """Train a ticket, its masks held: the hypothesis itself.

        run = train("ticket.safetensors", seed=1)                  # the winning start, other batches
        run = train("ticket.safetensors", data="kmnist")           # transferred to other data
        run = train("ticket.safetensors", state="final", epochs=2) # continued

    Args:
        ticket: the ticket file, or a run's folder.
        model: a callable, where the ticket's network is not known by name.
        data: a name or arrays, where it is not the ticket's data set by name.
        runs: the folder of all runs.
        name: of the run's folder.
        progress: show a progress line on stderr.
        flags: `state` (`start` or `final`) and those of any run; what is not given is as the ticket was trained.

    Raises:
        RequestError: every problem of the request at once; nothing is written.
        TicketError: the file is no whole ticket.
    """
    own = {"model": model, "data": data}
    values, known = describe_ticket(ticket, flags, [key for key, value in own.items() if value is not None])
    config, setup = prepare("train", model or known["model"], known["data"] if data is None else data, values, flags)
    return carry_out(Run(choose_folder(config, runs, name), config, setup, Progress(progress)))


def describe_ticket(
    ticket: str | os.PathLike[str], flags: Mapping[str, Any], given: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a run that trains a ticket, and the names of its model and data.

    `given` says which of model and data the caller has of its own.

    Raises:
        RequestError: no such file, a state that the ticket does not have, or a model or data that are code.
        TicketError: the file is no whole ticket.
    """
    path = Path(ticket) / TICKET if (Path(ticket) / TICKET).is_file() else Path(ticket)
    if not path.exists():
        raise RequestError(f"there is no ticket {path}")
    found = supermask.load(path)
    state = str(flags.get("state", "start"))
    if state not in found.states:
        raise RequestError(unknown("state", state, found.states))
    recorded = found.meta.get("config", {})
    repeated = {key: recorded[key] for key in REPEATED if key in recorded}
    found_by = str(found.meta.get("method", ""))
    fixed = {"ticket": str(path.resolve()), "found_by": found_by, "density": found.density, "init": "keep"}
    names = {key: str(found.meta.get(key, "")) for key in ("model", "data")}
    code = {"model": is_factory(names["model"]), "data": ":" in names["data"] or names["data"].startswith("arrays-")}
    missing = [key for key, needed in code.items() if needed and key not in given]
    if missing:
        raise RequestError(
            [
                f"the ticket's {key} is {names[key]}, which no file may name as code: give it by --{key}"
                for key in missing
            ]
        )
    return {**repeated, **flags, **fixed}, names


def prepare(
    method: str,
    model: str | Callable[..., nn.Module],
    data: Any,
    flags: Mapping[str, Any],
    given: Iterable[str] | None = None,
) -> tuple[Config, Setup]:
    """The whole configuration and what it works on. `given` are the flags that were asked for, all where it is None.

    Raises:
        RequestError: every problem of the request at once.
    """
    chosen, config = validate(method, model, data, flags, describe_model(model), given)
    problems: list[str] = []

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except RequestError as error:
            problems.extend(error.problems)
            return None

    resolved = attempt(lambda: resolve(config))
    loaded = attempt(lambda: load_data(data, config))
    attempt(lambda: find_model(model))
    attempt(lambda: make_objective(config))
    if problems:
        raise RequestError(problems)
    resolved = resolved.model_copy(update={"data": loaded.name})
    return resolved, make_setup(chosen, model, loaded.to(resolved.device), resolved)


def carry_out(run: Run) -> Run:
    """Search in an opened folder until the run is finished."""
    config, setup = run.config, run.setup
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        setup.check_model(config, model)
        run.progress.total = sum(stage.steps for stage in plan_stages(config, setup, setup.targets(config, model)))
        with run.opened():
            run.expect_start(supermask.fingerprint(state_of(model)))
            ticket = setup.method.search(model, run)
            run.finish(summarize(run, ticket, setup.make_model(config)))
    return run
