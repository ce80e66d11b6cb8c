"""Which tensors of a model may carry a mask, and why the others may not."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

# What wrappers put into a parameter's name. A ticket must fit the plain model, so they are dropped.
WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
SCORES_SUFFIX = "_scores"

Found = TypeVar("Found")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ATTENTION_WEIGHTS = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})
_MASKED_BY_DEFAULT = frozenset({"linear", "conv", "attention"})


@dataclass(frozen=True)
class Target:
    """One tensor that may carry a mask.

    `owners` lists every (module, attribute) that reads the tensor: more than one where it is tied.
    `kind` is `linear`, `conv` or `attention` for what is masked by default, else what `include` asked for.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]
    kind: str

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.parameter.numel()


@dataclass(frozen=True)
class LeftOut:
    """A parameter without a mask: its number of entries and the reason."""

    size: int
    reason: str


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
    """The model inside `torch.compile`, DataParallel and DistributedDataParallel wrappers."""
    while True:
        if "_orig_mod" in model._modules:
            inner = model._modules["_orig_mod"]
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            return model
        assert inner is not None
        model = inner


def plain_name(name: str) -> str:
    """A parameter's name without the parts that wrappers add: `layer1._orig_mod.weight` -> `layer1.weight`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def is_score(module: nn.Module, attribute: str) -> bool:
    """Whether this parameter is the learned score of a neighbour, not a parameter of the user's model."""
    return attribute.endswith(SCORES_SUFFIX) and attribute.removesuffix(SCORES_SUFFIX) in module._parameters


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


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `choices`, or nothing where none is near."""
    names = list(choices)
    # What begins with the word is what was meant, however long it is.
    close = sorted((name for name in names if word and name.startswith(word)), key=len)
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def find_named(kind: str, name: str, table: Mapping[str, Found]) -> Found:
    """The entry of a table by its name.

    Raises:
        ValueError: an unknown name; the nearest and all of them are given.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} '{name}'{nearest(name, table)}; the {kind}s are {', '.join(table)}")
    return table[name]


def find_targets(
    model: nn.Module, include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None
) -> Targets:
    """Find the tensors that may carry a mask.

        find_targets(model)                          # weights of linear, convolution and attention layers
        find_targets(model, exclude="head")          # all but the head's
        find_targets(model, include=["blocks.*"])    # any parameter that fits, biases and embeddings too

    Globs match a parameter's name (`fc1.weight`) or its module's (`fc1`). `include` replaces the default set and is
    taken from all floating-point parameters; `exclude` takes away from either. A tied tensor is one target under its
    first name. Names are those of the plain model: what `torch.compile` and DDP add is dropped.

    Raises:
        ValueError: a glob that fits no parameter, a lazy parameter without a shape yet, or no target at all.
    """
    model = unwrap(model)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[int, str] = {}
    parameters: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None or is_score(module, attribute):
                continue
            names.setdefault(id(parameter), plain_name(f"{path}.{attribute}" if path else attribute))
            parameters[id(parameter)] = parameter
            owners.setdefault(id(parameter), []).append((module, attribute))

    included, excluded = as_globs(include), as_globs(exclude)
    _check_globs((*included, *excluded), names.values())
    targets: dict[str, Target] = {}
    left_out: dict[str, LeftOut] = {}
    output: str | None = None
    for key, parameter in parameters.items():
        name = names[key]
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet (a lazy module): run the model once on example input first")
        kinds = [_kind(module, attribute) for module, attribute in owners[key]]
        kind = next((kind for kind in kinds if kind in _MASKED_BY_DEFAULT), kinds[0])
        output = name if kind == "linear" else output
        reason = _reason_to_leave_out(name, parameter, kind, included, excluded)
        if reason is None:
            targets[name] = Target(name, parameter, tuple(owners[key]), kind)
        else:
            left_out[name] = LeftOut(parameter.numel(), reason)
    if not targets:
        there = ", ".join(f"{name} ({entry.reason})" for name, entry in left_out.items()) or "no parameters"
        raise ValueError(
            "the model has no tensor that may carry a mask: expected the weight of a linear, convolution or attention "
            f"layer, found {there}"
        )
    return Targets(targets, left_out, output)


def _kind(module: nn.Module, attribute: str) -> str:
    if attribute == "weight" and isinstance(module, nn.Linear):
        return "linear"
    if attribute == "weight" and isinstance(module, _CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.MultiheadAttention) and attribute in _ATTENTION_WEIGHTS:
        return "attention"
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    biases = {"bias", "in_proj_bias", "bias_k", "bias_v"} if isinstance(module, nn.MultiheadAttention) else {"bias"}
    return "bias" if attribute in biases else "other"


def _reason_to_leave_out(
    name: str, parameter: Tensor, kind: str, included: tuple[str, ...], excluded: tuple[str, ...]
) -> str | None:
    if excluded and matches(name, excluded):
        return "excluded"
    if included:
        if not matches(name, included):
            return "not included"
        return None if parameter.is_floating_point() else "not floating point"
    return None if kind in _MASKED_BY_DEFAULT else kind


def _check_globs(globs: tuple[str, ...], names: Iterable[str]) -> None:
    names = list(names)
    lost = [glob for glob in globs if not any(matches(name, (glob,)) for name in names)]
    if lost:
        hints = [f"'{glob}'" + nearest(glob, [*names, *(name.rpartition(".")[0] for name in names)]) for glob in lost]
        raise ValueError(f"no parameter fits {' and '.join(hints)}; the parameters are {', '.join(names)}")


def fan_in_and_out(shape: Iterable[int]) -> tuple[int, int]:
    """Fan-in and fan-out of a weight of this shape, by PyTorch's convention `(out, in, *kernel)`.

    Raises:
        ValueError: fewer than two dimensions.
    """
    sizes: tuple[Any, ...] = tuple(shape)
    if len(sizes) < 2:
        raise ValueError(f"a weight of shape {list(sizes)} has no fan-in: expected (out, in, *kernel)")
    kernel = 1
    for size in sizes[2:]:
        kernel *= size
    return sizes[1] * kernel, sizes[0] * kernel
