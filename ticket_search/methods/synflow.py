"""Before training and without data, keep the weights of largest path mass, in 100 rounds.

Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ..training.at_init import TRAITS as TRAITS
from ..training.at_init import AtInitConfig, prune_and_train
from ..training.at_init import plan as plan

WHEN = "When the mask must be there before training, at very low densities, and no layer may empty."


class Config(AtInitConfig):
    """Flags of synflow."""

    score: ClassVar[str] = "synflow"
    method: str = "synflow"
    rounds: int = Field(
        100, ge=1, description="rounds of scoring and pruning; the density falls exponentially from one to the next"
    )


search = prune_and_train
