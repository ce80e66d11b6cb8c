"""Is it a ticket? Each question has its own answer: yes, no, or how many more seeds would decide it.

Matching is a test of non-inferiority: the 95 % interval of the difference to the dense network, paired by seed, lies
above -delta, and delta is fixed before any result is seen. The lower end of the interval alone is wrong in one case of
forty, so that a user who adds the seeds that were asked for and tests again is wrong in at most one case of twenty.
Levels are tested from the dense network downward, up to the first that fails, so that no correction for their number is
needed. A level below that one is worse, no, where that is so after a correction for the number of levels (Holm). The
tests that a ticket is better than its controls are corrected for the number of controls (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from scipy.special import stdtr

from ..contract.metric import Metric
from .findings import Answer, Control, Level, Verdict
from .intervals import ALPHA, MOST_SEEDS, Difference, holm, seeds_to_find

# Percentage points by which a ticket may be worse than the dense network and still match it; of another metric than
# accuracy the margin has to be given.
DELTA = 0.5
# No ticket is claimed on fewer seeds.
LEAST_SEEDS = 5
# Nobody is asked for more seeds than these: the results are too noisy to decide at the margin.
MOST_ASKED = 30
# The error of the verdict is kept for one addition of seeds; of how many there have been no record tells.
ONCE = "if none have been added before: adding seeds is planned for once"
# The minimum of a ticket's validation loss may come later than the dense network's by this fraction of its step.
LATER = 0.1

MATCHING = "does it match the dense network?"
AS_EARLY = "does its validation loss reach its minimum as early?"
INIT = "does its initialization matter?"
POSITIONS = "does it matter which weights are kept?"
TRIVIAL = "is it trivial: does a random mask match the dense network too?"
_NOT_RUN = "`ticket controls` has not been run"
_WHOLE = "not asked where whole filters or blocks are pruned: a mask of shuffled weights would not keep them whole"


class Scale(NamedTuple):
    """The unit of differences, and how they are written."""

    unit: str = "pp"
    form: str = ".2f"


POINTS = Scale()


def scale_of(metric: Metric) -> Scale:
    """The scale of differences of a metric."""
    return Scale(metric.gap, metric.form)


def answer_not_worse(question: str, found: Difference | None, margin: float | None, scale: Scale = POINTS) -> Answer:
    """Whether a mean difference is above `-margin`, so that the first of the two is not worse by the margin or more.

    The number of seeds to add is the one with which two equal networks get a yes in 4 cases of 5. Without a margin the
    answer is not known.
    """
    if found is None:
        return Answer(question, "unknown", "there is no run with the same seeds to compare with")
    if margin is None:
        return _unmeasured(question, found, scale)
    if found.interval is None:
        because = f"{found.mean:+{scale.form}} {scale.unit}; one seed has no interval"
        return Answer(question, "undecided", because, LEAST_SEEDS - 1)
    lower, upper = found.interval
    because = f"{_in_words(found, scale)}; the margin is {-margin:+{scale.form}}"
    if upper < -margin:
        return Answer(question, "no", because)
    if lower > -margin and found.n >= LEAST_SEEDS:
        return Answer(question, "yes", because)
    return _undecided(question, because, found, _more(found, margin, abs(found.mean + margin)))


def _unmeasured(question: str, found: Difference, scale: Scale) -> Answer:
    seen = _in_words(found, scale) if found.interval else f"{found.mean:+{scale.form}} {scale.unit}"
    return Answer(question, "unknown", f"{seen}; no margin was given: --delta, in {scale.unit}")


def answer_better(
    question: str,
    found: Difference | None,
    chance: float | None,
    margin: float | None,
    missing: str = _NOT_RUN,
    scale: Scale = POINTS,
) -> Answer:
    """Whether the ticket is better than a control, by their difference and its corrected p-value `chance`.

    The answer is no where the upper end of the interval is below `margin`. The number of seeds to add is that which
    finds a difference as large as the one seen, or as the margin where that is larger. `missing` is the reason given
    where there is no difference.
    """
    if found is None:
        return Answer(question, "unknown", missing)
    if margin is None:
        return _unmeasured(question, found, scale)
    if found.interval is None or chance is None:
        because = f"{found.mean:+{scale.form}} {scale.unit}; one seed has no interval"
        return Answer(question, "undecided", because, LEAST_SEEDS - 1)
    because = f"{_in_words(found, scale)}; Holm p = {chance:.2g}"
    if found.n < LEAST_SEEDS:
        return _undecided(question, because, found, _more(found, max(margin, found.mean), abs(found.mean)))
    if found.mean > 0 and chance < ALPHA:
        return Answer(question, "yes", because)
    if found.interval[1] < margin:
        return Answer(question, "no", because)
    return _undecided(question, because, found, _more(found, max(margin, found.mean), abs(found.mean)))


def seeds_may_be_added(seeds: int) -> bool:
    """Whether so few seeds have run that none of them can have been added after a first look at a claim."""
    return seeds <= LEAST_SEEDS


def _undecided(question: str, because: str, found: Difference, more: int) -> Answer:
    """An answer that takes more seeds, or none where nobody would train so many."""
    if more <= MOST_ASKED:
        once = "" if seeds_may_be_added(found.n) else f"; more seeds, {ONCE}"
        return Answer(question, "undecided", because + once, more)
    because = f"{because}; more than {MOST_ASKED} seeds more would be needed: too noisy to decide at this margin"
    return Answer(question, "undecided", because)


def answer_in_order(answers: Sequence[Answer], names: Sequence[str]) -> list[Answer]:
    """The answers about levels, from the dense network downward: below the first that is not yes, none is tested."""
    tested: list[Answer] = []
    for answer in answers:
        failed = next((number for number, before in enumerate(tested) if before.answer != "yes"), None)
        if failed is None:
            tested.append(answer)
            continue
        before = tested[failed]
        because = f"levels are tested in order, and the answer at {names[failed]} is {before.in_words()}"
        # The seeds that decide that level let the test go on to this one.
        undecided = before.answer == "undecided"
        more = before.more_seeds if undecided else None
        tested.append(Answer(answer.question, "undecided" if undecided else "unknown", because, more, tested=False))
    return tested


def answer_levels(levels: Sequence[Level], delta: float | None, scale: Scale = POINTS) -> tuple[Level, ...]:
    """The levels of one configuration, dense first, each sparse one with the answer whether it matches (`matching`)."""
    sparse = [row for row in levels if row.density < 1]
    found = [_answer_level(row, delta, scale) for row in sparse]
    # Without a margin none can be tested: each level shows its difference and says what is missing.
    names = [f"density {row.density:.4g}" for row in sparse]
    if delta is not None:
        worse = plainly_worse({name: row.difference for name, row in zip(names, sparse, strict=True)}, delta)
        found = [
            _say_worse(answer, row, worse[name], delta, scale)
            for answer, row, name in zip(answer_in_order(found, names), sparse, names, strict=True)
        ]
    answers = iter(found)
    return tuple(
        replace(row, matching=replace(next(answers), density=row.density)) if row.density < 1 else row for row in levels
    )


def _answer_level(row: Level, delta: float | None, scale: Scale) -> Answer:
    if row.guessing:
        return Answer(MATCHING, "unknown", tell_guessing(row))
    return answer_not_worse(MATCHING, row.difference, delta, scale)


def tell_guessing(row: Level) -> str:
    """Why a level is compared with nothing: the dense network has learned nothing."""
    seeds = "" if row.n == 1 else f" in {row.guessing} of {row.n} seeds"
    return f"the dense network is no better than guessing{seeds}: nothing can be compared with it"


def plainly_worse(found: Mapping[str, Difference | None], margin: float) -> dict[str, float | None]:
    """For each level the chance of such a difference, or a lower one, if it were not worse than the margin.

    The chances are one-sided, by Student's t, and corrected for the number of levels by Holm's method, so that each is
    to be compared with half of ALPHA. None where there is no interval.
    """
    chances = {}
    for name, one in found.items():
        if one is None or one.std is None:
            continue
        gap = one.mean + margin
        chances[name] = float(stdtr(one.n - 1, gap / (one.std / math.sqrt(one.n)))) if one.std else float(gap >= 0)
    corrected = holm(chances)
    return {name: corrected.get(name) for name in found}


def _say_worse(answer: Answer, row: Level, chance: float | None, margin: float, scale: Scale) -> Answer:
    """The answer of a level; where it was not tested in order and is plainly worse, no."""
    if answer.tested or row.guessing or chance is None or chance >= ALPHA / 2:
        return answer
    assert row.difference is not None
    because = (
        f"{_in_words(row.difference, scale)}; the margin is {-margin:+{scale.form}}, and this is worse after a "
        f"correction for the number of levels (Holm p = {chance:.2g})"
    )
    return Answer(answer.question, "no", because)


def judge(
    levels: Sequence[Level],
    controls: Sequence[Control],
    random_against_dense: Mapping[int | None, Difference | None],
    delta: float | None,
    whole_units: bool = False,
    scale: Scale = POINTS,
    is_random: bool = False,
    frozen: bool = False,
) -> Verdict:
    """Answer the questions about a group.

    The controls are those of the sparsest level that matches and has controls, or else of the sparsest that has
    controls. `as_early` is about the sparsest level that matches, or about the last level where none does.

    Args:
        levels: the levels of one configuration, dense first, as `answer_levels` gives them.
        controls: the controls on the same data, trained where the ticket is trained.
        random_against_dense: random masks minus the dense network, by level.
        delta: the margin, in the unit of the scale; None where none was given.
        whole_units: whether filters or blocks were dropped, for which no control moves single weights.
        scale: of the differences.
        is_random: whether the masks are random themselves, which are not asked whether a random mask matches too.
        frozen: whether the weights are never trained, so that the steps are those of scores.
    """
    sparse = [row for row in levels if row.density < 1]
    matching = [row for row in sparse if row.matching is not None and row.matching.answer == "yes"]
    controlled = {row.level for row in controls}
    candidates = [row for row in (*sparse, *matching) if row.level in controlled] or sparse or levels
    about = candidates[-1]
    beside = {row.control: (row.difference, row.p_holm) for row in controls if row.level == about.level}
    random = random_against_dense.get(about.level)
    trivial = answer_not_worse(TRIVIAL, random, delta, scale)
    if whole_units and random is None:
        trivial = Answer(TRIVIAL, "unknown", _WHOLE)
    init = answer_better(INIT, *beside.get("reinit", (None, None)), delta, scale=scale)
    positions = answer_better(
        POSITIONS, *beside.get("shuffle", (None, None)), delta, _WHOLE if whole_units else _NOT_RUN, scale
    )
    timed = matching[-1] if matching else levels[-1]
    return Verdict(
        matching=sparse[-1].matching if sparse else None,
        sparsest_matching=matching[-1].density if matching else None,
        controls_at=about.density,
        as_early=replace(_answer_as_early(timed, frozen), density=timed.density),
        init=replace(init, density=about.density),
        positions=replace(positions, density=about.density),
        trivial=None if is_random else replace(trivial, density=about.density),
    )


def _answer_as_early(row: Level, frozen: bool) -> Answer:
    if row.retrained:
        because = "its training continues from trained weights, so its steps are not those of a whole training"
        return Answer(AS_EARLY, "unknown", because)
    later = row.later
    if later is None:
        return Answer(AS_EARLY, "unknown", _why_no_delay(row, frozen))
    answer = answer_not_worse(AS_EARLY, -later, LATER * later.dense, Scale("steps sooner"))
    if later.at_end and answer.answer != "no":
        because = (
            f"in {later.at_end} of {later.n} seeds the minimum is the last measurement, so a later one is possible: "
            "train longer, or measure more often (--evaluate-every)"
        )
        return Answer(AS_EARLY, "unknown", because)
    return answer


def _why_no_delay(row: Level, frozen: bool) -> str:
    if row.early_step is None:
        return "the steps of minimum validation loss are not known"
    if row.difference is None:
        return "there is no run with the same seeds to compare with"
    if frozen:
        return "its steps train scores over frozen weights, so they are not those of a training of the dense network"
    return "the steps of minimum validation loss of the dense network are not known"


def _in_words(found: Difference, scale: Scale) -> str:
    assert found.interval is not None
    # + 0.0 turns -0.0 into 0.0.
    mean, low, high = (f"{value + 0.0:+{scale.form}}" for value in (found.mean, *found.interval))
    return f"{mean} {scale.unit} over {found.n} seeds ({low} to {high})"


def _more(found: Difference, effect: float, seen: float) -> int:
    """The number of seeds to add to find an effect, or the effect that was seen where there are already as many."""
    assert found.std is not None
    needed = seeds_to_find(effect, found.std, found.n) or MOST_SEEDS
    if needed <= found.n:
        needed = seeds_to_find(seen, found.std, found.n) or MOST_SEEDS
    return max(needed, LEAST_SEEDS, found.n + 1) - found.n
