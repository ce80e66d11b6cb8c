"""What tests of held masks share: a small problem, a loop that zeroes by hand, and what must hold after every step."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import perceptron
from torch import nn

import supermask


def assert_held(model: nn.Module, masks) -> None:
    """Dropped weights are +0 to the bit, kept ones are alive."""
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
        assert not weight[~mask].view(width).any(), name
        assert weight[mask].any(), name
    supermask.check(model)


def assert_revival_is_noticed(model: nn.Module, masks) -> None:
    """Two dropped weights of the last tensor, written by hand, are reported with its name and their number."""
    name, mask = list(masks.items())[-1]
    dropped = int((~mask).sum())
    assert dropped >= 2
    with torch.no_grad():
        weight = model.get_parameter(name)
        weight[tuple((~mask).nonzero()[:2].T)] = 1.0
    with pytest.raises(ValueError, match=rf"{name} has 2 of {dropped} dropped weights different from 0"):
        supermask.check(model)


@torch.no_grad()
def zero(model: nn.Module, masks) -> None:
    """What hold is compared with."""
    for name, mask in masks.items():
        model.get_parameter(name)[~mask] = 0.0


def held_and_reference(make=perceptron):
    """A model that holds masks, its twin that is zeroed by hand, and the masks."""
    model = make()
    reference, masks = copy.deepcopy(model), supermask.prune(model, 0.4)
    supermask.hold(model, masks)
    zero(reference, masks)
    return model, reference, masks


def batches(count: int = 4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 12, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(count)
    ]


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch, before=lambda: None) -> None:
    """One step; `before` is called ahead of each forward pass, of which some optimizers make several."""

    def closure():
        optimizer.zero_grad()
        before()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)


def assert_equal(model: nn.Module, reference: nn.Module) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
