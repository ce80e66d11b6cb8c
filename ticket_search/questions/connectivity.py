"""Is training stable to the noise of SGD, and from which step on? And the raw barrier between two finished runs.

Frankle, Dziugaite, Roy & Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor, nn

from supermask.tickets.file import write_atomically

from ..contract.errors import Problems
from ..contract.flags import steps_of
from ..contract.leave import Leaves
from ..contract.metric import Metric
from ..data.samples import whole_batches
from ..running.plan import make_plan
from ..runs.experiment import exact_arithmetic, own_random_numbers
from ..runs.folders import find_run
from ..runs.names import CONNECT, CONNECT_PICTURE
from ..runs.progress import Progress, in_words
from ..runs.records import read_record, write_record
from ..runs.run import Run
from ..training.trial import find_objective
from .barrier_plot import draw_barriers
from .barriers import Barrier, PairRow, Record, check_record, headline, summarize
from .children import (
    Origin,
    find_parent,
    name_of_arm,
    order_seeds,
    prepare_child,
    train_child,
    train_parents,
    write_start,
)
from .path import POINTS, find_barrier, find_norms, measure_path
from .question import Question, check_question, check_run, level_of, mismatches, open_run, set_up


@dataclasses.dataclass(frozen=True)
class Connectivity:
    """What is known of a run's stability at a level.

    headline: the finding in one sentence. barriers: one entry for each arm and step, over pairs. rows: one for each
    pair, of all levels that were asked about. left_out: arms that there are none of, and why. remark: which
    steps are not the one that the mask was found by rewinding to; empty if none. path: of `connect.json`.
    """

    headline: str
    barriers: list[Barrier]
    rows: list[PairRow]
    left_out: dict[str, str]
    remark: str
    metric: Metric
    path: Path
    picture: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {
            "headline": self.headline,
            "metric": self.metric.to_dict(),
            "barriers": [dataclasses.asdict(barrier) for barrier in self.barriers],
            "left_out": self.left_out,
            "remark": self.remark,
            "rows": [row.model_dump() for row in self.rows],
        }


@dataclasses.dataclass(frozen=True)
class RawBarrier:
    """The line between the final networks of two runs: see `PairRow` for its numbers."""

    barrier: float
    loss_barrier: float
    ends: tuple[float, float]
    errors: tuple[float, ...]
    losses: tuple[float, ...]
    metric: Metric
    barrier_statistics_interpolated: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {**dataclasses.asdict(self), "metric": self.metric.to_dict()}


def connect(
    run: str | os.PathLike[str],
    rewind: Sequence[str | int] | None = None,
    *,
    level: int | None = None,
    pairs: int = 1,
    arms: Sequence[str] | None = None,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    leaves: Leaves | None = None,
    runs: str | os.PathLike[str] = "runs",
    progress: bool | Progress = True,
) -> Connectivity:
    """Find out from which step on the training of a finished run is stable to the noise of SGD.

        found = connect("runs/imp-...", ["0", "100it", "400it"], pairs=3)
        found.headline, found.barriers[0].mean

    The network is trained to step k; from there two children are trained that differ in data order and augmentation
    only, and in what is dropped out. On the straight line between the two at their end the error is measured at 30
    points: instability is the highest of them less the mean of the two ends, and below 2 percentage points training is
    called stable. So it is done for the dense network and, with their masks over W_k, for the ticket of a level, for
    its mask over the W_k of fresh weights (`reinit`), and for its mask shuffled within each tensor (`shuffle`).

    As after every rewinding children begin with fresh moments of the optimizer. Running statistics of norms are
    estimated anew at each point. What is there already is not made again.

    Args:
        run: the folder of the run, or its name under `runs`.
        rewind: the steps k, as `0`, `100it`, `2ep` or numbers of steps; if not given 0, and the step that the run
            itself rewinds to.
        level: whose mask the ticket has; if not given that of the last level, or of the run's ticket.
        pairs: how many pairs of children at each step, which have the same two data orders in every arm.
        arms: which of `dense`, `ticket`, `reinit` and `shuffle`; if not given all that the run can have.
        model: as for `controls`, and so `data`, `loss`, `metric` and `leaves`.
        data: see `controls`.
        loss: see `controls`.
        metric: see `controls`.
        leaves: see `controls`.
        runs: the folder of all runs.
        progress: show a progress line on stderr, or the one that is shown already.

    Returns:
        What was found at this level, at all steps that have been tried; it lies in the run's `connect.json` and, as a
        picture, in `connect.png`.

    Raises:
        RequestError: every problem of the request at once; nothing has been done.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    folder = find_run(os.fspath(run), runs)
    opened, given = open_run(folder, model, data, loss, metric, leaves)
    with progress if isinstance(progress, Progress) else Progress(progress) as shows:
        asked, origin = check_question(opened, given, rewind, level, pairs, arms)
        if todo := _missing(asked, _read(opened)):
            _answer(origin, todo, shows)
        return _conclude(origin, asked)


def raw_barrier(
    run: str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    leaves: Leaves | None = None,
    runs: str | os.PathLike[str] = "runs",
    progress: bool | Progress = True,
) -> RawBarrier:
    """The barrier on the straight line between the final networks of two finished runs. It says nothing of stability.

        raw_barrier("runs/dense-s0", "runs/dense-s1").barrier

    Two runs share neither their first steps nor, as a rule, their initial weights. See `connect` for the arguments.

    Raises:
        RequestError: every problem of the request at once, as networks that differ, or data that do.
    """
    problems = Problems()
    folders = [problems.attempt(lambda name=name: find_run(os.fspath(name), runs)) for name in (run, other)]  # type: ignore[misc]
    problems.raise_if_any()
    opened = [open_run(folder, model, data, loss, metric, leaves) for folder in folders if folder is not None]
    for each, _ in opened:
        problems.attempt(lambda each=each: check_run(each).raise_if_any())  # type: ignore[misc]
    problems.raise_if_any()
    (first, given), (second, _) = opened
    tickets = [each.ticket for each, _ in opened]
    problems.add(*mismatches(first, second, *tickets))
    problems.raise_if_any()
    origin = set_up(first, given, None)
    with progress if isinstance(progress, Progress) else Progress(progress) as shows:
        shows.label("measuring between the two networks")
        found = _measure(origin, (tickets[0].state_dict("final"), tickets[1].state_dict("final")))
    inner = found.get("statistics_interpolated", {}).get("barrier")
    return RawBarrier(
        found["barrier"], found["loss_barrier"], tuple(found["ends"]), tuple(found["errors"]), tuple(found["losses"]),
        origin.setup.metric, inner,
    )  # fmt: skip


def _read(run: Run) -> list[PairRow]:
    path = run.path / CONNECT
    return check_record(read_record(run.path, CONNECT), path).rows if path.exists() else []


_Key = tuple[str, int, int]


def _missing(asked: Question, rows: Sequence[PairRow]) -> list[_Key]:
    """The arms, steps and pairs of which there is no row yet; what is asked first is pair 0 of everything."""
    there = {(row.arm, row.step, row.pair) for row in rows if asked.shows(row)}
    wanted = [(arm, step, pair) for pair in range(asked.pairs) for step in asked.steps for arm in asked.arms]
    return [key for key in wanted if key not in there]


def _answer(origin: Origin, todo: Sequence[_Key], shows: Progress) -> None:
    """Train the children that are missing, measure between each pair, and write a row for it."""
    if shows.shown:
        shows.label("connect: timing the first steps")
        _announce(origin, todo, shows)
    with shows.count("pairs of children", len(todo)) as one_more:
        for fresh in (False, True):
            steps = sorted({step for arm, step, _ in todo if (arm == "reinit") == fresh})
            train_parents(origin, fresh, steps, shows)
        for arm, step, pair in todo:
            row = _train_pair(origin, arm, step, pair, shows)
            with filelock.FileLock(origin.run.path / ".connect.lock"):
                # Read again: another process may ask about other steps of this run.
                rows = [*_read(origin.run), row]
                record = Record(metric=origin.setup.metric.to_dict(), points=POINTS, rows=rows)
                write_record(origin.run.path, CONNECT, record.model_dump())
            one_more()


def _announce(origin: Origin, todo: Sequence[_Key], shows: Progress) -> None:
    """Say how long the trainings and measurements take."""
    with tempfile.TemporaryDirectory() as folder:
        start = write_start(origin, "dense", 0, Path(folder))
        costs = make_plan(*prepare_child(origin, start, order_seeds(origin, 0)[0])).costs
    config, data = origin.config, origin.setup.data
    per_epoch = whole_batches(data.train_size, config.batch_size)
    total, every = config.epochs * per_epoch, steps_of(config.evaluate_every, per_epoch)
    trainings = sum(2 * costs.control(total - step, every) for _, step, _ in todo)
    for fresh in (False, True):
        missing = [s for arm, s, _ in todo if s and (arm == "reinit") == fresh and not find_parent(origin, fresh, s)]
        trainings += costs.control(max(missing), every) if missing else 0
    samples, validation = data.held_out_size("test"), data.held_out_size("validation")
    if find_norms(origin.setup.build()):
        samples = 2 * samples + data.train_size
    seconds = trainings + len(todo) * POINTS * costs.evaluation * samples / max(1, validation)
    what = f"{len(todo)} pair{'s' if len(todo) > 1 else ''} of children of {origin.run.path}"
    shows.say(f"{what}, {2 * len(todo)} trainings: about {in_words(seconds)}", "")


def _train_pair(origin: Origin, arm: str, step: int, pair: int, shows: Progress) -> PairRow:
    """The row of a pair: its children trained from one W_k, and what lies between them."""
    start = write_start(origin, arm, step, origin.folder / "starts")
    seeds = order_seeds(origin, pair)
    names = [f"{name_of_arm(origin, arm)}-at-{step:06d}-pair-{pair}{child}" for child in "ab"]
    children = [train_child(origin, start, name, seed, shows) for name, seed in zip(names, seeds, strict=True)]
    shows.label(f"measuring between {names[0]} and {names[1]}")
    found = _measure(origin, (children[0].state_dict("final"), children[1].state_dict("final")))
    where = {"arm": arm, "level": level_of(arm, origin.level), "density": children[0].density, "step": step}
    return PairRow.model_validate({**where, "pair": pair, "order_seeds": list(seeds), **found})


def _measure(origin: Origin, ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> dict[str, Any]:
    """The numbers of the line between two networks; where there are norms, with their statistics in both ways."""
    config, setup = origin.config, origin.setup
    with exact_arithmetic(config), own_random_numbers():
        model = setup.build().to(config.device)
        objective = find_objective(setup, config, model)
        ways = (True, False) if find_norms(model) else (True,)
        found = [
            measure_path(model, ends, setup.data, objective, config.batch_size, estimate=estimate) for estimate in ways
        ]
    numbers = [
        {
            "barrier": find_barrier(path.errors), "loss_barrier": find_barrier(path.losses),
            "errors": list(path.errors), "losses": list(path.losses),
        }
        for path in found
    ]  # fmt: skip
    inner = {"statistics_interpolated": numbers[1]} if len(numbers) > 1 else {}
    return {**numbers[0], "ends": [found[0].errors[0], found[0].errors[-1]], **inner}


def _conclude(origin: Origin, asked: Question) -> Connectivity:
    """Everything that is known at this level, and its picture."""
    run = origin.run
    rows = _read(run)
    shown = [row for row in rows if asked.shows(row)]
    barriers, metric = summarize(shown), origin.setup.metric
    picture = run.path / CONNECT_PICTURE
    write_atomically(picture, draw_barriers(barriers, shown, metric, run.path.name))
    told, remark = headline(barriers, metric), _remark_on(origin, barriers)
    return Connectivity(told, barriers, rows, asked.left_out, remark, metric, run.path / CONNECT, picture)


def _remark_on(origin: Origin, barriers: Sequence[Barrier]) -> str:
    """At which steps a mask lies over weights that its search did not rewind to."""
    own = int(origin.ticket.meta.get("rewound_to", 0))
    other = sorted({barrier.step for barrier in barriers if barrier.arm != "dense" and barrier.step != own})
    if not other or not hasattr(origin.config, "rewind"):
        return ""
    named = ", ".join(map(str, other))
    return (
        f"the mask was found by rewinding to step {own}; over the weights of step {named} it is no "
        f"ticket of that step, which a search with --rewind {other[0]}it finds"
    )
