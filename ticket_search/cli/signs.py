"""`ticket signs`: is it the signs of a ticket's weights, or their magnitudes?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import analysis, questions
from ..runs.progress import Progress
from .terminal import errors, output, print_json, print_sentence, print_table, stop_told
from .tickets import Data, Loss, MaxMinutes, Metric, Model

if TYPE_CHECKING:
    from ..analysis.intervals import Difference
    from ..questions.signs import Arm, Signs

# What each arm starts from, under the ticket's mask.
_STARTS = {
    "ticket": "its own initial weights",
    "initial-signs": "its initial signs, one magnitude for each layer",
    "trained-signs": "its trained signs, one magnitude for each layer",
    "magnitudes": "its initial magnitudes, random signs",
    "reinit": "fresh weights",
    "shuffle": "its own, the mask shuffled within layers",
}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("signs")(signs)


def signs(
    run: Annotated[list[str], typer.Argument(help="Finished runs that differ in their seeds only, as runs/imp-*.")],
    level: Annotated[
        int | None, typer.Option("--level", help="The level of the search; the last if not given.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta",
            help="By how much less may do what the ticket does: percentage points of accuracy, 0.5 if not given, or "
            "the unit of another metric.",
        ),
    ] = None,
    plot: Annotated[
        str, typer.Option("--plot", help="Draw the means with their intervals to this file, .png, .svg or .pdf.")
    ] = "",
    model: Model = None,
    data: Data = None,
    loss: Loss = None,
    metric: Metric = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train what starts from a ticket's signs or its magnitudes only, and say whether it is the signs. Several runs of
    one configuration give intervals, and what their masks have in common.
    """
    if plot:
        analysis.plots.check_path(plot, overwrite)
    given: dict[str, Any] = {"model": model, "data": data, "loss": loss, "metric": metric}
    with stop_told(), Progress() as progress:
        progress.label("loading PyTorch, the data and the network")
        found = questions.signs.signs(run, level=level, delta=delta, runs=runs, progress=progress, **given)
    if plot:
        questions.signs.plot_signs(found, plot, overwrite=overwrite)
        errors().print(f"wrote {plot}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json(found.to_dict())
        return
    _show(found)


def _show(found: Signs) -> None:
    print_sentence(found.headline, "bold")
    number, metric = len(found.runs), found.metric
    about = f"{number} run{'s' if number > 1 else ''}, {100 * found.density:.3g} % of the weights"
    output().print(f"\n{about}; trained under its mask, from", markup=False, highlight=False)
    columns = ("start", f"test {metric.column}", "95 % interval", f"to the ticket ({metric.gap})", "p (Holm)")
    print_table(columns, [_arm_cells(arm, metric) for arm in found.arms])
    if tested := sum(arm.p_holm is not None for arm in found.arms):
        line = f"p (Holm): corrected over these {tested} differences to the ticket and that of the last question"
        output().print(f"{line}; `ticket compare` corrects over fewer", markup=False, highlight=False)
    print_table(
        ("question", "answer", "because"), [(each.question, each.in_words(), each.because) for each in found.answers]
    )
    output().print("share of weights that keep their sign, by layer", markup=False, highlight=False)
    shares = ("kept, in the ticket", "kept, in the dense network", "dropped, in the dense network",
              "kept, trained dense and ticket")  # fmt: skip
    print_table(
        ("layer", "kept", *shares),
        [
            (row.layer, f"{row.weights:,.0f}", *map(_share, (row.ticket, row.dense, row.dropped, row.trained)))
            for row in found.agreement
        ],
    )
    if found.overlaps:
        line = f"what the masks of {number} runs have in common; by chance: random masks; deviations: standard ones"
        output().print(line, markup=False, highlight=False)
        print_table(
            ("layer", "in all", "by chance", "in any", "by chance", "pairs overlap", "by chance", "deviations"),
            [
                (
                    row.layer, _share(row.intersection), _share(row.intersection_by_chance), _share(row.union),
                    _share(row.union_by_chance), _share(row.overlap), _share(row.by_chance),
                    "" if row.beyond is None else f"{row.beyond:+.1f}",
                )
                for row in found.overlaps
            ],
        )  # fmt: skip


def _arm_cells(arm: Arm, metric: Any) -> tuple[str, ...]:
    chance = "" if arm.p_holm is None else f"{arm.p_holm:.2g}"
    return (
        f"{arm.name}: {_STARTS.get(arm.name, arm.name)}", metric.show(arm.mean), _range(arm.interval, metric.form),
        _gap(arm.difference, metric.form), chance,
    )  # fmt: skip


def _range(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _gap(gap: Difference | None, form: str) -> str:
    if gap is None:
        return ""
    inside = "" if gap.interval is None else f" [{gap.interval[0]:+{form}}, {gap.interval[1]:+{form}}]"
    return f"{gap.mean:+{form}}{inside}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
