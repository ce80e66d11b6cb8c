"""How large the networks are that a package declares by name, and what they are built for where nobody says."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from supermask.plugins.entry_points import Declaration


@dataclass(frozen=True)
class Size:
    """The number of parameters of a network as it is built by default, and the shape of the samples it then takes."""

    parameters: int
    input_shape: tuple[int, ...]


def measure_default(declaration: Declaration) -> Size:
    """The size of a network with the default arguments of the function that builds it.

    Its tensors have no memory, so that a network of any size takes milliseconds.

    Raises:
        DeclarationError: it cannot be imported.
    """
    build = declaration.load_function()
    with torch.device("meta"):
        network = build()
    shape = inspect.signature(build).parameters["input_shape"].default
    return Size(sum(parameter.numel() for parameter in network.parameters()), tuple(shape))
