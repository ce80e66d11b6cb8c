"""`ticket bench`: the size and the speed of a ticket's network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import supermask

from .. import analysis, deploy, running
from ..contract.leave import code_in, names_code
from ..contract.metric import ACCURACY
from .terminal import harmless, output, print_json, print_table
from .tickets import Data, InputShape, Metric, Model, Task, TicketName, of_task, read_numbers, ticket_path

if TYPE_CHECKING:
    from ..contract.metric import Metric as Measured
    from ..deploy.bench_result import Row


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    ticket: TicketName,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", help="Batch sizes to measure, with commas between them.")
    ] = "1,64,512",
    engines: Annotated[
        str, typer.Option("--engines", help="Engines to measure, with commas between them.")
    ] = "eager,compiled,onnxruntime",
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads; PyTorch's own number if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Time for each variant, engine and batch size.")] = 1.0,
    device: Annotated[str, typer.Option("--device", help="Where to measure: cpu or cuda.")] = "cpu",
    data: Data = None,
    metric: Metric = None,
    data_dir: Annotated[str | None, typer.Option(help="A folder that is searched for the data first.")] = None,
    state: Annotated[str, typer.Option(help="The weights of the network: start or final.")] = "final",
    task: Task = None,
    model: Model = None,
    input_shape: InputShape = "",
    plot: Annotated[str | None, typer.Option("--plot", help="Draw the times to this new file, .png or .svg.")] = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure size, latency and throughput of a ticket's network: dense, masked, compacted and sparse."""
    sizes, shape = read_numbers("--batch-sizes", batch_sizes), read_numbers("--input-shape", input_shape)
    path = ticket_path(ticket, runs)
    if plot is not None:
        analysis.plots.check_path(plot, False)
    found = of_task(supermask.load(path), task)
    typed = {"model": model, "data": data, "metric": metric}
    # Only the metric needs data: where they or it are not to be had, it is not measured, unless it was asked for.
    code = running.ticket_code.find_code(found, path, ["model", *(["data", "metric"] if data else [])], **typed)
    measurable = set(code_in(vars(code)).values()) <= code.leaves.keys() and not code.data.startswith("arrays-")
    samples = running.ticket_code.find_samples(found, code, data, data_dir) if measurable else None
    own = measurable and (names_code(code.data) or code.metric is not None)
    measured = deploy.bench.bench(
        found, file_bytes=path.stat().st_size if task is None else len(supermask.pack(found)), batch_sizes=sizes,
        engines=[word.strip() for word in engines.split(",")], threads=threads,
        data=data if samples is None else samples, data_dir=data_dir or code.data_dir,
        config=code if own else None,
        device=device, state=state, model=running.ticket_code.find_factory(code, model),
        input_shape=shape or None, seconds=seconds,
    )  # fmt: skip
    if plot is not None:
        analysis.bench_plot.plot_bench(measured, plot)
    plain = deploy.bench_result.to_dict(measured)
    if as_json:
        print_json({"ticket": ticket, **plain})
        return
    shown = measured.metric or ACCURACY
    facts = [(key.replace("_", " "), value) for key, value in plain["sizes"].items() if value is not None]
    print_table(("ticket", ""), [(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in facts])
    columns = ("variant, engine, batch", "median ms", "quartiles", "samples/s", f"test {shown.column}", "")
    rows = [_cells(row, shown) for row in measured.rows]
    last = len(columns) if any(row[-1] for row in rows) else -1
    print_table(columns[:last], [row[:last] for row in rows])
    output().print(harmless(measured.best.sentence, 1000), markup=False, highlight=False, soft_wrap=True)


def _cells(row: Row, metric: Measured) -> tuple[Any, ...]:
    where = f"{row.variant}, {row.engine}, {row.batch:,}"
    if row.median_ms is None or row.samples_per_second is None:
        return (where, None, None, None, None, row.reason)
    quartiles = f"{row.q1:.4g} - {row.q3:.4g}"
    return (where, f"{row.median_ms:.4g}", quartiles, round(row.samples_per_second), metric.show(row.test_metric), "")
