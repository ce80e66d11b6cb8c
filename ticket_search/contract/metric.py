"""What a run is measured by: the metric's name, which direction is better, its unit, and how its values are written.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from .errors import RequestError, nearest_hint

Direction = Literal["higher", "lower"]
Function = TypeVar("Function", bound=Callable[..., Any])

# The losses that have a name, and `model`: the loss that a model gives with its outputs.
LOSSES = ("cross-entropy", "mse", "bce", "model")
# What is logged under tags of its own: a metric of such a name would write into them.
_TAKEN = frozenset(
    ("loss", "learning-rate", "density", "mask", "speed", "memory", "level", "weights", "scores", "first-layer")
)


@dataclass(frozen=True)
class Metric:
    """A metric: `direction` says which values are better, `unit` stands behind values and is empty where there is none.

    Raises:
        RequestError: a direction that is none, or a name that cannot stand in the tags of what is logged.
    """

    name: str
    direction: Direction = "higher"
    unit: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.direction not in get_args(Direction):
            hint = nearest_hint(str(self.direction), get_args(Direction))
            problems.append(
                f"the metric {self.name} has the direction {self.direction!r}, expected higher or lower{hint}"
            )
        if self.name in _TAKEN or not re.fullmatch(r"[A-Za-z0-9._@-]+", self.name):
            problems.append(
                f"the metric is named {self.name!r}, expected letters, digits and hyphens, and none of "
                f"{', '.join(sorted(_TAKEN))}, under which other numbers are logged"
            )
        if problems:
            raise RequestError(problems)

    @property
    def is_accuracy(self) -> bool:
        """Whether this is accuracy in percent, as all runs of version 0.1 have it."""
        return self == ACCURACY

    @property
    def margin(self) -> float | None:
        """By how much a ticket may be worse and still match, where no margin is given: of accuracy only."""
        return 0.5 if self.is_accuracy else None

    @property
    def column(self) -> str:
        """What stands over a column of values, behind the name of the split: `%` for accuracy, `mae (mm)`."""
        return "%" if self.is_accuracy else self.axis

    @property
    def axis(self) -> str:
        """The name with the unit: `accuracy (%)`, `mae (mm)`, `r2`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def in_words(self) -> str:
        """The name with the unit and, where that is not what one expects, the direction, for a sentence."""
        named = f"{self.name} in percent" if self.unit == "%" else self.axis
        return f"{named}, lower is better" if self.direction == "lower" else named

    @property
    def gap(self) -> str:
        """The unit of differences: percentage points of what is in percent, else the metric's own, or its name."""
        return "pp" if self.unit == "%" else self.unit or self.name

    @property
    def gap_in_words(self) -> str:
        """The unit of differences in a sentence, as `a ticket may be 0.5 percentage points worse`."""
        return "percentage points" if self.unit == "%" else f"{self.unit} of {self.name}" if self.unit else self.name

    @property
    def form(self) -> str:
        """How a value is written: two decimals of percent, else four digits that count."""
        return ".2f" if self.unit == "%" else ".4g"

    def merit(self, value: float) -> float:
        """The value itself, or its negative where lower is better: of two merits the higher is the better."""
        return value if self.direction == "higher" else -value

    def show(self, value: float | None) -> str:
        """A value as a cell of a table, without its unit; nothing for None."""
        return "" if value is None else f"{value:{self.form}}"

    def with_unit(self, value: float) -> str:
        """A value with its unit: `97.31 %`, `0.812`, `3.2 mm`."""
        return f"{self.show(value)} {self.unit}".rstrip()

    def to_dict(self) -> dict[str, str]:
        """What `summary.json` says of it."""
        return {"name": self.name, "direction": self.direction, "unit": self.unit}


ACCURACY = Metric("accuracy", "higher", "%")
# The metrics that have a name.
METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY,
        Metric("r2"),
        Metric("perplexity", "lower"),
        Metric("mse", "lower"),
        Metric("mae", "lower"),
    )
}


def describe_metric(direction: Direction = "higher", unit: str = "", name: str = "") -> Callable[[Function], Function]:
    """Say of a function of one's own what its values are.

        @describe_metric(direction="lower", unit="mm")
        def distance(outputs, targets):         # one number for each sample; their mean is reported
            return (outputs - targets).norm(dim=1)

    The attributes `direction`, `unit` and `name` of the function say the same. A function without them is called by its
    own name, and of its values higher ones are better.

    Raises:
        RequestError: a direction that is none, or a name that cannot stand in the tags of what is logged.
    """

    def describe(function: Function) -> Function:
        for key, value in (("direction", direction), ("unit", unit), ("name", name)):
            if value:
                setattr(function, key, value)
        metric_of_function(function)
        return function

    return describe


def metric_of_function(function: Callable[..., Any]) -> Metric:
    """What a function of one's own measures, by its attributes `name`, `direction` and `unit`.

    Raises:
        RequestError: an attribute that cannot be.
    """
    own = getattr(function, "__name__", type(function).__name__)
    plain = re.sub(r"[^A-Za-z0-9._@-]+", "-", own).strip("-")
    name = getattr(function, "name", None)
    return Metric(
        name if isinstance(name, str) and name else plain,
        getattr(function, "direction", "higher"),
        str(getattr(function, "unit", "")),
    )


def is_guessing(accuracy: float, classes: int) -> bool:
    """Whether an accuracy in percent is no better than that of guessing among so many classes, but for a little."""
    guessed = 100 / classes
    return accuracy < min(1.5 * guessed, guessed + 0.05 * (100 - guessed))


def metric_of(summary: Mapping[str, Any]) -> Metric:
    """The metric of a finished run, from its summary; one without a metric is of version 0.1 and has accuracy."""
    said = summary.get("metric")
    return Metric(**said) if isinstance(said, dict) else ACCURACY


def value_of(row: Mapping[str, Any], split: Literal["test", "val"]) -> float | None:
    """The value of a row of a summary, of a level or of controls: in percent under `accuracy` where it is of 0.1."""
    value = row.get(f"{split}_metric", row.get(f"{split}_accuracy"))
    return None if value is None else float(value)


def known_value(row: Mapping[str, Any], split: Literal["test", "val"]) -> float:
    """The value of a row that has one.

    Raises:
        KeyError: it has none.
    """
    value = value_of(row, split)
    if value is None:
        raise KeyError(f"{split}_metric")
    return value


def named_values(metric: Metric, **values: float) -> dict[str, float]:
    """Values for a row: `named_values(metric, test=97.3)` has `test_metric` and, of accuracy, `test_accuracy` too."""
    accuracies = {f"{split}_accuracy": value for split, value in values.items()} if metric.is_accuracy else {}
    return accuracies | {f"{split}_metric": value for split, value in values.items()}


def complete_row(row: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """A row with the values under the names of today, where a stage of version 0.1 has left it.

    That version had every metric in percent under `accuracy`, a function of one's own too.
    """
    if "test_accuracy" not in row or "test_metric" in row:
        return {key: complete_row(value, metric) if isinstance(value, dict) else value for key, value in row.items()}
    scale = 1.0 if metric.is_accuracy else 100.0
    splits = [split for split in ("test", "val") if f"{split}_accuracy" in row]
    values = named_values(metric, **{split: row[f"{split}_accuracy"] / scale for split in splits})
    rest = {key: value for key, value in row.items() if not key.endswith("_accuracy")}
    return values | {
        key: complete_row(value, metric) if isinstance(value, dict) else value for key, value in rest.items()
    }


def name_problem(flag: str, name: str, own: tuple[str, ...]) -> str | None:
    """What is wrong with the name of a loss or a metric; None for one of `own` or `package.module:function`."""
    if ":" in name or name in own:
        return None
    return f"{flag} {name}: expected {', '.join(own)} or package.module:function{nearest_hint(name, own)}"
