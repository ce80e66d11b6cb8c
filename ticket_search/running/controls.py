"""The controls of a run: the networks that its ticket must be better than, trained or evaluated in its folder.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018 (fresh weights, random masks); Frankle et al., Pruning Neural
Networks at Initialization: Why Are We Missing the Mark?, 2021 (masks shuffled within layers).
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import filelock
from torch import nn

import supermask
from supermask import Ticket

from ..contract.errors import Problems, RequestError, command_line, unknown
from ..contract.flags import Config
from ..contract.leave import Leaves, leave_here
from ..contract.metric import named_values
from ..data.tasks import through_task
from ..runs.experiment import Setup, exact_arithmetic, load_data
from ..runs.folders import choose_folder, find_run, is_finished
from ..runs.loggers.recipients import Recipients
from ..runs.names import (
    CONTROL_RUNS,
    CONTROLS,
    DEFAULT,
    ELSEWHERE,
    EVALUATED,
    MOVING,
    REWIND_POINT,
    SIGNS,
    SURVIVORS,
    TICKET,
    TRAINED,
)
from ..runs.progress import Progress, in_words
from ..runs.records import read_record, write_record
from ..runs.run import Run
from ..runs.summary import ControlRow
from ..training.evaluation import evaluate, mean_of_tasks
from ..training.trial import find_objective
from .plan import make_plan, time_untrained
from .read_config import find_kind, read_config
from .request import Request, control_problems, describe_functions, name_problems, request_of, shape_of
from .search import carry_out, check_training, prepare
from .small_dense import check_small_dense, train_small_dense
from .train import random_masks, start_problem

_ROW = (
    "density", "kept", "test_accuracy", "val_accuracy", "test_metric", "val_metric", "min_validation_loss", "seconds"
)  # fmt: skip
# Added to a run's seed for a control that must not draw the ticket's own weights or mask again.
OTHER_SEED = 1_000_003


def controls(
    run: str | os.PathLike[str],
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    *,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    elsewhere: Any = None,
    head: str = "ticket",
    survivors: bool = False,
    leaves: Leaves | None = None,
    runs: str | os.PathLike[str] = "runs",
    progress: bool | Progress = True,
) -> list[ControlRow]:
    """Train or evaluate the controls of a finished run. Those that are there already are not made again.

        controls("runs/imp-...", kinds=["reinit", "shuffle"], levels=[3, 7])
        controls("runs/imp-...", elsewhere="mnist1d-fresh")     # the mask on other data
        controls("runs/edge-popup-...", survivors=True)         # train what edge-popup has kept

    The controls of a ticket that is trained are the same mask with fresh weights (`reinit`); the mask shuffled within
    each tensor (`shuffle`); a random mask that keeps as many weights in total, either the same fraction of each tensor
    (`random`) or fractions by ERK (`random-erk`); and a dense network with as many weights, all of whose hidden layers
    are narrower by one factor (`small-dense`); and the same mask over signs or magnitudes only (see
    `signed_starts.make_signed`). On other data the ticket itself and the dense network are trained too. A
    ticket of frozen weights is not trained but evaluated: with weights drawn anew, or with another mask.

    Args:
        run: the folder of the run, or its name under `runs`.
        kinds: which controls; if not given `reinit`, `shuffle` and `random`, and for whole filters or blocks `reinit`.
        levels: the levels of a search with levels that are controlled; if not given the last.
        model: the callable, where the run was started with one that is not remembered (see `resume`), or its name.
        data: the arrays, where the run was started with some, or the name of the function that reads them.
        loss: the callable, where the run was started with one that is not remembered, or its name.
        metric: the same of the metric.
        elsewhere: other data to train on.
        head: `fresh`: train on them with an output layer that is drawn anew, as for another number of classes.
        survivors: train the weights that a search over frozen weights has kept.
        leaves: which names may be imported; where it is None, those that are given here and those of the run's mark.
        runs: the folder of all runs.
        progress: show a progress line on stderr, or the one that is shown already.

    Returns:
        The rows of the run's `controls.json`: `control trained data level density kept seed test_metric ...`.

    Raises:
        RequestError: every problem of the request at once; nothing has been done.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    folder = find_run(os.fspath(run), runs)
    opened, asked, given = check_controls(
        folder, kinds, levels, model=model, data=data, loss=loss, metric=metric, elsewhere=elsewhere, head=head,
        survivors=survivors, leaves=leaves,
    )  # fmt: skip
    path = folder / CONTROLS
    where = opened.config.data if elsewhere is None else _name_of(elsewhere, opened)
    made: Setup | None = None
    rows = _read(path)
    todo = [
        (str(key["control"]), level, key)
        for level in asked.levels
        for key in _lacking(rows, asked.kinds, level, asked.trained, where)
    ]
    there = given if elsewhere is None else dataclasses.replace(given, data=elsewhere)
    if any(kind == "small-dense" for kind, _, _ in todo):
        check_small_dense(opened.config, given.model)
    with progress if isinstance(progress, Progress) else Progress(progress) as shows:
        if todo and shows.shown:
            shows.label("controls: timing the first steps")
            made = _announce(opened, len(todo), asked, there, head, shows)
        for kind, level, key in todo:
            if asked.trained:
                row = _train(opened, kind, level, there, "" if elsewhere is None else where, shows, head)
            else:
                shows.label(f"evaluating {kind}")
                made = made or _set_up(opened, given)
                row = _evaluate(opened, kind, made)
            with filelock.FileLock(folder / ".controls.lock"):
                # Read again: another process may make other controls of this run.
                rows = [*_read(path), cast(ControlRow, {**key, "seed": opened.config.seed, **row})]
                write_record(folder, CONTROLS, {"rows": rows})
    return rows


def check_controls(
    folder: Path,
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    *,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    elsewhere: Any = None,
    head: str = "ticket",
    survivors: bool = False,
    leaves: Leaves | None = None,
) -> tuple[Run, Asked, Given]:
    """The run of a request for controls, what is asked for, and what stands in for names; see `controls`.

    Raises:
        RequestError: every problem of the request at once; nothing has been done.
    """
    request = request_of(read_config(folder), model, data, loss, metric)
    opened = Run(folder, request.config.allowing(leave_here(elsewhere) if leaves is None else leaves))
    asked = _check(opened, kinds, levels, elsewhere, survivors, head)
    check_names(request, opened, elsewhere)
    check_data(opened, data)
    return opened, asked, Given(model, data, request.functions)


def lacks_controls(folder: Path, kinds: Sequence[str], level: int | None, trained: bool, data: str) -> bool:
    """Whether any of these controls of a finished run is not there yet; `data` is the name of those it is made on."""
    return bool(_lacking(_read(folder / CONTROLS), kinds, level, trained, data))


def _lacking(
    rows: Sequence[Mapping[str, Any]], kinds: Iterable[str], level: int | None, trained: bool, data: str
) -> list[dict[str, Any]]:
    """What the rows of those controls would say of themselves that are not among the rows."""
    keys = [{"control": kind, "trained": trained, "data": data, "level": level} for kind in kinds]
    return [key for key in keys if not any(key.items() <= row.items() for row in rows)]


def _announce(run: Run, number: int, asked: Asked, given: Given, head: str, shows: Progress) -> Setup | None:
    """Say how long so many controls take. A setup that can be used on is returned."""
    began = time.perf_counter()
    if asked.trained:
        # The training of the ticket itself takes as long as that of a control: only weights and masks are others.
        config, setup = _prepare(run, "ticket", asked.levels[0], given, head)
        loading = time.perf_counter() - began
        seconds = loading + make_plan(config, setup).seconds
    else:
        setup = _set_up(run, given)
        seconds = time_untrained(run.config, setup) * max(1, len(run.ticket.tasks))
    what = f"{number} control{'s' if number > 1 else ''} of {run.path}"
    shows.say(f"{what}, {'trained' if asked.trained else 'evaluated'}: about {in_words(number * seconds)}", "")
    return None if asked.trained else setup


@dataclasses.dataclass(frozen=True)
class Given:
    """What stands in for names of the run's configuration."""

    model: str | Callable[..., nn.Module] | None
    data: Any
    functions: Mapping[str, Callable[..., Any]]


def check_data(run: Run, data: Any) -> None:
    """Check that the data are those that the run was made with, where these are no data set of ours.

    Raises:
        RequestError: they are others.
    """
    known, config = run.summary.get("data_fingerprint"), run.config
    if data is None and config.data in config.leaves and config.leaves[config.data].content:
        return  # `load_data` looks at what a run remembers
    if known is None and (data is None or not config.data.startswith("arrays-")):
        return
    loaded = load_data(config.data if data is None else data, config)
    same = getattr(loaded, "fingerprint", None) == known if known is not None else loaded.name == config.data
    if not same:
        raise RequestError(f"the data are not those of the run {run.path}, {config.data}: its controls need the same")


def check_names(request: Request, opened: Run, elsewhere: Any) -> None:
    """Check that all data are to be had and all code may be imported, before the first control is made.

    Raises:
        RequestError: data that came as arrays, or code without leave.
    """
    samples = request.data if elsewhere is None else elsewhere
    if problems := name_problems(request.model, samples):
        raise RequestError(problems)
    if refused := opened.config.refused_code({"model": request.model, "data": samples, **request.functions}):
        raise RequestError(refused)


def _read(path: Path) -> list[ControlRow]:
    return list(read_record(path.parent, CONTROLS)["rows"]) if path.exists() else []


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which controls are asked for, and whether they are trained or evaluated."""

    kinds: list[str]
    levels: list[int | None]
    trained: bool


def _check(
    run: Run, kinds: Sequence[str] | None, levels: Sequence[int] | None, elsewhere: Any, survivors: bool, head: str
) -> Asked:
    if not run.finished:
        raise RequestError(f"the run {run.path} is not finished; `{command_line('resume', run.path)}` goes on")
    problems = Problems()
    traits = find_kind(run.config.method).traits
    trained = survivors or traits.trains_weights
    if traits.dense:
        problems.add(f"{run.path} is a dense run: it has no mask to control")
    if survivors and traits.trains_weights:
        problems.add(f"--survivors goes with methods that freeze the weights, not with {run.config.method}")
    if elsewhere is not None and not trained:
        problems.add(
            "other data goes with tickets that are trained: the ticket of a method that freezes the weights is trained "
            "with --survivors only"
        )
    if head != "ticket" and (elsewhere is None or head != "fresh"):
        problems.add(f"--head {head}: expected fresh, on other data, or ticket")
    known = ELSEWHERE if elsewhere is not None else SURVIVORS if survivors else TRAINED if trained else EVALUATED
    whole_units, no_dense = shape_of(run.config) != "weight", not run.levels
    default = [
        kind
        for kind in known
        if (elsewhere is not None or survivors or kind in DEFAULT)
        and not (whole_units and kind in MOVING)
        and not (no_dense and kind == "dense")
    ]
    if kinds and "dense" in kinds and "dense" in known and no_dense:
        problems.add(f"{run.path} has no dense network to train on other data: its search has no level 0")
    chosen = list(dict.fromkeys(kinds)) if kinds else default
    if survivors and (tasks := run.ticket.tasks):
        problems.add(
            f"--survivors trains one ticket, and that of {run.path} is of {len(tasks)} tasks: "
            f"`{command_line('train', run.path, '--task', tasks[0])}` trains one of them"
        )
    impossible = control_problems(run.config, chosen)
    problems.add(*(f"{run.path} {problem}" for problem in impossible))
    if impossible and (others := [kind for kind in chosen if not control_problems(run.config, [kind])]):
        problems.add(f"--controls {','.join(others)} makes the others")
    problems.add(*(unknown("control", kind, known) for kind in chosen if kind not in known))
    there = [int(row["level"]) for row in run.levels]
    if levels and not there:
        problems.add(f"levels {', '.join(map(str, levels))}: a run of {run.config.method} has no levels")
    elif levels:
        wrong = [level for level in levels if level not in there[1:]]
        problems.add(
            *(f"level {level}: after the dense level 0 the run has levels 1 to {there[-1]}" for level in wrong)
        )
    problems.raise_if_any()
    asked = Asked(chosen, list(dict.fromkeys(levels)) if levels else [there[-1] if there else None], trained)
    # An output layer that is drawn anew is known only with the network.
    if head == "ticket":
        problems.add(*_start_problems(run, asked))
    problems.raise_if_any()
    return asked


def _start_problems(run: Run, asked: Asked) -> list[str]:
    """Why controls cannot be made of the weights that the run's tickets have stored, each problem once."""
    found = []
    for level in asked.levels:
        ticket = supermask.load(_ticket_of(run, level))
        parts = [ticket.task(name) for name in ticket.tasks] or [ticket]
        for kind in asked.kinds:
            if not asked.trained:
                found += [untrained_problem(part, kind) for part in parts]
            elif kind not in ("ticket", "dense", "small-dense") and "start" in ticket.states:
                place = _whole_of(run, kind)
                found.append(start_problem(ticket, kind, None if place is None else supermask.load(place)))
    return [f"{run.path}: {problem}" for problem in dict.fromkeys(filter(None, found))]


def _train(
    run: Run, kind: str, level: int | None, given: Given, elsewhere: str, shows: Progress, head: str
) -> dict[str, Any]:
    """Train a control, in a folder of its own inside the run's folder."""
    place = kind if level is None else f"{kind}-level-{level:02d}"
    if elsewhere:
        place += f"-{re.sub(r'[^A-Za-z0-9._-]+', '-', elsewhere)}"
    folder = run.path / CONTROL_RUNS / place
    if kind == "small-dense":
        kept = supermask.load(_ticket_of(run, level)).masks.kept
        setup = _set_up(run, given)
        row = train_small_dense(run, kept, folder.parent, place, setup, given.model, given.data, shows, given.functions)
        return {**{key: row[key] for key in _ROW if key in row}, "path": f"{CONTROL_RUNS}/{place}"}
    if is_finished(folder):
        return _row(Run(folder, read_config(folder)), run)
    config, setup = _prepare(run, kind, level, given, head)
    return _row(carry_out(Run(choose_folder(config, folder.parent, place), config, setup, shows)), run)


def _prepare(run: Run, kind: str, level: int | None, given: Given, head: str) -> tuple[Config, Setup]:
    """What a control that is trained works on."""
    config, ticket = run.config, _ticket_of(run, level)
    if kind == "dense":
        ticket = run.path / "levels" / "00" / TICKET
    flags: dict[str, Any] = {"seed": config.seed, "threads": config.threads, "device": config.device}
    flags |= {
        "head": head,
        "order_seed": config.seeds["order"],
        "control": "none" if kind in ("ticket", "dense") else kind,
    }
    flags |= {key: getattr(config, key) for key in ("data_dir", "compile", "loss", "metric", "dtype", "workers", "log")}
    if kind in ("reinit", *SIGNS):
        flags["init_seed"] = config.seeds["init"] + OTHER_SEED
    elif kind not in ("ticket", "dense"):
        flags["mask_seed"] = config.seeds["mask"] + OTHER_SEED
    if flags["control"] != "none":
        whole = _whole_of(run, kind)
        flags["whole"] = None if whole is None else str(whole.resolve())
    flags, functions = describe_functions({**flags, **given.functions})
    asked = {key: value for key, value in flags.items() if value is not None}
    request = check_training(ticket, given.model, given.data, asked, leaves=config.leaves)
    return prepare(dataclasses.replace(request, functions=functions))


def _whole_of(run: Run, kind: str) -> Path | None:
    """The file of the dense network that a control takes its weights from; None where the ticket's own draws do.

    The ticket does not store the weights under the dropped ones. They are those of the dense network at the step that
    the ticket was rewound to; of fresh weights, how those of the dense network were drawn is enough.
    """
    dense, point = run.path / "levels" / "00" / TICKET, run.path / REWIND_POINT
    if point.exists():
        return point
    return dense if kind in ("reinit", *SIGNS) and dense.exists() else None


def _ticket_of(run: Run, level: int | None) -> Path:
    return run.path / TICKET if level is None else run.path / "levels" / f"{level:02d}" / TICKET


def _row(control: Run, run: Run) -> dict[str, Any]:
    summary = cast(dict[str, Any], control.summary)
    # On other data the metric may be another one, where it follows from the data.
    other = {} if control.metric == run.metric else {"metric": control.metric.to_dict()}
    found = {key: summary[key] for key in _ROW if key in summary}
    return {**other, **found, "path": f"{CONTROL_RUNS}/{control.path.name}"}


def _set_up(run: Run, given: Given) -> Setup:
    request = request_of(run.config, given.model, given.data)
    return prepare(dataclasses.replace(request, functions=given.functions))[1]


def _evaluate(run: Run, kind: str, made: Setup) -> dict[str, Any]:
    """Evaluate a ticket of frozen weights with weights drawn anew, or with another mask, without training.

    Of several tasks the row has the means over them.
    """
    ticket = run.ticket
    tickets = [ticket.task(name) for name in ticket.tasks] or [ticket]
    row = mean_of_tasks([_evaluate_one(each, run.config, kind, made) for each in tickets])
    events = Recipients(run.path / CONTROL_RUNS / kind, run.warn, run.metric)
    events.cut_back({})
    events.begin(run.config)
    events.write_end(run.summary["cost"]["steps"], row)
    events.close()
    events.end()
    return row


def _evaluate_one(ticket: Ticket, config: Config, kind: str, made: Setup) -> dict[str, Any]:
    with exact_arithmetic(config), made.using(through_task(ticket.meta, made.data)):
        control = make_untrained(ticket, kind, config.seeds["mask"] + OTHER_SEED, made, config)
        network = control.apply_to(made.make_model(config), "final").to(config.device)
        objective = find_objective(made, config, network)
        test, validation = (evaluate(network, made.data, part, objective) for part in ("test", "validation"))
    return {
        "density": control.density,
        "kept": control.masks.kept,
        **named_values(objective.metric, test=test.value, val=validation.value),
    }


def make_untrained(ticket: Ticket, kind: str, seed: int, made: Setup, config: Config) -> Ticket:
    """A ticket of frozen weights that differs in one thing: fresh weights, a shuffled mask, or a random mask.

    Raises:
        RequestError: the ticket's weights were not drawn from a seed.
    """
    final, masks = ticket.states["final"], ticket.masks
    if problem := untrained_problem(ticket, kind):
        raise RequestError(problem)
    draws = dict(final.drawn)
    if kind == "reinit":
        draws = {
            name: draw if draw.init in ("zeros", "ones") else dataclasses.replace(draw, seed=draw.seed + OTHER_SEED)
            for name, draw in draws.items()
        }
    elif kind == "shuffle":
        masks = masks.shuffled(seed)
    else:
        masks = random_masks(masks, False, made.targets(config, made.make_model(config)), seed)
    tensors = {name: draw.tensor(name) for name, draw in draws.items()} | dict(final.stored)
    return supermask.Ticket(masks, {"final": supermask.make_state(tensors, masks, draws)}, dict(ticket.meta))


def untrained_problem(ticket: Ticket, kind: str) -> str:
    """Why a control of frozen weights cannot be made, in one sentence; "" if it can."""
    lost = [name for name in ticket.masks if name not in ticket.states["final"].drawn]
    told = f"the control {kind} needs weights that a seed draws; the ticket stores those of {', '.join(lost)}"
    return told if lost else ""


def _name_of(data: Any, run: Run) -> str:
    return data if isinstance(data, str) else load_data(data, run.config).name
