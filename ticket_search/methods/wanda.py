"""Train, then keep of each output the weights with the largest |w| times the norm of its input.

Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023.
"""

from __future__ import annotations

from typing import ClassVar

from ..training import by_inputs
from ..training.by_inputs import TRAITS as TRAITS
from ..training.by_inputs import plan as plan
from ..training.by_inputs import search as search

WHEN = "As sparsegpt, where it must take seconds: the weights that are kept are not touched."


class Config(by_inputs.Config):
    """Flags of wanda."""

    score: ClassVar[str] = "wanda"
    method: str = "wanda"
