"""search(), resume() and train(): from a request to a finished run. The command line is a thin shell over these."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import supermask
from supermask.weights.fitting import state_of

from ..contract.errors import Problems, RequestError, unknown
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
from .request import Request, check_request, name_problems, request_of
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
        name: of the run's folder; by default made of the method, the model, the data, the density and the seed.
        progress: show a progress line on stderr.
        flags: the method's flags by field name (`batch_size=60`; `ticket search --method X --help`).

    Raises:
        RequestError: every problem of the request at once; nothing is written.
        Interrupted: stopped by a signal; the run resumes.
    """
    config, setup = prepare(check_request(method, model, data, flags, model_name=describe_model(model)))
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
    if model is not None:
        config = config.model_copy(update={"model": describe_model(model)})
    request = request_of(config, model, data)
    problems = Problems()
    problems.add(*name_problems(request.model, request.data))
    if not problems.found:
        problems.attempt(lambda: find_model(request.model))
    if problems.found:
        call = f'ticket_search.resume("{folder}", model=..., data=...)'
        raise RequestError([f"{problem}; the run was started in Python: {call} goes on" for problem in problems.found])
    again, setup = prepare(request)
    if other := differences(to_plain(opened.config), to_plain(again)):
        raise RequestError(f"the run {folder} was started otherwise: {', '.join(other)}")
    return carry_out(Run(folder, opened.config, setup, Progress(progress)))


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
    """Train a ticket with its masks held: what the lottery ticket hypothesis is about.

        run = train("ticket.safetensors", seed=1)                  # the winning start, other batches
        run = train("ticket.safetensors", data="kmnist")           # transferred to other data
        run = train("ticket.safetensors", state="final", epochs=2) # continued

    Args:
        ticket: the ticket file, or a run's folder.
        model: a callable, where the ticket's network is not known by name.
        data: a name or arrays, where it is not the data set that the ticket names.
        runs: the folder of all runs.
        name: of the run's folder; by default made of the model, the data, the density and the seed.
        progress: show a progress line on stderr.
        flags: `state` (`start` or `final`) and those of any run; what is not given is as the ticket was trained.

    Raises:
        RequestError: every problem of the request at once; nothing is written.
        TicketError: the file is no whole ticket.
    """
    config, setup = prepare(check_training(ticket, model, data, flags))
    return carry_out(Run(choose_folder(config, runs, name), config, setup, Progress(progress)))


def check_training(
    ticket: str | os.PathLike[str],
    model: str | Callable[..., nn.Module] | None,
    data: Any,
    flags: Mapping[str, Any],
    launch: Mapping[str, str] | None = None,
) -> Request:
    """The checked request to train a ticket (see `train`).

    Raises:
        RequestError: every problem of the request at once; nothing is written.
        TicketError: the file is no whole ticket.
    """
    own = [key for key, value in {"model": model, "data": data}.items() if value is not None]
    values, known = describe_ticket(ticket, flags, own)
    network, samples = known["model"] if model is None else model, known["data"] if data is None else data
    name = describe_model(network)
    return check_request("train", network, samples, values, model_name=name, given=flags, launch=launch)


def describe_ticket(
    ticket: str | os.PathLike[str], flags: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The flags of a run that trains a ticket, and the names of the ticket's model and data.

    `given` says which of model and data the caller has and need not be named by the ticket.

    Raises:
        RequestError: there is no such file, the ticket has no such state, or its model or data are code.
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


def prepare(request: Request) -> tuple[Config, Setup]:
    """The whole configuration of a request on this machine, and the network and the data that it works on.

    Raises:
        RequestError: everything at once that this machine, the data or the network do not have.
    """
    config, problems = request.config, Problems()
    resolved = problems.attempt(lambda: resolve(config))
    loaded = problems.attempt(lambda: load_data(request.data, config))
    problems.attempt(lambda: find_model(request.model))
    problems.attempt(lambda: make_objective(config))
    problems.raise_if_any()
    assert resolved is not None and loaded is not None, "what was not found is a problem"
    resolved = resolved.model_copy(update={"data": loaded.name})
    return resolved, make_setup(request.method, request.model, loaded.to(resolved.device), resolved)


def carry_out(run: Run) -> Run:
    """Search, from where the run stands, until it is finished.

    Raises:
        RequestError: the network does not take the data, or the method can do nothing with the network.
        RunError: the run has failed.
        Interrupted: stopped by a signal; the run resumes.
    """
    config, setup = run.config, run.setup
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        setup.check_model(config, model)
        targets = setup.targets(config, model)
        run.progress.total = sum(stage.steps for stage in plan_stages(config, setup, targets))
        for sentence in setup.remarks(model, targets):
            run.progress.say(sentence)
        with run.opened():
            run.expect_start(supermask.fingerprint(state_of(model)))
            ticket = setup.method.search(model, run)
            run.finish(summarize(run, ticket, setup.make_model(config)))
    return run
