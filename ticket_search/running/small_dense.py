"""The dense network of as many weights as a ticket keeps: the same network, every hidden layer narrower by one factor.

A control of Frankle & Carbin, The Lottery Ticket Hypothesis, 2018, and of Blalock et al., What is the State of Neural
Network Pruning?, 2020: would a small network, trained as long, have done?
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..contract.errors import RequestError
from ..contract.flags import Config
from ..runs.experiment import Setup, describe_model, find_model, make_setup
from ..runs.folders import choose_folder, is_finished
from ..runs.progress import Progress
from ..runs.run import Run
from .read_config import read_config
from .request import check_request
from .search import carry_out, prepare
from .train import REPEATED

# A factor of the units changes the number of weights by at least one in so many halvings.
_HALVINGS = 30
# What a training of the small network shares with that of the run, beside its recipe.
ALSO = (
    "init", "init_gain", "data_dir", "compile", "loss", "metric", "dtype", "workers", "log", "device", "threads",
    "seed", "init_seed", "order_seed",
)  # fmt: skip


def check_small_dense(config: Config, model: str | Callable[..., nn.Module] | None) -> None:
    """Check that the network of a run has a smaller one.

    Raises:
        RequestError: it starts from a checkpoint, or takes no argument `width`.
    """
    if config.weights:
        raise RequestError("the control small-dense: a network that starts from a checkpoint has no smaller one")
    factory = model or config.model
    takes = inspect.signature(find_model(factory, config.leaves)).parameters
    if "width" not in takes:
        raise RequestError(
            f"the control small-dense needs a network that takes an argument width, a factor of its hidden units; "
            f"{describe_model(factory)} takes {', '.join(takes) or 'none'}"
        )


def find_width(kept: int, setup: Setup, model: str | Callable[..., nn.Module], config: Config) -> float:
    """The factor of the hidden layers' units that makes a network of `kept` maskable weights, or the nearest."""

    def weights(width: float) -> int:
        narrow = make_setup(setup.method, model, setup.data, _narrowed(config, width))
        with torch.device("meta"):
            return narrow.targets(config, narrow.build()).size

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(middle) <= kept else (low, middle)
    # Both sides of the step at which the number passes what is kept; of none there is no network.
    return min((width for width in (low, high) if width > 0), key=lambda width: abs(weights(width) - kept))


def train_small_dense(
    run: Run,
    kept: int,
    folder: os.PathLike[str] | str,
    name: str,
    setup: Setup,
    model: str | Callable[..., nn.Module] | None,
    data: Any,
    progress: Progress,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> dict[str, Any]:
    """Train the dense network of `kept` weights as the run's own was trained, in a folder of its own.

    Returns:
        The numbers of its training; `density` is its weights over those of the run's network.

    Raises:
        RequestError: a network that takes no argument `width`.
    """
    done = Path(folder, name)
    if is_finished(done):
        found = Run(done, read_config(done))
    else:
        config, factory = run.config, model or run.config.model
        check_small_dense(config, model)
        width = find_width(kept, setup, factory, config)
        values = {key: getattr(config, key) for key in (*REPEATED, *ALSO) if key not in ("include", "exclude")}
        values["model_args"] = _narrowed(config, width).model_args
        samples, model_name = config.data if data is None else data, describe_model(factory)
        request = check_request(
            "dense", factory, samples, values,
            model_name=model_name, given=(), functions=functions, leaves=config.leaves, origin=config.origin,
        )  # fmt: skip
        narrow, its_setup = prepare(request)
        found = carry_out(Run(choose_folder(narrow, folder, name), narrow, its_setup, progress))
    return {**found.summary, "density": found.summary["kept"] / run.summary["weights"]}


def _narrowed(config: Config, width: float) -> Config:
    own = [word for word in config.model_args if not word.startswith("width=")]
    return config.model_copy(update={"model_args": (*own, f"width={width!r}")})
