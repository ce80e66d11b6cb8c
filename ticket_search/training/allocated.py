"""How much memory tensors take while something runs: counted at every operation, on any device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """Within it the bytes of tensors on a device are counted that are made and not yet freed.

        with Allocated("cpu") as counted:
            train()
        counted.peak, counted.now

    What is there before does not count. `now` are the bytes there are, `history` has those after each operation. To
    look at each takes time, and what a library takes for itself within an operation is not seen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.history: list[int] = [0]
        self.now = 0
        # By address of what PyTorch keeps of each; a finalizer takes out what is freed.
        self._known: dict[int, int] = {}
        for tensor in _tensors():
            self._note(tensor, counts=False)

    @property
    def peak(self) -> int:
        """The most bytes there were."""
        return max(self.history)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What came from elsewhere, as of NumPy, is met first as an argument.
        self._note_all((args, kwargs))
        result = operation(*args, **(kwargs or {}))
        self._note_all(result)
        self.history.append(self.now)
        return result

    def _note_all(self, tree: Any) -> None:
        for each in tree_leaves(tree):
            if isinstance(each, Tensor):
                self._note(each, counts=True)

    def _note(self, tensor: Tensor, counts: bool) -> None:
        if tensor.layout != torch.strided or tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        self._known[address] = storage.nbytes() if counts else 0
        self.now += self._known[address]
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        self.now -= self._known.pop(address, 0)


def _tensors() -> Iterator[Tensor]:
    """The tensors that are there already."""
    for each in gc.get_objects():
        if type(each) in (Tensor, nn.Parameter):
            yield each


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors; those that lie in one storage count once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
