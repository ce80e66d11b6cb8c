"""From a trained network to a ticket and to the numbers that a run reports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import supermask
from supermask import Draw, Masks, Ticket
from supermask.live.program import program_of
from supermask.weights.fitting import state_of

from ..contract.flags import Config, to_plain
from ..contract.method import Hook
from ..contract.metric import complete_row, named_values
from ..data.samples import Samples, whole_batches
from ..data.trees import move, part
from ..runs import ranks
from ..runs.loggers.tensorboard import densities
from ..runs.names import COMPACT
from ..runs.run import Run
from . import watch
from .evaluation import evaluate
from .flops import PASSES_PER_STEP, flops_of, forward_flops
from .loop import Moment, Trained, train_network
from .objective import Objective
from .trial import find_objective


def conclude(
    run: Run,
    model: nn.Module,
    masks: Masks,
    start: Mapping[str, Tensor],
    trained: Trained,
    *,
    draws: Mapping[str, Draw] | None = None,
    level: int | None = None,
    scalars: Mapping[str, float] | None = None,
    exact: bool = False,
    final: Mapping[str, Tensor] | None = None,
    gains: Mapping[str, float] | None = None,
    keep: Callable[[Ticket], None] | None = None,
    **meta: Any,
) -> dict[str, Any]:
    """The end of a training: its ticket saved and measured, its numbers logged. What a stage of a run returns.

    Args:
        run: where the ticket is kept: as that of a level if there is one, else as that of the run.
        model: the trained network.
        masks: True = kept.
        start: the state dict that the training began from.
        trained: the training.
        draws: how tensors of `start` were drawn; if not given, those of the run.
        level: of a search with several trainings.
        scalars: to be logged beside the metric on the test split; if not given, the densities.
        exact: leave the weights as they are, whatever type was asked for: the search goes on from them.
        final: the state dict at the end; if not given, the model's own.
        gains: factors of drawn tensors (see `supermask.make_state`).
        keep: what is done with the ticket, in place of saving it in the run's folder; no pictures are drawn of it.
        meta: more for the ticket to record.
    """
    at = {} if level is None else {"level": level}
    drawn = run.setup.draws if draws is None else draws
    end = state_of(model) if final is None else final
    ticket = make_ticket(run, masks, start, end, drawn, exact, gains, **at, **meta)
    if keep is not None:
        keep(ticket)
    elif level is None:
        run.save_ticket(ticket)
    else:
        run.save_level(level, ticket)
    row = {**at, **describe_training(run, model, trained, ticket)}
    logged = densities(masks) if scalars is None else scalars
    run.log(trained.steps, {f"{run.metric.name}/test": row["test_metric"], **logged})
    if keep is None:
        # Not of each of many tasks: drawing a picture takes longer than to train a small one.
        run.log_masks(trained.steps, model, masks)
    return {"steps": trained.steps, "row": row}


def train_once(
    model: nn.Module,
    run: Run,
    masks: Masks | None = None,
    *,
    hook: Hook | None = None,
    start: Mapping[str, Tensor] | None = None,
    begin: int = 0,
    order: str = "order/0",
    draws: Mapping[str, Draw] | None = None,
    scalars: Mapping[str, float] | None = None,
    row: Mapping[str, Any] | None = None,
    **meta: Any,
) -> Ticket:
    """The whole of a method of one training: train, check that the masks have held, keep and measure the ticket.

        supermask.hold(model, masks)
        return train_once(model, run, masks)

    Args:
        model: as training begins, its masks held or learned.
        run: of which this is the only training.
        masks: True = kept; if not given, those that the model carries at the end.
        hook: what the method does in each step.
        start: the state dict that the ticket starts from; if not given, the model's own now.
        begin: the step of the schedule to begin at.
        order: name of the data order.
        draws: how tensors of `start` were drawn; if not given, those of the run.
        scalars: to be logged at the end; if not given, the densities.
        row: more for the run to report.
        meta: more for the ticket to record.

    Returns:
        The ticket, read back from its file.

    Raises:
        RunError: the loss became NaN or infinite.
        Interrupted: a signal came; the state is saved.
        ValueError: the masks have not held.
    """
    start = state_of(model) if start is None else start

    def work() -> dict[str, Any]:
        trained = train_network(model, run, hook=hook, start=begin, order=order)
        if program_of(model) is not None:
            supermask.check(model)
        kept = supermask.masks_of(model) if masks is None else masks
        found = conclude(run, model, kept, start, trained, draws=draws, scalars=scalars, **meta)
        return {**found, "row": {**found["row"], **(row or {})}}

    run.rows.append(run.stage("training", work)["row"])
    return run.ticket


def keep_all(model: nn.Module, config: Config) -> Masks:
    """Masks that keep every weight which the configured method may drop."""
    return supermask.prune(model, 1.0, include=config.include or None, exclude=config.exclude or None)


def make_ticket(
    run: Run,
    masks: Masks,
    start: Mapping[str, Tensor],
    final: Mapping[str, Tensor],
    draws: Mapping[str, Draw],
    exact: bool = False,
    gains: Mapping[str, float] | None = None,
    **meta: Any,
) -> Ticket:
    """Build a ticket and measure it: both states, as read back from the ticket's own bytes, in fp32 on the test split.

    Args:
        run: whose configuration the ticket records.
        masks: True = kept.
        start: the state dict that training began from.
        final: the state dict at the end.
        draws: how tensors of `start` were drawn.
        exact: do not round the weights to the configured type.
        gains: factors of drawn tensors.
        meta: more to record.
    """
    masks = masks.to("cpu")
    data, config = run.setup.data, run.config
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}["fp32" if exact else config.dtype]
    states = {
        state: supermask.make_state(tensors, masks, draws, gains, dtype)
        for state, tensors in (("start", start), ("final", final))
    }
    recorded = to_plain(config)
    for place in ("data_dir", "weights", "ticket", "whole", "workers", "log"):
        recorded.pop(place, None)
    described: dict[str, Any] = {
        "method": config.method,
        "paper": run.setup.method.paper,
        "model": config.model,
        "data": config.data,
        "density": config.density,
        "seed": config.seed,
        "config": recorded,
        "architecture": run.setup.architecture,
        "parameters": run.setup.parameters,
        "normalization": {"mean": list(data.mean), "std": list(data.std)},
        **({"parent": run.setup.earlier.parent} if run.setup.earlier else {}),
        **run.setup.sample,
        **meta,
    }
    packed = supermask.pack(Ticket(masks, states, described))
    ranks.check_same("ticket", {"bytes": hashlib.sha256(packed).hexdigest() if ranks.now().several else ""})
    read_back = supermask.unpack(packed)
    values = {state: measure(read_back, run, state) for state in states}
    if run.metric.is_accuracy:
        return Ticket(masks, states, {**described, "accuracy": values})
    return Ticket(masks, states, {**described, "metric": {**run.metric.to_dict(), "values": values}})


def measure(ticket: Ticket, run: Run, state: str) -> dict[str, float]:
    """The metric of a ticket's state on the test and the validation split, in fp32."""
    model = ticket.apply_to(run.setup.build(), state).to(run.config.device)
    objective, data = find_objective(run.setup, run.config, model), run.setup.data
    return {
        "test": evaluate(model, data, "test", objective).value,
        "validation": evaluate(model, data, "validation", objective).value,
    }


def save_compacted(run: Run, ticket: Ticket) -> dict[str, Any]:
    """Write the ticket's network without what was dropped, as `compact.safetensors`; its numbers beside the dense ones.

    Where there is none, `reason` says why.
    """
    data = run.setup.data
    example = move(next(data.batches("validation", 2))[0], "cpu")
    network = ticket.apply_to(run.setup.build()).eval()
    try:
        found = supermask.shrink(network, ticket.masks, example)
    except ValueError as error:
        run.progress.say(f"there is no compacted network: {error}")
        return {"row": {"compact": {"reason": str(error)}}}
    packed = supermask.pack_compaction(found, run.setup.architecture)
    run.write(run.path / COMPACT, packed)
    small = found.model
    (parameters, macs), dense = (
        (sum(parameter.numel() for parameter in net.parameters()), flops_of(net, part(example, 0, 1)) // 2)
        for net in (small, network)
    )
    objective = find_objective(run.setup, run.config, network)
    measured = evaluate(small.to(run.config.device), data, "test", objective)
    numbers = {
        "parameters": parameters,
        "share_of_parameters": parameters / dense[0],
        "macs": macs,
        "share_of_macs": macs / dense[1],
        "bytes": len(packed),
        "difference": found.difference,
        **named_values(run.metric, test=measured.value),
    }
    return {"row": {"compact": numbers}}


def describe_training(run: Run, model: nn.Module, trained: Trained, ticket: Ticket) -> dict[str, Any]:
    """The numbers of one training: at its final step, at minimum validation loss and at the best validation metric.

    The last two steps were chosen on validation; the metric on the test split there is only reported.
    """
    final = (ticket.meta["accuracy"] if run.metric.is_accuracy else ticket.meta["metric"]["values"])["final"]
    row: dict[str, Any] = {
        "density": ticket.density,
        "kept": ticket.masks.kept,
        **named_values(run.metric, test=final["test"], val=final["validation"]),
        "val_loss": trained.final.loss,
    }
    if empty := [name for name, kept in ticket.masks.kept_per_tensor.items() if kept == 0]:
        row["empty_layers"] = empty
    data, objective = run.setup.data, find_objective(run.setup, run.config, model)
    if watch.has_learned_nothing(objective, trained.final.loss, final["validation"], data.classes or 0):
        row["learned_nothing"] = True
    # Measured already: at the final step by the ticket itself, unless that rounds its weights.
    measured = {trained.last_step: row["test_metric"]} if run.config.dtype == "fp32" else {}
    for name, moment in trained.moments.items():
        if moment.step not in measured:
            measured[moment.step] = _test_moment(model, data, moment, objective)
        row[name] = {
            "step": moment.step,
            "val_loss": moment.loss,
            **named_values(run.metric, val=moment.value, test=measured[moment.step]),
        }
    return row


@torch.no_grad()
def _test_moment(model: nn.Module, data: Samples, moment: Moment, objective: Objective) -> float:
    now = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(moment.tensors)
    value = evaluate(model, data, "test", objective).value
    model.load_state_dict(now)
    return value


def summarize(run: Run, ticket: Ticket, model: nn.Module) -> dict[str, Any]:
    """What `summary.json` holds: what was run, what was measured, sizes, and the cost of the whole search.

    `cost.flops` counts the operations of the dense network: masks save none while training. `dense_trainings` is the
    number of whole trainings that the search's steps would pay for. Where the search started from the weights of a run
    of ours, all of them count what that run has cost too, which is `cost.weights` (see `EarlierRun.add_to`).
    `bad_images` counts those of each split that could not be read, where there were some.
    """
    config, data = run.config, run.setup.data
    per_epoch = whole_batches(data.train_size, config.batch_size)
    batch = min(config.batch_size, data.train_size)
    seconds = round(run.seconds, 3)
    rows = [complete_row(row, run.metric) for row in run.rows]
    objective = find_objective(run.setup, config, model)
    step, whole = forward_flops(model, data, objective) * PASSES_PER_STEP * batch, config.epochs * per_epoch
    cost = {
        "steps": run.steps_done,
        "flops": step * run.steps_done,
        "seconds": seconds,
        "dense_trainings": run.steps_done / whole,
    }
    earlier = run.setup.earlier
    summary = {
        "name": run.path.name,
        "method": config.method,
        "model": config.model,
        "data": config.data,
        "seed": config.seed,
        "metric": run.metric.to_dict(),
        **{key: value for key, value in rows[-1].items() if key != "level"},
        "parameters": ticket.meta["parameters"],
        "weights": ticket.masks.size,
        "seconds": seconds,
        "cost": earlier.add_to(cost, step * whole) if earlier else cost,
    }
    if run.setup.data_fingerprint:
        summary["data_fingerprint"] = run.setup.data_fingerprint
    if run.setup.bad_images and (bad := run.setup.bad_images.counts()):
        summary["bad_images"] = bad
    return summary | {"levels": rows} if any("level" in row for row in rows) else summary
