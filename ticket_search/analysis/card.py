"""A ticket's model card: the README.md of a repository on the hub, made of the ticket and of the run that found it.

All text that comes from the ticket or its run is a stranger's, and is escaped: it is neither markup nor YAML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import supermask
from supermask import Ticket
from supermask.tickets.hub import Place
from supermask.weights.architectures import PREFIXES, architecture_names

from ..contract.errors import RequestError
from ..contract.leave import code_in
from ..contract.metric import ACCURACY, Metric, metric_of
from ..runs.folders import folder_of_ticket, inspect_folder, list_runs
from ..runs.names import CONFIG, SUMMARY, TICKET
from ..runs.records import read_record
from .commands import search_command
from .comparison import compare
from .file_size import FileSize, size_of_file
from .findings import Comparison, Group, Level
from .headlines import headline
from .markdown import escape, plain
from .read_runs import NOT_COMPARED
from .verdict import scale_of

# What stands for the folder of the data in a command.
_DATA_DIR = "DATA_DIR"
_STATES, _SPLITS = ("final", "start"), ("test", "validation")
# What the hub takes as the identifier of a licence, a tag or a data set.
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._+-]{0,60}")


@dataclass(frozen=True)
class Card:
    """A model card: its text, and sentences about what it lacks."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Run:
    """The run that a ticket lies in: its folder, name, configuration and summary, and what it is compared with."""

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    group: Group | None
    row: Level | None


def make_card(
    path: Path, *, place: Place | None = None, license: str = "", companions: Sequence[str | Path] | None = None
) -> Card:
    """The model card of a ticket file.

        make_card(Path("runs/imp-lenet-300-100-digits-d0.2-s0/ticket.safetensors"), license="apache-2.0").text

    Args:
        path: the ticket's file. Of one that lies in a run's folder the run's cost and controls are told too.
        place: where it is, or will be, on the hub. Without it the card tells how to load it from a file.
        license: the hub's identifier of a licence, as `apache-2.0`.
        companions: folders of runs to compare the run with: other seeds of it, dense networks. If not given, those of
            them that lie beside it.

    Raises:
        RequestError: a licence that is no identifier, or a package that is missing.
        TicketError: the file is no whole ticket.
    """
    if license and not _IDENTIFIER.fullmatch(license):
        near = re.sub(r"[\s_]+", "-", license.strip().lower())
        hint = f"; did you mean '{near}'?" if _IDENTIFIER.fullmatch(near) else ""
        raise RequestError(
            f"--license {license!r}: expected an identifier of the hub, as apache-2.0, mit or other{hint}"
        )
    ticket = supermask.load(path)
    run, notes = _read_run(path, companions)
    metric, values = _measured(ticket.meta)
    title = place.repository.partition("/")[2] if place else run.name if run else path.stem
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(files("ticket_search.analysis").joinpath("card.md").read_text("utf-8"))
    text = template.render(
        front=_front(ticket, title, license, metric, values),
        title=escape(title),
        summary=_summary(ticket, metric, values),
        metric=escape(metric.name),
        **_describe_verdict(ticket, run),
        **_describe_use(ticket, place, bool(_compact_of(run))),
        **_describe_results(ticket, metric, values),
        **_describe_masks(ticket, run),
        **_describe_search(ticket, run),
        file=_describe_file(size_of_file(path, ticket), place),
        licence=_licence(license),
    )
    if not license:
        notes = [
            *notes,
            "the card names no licence, so that nobody but its author may use the ticket: --license apache-2.0",
        ]
    return Card(text, tuple(notes))


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _measured(meta: Mapping[str, Any]) -> tuple[Metric, dict[tuple[str, str], float]]:
    """What a ticket is measured by, and its values by state and split, as far as its metadata say it in numbers."""
    metric, said = ACCURACY, meta.get("accuracy")
    if isinstance(known := meta.get("metric"), dict):
        try:
            metric = metric_of({"metric": {key: str(known.get(key, "")) for key in ("name", "direction", "unit")}})
        except RequestError:
            return ACCURACY, {}
        said = known.get("values")
    states = said if isinstance(said, dict) else {}
    found = {}
    for state in _STATES:
        row = states.get(state)
        for split in _SPLITS:
            value = _number(row.get(split)) if isinstance(row, dict) else None
            if value is not None:
                found[state, split] = value
    return metric, found


def _name_of_data(meta: Mapping[str, Any]) -> str:
    """The data set's name, where it is one and not a function or arrays; without its version."""
    name = str(meta.get("data", "")).partition("@")[0]
    return name if _IDENTIFIER.fullmatch(name) and not name.startswith("arrays-") else ""


def _front(ticket: Ticket, title: str, license: str, metric: Metric, values: Mapping[tuple[str, str], float]) -> str:
    """What the hub reads of a card, as YAML."""
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        raise RequestError(
            'a model card is written by the package huggingface_hub: pip install "supermask[hub]"'
        ) from None
    data, task = _name_of_data(ticket.meta), _task_of(ticket, metric)
    per_task = {name: _measured({**ticket.meta, **ticket.parts[name].meta})[1] for name in ticket.tasks}
    tested = {"": values, **per_task}
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data or "other",
            dataset_name=(data or "data of its author's own") + (f", task {plain(name)}" if name else ""),
            dataset_split=split,
            metric_type=metric.name,
            # The accuracy of the hub is a fraction.
            metric_value=round(found["final", split] / (100 if metric.is_accuracy else 1), 6),
            metric_name=f"{split} {metric.name}",
        )
        for name, found in tested.items()
        for split in _SPLITS
        if ("final", split) in found
    ]
    method = str(ticket.meta.get("method", ""))
    card = ModelCardData(
        license=license or None,
        library_name="supermask",
        pipeline_tag=task if task != "other" else None,
        tags=["lottery-ticket", "sparsity", "pruning", *([method] if _IDENTIFIER.fullmatch(method) else [])],
        datasets=[data] if data else None,
        metrics=[metric.name] if results else None,
        model_name=plain(title) if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _task_of(ticket: Ticket, metric: Metric) -> str:
    """What the hub calls the task, by the shape of a sample and the metric."""
    shape = _input_shape(ticket)
    if metric.name == "perplexity":
        return "text-generation"
    if metric.is_accuracy and shape and len(shape) == 3:
        return "image-classification"
    if shape and len(shape) == 1:
        return "tabular-classification" if metric.is_accuracy else "tabular-regression"
    return "other"


def _arguments(ticket: Ticket) -> tuple[str, Mapping[str, Any]]:
    architecture = ticket.meta.get("architecture")
    known = architecture if isinstance(architecture, dict) else {}
    arguments = known.get("arguments")
    return str(known.get("name", "")), arguments if isinstance(arguments, dict) else {}


def _input_shape(ticket: Ticket) -> list[int]:
    """The shape of a sample, where it is one tensor of floats; else empty."""
    shape = _arguments(ticket)[1].get("input_shape")
    fits = isinstance(shape, list) and all(type(size) is int and 0 < size < 10**6 for size in shape)
    return list(shape) if fits and isinstance(shape, list) and "sample" not in ticket.meta else []


def _summary(ticket: Ticket, metric: Metric, values: Mapping[tuple[str, str], float]) -> str:
    meta = ticket.meta
    of = f"{len(ticket.tasks)} subnetworks, one for each task," if ticket.tasks else "A subnetwork"
    each = " each" if ticket.tasks else ""
    told = (
        f"{of} of {escape(meta.get('model', 'a network'))}: {_percent(ticket.density)} of the weights "
        f"({ticket.kept:,} of {ticket.masks.size:,}){each}, found by {escape(meta.get('method', 'another program'))}"
    )
    told += f" on {escape(meta['data'])}." if "data" in meta else "."
    value = values.get(("final", "test"))
    if value is None:
        return told
    return f"{told} Its {escape(metric.name)} on the test split is **{escape(metric.with_unit(value))}**."


def _read_run(path: Path, companions: Sequence[str | Path] | None) -> tuple[_Run | None, list[str]]:
    """The run that a ticket file lies in, compared with its companions, if it lies in a finished one."""
    folder = folder_of_ticket(path)
    if inspect_folder(folder).state != "finished":
        if companions:
            raise RequestError(f"--with: {path} does not lie in the folder of a finished run that could be compared")
        return None, []
    config, summary = read_record(folder, CONFIG), read_record(folder, SUMMARY)
    beside = list(_find_beside(folder, config)) if companions is None else [Path(each) for each in companions]
    found = compare([folder, *beside])
    group = _group_of(folder, found)
    if group is None:
        return _Run(folder.name, config, summary, None, None), list(found.left_out)
    level = int(path.resolve().parent.name) if path.resolve().parent != folder else None
    rows = [row for row in group.levels if row.level == level] if level is not None else list(group.levels[-1:])
    return _Run(folder.name, config, summary, group, rows[0] if rows else None), list(found.left_out)


def _find_beside(folder: Path, config: Mapping[str, Any]) -> Iterable[Path]:
    """The finished runs in the same folder that tell about a run: its other seeds, and dense networks of its task."""
    mine = {key: value for key, value in config.items() if key not in NOT_COMPARED}
    for other in list_runs(folder.parent):
        if other.resolve() == folder or inspect_folder(other).state != "finished":
            continue
        try:
            theirs = read_record(other, CONFIG)
        except RequestError:
            continue  # a damaged run beside it says nothing about this one
        same_task = all(theirs.get(key) == config.get(key) for key in ("model", "data"))
        if {k: v for k, v in theirs.items() if k not in NOT_COMPARED} == mine or (
            same_task and theirs.get("method") == "dense"
        ):
            yield other


def _group_of(folder: Path, found: Comparison) -> Group | None:
    return next((g for g in found.groups if any(Path(run).resolve() == folder for run in g.runs)), None)


def _describe_verdict(ticket: Ticket, run: _Run | None) -> dict[str, Any]:
    """Whether it is a ticket, as `ticket compare` says it of the run and those beside it, and its controls."""
    if run is None or run.group is None or run.row is None:
        why = "the file does not lie in the folder of its run" if run is None else "its run cannot be compared"
        return {"verdict": f"Not known: {why}.", "answers": [], "controls": []}
    group, row = run.group, run.row
    if group.verdict is None or row.matching is None:
        return {"verdict": "Not asked: it keeps every weight.", "answers": [], "controls": []}
    # Flags in a label may be paths of the machine.
    line = headline(replace(group, label=group.method, curve=group.method), row)
    names = ", ".join(escape(Path(name).name) for name in group.runs)
    seeds = "one seed" if group.n == 1 else f"{group.n} seeds"
    dense = "" if group.baseline is None else f", compared with the dense network ({escape(group.baseline)})"
    metric = group.metric
    own = [each for each in group.controls if each.level == row.level]
    form = scale_of(metric).form
    controls = [
        (
            escape(f"{each.control}, {'trained' if each.trained else 'not trained'}")
            + ("" if each.data == group.data else f" on {escape(each.data)}"),
            escape(metric.show(each.mean)),
            f"{each.n}",
            "" if each.difference is None else f"{each.difference.mean + 0.0:+{form}}",
        )
        for each in own
    ]
    # They go with the sparsest level; an answer about a denser one says so.
    answers = [] if row is not group.levels[-1] else list(group.verdict.answers.values())
    none = "" if controls else " No controls were run beside it."
    return {
        "verdict": f"**{escape(line.subject)}: {escape(line.text)}.** From {seeds}{dense}: {names}.{none}",
        "answers": [
            f"{each.asked} {each.in_words()}: {escape(each.because)}" for each in answers if each.answer != "unknown"
        ],
        "controls": controls,
    }


def _describe_use(ticket: Ticket, place: Place | None, smaller: bool) -> dict[str, Any]:
    """The lines that load the ticket, build its network and run it, as far as what is known here allows."""
    name, _ = _arguments(ticket)
    source = str(place) if place else TICKET
    known = name in architecture_names() or name.startswith(PREFIXES)
    shape = _input_shape(ticket)
    task = "task=ticket.tasks[0]" if ticket.tasks else ""
    if known:
        lines = [f"net = ticket.model({task})  # a torch.nn.Module in evaluation mode"]
        sample = f"torch.randn(1, {', '.join(map(str, shape))})"
        lines += [f"print(net({sample}).shape)"] if shape else []
        if smaller and shape:
            lines.append(f"small = supermask.shrink(net, ticket.masks, {sample}).model  # without dropped filters")
    else:
        whole = "ticket.task(ticket.tasks[0])" if ticket.tasks else "ticket"
        lines = [f"tensors = {whole}.state_dict()  # of your own module: {whole}.apply_to(net)"]
    return {
        "source": source,
        "extra": "[hub]" if place else "",
        "code": "\n".join(lines),
        "runs": known and bool(shape),
        "inputs": _describe_inputs(ticket, shape, known, name),
    }


def _describe_inputs(ticket: Ticket, shape: list[int], known: bool, name: str) -> str:
    told = (
        ""
        if known
        else f"The network, {escape(name or 'one without a name')}, is not known by name: build it yourself. "
    )
    if shape:
        told += f"A sample has the shape {'x'.join(map(str, shape))}"
        said = ticket.meta.get("normalization")
        numbers = [said.get(key) for key in ("mean", "std")] if isinstance(said, dict) else []
        lists = [
            each for each in numbers if isinstance(each, list) and each and all(_number(n) is not None for n in each)
        ]
        if len(lists) == 2:
            mean, std = (", ".join(f"{value:.4g}" for value in each[:10]) for each in lists)
            told += f"; the network was trained on (x - mean) / std with mean {mean} and std {std}, by channel"
        told += ". "
    return told + "The file holds no code, and none is imported because it names some."


def _describe_results(ticket: Ticket, metric: Metric, values: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    rows = [(state, split, escape(metric.with_unit(value))) for (state, split), value in values.items()]
    data = f" of {escape(ticket.meta['data'])}" if "data" in ticket.meta else ""
    tasks = []
    for name in ticket.tasks:
        of_task, found = _measured({**ticket.meta, **ticket.parts[name].meta})
        value = found.get(("final", "test"))
        masks = ticket.sets[name]
        shown = "" if value is None else escape(of_task.with_unit(value))
        tasks.append((escape(name), f"{masks.kept:,}", f"{masks.density:.4f}", shown))
    return {
        "results": rows or ([("final", "test", "by task, below")] if tasks else []),
        "measured": f"Measured on the test and validation splits{data}, of the weights as they are in the file, in "
        "fp32. Validation chose, the test split only reports.",
        "tasks": tasks,
    }


def _describe_masks(ticket: Ticket, run: _Run | None) -> dict[str, Any]:
    """How much is kept, in all and of each tensor."""
    config = ticket.meta.get("config")
    asked = _number(config.get("density")) if isinstance(config, dict) else None
    told = f"{ticket.kept:,} of {ticket.masks.size:,} maskable weights: density {ticket.density:.4g}"
    told += f", where {asked:.4g} was asked for" if asked is not None else ""
    parameters = ticket.meta.get("parameters")
    if type(parameters) is int and parameters >= ticket.masks.size > 0:
        share = (parameters - ticket.masks.size + ticket.kept) / parameters
        told += f"; {_percent(share)} of all {parameters:,} parameters, as biases and norms carry no mask"
    shape = config.get("granularity") if isinstance(config, dict) else None
    told += f". Granularity: {escape(shape)}" if isinstance(shape, str) else ""
    if compact := _compact_of(run):
        told += (
            ". Filters and units were dropped as a whole: the network without them, which `supermask.shrink` makes, "
            f"has {compact['parameters']:,.0f} parameters, {_percent(compact['share_of_macs'])} of the multiplications "
            "and the same outputs"
        )
    layers = [
        (escape(row.name), "x".join(map(str, row.shape)), f"{row.size:,}", f"{row.kept:,}", f"{row.density:.4f}")
        for row in ([] if ticket.tasks else ticket.masks.report())
    ]
    return {"kept": f"{told}.", "layers": layers}


def _compact_of(run: _Run | None) -> dict[str, float]:
    """The size of the network without what was dropped as a whole, if the run has made one."""
    said = run.summary.get("compact") if run else None
    said = said if isinstance(said, dict) else {}
    found = {key: value for key in ("parameters", "share_of_macs") if (value := _number(said.get(key))) is not None}
    return found if len(found) == 2 else {}


def _describe_search(ticket: Ticket, run: _Run | None) -> dict[str, Any]:
    """The method and its paper, the command, and what the search has cost."""
    meta = ticket.meta
    paper = str(meta.get("paper", "")).rstrip(".")
    method = f"By {escape(meta.get('method', 'another program'))}" + (f" ({escape(paper)})" if paper else "")
    found = {"method": f"{method}, seed {escape(meta.get('seed', 'not known'))}."}
    found |= dict.fromkeys(("command", "place", "cost"), "")
    if run is None:
        return found | {"cost": "What the search has cost is not known."}
    found["command"] = _command(run)
    # Where the data were found without being told where, no folder is in the command.
    found["place"] = _DATA_DIR if f" {_DATA_DIR} " in found["command"] else ""
    cost = run.summary.get("cost")
    trainings = run.row.dense_trainings if run.row is not None else None
    parts = [f"{trainings:.1f} trainings of the dense network"] if trainings is not None else []
    last = run.row is None or (run.group is not None and run.row is run.group.levels[-1])
    if isinstance(cost, dict) and last:
        steps, seconds = _number(cost.get("steps")), _number(cost.get("seconds"))
        parts += [f"{steps:,.0f} steps"] if steps is not None else []
        parts += [f"{seconds:,.0f} seconds"] if seconds is not None else []
    return found | {
        "cost": f"The search cost {', '.join(parts)}." if parts else "What the search has cost is not known."
    }


def _command(run: _Run) -> str:
    """The command that finds the ticket, where it is of use to others; empty where it is not."""
    seed = run.config.get("seed")
    if type(seed) is not int:
        return ""
    recipe = dict(run.group.recipe if run.group else run.config)
    # The folder of the data is another one on each machine.
    recipe |= {"data_dir": _DATA_DIR if run.config.get("data_dir") else None, "workers": None}
    recipe |= {key: run.config.get(key) for key in ("init_seed", "order_seed", "mask_seed")}
    command = search_command(recipe, [seed])
    # A path of the machine, or a function of its author's, is of no use elsewhere.
    useful = command.startswith("ticket ") and "/" not in command and not code_in(recipe)
    return command if useful and command.isprintable() else ""


def _describe_file(size: FileSize, place: Place | None) -> str:
    told = f"`{place.file if place else TICKET}`: {size.in_words}."
    return f"{told} {size.why}" if size.why else told


def _licence(license: str) -> str:
    if license:
        return f"`{license}`"
    return "None is named. Without a licence nobody but its author may use the ticket: ask them."
