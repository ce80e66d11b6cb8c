"""Before training, keep weights at random: the control of every other method.

Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, 2023.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..training.at_init import TRAITS as TRAITS
from ..training.at_init import AtInitConfig, prune_and_train
from ..training.at_init import plan as plan

WHEN = "As the control that every mask must beat, above all at moderate densities."


class Config(AtInitConfig):
    """Flags of random."""

    score: ClassVar[str] = "random"
    draws_masks: ClassVar[bool] = True
    method: str = "random"
    allocation: Literal["global", "layerwise", "erk", "er", "balanced"] | None = Field(
        "layerwise", description="how the weights that are kept are shared among the tensors"
    )


search = prune_and_train
