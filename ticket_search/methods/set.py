"""Train a sparse network and move its smallest weights to places drawn at random.

Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired by Network
Science, 2018.

The fraction that moves falls as in RigL's experiments with SET; the paper's own is constant (`--regrow-fall constant`)
and moves the weights after each epoch (`--regrow-every 1ep`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ..training import dynamic_sparse
from ..training.dynamic_sparse import TRAITS as TRAITS
from ..training.dynamic_sparse import plan as plan
from ..training.dynamic_sparse import search as search

WHEN = "As the control of rigl, or where the gradients of dropped weights are too dear."


class Config(dynamic_sparse.Config):
    """Flags of SET."""

    grow: ClassVar[Literal["gradient", "random"]] = "random"
    instead: ClassVar[bool] = False
    method: str = "set"
