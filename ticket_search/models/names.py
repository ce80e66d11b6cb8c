"""Networks by name: which there are, and which names are code of the user's own."""

from __future__ import annotations

from supermask.plugins.entry_points import MODELS, declarations

# Networks of other packages, by the names that these have for them.
OTHERS = ("torchvision:", "transformers:")


def model_names() -> list[str]:
    """The names of all models that installed packages declare."""
    return sorted(declarations(MODELS))


def is_factory(name: str) -> bool:
    """Whether a model is named by `package.module:function`."""
    return ":" in name and not name.startswith(OTHERS)
