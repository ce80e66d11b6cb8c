"""Activations by name, so that every network can be asked what its ReLU is for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from supermask.masks.targets import find_named

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky-relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """The module of a name.

    Raises:
        ValueError: an unknown name.
    """
    return find_named("activation", name, ACTIVATIONS)()
