"""Is it the signs? A ticket beside networks that start from its signs or from its magnitudes only.

Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019; Frankle & Carbin, The Lottery Ticket
Hypothesis, 2018 (fresh weights); Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the
Mark?, 2021 (shuffled masks).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import supermask
from supermask import Ticket
from supermask.masks.texts import harmless

from ..analysis.dot_plot import Dot, plot_dots
from ..analysis.findings import Answer
from ..analysis.intervals import Difference, chance_of_none, confidence_interval, difference, holm
from ..analysis.verdict import answer_better, answer_not_worse, scale_of
from ..contract.errors import Problems, RequestError
from ..contract.flags import Config, differences, to_plain
from ..contract.keyed import Keyed
from ..contract.metric import Metric, known_value
from ..running.controls import check_controls, controls
from ..running.read_config import find_kind, read_config
from ..running.request import shape_of
from ..runs.folders import find_run
from ..runs.names import MOVING, SIGNS, TICKET
from ..runs.progress import Progress
from ..runs.run import Run
from .agreement import Agreement, Overlap, mask_overlap, sign_agreement

if TYPE_CHECKING:
    import pandas

    from ..runs.summary import ControlRow

# The controls that stand beside those of signs.
BESIDE = ("reinit", "shuffle")
_SEEDS = ("seed", "init_seed", "order_seed", "mask_seed")
# What may differ between runs of one group and changes no number that is compared: where and how they were made.
_IDLE = ("threads", "device", "data_dir", "compile", "workers", "name")
_INITIAL = "do its initial signs do what the ticket does?"
_TRAINED = "do its trained signs do what the ticket does?"
_MORE = "are initial signs worth more than initial magnitudes?"


@dataclass(frozen=True)
class Arm(Keyed):
    """One way to start under the ticket's mask: values of the metric on the test split, one for each run.

    `difference` is that to the ticket, paired by run and positive where this is better, and `p_holm` the chance of such
    a difference if there were none, corrected for the number of arms. Both are None for the ticket itself.
    """

    name: str
    values: tuple[float, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    difference: Difference | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Signs(Keyed):
    """What `signs` finds.

    `agreement` has a row for each layer, and one over all; `arms` the ticket first; `overlaps`, of two or more runs,
    what their masks have in common. `answers` are in the order of the questions.
    """

    runs: tuple[str, ...]
    level: int | None
    density: float
    metric: Metric
    delta: float | None
    agreement: tuple[Agreement, ...]
    arms: tuple[Arm, ...]
    overlaps: tuple[Overlap, ...]
    answers: tuple[Answer, ...]

    def __repr__(self) -> str:
        arms = ", ".join(f"{arm.name} {self.metric.with_unit(arm.mean)}" for arm in self.arms)
        number = f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        return harmless(f"Signs({number}, density {self.density:.4g}: {arms})")

    @property
    def headline(self) -> str:
        """The answer to "is it the signs?" in one sentence."""
        found = {answer.question: answer.answer for answer in self.answers}
        alone, more = found[_INITIAL], found[_MORE]
        if alone == "yes" and more == "yes":
            return "It is the signs: they alone do what the ticket does, and its magnitudes alone do not."
        if alone == "no" and more == "yes":
            return (
                "It is the signs in part: they alone are worse than the ticket, and better than its magnitudes alone."
            )
        if more == "no":
            return "It is not the signs: they alone do no better than the magnitudes alone."
        if alone == "yes":
            return "The signs alone do what the ticket does; whether its magnitudes alone do it too is not decided."
        if more == "yes":
            return "The signs alone do better than the magnitudes alone; whether as well as the ticket is not decided."
        return "Whether it is the signs is not decided."

    def frame(self) -> pandas.DataFrame:
        """A pandas DataFrame with a row for each arm and run.

        Raises:
            RequestError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise RequestError("a data frame is made by a package: pip install pandas") from None
        rows = [
            {"run": run, "arm": arm.name, f"test_{self.metric.name}": value}
            for arm in self.arms
            for run, value in zip(self.runs, arm.values, strict=True)
        ]
        return pandas.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `ticket signs --json` prints them."""
        return {"headline": self.headline, **asdict(self)}


def signs(
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    level: int | None = None,
    delta: float | None = None,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    runs: str | os.PathLike[str] = "runs",
    progress: bool | Progress = True,
) -> Signs:
    """Train what starts from signs or magnitudes only, and compare it with the ticket, over runs of several seeds.

        found = signs(["runs/imp-s0", "runs/imp-s1", ...])
        print(found.headline)
        found.frame()

    Under each ticket's mask are trained: the signs of its initial weights, and those of its trained weights, all of a
    layer of the standard deviation of its init; and its initial magnitudes with signs drawn anew. Beside them stand
    fresh weights (`reinit`) and the mask shuffled within each layer (`shuffle`). All are controls: they are trained in
    the folders of the runs and kept in their `controls.json`, and what is there already is not trained again.

    Args:
        run: a finished run, or several that differ in their seeds only: folders, or names under `runs`.
        level: of a search with levels; if not given the last.
        delta: by how much an arm may be worse and still do what the ticket does, in the unit of the metric; half a
            percentage point of accuracy where it is not given.
        model: the callable, where the runs were started with one that is not remembered (see `resume`), or its name.
        data: the arrays, where the runs were started with some, or the name of the function that reads them.
        loss: the callable, where the runs were started with one that is not remembered, or its name.
        metric: the same of the metric.
        runs: the folder of all runs.
        progress: show a progress line on stderr, or the one that is shown already.

    Raises:
        RequestError: every problem of the request at once, as runs that are not finished, of different flags, or whose
            weights are not trained; nothing has been done.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    names = [run] if isinstance(run, str | os.PathLike) else list(run)
    given = {"model": model, "data": data, "loss": loss, "metric": metric}
    folders = check_signs(names, level, runs=runs, **given)
    kinds = _kinds_for(read_config(folders[0]))
    levels = None if level is None else [level]
    rows: list[list[ControlRow]] = []
    with progress if isinstance(progress, Progress) else Progress(progress) as shows:
        for folder in folders:
            rows.append(controls(folder, kinds, levels, progress=shows, **given))
    return compare_signs(folders, rows, level, delta)


def check_signs(
    names: Sequence[str | os.PathLike[str]],
    level: int | None = None,
    *,
    runs: str | os.PathLike[str] = "runs",
    **given: Any,
) -> list[Path]:
    """The folders of the runs of a request; see `signs`.

    Raises:
        RequestError: every problem of the request at once; nothing has been done.
    """
    problems = Problems()
    if not names:
        raise RequestError("expected the folder or the name of a finished run, or several that differ in their seeds")
    found = [problems.attempt(partial(find_run, os.fspath(name), runs)) for name in names]
    folders = list(dict.fromkeys(folder for folder in found if folder is not None))
    configs: dict[Path, Config] = {}
    for folder in folders:
        config = problems.attempt(partial(read_config, folder))
        if config is None:
            continue
        configs[folder] = config
        traits = find_kind(config.method).traits
        if not traits.trains_weights and not traits.dense:
            problems.add(
                f"the weights of {folder} ({config.method}) are never trained, so that they keep their signs: expected "
                "a run whose weights are trained, as of imp"
            )
            continue
        kinds = _kinds_for(config)
        problems.attempt(partial(check_controls, folder, kinds, None if level is None else [level], **given))
    problems.add(*_group_problems(configs))
    problems.raise_if_any()
    return folders


def _kinds_for(config: Config) -> list[str]:
    """The controls of a run of this configuration: where whole filters are dropped none that moves single weights."""
    beside = [kind for kind in BESIDE if shape_of(config) == "weight" or kind not in MOVING]
    return [*SIGNS, *beside]


def _group_problems(configs: Mapping[Path, Config]) -> list[str]:
    """Why runs are not of one group: they differ in more than their seeds, or in no seed."""
    if len(configs) < 2:
        return []
    (first, config), *others = configs.items()

    def plain(one: Config) -> dict[str, Any]:
        return {key: value for key, value in to_plain(one).items() if key not in (*_SEEDS, *_IDLE)}

    found, seeds = [], {tuple(config.seeds.values()): first}
    for folder, other in others:
        key = tuple(other.seeds.values())
        if differs := differences(plain(config), plain(other)):
            found.append(f"{folder} differs from {first} in more than its seeds: {', '.join(differs)}")
        elif key in seeds:
            found.append(f"{folder} has the seeds of {seeds[key]}: expected runs of several seeds")
        seeds.setdefault(key, folder)
    return found


def compare_signs(
    folders: Sequence[Path], rows: Sequence[Sequence[ControlRow]], level: int | None = None, delta: float | None = None
) -> Signs:
    """What controls of signs that are there say. `rows` are the controls of each run."""
    opened = [Run(folder, read_config(folder)) for folder in folders]
    of_levels = bool(opened[0].levels)
    place = level if level is not None else int(opened[0].levels[-1]["level"]) if of_levels else None
    metric = opened[0].metric
    values: dict[str, dict[str, float]] = {"ticket": {}}
    for run, each in zip(opened, rows, strict=True):
        own = next(row for row in run.levels if row["level"] == place) if of_levels else run.summary
        values["ticket"][str(run.path)] = known_value(own, "test")
        for kind in _kinds_for(run.config):
            there = [row for row in each if row["control"] == kind and row.get("level") == place and row["trained"]]
            data = [row for row in there if row["data"] == run.config.data]
            values.setdefault(kind, {})[str(run.path)] = known_value(data[0], "test")
    merits = {name: {run: metric.merit(value) for run, value in each.items()} for name, each in values.items()}
    gaps = {name: difference(each, merits["ticket"]) for name, each in merits.items() if name != "ticket"}
    more = difference(merits["initial-signs"], merits["magnitudes"])
    corrected = _correct({**gaps, _MORE: more})
    tickets = [(_ticket_at(run, place), _ticket_at(run, 0) if of_levels else None) for run in opened]
    masks = [ticket.masks for ticket, _ in tickets]
    margin = metric.margin if delta is None else delta
    density = statistics.fmean(each.density for each in masks)
    return Signs(
        runs=tuple(map(str, folders)),
        level=place,
        density=density,
        metric=metric,
        delta=margin,
        agreement=sign_agreement(tickets),
        arms=tuple(_arm(name, each, gaps.get(name), corrected.get(name)) for name, each in values.items()),
        overlaps=mask_overlap(masks) if len(masks) > 1 else (),
        answers=tuple(replace(each, density=density) for each in _answer(gaps, more, corrected, margin, metric)),
    )


def plot_signs(found: Signs, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw the mean of each arm with its interval, and a dashed line at the ticket's.

    Raises:
        RequestError: another suffix than those of pictures, a folder that does not exist, or a file that exists.
    """
    families = {"ticket": "ticket", **dict.fromkeys(SIGNS, "signs or magnitudes only")}
    dots = [Dot(arm.name, arm.mean, arm.interval, families.get(arm.name, "controls")) for arm in found.arms]
    title = f"{len(found.runs)} runs, {100 * found.density:.3g} % of the weights, 95 % intervals"
    return plot_dots(
        {title: dots}, path, f"test {found.metric.axis}", ("the ticket", found.arms[0].mean), overwrite=overwrite
    )


def _ticket_at(run: Run, level: int | None) -> Ticket:
    return supermask.load(run.path / TICKET if level is None else run.path / "levels" / f"{level:02d}" / TICKET)


def _arm(name: str, values: Mapping[str, float], gap: Difference | None, chance: float | None) -> Arm:
    numbers = tuple(values.values())
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Arm(name, numbers, statistics.fmean(numbers), std, confidence_interval(numbers), gap, chance)


def _correct(gaps: Mapping[str, Difference | None]) -> dict[str, float]:
    chances = {name: chance_of_none(gap) for name, gap in gaps.items() if gap is not None}
    return holm({name: chance for name, chance in chances.items() if chance is not None})


def _answer(
    gaps: Mapping[str, Difference | None],
    more: Difference | None,
    chances: Mapping[str, float],
    margin: float | None,
    metric: Metric,
) -> tuple[Answer, ...]:
    scale = scale_of(metric)
    return (
        answer_not_worse(_INITIAL, gaps["initial-signs"], margin, scale),
        answer_not_worse(_TRAINED, gaps["trained-signs"], margin, scale),
        answer_better(_MORE, more, chances.get(_MORE), margin, scale=scale),
    )
