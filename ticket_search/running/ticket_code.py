"""What a ticket's network is built and measured with, where these are functions of the user's own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from supermask import Ticket

from ..contract.errors import RequestError
from ..contract.flags import Config
from ..contract.leave import FLAGS, leave_here, names_code
from ..data.samples import Samples
from ..runs.experiment import find_model, load_data
from ..training.evaluation import check_fit, read_data_of
from .request import name_problems
from .search import check_code, find_data_dir, leaves_of_ticket


def find_code(ticket: Ticket, path: str | os.PathLike[str], needs: Collection[str], **typed: str | None) -> Config:
    """What a ticket names, or what was typed in its place, with leave for what may be imported.

        config = find_code(supermask.load(path), path, ("model", "data"), model="my_net:build")

    Args:
        ticket: the ticket, read from `path`.
        path: its file. The run that it lies in may remember functions (see `trust.mark`).
        needs: which of `model data loss metric` the command cannot do without.
        typed: the values of these flags, where they were typed.

    Returns:
        A configuration of which these four are meant, the seed of the validation split, and the folder in which the
        ticket's run has found its data, if it lies in one.

    Raises:
        RequestError: code that is needed and that nobody has given leave to import.
    """
    recorded = ticket.meta.get("config")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    named = {"model": ticket.meta.get("model"), "data": ticket.meta.get("data")}
    named |= {key: recorded.get(key) for key in ("loss", "metric")}
    words = {key: value for key, value in typed.items() if value is not None}
    texts: dict[str, Any] = {key: value for key, value in {**named, **words}.items() if isinstance(value, str)}
    seed = recorded.get("split_seed", 0)
    config = Config(
        **{"model": "", "data": "", **texts},
        split_seed=seed if type(seed) is int and seed >= 0 else 0,
        data_dir=find_data_dir(Path(path)) if typed.get("data") is None else None,
    )
    leaves, why = leaves_of_ticket(Path(path), named)
    config = config.allowing(
        {**leaves, **leave_here(*words.values())}, f"the ticket {path}, which {why}" if why else ""
    )
    check_code(config, {key: None for key in FLAGS if key not in needs})
    return config


def find_factory(config: Config, typed: str | None) -> Callable[..., nn.Module] | None:
    """What builds a ticket's network, or None where the ticket's own name of it is enough.

    Raises:
        RequestError: it cannot be imported.
    """
    return find_model(config.model, config.leaves) if typed is not None or names_code(config.model) else None


def find_samples(ticket: Ticket, config: Config, typed: str | None, data_dir: str | None = None) -> Samples | None:
    """The data that were typed, or else those that a run of one's own remembers the function of.

    None where there are none, and where those that were not typed are not to be had, of which a warning tells.

    Raises:
        RequestError: the data that were typed cannot be had or do not fit.
    """
    if typed is None and not (names_code(config.data) and config.data in config.leaves):
        return None
    try:
        return read_samples(ticket, config, data_dir)
    except RequestError as error:
        if typed is not None:
            raise
        warnings.warn(f"the run's own data are not to be had, so they are not used: {error}", stacklevel=2)
        return None


def read_samples(ticket: Ticket, config: Config, data_dir: str | None = None) -> Samples:
    """The data that a configuration names, split as the ticket's, if they fit its network.

    Raises:
        RequestError: unknown data, or data that cannot be had or do not fit.
    """
    if problems := name_problems(None, config.data):
        raise RequestError(problems)
    if not names_code(config.data):
        return read_data_of(ticket, config.data, data_dir or config.data_dir)
    samples = load_data(config.data, config)
    check_fit(ticket, samples)
    return samples
