"""Networks by name: which there are, and which names are code of the user's own."""

from __future__ import annotations

from supermask.plugins.entry_points import MODELS, declarations

from ..contract.leave import OTHERS as OTHERS
from ..contract.leave import names_code


def model_names() -> list[str]:
    """The names of all models that installed packages declare."""
    return sorted(declarations(MODELS))


def is_factory(name: str) -> bool:
    """Whether a model is named by `package.module:function`."""
    return names_code(name)
