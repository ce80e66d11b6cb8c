"""The numbers by which a diagnosis goes: a run, its dense network and its trainings, as one record of plain values.

All values of the metric are merits: those of a metric of which lower is better are negative, so that more is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..analysis.intervals import confidence_interval
from ..contract.flags import Config
from ..contract.metric import Metric

# A gap is told from chance where it is more than so many standard errors: of 40 equal pairs one looks so.
ERRORS = 2.0
# An improvement in the last part of a training, which begins here, is said to be one at its end.
_LAST_PART = 0.75
# Of fewer seeds an interval says next to nothing.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Curve:
    """A training, at each of its evaluations.

    `losses` and `trained` are means over the training samples since the evaluation before, `validation_losses` and
    `values` those of the validation split; `steps` count from the training's own beginning.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    trained: tuple[float, ...]
    validation_losses: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def whole(self) -> int:
        """Its length in steps: the last evaluation is at its end."""
        return self.steps[-1]

    @property
    def before_end(self) -> int | None:
        """The last evaluation that lies before the last quarter of the training; None where there is none."""
        early = [place for place, step in enumerate(self.steps) if step <= _LAST_PART * self.whole]
        return early[-1] if early and early[-1] < len(self.steps) - 1 else None

    @property
    def rise(self) -> float | None:
        """By how much the metric on validation improves from there to the end."""
        return None if self.before_end is None else self.values[-1] - self.values[self.before_end]

    @property
    def fall(self) -> float | None:
        """By how much the loss on validation falls from there to the end, for each doubling of the steps."""
        if self.before_end is None:
            return None
        doublings = math.log2(self.steps[-1] / self.steps[self.before_end])
        return (self.validation_losses[self.before_end] - self.validation_losses[-1]) / doublings

    @property
    def best_is_last(self) -> bool:
        """Whether the minimum of the validation loss is the last evaluation."""
        return self.validation_losses[-1] == min(self.validation_losses)


@dataclass(frozen=True)
class Layer:
    """A tensor that carries a mask: weights kept and all, its units, and those of them that no weight is left to."""

    name: str
    kept: int
    size: int
    units: int
    emptied: int

    @property
    def density(self) -> float:
        """The fraction that is kept."""
        return self.kept / self.size


@dataclass(frozen=True)
class Units:
    """The units behind a ReLU, and those that are active on no input of the validation split.

    silent: those of the ticket that still have inputs: what pruning has emptied is not counted.
    dense: those of the dense network; None where there is none.
    """

    name: str
    units: int
    silent: int
    dense: int | None


@dataclass(frozen=True)
class Barrier:
    """What `ticket connect` has found of one arm at one step: the mean barrier over its pairs, in the metric's unit."""

    arm: str
    step: int
    mean: float
    pairs: int


@dataclass(frozen=True)
class Standing:
    """How the ticket stands beside a control: whether it is seen to be better, by how much, and that in words."""

    better: bool
    gap: float
    told: str


@dataclass(frozen=True)
class Evidence:
    """What is known of a run before anything is trained.

    path, config: the run.
    trains: whether its weights are trained.
    metric, delta: what it is measured by, and the gap below which nobody calls it poor; None where none was given.
    classes, samples: of the task, and of the validation split; None where they are not known. Of a metric other than
        accuracy `noise` is twice the spread of the last evaluations.
    level, density, value: of the ticket in question, on validation; `densities` are those of the levels up to it.
    dense, dense_from: the dense network on validation, and which it is; None where there is none.
    gaps: dense less ticket of every seed of this recipe that has run, this one's among them.
    first_fall: level and density of the first level that is as poor, of several.
    steps, start: of one whole training, and the step that the search rewinds to.
    base, own: the training of the dense network of the same flags, and of the ticket.
    layers: one for each tensor with a mask. normalized: whether the network has norms.
    usual_rate: the learning rate that its optimizer is used with as a rule.
    controls: values by the name of the control, of this level and data. control_gaps: ticket less control of the other
        seeds of this recipe that have run, by the name of the control and the seed.
    barriers: of the ticket at this level.
    activity: of each ReLU; none where the network has none, or is not known by name.
    """

    path: str
    config: Config
    trains: bool
    metric: Metric
    delta: float | None
    classes: int | None
    samples: int | None
    level: int | None
    density: float
    value: float
    densities: tuple[float, ...]
    dense: float | None
    dense_from: str
    gaps: Mapping[int, float]
    first_fall: tuple[int, float] | None
    steps: int
    start: int
    base: Curve | None
    own: Curve | None
    layers: tuple[Layer, ...]
    normalized: bool
    usual_rate: float
    controls: Mapping[str, float] = field(default_factory=dict)
    control_gaps: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    barriers: tuple[Barrier, ...] = ()
    activity: tuple[Units, ...] = ()

    @property
    def gap(self) -> float | None:
        """Dense less ticket on validation."""
        return None if self.dense is None else self.dense - self.value

    @property
    def noise(self) -> float:
        """What the gap may be by chance alone; 0 where that is not known."""
        return 0.0 if self.dense is None else self.noise_of(self.dense, self.value)

    def noise_of(self, one: float, other: float) -> float:
        """What two networks that are equally good may differ by on this validation split.

        Of accuracy two standard errors of the difference of two fractions of so many samples. Networks that err on the
        same samples differ by less: their difference is paired, and this is the bound without knowing the pairs.
        """
        if self.metric.is_accuracy and self.samples:
            return ERRORS * math.hypot(self.error_of(one), self.error_of(other))
        curve = self.own
        if curve is None or len(curve.values) < 3:
            return 0.0
        last = curve.values[-max(3, len(curve.values) // 4) :]
        return ERRORS * (max(last) - min(last)) / 2

    def error_of(self, value: float) -> float:
        """The standard error of an accuracy, in percentage points; of 0 and 100 % that of one sample more or less."""
        assert self.samples, "asked of accuracy on samples that were counted"
        least = 1 / (self.samples + 2)
        share = min(1 - least, max(least, value / 100))
        return 100 * math.sqrt(share * (1 - share) / self.samples)

    @property
    def least(self) -> float:
        """The gap that has to be passed: the margin."""
        return self.delta or 0.0

    @property
    def is_poor(self) -> bool:
        """Whether the ticket is below its dense network by more than the margin, and by more than chance explains.

        Chance is that of the samples or, where three seeds or more have run, that of the seeds: a smaller gap that all
        of them have is none of chance.
        """
        if self.gap is None or self.delta is None or self.gap <= self.least:
            return False
        found = confidence_interval(list(self.gaps.values())) if len(self.gaps) >= LEAST_SEEDS else None
        return self.gap > self.noise or (found is not None and found[0] > self.least)

    def beside(self, control: str, named: str) -> Standing | None:
        """How the ticket stands beside a control, which is `named` so in a sentence; None where too few have been made.

        Of three seeds or more it is better where the 95 % interval of the differences lies above 0, else where it is
        better in this run by more than the margin and more than chance explains.
        """
        gaps = dict(self.control_gaps.get(control, {}))
        if control in self.controls:
            gaps[self.config.seed] = self.value - self.controls[control]
        if len(gaps) >= LEAST_SEEDS:
            found = confidence_interval(list(gaps.values()))
            assert found is not None, "three seeds have an interval"
            told = f"beside {named} it is better by {self.show_mean(list(gaps.values()))}"
            return Standing(found[0] > 0, statistics.fmean(gaps.values()), told)
        if control not in self.controls:
            return None
        value = self.controls[control]
        noise = self.noise_of(self.value, value)
        told = (
            f"{named} reaches {self.show(value)}, the ticket {self.show(self.value)}; of one seed chance alone makes "
            f"up to {self.show_gap(noise)}, and {LEAST_SEEDS} seeds with this control would be judged together"
        )
        return Standing(self.value - value > max(self.least, noise), self.value - value, told)

    @property
    def guessing(self) -> float | None:
        """The accuracy of a guess in percent, where there are classes of about one size."""
        return 100 / self.classes if self.metric.is_accuracy and self.classes else None

    def show(self, merit: float) -> str:
        """A merit as the value of the metric, with its unit."""
        return self.metric.with_unit(self.metric.merit(merit))

    def show_mean(self, gaps: Sequence[float]) -> str:
        """The mean of differences over seeds with its 95 % interval: `+0.3 pp over 5 seeds (-0.2 to +0.8)`."""
        form = "+.1f" if self.metric.unit == "%" else "+.3g"
        told = f"{statistics.fmean(gaps):{form}} {self.metric.gap} over {len(gaps)} seeds"
        found = confidence_interval(gaps)
        return told if found is None else f"{told} ({found[0]:{form}} to {found[1]:{form}})"

    def show_gap(self, gap: float) -> str:
        """A difference with its unit, with one digit less than a value has."""
        return f"{gap:.1f} {self.metric.gap}" if self.metric.unit == "%" else f"{gap:.3g} {self.metric.gap}"
