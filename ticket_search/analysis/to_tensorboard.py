"""A comparison in TensorBoard: the curves of all groups over the number of weights kept, in the same charts."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ..contract.errors import RequestError
from ..contract.metric import Metric
from .findings import Comparison, Control, Group, Row, only_metric
from .plots import figure_png

TAGS = {
    "comparison/test-accuracy": "test accuracy in percent, mean over seeds, by weights kept",
    "comparison/test-accuracy-low": "lower end of the 95 % interval of the mean",
    "comparison/test-accuracy-high": "upper end of the 95 % interval of the mean",
    "comparison/steps-to-min-validation-loss": "step of minimum validation loss, mean over seeds, by weights kept",
    "comparison/difference-to-dense": "ticket minus dense in percentage points, mean of differences paired by seed",
}
# Those of another metric than accuracy have its name in them.
FIGURE = "comparison/figure"
OVERVIEW = "comparison"
_LAYOUT = "custom_scalars__config__"


def write_board(comparison: Comparison, folder: str | Path, published: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write TensorBoard event files: a folder for each group, in it one for each control, and one for the figure.

    The step of a point is its number of kept weights; rows for which it is not known are left out.

    Args:
        comparison: what `compare` returns.
        folder: a folder that is new or has no event files.
        published: published numbers for the figure, as in `plot_comparison`.

    Returns:
        The folders written to.

    Raises:
        RequestError: the folder holds event files already, or is a file; or groups of several metrics.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.rglob("events.out.tfevents.*"))):
        raise RequestError(f"{folder} holds event files already, or is a file: choose a new folder")
    metric, curves = only_metric(comparison), dict[str, list[Row]]()
    for group, name in zip(comparison.groups, _names(comparison.groups), strict=True):
        curves[name] = list(group.levels)
        for row in group.controls:
            kind = row.control if row.trained else f"{row.control}-untrained"
            place = "" if row.data == group.data else f"-on-{row.data}"
            curves.setdefault(f"{name}/{_plain(kind + place)}", []).append(row)
    written = [folder / OVERVIEW]
    _write(written[0], [(0, [_layout(metric), _picture(figure_png(comparison, published), metric)])])
    for name, rows in curves.items():
        steps = {row.kept: _scalars(row, metric) for row in rows if row.kept is not None}
        if steps:
            # TensorBoard's reader drops what it has of a tag when a smaller step comes.
            _write(folder / name, sorted(steps.items()))
            written.append(folder / name)
    return written


def _names(groups: Sequence[Group]) -> list[str]:
    """A different folder name for each group."""
    found: list[str] = []
    for group in groups:
        name = _plain(group.label)
        taken = {OVERVIEW, *(other.lower() for other in found)}
        found.append(f"{name}-{group.id}" if name.lower() in taken else name)
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.,_-]+", "-", text).strip(".-")[:80] or "group"


def tags_of(metric: Metric) -> dict[str, str]:
    """The tags of a comparison by a metric, with their meanings."""
    if metric.is_accuracy:
        return TAGS
    words = {"test accuracy in percent": f"test {metric.in_words}"} | {
        "in percentage points": f"in {metric.gap_in_words}, positive where the ticket is better"
    }
    found = {}
    for tag, meaning in TAGS.items():
        for known, other in words.items():
            meaning = meaning.replace(known, other)
        found[tag.replace("accuracy", metric.name)] = meaning
    return found


def _scalars(row: Row, metric: Metric) -> list[dict[str, Any]]:
    low, high = row.interval or (None, None)
    # A control's difference is to the ticket, not to the dense network.
    gap = None if isinstance(row, Control) or row.difference is None else row.difference.mean
    values = (row.mean, low, high, row.early_step, gap)
    return [
        {"tag": tag, "simple_value": value, "metadata": _metadata("scalars", meaning, "DATA_CLASS_SCALAR")}
        for (tag, meaning), value in zip(tags_of(metric).items(), values, strict=True)
        if value is not None
    ]


def _metadata(plugin: str, meaning: str = "", data_class: str = "DATA_CLASS_UNKNOWN") -> dict[str, Any]:
    return {"summary_description": meaning, "plugin_data": {"plugin_name": plugin}, "data_class": data_class}


def _picture(png: bytes, metric: Metric) -> dict[str, Any]:
    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    image = {"encoded_image_string": png, "width": width, "height": height, "colorspace": 4}
    meaning = f"test {metric.name} against density and against the cost of the search"
    return {"tag": FIGURE, "image": image, "metadata": _metadata("images", meaning, "DATA_CLASS_BLOB_SEQUENCE")}


def _layout(metric: Metric) -> dict[str, Any]:
    """The charts of the CUSTOM SCALARS tab; each shows all groups."""
    value, low, high, steps, gap = tags_of(metric)
    margin = {"series": [{"value": value, "lower": low, "upper": high}]}
    charts = [
        {"title": f"test {metric.axis} by weights kept", "multiline": {"tag": [f"^{value}$"]}},
        {"title": "with 95 % intervals", "margin": margin},
        {"title": f"ticket minus dense ({metric.gap})", "multiline": {"tag": [f"^{gap}$"]}},
        {"title": "steps to minimum validation loss", "multiline": {"tag": [f"^{steps}$"]}},
    ]
    layout = Layout(version=0, category=[{"title": "comparison", "chart": charts}]).SerializeToString()
    tensor = {"dtype": "DT_STRING", "tensor_shape": {"dim": []}, "string_val": [layout]}
    return {"tag": _LAYOUT, "tensor": tensor, "metadata": _metadata("custom_scalars", "", "DATA_CLASS_TENSOR")}


def _write(folder: Path, steps: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]) -> None:
    writer = EventFileWriter(str(folder))
    for step, values in steps:
        writer.add_event(Event(wall_time=time.time(), step=step, summary={"value": values}))
    writer.close()
