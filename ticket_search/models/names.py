"""Networks by name: which there are, and which names are code of the user's own."""

from __future__ import annotations

import importlib.metadata

GROUP = "supermask.models"
TORCHVISION = "torchvision:"


def model_names() -> list[str]:
    """The names of all models that installed packages declare."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def is_factory(name: str) -> bool:
    """Whether a model is named by `package.module:function`."""
    return ":" in name and not name.startswith(TORCHVISION)
