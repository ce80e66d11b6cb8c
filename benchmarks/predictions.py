"""What was expected before a study was run, beside what it found: the sign of a difference, and its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ticket_search.analysis.intervals import Difference


@dataclass(frozen=True)
class Prediction:
    """A difference by its name, the sign that is expected of it, and why. It was written before the study was run.

    "+" and "-" are for better and worse, "=" for less than `near` apart either way.
    """

    name: str
    sign: str
    why: str
    near: float = 1.0

    def outcome(self, found: Difference | None) -> str:
        """Whether it held: `open` where the interval does not tell."""
        if found is None or found.interval is None:
            return "not measured"
        low, high = found.interval
        if self.sign == "=":
            held, missed = -self.near < low and high < self.near, low > self.near or high < -self.near
            return "held" if held else "no" if missed else "open"
        low, high = (low, high) if self.sign == "+" else (-high, -low)
        return "held" if low > 0 else "no" if high < 0 else "open"


def as_table(predictions: Sequence[Prediction], found: Mapping[str, Difference | None], unit: str) -> str:
    """The predictions beside the differences that were found, in Markdown."""
    lines = [f"| expected before the run | | because | found ({unit}) | |", "|---|---|---|---|---|"]
    for each in predictions:
        gap = found.get(each.name)
        told = "" if gap is None else f"{gap.mean:+.2f}"
        if gap is not None and gap.interval is not None:
            told += f" [{gap.interval[0]:+.2f}, {gap.interval[1]:+.2f}]"
        sign = f"within {each.near:g}" if each.sign == "=" else {"+": "above 0", "-": "below 0"}[each.sign]
        lines.append(f"| {each.name} | {sign} | {each.why} | {told} | {each.outcome(gap)} |")
    return "\n".join(lines)
