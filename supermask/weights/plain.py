"""Plain tensors: numbers that lie one after the other in memory, as a file can hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

# NumPy knows no bfloat16 and no float8; as integers of as many bytes any type passes.
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def to_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a plain tensor in row-major order; none of one that has no entry."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.element_size() not in CARRIERS:
        flat = torch.view_as_real(flat).reshape(-1)
    # PyTorch may give what has no entry a stride of 0, which only a view of as many bytes does not mind.
    data: npt.NDArray[np.uint8] = flat.view(CARRIERS[flat.element_size()]).numpy().view(np.uint8)
    return data


def from_bytes(data: npt.NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """The tensor of one axis that `to_bytes` made these bytes from. They are copied, for they may start anywhere."""
    integers = data.copy().view(f"i{dtype.itemsize}" if dtype.itemsize > 1 else "u1")
    return torch.from_numpy(integers).view(dtype)


def zero_where(tensor: Tensor, dropped: Tensor) -> Tensor:
    """A copy of a plain tensor with +0 where `dropped` is True; `why_not_masked` says which types have no 0."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name.startswith("float8") or name in ("uint16", "uint32", "uint64"):
        # PyTorch fills no such tensor; the bits of their 0 are 0 as well.
        return tensor.view(CARRIERS[tensor.element_size()]).masked_fill(dropped, 0).view(tensor.dtype)
    return tensor.masked_fill(dropped, 0)


def why_not_masked(tensor: Tensor) -> str:
    """Why no entry of a plain tensor of this type can be 0 by itself; nothing where it can."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "float8_e8m0fnu":
        return f"is of type {name}, which has no number 0"
    return f"is of type {name}, which packs two numbers in a byte" if name == "float4_e2m1fn_x2" else ""


def is_shared_out(tensor: Tensor) -> bool:
    """Whether a tensor lies in parts on several processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def why_not_plain(tensor: Tensor) -> str:
    """What a tensor is instead of plain numbers, and what makes it so; nothing where it is plain."""
    if is_lazy(tensor):
        return "has no shape yet (a lazy module): run the model once on example input"
    if tensor.is_nested:
        return "is a nested tensor: give its parts one by one, as tensor.unbind() has them"
    if tensor.is_meta:
        return "has no values (it is on the meta device): load them first"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')}): give tensor.dequantize()"
    if tensor.layout != torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')}): give tensor.to_dense()"
    if is_shared_out(tensor):
        return "is shared out over processes (a DTensor): give tensor.full_tensor()"
    return ""


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's entries lie, and how: the same for two tensors exactly where they are one under two names."""
    # Of a tensor that is shared out over processes: the part that is here.
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    if (why_not_plain(part) and not part.is_meta) or not part.numel():
        return (id(tensor),)  # no memory, or none of one piece
    # On the meta device all tensors have the address 0.
    address = (part.untyped_storage()._cdata, part.storage_offset()) if part.is_meta else (part.data_ptr(),)
    return *address, tensor.shape, part.stride(), tensor.dtype
