"""Text of unknown origin, as names in a file of somebody else, made fit to be shown."""

from __future__ import annotations


def harmless(text: str, most: int | None = None) -> str:
    r"""The text with everything that is no plain character written as an escape, but for line breaks.

        harmless("fc\x1b[31m.weight")  # r"fc\x1b[31m.weight": a terminal shows it, and turns nothing red

    That is control characters of both blocks, and marks that turn the direction of text or are not seen.

    Args:
        text: any.
        most: how many characters are shown of a longer text, which is then one line.
    """
    if most is not None:
        text = text.replace("\n", "\\n")
        text = text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
