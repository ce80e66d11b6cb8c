"""A comparison as one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from .curves import Look
from .findings import Comparison, Verdict, only_metric
from .plots import figure_svg
from .tables import make_tables, right_aligned

# Whether an answer speaks for the claim that this is a ticket.
_GOOD = {"yes": "good", "no": "bad"}
_MEANING = dict.fromkeys(("matching", "as_early", "init", "positions"), _GOOD) | {
    "trivial": {"yes": "bad", "no": "good"}
}
_SIGNS = {"yes": "\N{CHECK MARK}", "no": "\N{BALLOT X}", "undecided": "?", "unknown": "\N{EN DASH}"}


@dataclass(frozen=True)
class _Finding:
    """A question with its answer as a sign and a word; `meaning` is good, bad, open or unknown."""

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
    """The page of a comparison: verdicts, figure, tables and the list of runs, without scripts or outside references.

    Args:
        comparison: what `compare` returns.
        title: the heading of the page.
        published: published numbers for the figure, as in `plot_comparison`.
        extra_pictures: more pictures to show, each as a caption and a PNG.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("ticket_search.analysis").joinpath("page.html").read_text("utf-8"))
    return template.render(
        title=title,
        comparison=comparison,
        summary=_summarize(comparison),
        cards=[(group, list(_find(group.verdict))) for group in comparison.groups if group.verdict],
        figure=_address(figure_svg(comparison, published), "svg+xml"),
        narrow=_address(figure_svg(comparison, published, Look(stacked=True)), "svg+xml"),
        pictures=[(caption, _address(picture, "png")) for caption, picture in extra_pictures],
        tables=[(table, right_aligned(table)) for table in make_tables(comparison)],
    )


def _address(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _find(verdict: Verdict) -> Iterator[_Finding]:
    for name, answer in verdict.answers.items():
        word, more = answer.answer, answer.more_seeds if answer.tested else None
        yield _Finding(
            answer.question,
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
        ("compared", f"{len(groups)} group{'' if len(groups) == 1 else 's'} of {len(runs)} runs"),
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
