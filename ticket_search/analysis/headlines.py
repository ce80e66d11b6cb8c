"""What a comparison says in one line for each method and density: a winning ticket, no, or what is missing.

A winning ticket (Frankle & Carbin, The Lottery Ticket Hypothesis, 2018) starts from the initialization, matches the
dense network, and is better than its controls: fresh weights under its mask (reinit), and its weights under a shuffled
mask (shuffle). Where less is known, less is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..methods import find_method, method_names
from ..running.request import control_problems
from ..runs.names import DEFAULT
from .commands import PLACE, search_command
from .comparison import TASK
from .findings import Comparison, Control, Group, Level
from .intervals import Difference
from .levels import in_order, worth_telling
from .verdict import LEAST_SEEDS, ONCE, answer_better, scale_of, seeds_may_be_added, tell_guessing

SIGNS = {"good": "\N{CHECK MARK}", "bad": "\N{BALLOT X}", "open": "?"}
# The controls that are made of seeds that are added; those of signs are made by `ticket signs`.
_ADDED = (*DEFAULT, "random-erk", "small-dense")
_BE = {"reinit": "fresh weights", "shuffle": "a shuffled mask"}
_DO = {"reinit": "so do fresh weights", "shuffle": "so does a shuffled mask"}


@dataclass(frozen=True)
class Headline:
    """One line about a group at a density.

    subject: the method, what is special about it, and the density. text: the finding, with the mean difference to the
    dense network and the number of seeds. kind: `good`, `bad`, or `open` where it is not known. command: what to type
    to know more, or an empty text.
    """

    subject: str
    text: str
    kind: Literal["good", "bad", "open"]
    command: str = ""

    @property
    def sign(self) -> str:
        """The kind as a sign, for where there is no colour."""
        return SIGNS[self.kind]


def headlines(comparison: Comparison) -> list[Headline]:
    """The headlines of all groups: of each sparse level, or of those levels of many where something changes."""
    return [headline(group, row) for group in in_order(comparison.groups) for row in worth_telling(group)]


def headline(group: Group, row: Level) -> Headline:
    """The headline of a group at one of its sparse levels."""
    subject = f"{group.curve or group.label} at {100 * row.density:.3g} %"
    answer, gap = row.matching, row.difference
    if gap is None or answer is None:
        text = "not compared: there is no dense network of the same recipe and seeds"
        return Headline(subject, text, "open", _dense_command(group, group.seeds))
    if row.guessing:
        return Headline(subject, tell_guessing(row), "open")
    told = _tell(group, gap)
    if answer.answer == "no":
        return Headline(subject, f"no ({told})", "bad")
    if answer.answer == "yes":
        return _matches(group, row, subject, told)
    if group.delta is None:
        unit = group.metric.gap_in_words
        return Headline(subject, f"{told}; whether it matches takes a margin: add --delta, in {unit}", "open")
    if gap.n < row.n:
        text = f"compared on {gap.n} of {row.n} seeds ({told}): the dense network has not run with the others"
        return Headline(subject, text, "open", _dense_command(group, row.seeds))
    if row.n < LEAST_SEEDS:
        more = LEAST_SEEDS - row.n
        text = f"nothing is claimed on fewer than {LEAST_SEEDS} seeds ({told})"
        return Headline(subject, text, "open", _more(group, more))
    if not answer.tested:
        why = "is not decided" if answer.answer == "undecided" else "does not match"
        return Headline(subject, f"not claimed, as a denser level {why} ({told})", "open")
    if answer.more_seeds is None:
        scale = scale_of(group.metric)
        text = f"too noisy to decide at a margin of {group.delta:g} {scale.unit} ({told})"
        return Headline(subject, text, "open")
    text = f"not decided yet ({told}): {_seeds(answer.more_seeds, 'more ')}{_once(row.n)}"
    return Headline(subject, text, "open", _more(group, answer.more_seeds))


def _matches(group: Group, row: Level, subject: str, told: str) -> Headline:
    """What is said of a level that matches the dense network: more where it is better than its controls."""
    if group.start == "frozen":
        return Headline(subject, f"matches the dense network, and no weight was trained ({told})", "good")
    plain = f"matches the dense network ({told}"
    if group.start not in ("initialization", "later"):
        return Headline(subject, f"{plain})", "good")
    own = {
        control.control: control
        for control in group.controls
        if control.level == row.level and control.data == group.data and control.trained
    }
    needed = _needed(group)
    if not needed:
        return Headline(subject, f"{plain}; no control of it can be made)", "good")
    if any(kind not in own for kind in needed):
        return Headline(subject, f"{plain}; controls missing)", "good", _controls_command(group, row, group.runs))
    if lacking := _without_controls(group, [own[kind] for kind in needed]):
        text = f"{plain}; controls missing in {len(lacking)} of {_seeds(row.n)})"
        return Headline(subject, text, "good", _controls_command(group, row, lacking))
    answers = {
        kind: answer_better("", own[kind].difference, own[kind].p_holm, group.delta, scale=scale_of(group.metric))
        for kind in needed
    }
    as_good = [_DO[kind] for kind, answer in answers.items() if answer.answer == "no"]
    if as_good:
        return Headline(subject, f"{plain}), but {' and '.join(as_good)}: no winning ticket", "bad")
    unsure = {_BE[kind]: answer.more_seeds for kind, answer in answers.items() if answer.answer != "yes"}
    if unsure:
        most = max((more or 0 for more in unsure.values()), default=0)
        asked = f": {_seeds(most, 'more ')}{_once(row.n)}" if most else ""
        text = f"{plain}); whether it is better than {' and '.join(unsure)} is not decided yet{asked}"
        return Headline(subject, text, "open", _more(group, most) if most else "")
    if len(needed) < len(_BE):
        return Headline(subject, f"{plain}), and is better than {' and '.join(_BE[kind] for kind in needed)}", "good")
    if group.start == "later":
        return Headline(subject, f"a matching ticket, rewound to a later step ({told})", "good")
    return Headline(subject, f"a winning ticket ({told})", "good")


def _needed(group: Group) -> list[str]:
    """The controls that a winning ticket is better than, as far as they can be made of these runs."""
    method = str(group.recipe.get("method", ""))
    if method not in method_names():
        return list(_BE)
    config = find_method(method).Config.model_construct(**group.recipe)
    return [kind for kind in _BE if not control_problems(config, [kind])]


def _once(seeds: int) -> str:
    """What is to be known before more seeds are added to so many."""
    return "" if seeds_may_be_added(seeds) else f", {ONCE}"


def _without_controls(group: Group, controls: Sequence[Control]) -> list[str]:
    """The runs of a group that some of these controls have not been made for."""
    if len(group.runs) != len(group.seeds):
        return []
    return [
        run
        for run, seed in zip(group.runs, group.seeds, strict=True)
        if any(control.seeds.count(seed) < group.seeds.count(seed) for control in controls)
    ]


def _controls_command(group: Group, row: Level, runs: Sequence[str]) -> str:
    """The command that makes the controls of runs, at the level of a row."""
    level = "" if row is group.levels[-1] or row.level is None else f" --levels {row.level}"
    return f"ticket controls {' '.join(map(shlex.quote, runs))}{level}"


def _tell(group: Group, gap: Difference) -> str:
    scale = scale_of(group.metric)
    form = ".1f" if group.metric.is_accuracy else scale.form
    return f"{gap.mean + 0.0:+{form}} {scale.unit}, {_seeds(gap.n)}"


def _seeds(number: int, more: str = "") -> str:
    return f"{number} {more}seed{'' if number == 1 else 's'}"


def _more(group: Group, more: int) -> str:
    """The command that adds seeds: to the dense network too, where that is a run of its own; none without its flags.

    The controls that the group has are made of the new seeds too, so that none is asked for a second time.
    """
    if group.start == "unknown":
        return ""
    first = max(group.seeds) + 1
    seeds = range(first, first + more)
    own = search_command({**group.recipe, **group.given}, seeds, runs=_place(group))
    dense = "" if group.baseline == "level 0" else _dense_command(group, [*group.seeds, *seeds])
    if not own.startswith("ticket "):
        return "; ".join(filter(None, (dense, own)))
    own += _controls_flags(group)
    return f"{dense} && {own}" if dense else own


def _controls_flags(group: Group) -> str:
    """The flags by which a search is followed by the controls that a group has of its own; empty where it has none."""
    own = [
        row
        for row in group.controls
        if row.control in _ADDED and row.data == group.data and row.trained == (group.start != "frozen")
    ]
    if not own:
        return ""
    there = {row.control for row in own}
    levels = sorted({row.level for row in own if row.level is not None})
    at = "" if not levels or levels == [group.levels[-1].level] else f" --control-levels {','.join(map(str, levels))}"
    return f" --controls {','.join(kind for kind in _ADDED if kind in there)}{at}"


def _dense_command(group: Group, seeds: Sequence[int]) -> str:
    """The command that trains the dense network with these seeds; those that have run are not repeated.

    Where no weight of the ticket is trained its flags are those of scores, and only the task is the same.
    """
    if group.start == "unknown":  # of numbers of another program the flags are not known
        return ""
    given = {**group.recipe, **group.given}
    recipe = {key: value for key, value in given.items() if group.start != "frozen" or key in (*TASK, *PLACE)}
    if group.recipe.get("method") not in method_names():
        return ""
    return search_command({**recipe, "method": "dense"}, seeds, runs=_place(group))


def _place(group: Group) -> str:
    """The folder of a group's runs, which those belong in that are compared with them."""
    return str(Path(group.runs[0]).parent) if group.runs else ""
