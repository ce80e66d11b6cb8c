"""Which of Triton's kernels work on a device, and how what the host has made gets there."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor


@functools.cache
def find(name: str, device: torch.device) -> Any:
    """`radix` or `philox`, once it has given on this device what it should; None, and a warning, where it does not.

    None without a warning where there is no Triton, or no GPU that it knows.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    try:
        module = importlib.import_module(f".{name}", __package__)
        told = "" if module.is_right_on(device) else "it gives other values than it should"
    # Whatever goes wrong in a compiler or a driver: there is a slower way.
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    if told:
        warnings.warn(f"Triton's {name} does not work on {device}, a slower way is taken: {told}", stacklevel=2)
    return None if told else module


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """What the host has made, on a device: it is copied while the host goes on, and must not be changed after."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
