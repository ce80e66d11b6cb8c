"""Scores by the weights of the start and of the end of a training: the mask criteria of Zhou et al.

Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019. With w_i the weight at the start and
w_f at the end, the scores are

    large-final                 |w_f|, the magnitude           small-final                -|w_f|
    large-init                  |w_i|                          small-init                 -|w_i|
    large-init-large-final      both are large                 small-init-small-final     both are small
    magnitude-increase          |w_f| - |w_i|

"Both are large" is the lesser of two shares: of the tensor's weights whose |w_i| is smaller, and of those whose |w_f|
is. What it keeps of a tensor lies above one percentile of both, as the authors say. `-same-sign` and `-diff-sign`, of
large-final and magnitude-increase, give 0 where w_i and w_f have other signs, or the same; 0 is a sign of its own. Such
a weight is not barred: after magnitude-increase it comes before those that have shrunk. The authors' `movement`,
|w_f - w_i|, is not here: that name is Sanh's. They rank each tensor by itself, and draw lots where scores are equal;
here the first are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..masks.targets import Targets, plain_name
from .gradients import Evidence, wide


def share_below(values: Tensor) -> Tensor:
    """Of each value the share of all of them that are smaller, in float64; equal values have the same."""
    flat = values.flatten()
    return (torch.searchsorted(flat.sort().values, flat).to(torch.float64) / flat.numel()).view_as(values)


def _where(keep: Tensor, score: Tensor) -> Tensor:
    return torch.where(keep, score, torch.zeros_like(score))


def _same(start: Tensor, end: Tensor) -> Tensor:
    return start.sign() == end.sign()


def _increase(start: Tensor, end: Tensor) -> Tensor:
    return end.abs() - start.abs()


_OF_THE_END: dict[str, Callable[[Tensor], Tensor]] = {
    "large-final": lambda end: end.abs(),
    "small-final": lambda end: -end.abs(),
}
_OF_BOTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "large-init": lambda start, _: start.abs(),
    "small-init": lambda start, _: -start.abs(),
    "large-init-large-final": lambda start, end: torch.minimum(share_below(start.abs()), share_below(end.abs())),
    "small-init-small-final": lambda start, end: torch.minimum(share_below(-start.abs()), share_below(-end.abs())),
    "magnitude-increase": _increase,
    "large-final-same-sign": lambda start, end: _where(_same(start, end), end.abs()),
    "large-final-diff-sign": lambda start, end: _where(~_same(start, end), end.abs()),
    "magnitude-increase-same-sign": lambda start, end: _where(_same(start, end), _increase(start, end)),
    "magnitude-increase-diff-sign": lambda start, end: _where(~_same(start, end), _increase(start, end)),
}


def _score_end(name: str, model: nn.Module, targets: Targets, evidence: Evidence) -> dict[str, Tensor]:
    return {key: _OF_THE_END[name](target.parameter.detach()) for key, target in targets.items()}


def _score_both(name: str, model: nn.Module, targets: Targets, evidence: Evidence) -> dict[str, Tensor]:
    start = weights_of_start(name, targets, evidence)
    ends = {key: target.parameter.detach() for key, target in targets.items()}
    return {key: _OF_BOTH[name](start[key], end.to(start[key].dtype)) for key, end in ends.items()}


def weights_of_start(score: str, targets: Targets, evidence: Evidence) -> dict[str, Tensor]:
    """The weights of the start, for each target.

    Raises:
        ValueError: there are none, or of some target none or others; all of them are named.
    """
    if not isinstance(evidence.start, Mapping):
        given = "" if evidence.start is None else f", not {type(evidence.start).__name__}"
        raise ValueError(
            f"the score '{score}' compares with the weights that training began from: expected start=..., a state "
            f"dict of the model from before{given}"
        )
    there = {plain_name(name): tensor for name, tensor in evidence.start.items() if isinstance(tensor, Tensor)}
    problems = [f"there is no {name} in it" for name in targets if name not in there]
    for name, target in targets.items():
        if name in there and there[name].shape != target.parameter.shape:
            shape, expected = list(there[name].shape), list(target.parameter.shape)
            problems.append(f"{name} has shape {shape} in it and {expected} in the model")
    if problems:
        raise ValueError(f"the score '{score}' cannot compare with start: {'; '.join(problems)}")
    return {
        name: there[name].detach().to(target.parameter.device, wide(target.parameter))
        for name, target in targets.items()
    }


Criterion = Callable[[nn.Module, Targets, Evidence], dict[str, Tensor]]
CRITERIA: dict[str, Criterion] = {
    **{name: partial(_score_end, name) for name in _OF_THE_END},
    **{name: partial(_score_both, name) for name in _OF_BOTH},
}
