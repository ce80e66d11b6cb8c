"""What a search works on: the network and the data, resolved from names or from the caller's own objects."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import supermask
from supermask import Draw
from supermask.architectures import find_architecture
from supermask.targets import Targets

from .config import Config
from .data import read_arrays
from .data.dataset import Data, from_arrays, split
from .methods import Method
from .problems import RequestError


@dataclass
class Setup:
    """A search's network and data. `build()` gives the network as it comes; `draws` says how it was initialized."""

    method: Method
    data: Data
    architecture: dict[str, Any]
    build: Callable[[], nn.Module]
    draws: dict[str, Draw] = field(default_factory=dict)

    def make_model(self, config: Config) -> nn.Module:
        """The network at initialization, on the configured device. The same seed gives the same weights."""
        seed = config.seeds["init"]
        with own_random_numbers():
            torch.manual_seed(seed)
            model = self.build()
        if config.init != "keep" and not self.method.traits.frozen_weights:
            self.draws = supermask.initialize(model, config.init, seed)
        return model.to(config.device)

    def targets(self, config: Config, model: nn.Module) -> Targets:
        """The tensors that may carry a mask.

        Raises:
            RequestError: a glob that fits nothing, or a model without targets.
        """
        try:
            return supermask.find_targets(model, config.include or None, config.exclude or None)
        except ValueError as error:
            raise RequestError(str(error)) from None


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leave the caller's global random numbers as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def exact_arithmetic(config: Config) -> Iterator[None]:
    """The configured number of threads, and fp32 that is fp32: no TF32, no algorithm chosen by timing."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (torch.get_num_threads(), cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    try:
        torch.set_num_threads(config.threads or before[0])
        cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
        cudnn.deterministic = True
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[1:]


def resolve(config: Config) -> Config:
    """The configuration with `auto` and defaults of the machine replaced by what they mean here.

    Raises:
        RequestError: a device that this machine does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = config.device
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise RequestError(f"--device {device}: this machine has {there}")
    return config.model_copy(update={"device": device, "threads": config.threads or torch.get_num_threads()})


def describe_model(model: str | Callable[..., nn.Module]) -> str:
    """The name of a model in the configuration: its own, or `module:function` of a callable."""
    if isinstance(model, str):
        return model
    if not callable(model) or isinstance(model, nn.Module):
        raise RequestError(
            f"model is {type(model).__name__}, expected a name or a callable that builds a new module each time, "
            "as model=lambda: MyNet()"
        )
    owner = getattr(model, "__module__", type(model).__module__)
    return f"{owner}:{getattr(model, '__qualname__', type(model).__qualname__)}"


def load_data(data: Any, config: Config) -> Data:
    """Data of a built-in set's name, or of the caller's arrays.

    Raises:
        RequestError: an unknown name, data that cannot be had, or arrays that do not fit.
    """
    if not isinstance(data, str):
        return data if isinstance(data, Data) else from_arrays(data, config.split_seed)
    return split(data, read_arrays(data, config.data_dir), config.split_seed)


def make_setup(method: Method, model: str | Callable[..., nn.Module], data: Data) -> Setup:
    """Join a method, a model and data.

    A callable gets `input_shape` and `classes` if it takes arguments of these names.
    """
    name = describe_model(model)
    factory = find_architecture(model) if isinstance(model, str) else model
    offered: dict[str, Any] = {"input_shape": list(data.input_shape), "classes": data.classes}
    takes = inspect.signature(factory).parameters
    arguments = {key: value for key, value in offered.items() if key in takes}

    def build() -> nn.Module:
        network = factory(**arguments)
        if not isinstance(network, nn.Module):
            raise RequestError(f"the model {name} gave {type(network).__name__}, expected a torch.nn.Module")
        return network

    return Setup(method, data, {"name": name, "arguments": arguments}, build)
