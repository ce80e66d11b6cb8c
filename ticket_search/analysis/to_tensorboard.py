"""A comparison in TensorBoard: an entry for each method, which TensorBoard lays over one another in every chart.

The page that opens first begins with pictures of a table by density and of the headlines. CUSTOM SCALARS has the means
over the seeds with their 95 % bands, HPARAMS the table, and TEXT the headlines and all numbers.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ..contract.errors import RequestError
from ..contract.metric import Metric
from ..runs.names import METRICS
from ..runs.records import read_rows
from .curves import shorten
from .findings import Comparison, Control, Group, Level, only_metric
from .headlines import headlines
from .intervals import confidence_interval
from .levels import join_densities
from .markdown import escape
from .plots import figure_png, render
from .tables import to_markdown

# TensorBoard sorts the groups of tags by name, and opens with the first: the numbers put them in the order of reading.
# `{}` stands for a density, or for the kind of a control. Tags of another metric than accuracy have its name in them.
BEST = "1-which-method-is-better/by-density"
HEADLINES = "1-which-method-is-better/headlines"
TEXT = "1-which-method-is-better/in-words"
KEPT = "2-by-weights-kept/test-accuracy"
GAP = "2-by-weights-kept/ticket-minus-dense"
EARLY = "2-by-weights-kept/when-validation-loss-is-least"
COST = "3-by-cost/test-accuracy"
STEP = "4-by-step/validation-accuracy-at-density-{}"
CONTROL = "5-controls/{}"
TABLE = "6-table/test-accuracy-at-density-{}"
LAST = "6-table/test-accuracy-at-its-sparsest"
ENDS = "7-ends-of-intervals/"
FIGURE = "8-figure/figure"
TAGS = {
    BEST: "test accuracy in percent of each method at each density, mean over seeds and half of its 95 % interval",
    HEADLINES: "whether the tickets match the dense network: one line for each method and density",
    TEXT: "the headlines, and all numbers",
    KEPT: "test accuracy in percent, mean over seeds, by the number of weights kept",
    GAP: "ticket minus dense in percentage points, mean of differences paired by seed, by the number of weights kept",
    EARLY: "step of minimum validation loss, mean over seeds, by the number of weights kept",
    COST: "test accuracy in percent, mean over seeds, by the cost of the search in percent of a dense training",
    STEP: "validation accuracy in percent, mean over seeds, by the training step of the searches for this density",
    CONTROL: "test accuracy in percent of controls of this kind, mean over seeds, by the number of weights kept",
    TABLE: "test accuracy in percent at this density, mean over seeds: a column of the HPARAMS tab",
    LAST: "test accuracy in percent at the method's sparsest level, mean over seeds: a column of the HPARAMS tab",
    ENDS: "an end of the 95 % interval of the mean: of the bands in the CUSTOM SCALARS tab",
    FIGURE: "test accuracy against density and against the cost of the search; see it in its actual size",
}
OVERVIEW = "comparison"
_LAYOUT = "custom_scalars__config__"
# Pictures of the size and shape of a card, which TensorBoard scales pixel by pixel, and what they have room for.
_WIDTH, _HEIGHT, _PIXELS = 4.08, 2.12, 200
_LETTERS, _MOST_LINES, _MOST_COLUMNS = 58, 9, 4
# TensorBoard ticks five metrics in the HPARAMS tab: the value at the sparsest level, and that at so many densities.
# More are there only where several methods have them.
_MOST_CELLS = 4
# Of the HPARAMS tab; TensorBoard sorts them by name, and few leave room for the accuracies.
_COLUMNS = {"method": "string", "density": "float64", "matches_dense_down_to": "float64"}
# Values by tag for each step.
_Curves = dict[int, dict[str, float]]


@dataclass(frozen=True)
class _Entry:
    """What TensorBoard lists under one name: the groups of a method that differ in density only, and them as one."""

    name: str
    groups: tuple[Group, ...]
    joined: Group

    @property
    def is_dense(self) -> bool:
        """Whether this is a dense network."""
        return self.joined.verdict is None


def write_board(comparison: Comparison, folder: str | Path, published: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write TensorBoard event files: a folder for each method, and one for the figure and the headlines.

    Rows for which the number of kept weights is not known are in the table and by cost only. Curves by step are there
    where the folders of the runs are.

    Args:
        comparison: what `compare` returns.
        folder: a folder that is new or has no event files.
        published: published numbers for the figure, as in `plot_comparison`.

    Returns:
        The folders written to.

    Raises:
        RequestError: the folder holds event files already, or is a file; groups of several metrics; or a run whose log
            is damaged.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.rglob("events.out.tfevents.*"))):
        raise RequestError(f"{folder} holds event files already, or is a file: choose a new folder")
    metric, entries = only_metric(comparison), _entries(comparison.groups)
    columns, most_kept = _columns(entries), _most_kept(entries)
    curves = {entry.name: _curves(entry, entries, columns, most_kept, metric) for entry in entries}
    tags = sorted({tag for steps in curves.values() for values in steps.values() for tag in values})
    overview = [*_pictures(comparison, entries, columns, published), _text(comparison, metric), _layout(tags, metric)]
    written = [folder / OVERVIEW]
    _write(written[0], [(0, overview)])
    for entry in entries:
        described = [
            _session("experiment", _experiment(entries, columns, metric)),
            _session("session_start_info", _start(entry)),
        ]
        # TensorBoard's reader drops what it has of a tag when a smaller step comes.
        steps = [(step, _scalars(values, metric)) for step, values in sorted(curves[entry.name].items())]
        ended = _session("session_end_info", {"status": "STATUS_SUCCESS", "end_time_secs": time.time()})
        _write(folder / entry.name, [(0, described), *steps, (0, [ended])])
        written.append(folder / entry.name)
    return written


def _entries(groups: Sequence[Group]) -> list[_Entry]:
    """The groups that differ in density only as one entry, each with a folder name of its own."""
    found: list[_Entry] = []
    for joined in join_densities(groups):
        ids = {id(row) for row in joined.levels}
        own = tuple(group for group in groups if ids & {id(row) for row in group.levels})
        name = _plain(joined.curve or joined.label)
        if name.lower() in {OVERVIEW, *(other.name.lower() for other in found)}:
            name = f"{name}-{joined.id}"
        found.append(_Entry(name, own, joined))
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.,_-]+", "-", text).strip(".-")[:80] or "group"


def tag_of(tag: str, metric: Metric) -> str:
    """The tag of another metric in place of that of accuracy."""
    return tag.replace("accuracy", _plain(metric.name))


def meaning_of(tag: str, metric: Metric) -> str:
    """What a tag of a board by a metric means."""
    for known, meaning in TAGS.items():
        if tag.startswith(tag_of(known, metric).partition("{}")[0]):
            if metric.is_accuracy:
                return meaning
            words = meaning.replace("accuracy in percent", metric.in_words).replace("accuracy", metric.name)
            return words.replace(
                "in percentage points", f"in {metric.gap_in_words}, positive where the ticket is better"
            )
    raise AssertionError(tag)


def _most_kept(entries: Iterable[_Entry]) -> list[int]:
    """The fewest and the most weights that any network keeps."""
    kept = [row.kept for entry in entries for row in entry.joined.levels if row.kept is not None]
    return [min(kept), max(kept)] if kept else []


def _columns(entries: Sequence[_Entry]) -> list[str]:
    """The densities that make a column of the table, from the densest.

    Those of several methods, the sparsest of each, and as many others between them as there is room for.
    """
    found: dict[str, list[float]] = {}
    sparsest = set()
    for entry in entries:
        own = {f"{row.density:.3g}": row.density for row in entry.joined.levels}
        sparsest.add(min(own, key=lambda text: own[text]))
        for text, density in own.items():
            found.setdefault(text, []).append(density)
    ordered = sorted(found, key=lambda text: -found[text][0])
    chosen = [text for text in ordered if len(found[text]) > 1 or text in sparsest]
    others = [text for text in ordered if text not in chosen]
    return [text for text in ordered if text in {*chosen, *_spread(others, max(0, _MOST_CELLS - len(chosen)))}]


def _spread(items: Sequence[str], number: int) -> list[str]:
    """At most `number` items, evenly from the first to the last."""
    if len(items) <= number:
        return list(items)
    return [items[round(place * (len(items) - 1) / max(1, number - 1))] for place in range(number)]


def _curves(
    entry: _Entry, entries: Sequence[_Entry], columns: Sequence[str], kept: Sequence[int], metric: Metric
) -> _Curves:
    """All values of an entry by step and tag; what a step counts differs from tag to tag."""
    steps: _Curves = {}

    def add(step: int, tag: str, value: float | None, interval: tuple[float, float] | None = None) -> None:
        values = steps.setdefault(step, {})
        if value is not None:
            values[tag_of(tag, metric)] = value
        if interval is not None:
            low, high = ends_of(tag_of(tag, metric))
            values[low], values[high] = interval

    for row in entry.joined.levels:
        # A dense network is drawn as a line: charts leave out a single point beside longer curves.
        for place in kept if entry.is_dense else [] if row.kept is None else [row.kept]:
            add(place, KEPT, row.mean, row.interval)
            add(place, EARLY, row.early_step)
            add(place, GAP, None if row.difference is None else row.difference.mean, _interval_of_gap(row))
        if row.dense_trainings is not None:
            add(round(100 * row.dense_trainings), COST, row.mean, row.interval)
        if (density := f"{row.density:.3g}") in columns:
            for end in (0, 1):
                add(end, TABLE.format(density), row.mean)
    for end in (0, 1):
        add(end, LAST, min(entry.joined.levels, key=lambda row: row.density).mean)
    for control in entry.joined.controls:
        if control.kept is not None:
            add(control.kept, CONTROL.format(_kind(control, entry.joined)), control.mean, control.interval)
    for density, group in _searches(entry, entries):
        for step, values in validation_by_step(group, metric).items():
            add(step, STEP.format(density), statistics.fmean(values), confidence_interval(values))
    return {step: values for step, values in steps.items() if values}


def _interval_of_gap(row: Level) -> tuple[float, float] | None:
    return None if row.difference is None else row.difference.interval


def ends_of(tag: str) -> tuple[str, str]:
    """The tags of the lower and of the upper end of the interval of what has a tag."""
    text = tag.replace("/", "-")
    return f"{ENDS}{text}-low", f"{ENDS}{text}-high"


def _kind(control: Control, group: Group) -> str:
    place = "" if control.data == group.data else f"-on-{control.data}"
    return _plain((control.control if control.trained else f"{control.control}-untrained") + place)


def _searches(entry: _Entry, entries: Iterable[_Entry]) -> list[tuple[str, Group]]:
    """The densities whose charts by step show an entry, with the group to show: a dense network is in all of them."""
    if entry.is_dense:
        densities = {f"{group.density:.3g}" for other in entries if not other.is_dense for group in other.groups}
        return [(density, entry.groups[0]) for density in sorted(densities or {"1"})]
    return [(f"{group.density:.3g}", group) for group in entry.groups]


def validation_by_step(group: Group, metric: Metric) -> dict[int, list[float]]:
    """The values on validation at each step of the searches of a group, of all seeds, where all seeds have some.

    Empty where they were not made here, or their folders are gone.

    Raises:
        RequestError: a log is damaged.
    """
    logs = [Path(run) / METRICS for run in group.runs]
    if not all(log.is_file() for log in logs):
        return {}
    tag, found = f"{metric.name}/validation", dict[int, list[float]]()
    for log in logs:
        own = {int(row["step"]): float(row[tag]) for row in read_rows(log) if tag in row}
        for step, value in own.items():
            found.setdefault(step, []).append(value)
    return {step: values for step, values in sorted(found.items()) if len(values) == len(logs)}


def _scalars(values: Mapping[str, float], metric: Metric) -> list[dict[str, Any]]:
    return [
        {"tag": tag, "simple_value": value, "metadata": _metadata("scalars", meaning_of(tag, metric), "SCALAR")}
        for tag, value in values.items()
    ]


def _metadata(plugin: str, meaning: str = "", data_class: str = "UNKNOWN", content: bytes = b"") -> dict[str, Any]:
    named = {"plugin_name": plugin, "content": content}
    return {"summary_description": meaning, "plugin_data": named, "data_class": f"DATA_CLASS_{data_class}"}


def _pictures(
    comparison: Comparison, entries: Sequence[_Entry], columns: Sequence[str], published: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What the page that opens first begins with, and the figure of the comparison."""
    metric = only_metric(comparison)
    told = [part for line in headlines(comparison) for part in _wrapped(f"{line.subject}: {line.text}")]
    if len(told) > _MOST_LINES:
        told = [*told[: _MOST_LINES - 1], "... all of them are in TEXT"]
    drawn = {
        BEST: _draw_table(entries, columns, metric),
        HEADLINES: _draw_lines("Compared with the dense network", told),
    }
    return [_picture(tag, render(figure, ".png"), metric) for tag, figure in drawn.items() if figure is not None] + [
        _picture(FIGURE, figure_png(comparison, published), metric)
    ]


def _picture(tag: str, png: bytes, metric: Metric) -> dict[str, Any]:
    wide, high = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    image = {"encoded_image_string": png, "width": wide, "height": high, "colorspace": 4}
    return {"tag": tag, "image": image, "metadata": _metadata("images", meaning_of(tag, metric), "BLOB_SEQUENCE")}


def _wrapped(text: str) -> list[str]:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.wrap(printable, _LETTERS, subsequent_indent="   ")


def _blank(title: str) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_PIXELS)
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.97, title, fontsize=9, weight="bold", va="top", parse_math=False)
    return figure


def _draw_lines(title: str, lines: Sequence[str]) -> Figure | None:
    """A title and some lines; nothing of no lines."""
    if not lines:
        return None
    figure = _blank(title)
    for place, line in enumerate(lines):
        figure.text(0.02, 0.82 - 0.095 * place, line, fontsize=8, va="top", parse_math=False)
    return figure


def _draw_table(entries: Sequence[_Entry], columns: Sequence[str], metric: Metric) -> Figure:
    """The methods by density: mean over the seeds, half of its interval, and the best of several means in bold."""
    shown = _most_telling(entries, columns)
    figure = _blank(f"Test {shorten(metric.axis, 30)}: mean \u00b1 95 % interval")
    wide, form = min(0.2, 0.7 / len(shown)), ".1f" if metric.unit == "%" else ".3g"
    places = [0.98 - wide * (len(shown) - 1 - index) for index in range(len(shown))]
    figure.text(0.02, 0.82, "weights kept", fontsize=8, va="top", color="#555555")
    for place, density in zip(places, shown, strict=True):
        figure.text(place, 0.82, f"{100 * float(density):.3g} %", fontsize=8, va="top", ha="right", color="#555555")
    merits = {density: [metric.merit(row.mean) for row in _at(entries, density)] for density in shown}
    best = {density: max(values) for density, values in merits.items() if len(values) > 1}
    # Those that are compared with first, then the better ones, by the sparsest density that is shown.
    order = {
        entry.name: [-metric.merit(row.mean) for row in _at([entry], shown[-1])] or [math.inf] for entry in entries
    }
    listed = sorted(entries, key=lambda entry: (not entry.is_dense, order[entry.name]))
    listed = [entry for entry in listed if any(_at([entry], density) for density in shown)]
    for index, entry in enumerate(listed[: _MOST_LINES - 1]):
        high = 0.72 - 0.09 * index
        name = shorten(entry.joined.curve or entry.joined.label, int(62 * (places[0] - wide)))
        figure.text(0.02, high, name, fontsize=8, va="top", parse_math=False)
        for place, density in zip(places, shown, strict=True):
            for row in _at([entry], density):
                half = "" if row.interval is None else f" \u00b1 {(row.interval[1] - row.interval[0]) / 2:{form}}"
                weight = "bold" if metric.merit(row.mean) == best.get(density) else "normal"
                text = f"{row.mean:{form}}{half}"
                figure.text(place, high, text, fontsize=8, va="top", ha="right", weight=weight)
    return figure


def _at(entries: Iterable[_Entry], density: str) -> list[Level]:
    """The rows of entries at a density, written as a column of the table."""
    return [row for entry in entries for row in entry.joined.levels if f"{row.density:.3g}" == density]


def _most_telling(entries: Sequence[_Entry], columns: Sequence[str]) -> list[str]:
    """As many columns as a picture has room for: each method in one of them if that can be, others evenly spread."""
    chosen: list[str] = []
    missing = list(entries)
    while missing and len(chosen) < _MOST_COLUMNS:
        # Of those that show equally many methods the sparsest.
        best = max(reversed(columns), key=lambda density: len(_at(missing, density)))
        chosen.append(best)
        missing = [entry for entry in missing if not _at([entry], best)]
    others = [density for density in columns if density not in chosen]
    shared = [density for density in others if len(_at(entries, density)) > 1] or others
    chosen += _spread(shared, _MOST_COLUMNS - len(chosen))
    return [density for density in columns if density in chosen]


def _text(comparison: Comparison, metric: Metric) -> dict[str, Any]:
    """What the TEXT tab shows, in Markdown."""
    told = "\n".join(f"- {escape(f'{line.subject}: {line.text}', None)}" for line in headlines(comparison))
    guide = (
        "In CUSTOM SCALARS each chart has all methods, with the mean over the seeds and its 95 % band; HPARAMS is the "
        "table of methods by density. The filter of runs takes a regular expression, as `^imp`."
    )
    parts = ["# Which method is better, at which density?", told, guide, to_markdown(comparison)]
    tensor = _string_tensor("\n\n".join(part for part in parts if part).encode())
    return {"tag": TEXT, "tensor": tensor, "metadata": _metadata("text", meaning_of(TEXT, metric), "TENSOR")}


def _string_tensor(value: bytes) -> dict[str, Any]:
    return {"dtype": "DT_STRING", "tensor_shape": {"dim": []}, "string_val": [value]}


def _layout(tags: Sequence[str], metric: Metric) -> dict[str, Any]:
    """The charts of the CUSTOM SCALARS tab; each shows all methods."""
    kept, cost, gap, early = (tag_of(tag, metric) for tag in (KEPT, COST, GAP, EARLY))
    by_step = {tag: tag.rpartition("-")[2] for tag in tags if tag.startswith(tag_of(STEP, metric).partition("{}")[0])}
    bands = {
        kept: f"test {metric.axis} by the number of weights kept",
        cost: f"test {metric.axis} by the cost of the search, 100 = one dense training",
        gap: f"ticket minus dense ({metric.gap}) by the number of weights kept",
        **{tag: f"validation {metric.axis} by training step, density {density}" for tag, density in by_step.items()},
    }
    margins = []
    for tag, title in bands.items():
        low, high = ends_of(tag)
        margins.append({"title": title, "margin": {"series": [{"value": tag, "lower": low, "upper": high}]}})
    lines = {"steps to minimum validation loss by weights kept": [f"^{re.escape(early)}$"]}
    if any(tag.startswith(CONTROL.partition("{}")[0]) for tag in tags):
        lines["tickets and their controls by weights kept"] = [f"^{re.escape(kept)}$", f"^{CONTROL.format('.*')}$"]
    charts = [{"title": title, "multiline": {"tag": patterns}} for title, patterns in lines.items()]
    categories = [
        {"title": "Which method is better? Mean over seeds, with its 95 % band", "chart": margins[:1]},
        {"title": "Against the dense network, and by what the search costs", "chart": margins[1:]},
        {"title": "More", "chart": charts},
    ]
    layout = Layout(version=0, category=categories).SerializeToString()
    return {"tag": _LAYOUT, "tensor": _string_tensor(layout), "metadata": _metadata("custom_scalars", "", "TENSOR")}


def _experiment(entries: Sequence[_Entry], columns: Sequence[str], metric: Metric) -> dict[str, Any]:
    """The columns of the HPARAMS tab: first the densities of most methods, of these the sparsest first."""
    ordered = sorted(reversed(columns), key=lambda density: -len(_at(entries, density)))
    names = [{"name": name, "type": f"DATA_TYPE_{kind.upper()}", "differs": True} for name, kind in _COLUMNS.items()]
    metrics = [
        {
            "name": {"tag": tag_of(TABLE, metric).format(density)},
            "display_name": f"test {metric.column} at {100 * float(density):.3g} %",
        }
        for density in ordered
    ]
    last = {"name": {"tag": tag_of(LAST, metric)}, "display_name": f"test {metric.column}"}
    return {"hparam_infos": names, "metric_infos": [last, *metrics]}


def _start(entry: _Entry) -> SessionStartInfo:
    """The cells of an entry in the columns of the HPARAMS tab: of its sparsest level."""
    start, verdict = SessionStartInfo(start_time_secs=time.time()), entry.joined.verdict
    start.hparams["method"].string_value = entry.joined.curve or entry.joined.label
    start.hparams["density"].number_value = min(row.density for row in entry.joined.levels)
    if verdict is not None and verdict.sparsest_matching is not None:
        start.hparams["matches_dense_down_to"].number_value = verdict.sparsest_matching
    return start


def _session(kind: str, content: Any) -> dict[str, Any]:
    data = HParamsPluginData(version=0, **{kind: content}).SerializeToString()
    nothing = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{}]}}
    return {"tag": f"_hparams_/{kind}", "metadata": _metadata("hparams", content=data), "tensor": nothing}


def _write(folder: Path, steps: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]) -> None:
    writer = EventFileWriter(str(folder))
    for step, values in steps:
        writer.add_event(Event(wall_time=time.time(), step=step, summary={"value": values}))
    writer.close()
