"""Before training, keep the weights that the flow of gradients needs most: w (H g).

Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020.
"""

from __future__ import annotations

from typing import ClassVar

from ..training.at_init import TRAITS as TRAITS
from ..training.at_init import DataConfig, prune_and_train
from ..training.at_init import plan as plan

WHEN = "When the mask must be there before training, at densities of a few percent, and gradients vanish."


class Config(DataConfig):
    """Flags of grasp."""

    score: ClassVar[str] = "grasp"
    draws_masks: ClassVar[bool] = True
    method: str = "grasp"


search = prune_and_train
