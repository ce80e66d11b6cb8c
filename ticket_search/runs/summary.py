"""What a finished run reports: the form of `summary.json` and of `controls.json`, and how a run is told in short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from supermask.masks import notebook
from supermask.masks.texts import harmless

from ..contract.flags import Config
from ..contract.metric import known_value, metric_of

if TYPE_CHECKING:
    from supermask import Masks


class MetricRecord(TypedDict):
    """What a run is measured by (see `contract.metric.Metric`)."""

    name: str
    direction: str
    unit: str


class Moment(TypedDict, total=False):
    """A step of a training that was chosen on validation, and the values there; of accuracy under that name too."""

    step: int
    val_loss: float
    test_metric: float
    val_metric: float
    test_accuracy: float
    val_accuracy: float


class Measured(TypedDict, total=False):
    """What is measured of one network at the final step of its training.

    `test_accuracy` and `val_accuracy`, in percent, are there where the metric is accuracy. `min_validation_loss` and
    `best_validation` are not there where nothing was trained.
    """

    density: float
    kept: int
    test_metric: float
    val_metric: float
    test_accuracy: float
    val_accuracy: float
    val_loss: float
    learned_nothing: bool
    min_validation_loss: Moment
    best_validation: Moment
    empty_layers: list[str]
    retrained: bool
    seconds: float


class LevelRow(Measured, total=False):
    """One level of a search: level 0 is the dense network. `dense_trainings` is the cost up to it."""

    level: int
    dense_trainings: float


class ControlRow(Measured, total=False):
    """One control of a run's ticket. `path` is its folder inside the run's, where it was trained."""

    control: str
    trained: bool
    data: str
    level: int | None
    seed: int
    metric: MetricRecord
    path: str


class Cost(TypedDict, total=False):
    """What a whole search has cost; `weights` is the part that lies behind the weights that it started from."""

    steps: int
    flops: float
    seconds: float
    dense_trainings: float
    weights: dict[str, Any]


class Summary(Measured, total=False):
    """What `summary.json` holds. Methods add keys of their own; those of our methods are listed here."""

    name: str
    method: str
    model: str
    data: str
    seed: int
    warnings: list[str]
    metric: MetricRecord
    parameters: int
    weights: int
    cost: Cost
    levels: list[LevelRow]
    data_fingerprint: str
    bad_images: dict[str, int]
    frozen_fingerprint: str
    # of filters and early-bird
    filters: int
    filters_kept: int
    compact: dict[str, Any]
    drawn_at_epoch: float
    settled: bool
    mask_distance: float
    # of `ticket train`
    found_by: str
    found_on: str
    # of supsup
    tasks: list[dict[str, Any]]
    inference: dict[str, Any]


def in_a_line(config: Config, path: str, summary: Summary | None) -> str:
    """`Run(imp, lenet-300-100, digits, seed 0: density 0.2, test accuracy 96.67 %, runs/imp-...)`."""
    about = f"{config.method}, {config.model}, {config.data}, seed {config.seed}"
    if summary is None:
        return harmless(f"Run({about}: not finished, {path})")
    metric = metric_of(summary)
    value = metric.with_unit(known_value(summary, "test"))
    return harmless(f"Run({about}: density {summary['density']:.4g}, test {metric.name} {value}, {path})")


def to_html(config: Config, path: str, summary: Summary | None, masks: Masks | None) -> str:
    """A table of what was run and measured, one of its levels, and a bar for each layer of its ticket."""
    facts: dict[str, object] = {name: getattr(config, name) for name in ("method", "model", "data", "seed")}
    if summary is None:
        return notebook.page("Run, not finished", {**facts, "folder": path})
    metric, cost = metric_of(summary), summary["cost"]
    facts |= {
        "weights kept": notebook.share(summary["kept"], summary["weights"]),
        f"test {metric.name}": metric.with_unit(known_value(summary, "test")),
        f"validation {metric.name}": metric.with_unit(known_value(summary, "val")),
        "cost": f"{cost['dense_trainings']:.3g} dense trainings, {cost['steps']:,} steps, {cost['seconds']:.1f} s",
        "folder": path,
    }
    bars = [] if masks is None else notebook.bars_of((row.name, row.kept, row.size) for row in masks.report())
    return notebook.page("Run", facts, bars) + _levels(summary.get("levels", []), summary)


def _levels(rows: Sequence[LevelRow], summary: Summary) -> str:
    if not rows:
        return ""
    metric = metric_of(summary)
    columns = ("level", "density", "kept", f"test {metric.column}", f"validation {metric.column}")
    return notebook.table(
        columns,
        [
            (
                row["level"], f"{row['density']:.4g}", f"{row['kept']:,}", metric.show(known_value(row, "test")),
                metric.show(known_value(row, "val")),
            )
            for row in rows
        ],
    )  # fmt: skip
