"""What each layer alone can lose: the metric on validation against the share of its filters, without retraining.

Li et al., Pruning Filters for Efficient ConvNets, 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from supermask import Masks
from supermask.choosing.pruning import zeroed
from supermask.tickets.file import write_atomically

from ..contract.metric import ACCURACY, Metric
from ..runs.names import SENSITIVITY, SENSITIVITY_PICTURE
from ..runs.records import write_json
from ..runs.run import Run
from .evaluation import evaluate
from .precision import make_arithmetic
from .trial import find_objective

DENSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def scan_layer(
    model: nn.Module,
    run: Run,
    masks_at: Callable[[float], Masks],
    one_more: Callable[[], None],
) -> dict[str, Any]:
    """The metric on validation with masks of each density, from high to low; the model is as it was after."""
    accuracies = []
    objective, arithmetic = find_objective(run.setup, run.config, model), make_arithmetic(run.config)
    for density in DENSITIES:
        run.stop_if_asked()
        with zeroed(model, masks_at(density)):
            accuracies.append(evaluate(model, run.data, "validation", objective, arithmetic).value)
        one_more()
    return {"accuracies": accuracies}


def lowest(accuracies: list[float], dense: float, tolerance: float, metric: Metric = ACCURACY) -> float:
    """The lowest density down to which no step costs more than `tolerance` of the metric; 1 where the first does."""
    found = 1.0
    for density, accuracy in zip(DENSITIES, accuracies, strict=True):
        if metric.merit(dense) - metric.merit(accuracy) > tolerance:
            break
        found = density
    return found


def tell_scan(
    run: Run, dense: float, accuracies: Mapping[str, list[float]], tolerance: float | None
) -> dict[str, float]:
    """Tell the lowest density at which pruning each layer alone costs at most `tolerance`.

    If that is None, 1 percentage point of accuracy; of another metric there is none to be told.
    """
    metric = run.metric
    points = tolerance if tolerance is not None else 1.0 if metric.is_accuracy else None
    if points is None:
        return {}
    found = {name: lowest(measured, dense, points, metric) for name, measured in accuracies.items()}
    unit = "points" if metric.is_accuracy else metric.gap_in_words
    for name, density in found.items():
        run.progress.say(
            f"{name} alone: down to {density:.0%} of its filters within {points:g} {unit} of {metric.with_unit(dense)}"
        )
    run.progress.say(f"each layer alone: {run.path}/sensitivity.png, sensitivity.json")
    return found


def save_scan(folder: Path, dense: float, accuracies: Mapping[str, list[float]], metric: Metric = ACCURACY) -> None:
    """Write `sensitivity.json` and `sensitivity.png`."""
    values = {"accuracies" if metric.is_accuracy else "values": dict(accuracies)}
    named = {} if metric.is_accuracy else {"metric": metric.to_dict()}
    write_json(folder / SENSITIVITY, {**named, "dense": dense, "densities": list(DENSITIES), **values})
    write_atomically(folder / SENSITIVITY_PICTURE, _draw(dense, accuracies, metric))


def _draw(dense: float, accuracies: Mapping[str, list[float]], metric: Metric) -> bytes:
    import io

    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, max(4, 1 + 0.2 * len(accuracies))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    colours = colormaps["viridis"]
    for place, (name, measured) in enumerate(accuracies.items()):
        colour = colours(0.95 * place / max(1, len(accuracies) - 1))
        panel.plot((1.0, *DENSITIES), (dense, *measured), "o-", ms=3, lw=1.2, color=colour, label=name)
    panel.set_xlim(1.02, 0.08)
    panel.axhline(dense, ls="--", lw=0.8, color="#777777", label=f"dense, {metric.with_unit(dense)}")
    panel.set_xlabel("share of the layer's filters or hidden units kept")
    panel.set_ylabel("validation accuracy, %" if metric.is_accuracy else f"validation {metric.in_words}")
    panel.set_title("One layer pruned at a time, not retrained", fontsize=10)
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
