"""Before training, keep the weights on which the loss depends most: |g w|.

Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019.
"""

from __future__ import annotations

from typing import ClassVar

from ..training.at_init import TRAITS as TRAITS
from ..training.at_init import DataConfig, prune_and_train
from ..training.at_init import plan as plan

WHEN = "When the mask must be there before training and one batch of labelled samples is at hand."


class Config(DataConfig):
    """Flags of snip."""

    score: ClassVar[str] = "snip"
    draws_masks: ClassVar[bool] = True
    method: str = "snip"


search = prune_and_train
