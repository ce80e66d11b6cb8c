"""`ticket connect`: is training stable to the noise of SGD, and from which step on?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import questions
from ..contract.errors import RequestError
from ..contract.metric import Metric as MetricOf
from ..runs.progress import Progress
from .terminal import harmless, output, print_json, print_sentence, print_table, stop_told
from .tickets import Data, Loss, MaxMinutes, Metric, Model

if TYPE_CHECKING:
    from ..questions.barriers import Barrier
    from ..questions.connectivity import Connectivity, RawBarrier


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("connect")(connect)


def connect(
    run: Annotated[
        list[str], typer.Argument(help="The folder or name of a finished run, or of two for the barrier between them.")
    ],
    rewind: Annotated[
        str | None,
        typer.Option("--rewind", help="Steps that children share, as 0,100it,2ep; 0 and the run's own if not given."),
    ] = None,
    level: Annotated[
        int | None, typer.Option("--level", help="The level of the ticket; the last if not given.")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", help="Pairs of children at each step; 1 if not given.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", help="Some of dense,ticket,reinit,shuffle; all if not given.")
    ] = None,
    model: Model = None,
    data: Data = None,
    loss: Loss = None,
    metric: Metric = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find out from which step on training is stable to the noise of SGD, densely and under a ticket's mask.

    The network is trained to each step of --rewind. From there two children are trained that differ in data order and
    augmentation only, and the error is measured at 30 points on the straight line between them. The barrier is the
    highest error less the mean of the two ends; below 2 percentage points training is stable (Frankle et al., Linear
    Mode Connectivity and the Lottery Ticket Hypothesis, 2020). The ticket's mask is tried over fresh weights (reinit)
    and shuffled too. What is there already is not trained again. The result lies in the run's connect.json and
    connect.png.

    Of two runs the barrier between their final networks is measured, which says nothing of stability.
    """
    code = {"model": model, "data": data, "loss": loss, "metric": metric}
    asked = {"--rewind": rewind, "--level": level, "--pairs": pairs, "--arms": arms}
    if len(run) > 2:
        raise RequestError(f"{len(run)} runs: expected one, or two for the barrier between their final networks")
    if len(run) == 2 and (given := [flag for flag, value in asked.items() if value is not None]):
        raise RequestError(
            f"{', '.join(given)} and two runs: children are trained of one run; give one, or leave these out"
        )
    with stop_told(), Progress() as progress:
        progress.label("loading PyTorch, the data and the network")
        shared: dict[str, Any] = {**code, "runs": runs, "progress": progress}
        if len(run) == 2:
            between = questions.connectivity.raw_barrier(run[0], run[1], **shared)
        else:
            found = questions.connectivity.connect(
                run[0], None if rewind is None else rewind.split(","),
                level=level, pairs=1 if pairs is None else pairs, arms=None if arms is None else arms.split(","),
                **shared,
            )  # fmt: skip
    if as_json:
        print_json((between if len(run) == 2 else found).to_dict())
    elif len(run) == 2:
        _show_between(between)
    else:
        _show(found)


def _show_between(found: RawBarrier) -> None:
    metric = found.metric
    print_sentence(
        f"raw barrier between two runs: {_size(found.barrier, metric)}; it says nothing of stability, because the runs "
        "do not share their first steps"
    )
    ends = " and ".join(f"{end:.4g}" for end in found.ends)
    told = f"errors of the two: {ends}; highest between them: {max(found.errors):.4g}; barrier of the loss: "
    print_sentence(f"{told}{found.loss_barrier:.3g}")
    if (inner := found.barrier_statistics_interpolated) is not None:
        print_sentence(
            f"with the running statistics of norms interpolated, not estimated anew: {_size(inner, metric)}, which "
            "measures the statistics and not the weights"
        )


def _show(found: Connectivity) -> None:
    print_sentence(found.headline)
    metric, barriers = found.metric, found.barriers
    columns = ["arm", "step k", "barrier", "interval", "pairs", "vs dense", "loss barrier", "error of children"]
    rows = [_cells(barrier, metric) for barrier in barriers]
    if any(barrier.interpolated is not None for barrier in barriers):
        columns.append("statistics interpolated")
        rows = [[*row, _number(barrier.interpolated)] for row, barrier in zip(rows, barriers, strict=True)]
    idle = [
        place
        for place, name in enumerate(columns)
        if name in ("interval", "vs dense") and not any(r[place] for r in rows)
    ]
    told = [place for place in range(len(columns)) if place not in idle]
    print_table([columns[place] for place in told], [[row[place] for place in told] for row in rows])
    print_sentence(
        f"barrier: highest error on the line less the mean of its ends, in {metric.gap_in_words}, mean over pairs "
        "[95 % interval]"
        + ("; an interval needs --pairs 2 or more" if "interval" not in [columns[p] for p in told] else "")
    )
    if found.remark:
        print_sentence(f"note: {found.remark}")
    for arm, why in found.left_out.items():
        print_sentence(f"no {arm}: {why}")
    output().print(harmless(f"wrote {found.path} and {found.picture}"), markup=False, highlight=False, soft_wrap=True)


def _cells(barrier: Barrier, metric: MetricOf) -> list[Any]:
    versus = barrier.to_dense
    interval = "" if barrier.interval is None else f"[{barrier.interval[0]:.2f}, {barrier.interval[1]:.2f}]"
    gap = "" if versus is None else f"{versus.mean:+.2f}"
    if versus is not None and versus.interval is not None:
        gap += f" [{versus.interval[0]:+.2f}, {versus.interval[1]:+.2f}]"
    density = "" if barrier.density == 1 else f", {barrier.density:.3g}"
    end = f"{barrier.end:{metric.form}}"
    return [f"{barrier.arm}{density}", barrier.step, _number(barrier.mean), interval, barrier.pairs, gap,
            _number(barrier.loss), end]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _size(value: float, metric: MetricOf) -> str:
    return f"{value:.1f} {metric.gap}" if metric.unit == "%" else f"{value:.3g} {metric.gap}"
