"""Weights from a file: a state dict saved by torch, or safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from supermask.targets import plain_name, unwrap

from .problems import RequestError, nearest_hint

# Where training programs put the state dict inside of what they save.
_NESTED = ("state_dict", "model_state_dict", "model")


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by plain name. No code in it is run.

    Raises:
        RequestError: a file that cannot be read as a state dict.
    """
    try:
        if path.endswith(".safetensors"):
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a stranger's file make a reader raise
        first = (str(error).splitlines() or [""])[0]
        raise RequestError(f"--weights {path} cannot be read: {type(error).__name__}: {first}") from None
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise RequestError(f"--weights {path} holds no state dict: expected names and tensors")
    tensors = {plain_name(str(name)): tensor for name, tensor in found.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


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
