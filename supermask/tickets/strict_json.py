"""JSON of unknown origin, read strictly: within limits, and meaning one thing. Imports nothing that takes long."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import accumulate
from typing import Any

# What can be read within a second: `docs/ticket_format.md` tells them. More than any network that is known needs.
LONGEST = 10_000_000
MOST_VALUES = 300_000
DEEPEST = 100

_TEXT = re.compile(rb'"[^"]*"')
_LONE_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_OTHERS = bytes(set(range(256)) - set(b'[]{},"'))
_STEPS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def parse_json(data: bytes, finite: bool = True) -> Any:
    """Read JSON: no name twice, no text that is not Unicode, and no more of it than is allowed.

    Args:
        data: in UTF-8.
        finite: no NaN and no infinity either.

    Raises:
        ValueError: says what is wrong.
    """
    check_extent(data)
    numbers: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
    value = json.loads(data.decode(), object_pairs_hook=_refuse_twice, **numbers)
    if _LONE_HALF.search(data):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def check_extent(data: bytes) -> None:
    """Refuse JSON that is too long, has too many values or is nested too deep, before any of it takes memory.

    Raises:
        ValueError: says how much there is, and how much is allowed.
    """
    if len(data) > LONGEST:
        raise ValueError(f"it has {len(data):,} bytes, at most {LONGEST:,} are allowed")
    # Without what is escaped, every quote begins or ends a text.
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
    texts = marks.count(b'"') // 2
    if texts <= 2 * MOST_VALUES:
        marks = _TEXT.sub(b"", marks)
    values = 1 + max(texts // 2, sum(map(marks.count, (b"[", b"{", b","))))
    if values > MOST_VALUES:
        raise ValueError(
            f"it has {values:,} values, lists and objects counted too, at most {MOST_VALUES:,} are allowed"
        )
    deepest = max(accumulate(_STEPS.get(mark, 0) for mark in marks), default=0)
    if deepest > DEEPEST:
        raise ValueError(f"lists and objects in it are nested {deepest:,} deep, at most {DEEPEST} are allowed")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"the name '{next(name for name in times if times[name] > 1)[:100]}' is there twice")
    return value


def _refuse(word: str) -> Any:
    raise ValueError(f"{word[:100]} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)
