"""Is it a ticket? Each question is answered by itself: yes, no, or how many more seeds would decide.

Matching is a test of non-inferiority: the 95 % interval of the difference to the dense network, paired by seed, lies
above -delta, and delta is fixed before anything is seen. Its lower end alone is wrong one time in forty, so that who
adds the seeds that are asked for and looks again is wrong one time in twenty at most. Levels are tested from the dense
network downward up to the first that fails, so that no correction for their number is needed. That a ticket is better
than its controls is corrected for their number (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .intervals import ALPHA, MOST_SEEDS, Difference, seeds_to_find

# Percentage points that a ticket may be worse than the dense network and still match it.
DELTA = 0.5
# No ticket is claimed on fewer seeds.
LEAST_SEEDS = 5
# How much later than the dense network its minimum validation loss may come, as a fraction of the dense one's step.
LATER = 0.1

MATCHING = "does it match the dense network?"
AS_EARLY = "does it get there as early?"
INIT = "do its own weights matter?"
POSITIONS = "does it matter where its weights are?"
TRIVIAL = "is it trivial, does a random mask match too?"
_WHOLE = "not asked of whole filters or blocks: moving single weights would change more than positions"


@dataclass(frozen=True)
class Answer:
    """`yes`, `no`, `undecided` with the number of seeds to add, or `unknown` where the runs do not tell.

    Not `tested` is a level after the first that is no yes; its seeds are those that this one needs.
    """

    question: str
    answer: Literal["yes", "no", "undecided", "unknown"]
    because: str
    more_seeds: int | None = None
    tested: bool = True


def in_words(answer: Mapping[str, Any]) -> str:
    """An answer, as a dict, for a table."""
    if not answer.get("tested", True):
        return "not tested"
    more = answer["more_seeds"]
    return f"{answer['answer']} ({more} more seed{'' if more == 1 else 's'})" if more else str(answer["answer"])


def answer_not_worse(question: str, found: Difference | None, margin: float, unit: str = "pp") -> Answer:
    """Whether what the difference is of is not worse than what it is compared with, by `margin` or more.

    The seeds asked for are those with which something truly equal is found to be so 4 times of 5.
    """
    if found is None:
        return Answer(question, "unknown", "there is no run to compare with that has the same seeds")
    if found.interval is None:
        because = f"{found.mean:+.2f} {unit}; one seed has no interval"
        return Answer(question, "undecided", because, LEAST_SEEDS - 1)
    lower, upper = found.interval
    because = f"{_in_words(found, unit)}; the margin is {-margin:+.2f}"
    if upper < -margin:
        return Answer(question, "no", because)
    if lower > -margin and found.n >= LEAST_SEEDS:
        return Answer(question, "yes", because)
    return Answer(question, "undecided", because, _more(found, margin, abs(found.mean + margin)))


def answer_better(
    question: str,
    found: Difference | None,
    chance: float | None,
    margin: float,
    missing: str = "`ticket controls` has not been run",
) -> Answer:
    """Whether the ticket is better than a control; `chance` is the p-value after correction.

    It is not, where the difference is certainly less than `margin`. The seeds asked for find a difference as large as
    the one seen, or the margin. `missing` says why there is no difference.
    """
    if found is None:
        return Answer(question, "unknown", missing)
    if found.interval is None or chance is None:
        return Answer(question, "undecided", f"{found.mean:+.2f} pp; one seed has no interval", LEAST_SEEDS - 1)
    because = f"{_in_words(found, 'pp')}; Holm p = {chance:.2g}"
    if found.n < LEAST_SEEDS:
        return Answer(question, "undecided", because, _more(found, max(margin, found.mean), abs(found.mean)))
    if found.mean > 0 and chance < ALPHA:
        return Answer(question, "yes", because)
    if found.interval[1] < margin:
        return Answer(question, "no", because)
    return Answer(question, "undecided", because, _more(found, max(margin, found.mean), abs(found.mean)))


def answer_in_order(answers: Sequence[Answer], names: Sequence[str]) -> list[Answer]:
    """Answers of levels from the dense network downward: after the first that is no yes nothing is tested."""
    tested: list[Answer] = []
    for answer in answers:
        failed = next((number for number, before in enumerate(tested) if before.answer != "yes"), None)
        if failed is None:
            tested.append(answer)
        else:
            before = tested[failed]
            because = f"{names[failed]} before it is {in_words(asdict(before))}"
            # Who decides that one goes on to this one.
            waits = before.answer == "undecided"
            tested.append(
                Answer(answer.question, "undecided", because, before.more_seeds, tested=False)
                if waits
                else Answer(answer.question, "unknown", because, tested=False)
            )
    return tested


def judge(
    levels: Sequence[dict[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    random_against_dense: Mapping[int | None, Mapping[str, Any] | None],
    delta: float,
    whole_units: bool = False,
) -> dict[str, Any]:
    """The answers about a group; each row of `levels` gets its `matching`.

    `matching` is of the sparsest level. The controls are those of the sparsest level that matches and has some, or else
    of the sparsest that has some (`controls_at`, its density); `as_early` is of the sparsest that matches, or the last.

    Args:
        levels: rows of one configuration, dense first; `difference` is ticket minus dense.
        controls: rows of the controls of the same data and kind; `difference` is ticket minus control.
        random_against_dense: random masks minus dense, by level.
        delta: percentage points.
        whole_units: filters or blocks were dropped, of which no control moves single weights.
    """
    tested = [row for row in levels if row["density"] < 1]
    found = [answer_not_worse(MATCHING, _difference(row["difference"]), delta) for row in tested]
    answers = answer_in_order(found, [f"density {row['density']:.4g}" for row in tested])
    for row in levels:
        row["matching"] = None
    for row, answer in zip(tested, answers, strict=True):
        row["matching"] = asdict(answer)
    matching = [row for row, answer in zip(tested, answers, strict=True) if answer.answer == "yes"]
    candidates = {row["level"] for row in controls}
    about = next((row for row in reversed(matching) if row["level"] in candidates), None)
    about = about or next(
        (row for row in reversed(tested) if row["level"] in candidates), tested[-1] if tested else levels[-1]
    )
    beside = {row["control"]: row for row in controls if row["level"] == about["level"]}

    def better(question: str, control: str, **missing: str) -> Answer:
        row = beside.get(control, {"difference": None, "p_holm": None})
        return answer_better(question, _difference(row["difference"]), row["p_holm"], delta, **missing)

    random = _difference(random_against_dense.get(about["level"]))
    trivial = answer_not_worse(TRIVIAL, random, delta)
    if whole_units and random is None:
        trivial = Answer(TRIVIAL, "unknown", _WHOLE)
    return {
        "matching": asdict(answers[-1]) if answers else None,
        "sparsest_matching": matching[-1]["density"] if matching else None,
        "controls_at": about["density"],
        "as_early": asdict(_answer_as_early(matching[-1] if matching else levels[-1])),
        "init": asdict(better(INIT, "reinit")),
        "positions": asdict(better(POSITIONS, "shuffle", **({"missing": _WHOLE} if whole_units else {}))),
        "trivial": asdict(trivial),
    }


def _answer_as_early(row: Mapping[str, Any]) -> Answer:
    later = row["later"]
    if row.get("retrained"):
        return Answer(
            AS_EARLY, "unknown", "it goes on from trained weights: its steps are not those of a whole training"
        )
    if later is None:
        return Answer(AS_EARLY, "unknown", "no steps of minimum validation loss to compare")
    numbers = dict(later)
    margin, at_end = LATER * numbers.pop("dense"), numbers.pop("at_end")
    answer = answer_not_worse(AS_EARLY, -Difference(**numbers), margin, "steps sooner")
    if at_end and answer.answer != "no":
        because = (
            f"in {at_end} of {numbers['n']} seeds the minimum is the last measurement: it may come later yet; train "
            "longer, or measure more often (--evaluate-every)"
        )
        return Answer(AS_EARLY, "unknown", because)
    return answer


def _difference(row: Mapping[str, Any] | None) -> Difference | None:
    return None if row is None else Difference(**row)


def _in_words(found: Difference, unit: str) -> str:
    assert found.interval is not None
    # + 0.0: no sign before a difference of nothing.
    mean, low, high = (value + 0.0 for value in (found.mean, *found.interval))
    return f"{mean:+.2f} {unit} over {found.n} seeds ({low:+.2f} to {high:+.2f})"


def _more(found: Difference, effect: float, seen: float) -> int:
    """How many seeds to add to find an effect; where so many did not do, to find the one that was seen."""
    assert found.std is not None
    needed = seeds_to_find(effect, found.std, found.n) or MOST_SEEDS
    if needed <= found.n:
        needed = seeds_to_find(seen, found.std, found.n) or MOST_SEEDS
    return max(needed, LEAST_SEEDS, found.n + 1) - found.n
