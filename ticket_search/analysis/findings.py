"""What a comparison finds: groups of runs, their levels and controls, and the answers about each group.

Every class is frozen. Values are those of the group's metric on the test split, accuracy in percent where it is that
one; differences are in its unit (percentage points) and positive where the first of the two is the better one. `std` is
the sample standard deviation over the seeds, and `interval` is the 95 % interval of the mean by Student's t; `std` and
`interval` are None for a single seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from supermask.masks import notebook
from supermask.masks.texts import harmless

from ..contract.errors import RequestError
from ..contract.keyed import Keyed
from ..contract.metric import ACCURACY, Metric
from .intervals import Difference

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Answer(Keyed):
    """The answer to one question, and why.

    `answer` is `unknown` where the runs that would tell are missing, and `undecided` where they are too few: then
    `more_seeds` is the number of seeds to add, None where more would be needed than anybody trains. A level below the
    first one that does not match is not `tested`, unless it is plainly worse; its `more_seeds` are those of that first
    level. `density` is that of the tickets that the question is asked of, None where they have none in common.
    """

    question: str
    answer: Literal["yes", "no", "undecided", "unknown"]
    because: str
    more_seeds: int | None = None
    tested: bool = True
    density: float | None = None

    @property
    def asked(self) -> str:
        """The question with the density of the tickets that it is asked of: `at 10 %: does it match ...?`."""
        return self.question if self.density is None else f"at {100 * self.density:.3g} %: {self.question}"

    def in_words(self) -> str:
        """The answer as a cell of a table: `yes`, `undecided (3 more seeds)`, `not tested`."""
        if not self.tested:
            return "not tested"
        more = self.more_seeds
        if self.answer == "undecided" and not more:
            return "undecided (too noisy)"
        return f"{self.answer} ({more} more seed{'' if more == 1 else 's'})" if more else self.answer


@dataclass(frozen=True, kw_only=True)
class Delay(Difference):
    """How many steps later than in the dense network the validation loss is at its minimum, paired by seed.

    `dense` is the mean step of the minimum in the dense network. `at_end` counts the seeds in which the minimum is the
    last measurement, so that a longer training might have found a later one.
    """

    dense: float
    at_end: int


@dataclass(frozen=True, kw_only=True)
class Level(Keyed):
    """The networks of a group at one density.

    `level` counts the rounds of pruning, 0 is the dense network; it is None for a method without levels. `seeds`,
    `values` (of the metric on the test split) and `early_steps` (steps of minimum validation loss) have one entry for
    each run, and `early_step` and `early_mean` are the mean step and the mean value at it. `dense_trainings` is the
    cost of the search up to this level, in trainings of the dense network. `difference` is ticket minus dense, `later`
    says when the minimum of the validation loss comes, and `matching` whether the level matches the dense network; all
    three are None where there is no dense network to compare with. `retrained` says that training went on from
    trained weights. `guessing` counts the seeds in which the dense network that it is compared with is no better than
    guessing: with those nothing can be compared.
    """

    level: int | None
    density: float
    kept: int | None
    n: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    early_step: float | None
    early_steps: tuple[int, ...] | None
    early_mean: float | None
    dense_trainings: float | None
    difference: Difference | None
    retrained: bool = False
    guessing: int = 0
    later: Delay | None = None
    matching: Answer | None = None


@dataclass(frozen=True, kw_only=True)
class Control(Keyed):
    """The controls of one kind, at one level, on one data set; `trained` is False where they were only evaluated.

    `difference` is ticket minus control, and `p_holm` the p-value of its being zero, corrected for the number of
    controls of the same level by Holm's method. The other fields are those of a `Level`.
    """

    control: str
    trained: bool
    data: str
    level: int | None
    density: float
    kept: int | None
    n: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    early_step: float | None
    early_steps: tuple[int, ...] | None
    early_mean: float | None
    difference: Difference | None
    p_holm: float | None = None


# From what the tickets of a group are trained.
Start = Literal["initialization", "later", "trained", "given", "frozen", "moving", "unknown"]
# One row of a table, one point of a curve.
Row = Level | Control


@dataclass(frozen=True, kw_only=True)
class Verdict(Keyed):
    """Whether a group is a ticket: one answer to each question.

    `matching` is about the sparsest level, None where no level is sparse, and `sparsest_matching` is the lowest density
    that matches. `as_early` asks whether the validation loss is at its minimum as early as in the dense network, `init`
    whether the ticket's own weights matter, `positions` whether it matters which weights are kept, and `trivial`
    whether a random mask matches too; that is None where the masks are random themselves. The controls are those at the
    density `controls_at`. The questions may be about different levels, so that each answer has the density of its own.
    """

    matching: Answer | None
    sparsest_matching: float | None
    controls_at: float
    as_early: Answer
    init: Answer
    positions: Answer
    trivial: Answer | None

    @property
    def answers(self) -> dict[str, Answer]:
        """The answers by the names of their fields, in order."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Answer)}


@dataclass(frozen=True, kw_only=True)
class Group(Keyed):
    """Runs that differ in their seeds only.

    `density` to `dense_trainings` are those of the sparsest level. `metric` is what all its numbers are of, `delta` the
    margin in its unit, None where none was given, and `val_mean` the mean of the metric on validation,
    `seconds` the mean time of a search, and `baseline` says which dense network the group is compared with. `verdict`
    is None for a dense network. `start` says from what its tickets are trained: their `initialization`, the weights of
    a `later` step, `trained` weights, or those of a run or a file (`given`); `frozen` ones are never trained, and masks
    may be `moving` while the weights are. `recipe` has the flags of its runs. `label` names the group, `curve` is the
    label without the density, and `differs` holds the flags that tell the group from the others of its method. `given`
    has what the runs were told that is no part of their recipe: where the data are.
    """

    label: str
    method: str
    model: str
    data: str
    precision: str
    density: float
    kept: int | None
    n: int
    seeds: tuple[int, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    dense_trainings: float | None
    val_mean: float | None
    seconds: float | None
    runs: tuple[str, ...]
    baseline: str | None
    levels: tuple[Level, ...]
    controls: tuple[Control, ...]
    verdict: Verdict | None
    metric: Metric = ACCURACY
    delta: float | None = None
    differs: Mapping[str, Any] = field(default_factory=dict)
    start: Start = "unknown"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    curve: str = ""
    id: str = ""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The levels, then the controls."""
        return (*self.levels, *self.controls)


@dataclass(frozen=True)
class Comparison(Keyed):
    """The groups that were compared with the margin `delta`, in the unit of the metric (of accuracy percentage points).

    It is None where no margin was given and no group is measured by accuracy, which has one.

    `left_out` has a sentence for each run that was not used, `notes` one for whatever else a reader should know.
    """

    delta: float | None
    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [f"  {', '.join(cell for cell in _told(group) if cell)}" for group in self.groups]
        number = f"{len(self.groups)} group{'' if len(self.groups) == 1 else 's'}"
        return "\n".join([f"Comparison({number})", *map(harmless, lines)])

    def _repr_html_(self) -> str:
        columns = ("method", "density", "test", "95 % interval", "seeds", "minus dense", "matches the dense network")
        below = "".join(notebook.page("", {"left out": line}) for line in self.left_out)
        below += "".join(notebook.page("", {"note": line}) for line in self.notes)
        return f"<div><div><b>Comparison</b></div>{notebook.table(columns, map(_cells, self.groups))}{below}</div>"

    def frame(self) -> pandas.DataFrame:
        """A pandas DataFrame with a row for each level and each control of each group (see `to_rows`).

        Raises:
            RequestError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise RequestError("a data frame is made by a package: pip install pandas") from None
        return pandas.DataFrame(to_rows(self))


def _cells(group: Group) -> tuple[str, ...]:
    """What a notebook shows of a group: its sparsest level."""
    metric, last = group.metric, group.levels[-1]
    ends = "" if group.interval is None else f"{metric.show(group.interval[0])} to {metric.show(group.interval[1])}"
    gap = "" if last.difference is None else f"{last.difference.mean:+{metric.form}} {metric.gap}"
    matches = "" if last.matching is None else last.matching.in_words()
    return group.label, f"{group.density:.4g}", metric.with_unit(group.mean), ends, f"{group.n}", gap, matches


def _told(group: Group) -> tuple[str, ...]:
    """The parts of the line that says the same in a terminal."""
    label, density, mean, ends, seeds, gap, matches = _cells(group)
    return (
        f"{label}: density {density}",
        f"test {group.metric.name} {mean}{f' ({ends})' if ends else ''}",
        f"{seeds} seed{'' if group.n == 1 else 's'}",
        f"{gap} to the dense network" if gap else "",
        f"matches it: {matches}" if matches else "",
    )


def only_metric(comparison: Comparison) -> Metric:
    """The metric of all groups, for what shows one.

    Raises:
        RequestError: there are several.
    """
    found = list(dict.fromkeys(group.metric for group in comparison.groups))
    if len(found) > 1:
        named = ", ".join(metric.in_words for metric in found)
        raise RequestError(f"the runs are measured by {named}: a figure shows one metric, so compare them one by one")
    return found[0] if found else ACCURACY


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain dictionaries, tuples and numbers: what `ticket compare --json` prints."""
    found = asdict(comparison)
    for group in found["groups"]:
        if group["verdict"] is None:
            for row in group["levels"]:
                del row["matching"]  # a dense network is not asked whether it matches one
    return found


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A flat dictionary for each level and each control, with its group, its measurements and its comparison.

    Values are those of the group's metric, accuracies in percent; differences are in its unit (percentage points),
    positive where the ticket is better. `low` and `high` are the ends of the 95 % interval
    of the mean. A level's `difference` is ticket minus dense, a control's is ticket minus control, both paired by seed;
    `difference_low` and `difference_high` are the ends of its 95 % interval.
    """
    return [flatten(group, row) for group in comparison.groups for row in group.rows]


def flatten(group: Group, row: Row) -> dict[str, Any]:
    """A level or a control of a group as a flat dictionary (see `to_rows`)."""
    control = row if isinstance(row, Control) else None
    level = None if isinstance(row, Control) else row
    low, high = row.interval or (None, None)
    gap_low, gap_high = (row.difference.interval if row.difference else None) or (None, None)
    return {
        "method": group.method,
        "label": group.label,
        "control": control and control.control,
        "trained": control and control.trained,
        "data": (control and control.data) or group.data,
        "model": group.model,
        "precision": group.precision,
        **{"metric": group.metric.name, "direction": group.metric.direction, "unit": group.metric.unit},
        "level": row.level,
        "density": row.density,
        "kept": row.kept,
        "n": row.n,
        "mean": row.mean,
        "std": row.std,
        "low": low,
        "high": high,
        "early_step": row.early_step,
        "dense_trainings": level and level.dense_trainings,
        "difference": row.difference and row.difference.mean,
        "difference_low": gap_low,
        "difference_high": gap_high,
        "p_holm": control and control.p_holm,
        "matching": _matching(level.matching if level else None),
    }


def _matching(answer: Answer | None) -> str | None:
    if answer is None:
        return None
    return answer.answer if answer.tested else "not tested"
