"""Pictures of first-layer masks, upright and labelled."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
from numpy import bool_, float64
from numpy.typing import NDArray

if TYPE_CHECKING:
    from supermask import Masks

SHOWN = 64
_COLUMNS = 8
# In pixels: the longer side of a picture's frame, at least, and what stands beside it and above and below it.
_FRAME, _BESIDE, _ABOVE, _DPI = 360, 80, 50, 100


@dataclass(frozen=True)
class Picture:
    """Numbers to be drawn, the first row on top; NaN is a gap. Labels and ticks are of x and y; `bar` names counts."""

    pixels: NDArray[float64]
    title: str
    labels: tuple[str, str]
    ticks: tuple[dict[float, str], dict[float, str]]
    bar: str = ""


def kept_per_pixel(mask: NDArray[bool_], input_shape: Sequence[int]) -> NDArray[float64]:
    """The number of kept weights from each input pixel, laid out as the image is, channels side by side.

        kept_per_pixel(mask, (1, 28, 28))  # [28, 28] from a mask [units, 784]

    Args:
        mask: [units, channels * height * width], True = kept.
        input_shape: (channels, height, width).

    Returns:
        [height, channels * (width + 1) - 1], NaN between channels.
    """
    return _tile(mask.sum(axis=0).reshape(tuple(input_shape)), input_shape[0], gap=1)


def mask_grid(mask: NDArray[bool_], shape: Sequence[int]) -> NDArray[float64]:
    """The masks of the first 64 units in rows of 8, each laid out as `shape`, channels side by side; 1 = kept.

    Args:
        mask: [units, ...] of prod(shape) entries per unit, True = kept.
        shape: (channels, height, width) of what a unit sees: the input, or a filter's window.

    Returns:
        NaN between channels (1 pixel) and between units (1 pixel, 2 where there are several channels).
    """
    units = mask[:SHOWN].reshape(-1, *shape)
    cells = numpy.stack([_tile(unit, shape[0], gap=1) for unit in units])
    return _tile(cells, min(_COLUMNS, len(cells)), gap=1 if shape[0] == 1 else 2)


def _tile(cells: NDArray[Any], columns: int, gap: int) -> NDArray[float64]:
    number, height, width = cells.shape
    rows = math.ceil(number / columns)
    grid = numpy.full((rows * columns, height + gap, width + gap), numpy.nan)
    grid[:number, :height, :width] = cells
    joined = grid.reshape(rows, columns, height + gap, width + gap).transpose(0, 2, 1, 3)
    tiled: NDArray[float64] = joined.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]
    return tiled


def picture_first_layer(masks: Masks, input_shape: Any, step: int) -> dict[str, Picture]:
    """Pictures of the first masked tensor, by tag: of a linear layer over the pixels, or of a convolution over them.

    Args:
        masks: in the order of the network.
        input_shape: (channels, height, width); anything else, such as the shapes of a tuple or a dictionary, is no
            image, and there is no picture.
        step: for the titles.
    """
    if not (isinstance(input_shape, Sequence) and all(isinstance(size, int) for size in input_shape)):
        return {}
    name, mask = next(iter(masks.items()))
    shape, kept = tuple(input_shape), mask.cpu().numpy()
    linear = mask.dim() == 2 and mask.shape[1] == math.prod(shape)
    if len(shape) != 3 or not (linear or (mask.dim() == 4 and mask.shape[1] == shape[0])):
        return {}
    below = f"density {masks.densities[name]:.4g}, step {step}"
    what, seen = ("unit", shape) if linear else ("filter", kept.shape[1:])
    grid, shown = mask_grid(kept, seen), min(SHOWN, len(kept))
    columns, rows = min(_COLUMNS, shown), math.ceil(shown / _COLUMNS)
    across = {(column + 0.5) * grid.shape[1] / columns - 0.5: f"+{column}" for column in range(columns)}
    down = {(row + 0.5) * grid.shape[0] / rows - 0.5: f"{row * _COLUMNS}" for row in range(rows)}
    title = f"{name}: masks of the first {shown} of {len(kept)} {what}s, white = kept\n{below}"
    masks_picture = Picture(grid, title, (f"{what} after it", f"first {what} of the row"), (across, down))
    if not linear:
        return {"first-layer/masks": masks_picture}
    channels, height, width = shape
    named = {channel * (width + 1) + (width - 1) / 2: f"channel {channel}" for channel in range(channels)}
    counts_picture = Picture(
        kept_per_pixel(kept, shape),
        f"{name}: weights kept of each input pixel\n{below}",
        ("column of the image", "row of the image"),
        (_positions(width) if channels == 1 else named, _positions(height)),
        bar=f"weights kept, of {len(kept)}",
    )
    return {"first-layer/masks": masks_picture, "first-layer/kept-per-pixel": counts_picture}


def _positions(size: int) -> dict[float, str]:
    return {position: f"{position}" for position in range(0, size, math.ceil(size / 8))}


def draw(picture: Picture) -> tuple[bytes, int, int]:
    """A PNG with title, axes and, for counts, a bar of colours; its width and height in pixels.

    Every number gets the same whole number of pixels, so that none is lost.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height, width = picture.pixels.shape
    scale = math.ceil(_FRAME / max(height, width))
    wide, high = width * scale, height * scale
    full_wide, full_high = max(wide, _FRAME) + 2 * _BESIDE, high + 2 * _ABOVE
    figure = Figure(figsize=(full_wide / _DPI, full_high / _DPI), dpi=_DPI)
    left, bottom = (full_wide - wide) // 2 / full_wide, _ABOVE / full_high
    axes = figure.add_axes((left, bottom, wide / full_wide, high / full_high))
    axes.set_facecolor("white" if picture.bar else "tab:blue")
    image = axes.imshow(
        picture.pixels,
        cmap="viridis" if picture.bar else "gray",
        vmin=0,
        vmax=max(1.0, float(numpy.nanmax(picture.pixels))),
        origin="upper",
        interpolation="nearest",
        aspect="auto",
        zorder=3,  # over the frame, whose line would hide the outermost pixels
    )
    if picture.bar:
        beside = figure.add_axes((left + (wide + 10) / full_wide, bottom, 10 / full_wide, high / full_high))
        figure.colorbar(image, cax=beside, ticks=MaxNLocator(integer=True)).set_label(picture.bar, fontsize=8)
        beside.tick_params(labelsize=8)
    for axis, label, ticks in zip((axes.xaxis, axes.yaxis), picture.labels, picture.ticks, strict=True):
        axis.set_ticks(list(ticks), labels=list(ticks.values()), fontsize=8)
        axis.set_label_text(label, fontsize=8)
    axes.set_title(picture.title, fontsize=9)
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.print_png(file)
    return file.getvalue(), *canvas.get_width_height()
