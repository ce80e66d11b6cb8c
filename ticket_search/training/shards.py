"""A network whose parameters, gradients and moments are shared out over ranks in training (PyTorch's FSDP2).

Each rank has the whole network beside its shard, to measure it and to prune it; what a training needs besides, the
gradients and the optimizer's moments, is there once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from supermask.choosing.gradients import call
from supermask.live.held import Hold
from supermask.live.program import program_of
from supermask.plugins.entry_points import one_line

from ..contract.errors import RAISED, RequestError
from ..contract.flags import Config
from ..contract.method import Traits
from ..runs import ranks
from .replica import share_buffers

# The streams of the CPU have what FSDP2 asks of them since PyTorch 2.7.
WORKS_ON_A_CPU = hasattr(torch.cpu.Stream, "record_event")


def sharding_problems(config: Config, traits: Traits) -> list[str]:
    """Why a method's trainings cannot be shared out, where `--fsdp` asks for it."""
    if not config.fsdp:
        return []
    found = []
    if not traits.trains_weights or traits.changes_masks or traits.looks_at_steps:
        found.append(
            f"--fsdp goes with methods whose masks are held while the weights train, as imp, one-shot and snip; the "
            f"trainings of {config.method} change or look at more than that"
        )
    if config.device == "cpu" and not WORKS_ON_A_CPU:
        found.append(f"--fsdp on the CPU needs PyTorch 2.7 or later, and this is {torch.__version__}")
    return found


class Shards:
    """The training passes of a network that is shared out, block by block.

    Args:
        model: the same on every rank, with held masks or none. It stays as it is until `settle` is called.

    Raises:
        RequestError: its masks are learned.
    """

    def __init__(self, model: nn.Module) -> None:
        # Only where it is used: it takes as long to import as PyTorch.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if not isinstance(program_of(model), Hold | None):
            raise RequestError("--fsdp holds masks, and those of this network are learned: expected no --fsdp")
        self.whole, self.trained = model, copy.deepcopy(model)
        kind = next(model.parameters()).device.type
        mesh = init_device_mesh(kind, (ranks.now().world,))
        try:
            for block in [*reversed(_blocks(self.trained)), self.trained]:
                fully_shard(block, mesh=mesh)
        except RAISED as error:
            raise RequestError(f"--fsdp cannot share out this network: {one_line(error)}; expected no --fsdp") from None

    def __call__(self, inputs: Any) -> Any:
        """The outputs of the network."""
        return call(self.trained, inputs)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within it gradients are added up on this rank only, as those of all parts of a batch but the last."""
        sharded: Any = self.trained
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)

    def after_backward(self) -> None:
        """Nothing is left to do: gradients are averaged as they come."""

    @torch.no_grad()
    def settle(self) -> None:
        """Write what was trained into the whole network."""
        share_buffers(self.trained)
        whole = self.whole.state_dict()
        for name, tensor in self.trained.state_dict().items():
            if isinstance(tensor, Tensor):
                whole[name].copy_(_join(tensor))

    def load(self) -> None:
        """Share out the whole network again, after it has been given other tensors."""
        with torch.no_grad():
            whole = self.whole.state_dict()
            for name, tensor in self.trained.state_dict().items():
                if isinstance(tensor, Tensor):
                    tensor.copy_(_share_out(whole[name], tensor))

    def optimizer_state(self, optimizer: torch.optim.Optimizer, everywhere: bool = False) -> dict[str, Any]:
        """An optimizer's state with whole moments, as that of a network that is not shared out.

        Args:
            optimizer: over the parameters of `trained`.
            everywhere: on all ranks. If not, only the first keeps the whole, which all have to ask for.
        """

        def join(tensor: Tensor) -> Tensor:
            whole = _join(tensor)
            return whole.cpu() if everywhere or ranks.now().first else whole.new_empty(0)

        return tree_map_only(Tensor, join, optimizer.state_dict())  # type: ignore[no-any-return]

    def share_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        """The other way round, for an optimizer over the parameters of `trained`."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        shared = {
            index: {
                key: _share_out(value, parameters[index])
                if isinstance(value, Tensor) and value.shape == parameters[index].shape
                else value
                for key, value in entries.items()
            }
            for index, entries in state["state"].items()
        }
        return {**state, "state": shared}


class WholeState:
    """An optimizer as a hook may see it that only reads its state: that of the whole network."""

    def __init__(self, shards: Shards, optimizer: torch.optim.Optimizer) -> None:
        self.shards, self.optimizer = shards, optimizer

    def state_dict(self) -> dict[str, Any]:
        """The whole moments."""
        return self.shards.optimizer_state(self.optimizer, everywhere=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one after another: those that lie in lists and sequences, as blocks do.

    Each of them has parameters that no other part of the network has: what is tied is gathered with the whole.
    """
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    found = []
    for block in dict.fromkeys(_candidates(model)):
        inside = set(block.modules())
        own = [users[id(parameter)] for parameter in block.parameters()]
        if own and all(module in inside for modules in own for module in modules):
            found.append(block)
    return found


def _candidates(model: nn.Module) -> Iterator[nn.Module]:
    """What lies in lists and sequences and is called by itself."""
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            yield from (part for part in module if type(part).forward is not nn.Module.forward)


def _join(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _share_out(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the shards of another one."""
    if not hasattr(like, "full_tensor"):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(whole.detach().to(like.device), sharded.device_mesh, sharded.placements)
