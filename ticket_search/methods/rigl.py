"""Train a sparse network and move its smallest weights to where the gradient is largest.

Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020.
"""

from __future__ import annotations

from ..training import dynamic_sparse
from ..training.dynamic_sparse import TRAITS as TRAITS
from ..training.dynamic_sparse import plan as plan
from ..training.dynamic_sparse import search as search

WHEN = "When the network must be as sparse during training as after it, and still accurate."


class Config(dynamic_sparse.Config):
    """Flags of RigL."""

    method: str = "rigl"
