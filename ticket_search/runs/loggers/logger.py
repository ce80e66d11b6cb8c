"""What a logger does, whichever library is behind it: what the event files are told, and the result."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ...contract.errors import RequestError

if TYPE_CHECKING:
    from .tensorboard import Histogram

# What each one is imported as.
PACKAGES = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


class Logger(Protocol):
    """A run of an experiment tracker. What its methods raise ends the logging, and never the search.

    `id` is the tracker's own name of its run, by which a resumed search goes on with it. `row` counts what was logged
    of the run before, over all its starts.
    """

    id: str

    def log(self, row: int, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at a step, by tag."""

    def log_histograms(self, row: int, step: int, values: Mapping[str, Histogram]) -> None:
        """Log histograms at a step, by tag, where the tracker has them."""

    def log_pictures(self, row: int, step: int, values: Mapping[str, bytes]) -> None:
        """Log PNG files at a step, by tag."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Log the summary of the finished search and end; None where it was stopped and may go on."""


def check_installed(names: Sequence[str]) -> None:
    """Check that the libraries of the loggers are there. Imports none of them.

    Raises:
        RequestError: some are not, with the line that installs them.
    """
    missing = [name for name in names if not all(map(importlib.util.find_spec, PACKAGES[name]))]
    if missing:
        raise RequestError(
            f"--log {','.join(missing)} needs a package that is not installed: pip install "
            f'"supermask[{",".join(missing)}]"'
        )


def numbers_of(summary: Mapping[str, Any], prefix: str = "summary") -> dict[str, float]:
    """The numbers of a summary, by tag: `summary/cost/seconds`. Those of its levels are logged as curves."""
    found: dict[str, float] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}/{key}")
        elif isinstance(value, int | float):
            found[f"{prefix}/{key}"] = float(value)
    return found
