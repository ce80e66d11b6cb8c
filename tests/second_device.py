"""A second device that needs no hardware: its tensors hold CPU memory, say that they are elsewhere, and refuse others.

with second_device():
    model.to(SECOND)
    model(x.to(SECOND))  # x alone: RuntimeError, as on a GPU

What a GPU takes from the CPU is taken here: tensors without dimensions in a sum or product, the source of a copy, and
indices. It runs below autograd, so that backward passes and optimizers are refused mixed devices too.

    with refusing_the_host():
        loss.item()  # AssertionError: for this the host would wait until the device has done all that it was given

Refused are numbers that the host reads, shapes that follow from values, and copies from the device, or to it from
memory that is not pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

# Of the devices of every build of PyTorch one that is neither the CPU nor without memory.
SECOND = torch.device("lazy", 0)

_COPIES = ("copy_", "copy", "_foreach_copy_")
_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_")
# What the host learns a number of, or a shape.
_WAITED_FOR = (
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2", "unique_dim",
    "unique_consecutive", "item",
)  # fmt: skip
_NO_SCALARS = ("stack", "cat", "mm", "addmm", "bmm", "convolution", "index_select", "gather", "scatter")


class There(Tensor):
    """A tensor on the second device."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> There:
        assert not isinstance(elem, There)
        made = Tensor._make_wrapper_subclass(
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device=SECOND, requires_grad=False,
        )  # fmt: skip
        made.elem = elem
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"There({self.elem!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = There(self.elem.detach().clone())
            as_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if as_parameter else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def tolist(self) -> Any:
        _wait("tolist")
        return self.elem.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As it is saved and read: by the CPU.
        return self.elem.detach().__reduce_ex__(protocol)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of the second device to numpy: use Tensor.cpu() first")


def _here(x: Tensor) -> Tensor:
    return x.elem if isinstance(x, There) else x


def _there(x: Tensor) -> Tensor:
    return x if isinstance(x, There) else There(x)


def _in_each(change: Callable[[Tensor], Any], given: Any) -> Any:
    """What operations are given and give, with each tensor changed: tensors, and lists and tuples of them."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, (list, tuple)):
        return type(given)([_in_each(change, each) for each in given])
    return given


def _tensors_in(args: Any, named: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    _in_each(found.append, (args, list(named.values())))
    return found


def _refuse(func: Any, name: str, tensors: list[Tensor]) -> None:
    others = [x for x in tensors if not isinstance(x, There)]
    if len(others) in (0, len(tensors)) or name in _COPIES or name in _INDICES:
        return
    if name in _NO_SCALARS or any(x.dim() for x in others):
        shapes = [(str(x.device), list(x.shape)) for x in tensors]
        raise RuntimeError(f"expected all tensors to be on the same device: {func} got {shapes}")


_REFUSING: list[None] = []
_COUNTED: list[list[str]] = []


@contextmanager
def refusing_the_host() -> Iterator[None]:
    """Whatever the host would wait for the device for raises an AssertionError."""
    _REFUSING.append(None)
    try:
        yield
    finally:
        _REFUSING.pop()


@contextmanager
def letting_the_host_wait() -> Iterator[None]:
    """Within what is refused otherwise."""
    before = _REFUSING[:]
    _REFUSING.clear()
    try:
        yield
    finally:
        _REFUSING.extend(before)


@contextmanager
def counting_waits() -> Iterator[list[str]]:
    """What the host would wait for the device for."""
    _COUNTED.append([])
    try:
        yield _COUNTED[-1]
    finally:
        _COUNTED.pop()


def _wait(what: str) -> None:
    for waits in _COUNTED:
        waits.append(what)
    assert not _REFUSING, f"the host waits for the device: {what}"


def _look_whether_it_waits(func: Any, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    if name in _WAITED_FOR:
        _wait(name)
    if name in ("index", *_INDICES[1:]):
        indices = [x for x in _tensors_in(args[1], {}) if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            _wait("an index of bools")
        if any(not isinstance(x, There) for x in indices):
            _wait("an index that lies in the host's memory")
    if name == "repeat_interleave" and func is torch.ops.aten.repeat_interleave.Tensor and len(tensors) == 1:
        _wait("repeat_interleave")
    if name == "_to_copy" and kwargs.get("device") is not None:
        to = torch.device(kwargs["device"]).type
        from_there = isinstance(args[0], There)
        if from_there and to != SECOND.type:
            _wait("a copy to the host")
        if not from_there and to == SECOND.type and not kwargs.get("non_blocking"):
            _wait(f"a copy from the host, of {list(args[0].shape)}")
    if name == "copy_":
        here = [not isinstance(x, There) for x in args[:2]]
        if here[0] != here[1] and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
            _wait(f"a copy between the host and the device, of {list(args[1].shape)}")


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    tensors = _tensors_in(args, kwargs)
    if _REFUSING or _COUNTED:
        _look_whether_it_waits(func, name, args, kwargs, tensors)
    _refuse(func, name, tensors)
    named = dict(kwargs)
    there = any(isinstance(x, There) for x in tensors)
    if named.get("device") is not None:
        there = torch.device(named["device"]).type == SECOND.type
        named["device"] = torch.device("cpu")
    if name in _COPIES:
        there = False  # what is written into stays where it is
    out = func(*_in_each(_here, args), **{key: _in_each(_here, value) for key, value in named.items()})
    if name in _COPIES:
        return args[0]
    if not there:
        return out
    wrapped = _in_each(_there, out)
    if any(each.alias_info is not None for each in func._schema.returns):
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


class _Mode(TorchDispatchMode):
    """Tensors that are made on the second device, or moved there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        named = kwargs or {}
        device = named.get("device")
        made = device is not None and torch.device(device).type == SECOND.type
        if made or any(isinstance(x, There) for x in _tensors_in(args, named)):
            return _dispatch(func, args, named)
        return func(*args, **named)


class _NoGradients:
    """In the place of inference mode, whose tensors cannot be wrapped."""

    def __init__(self, mode: bool) -> None:
        self.context = torch.no_grad() if mode else torch.enable_grad()

    def __enter__(self) -> None:
        self.context.__enter__()

    def __exit__(self, *told: Any) -> None:
        self.context.__exit__(*told)


@contextmanager
def second_device() -> Iterator[None]:
    """Tensors can be made on `SECOND` and moved there as long as the block lasts."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    enabled = torch.is_autocast_enabled
    # Autocast has never heard of this device, and asks whether it is one.
    torch.is_autocast_enabled = lambda device="cuda": device != SECOND.type and enabled(device)
    inference = torch._C._InferenceMode
    torch._C._InferenceMode = _NoGradients
    try:
        with _Mode():
            yield
    finally:
        torch._C._InferenceMode = inference
        torch.is_autocast_enabled = enabled
        torch.__future__.set_overwrite_module_params_on_conversion(before)
