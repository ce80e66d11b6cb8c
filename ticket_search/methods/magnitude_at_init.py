"""Before training, keep the largest weights.

Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, 2021.
"""

from __future__ import annotations

from typing import ClassVar

from ..training.at_init import TRAITS as TRAITS
from ..training.at_init import AtInitConfig, prune_and_train
from ..training.at_init import plan as plan

WHEN = "As the simplest baseline of all methods that prune before training."


class Config(AtInitConfig):
    """Flags of magnitude-at-init."""

    score: ClassVar[str] = "magnitude"
    method: str = "magnitude-at-init"


search = prune_and_train
