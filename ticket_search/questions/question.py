"""What is asked about a run's stability, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import supermask
from supermask import Ticket

from ..contract.errors import Problems, RequestError, command_line, unknown
from ..contract.flags import DURATION, Config, steps_of
from ..contract.leave import Leaves
from ..data.samples import whole_batches
from ..running.controls import Given, check_data, check_names
from ..running.read_config import find_kind, read_config
from ..running.request import control_problems, request_of, shape_of
from ..running.search import prepare
from ..runs.names import MOVING, TICKET
from ..runs.run import Run
from .barriers import ARMS, PairRow
from .children import Origin, same_weights

_MOST_STEPS, _MOST_PAIRS = 20, 100


def open_run(folder: Path, model: Any, data: Any, loss: Any, metric: Any, leaves: Leaves | None) -> tuple[Run, Given]:
    """The run of a folder, and what stands in for names of its configuration.

    Raises:
        RequestError: it needs code or data that were not given.
    """
    request = request_of(read_config(folder), model, data, loss, metric)
    config = request.config.allowing({} if leaves is None else leaves)
    opened = Run(folder, config)
    if opened.finished:
        check_names(request, opened, None)
    return opened, Given(model, data, request.functions)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked for: steps of the schedule, the level of the ticket, pairs at each step, and arms."""

    steps: list[int]
    level: int | None
    pairs: int
    arms: list[str]
    left_out: dict[str, str]

    def shows(self, row: PairRow) -> bool:
        """Whether a row is of this level, or of the dense network."""
        return row.level == level_of(row.arm, self.level)


def level_of(arm: str, level: int | None) -> int | None:
    """The level of an arm, where the ticket is of `level`: the dense network is of none."""
    return None if arm == "dense" else level


def check_run(run: Run) -> Problems:
    """Whether children of a run can be trained as its own networks were."""
    problems = Problems()
    config = run.config
    if not run.finished:
        problems.add(f"the run {run.path} is not finished; `{command_line('resume', run.path)}` goes on")
        return problems
    if not find_kind(config.method).traits.trains_weights:
        problems.add(
            f"{run.path} is a run of {config.method}, which never trains its weights: there are no two trainings of it "
            "whose networks could be connected"
        )
    return problems


def check_question(
    run: Run,
    given: Given,
    rewind: Sequence[str | int] | None,
    level: int | None,
    pairs: int,
    arms: Sequence[str] | None,
) -> tuple[Question, Origin]:
    """What is asked for, and what the trainings work on.

    Raises:
        RequestError: everything that is wrong with it.
    """
    problems = check_run(run)
    problems.add(*(f"{run.path} {problem}".replace("control", "child") for problem in control_problems(run.config)))
    if run.config.method in ("train", "beginning"):
        problems.add(
            f"{run.path} trains a ticket that another run has found, so that it has no dense training of its own: give "
            "the run that found it"
        )
    problems.raise_if_any()
    if not 1 <= pairs <= _MOST_PAIRS:
        problems.add(f"--pairs {pairs}: expected a number from 1 to {_MOST_PAIRS}")
    level = problems.attempt(lambda: _choose_level(run, level))
    left_out = _missing_arms(run)
    problems.add(*(unknown("arm", arm, ARMS) for arm in arms or () if arm not in ARMS))
    words = _durations(_own_steps(run.config) if rewind is None else rewind, problems)
    origin = problems.attempt(lambda: set_up(run, given, level))
    if origin is None:
        problems.raise_if_any()
    assert origin is not None, "what could not be set up is a problem"
    steps = _steps(origin, words, problems)
    left_out |= problems.attempt(lambda: _same_starts(origin, left_out)) or {}
    problems.add(*(f"--arms {arm}: {left_out[arm]}" for arm in dict.fromkeys(arms or ()) if arm in left_out))
    problems.raise_if_any()
    chosen = [arm for arm in ARMS if arm in (arms or ARMS) and arm not in left_out]
    return Question(steps, level, pairs, chosen, {} if arms else left_out), origin


def _durations(given: Sequence[str | int], problems: Problems) -> list[str]:
    """The steps that were given, as durations; what is wrong with them is added to the problems."""
    words = [f"{word}it" if isinstance(word, int) else word for word in given]
    if not 1 <= len(words) <= _MOST_STEPS:
        problems.add(f"--rewind: {len(words)} steps, expected from 1 to {_MOST_STEPS} at once")
    right = []
    for word in words:
        match = DURATION.fullmatch(word)
        if match is None or (match[2] is None and int(match[1]) != 0):
            problems.add(f"--rewind {word}: expected steps or epochs, as 0, 500it or 2ep")
        else:
            right.append(word)
    return right


def _steps(origin: Origin, words: Sequence[str], problems: Problems) -> list[int]:
    """The steps of durations, upwards; those that leave nothing to train are added to the problems."""
    config = origin.config
    per_epoch = whole_batches(origin.setup.data.train_size, config.batch_size)
    steps = {word: steps_of(word, per_epoch) for word in words}
    total = config.epochs * per_epoch
    problems.add(
        *(
            f"--rewind {word}: expected less than the {total:,} steps of a training, so that some are left"
            for word, step in steps.items()
            if step >= total
        )
    )
    return sorted(set(steps.values()))


def _own_steps(config: Config) -> list[str]:
    """Step 0 and the one that the run rewinds to."""
    return list(dict.fromkeys(("0", str(getattr(config, "rewind", "0")))))


def _is_dense(run: Run) -> bool:
    return find_kind(run.config.method).traits.dense or len(run.levels) == 1


def _choose_level(run: Run, level: int | None) -> int | None:
    """The level whose ticket is meant; None of a run without levels.

    Raises:
        RequestError: there is no such level, or its ticket is missing.
    """
    there = [int(row["level"]) for row in run.levels][1:]
    if level is not None and level not in there:
        if _is_dense(run):
            told = "it is a dense run, whose network is an arm by itself"
        else:
            told = f"after the dense level 0 it has levels 1 to {there[-1]}" if there else "it has no levels"
        raise RequestError(f"--level {level}: {told}")
    chosen = level if level is not None or not there else there[-1]
    if not (path := _ticket_path(run, chosen)).is_file():
        raise RequestError(
            f"{path} is missing, whose mask the children of the ticket have; the same search makes it again, or "
            "--level names another level"
        )
    return chosen


def _ticket_path(run: Run, level: int | None) -> Path:
    return run.path / TICKET if level is None else run.path / "levels" / f"{level:02d}" / TICKET


def _missing_arms(run: Run) -> dict[str, str]:
    """The arms that a run cannot have, and why."""
    if _is_dense(run):
        return dict.fromkeys(ARMS[1:], f"{run.path} is a dense run, which has no mask")
    found = {}
    if run.config.weights:
        found["reinit"] = "the weights come from a checkpoint, so that fresh ones would differ in more than their seed"
    if (shape := shape_of(run.config)) != "weight":
        assert "shuffle" in MOVING, "it moves single weights"
        found["shuffle"] = f"the run keeps units of {shape}, and a shuffle would move single weights"
    return found


def _same_starts(origin: Origin, left_out: Mapping[str, str]) -> dict[str, str]:
    """Check that W_0 is the run's own, and say why there are no fresh weights where there are none.

    Raises:
        RequestError: the network is built with other weights than the run began with.
    """
    run, start = origin.run, origin.start(fresh=False)
    dense = run.load_level(0) if run.levels else run.ticket if _is_dense(run) else None
    if dense is not None and run.config.dtype == "fp32":
        known = dense.state_dict("start")
        if any(name not in start or not known[name].equal(start[name].cpu()) for name in known):
            raise RequestError(
                f"the network of {run.path} is built with other weights now than when the run was started: its W_0 is "
                "gone"
            )
    if "reinit" in left_out:
        return {}
    same = same_weights(start, origin.start(fresh=True), origin.ticket.masks)
    return {"reinit": f"another seed draws the same weights of {', '.join(same)}"} if same else {}


def set_up(run: Run, given: Given, level: int | None) -> Origin:
    """What trainings and measurements work on.

    Raises:
        RequestError: data or a network that are not to be had, or that are not the run's.
    """
    check_data(run, given.data)
    request = request_of(run.config, given.model, given.data)
    config, setup = prepare(dataclasses.replace(request, functions=given.functions))
    return Origin(run, config, setup, given, supermask.load(_ticket_path(run, level)), level)


def mismatches(first: Run, second: Run, one: Ticket, other: Ticket) -> list[str]:
    """Why there is no line between the networks of two runs on which both could be measured."""
    found = []
    shapes = [{name: tuple(tensor.shape) for name, tensor in t.state_dict("final").items()} for t in (one, other)]
    names = [t.meta.get("architecture", {}).get("name") for t in (one, other)]
    if names[0] != names[1]:
        found.append(f"the networks differ: {first.path} has {names[0]}, {second.path} has {names[1]}")
    elif shapes[0] != shapes[1]:
        odd = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
        told = "; ".join(
            f"{name} {shapes[0].get(name, 'missing')} and {shapes[1].get(name, 'missing')}" for name in odd
        )
        found.append(f"the networks of {first.path} and {second.path} differ: {told}")
    for key in ("data", "loss", "metric", "activation"):
        there = [getattr(run.config, key) for run in (first, second)]
        if there[0] != there[1]:
            found.append(f"the runs differ in --{key}: {first.path} has {there[0]}, {second.path} has {there[1]}")
    return found
