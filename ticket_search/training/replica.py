"""A network that is trained on several ranks: each has it whole, and its gradients are the means over all of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..runs import ranks

# Before PyTorch 2.14 there is only the older name for not sending buffers with every pass.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


class _Passing(nn.Module):
    """A network whose pass is that of `forward`, which may be compiled: what PyTorch's wrapper has to hold."""

    def __init__(self, model: nn.Module, forward: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.pass_on = model, forward

    def forward(self, inputs: Any) -> Any:
        return self.pass_on(inputs)


class Replica:
    """The training passes of this rank's copy of a network, by PyTorch's DistributedDataParallel.

    In the first step the gradients are averaged one after another: it shows which parameters get none, which the
    wrapper has to know. From the second on they are averaged while the backward pass goes on.

    Args:
        model: the same on every rank.
        forward: its pass.
        parameters: those that are trained.
    """

    def __init__(self, model: nn.Module, forward: Callable[[Any], Any], parameters: Sequence[nn.Parameter]) -> None:
        self.trained, self.plain, self.parameters = model, forward, parameters
        self.wrapper: DistributedDataParallel | None = None

    def __call__(self, inputs: Any) -> Any:
        """The outputs of the network."""
        return self.plain(inputs) if self.wrapper is None else self.wrapper(inputs)

    def apart(self) -> contextlib.AbstractContextManager[Any]:
        """Within it gradients are added up on this rank only, as those of all parts of a batch but the last."""
        return contextlib.nullcontext() if self.wrapper is None else self.wrapper.no_sync()

    def after_backward(self) -> None:
        """To be called when the gradients of a step are there: those of the first are averaged here."""
        if self.wrapper is not None:
            return
        got = torch.tensor([parameter.grad is not None for parameter in self.parameters], dtype=torch.uint8)
        anywhere = ranks.add(got.to(torch.int64)).tolist()
        for parameter, number in zip(self.parameters, anywhere, strict=True):
            if number:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = average(grad)
        options: dict[str, Any] = {_SENDS_BUFFERS: False}
        self.wrapper = DistributedDataParallel(
            _Passing(self.trained, self.plain),
            gradient_as_bucket_view=True,
            find_unused_parameters=any(number < ranks.now().world for number in anywhere),
            **options,
        )

    def settle(self) -> None:
        """Have all ranks know what only one of them does: the running statistics of norms are those of its rows."""
        share_buffers(self.trained)


def average(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, in its place."""
    return ranks.add(tensor).div_(ranks.now().world)


def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of the first.

    Masks are the same everywhere, which is checked where a ticket is made.
    """
    ranks.send_buffers([buffer for buffer in model.buffers() if buffer.dtype != torch.bool and buffer.numel()])
