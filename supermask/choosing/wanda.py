"""Wanda: weights ranked by |w| times the norm of the input that each one is multiplied by.

Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023.
"""

from __future__ import annotations

from torch import Tensor

from .calibration import Rule, Share


def squares(inputs: Tensor) -> Tensor:
    """[groups, samples, columns] -> the sum of squares of each column."""
    return inputs.square().sum(1)


def keep_best(weights: Tensor, sums: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Of each row the weights with the largest |w| * ||x||, x all that the weight is multiplied by; none is changed.

    Rows are ranked by themselves, each keeps `floor(density * n + 0.5)` of its n weights, ties to the first. The paper
    drops `int((1 - density) * n)` of each.
    """
    return share.choose(weights.abs() * sums.sqrt()[:, None]), weights


WANDA = Rule("wanda", squares, keep_best)
