"""Search for subnetworks: `search`, `resume` and what they return. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.comparison import compare as compare
    from .bench import bench as bench
    from .problems import Interrupted as Interrupted
    from .problems import RequestError as RequestError
    from .problems import RunError as RunError
    from .runs import Run as Run
    from .searches import resume as resume
    from .searches import search as search
    from .searches import train as train
    from .sweep import run_sweep as run_sweep
    from .sweep_file import read_sweep as read_sweep
    from .ticket_controls import controls as controls

_HOME = {
    "bench": "bench",
    "compare": "analysis.comparison",
    "controls": "ticket_controls",
    "read_sweep": "sweep_file",
    "run_sweep": "sweep",
    "search": "searches",
    "resume": "searches",
    "train": "searches",
    "Run": "runs",
    "RequestError": "problems",
    "RunError": "problems",
    "Interrupted": "problems",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ticket_search' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
