"""Nominal and effective density: which kept weights lie on a path from the input to the output.

Every function of the model is replaced, while it runs, by a monotone, non-negative one with the same paths. With kept
weights 1 and dropped ones 0 the output is a polynomial with non-negative coefficients, whose derivative by a weight is
positive exactly where a path goes through it. After each sum of products only "reached or not" is kept, forward and
backward, so that no depth over- or underflows.

What is 0 at 0 (relu, gelu, tanh) passes what it gets. What is not (sigmoid, softmax, exp, adding a number) passes a
constant too: behind it a unit is reached even where nothing reaches the gate. Biases and added tables are 0; learned
tokens and positions are input. A norm passes each entry whose scale is not 0. Masks of attention are taken as open.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_map_only

from ..choosing.gradients import call, tensors_in
from ..live.link import Link
from ..masks.masks import Masks
from ..masks.targets import Target, find_targets, unwrap


class LayerFlow(NamedTuple):
    """A masked tensor: weights it has, keeps, and has on a path; units (output rows) it has, and dead ones."""

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    effective: int
    units: int
    dead: int


@dataclass(frozen=True)
class Flow:
    """A row per masked tensor, the effective masks, and by name the indices of dead units: those on no path."""

    layers: tuple[LayerFlow, ...]
    effective: Masks
    dead: Mapping[str, tuple[int, ...]]

    @property
    def density(self) -> float:
        """Fraction of the weights that is kept, in [0, 1]."""
        return sum(layer.kept for layer in self.layers) / max(1, self.effective.size)

    @property
    def effective_density(self) -> float:
        """Fraction of the weights that is kept and on a path, in [0, 1]."""
        return self.effective.density

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The tensors in which no weight is effective."""
        return tuple(layer.name for layer in self.layers if layer.effective == 0)

    def near_collapse(self, limit: int = 10, fraction: float = 1e-5) -> tuple[str, ...]:
        """Those with some effective weights: at most `limit` and half of their own, or `fraction` of their own."""
        bounds = [max(min(limit, layer.size // 2), fraction * layer.size) for layer in self.layers]
        return tuple(x.name for x, bound in zip(self.layers, bounds, strict=True) if 0 < x.effective <= bound)


def describe(flow: Flow, limit: int = 10) -> list[str]:
    """A sentence for each tensor that has collapsed, or nearly (`Flow.near_collapse`); none where all is well.

    fc2.weight keeps 3 of 30,000 weights and none is on a path from input to output
    """
    near, sentences = flow.near_collapse(limit), []
    for name, _, size, kept, effective, _, _ in flow.layers:
        some = f"only {effective:,} {'is' if effective == 1 else 'are'}" if effective else "none is"
        if kept == 0:
            sentences.append(f"{name} keeps none of its {size:,} weights")
        elif effective == 0 or name in near:
            sentences.append(f"{name} keeps {kept:,} of {size:,} weights and {some} on a path from input to output")
    return sentences


@torch.inference_mode(False)
def flow(model: nn.Module, masks: Mapping[str, Tensor], example_input: Any) -> Flow:
    """Find which kept weights, and which units, are on a path from the input to the output.

        found = flow(model, supermask.prune(model, density=0.01), torch.zeros(1, 3, 32, 32))
        print(found.density, found.effective_density, found.collapsed)

    The model stays as it is; masks that it carries do not count. Costs one forward and backward pass in float64. Output
    is every floating tensor that the model returns, in tuples and mappings too.

    Args:
        model: any module, taken in eval mode.
        masks: `{parameter name: bool tensor of its shape}`, True = kept. Tensors of fewer than two dimensions are not
            counted, but a norm's scale that is dropped, or 0 in some of its entries, cuts. One that is 0 throughout and
            not masked is the start of a residual branch, which training will open.
        example_input: a tensor, batch first, or a tuple or mapping of arguments. One example is taken, floating-point
            numbers become ones, integers stay. Any entry of an embedding might be asked for. A position of a kernel
            that meets nothing but padding at this image size is on no path.

    Raises:
        ValueError: masks that do not fit or have no two dimensions; recurrent layers or TorchScript; a model that does
            not take the input; a function, named, whose paths are unknown, that chooses by value or gives negatives.

    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020;
    Vysogorets & Kempe, Connectivity Matters: Neural Network Pruning Through the Lens of Effective Sparsity, 2021.
    """
    model = unwrap(model)
    unfit = (nn.RNNBase, nn.RNNCellBase, torch.jit.ScriptModule)
    if found := [name or type(module).__name__ for name, module in model.named_modules() if isinstance(module, unfit)]:
        raise ValueError(f"no paths are defined through recurrent gates and TorchScript: {', '.join(found)}")
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check(model)
    counted = [name for name, mask in masks.counted().items() if mask.dim() > 1]
    if not counted:
        raise ValueError(f"expected masks of two or more dimensions, got {', '.join(masks) or 'none'}")
    targets = find_targets(model, include="*")
    weights = {name: _passing(target, masks.get(name)) for name, target in targets.items()}
    net = _copy(model, {id(target.parameter): weights[name] for name, target in targets.items()})
    gradients = _gradients(net, [weights[name] for name in counted], example_input)
    layers, effective, dead = [], {}, {}
    for name, gradient in zip(counted, gradients, strict=True):
        _check_sign(gradient, name)
        mask = masks[name]
        effective[name] = on_path = mask & (gradient > 0).to(mask.device)
        alive = _units(on_path, targets[name])
        dead[name] = tuple((~alive).nonzero().flatten().tolist())
        counts = (mask.numel(), int(mask.count_nonzero()), int(on_path.count_nonzero()))
        layers.append(LayerFlow(name, tuple(mask.shape), *counts, alive.numel(), len(dead[name])))
    return Flow(tuple(layers), Masks(effective), dead)


def _passing(target: Target, mask: Tensor | None) -> nn.Parameter:
    """What stands for a parameter: 1 where it passes, 0 where it does not."""
    own, vector = target.parameter.detach(), target.parameter.dim() < 2
    if vector and (target.kind == "bias" or (target.kind, target.owners[0][1]) == ("norm", "bias")):
        mask = torch.zeros_like(own)
    elif mask is None:
        mask = own != 0 if vector and bool(own.any()) else torch.ones_like(own)
    return nn.Parameter(torch.empty_like(own, dtype=torch.float64).copy_(mask))


def _copy(model: nn.Module, parameters: dict[int, Tensor]) -> nn.Module:
    """The model in eval mode with other parameters, without the masks that it or a part of it carries."""
    computed = [x for m in model.modules() for x in vars(m).values() if isinstance(x, Tensor) and not x.is_leaf]
    memo = parameters | {id(x): x.detach().clone() for x in computed}
    memo |= {id(p): nn.Parameter(torch.ones_like(p).double()) for p in model.parameters() if id(p) not in memo}
    net = copy.deepcopy(model, memo).eval().double()
    for module in list(net.modules()):
        for name, child in module.named_children():
            setattr(module, name, unwrap(child))
        module._backward_hooks.clear()
        for hook in list(module._forward_pre_hooks.values()):
            if not isinstance(link := getattr(hook, "__self__", None), Link):
                continue
            if link.program is None:  # of a part, without its model
                link.remove()
            else:
                link.program.settle()
                link.program.remove()
    return net


def _gradients(net: nn.Module, weights: list[nn.Parameter], example: Any) -> tuple[Tensor, ...]:
    """The derivative of the sum of all outputs by each weight."""
    device = weights[0].device
    with (
        torch.enable_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=False),  # its transforms round what is 0
        torch.autograd.graph.disable_saved_tensors_hooks("checkpointed activations cannot be followed"),
    ):
        try:
            inputs = tree_map_only(Tensor, lambda value: _ones(value, device), example)
            with _Paths():
                output = call(net, inputs)
            reached = [_Reached.apply(x, "the output").sum() for x in tensors_in(output) if _is_data(x)]
        except Exception as error:
            raise ValueError(f"the model cannot be followed on the example input: {error}") from error
        if not reached:
            raise ValueError("the model returns no floating-point tensor that depends on its input or its weights")
        return torch.autograd.grad(torch.stack(reached).sum(), weights, allow_unused=True, materialize_grads=True)


def _ones(value: Tensor, device: torch.device) -> Tensor:
    first = value[:1].to(device)
    # A copy, because the model may write into its input, which a leaf forbids.
    return torch.ones_like(first, dtype=torch.float64).requires_grad_().clone() if first.is_floating_point() else first


def _units(on_path: Tensor, target: Target) -> Tensor:
    """Which units have an effective weight."""
    if target.output_axis == 0 and target.kind != "embedding":
        return on_path.flatten(1).any(1)
    return on_path.reshape(target.groups, -1, on_path.shape[1], on_path[0, 0].numel()).any(3).any(1).flatten()


def _refused(func: Any, why: str) -> ValueError:
    return ValueError(f"{func if isinstance(func, str) else resolve_name(func) or func}: {why}")


def _is_data(value: Any) -> bool:
    """Whether a tensor comes from the input or a weight; all others are constants of the model."""
    return isinstance(value, Tensor) and value.requires_grad


def _check_sign(x: Tensor, func: Any) -> None:
    if x.numel() and not bool(x.min() >= 0):
        raise _refused(func, "negative numbers or NaN: a function here or before is not monotone")


class _Reached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, func: Any) -> Tensor:
        ctx.func = func
        _check_sign(x, func)
        return (x > 0).double()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        _check_sign(grads[0], ctx.func)
        return (grads[0] > 0).to(grads[0].dtype), None


def _factor(value: Any) -> Any:
    """In a product constants count as 0 or 1."""
    return value.double() if _is_data(value) else (value != 0).double() if isinstance(value, Tensor) else value


def _product(f: Any, *args: Any, **named: Any) -> Any:
    return _Reached.apply(f(*map(_factor, args), **{name: _factor(x) for name, x in named.items()}), f)


def _layer(f: Any, x: Tensor, weight: Tensor, *args: Any, bias: Any = None, **named: Any) -> Any:
    return _product(f, x, weight, None, *args[1:], **named)


def _multiply(f: Any, x: Any, y: Any) -> Any:
    x, y = (_factor(v) if isinstance(v, Tensor) else float(v != 0) for v in (x, y))
    return _Reached.apply(x * y, f) if _is_data(x) and _is_data(y) else x * y


def _term(value: Any) -> Any:
    """In a sum numbers count as a constant that passes; tables, and parameters of one dimension, are biases."""
    if not isinstance(value, Tensor):
        return float(value != 0)
    base = value if value._base is None else value._base
    return value if _is_data(value) and not (base.is_leaf and base.dim() < 2) else torch.zeros_like(value)


def _add(f: Any, x: Any, y: Any, **named: Any) -> Any:
    return _Reached.apply(_term(x) + _term(y), f)


def _norm(f: Any, x: Tensor, *args: Any, **named: Any) -> Any:
    scale = named["weight"] if "weight" in named else (*args, None, None)[f.__name__[:5] not in ("batch", "insta")]
    if scale is not None and f.__name__ not in ("layer_norm", "rms_norm"):
        scale = scale.reshape(-1, *[1] * (x.dim() - 2))
    return x.clone() if scale is None else _multiply(f, x, scale)


def _largest(f: Any, x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, Tensor):
        return _add(f, x, dim)
    values = _Reached.apply(x, f).amax(dim, keepdim)  # shares the derivative among equals, where max chooses one
    return values if dim is None else torch.return_types.max((values, f(x, dim, keepdim).indices))


def _max_pool(f: Any, x: Tensor, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **k: Any) -> Any:
    if dilation not in (1, (1, 1)):
        raise _refused(f, "paths through dilated windows are not known")
    rest = () if f.__name__.startswith("adaptive") else (stride or None, padding, k.get("ceil_mode", False))
    return getattr(nn.functional, f.__name__.replace("max", "avg"))(x, size, *rest)


def _attention(f: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
    key, value = (x.repeat_interleave(max(1, query.shape[-3] // x.shape[-3]), -3) for x in (key, value))
    return _product(torch.matmul, 1 + _product(torch.matmul, query, key.mT), value)


# By names: what moves and adds numbers (None) runs as it is, everything else in the words of this module.
_RULES: dict[str, Callable[..., Any] | None] = {
    name: rule
    for names, rule in {
        """T mT view view_as reshape reshape_as permute transpose t swapaxes swapdims movedim flatten unflatten ravel
        squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile cat concat
        concatenate stack hstack vstack chunk split split_with_sizes tensor_split unbind select narrow index_select
        gather getitem setitem flip roll tril triu diagonal clone contiguous to type type_as float double bfloat16 cpu
        cuda pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold im2col fold col2im interpolate
        constant_pad_nd sum mean cumsum prod logsumexp avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d index_add index_copy index_put scatter scatter_add copy zero
        moveaxis half fill""": None,
        """relu relu6 leaky_relu rrelu prelu elu celu selu gelu silu mish hardswish tanh hardtanh softsign tanhshrink
        hardshrink softshrink threshold abs neg negative positive sqrt square sin sinh asin atan erf log1p expm1 sign
        round floor ceil trunc clamp clamp_min clamp_max clip nan_to_num dropout dropout1d dropout2d dropout3d detach
        alpha_dropout feature_dropout feature_alpha_dropout normalize local_response_norm
        data""": lambda _f, x, *_, **__: x.clone(),
        """sigmoid hardsigmoid softplus exp exp2 cos cosh reciprocal rsqrt log log2 log10 logit log_sigmoid softmax
        log_softmax softmin special_expit rpow""": lambda _f, x, *_, **__: 1 + x,
        "matmul rmatmul mm bmm mv dot vdot inner outer ger einsum tensordot kron": _product,
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": _layer,
        "addmm addmv baddbmm": lambda f, c, *ab, **named: _add(f, c, _product(torch.matmul, *ab, *tensors_in(named))),
        "addcmul": lambda f, c, *ab, **named: _add(f, c, _multiply(f, *ab, *tensors_in(named))),
        "add iadd radd sub isub rsub subtract maximum minimum fmax fmin": _add,
        "mul imul rmul multiply": _multiply,
        "weight_norm": lambda f, direction, scale, _dim=0: _multiply(f, direction, scale),
        "div idiv divide true_divide": lambda f, x, y, **_: _multiply(f, x, 1 + y if _is_data(y) else y),
        "rdiv": lambda f, x, y: _multiply(f, y, 1 + x),
        "pow float_power": lambda f, x, y: x.clone() if not _is_data(y) and y > 0 else _add(f, _add(f, x, y), 1),
        "glu": lambda f, x, dim=-1: _multiply(f, x.chunk(2, dim)[0], 1 + x.chunk(2, dim)[1]),
        "masked_fill": lambda _f, x, mask, _value: x.masked_fill(mask, 0),
        "pad": lambda f, x, width, *_, **named: f(x, width, named.get("mode", "constant")),
        "where": lambda _f, test, *values: torch.where(test, *(v if _is_data(v) else 0.0 for v in values)),
        "batch_norm instance_norm layer_norm group_norm rms_norm": _norm,
        "var std": lambda f, x, *args, **named: torch.ones_like(f(x.detach(), *args, **named)),
        "max": _largest,
        "amax linalg_vector_norm": lambda f, x, *args, **named: f(_Reached.apply(x, f), *args, **named),
        "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d": _max_pool,
        "scaled_dot_product_attention": _attention,
        "embedding": lambda f, index, weight, *_, **__: _Reached.apply(weight.sum(0), f).repeat(*index.shape, 1),
    }.items()
    for name in names.split()
}


class _Paths(TorchFunctionMode):  # replaces what functions do to data, and lets those of constants run
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named, name = kwargs or {}, (func.__self__ if func.__name__ == "__get__" else func).__name__
        if name == "_set_grad_enabled" or not any(map(_is_data, tensors_in([args, named]))):
            return None if name == "_set_grad_enabled" else func(*args, **named)  # a path counts under no_grad too
        if not torch.is_grad_enabled():
            raise _refused(func, "runs in an autograd.Function or in inference_mode, where its paths are hidden")
        rule, known = _RULES.get(name.strip("_")), name.strip("_") in _RULES
        if rule and name[:3] != "__i" and (name[-1] != "_" or name[:2] == "__") and not named.get("inplace"):
            return rule(func, *args, **named)
        if rule:
            return args[0].copy_(rule(func, args[0].clone(), *args[1:], **named))
        if isinstance(func, FunctionType) and not known:
            # A function in Python is opened: its body runs as if nobody asked for it, and what it calls comes here.
            scope = func.__globals__ | {f"has_torch_function{x}": lambda *_: False for x in ("", "_unary", "_variadic")}
            opened = FunctionType(func.__code__, scope, None, func.__defaults__, func.__closure__)
            opened.__kwdefaults__ = func.__kwdefaults__
            with self:
                return opened(*args, **named)
        found = func(*args, **named)
        if not known and (any(map(_is_data, tensors_in(found))) or name in ("argmax", "argmin", "argsort", "nonzero")):
            raise _refused(func, "its paths are not known")
        return found
