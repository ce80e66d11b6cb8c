"""Figures in PNG, SVG or PDF: the metric against density and cost, and matrices as heat maps."""

from __future__ import annotations

import io
import math
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from supermask.masks.texts import harmless

from ..contract.errors import RequestError
from ..runs.outputs import write_output
from .curves import DPI, SMALL, Look, Point, draw, shorten
from .findings import Comparison

FORMATS = (".png", ".svg", ".pdf")
SUFFIXES = ".png, .svg or .pdf"
# What the formats would say of the time and of the program.
_METADATA = {".png": ("Software",), ".svg": ("Date", "Creator"), ".pdf": ("CreationDate", "Creator", "Producer")}


def plot_comparison(
    comparison: Comparison,
    path: str | Path,
    published: Sequence[Mapping[str, Any]] = (),
    *,
    look: Look | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw a comparison: the metric on the test split against density, and against the cost of the search where that is
    known.

        plot_comparison(compare(["runs/imp-1", "runs/imp-2"]), "comparison.svg")

    Args:
        comparison: what `compare` returns.
        path: the file; its suffix, .png, .svg or .pdf, gives the format.
        published: published numbers to draw as well: `{"label", "density", "accuracy"}`, the accuracy in percent.
        look: the arrangement of the panels and the beginning of the axis of values.
        overwrite: replace a file that exists already.

    Raises:
        RequestError: another suffix, a folder that does not exist, a file that exists already, or groups of several
            metrics.
    """
    path = check_path(path, overwrite)
    write_output(path, render(draw(comparison, published, look or Look()), path.suffix.lower()))
    return path


def figure_png(comparison: Comparison, published: Sequence[Mapping[str, Any]] = (), look: Look | None = None) -> bytes:
    """What `plot_comparison` draws, as a PNG. The same comparison gives the same bytes."""
    return render(draw(comparison, published, look or Look()), ".png")


def figure_svg(comparison: Comparison, published: Sequence[Mapping[str, Any]] = (), look: Look | None = None) -> bytes:
    """What `plot_comparison` draws, as an SVG without fonts. The same comparison gives the same bytes."""
    return render(draw(comparison, published, look or Look()), ".svg")


def figure_inline(comparison: Comparison, published: Sequence[Mapping[str, Any]], look: Look, prefix: str) -> str:
    """What `plot_comparison` draws, as an SVG element for a page.

    Every point has its text as a title, which a browser shows beside the pointer. Names that are given to elements
    begin with `prefix`, so that a page may have several figures. There is no text but titles: letters are paths.
    """
    points: list[Point] = []
    figure = draw(comparison, published, look, points)
    for number, point in enumerate(points):
        # A marker that cannot be seen, larger than the one that is drawn, to point at.
        figure.axes[point.panel].plot(
            point.x, point.y, "o", markersize=8, alpha=0, clip_on=False, zorder=9, gid=f"point-{number}"
        )
    root = ElementTree.fromstring(render(figure, ".svg"))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith("}metadata")]:
            parent.remove(child)
    for element in root.iter():
        # A page has no namespaces: `{http://www.w3.org/2000/svg}path` is `path`.
        element.tag = element.tag.rpartition("}")[2]
        named = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _prefix(name, value, prefix) for name, value in named.items()})
        if (place := named.get("id", "").removeprefix("point-")).isdecimal():
            title = ElementTree.Element("title")
            title.text = harmless(points[int(place)].text)
            element.insert(0, title)
            element.set("class", "point")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    # As large as it is drawn, where there is so much room.
    root.set("style", f"max-width: {figure.get_figwidth():.4g}in")
    return ElementTree.tostring(root, encoding="unicode")


def _prefix(name: str, value: str, prefix: str) -> str:
    """The value of an attribute, with the prefix before the name of an element, or where one is referred to."""
    if name == "id":
        return prefix + value
    if name == "href":
        return re.sub(r"^#", f"#{prefix}", value)
    return re.sub(r"url\(#", f"url(#{prefix}", value)


def plot_heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    path: str | Path,
    title: str,
    *,
    overwrite: bool = False,
) -> Path:
    """Draw a matrix with its numbers in the cells, such as densities of layers or overlaps of masks.

    Args:
        rows: the names of the rows, the first on top.
        columns: the names of the columns.
        values: a list of numbers for each row; None or NaN leaves the cell empty.
        path: the file, .png, .svg or .pdf.
        title: the text above the matrix.
        overwrite: replace a file that exists already.

    Raises:
        RequestError: as `plot_comparison`.
    """
    path = check_path(path, overwrite)
    write_output(path, render(_draw_heat_map(rows, columns, values, title), path.suffix.lower()))
    return path


def heat_map_png(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], title: str
) -> bytes:
    """What `plot_heat_map` draws, as a PNG."""
    return render(_draw_heat_map(rows, columns, values, title), ".png")


def check_path(path: str | Path, overwrite: bool) -> Path:
    """Return the path of a figure that can be written.

    Raises:
        RequestError: everything that is wrong with the path.
    """
    path = Path(path)
    problems = []
    if path.suffix.lower() not in FORMATS:
        problems.append(f"{path}: expected a name that ends in {SUFFIXES}")
    if not path.parent.is_dir():
        problems.append(f"there is no folder {path.parent}")
    if path.exists() and not overwrite:
        problems.append(f"{path} exists; nothing is overwritten")
    if problems:
        raise RequestError(problems)
    return path


def render(figure: Figure, suffix: str) -> bytes:
    """The bytes of a figure as PNG, SVG or PDF, without the time or random names, so that they repeat."""
    file = io.BytesIO()
    for text in figure.findobj(Text):
        # A name with dollars is no formula; the numbers of an axis may be.
        if r"\mathdefault" not in text.get_text():
            text.set_text(harmless(text.get_text()))
            text.set_parse_math(False)
    # A PDF has its fonts as TrueType: journals refuse those of type 3.
    with matplotlib.rc_context({"svg.hashsalt": "ticket", "svg.fonttype": "path", "pdf.fonttype": 42}):
        figure.savefig(file, format=suffix.removeprefix("."), metadata=dict.fromkeys(_METADATA[suffix]))
    return file.getvalue()


def _draw_heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], title: str
) -> Figure:
    cells = numpy.array([[math.nan if value is None else value for value in row] for row in values], dtype=float)
    assert cells.shape == (len(rows), len(columns)), "a value for each row and column"
    names = [[shorten(name, 40) for name in each] for each in (columns, rows)]
    wide = 1.6 + 0.075 * max(map(len, names[1]), default=0) + 0.52 * len(columns)
    high = 0.9 + 0.055 * max(map(len, names[0]), default=0) + 0.3 * len(rows)
    figure = Figure(figsize=(max(wide, 4), max(high, 2)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    finite = cells[numpy.isfinite(cells)]
    low, high_value = (min(0.0, finite.min()), max(finite.max(), 1e-12)) if finite.size else (0.0, 1.0)
    image = axes.imshow(cells, cmap="viridis", vmin=low, vmax=high_value, aspect="auto")
    figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=SMALL)
    for (row, column), value in numpy.ndenumerate(cells):
        if numpy.isfinite(value):
            pale = (value - low) / (high_value - low) > 0.6
            axes.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=SMALL - 1,
                color="black" if pale else "white",
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), names[0], fontsize=SMALL, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), names[1], fontsize=SMALL, parse_math=False)
    # The name of a run is often longer than a narrow matrix is wide.
    lines = textwrap.fill(shorten(title, 200), int(figure.get_figwidth() / 0.09))
    figure.suptitle(lines, fontsize=SMALL + 1, parse_math=False)
    return figure
