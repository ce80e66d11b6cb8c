"""Ways to multiply by a sparse weight, each a layer that takes the place of a dense one at inference."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from ..kernels.build import can_multiply_rows, multiply_rows

# How far the outputs of a candidate may be from the dense layer's, in units of the largest of them.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


# What torch.compile and torch.export put into their graphs; by itself it takes longer to call than many a product.
@torch.library.custom_op("supermask::multiply_rows", mutates_args=(), device_types="cpu")
def _multiply_rows(rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return multiply_rows(rows, columns, values, bias, x)


@_multiply_rows.register_fake
def _(rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-2], bias.shape[0], x.shape[-1]))


class CsrLinear(nn.Module):
    """A linear layer, or a 1x1 convolution, whose weight is in compressed sparse rows: y = (W x^T + b)^T.

    The product is the transposed one, and its transpose costs nothing as a view: elementwise layers keep that layout,
    and the next layer of this kind reads it as it is. `contiguous` lays outputs out as the dense layer does. It is
    multiplied by `csr.cpp`; by MKL where that cannot be built, and where a derivative by the input is wanted.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor
    weight: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach().flatten(1)
        self.out_features, self.in_features = weight.shape
        self.spatial, self.contiguous = isinstance(layer, nn.Conv2d), False
        kept = weight != 0
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()
        # 32 bits is what MKL reads: longer indices would be converted in every call.
        self.register_buffer("rows", F.pad(kept.sum(1).cumsum(0), (1, 0)).int())
        self.register_buffer("columns", kept.nonzero()[:, 1].int())
        self.register_buffer("values", weight[kept])
        self.register_buffer("bias", bias)
        self._join()

    def forward(self, input: Tensor) -> Tensor:
        """[*, inputs] to [*, outputs]; of a convolution [n, inputs, h, w] to [n, outputs, h, w]."""
        x = input
        y: Tensor
        if self.spatial and x.dim() == 4 and x.is_contiguous() and self._is_native(x):
            y = self._multiply(x.flatten(2)).unflatten(2, x.shape[2:])
        elif self.spatial:
            moved = x.movedim(-3, 0)
            y = self._multiply(moved.flatten(1)).view(self.out_features, *moved.shape[1:]).movedim(0, -3)
        elif x.dim() == 2:
            y = self._multiply(x.t()).t()
        else:
            y = self._multiply(x.reshape(-1, self.in_features).t()).t()
            y = y.unflatten(0, x.shape[:-1]) if x.dim() > 2 else y[0]
        return y.contiguous() if self.contiguous else y

    def _is_native(self, x: Tensor) -> bool:
        derived = torch.is_grad_enabled() and (x.requires_grad or self.values.requires_grad)
        derived = derived or unpack_dual(x).tangent is not None
        return self.native and x.dtype == self.values.dtype and x.device.type == "cpu" and not derived

    def _multiply(self, x: Tensor) -> Tensor:
        """[*, inputs, samples] to [*, outputs, samples]."""
        if x.shape[-2] != self.in_features:
            raise ValueError(f"expected {self.in_features} inputs of each sample, got {x.shape[-2]}")
        if not self._is_native(x):
            return torch.addmm(self.bias[:, None], self.weight, x)
        if torch.compiler.is_compiling():
            y: Tensor = _multiply_rows(self.rows, self.columns, self.values, self.bias, x)
            return y
        return multiply_rows(self.rows, self.columns, self.values, self.bias, x)

    def extra_repr(self) -> str:
        """Sizes and density."""
        kept = self.values.numel() / (self.out_features * self.in_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={kept:.4g}"

    def _join(self) -> None:
        """The weight, over the memory of the buffers: such a tensor can be neither copied nor pickled as it is."""
        shape = (self.out_features, self.in_features)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            weight = torch.sparse_csr_tensor(self.rows, self.columns, self.values, shape, check_invariants=False)
        self.__dict__["weight"] = weight
        # Asked here once: torch.compile would follow the question into the search for a compiler.
        self.native = can_multiply_rows(self.values, self.bias)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> CsrLinear:
        super()._apply(fn, recurse)
        self._join()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "weight"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._join()


class ColumnsLinear(nn.Module):
    """A linear layer without the inputs that no weight reads."""

    read: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        read = (layer.weight.detach() != 0).any(0)
        self.register_buffer("read", read.nonzero()[:, 0])
        self.weight = nn.Parameter(layer.weight.detach()[:, read].clone(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """[*, inputs] to [*, outputs]."""
        return F.linear(input.index_select(-1, self.read), self.weight, self.bias)


def unfit(candidate: str, layer: nn.Linear | nn.Conv2d) -> str:
    """Why a candidate is none for this layer's weight."""
    weight = layer.weight
    if candidate == "columns":
        if not isinstance(layer, nn.Linear):
            return "columns are of linear layers"
        return "every input is read" if bool((weight != 0).any(0).all()) else ""
    if candidate == "2:4":
        if not isinstance(layer, nn.Linear):
            return "2:4 is of linear layers"
        inputs = weight.shape[1]
        if inputs % 4 or int((weight != 0).view(-1, 4).sum(1).max()) > 2:
            return "its weights are not 2 of every 4 inputs"
    return ""


def semi_structured(layer: nn.Linear) -> nn.Module:
    """A linear layer whose weight holds 2 of every 4 inputs, for the sparse tensor cores of a GPU."""
    made = copy.deepcopy(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
    made.weight = nn.Parameter(sparse, requires_grad=False)
    return made
