"""A comparison as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from supermask.masks.texts import harmless

from .curves import Look
from .findings import Comparison, Group, Verdict, only_metric
from .headlines import headline, headlines
from .levels import worth_telling
from .overview import ABOUT, overview
from .plots import figure_inline
from .tables import CORRECTED, make_tables, right_aligned
from .verdict import LEAST_SEEDS

# Whether an answer speaks for the claim that this is a ticket.
_GOOD = {"yes": "good", "no": "bad"}
_MEANING = dict.fromkeys(("matching", "as_early", "init", "positions"), _GOOD) | {
    "trivial": {"yes": "bad", "no": "good"}
}
_SIGNS = {"yes": "\N{CHECK MARK}", "no": "\N{BALLOT X}", "undecided": "?", "unknown": "\N{EN DASH}"}


@dataclass(frozen=True)
class _Finding:
    """A question with its density, and its answer as a sign and a word; `meaning` is good, bad, open or unknown."""

    question: str
    sign: str
    word: str
    meaning: str
    because: str
    more: str


def to_html(
    comparison: Comparison,
    title: str,
    published: Sequence[Mapping[str, Any]] = (),
    extra_pictures: Sequence[tuple[str, bytes]] = (),
) -> str:
    """The page of a comparison: headlines, figure, verdicts, tables and the list of runs, without outside references.

    It has one script, our own, which sorts tables; nothing else can run, and without it the page is whole too.

    Args:
        comparison: what `compare` returns.
        title: the heading of the page.
        published: published numbers for the figure, as in `plot_comparison`.
        extra_pictures: more pictures to show, each as a caption and a PNG.
    """
    folder, metric = files("ticket_search.analysis"), only_metric(comparison)
    environment = Environment(
        autoescape=True, finalize=_show, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("page.html").read_text("utf-8"))
    script = folder.joinpath("page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        title=title,
        comparison=comparison,
        metric=metric,
        headlines=headlines(comparison),
        parts=overview(comparison),
        about=ABOUT,
        summary=_summarize(comparison),
        cards=[_make_card(group) for group in comparison.groups if group.verdict],
        figure=Markup(figure_inline(comparison, published, Look(), "wide-")),
        narrow=Markup(figure_inline(comparison, published, Look(stacked=True), "narrow-")),
        pictures=[(caption, _address(picture, "png")) for caption, picture in extra_pictures],
        tables=[(table, right_aligned(table)) for table in make_tables(comparison)],
        reading=_how_to_read(comparison),
        script=Markup(script),
        digest=f"sha256-{digest}",
    )


def _show(value: Any) -> Any:
    """What is not of our own making without what turns the direction of a text, or cannot be seen."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _address(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _make_card(group: Group) -> tuple[Group, str, list[_Finding]]:
    """A group with the kind of what is said of it, good if that is so at any density, and its findings."""
    assert group.verdict is not None
    kinds = [headline(group, row).kind for row in worth_telling(group)]
    return group, "good" if "good" in kinds else kinds[-1] if kinds else "open", list(_find(group.verdict))


def _find(verdict: Verdict) -> Iterator[_Finding]:
    for name, answer in verdict.answers.items():
        word, more = answer.answer, answer.more_seeds if answer.tested else None
        yield _Finding(
            answer.asked,
            _SIGNS[word],
            word if answer.tested else "not tested",
            _MEANING[name].get(word, "unknown" if word == "unknown" else "open"),
            answer.because,
            "" if more is None else f"{more} more seed{'' if more == 1 else 's'} would probably decide",
        )


def _summarize(comparison: Comparison) -> list[tuple[str, str]]:
    """The facts at the top of the page: name and value."""
    groups = comparison.groups
    runs = {run for group in groups for run in group.runs}
    seeds = sorted({group.n for group in groups})
    most = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    named = (
        ("methods", [group.method for group in groups]),
        ("networks", [group.model for group in groups]),
        ("data", [group.data for group in groups]),
        ("precision", [group.precision for group in groups]),
    )
    return [
        (
            "compared",
            f"{len(groups)} group{'' if len(groups) == 1 else 's'} of {len(runs)} run{'' if len(runs) == 1 else 's'}",
        ),
        *((name, ", ".join(dict.fromkeys(filter(None, words)))) for name, words in named if any(words)),
        ("seeds", f"{most} in a group"),
        *_margin(comparison),
    ]


def _margin(comparison: Comparison) -> list[tuple[str, str]]:
    metric = only_metric(comparison)
    measured = [] if metric.is_accuracy else [("measured by", metric.in_words)]
    if comparison.delta is None:
        return [*measured, ("margin", f"none was given: --delta, in {metric.gap_in_words}")]
    told = f"a ticket may be {comparison.delta:g} {metric.gap_in_words} worse than the dense network"
    return [*measured, ("margin", told)]


def _how_to_read(comparison: Comparison) -> list[tuple[str, str]]:
    """What the words and numbers of the page mean: a name, which may be empty, and a sentence."""
    metric = only_metric(comparison)
    if comparison.delta is None:
        matching = (
            f"not answered, because no margin given: with --delta, in {metric.gap_in_words}, a ticket matches where "
            "the 95 % interval of its difference to the dense network, paired by seed, lies above minus that number."
        )
    else:
        matching = (
            "the 95 % interval of the difference to the dense network, paired by seed, lies above "
            f"{-comparison.delta:g} {metric.gap_in_words}, over {LEAST_SEEDS} seeds or more. Levels are tested from "
            "the dense network downward, up to the first that does not match; a level below that one is no only where "
            "it is worse after a correction for the number of levels (Holm)."
        )
    better = "" if metric.direction == "higher" else f" Of {metric.name} lower values are better."
    return [
        (
            "",
            f"Values are of the test split, means over seeds; every choice is made on validation data.{better}",
        ),
        (
            "Differences",
            f"in {metric.gap_in_words}, paired by seed, and positive where the first of the two is better.",
        ),
        ("Matching", matching),
        (
            "Controls",
            "as many weights as the ticket: its mask with fresh weights (reinit), its mask shuffled within layers "
            "(shuffle), random masks, a small dense network. If the ticket is not better than a control, then what the "
            "control changes does not matter. p-values are "
            f"{CORRECTED} (Holm).",
        ),
        ("Undecided", "there are too few seeds to tell."),
        ("Unknown", "something to compare with is missing: a run, or the margin."),
        ("Cost", "that of the whole search, in trainings of the dense network."),
    ]
