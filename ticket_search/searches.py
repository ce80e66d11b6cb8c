"""search() and resume(): from a request to a finished run. The command line is a thin shell over these."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import supermask
from supermask import Targets

from .config import Config, differences, to_plain
from .data.dataset import Data
from .folders import choose_folder, find_run, read_config
from .methods import Method, Stage
from .problems import RequestError
from .progress import Progress
from .reports import summarize
from .requests import name_problems, validate
from .runs import Run
from .setup import Setup, describe_model, load_data, make_setup, own_random_numbers, resolve
from .training import make_optimizer, steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """What a search would do: its targets, stages, and seconds estimated from a few timed steps."""

    config: Config
    targets: Targets
    stages: list[Stage]
    seconds: float


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
    if problems := name_problems(model or config.model, config.data if data is None else data):
        call = f'ticket_search.resume("{folder}", model=..., data=...)'
        raise RequestError([f"{problem}; the run was started in Python: {call} goes on" for problem in problems])
    again, setup = prepare(
        config.method,
        config.model if model is None else model,
        config.data if data is None else data,
        {key: value for key, value in values.items() if key not in ("method", "model", "data")},
    )
    if other := differences(values, to_plain(again)):
        raise RequestError(f"the run {folder} was started otherwise: {', '.join(other)}")
    return carry_out(Run(folder, config, setup, Progress(progress)))


def prepare(
    method: str, model: str | Callable[..., nn.Module], data: Any, flags: Mapping[str, Any]
) -> tuple[Config, Setup]:
    """The whole configuration and what it works on.

    Raises:
        RequestError: every problem of the request at once.
    """
    chosen, config = validate(method, model, data, flags, describe_model(model))
    config = resolve(config)
    loaded = load_data(data, config).to(config.device)
    return config.model_copy(update={"data": loaded.name}), make_setup(chosen, model, loaded)


def make_plan(config: Config, setup: Setup) -> Plan:
    """What the search would do. Trains a copy for a few steps to estimate the time; writes nothing."""
    model = setup.make_model(config)
    targets = setup.targets(config, model)
    per_epoch = steps_per_epoch(len(setup.data.train_y), config.batch_size)
    stages = setup.method.plan(config, targets, per_epoch)
    steps = sum(stage.steps for stage in stages)
    return Plan(config, targets, stages, steps * time_step(model, setup.data, config, setup.method))


def time_step(model: nn.Module, data: Data, config: Config, method: Method) -> float:
    """Seconds of a training step, the median of ten on a copy."""
    copied = copy.deepcopy(model)
    include, exclude = config.include or None, config.exclude or None
    if method.traits.frozen_weights:
        supermask.learn(copied, config.density, include=include, exclude=exclude)
    else:
        supermask.hold(copied, supermask.prune(copied, config.density, "random", include=include, exclude=exclude))
    optimizer = make_optimizer(copied, config)
    x, y = data.train_x[: config.batch_size], data.train_y[: config.batch_size]
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(copied(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[2:])[5]


def carry_out(run: Run) -> Run:
    """Search in an opened folder until the run is finished."""
    config, setup = run.config, run.setup
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        with own_random_numbers():
            model = setup.make_model(config)
            stages = setup.method.plan(
                config, setup.targets(config, model), steps_per_epoch(len(setup.data.train_y), config.batch_size)
            )
            run.progress.total = sum(stage.steps for stage in stages)
            with run.opened():
                ticket = setup.method.search(model, setup.data, config, run)
                run.save_ticket(ticket)
                run.finish(summarize(run, ticket, setup.make_model(config)))
    finally:
        torch.set_num_threads(threads)
    return run
