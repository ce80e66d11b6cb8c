"""Weights from a file: a state dict saved by torch, or safetensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from supermask.masks.targets import unwrap
from supermask.tickets import foreign

from ..contract.errors import RequestError, nearest_hint


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by plain name. No code in it is run.

    Raises:
        RequestError: a file that cannot be read as a state dict.
    """
    try:
        found = foreign.read_file(path)
    except OSError as error:
        raise RequestError(f"--weights {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(f"--weights {error}") from None
    try:
        return foreign.state_dict_in(found)
    except ValueError as error:
        raise RequestError(f"--weights {path}: {error}") from None


def load_checkpoint(model: nn.Module, path: str) -> None:
    """Load a checkpoint into a model, in place.

    Raises:
        RequestError: each tensor that is missing, one too many, or of another shape.
    """
    tensors = read_checkpoint(path)
    there = unwrap(model).state_dict()
    problems = []
    for name, tensor in there.items():
        if name not in tensors:
            problems.append(f"{name} {list(tensor.shape)} is missing{nearest_hint(name, set(tensors) - set(there))}")
        elif tensors[name].shape != tensor.shape:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, the model's {list(tensor.shape)}")
    problems += [f"{name} {list(tensors[name].shape)} is not in the model" for name in tensors if name not in there]
    if problems:
        raise RequestError([f"--weights {Path(path).name}: {problem}" for problem in problems])
    unwrap(model).load_state_dict(tensors)
