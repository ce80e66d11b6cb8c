"""Early-bird tickets: train until the mask no longer changes, draw the ticket, train only that.

You et al., Drawing Early-Bird Tickets: Towards More Efficient Training of Deep Networks, 2020.

Channels are ranked by the scales of their batch norms, all layers together, while a penalty on the scales' magnitudes
pulls them towards 0. The mask of each epoch is compared with the four before it: where none differs in more than a
tenth of its entries, the ticket is drawn, and its weights train on along the schedule from there. A convolution or a
hidden layer without a batch norm stays whole, and so does the last channel of a layer, which the authors let go.
Where a sum ties the channels of several norms together, as in residual networks, the mean of their scales counts; the
authors select behind each norm instead. Here the mask before training is not compared, as all scales are equal there;
the optimizer's moments begin anew with the ticket, as in the authors' code; and the penalty ends with the drawing,
so that a ticket's training is one that its controls can repeat, where the authors' scripts go on with it.

Masks of single weights, by their magnitude and without a penalty (`granularity="weight"`), and rewinding to the weights
of the start (`then="rewind"`) are variants of this package and not of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import supermask
from supermask import choosing, selection, weights

from .. import training
from ..contract.errors import RequestError, RunError
from ..contract.flags import Config as SharedConfig
from ..contract.flags import Duration, NotNegative, is_zero, steps_of
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches
from ..training.at_init import density_problems, warn_of_collapse

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from supermask import Masks, Targets, Ticket
    from supermask.choosing.gradients import Evidence
    from supermask.choosing.granularity import Granularity
    from supermask.choosing.scores import Score, Scores

    from ..data.samples import Samples
    from ..runs.run import Run
    from ..training.units import Filters

WHEN = "When there is time for one training only, and whole channels should go early in it."

# Of filters and hidden units the density is met to the unit; their weights are as many as they are.
TRAITS = Traits(exact_density=False, looks_at_steps=True)
_OF_WEIGHTS = "--granularity weight, a variant that is not the paper's, ranks single weights and needs no norms"


class Config(SharedConfig):
    """Flags of early-bird tickets."""

    method: str = "early-bird"
    model: str = Field(
        "lenet-300-100-bn",
        description="network with batch norm: a built-in name (`ticket models` lists them), torchvision:NAME, or "
        "package.module:function",
    )
    density: float = Field(
        0.5,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="fraction of all filters and hidden units that is kept; of the weights with --granularity weight",
    )
    granularity: Literal["filter", "weight"] = Field(
        "filter",
        description="what is kept or dropped as one: filters and hidden units by the scales of their batch norms "
        "(filter), as in the paper; single weights by their magnitude, a variant that is not the paper's (weight)",
    )
    allocation: Literal["global", "layerwise"] = Field(
        "global", description="rank all layers together, or keep the same fraction of each"
    )
    check_every: Duration = Field("1ep", description="how often a mask is taken and compared with those before, as 1ep")
    memory: int = Field(5, ge=2, description="how many masks in a row must be alike, the newest among them")
    settled: float = Field(
        0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="fraction of a mask's entries in which the newest may differ from each of the others",
    )
    latest: Duration | None = Field(
        None,
        description="when the ticket is drawn at the latest, though the masks have not settled; half of the training "
        "if not given",
    )
    norm_penalty: NotNegative = Field(
        1e-4, description="strength of the penalty on the magnitudes of the norms' scales until the ticket is drawn"
    )
    then: Literal["keep", "rewind"] = Field(
        "keep",
        description="train the ticket on from the weights and the epoch that it was drawn at (keep), as in the paper, "
        "or from the weights of the start for all epochs (rewind), which is not the paper's",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Masks are compared after some steps, and the penalty is on norms."""
        found = super().problems(given)
        zero = {"--check-every": self.check_every, "--latest": self.latest}
        found += [
            f"{name} 0: expected steps or epochs after the start, like 100it or 1ep"
            for name, duration in zero.items()
            if duration is not None and is_zero(duration)
        ]
        if self.granularity == "weight" and "norm_penalty" in given:
            found.append("--norm-penalty goes with --granularity filter: weights are ranked by their magnitude")
        return found


def last_step(config: Config, steps_per_epoch: int) -> int:
    """The step at which the ticket is drawn at the latest; if none is asked, that of a mask in the first half.

    Raises:
        RequestError: one after the end of the training.
    """
    total, every = config.epochs * steps_per_epoch, steps_of(config.check_every, steps_per_epoch)
    if config.latest is None:
        return min(total, max(every, total // 2 // every * every))
    last = steps_of(config.latest, steps_per_epoch)
    if last > total:
        raise RequestError(f"--latest {config.latest}: expected at most the {total} steps of the training")
    return last


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """Training until the masks settle, at the latest step here, then that of the ticket.

    Raises:
        RequestError: a density that keeps nothing, or a ticket drawn after the end of training.
    """
    if config.granularity == "weight" and (problems := density_problems(config, targets)):
        raise RequestError(problems)
    total, last = config.epochs * steps_per_epoch, last_step(config, steps_per_epoch)
    rest = total - last if config.then == "keep" else total
    return [Stage("drawing", 1.0, last), Stage("training", config.density, rest)]


def check(model: nn.Module, data: Samples, config: Config) -> None:
    """Check that the network has channels that can be ranked, and that the density keeps one of each layer.

    Raises:
        RequestError: no batch norm stands behind a filter or hidden unit, or too low a density.
    """
    if config.granularity == "weight":
        return
    try:
        filters = training.units.find_filters(model, data, config, normed=True)
    except RequestError as error:
        raise RequestError([f"{problem}; {_OF_WEIGHTS}" for problem in error.problems]) from None
    layers, channels = len(filters.channels), sum(filters.channels.values())
    kept = selection.top_k.count_kept(config.density, channels)
    if kept < layers:
        raise RequestError(
            f"--density {config.density:g} keeps {kept} of the {channels:,} filters and hidden units, and each of "
            f"{layers} layers needs one: raise it"
        )


def search(model: nn.Module, run: Run) -> Ticket:
    """Train until the masks settle, draw the ticket and train it.

    Beside the ticket of whole filters the run has `compact.safetensors`, the network without what was dropped.
    """
    config = run.config
    assert isinstance(config, Config)
    whole = config.granularity == "filter"
    filters = training.units.find_filters(model, run.data, config, normed=True) if whole else None
    initial = weights.fitting.state_of(model)
    drawn = run.stage("drawing", partial(_draw, model, config, run, filters, initial))
    masks = supermask.Masks(drawn["masks"], drawn["uncounted"])
    if config.then == "keep":
        weights.fitting.set_state(model, drawn["model"])
    else:
        weights.fitting.set_state(model, initial)
    warn_of_collapse(model, masks, run)
    supermask.hold(model, masks)
    begin = drawn["steps"] if config.then == "keep" else 0
    rewound: dict[str, Any] = {"rewound_to": begin} if begin else {}
    ticket = training.conclude.train_once(model, run, masks, begin=begin, row=drawn["row"], **rewound)
    if filters is not None:
        run.rows[-1] |= run.stage("compact", partial(training.conclude.save_compacted, run, ticket))["row"]
    return ticket


def _draw(
    model: nn.Module, config: Config, run: Run, filters: Filters | None, initial: dict[str, Tensor]
) -> dict[str, Any]:
    """Train the whole network until the masks settle."""
    per_epoch = whole_batches(run.data.train_size, config.batch_size)
    hook = Drawing(model, config, per_epoch, partial(choose, model, config, filters), flatten(filters), run)
    trained = training.loop.train_network(model, run, hook=hook)
    masks, step = hook.masks, trained.steps
    assert masks is not None, "the training ends where a ticket is drawn"
    state = weights.fitting.state_of(model)
    if config.then == "keep":
        # What a control of the ticket needs: the weights under the dropped ones too.
        everything = training.conclude.keep_all(model, config)
        states = {"start": supermask.make_state(initial, everything, run.setup.draws)}
        states["final"] = supermask.make_state(state, everything)
        run.save_rewind_point(supermask.Ticket(everything, states, {"step": step}))
    row: dict[str, Any] = {"drawn_at_step": step, "drawn_at_epoch": step / per_epoch, "settled": hook.settled}
    if hook.distances:
        row["mask_distance"] = max(hook.distances)
    if filters is not None:
        kept = int(hook.recent[-1].count_nonzero())
        row |= {"filters": sum(filters.channels.values()), "filters_kept": kept}
    if not hook.settled:
        run.progress.say(_unsettled(config, row, len(hook.distances)))
    return {"steps": step, "model": state, "masks": dict(masks), "uncounted": sorted(masks.uncounted), "row": row}


def _unsettled(config: Config, row: dict[str, Any], compared: int) -> str:
    found = (
        f"it differs from the {compared} before in up to {row['mask_distance']:.1%}" if compared else "it is the one"
    )
    return (
        f"the masks have not settled until epoch {row['drawn_at_epoch']:.3g}, at which the ticket is drawn at the "
        f"latest: {found}, asked were {config.memory - 1} within {config.settled:.1%} (--latest, --memory, --settled)"
    )


def choose(model: nn.Module, config: Config, filters: Filters | None) -> Masks:
    """The masks that the network's norms, or its weights, say now.

    Raises:
        RunError: scales or weights that cannot be ranked.
    """
    allocation = choosing.allocation.find_allocation(config.allocation)
    score: str | Score = "magnitude"
    shape: str | Granularity = "weight"
    if filters is not None:
        # At least one filter of each layer: through a layer without any nothing passes.
        allocation = choosing.allocation.with_floor(allocation, 0.0)
        score, shape = partial(mean_scales, filters), filters.shape
    try:
        return supermask.prune(
            model, config.density, score, allocation, shape,
            include=config.include or None, exclude=config.exclude or None,
        ).to("cpu")  # fmt: skip
    except ValueError as error:
        raise RunError(f"{config.method}: {error}") from None


def mean_scales(filters: Filters, model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """|scale| of the norm behind each filter, shared out over its weights; of a channel of several norms their mean.

    In float64 and on the CPU: the sum over a filter's weights is its scale again, whatever their number.
    """
    import torch

    scales = {name: scale.detach().to("cpu", torch.float64) for name, scale in filters.norms.items()}
    shares = choosing.scores.share_scales(targets, scales)
    for group in filters.shape.groups.values():
        norms = torch.zeros(group.channels, dtype=torch.float64)
        for _, channels in group.rows.values():
            norms.index_add_(0, channels, torch.ones(len(channels), dtype=torch.float64))
        for name, (places, channels) in group.rows.items():
            rows = shares[name].movedim(targets[name].output_axis, 0)
            parts = torch.ones(len(rows), dtype=torch.float64)
            parts[places] = 1 / norms[channels]
            scaled = rows * parts.reshape(-1, *[1] * (rows.dim() - 1))
            shares[name] = scaled.movedim(0, targets[name].output_axis)
    return shares


def flatten(filters: Filters | None) -> Callable[[Masks], Tensor]:
    """How masks become one vector of bools: an entry for each filter or hidden unit, or for each weight."""
    import torch

    def units(masks: Masks) -> Tensor:
        if filters is None:
            return torch.cat([mask.flatten() for mask in masks.counted().values()])
        return torch.cat([~filters.shape.dropped(key, masks, filters.targets) for key in filters.channels])

    return units


class Drawing(Hook):
    """Hook that takes a mask now and then, and ends the training where the last ones are alike.

    `masks` are those that are drawn, None until then, and `settled` whether for being alike; `recent` are the last
    masks as vectors, and `distances` says in which fraction of the entries the newest differs from each of the others.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        steps_per_epoch: int,
        choose: Callable[[], Masks],
        flatten: Callable[[Masks], Tensor],
        run: Run,
    ) -> None:
        self.config, self.choose, self.flatten, self.run = config, choose, flatten, run
        self.every = steps_of(config.check_every, steps_per_epoch)
        self.last = last_step(config, steps_per_epoch)
        self.scales = norm_scales(model) if config.granularity == "filter" else []
        self.recent: list[Tensor] = []
        self.distances: list[float] = []
        self.masks: Masks | None = None
        self.settled = False

    def before_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> bool:
        """Add the subgradient of the penalty to the gradients of the norms' scales."""
        if self.config.norm_penalty:
            for scale in self.scales:
                if scale.grad is not None:
                    scale.grad.add_(scale.detach().sign(), alpha=self.config.norm_penalty)
        return True

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Take a mask and compare it, where it is time to."""
        if step % self.every and step != self.last:
            return
        masks = self.choose()
        newest = self.flatten(masks)
        older = self.recent[-(self.config.memory - 1) :]
        self.distances = [int((newest != mask).count_nonzero()) / len(newest) for mask in older]
        self.recent = [*older, newest]
        told = {"mask/distance": max(self.distances), "mask/changed": self.distances[-1]} if older else {}
        self.run.log(step, {**told, "density/total": 1.0})
        # Not by a mask out of its turn: the less time there is between two, the more they are alike.
        enough = len(older) == self.config.memory - 1 and step % self.every == 0
        self.settled = enough and max(self.distances) <= self.config.settled
        if self.settled or step == self.last:
            self.masks = masks

    def done(self) -> bool:
        """Whether the ticket is drawn."""
        return self.masks is not None

    def state_dict(self) -> dict[str, Any]:
        """The last masks, and those that are drawn."""
        drawn = None if self.masks is None else (dict(self.masks), sorted(self.masks.uncounted))
        return {"recent": self.recent, "distances": self.distances, "drawn": drawn, "settled": self.settled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks of a stopped training."""
        self.recent, self.distances, self.settled = state["recent"], state["distances"], state["settled"]
        self.masks = None if state["drawn"] is None else supermask.Masks(*state["drawn"])


def norm_scales(model: nn.Module) -> list[Tensor]:
    """The scales of all batch norms that train."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    return [norm.weight for norm in norms if norm.weight is not None and norm.weight.requires_grad]
