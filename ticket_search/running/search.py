"""search(), resume() and train(): from a request to a finished run. The command line is a thin shell over these."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import supermask
from supermask import tickets
from supermask.weights.fitting import state_of

from ..contract.errors import Problems, RequestError, command_line, several_tasks, unknown
from ..contract.flags import Config, differences, to_plain
from ..contract.leave import Leave, Leaves, can_be_typed, code_in, leave_here
from ..data.factories import find_factory
from ..runs import ranks
from ..runs.experiment import (
    Setup,
    describe_model,
    devices,
    exact_arithmetic,
    find_model,
    load_data,
    make_setup,
    own_random_numbers,
    resolve,
)
from ..runs.folders import (
    check_ticket_file,
    choose_folder,
    describe_missing_ticket,
    find_finished,
    find_run,
    folder_of_ticket,
    is_finished,
)  # fmt: skip
from ..runs.inputs import Inputs, digests_of_code, read_inputs
from ..runs.names import CONFIG, TICKET
from ..runs.progress import Progress
from ..runs.records import read_record
from ..runs.run import Run
from ..training.conclude import summarize
from ..training.objective import make_objective
from ..training.trial import check_model
from ..trust.mark import digest_of, read_mark
from .plan import plan_stages
from .read_config import read_config
from .request import (
    ARRAYS,
    Request,
    check_request,
    default_model,
    describe_functions,
    find_weights,
    name_problems,
    request_of,
)
from .train import REPEATED


def search(
    method: str,
    model: str | Callable[..., nn.Module] | None = None,
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

    An unfinished run of the same configuration is resumed. With `name` a finished one is returned, so that a notebook's
    cell may run twice, if it was given the same: configuration, first weights, samples and code. Ctrl-C saves the state
    and raises `Interrupted`. The summary has `test_metric` and `val_metric`, the values of its `metric`, and of
    accuracy `test_accuracy` and `val_accuracy` too.

    Args:
        method: `dense`, `imp`, `edge-popup`, ... (`ticket methods`).
        model: a name, or a callable that builds a new module; it gets `input_shape` and `classes` if it takes them.
            If not given, `lenet-300-100`, or the method's own default. The weights of a callable's module are kept for
            methods that train weights, unless `init` is given.
        data: a name, or `(x, y)` or `{"train": (x, y), "test": (x, y)}` of arrays or tensors, dictionaries of arrays
            with `labels`, Datasets, DataLoaders or data sets of Hugging Face (see `data.dataset.from_arrays`).
        runs: the folder of all runs.
        name: of the run's folder; by default made of the method, the model, the data, the density and the seed.
        progress: show a progress line on stderr.
        flags: the method's flags by field name (`batch_size=60`; `ticket search --method X --help`). `loss` and
            `metric` may be callables of (outputs, targets); a loss is given the network's whole output, a metric the
            main one. `weights` may be a finished run.

    Raises:
        RequestError: every problem of the request at once; nothing is written. Or the run of this name was given
            something else.
        Interrupted: stopped by a signal; the run resumes.
    """
    flags, functions = describe_functions(flags)
    if isinstance(flags.get("weights"), str | os.PathLike):
        flags["weights"] = find_weights(os.fspath(flags["weights"]), runs)
    model = default_model(method) if model is None else model
    name_of_model = describe_model(model)
    request = check_request(method, model, data, flags, model_name=name_of_model, functions=functions)
    with ranks.together(request.config.device):
        config, setup = prepare(request)
        dense = setup.method.traits.dense
        if name is not None:
            same, differs = find_same(config, setup, lambda: find_finished(config, runs, name, dense))
            if same is not None:
                return Run(same, config, progress=_shown(progress))
            if differs:
                remove = command_line("runs", "rm", Path(runs) / name)
                raise RequestError(f"name {name!r}: {differs}; choose another name, or `{remove}`")
        folder = ranks.first(lambda: choose_folder(config, runs, name, dense))
        return carry_out(Run(folder, config, setup, _shown(progress)))


def _shown(progress: bool) -> Progress:
    """What shows the progress of a run: of several ranks on the first one only."""
    return Progress(progress and ranks.now().first)


def resume(
    run: str | os.PathLike[str],
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    *,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    device: str | None = None,
    runs: str | os.PathLike[str] = "runs",
    progress: bool = True,
) -> Run:
    """Go on with a stopped run, as if it had never been stopped; a finished one is returned as it is.

    On another device than it was begun on, as where that is not there, the result is as good, and its bytes are others:
    a warning says so.

    A run that was made here remembers the functions that it was started with, and where they are (see `trust.mark`). A
    lambda, a function of a script or a notebook, and arrays are not remembered.

    Args:
        run: its folder, or its name under `runs`.
        model: the callable, where the run was started with one that is not remembered, or its name.
        data: the arrays, where the run was started with some, or the name of the function that reads them.
        loss: the callable, where the run was started with one that is not remembered, or its name.
        metric: the same of the metric.
        device: `cpu`, `cuda` or `mps`; if not given, that of the run, or where it is not there any that is.
        runs: the folder of all runs.
        progress: show a progress line on stderr.

    Raises:
        RequestError: there is no such run, or it needs code or data that are not built in and were not given, or code
            that has changed since.
    """
    with ranks.together(device or "auto"):
        return _resume(run, model, data, loss, metric, device, runs, progress)


def _resume(
    run: str | os.PathLike[str],
    model: Any,
    data: Any,
    loss: Any,
    metric: Any,
    device: str | None,
    runs: Any,
    shown: bool,
) -> Run:
    def find() -> tuple[Path, Config, bool]:
        folder = find_run(os.fspath(run), runs)
        return folder, read_config(folder), is_finished(folder)

    folder, config, finished = ranks.first(find)
    opened = Run(folder, config, progress=_shown(shown))
    if finished and all(given is None for given in (model, data, loss, metric)):
        return opened
    if model is not None:
        config = config.model_copy(update={"model": describe_model(model)})
    begun_on, config = config.device, _on_a_device(config, device)
    request = request_of(config, model, data, loss, metric)
    asked = {"model": request.model, "data": request.data, **request.functions}
    unknown_names = name_problems(request.model, request.data)
    refused = request.config.refused_code(asked)
    code = code_in({**vars(request.config), **asked})
    if unknown_names or (refused and not all(map(can_be_typed, code.values()))):
        needed = dict.fromkeys(["model", "data", *(name for name in ("loss", "metric") if name in code)])
        call = f'ticket_search.resume("{folder}", {", ".join(f"{name}=..." for name in needed)})'
        problems = [*unknown_names, *refused]
        raise RequestError([f"{problem}; the run was started in Python: {call} goes on" for problem in problems])
    again, setup = prepare(request, unchanged=not finished)
    if finished:
        if told := find_same(again, setup, lambda: [folder])[1]:
            warnings.warn(told, stacklevel=2)
        return opened
    there = opened.config.model_copy(update={"device": again.device})
    if other := differences(to_plain(there), to_plain(again)):
        raise RequestError(f"the run {folder} was started otherwise: {', '.join(other)}")
    going_on = Run(folder, again, setup, _shown(shown))
    going_on.begun_on = begun_on
    going_on.takes_code = any(each is not None for each in (model, data, loss, metric))
    return carry_out(going_on)


def _on_a_device(config: Config, device: str | None) -> Config:
    """The configuration of a run that goes on, on the device that is asked for, or else on one that is there.

    Raises:
        RequestError: no such device.
    """
    there = devices()
    if device is not None and device not in there:
        raise RequestError(unknown("device", device, there))
    if device is None and not there[config.device]:
        device = "cuda" if there["cuda"] else "cpu"
    return config if device is None else config.model_copy(update={"device": device})


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
        ticket: the ticket file, a run's folder, or `hf:USER/NAME`, a ticket on the hub (see `supermask.load`).
            Functions that its run remembers are used (see `resume`).
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
    flags, functions = describe_functions(flags)
    request = replace(check_training(ticket, model, data, flags), functions=functions)
    with ranks.together(request.config.device):
        config, setup = prepare(request)
        folder = ranks.first(lambda: choose_folder(config, runs, name))
        return carry_out(Run(folder, config, setup, _shown(progress)))


def check_training(
    ticket: str | os.PathLike[str],
    model: str | Callable[..., nn.Module] | None,
    data: Any,
    flags: Mapping[str, Any],
    launch: Mapping[str, str] | None = None,
    leaves: Leaves | None = None,
) -> Request:
    """The checked request to train a ticket (see `train`).

    `leaves` says which names may be imported; where it is None, those that are given here, and what the ticket's run
    remembers.

    Raises:
        RequestError: every problem of the request at once; nothing is written.
        TicketError: the file is no whole ticket.
    """
    own = [key for key, value in {"model": model, "data": data}.items() if value is not None]
    values, known, marked, origin = describe_ticket(ticket, flags, own)
    if leaves is None:
        leaves = {**marked, **leave_here(model, data, flags.get("loss"), flags.get("metric"))}
    network, samples = known["model"] if model is None else model, known["data"] if data is None else data
    name = describe_model(network)
    return check_request(
        "train", network, samples, values,
        model_name=name, given=flags, launch=launch, leaves=leaves, origin=origin,
    )  # fmt: skip


def describe_ticket(
    ticket: str | os.PathLike[str], flags: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, str], dict[str, Leave], str]:
    """The flags of a run that trains a ticket, the names of its model and data, what may be imported, and who names it.

    `given` says which of model and data the caller has and need not be named by the ticket.

    Raises:
        RequestError: there is no such file, the ticket has no such state, or its model or data are code.
        TicketError: the file is no whole ticket.
    """
    path = Path(ticket) / TICKET if (Path(ticket) / TICKET).is_file() else Path(ticket)
    if not tickets.hub.is_place(ticket) and not path.exists():
        raise RequestError(f"there is no ticket {path}")
    if path.is_dir():
        path = find_run(os.fspath(path)) / TICKET
        raise RequestError(describe_missing_ticket(path.parent))
    if tickets.hub.is_place(ticket):
        found = supermask.load(ticket)
        # What a link leads to; in the cache of the hub the link itself is what names repository and commit.
        path = tickets.hub.fetch(tickets.hub.read_place(ticket))
    else:
        check_ticket_file(path)
        found = supermask.load(path)
    task = flags.get("task")
    if task is None and found.tasks:
        raise RequestError(several_tasks(found.tasks))
    found = found if task is None else found.task(str(task))
    state = str(flags.get("state", "start"))
    if state not in found.states:
        raise RequestError(unknown("state", state, found.states))
    recorded = found.meta.get("config", {})
    repeated = {key: recorded[key] for key in REPEATED if key in recorded}
    found_by = str(found.meta.get("method", ""))
    fixed = {
        "ticket": str(path if tickets.hub.is_place(ticket) else path.resolve()),
        "found_by": found_by,
        "density": found.density,
        "init": "keep",
    }
    names = {key: str(found.meta.get(key, "")) for key in ("model", "data")}
    if names["data"].startswith(ARRAYS) and "data" not in given:
        raise RequestError(f"the ticket's data were arrays ({names['data']}): give them in Python, or others by --data")
    objective = {key: str(recorded[key]) for key in ("loss", "metric") if recorded.get(key)}
    if "data" not in given and (place := find_data_dir(path)) is not None:
        repeated["data_dir"] = place
    leaves, why = leaves_of_ticket(path, {**names, **objective})
    return {**repeated, **objective, **flags, **fixed}, names, leaves, f"the ticket {path}, which {why}" if why else ""


def leaves_of_ticket(path: Path, names: Mapping[str, Any]) -> tuple[dict[str, Leave], str]:
    """What may be imported for a ticket file: what the mark of the run that it lies in vouches for; or why no more.

    Args:
        path: of the file. By itself a ticket gives no leave.
        names: what it names, by flag.
    """
    return read_mark(folder_of_ticket(path), names)


def find_data_dir(ticket: Path) -> str | None:
    """The folder in which the run of a ticket's file has found its data; None without a run, or if none was named."""
    try:
        found = read_record(folder_of_ticket(ticket), CONFIG).get("data_dir")
    except RequestError:  # no run, or a damaged one, or another program's file: the ticket is whole without it
        return None
    return found if isinstance(found, str) else None


def prepare(request: Request, *, unchanged: bool = False) -> tuple[Config, Setup]:
    """The whole configuration of a request on this machine, and the network and the data that it works on.

    Args:
        request: what was asked for, and checked.
        unchanged: whether functions that a run remembers must be what they were when it was started. If not, a warning
            says which have changed.

    Raises:
        RequestError: everything at once that this machine, the data or the network do not have, or code that nobody has
            given leave to import.
    """
    config, problems = request.config, Problems()
    # Before anything that the ranks do together, which what they were given says how to do.
    ranks.check_same("run", {**to_plain(config), "data": str(config.data)}, RequestError)
    check_code(config, {"model": request.model, "data": request.data, **request.functions}, unchanged)
    resolved = problems.attempt(lambda: resolve(config))
    loaded = problems.attempt(lambda: load_data(request.data, config))
    problems.attempt(lambda: find_model(request.model, config.leaves))
    problems.attempt(lambda: make_objective(config, request.functions))
    problems.raise_if_any()
    assert resolved is not None and loaded is not None, "what was not found is a problem"
    resolved = resolved.model_copy(update={"data": loaded.name})
    data = loaded.to(resolved.device)
    return resolved, make_setup(request.method, request.model, data, resolved, request.functions)


def check_code(config: Config, instead: Mapping[str, Any], unchanged: bool = False) -> None:
    """Check that there is leave for all code that is to be imported, and whether it has changed since it was marked.

    Args:
        config: what names it.
        instead: what is used in place of what it names, by flag.
        unchanged: whether a change is a problem. If not, a warning tells of it.

    Raises:
        RequestError: code without leave, in one sentence, or code that has changed.
    """
    problems = Problems()
    problems.add(*config.refused_code(instead))
    for key, name in code_in({**vars(config), **instead}).items():
        leave = config.leaves.get(name)
        if leave is None or not leave.digest or not Path(leave.file).exists() or digest_of(leave.file) == leave.digest:
            continue
        told = f"{leave.file}, which defines the {key} {name}, has changed since the run was started"
        if unchanged:
            problems.add(f"{told}: to go on with it as it is now, --{key} {name}")
        elif not problems.found:
            warnings.warn(told, stacklevel=3)
    problems.raise_if_any()


def find_same(config: Config, setup: Setup, find: Callable[[], Iterable[Path]]) -> tuple[Path | None, str]:
    """Of finished runs of a configuration the first that was given the same: weights, samples and code.

    Args:
        config: of the run that is to be carried out.
        setup: its network and data.
        find: gives the folders of those runs. Of several ranks only the first looks at folders.

    Returns:
        Its folder, or None; and how the last of the others differs, or an empty text.
    """
    return ranks.first(lambda: _find_same(config, setup, list(find())))


def _find_same(config: Config, setup: Setup, folders: list[Path]) -> tuple[Path | None, str]:
    told = ""
    if not folders:
        return None, told
    with own_random_numbers():
        model = setup.make_model(config)
        inputs = Inputs(supermask.fingerprint(state_of(model)), setup.data_hash, digest_code(setup, config, model))
    for folder in folders:
        earlier = read_inputs(folder)
        if earlier is None or not (differs := inputs.differences(earlier)):
            return folder, told
        told = f"the finished run {folder} was given something else ({', '.join(differs)})"
    return None, told


def digest_code(setup: Setup, config: Config, model: nn.Module) -> dict[str, str]:
    """The hashes of the user's own code in a search."""
    functions = {"model": setup.factory} if setup.factory is not None else {}
    named = {key: name for key, name in code_in(vars(config)).items() if key in ("loss", "metric")}
    functions |= {
        f"the {key}": find_factory(name, config.leaves) for key, name in named.items() if key not in setup.functions
    }
    functions |= {f"the {key}": function for key, function in setup.functions.items()}
    return digests_of_code(functions, model)


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
        # Before the network has seen data, of which it may keep something.
        code = digest_code(setup, config, model)
        check_model(setup, config, model)
        targets = setup.targets(config, model)
        start = supermask.fingerprint(state_of(model))
        given = {**to_plain(config), "first weights": start, "samples": setup.data_hash}
        ranks.check_same("run", given, RequestError)
        if config.fsdp and not ranks.now().several:
            run.progress.say("--fsdp shares out a training over ranks, and there is one: the training is whole")
        run.progress.expect(sum(stage.steps for stage in plan_stages(config, setup, targets)))
        for sentence in setup.remarks(model, targets):
            run.progress.say(sentence)
        with run.opened():
            run.expect_start(start, code)
            ticket = setup.method.search(model, run)
            # The checkpoint may be gone by now, and operations are counted without it.
            network = setup.make_model(config.model_copy(update={"weights": None}))
            run.finish(summarize(run, ticket, network))
    return run
