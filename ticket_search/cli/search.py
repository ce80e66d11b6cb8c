"""`ticket search`: find a subnetwork."""

from __future__ import annotations

import shlex
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import pydantic
import typer

import supermask

from .. import analysis, running, runs, training
from ..contract import stops
from ..contract.declared import ScoreName
from ..contract.errors import RequestError, command_line
from ..contract.flags import Config, flag, is_switch, public_fields
from ..contract.metric import Metric, known_value, value_of
from ..contract.recipes import recipes
from ..methods import find_method, usable_methods
from ..running.read_config import find_kind
from ..running.request import LAUNCH_FLAGS, Request, minutes_of, read_request, shape_of, word_after
from ..runs.folders import choose_folder, find_finished
from ..runs.names import TICKET
from ..runs.progress import Progress
from ..runs.ranks import launched
from ..sweeps.file import sweep_of_seeds
from .sweep import Launch, carry_out_sweep
from .terminal import (
    counted,
    duration,
    errors,
    harmless,
    output,
    print_definitions,
    print_json,
    print_sentence,
    print_table,
    print_texts,
    stop_told,
)

if TYPE_CHECKING:
    from ..running.memory import Memory
    from ..running.plan import Plan
    from ..runs.run import Run


def add_to(app: typer.Typer) -> None:
    """Add the command. `read_request` parses its words, because Typer would stop at the first wrong one."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("search", context_settings=settings, add_help_option=False)(search)


def search(context: typer.Context) -> None:
    """Find a subnetwork by --method X, with X's own flags (--method X --help lists them)."""
    words = list(context.args)
    if "--help" in words:
        print_help(word_after("--method", words))
        return
    request = read_request(words)
    place = request.launch.get("--runs", "runs")
    stop_in_time(request.launch)
    _print_start(request)
    if "--seeds" in request.launch:
        if launched().several:
            raise RequestError("--seeds are several runs: expected one --seed for all ranks of one run, or no torchrun")
        jobs = int(request.launch.get("--jobs", "1"))
        carry_out_sweep(sweep_of_seeds(request), Launch(place, jobs), request.asks("--dry-run"), request.asks("--json"))
        return
    if request.asks("--dry-run") and launched().several:
        raise RequestError("--dry-run plans for one process: expected it without torchrun")
    carry_out(request, place)


def stop_in_time(launch: Mapping[str, str]) -> None:
    """From now on count the minutes after which to stop, where any are given."""
    if (minutes := minutes_of(launch)) is not None:
        stops.stop_after(minutes)


def carry_out(request: Request, place: str) -> None:
    """Carry out a request for one run, or plan it, and print what came of it; say before how long it takes."""
    with runs.ranks.together(request.config.device) as group, Progress(group.first) as progress:
        progress.label("loading PyTorch, the data and the network")
        config, setup = running.search.prepare(request)
        if request.asks("--dry-run"):
            progress.label("measuring the memory of small batches")
            memory = running.memory.plan_memory(config, setup)
            _check_memory(memory, config, request.asks("--json"))
        progress.label("timing the first steps")
        if request.asks("--dry-run"):
            plan = running.plan.make_plan(config, setup)
        else:
            names = (config, place, request.launch.get("--name"), setup.method.traits.dense)
            again = request.asks("--again")
            done, differs = running.search.find_same(config, setup, lambda: () if again else find_finished(*names))
            if differs and done is None:
                progress.say(f"{differs}; so this is a new run")
            folder = done or runs.ranks.first(lambda: choose_folder(*names, again=again))
            run = runs.run.Run(folder, config, setup, progress)
            if done is None:
                with stop_told(folder):
                    run = _carry_out_announced(run)
    if not group.first:
        return
    if request.asks("--dry-run"):
        print_plan(plan, memory, request.asks("--json"))
    elif request.asks("--json"):
        print_json(run.summary)
    else:
        if done is not None:
            output().print(f"the run {done} is finished already; --again makes another", highlight=False)
        print_summary(run)


def _check_memory(memory: Memory, config: Config, as_json: bool) -> None:
    """Check that a search has the memory that it takes, before its steps are timed with whole batches.

    Raises:
        RequestError: it has not, after the plan was printed.
    """
    free = training.watch.free_memory(config.device)
    if free is None or memory.peak <= free:
        return
    if not as_json:
        _print_memory(memory, config.device)
    raise RequestError(
        f"the search takes {memory.peak / 1e6:,.0f} MB on {config.device} at most, and {free / 1e6:,.0f} MB are free "
        f"there: a smaller --batch-size (now {config.batch_size}), or --accumulate N, which passes a batch in N parts, "
        "takes less. Nothing was timed"
    )


def _print_start(request: Request) -> None:
    """Print what begins, before anything that takes a while."""
    config = request.config
    seeds = f"seeds {request.launch['--seeds']}" if "--seeds" in request.launch else f"seed {config.seed}"
    density = "" if request.method.traits.dense else f", density {config.density:g}"
    told = f"{config.method} on {config.model} and {config.data}{density}, {seeds}"
    errors().print(harmless(told), markup=False, highlight=False, soft_wrap=True)


def _carry_out_announced(run: Run) -> Run:
    if not runs.ranks.tell(run.path.exists()):
        plan = running.plan.make_plan(run.config, run.setup)
        run.progress.pace.announced = plan.seconds
        trainings = f" in {len(plan.stages)} trainings" if len(plan.stages) > 1 else ""
        told = f"{counted(plan.steps, 'step')}{trainings}, about {duration(plan.seconds)}: {run.path}"
        errors().print(told, markup=False, highlight=False, soft_wrap=True)
        run.progress.label(run.config.method)
    return running.search.carry_out(run)


def print_help(name: str | None) -> None:
    """Print the flags of one method with its paper, or the flags that all methods share and the list of methods."""
    console = output()
    if name is None:
        console.print("Usage: ticket search [--method NAME] [FLAGS]\n\nFind a subnetwork.", highlight=False)
        usable, refused = usable_methods()
        rows = [(method.name, method.idea) for method in usable]
        print_texts((name, [idea]) for name, idea in sorted([*rows, *refused.items()]))
        console.print(
            "\n`ticket methods` says when to use which. Flags of a method: ticket search --method NAME --help",
            highlight=False,
            soft_wrap=True,
        )
        print_flags("flags of all methods; each method has its own defaults", public_fields(Config), defaults=False)
    else:
        method = find_method(name)
        usage = f"Usage: ticket search --method {name} [FLAGS]\n\n{method.idea}\n{method.when}\n{method.paper}"
        console.print(usage, highlight=False)
        fields = public_fields(method.Config)
        own = {key: entry for key, entry in fields.items() if key not in Config.model_fields}
        if own:
            print_flags(f"flags of {name}", own)
        print_flags("flags of all methods", {key: entry for key, entry in fields.items() if key not in own})
    print_definitions(
        "flags that are not part of the configuration",
        [(f"{key} {placeholder or ''}".strip(), text) for key, (placeholder, text) in LAUNCH_FLAGS.items()],
    )
    print_sentence(
        "One training on several GPUs: torchrun --nproc-per-node N -m ticket_search search, and the same flags."
    )
    console.print(f"recipes for --config: {', '.join(recipes()) or 'none'}", highlight=False, soft_wrap=True)


def print_flags(title: str, fields: dict[str, pydantic.fields.FieldInfo], defaults: bool = True) -> None:
    """Print the flags of the fields of a configuration, with their choices, and with their defaults if wanted."""
    rows = []
    for key, entry in fields.items():
        value, choices = _values(entry.annotation)
        for scores in entry.metadata:
            if isinstance(scores, ScoreName):
                value, choices = "NAME", scores.choices
        name = f"{flag(key)}/--no-{flag(key)[2:]}" if is_switch(entry) else f"{flag(key)} {value}"
        notes = [entry.description or "", f"one of {', '.join(choices)}" if choices else ""]
        notes += [_default(entry.default)] if defaults else []
        rows.append((name, "; ".join(note for note in notes if note)))
    print_definitions(title, rows)


def _values(annotation: Any) -> tuple[str, tuple[str, ...]]:
    """The placeholder of a flag's value in the help, and its choices."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "NAME", get_args(annotation)
    if origin in (types.UnionType, Union):
        return _values(next(part for part in get_args(annotation) if part is not type(None)))
    if origin is tuple:
        return "A,B,...", ()
    if hasattr(annotation, "__metadata__"):
        return _values(get_args(annotation)[0])
    return {bool: "", int: "N", float: "X"}.get(annotation, "TEXT"), ()


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"default {text}"


def print_plan(plan: Plan, memory: Memory, as_json: bool) -> None:
    """Print what a search would do, and what memory it takes."""
    targets = plan.targets
    if as_json:
        print_json(
            {
                "config": plan.config.model_dump(mode="json"),
                "targets": {name: list(target.parameter.shape) for name, target in targets.items()},
                "weights": targets.size,
                "left_out": {reason: size for reason, (_, size) in targets.left_out_by_reason().items()},
                "remarks": plan.remarks,
                "stages": [vars(stage) for stage in plan.stages],
                "steps": sum(stage.steps for stage in plan.stages),
                "seconds": plan.seconds,
                "memory": {
                    "peak": memory.peak,
                    "parts": memory.parts,
                    "bytes_per_weight": memory.per_weight,
                    "batch": memory.batch,
                    "small_run": {
                        "batch": memory.small_batch,
                        "planned": memory.planned,
                        "measured": memory.measured,
                    },
                },
            }
        )
        return
    rows = [
        (name, target.kind, "x".join(map(str, target.parameter.shape)), target.size) for name, target in targets.items()
    ]
    print_table(("maskable tensor", "kind", "shape", "weights"), rows)
    _print_left_out(targets.left_out_by_reason().items())
    for remark in plan.remarks:
        output().print(remark, highlight=False, markup=False, soft_wrap=True)
    exact = find_kind(plan.config.method).traits.exact_density and shape_of(plan.config) not in ("filter", "channel")
    print_table(
        ("training", "density", "weights kept", "steps"),
        [
            # The density of a filter method counts filters; the number of their weights is not known in advance.
            (stage.name, f"{stage.density:.4f}", round(stage.density * targets.size) if exact else None, stage.steps)
            for stage in plan.stages
        ],
    )
    _print_memory(memory, plan.config.device)
    steps, threads = sum(stage.steps for stage in plan.stages), counted(plan.config.threads or 1, "thread")
    output().print(
        f"{plan.config.method} on {plan.config.model} and {plan.config.data}: {counted(steps, 'step')}, about "
        f"{duration(plan.seconds)} on {plan.config.device} with {threads}. Nothing was written.",
        highlight=False,
        soft_wrap=True,
    )


def _print_memory(memory: Memory, device: str) -> None:
    """Print what memory a search takes, part by part, and how far a small run bears it out."""
    each = memory.per_weight
    print_table(
        ("memory, not all at one time", "MB", "bytes per weight"),
        [
            (name, f"{size / 1e6:,.1f}", f"{each[name]:.1f}" if name in each else None)
            for name, size in memory.parts.items()
            if size
        ],
    )
    output().print(
        f"memory: about {memory.peak / 1e6:,.0f} MB of tensors on {device} at the most, in batches of "
        f"{memory.batch:,}; a small run, of batches of {memory.small_batch:,}, took {memory.measured / 1e6:,.1f} MB "
        f"beside its network and data, and {memory.planned / 1e6:,.1f} MB were planned ({memory.error:+.0%})",
        highlight=False,
        soft_wrap=True,
    )
    if not memory.is_right:
        print_sentence(
            "the small run is more than 20 % from what was planned of its steps, as where a method does more before "
            "the first one: the most is at least what it took, and may be more",
            "yellow",
        )


def _print_left_out(left_out: Iterable[tuple[str, tuple[int, int]]]) -> None:
    for reason, (tensors, size) in left_out:
        entries = "1 entry" if size == 1 else f"{size:,} entries"
        output().print(f"left out: {entries} of {counted(tensors, 'tensor')} ({reason})", highlight=False)


def print_summary(run: Run) -> None:
    """Print the result in short, and the commands that follow."""
    summary, metric = run.summary, run.metric
    _print_parts(summary, metric)
    told = [f"warning: {text}" for text in summary.get("warnings", ())]
    if empty := summary.get("empty_layers"):
        told.append(f"warning: the mask keeps no weight of {', '.join(empty)}, so no signal passes there")
    for line in told:
        errors().print(harmless(line, 1000), style="yellow", markup=False, highlight=False, soft_wrap=True)
    cost, file = summary["cost"], run.path / TICKET
    size = analysis.file_size.size_of_file(file, supermask.load(file))
    print_table(
        ("result", ""),
        [
            (f"test {metric.name}", metric.with_unit(known_value(summary, "test"))),
            (f"validation {metric.name}", metric.with_unit(known_value(summary, "val"))),
            ("weights kept", f"{summary['kept']:,} of {summary['weights']:,} (density {summary['density']:.4g})"),
            *_describe_origin(summary),
            ("cost", _describe_cost(cost)),
            *_describe_weights(cost),
            *_describe_drawing(summary),
            *_describe_inference(summary),
            *_describe_compact(summary, metric),
            ("ticket file", size.in_words),
        ],
    )
    if size.why:
        print_sentence(size.why, "yellow")
    beside, load = shlex.quote(str(run.path.parent)), f"import supermask; print(supermask.load('{run.path}/{TICKET}'))"
    output().print(
        f"the ticket: {run.path}/{TICKET}\nnext:\n  {command_line('inspect', run.path)}\n"
        f'  ticket compare {beside}/*\n  tensorboard --logdir {beside}\n  python -c "{load}"',
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _print_parts(summary: Mapping[str, Any], metric: Metric) -> None:
    """Print what each level keeps, or each task."""
    test, validation = f"test {metric.column}", f"val. {metric.column}"
    if levels := summary.get("levels"):
        units = next((name for name in ("filters", "units") if name in levels[-1]), "")
        print_table(
            (
                "level",
                "density",
                "kept",
                *([f"{units} kept"] if units else []),
                test,
                validation,
                f"{test} at min. val. loss",
                "at step",
            ),
            [
                (
                    row["level"],
                    f"{row['density']:.4f}",
                    row["kept"],
                    *([_describe_units(row, units)] if units else []),
                    metric.show(value_of(row, "test")),
                    metric.show(value_of(row, "val")),
                    # A network that was given trained has no training here, and so no minimum of validation loss.
                    metric.show(value_of(row.get("min_validation_loss", {}), "test")),
                    row.get("min_validation_loss", {}).get("step"),
                )
                for row in levels
            ],
        )
    if tasks := summary.get("tasks"):
        print_table(
            ("task", "density", "kept", test, validation),
            [
                (
                    row["task"],
                    f"{row['density']:.4f}",
                    row["kept"],
                    *(metric.show(value_of(row, split)) for split in ("test", "val")),
                )
                for row in tasks
            ],
        )


def _describe_units(row: Mapping[str, Any], name: str) -> str:
    """How many units a level keeps, and what was aimed at, where the density of weights says neither."""
    if name not in row:
        return ""
    aimed = f" (asked {row['nominal_density']:.4g})" if "nominal_density" in row else ""
    return f"{row[f'{name}_kept']:,} of {row[name]:,}{aimed}"


def _describe_cost(cost: Mapping[str, Any]) -> str:
    return f"{cost['dense_trainings']:.1f} dense trainings, {cost['steps']:,} steps, {duration(cost['seconds'])}"


def _describe_weights(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The part of the cost that lies behind the weights that the search started from, if a run of ours trained them."""
    if "weights" not in cost:
        return []
    weights = cost["weights"]
    if weights is None:
        return [("cost of the weights", "not known, and not counted")]
    return [("of that, the weights", f"{_describe_cost(weights)}: the run {weights['run']}")]


def _describe_origin(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a ticket that was trained again comes from, and on what it is trained here."""
    if "found_on" not in summary:
        return []
    here = "the same data" if summary["found_on"] == summary["data"] else summary["data"]
    return [("the ticket", f"found by {summary['found_by']} on {summary['found_on']}, trained here on {here}")]


def _describe_drawing(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """When the masks that a training stops for were drawn, and whether they had settled by then."""
    if "drawn_at_epoch" not in summary:
        return []
    found = "had settled" if summary["settled"] else "had not settled"
    distance = f" (largest distance {summary['mask_distance']:.1%})" if "mask_distance" in summary else ""
    return [("ticket drawn", f"at epoch {summary['drawn_at_epoch']:.3g}, when the masks {found}{distance}")]


def _describe_inference(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How often a task is inferred right, for each number of images that decide together, and by what."""
    return [
        (
            f"task inferred from {row['images']} image{'s' if row['images'] > 1 else ''} by {row['by']}",
            f"{row['right']:.2f} % of {row['decisions']:,} decisions" if "right" in row else f"not: {row['reason']}",
        )
        for row in summary.get("inference", ())
    ]


def _describe_compact(summary: Mapping[str, Any], metric: Metric) -> list[tuple[str, str]]:
    if "compact" not in summary:
        return []
    filters = ("filters kept", f"{summary['filters_kept']:,} of {summary['filters']:,}")
    compact = summary["compact"]
    if "reason" in compact:
        return [filters, ("smaller network", f"none: {compact['reason']}")]
    size = f"{compact['parameters']:,} parameters ({compact['share_of_parameters']:.1%})"
    work = f"{compact['macs']:,} multiply-adds ({compact['share_of_macs']:.1%})"
    return [
        filters,
        (
            "smaller network",
            f"{size}, {work}, test {metric.name} {metric.with_unit(known_value(compact, 'test'))}: compact.safetensors",
        ),
    ]
