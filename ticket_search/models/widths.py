"""Networks made narrower or wider: one factor for the units of every hidden layer."""

from __future__ import annotations


def scaled(units: int, width: float) -> int:
    """So many units times a factor, at least one.

    Raises:
        ValueError: a factor that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width {width:g}: expected a factor above 0")
    return max(1, round(units * width))
