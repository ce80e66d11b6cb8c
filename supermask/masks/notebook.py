"""What a notebook shows of an object: a small table, and bars that say how much of each layer is kept.

Plain HTML and SVG, without a script, a style sheet or a font, that reads on light and on dark pages. Names come from
files of other people: every text is escaped here, and nowhere else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# More rows than these are told, not drawn.
_MOST = 40
_LETTERS = 44
_ROW, _NAMES, _BAR, _NUMBERS = 18, 300, 200, 190
_COLOUR, _GROUND = "#0072B2", "rgba(127,127,127,0.25)"


class Bar(NamedTuple):
    """One line of the picture: a name, the share in [0, 1] that is filled, and what stands behind it."""

    name: str
    share: float
    text: str


def page(title: str, facts: Mapping[str, object], bars: Sequence[Bar] = (), note: str = "") -> str:
    """HTML of a title, a table of facts (those that are None are left out), bars, and a sentence below."""
    rows = [
        f'<tr><td style="text-align:left">{_text(name)}</td><td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None
    ]
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    below = f"<div>{_text(note)}</div>" if note else ""
    return f"<div><div><b>{_text(title)}</b></div>{table}{draw(bars)}{below}</div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML of a table with a line of names above its rows."""
    head = "".join(f'<th style="text-align:left">{_text(name)}</th>' for name in columns)
    found = list(rows)
    body = ["".join(f'<td style="text-align:left">{_text(cell)}</td>' for cell in row) for row in found[:_MOST]]
    more = f"<div>... and {len(found) - _MOST} more</div>" if len(found) > _MOST else ""
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>{more}"


def draw(bars: Sequence[Bar]) -> str:
    """An SVG with a line for each bar; nothing of none."""
    if not bars:
        return ""
    lines = []
    names = 8 + min(_NAMES, 8 * max(len(shorten(bar.name)) for bar in bars[:_MOST]))
    for index, bar in enumerate(bars[:_MOST]):
        middle, wide = index * _ROW + 13, _BAR * min(1.0, max(0.0, bar.share))
        lines.append(
            f'<text x="{names - 8}" y="{middle}" text-anchor="end">{_text(shorten(bar.name))}</text>'
            f'<rect x="{names}" y="{middle - 10}" width="{_BAR}" height="12" fill="{_GROUND}"/>'
            f'<rect x="{names}" y="{middle - 10}" width="{wide:.1f}" height="12" fill="{_COLOUR}"/>'
            f'<text x="{names + _BAR + 8}" y="{middle}">{_text(bar.text)}</text>'
        )
    if len(bars) > _MOST:
        lines.append(f'<text x="{names}" y="{_MOST * _ROW + 13}">... and {len(bars) - _MOST} more</text>')
    wide, high = names + _BAR + _NUMBERS, len(lines) * _ROW + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        f'font-family="sans-serif" font-size="12" fill="currentColor">{"".join(lines)}</svg>'
    )


def bars_of(tensors: Iterable[tuple[str, int, int]]) -> list[Bar]:
    """A bar for the name, the kept and all weights of each tensor."""
    return [Bar(name, kept / max(1, size), share(kept, size)) for name, kept, size in tensors]


def share(kept: int, size: int) -> str:
    """How much is kept, in words: `1,234 of 12,340 (10 %)`."""
    return f"{kept:,} of {size:,} ({100 * kept / max(1, size):.3g} %)"


def _text(value: object) -> str:
    """A value as text of a page: in one line, without control characters, of limited length, escaped."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: 10 * _LETTERS])
    return html.escape(text)


def shorten(text: str) -> str:
    """A name that fits beside a bar: its end, which tells layers apart."""
    return text if len(text) <= _LETTERS else f"...{text[3 - _LETTERS :]}"
