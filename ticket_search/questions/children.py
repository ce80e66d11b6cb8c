"""Parents and children: networks that share their first steps and then differ in nothing but the noise of SGD.

A parent is the network at step k of a training, W_k, under a mask. Its children are trained from there to the end of
the schedule, each with a data order and an augmentation of its own. All of them are runs, in the folder `connect/` of
the run that is asked about: they resume, and none is trained twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import supermask
from supermask import Masks, Ticket
from supermask.weights.fitting import state_of

from ..contract.errors import RequestError
from ..contract.flags import Config
from ..running.beginning import kept_at
from ..running.controls import OTHER_SEED, Given
from ..running.read_config import read_config
from ..running.request import check_request, describe_functions
from ..running.search import carry_out, check_training
from ..running.small_dense import ALSO
from ..running.train import REPEATED
from ..runs.experiment import Setup, describe_model, exact_arithmetic, make_setup, own_random_numbers, resolve
from ..runs.folders import choose_folder, is_finished
from ..runs.names import CONNECT_RUNS, TICKET
from ..runs.progress import Progress
from ..runs.run import Run
from ..training.conclude import keep_all

_SEEDS = 2**63
# What a ticket says of itself that does not hold for a parent: its results, and how its own training was ordered.
_OWN = ("accuracy", "metric", "level", "rewound_to", "parent")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The run that is asked about, and what its trainings work on.

    config: resolved for this machine. ticket: that of the level which is asked about; of a dense run its own.
    """

    run: Run
    config: Config
    setup: Setup
    given: Given
    ticket: Ticket
    level: int | None

    @property
    def folder(self) -> Path:
        """Where the trainings lie."""
        return self.run.path / CONNECT_RUNS

    def of_init(self, fresh: bool) -> Config:
        """The configuration, with the other seed of the initial weights for fresh ones."""
        seed = (self.config.seeds["init"] + OTHER_SEED) % _SEEDS
        return self.config.model_copy(update={"init_seed": seed}) if fresh else self.config

    def start(self, fresh: bool) -> dict[str, Tensor]:
        """The network at initialization, W_0."""
        with exact_arithmetic(self.config), own_random_numbers():
            return state_of(self.setup.make_model(self.of_init(fresh)))

    @cached_property
    def whole(self) -> Masks:
        """Masks that keep all weights."""
        return keep_all(self.setup.build(), self.config)


def order_seeds(origin: Origin, pair: int) -> tuple[int, int]:
    """The seeds of data order and augmentation of a pair's children: the same in every arm and at every step."""
    own = origin.config.seeds["order"]
    return (own + OTHER_SEED * (2 * pair + 1)) % _SEEDS, (own + OTHER_SEED * (2 * pair + 2)) % _SEEDS


def train_parents(origin: Origin, fresh: bool, steps: Sequence[int], shows: Progress) -> None:
    """Train the network of the run to the last of the steps at which it is not kept yet."""
    missing = [step for step in steps if step and find_parent(origin, fresh, step) is None]
    if not missing:
        return
    config = origin.of_init(fresh)
    values = {key: getattr(config, key) for key in (*REPEATED, *ALSO, "weights")}
    samples, factory = origin.given.data, origin.given.model or config.model
    request = check_request(
        "beginning", factory, config.data if samples is None else samples,
        {**values, "keep": tuple(f"{step}it" for step in missing)},
        model_name=describe_model(factory), given=(), functions=origin.given.functions, leaves=config.leaves,
        origin=config.origin,
    )  # fmt: skip
    resolved = resolve(request.config).model_copy(update={"data": origin.setup.data.name})
    setup = make_setup(request.method, request.model, origin.setup.data, resolved, request.functions)
    name = "-".join([_name_of_init(fresh), *map(str, missing)])
    carry_out(Run(choose_folder(resolved, origin.folder / "parents", name), resolved, setup, shows))


def find_parent(origin: Origin, fresh: bool, step: int) -> Path | None:
    """The file of W_k, if a finished training has kept it."""
    folders = sorted((origin.folder / "parents").glob(f"{_name_of_init(fresh)}-*"))
    found = [kept_at(folder, step) for folder in folders if is_finished(folder)]
    return next((path for path in found if path.exists()), None)


def _name_of_init(fresh: bool) -> str:
    return "fresh" if fresh else "own"


def write_start(origin: Origin, arm: str, step: int, folder: Path) -> Path:
    """Write the ticket that both children of a pair start from: W_k of the arm's init under the arm's mask."""
    fresh = arm == "reinit"
    if step:
        parent = find_parent(origin, fresh, step)
        assert parent is not None, "parents are trained first"
        tensors, draws = supermask.load(parent).state_dict("final"), None
    else:
        tensors, draws = origin.start(fresh), dict(origin.setup.draws)
    masks = origin.whole if arm == "dense" else origin.ticket.masks
    if arm == "shuffle":
        masks = masks.shuffled(origin.config.seeds["mask"] + OTHER_SEED)
    meta = {key: value for key, value in origin.ticket.meta.items() if key not in _OWN}
    # With the same seed the batches are the same in all arms: those of the first training.
    meta["config"] = {key: value for key, value in meta["config"].items() if key != "data_order"}
    meta |= {"density": masks.density, **({"rewound_to": step} if step else {})}
    path = folder / f"{name_of_arm(origin, arm)}-at-{step:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = supermask.make_state(tensors, masks, draws)
    supermask.save(supermask.Ticket(masks, {"start": state}, meta), path, overwrite=True)
    return path


def name_of_arm(origin: Origin, arm: str) -> str:
    """The arm, with the level where it has one, as files are named by it."""
    return arm if arm == "dense" or origin.level is None else f"{arm}-level-{origin.level:02d}"


def prepare_child(origin: Origin, start: Path, order_seed: int) -> tuple[Config, Setup]:
    """What a child is trained on: the recipe of the run, from the weights of `start`, in an order of its own."""
    config, given = origin.config, origin.given
    flags: dict[str, Any] = {key: getattr(config, key) for key in ("data_dir", "compile", "loss", "metric", "workers")}
    flags |= {"seed": config.seed, "order_seed": order_seed, "threads": config.threads, "device": config.device}
    flags, functions = describe_functions({**flags, **given.functions})
    asked = {key: value for key, value in flags.items() if value is not None}
    request = check_training(start, given.model, given.data, asked, leaves=config.leaves)
    resolved = resolve(request.config).model_copy(update={"data": origin.setup.data.name})
    return resolved, make_setup(request.method, request.model, origin.setup.data, resolved, functions)


def train_child(origin: Origin, start: Path, name: str, order_seed: int, shows: Progress) -> Ticket:
    """A child's ticket; it is trained if it is not there.

    Raises:
        RequestError: the one that is there has other parents.
    """
    folder = origin.folder / "children" / name
    if not is_finished(folder):
        config, setup = prepare_child(origin, start, order_seed)
        carry_out(Run(choose_folder(config, folder.parent, name), config, setup, shows))
    child = supermask.load(folder / TICKET)
    parent = supermask.load(start).states["start"].fingerprint
    if child.meta.get("parent", {}).get("fingerprint") != parent or read_config(folder).order_seed != order_seed:
        raise RequestError(f"{folder} was trained from other weights, or in another order: remove it")
    return child


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor], masks: Masks) -> list[str]:
    """The names of masked tensors that two networks have alike, but for constant ones, as biases of 0 are."""
    return [
        name for name in masks if torch.equal(one[name], other[name]) and (one[name] != one[name].flatten()[0]).any()
    ]
