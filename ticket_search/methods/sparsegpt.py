"""Train, then drop column after column what costs least, and let the columns behind make up for it.

Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023.
"""

from __future__ import annotations

from typing import ClassVar

from ..training import by_inputs
from ..training.by_inputs import TRAITS as TRAITS
from ..training.by_inputs import plan as plan
from ..training.by_inputs import search as search

WHEN = "When a trained language model or transformer should lose half its weights without retraining."


class Config(by_inputs.Config):
    """Flags of sparsegpt."""

    score: ClassVar[str] = "sparsegpt"
    method: str = "sparsegpt"
