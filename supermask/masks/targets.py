"""Which tensors of a model may carry a mask, and why the others may not."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel

from . import notebook
from .memory import refuse_overlaps

# What wrappers put into a parameter's name. A ticket must fit the plain model, so they are dropped.
WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Where a module keeps the names of what a learned mask has put into it.
_LEARNED = "_supermask_learned"

Found = TypeVar("Found")

MASKED_BY_DEFAULT = frozenset({"linear", "conv", "attention", "recurrent"})
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


class _ByItsParts(type):
    """The type of a class that is never imported: a module is known by what it has."""

    def __instancecheck__(cls, module: Any) -> bool:
        return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)


class TransposedLinear(nn.Module, metaclass=_ByItsParts):
    """The Conv1D of transformers, for `isinstance`: a linear layer whose weight is (in, out), of `nx` and `nf`."""


LINEAR = (nn.Linear, TransposedLinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ATTENTION_WEIGHTS = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})
_ATTENTION_BIASES = frozenset({"in_proj_bias", "bias_k", "bias_v"})
# Norms of other packages, such as LlamaRMSNorm and RmsNorm2d.
_NORM_NAME = re.compile(r"norm(\dd)?$", re.IGNORECASE)
# Convolutions that subtract the mean from their weight, such as ScaledStdConv2d: a weight of 0 is not 0 in the pass.
_STANDARDIZED_NAME = re.compile(r"(Std|Standardized)(Conv|Linear)")
# What weight_norm, spectral_norm and prune of torch.nn.utils store beside the weight that they compute.
_STORED = re.compile(r"(\w+)_(?:orig|g|v)")


@dataclass(frozen=True)
class Target:
    """One tensor that may carry a mask.

    `owners` lists every (module, attribute) that reads the tensor: more than one where it is tied.
    `kind` is `linear`, `conv`, `attention` or `recurrent` for what is masked by default, else what `include` asked for.
    `output_axis` is the dimension of the layer's outputs: 0, but 1 in transposed convolutions, whose weight is
    (in, out / groups, *kernel), and in transformers' Conv1D, (in, out). `groups` is 1 but for grouped convolutions.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]
    kind: str
    output_axis: int = 0
    groups: int = 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.parameter.numel()

    @property
    def fans(self) -> tuple[int, int]:
        """Fan-in and fan-out (see `fan_in_and_out`)."""
        return fan_in_and_out(self.parameter.shape, self.output_axis, self.groups)


@dataclass(frozen=True)
class LeftOut:
    """A parameter without a mask: its number of entries, the reason, and its number of dimensions."""

    size: int
    reason: str
    dimensions: int = 1


class Targets(Mapping[str, Target]):
    """The targets of a model in definition order, `{parameter name: Target}`, with `left_out` beside them.

    `output` names the weight of the model's last linear layer, whether it is a target or not.
    """

    def __init__(
        self, targets: Mapping[str, Target], left_out: Mapping[str, LeftOut], output: str | None = None
    ) -> None:
        self._targets = dict(targets)
        self.left_out = dict(left_out)
        self.output = output

    def __getitem__(self, name: str) -> Target:
        return self._targets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __repr__(self) -> str:
        aside = f", {len(self.left_out)} parameters left out" if self.left_out else ""
        return f"Targets({len(self)} tensors, {self.size} maskable weights{aside})"

    def _repr_html_(self) -> str:
        largest = max((target.size for target in self.values()), default=1)
        bars = [
            notebook.Bar(name, target.size / largest, f"{target.size:,} {list(target.parameter.shape)} {target.kind}")
            for name, target in self.items()
        ]
        left_out = {
            f"left out, {reason}": f"{tensors} tensors, {size:,} numbers"
            for reason, (tensors, size) in self.left_out_by_reason().items()
        }
        return notebook.page("Targets", {"maskable weights": f"{self.size:,}", **left_out}, bars)

    @property
    def size(self) -> int:
        """Number of maskable weights, the denominator of every density."""
        return sum(target.size for target in self.values())

    def left_out_by_reason(self) -> dict[str, tuple[int, int]]:
        """`{reason: (number of tensors, number of entries)}` of what carries no mask."""
        totals: dict[str, tuple[int, int]] = {}
        for entry in self.left_out.values():
            tensors, size = totals.get(entry.reason, (0, 0))
            totals[entry.reason] = (tensors + 1, size + entry.size)
        return totals


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, DataParallel, DistributedDataParallel, AveragedModel and peft's wrappers."""
    while True:
        if "_orig_mod" in model._modules:
            inner = model._modules["_orig_mod"]
        elif "base_model" in model._modules and hasattr(type(model), "get_base_model"):  # PeftModel
            inner = model.get_base_model()  # type: ignore[operator]
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            inner = model.module
        else:
            return model
        assert inner is not None
        model = inner


def is_adapted(module: nn.Module) -> bool:
    """Whether this layer of peft stands in the place of another, its `base_layer`, with adapters beside it."""
    return "base_layer" in module._modules and hasattr(type(module), "adapter_layer_names")


def _adapters(model: nn.Module) -> frozenset[int]:
    """The identities of the parameters of adapters."""
    found = set[int]()
    for module in filter(is_adapted, model.modules()):
        found |= {id(parameter) for parameter in module.parameters(recurse=False)}
        for name, child in module.named_children():
            found |= {id(parameter) for parameter in child.parameters() if name != "base_layer"}
    return frozenset(found)


def plain_name(name: str) -> str:
    """A parameter's name without the parts that wrappers add: `layer1._orig_mod.weight` -> `layer1.weight`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def is_learned(module: nn.Module, attribute: str) -> bool:
    """Whether a learned mask has put this into the module: no parameter of the user's model, whatever its name."""
    return attribute in module.__dict__.get(_LEARNED, ())


def mark_learned(module: nn.Module, attribute: str) -> None:
    """Remember that a learned mask has put this into the module."""
    module.__dict__[_LEARNED] = module.__dict__.get(_LEARNED, frozenset()) | {attribute}


def forget_learned(module: nn.Module) -> None:
    """The module has nothing of a learned mask any more."""
    module.__dict__.pop(_LEARNED, None)


def learned_names(model: nn.Module) -> frozenset[str]:
    """What learned masks have put into a model, by its plain names in the state dict."""
    return frozenset(
        plain_name(f"{path}.{attribute}" if path else attribute)
        for path, module in unwrap(model).named_modules(remove_duplicate=False)
        for attribute in module.__dict__.get(_LEARNED, ())
    )


def as_globs(globs: str | Iterable[str] | None) -> tuple[str, ...]:
    """One glob or several as a tuple."""
    if globs is None:
        return ()
    return (globs,) if isinstance(globs, str) else tuple(globs)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a parameter's name, or the module that owns it, fits one of the globs."""
    return any(fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name.rpartition(".")[0], glob) for glob in globs)


def literal_globs(names: Iterable[str]) -> list[str]:
    """Globs that fit exactly these names."""
    return ["".join(f"[{character}]" if character in "*?[" else character for character in name) for name in names]


_LONGEST, _MOST = 200, 10_000


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `choices`, or nothing where none is near."""
    names = list(choices)
    # To look for what is near takes the square of the length: of a word that is no name, minutes.
    if len(word) > _LONGEST or len(names) > _MOST:
        return ""
    names = [name for name in names if len(name) <= _LONGEST]
    # What begins with the word is what was meant, however long it is.
    close = sorted((name for name in names if word and name.startswith(word)), key=len)
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def find_named(kind: str, name: str, table: Mapping[str, Found], also: Iterable[str] = ()) -> Found:
    """The entry of a table by its name.

    Raises:
        ValueError: an unknown name; the nearest and all of them are given, with those that there are `also`.
    """
    if name not in table:
        known = [*table, *also]
        raise ValueError(f"unknown {kind} '{name}'{nearest(name, known)}; the {kind}s are {', '.join(known)}")
    return table[name]


def find_targets(
    model: nn.Module, include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None
) -> Targets:
    """Find the tensors that may carry a mask.

        find_targets(model)                          # weights of linear, convolution, attention and recurrent layers
        find_targets(model, exclude="head")          # all but the head's
        find_targets(model, include=["blocks.*"])    # any parameter that fits, biases and embeddings too

    Globs match a parameter's name (`fc1.weight`) or its module's (`fc1`). `include` replaces the default set and is
    taken from all floating-point parameters; `exclude` takes away from either. Names are those of the plain model: what
    `torch.compile` and DDP add is dropped.

    A tied tensor is one target under its first name, and its mask holds wherever it is read. It is in the default set
    if one of its owners is: the output layer of GPT-2, a linear layer tied with the embedding, is masked as
    `transformer.wte.weight`, and the embedding with it; `exclude="*wte"` leaves both dense.

    The parameters of peft's adapters stay dense unless included: a mask is that of the layer they are added to.

    Weights that a parametrization computes (`weight_norm`, `spectral_norm`, ...) stay dense: a mask on what they are
    computed from is not one on the weight. So, unless included, do standardized ones, where 0 stands for another value.

    Raises:
        ValueError: a glob that fits no parameter or only parametrized ones, a lazy parameter without a shape yet, a
            target that lies over the memory of another parameter, or no target at all.
    """
    model = unwrap(model)
    computed, adapters = computed_weights(model), _adapters(model)
    parameters: dict[int, nn.Parameter] = {}
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    output: tuple[int, str] | None = None
    for path, module in model.named_modules():
        if isinstance(module, LINEAR):
            output = id(module._parameters.get("weight")), plain_name(f"{path}.weight" if path else "weight")
        for attribute, parameter in module._parameters.items():
            if parameter is None or is_learned(module, attribute):
                continue
            name = plain_name(f"{path}.{attribute}" if path else attribute)
            if isinstance(parameter, UninitializedParameter):
                raise ValueError(f"{name} has no shape yet (a lazy module): run the model once on example input first")
            parameters[id(parameter)] = parameter
            places.setdefault(id(parameter), []).append((name, module, attribute))

    names = {key: found[0][0] for key, found in places.items()}
    parametrized = {key for key, found in places.items() if any(name in computed for name, _, _ in found)}
    included, excluded = as_globs(include), as_globs(exclude)
    plain = [name for key, name in names.items() if key not in parametrized]
    refuse_computed(computed, (glob for glob in included if not any(matches(name, (glob,)) for name in plain)))
    _check_globs((*included, *excluded), [*names.values(), *sorted(set(computed.values()))])
    targets: dict[str, Target] = {}
    left_out: dict[str, LeftOut] = {}
    for key, parameter in parameters.items():
        name, owners = names[key], tuple((module, attribute) for _, module, attribute in places[key])
        kinds = [_kind(module, attribute, parameter) for module, attribute in owners]
        place = next((place for place, kind in enumerate(kinds) if kind in MASKED_BY_DEFAULT), 0)
        kind = "parametrized" if key in parametrized else "adapter" if key in adapters else kinds[place]
        reason = _reason_to_leave_out(name, parameter, kind, included, excluded)
        if reason is None:
            targets[name] = Target(name, parameter, owners, kind, *_layout(*owners[place]))
        else:
            left_out[name] = LeftOut(parameter.numel(), reason, parameter.dim())
    if not targets:
        there = ", ".join(f"{name} ({entry.reason})" for name, entry in left_out.items()) or "no parameters"
        raise ValueError(
            "the model has no tensor that may carry a mask: expected the weight of a linear, convolution, attention or "
            f"recurrent layer, found {there}"
        )
    refuse_overlaps({names[key]: parameter for key, parameter in parameters.items()}, targets)
    return Targets(targets, left_out, None if output is None else names.get(*output))


def _kind(module: nn.Module, attribute: str, parameter: Tensor) -> str:
    if isinstance(module, _RECURRENT):
        return "recurrent" if attribute.startswith("weight_") else "bias" if attribute.startswith("bias_") else "other"
    if attribute == "weight" and _STANDARDIZED_NAME.search(type(module).__name__):
        return "standardized"
    if attribute == "weight" and isinstance(module, LINEAR):
        return "linear"
    if attribute == "weight" and isinstance(module, _CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.MultiheadAttention) and attribute in _ATTENTION_WEIGHTS | _ATTENTION_BIASES:
        return "attention" if attribute in _ATTENTION_WEIGHTS else "bias"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(module, NORMS):
        return "norm"
    if attribute == "bias" and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return "bias"
    if parameter.dim() < 2 and _NORM_NAME.search(type(module).__name__):
        return "norm"
    return "bias" if attribute == "bias" else "other"


def _layout(module: nn.Module, attribute: str) -> tuple[int, int]:
    """Output axis and groups."""
    if attribute == "weight" and isinstance(module, _CONVOLUTIONS):
        return int(isinstance(module, _TRANSPOSED)), int(module.groups)
    return int(attribute == "weight" and isinstance(module, TransposedLinear)), 1


def _reason_to_leave_out(
    name: str, parameter: Tensor, kind: str, included: tuple[str, ...], excluded: tuple[str, ...]
) -> str | None:
    if excluded and matches(name, excluded):
        return "excluded"
    if included and not matches(name, included):
        return "not included"
    if kind == "parametrized" or not (included or kind in MASKED_BY_DEFAULT):
        return kind
    return None if parameter.is_floating_point() else "not floating point"


def _check_globs(globs: tuple[str, ...], names: Iterable[str]) -> None:
    names = list(names)
    lost = [glob for glob in globs if not any(matches(name, (glob,)) for name in names)]
    if lost:
        hints = [f"'{glob}'" + nearest(glob, [*names, *(name.rpartition(".")[0] for name in names)]) for glob in lost]
        raise ValueError(f"no parameter fits {' and '.join(hints)}; the parameters are {', '.join(names)}")


def computed_weights(model: nn.Module) -> dict[str, str]:
    """What stands in for weights that a parametrization or an older hook computes, with the name of that weight.

    computed_weights(model)  # {"conv.parametrizations.weight.original0": "conv.weight", "fc.weight_g": "fc.weight"}
    """
    computed = {}
    for path, module in unwrap(model).named_modules():
        prefix = f"{path}." if path else ""
        lists: Any = module.parametrizations if is_parametrized(module) else {}
        for attribute, stored in lists.items():
            for name, _ in stored.named_parameters(f"{prefix}parametrizations.{attribute}"):
                computed[plain_name(name)] = plain_name(prefix + attribute)
        for name in module._parameters:
            if (parts := _STORED.fullmatch(name)) and isinstance(module.__dict__.get(parts[1]), Tensor):
                computed[plain_name(prefix + name)] = plain_name(prefix + parts[1])
    return computed


def refuse_computed(computed: Mapping[str, str], globs: Iterable[str]) -> None:
    """Refuse what asks for a mask on a weight that is computed (see `computed_weights`).

    Raises:
        ValueError: each such weight and what it is computed from.
    """
    globs = tuple(globs)
    asked = {weight for stored, weight in computed.items() if matches(stored, globs) or matches(weight, globs)}
    told = [f"{weight} from {' and '.join(s for s in computed if computed[s] == weight)}" for weight in sorted(asked)]
    if told:
        raise ValueError(
            f"a parametrization computes {', '.join(told)}: a mask needs a plain parameter, which "
            "torch.nn.utils.parametrize.remove_parametrizations (remove_weight_norm, ... of the older hooks) gives back"
        )


def fan_in_and_out(shape: Iterable[int], output_axis: int = 0, groups: int = 1) -> tuple[int, int]:
    """Fan-in and fan-out of a weight of this shape: inputs of one output, and outputs that one input would have.

    A weight is (out, in / groups, *kernel); with `output_axis` 1 it is (in, out / groups, *kernel). As in PyTorch the
    fan-out counts all groups and a stride counts for nothing.

    Raises:
        ValueError: fewer than two dimensions.
    """
    sizes: tuple[Any, ...] = tuple(shape)
    if len(sizes) < 2:
        raise ValueError(f"a weight of shape {list(sizes)} has no fan-in: expected (out, in, *kernel)")
    inputs, outputs = (sizes[1], sizes[0]) if output_axis == 0 else (sizes[0] // groups, sizes[1] * groups)
    kernel = math.prod(sizes[2:])
    return inputs * kernel, outputs * kernel
