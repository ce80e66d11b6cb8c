"""What is said of a ticket in a line, and in a notebook. Its metadata may be of anybody's making."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..masks import notebook
from ..masks.masks import Masks
from ..masks.texts import harmless

_ABOUT = ("method", "model", "data")


def in_a_line(meta: Mapping[str, Any], density: float, kept: int, tasks: int) -> str:
    """`Ticket(imp, lenet-300-100, digits: density 0.2, 10040 weights kept, test accuracy 96.67 %)`."""
    about = ", ".join(str(meta[key]) for key in _ABOUT if key in meta)
    size = f"{tasks} tasks, density {density:.4g} each" if tasks else f"density {density:.4g}, {kept} weights kept"
    measured = "".join(f", {name} {value}" for name, value in measurements(meta).items() if name.startswith("test"))
    return harmless(f"Ticket({about + ': ' if about else ''}{size}{measured})")


def to_html(meta: Mapping[str, Any], masks: Masks, states: Iterable[str], tasks: Mapping[str, Masks]) -> str:
    """A table of what was run and measured, and a bar for each layer, or for each task."""
    facts: dict[str, object] = {key: meta[key] for key in (*_ABOUT, "seed", "level") if key in meta}
    if tasks:
        bars = notebook.bars_of((name, each.kept, each.size) for name, each in tasks.items())
        facts |= {"tasks": len(tasks)}
    else:
        bars = notebook.bars_of((row.name, row.kept, row.size) for row in masks.report())
        facts |= {"weights kept": notebook.share(masks.kept, masks.size), "states": ", ".join(states) or None}
    return notebook.page("Ticket", facts | measurements(meta), bars)


def measurements(meta: Mapping[str, Any]) -> dict[str, str]:
    """What a ticket says of its final state, `{"test accuracy": "96.67 %"}`; what is no number is left out."""
    metric, values, named = meta.get("metric"), meta.get("accuracy"), ("accuracy", "%")
    if isinstance(metric, Mapping):
        values, named = metric.get("values"), (str(metric.get("name", "")), str(metric.get("unit", "")))
    final = values.get("final") if isinstance(values, Mapping) else None
    if not isinstance(final, Mapping):
        return {}
    form = ".2f" if named[1] == "%" else ".4g"
    numbers = {split: final[split] for split in ("test", "validation") if isinstance(final.get(split), int | float)}
    return {f"{split} {named[0]}": f"{value:{form}} {named[1]}".rstrip() for split, value in numbers.items()}
