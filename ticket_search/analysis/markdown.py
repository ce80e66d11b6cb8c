"""Text of unknown origin on a page in Markdown: shown as it is, and neither HTML, nor a link, nor a formula."""

from __future__ import annotations

import re
from typing import Any

# What Markdown reads as more than a letter inside a line; links without brackets too.
_MARKUP = re.compile(r"[\\`*_{}\[\]#|~!$@]|:(?=/)|(?<=www)\.", re.IGNORECASE)
# Not every reader of Markdown takes a backslash before these.
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def plain(value: Any, most: int | None = 200) -> str:
    """A value as one line without what cannot be printed; `most` characters of it, or all (None)."""
    text = " ".join(str(value).split())
    text = "".join(c for c in text if c.isprintable())
    return text if most is None or len(text) <= most else f"{text[:most]}..."


def escape(value: Any, most: int | None = 200) -> str:
    """A value as Markdown that shows it and does nothing else, in one line."""
    text = _MARKUP.sub(r"\\\g<0>", plain(value, most))
    return "".join(_ENTITIES.get(c, c) for c in text)
