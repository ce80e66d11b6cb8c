"""Networks by name: what installed packages declare, and those of torchvision, timm and transformers.

A file that names one runs no code of its own.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from ..masks.targets import nearest
from ..plugins.entry_points import MODELS, declarations

TORCHVISION = "torchvision:"
TIMM = "timm:"
TRANSFORMERS = "transformers:"
# Names that begin so are of networks of other packages.
PREFIXES = (TORCHVISION, TIMM, TRANSFORMERS)
# Of a network that a file describes.
_MOST_TENSORS = 40_000
# By the ends of their names: the networks of transformers that have a task, and those that predict tokens.
_TASK = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")
_LANGUAGE = re.compile(r"(ForCausalLM|ForMaskedLM|LMHeadModel|ForConditionalGeneration)$")

# What a ticket file may pass on to torchvision: sizes and rates, nothing that reads a file or the network.
TORCHVISION_ARGUMENTS = frozenset(
    {
        "attention_dropout", "dropout", "groups", "growth_rate", "init_weights", "memory_efficient",
        "stochastic_depth_prob", "transform_input", "width_mult", "width_per_group", "zero_init_residual",
    }
)  # fmt: skip


def architecture_names() -> list[str]:
    """The names that installed packages declare. Beside them are those of PREFIXES."""
    return sorted(declarations(MODELS))


def find_architecture(name: str) -> Callable[..., nn.Module]:
    """The factory of a network's name, called with `input_shape`, `classes` and its own arguments.

    Raises:
        ValueError: nothing of that name is known here; the nearest name is given. Or a name that is declared and cannot
            be used, with the reason.
    """
    if name.startswith(TORCHVISION):
        return _find_in_torchvision(name)
    if name.startswith(TIMM):
        return _find_in_timm(name)
    if name.startswith(TRANSFORMERS):
        return _find_in_transformers(name)
    declared = declarations(MODELS)
    if name in declared:
        return declared[name].load_function()
    known, elsewhere = architecture_names(), name_elsewhere(name)
    hint = f"; did you mean '{elsewhere}'?" if elsewhere else nearest(name, known)
    raise ValueError(
        f"the model '{name}' is not known here by name{hint}; known are {', '.join(known) or 'none'}. "
        "Build it yourself and call ticket.apply_to(model)"
    )


def build_within(build: Callable[..., nn.Module], arguments: Any, most_weights: int, way_out: str = "") -> nn.Module:
    """A network from arguments that a file gives, which may be any.

    Args:
        build: what `find_architecture` returns.
        arguments: by name.
        most_weights: how many parameters and entries of buffers it may have. A larger one is given up before its memory
            is written to.
        way_out: what to say to whoever wants a larger one.

    Raises:
        ValueError: arguments that are not taken, or a larger network.
    """
    try:
        with _bounded(most_weights, way_out):
            return build(**arguments)
    except Exception as error:  # whatever the numbers of a stranger's file make a constructor raise
        told = (str(error).splitlines() or [""])[0]
        raise ValueError(told if isinstance(error, ValueError) else f"{type(error).__name__}: {told}") from None


@contextmanager
def _bounded(most_weights: int, way_out: str) -> Iterator[None]:
    thread, weights, tensors = threading.get_ident(), 0, 0

    def count(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal weights, tensors
        if tensor is None or is_lazy(tensor) or threading.get_ident() != thread:
            return
        weights, tensors = weights + tensor.numel(), tensors + 1
        if tensors > _MOST_TENSORS:
            raise ValueError(f"with them it has more than {_MOST_TENSORS:,} tensors")
        if weights > most_weights:
            raise ValueError(f"with them it has more than {most_weights:,} weights{way_out}")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def name_elsewhere(name: str) -> str:
    """`torchvision:NAME` or `timm:NAME`, where that one has a network for classification of this name, else nothing."""
    import torchvision

    if name in torchvision.models.list_models(module=torchvision.models):
        return f"{TORCHVISION}{name}"
    if importlib.util.find_spec("timm") is None:
        return ""
    import timm

    return f"{TIMM}{name}" if name in timm.list_models() else ""


def _find_in_torchvision(name: str) -> Callable[..., nn.Module]:
    import torchvision

    plain = name.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if plain not in known:
        raise ValueError(f"torchvision has no model '{plain}' for classification{nearest(plain, known)}")
    return partial(_build_torchvision, plain)


def _build_torchvision(
    name: str, input_shape: Sequence[int] = (3, 224, 224), classes: int = 1000, **arguments: Any
) -> nn.Module:
    """A network of torchvision with fresh weights, without auxiliary outputs."""
    import torchvision

    refused = [key for key in arguments if key not in TORCHVISION_ARGUMENTS]
    if refused:
        allowed = ", ".join(sorted(TORCHVISION_ARGUMENTS))
        raise ValueError(f"torchvision:{name} does not take {', '.join(refused)} here; allowed are {allowed}")
    odd = [key for key, value in arguments.items() if not isinstance(value, (bool, int, float))]
    if odd:
        raise ValueError(f"torchvision:{name}: expected numbers or true or false for {', '.join(odd)}")
    if len(input_shape) != 3 or input_shape[0] != 3:
        raise ValueError(f"torchvision:{name} takes images of 3 channels, the data has shape {list(input_shape)}")
    if name.startswith("vit_"):
        arguments["image_size"] = input_shape[1]
    if name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **arguments)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"torchvision:{name} cannot be built for images of {list(input_shape)}: {error}") from None
    return network


def _find_in_timm(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError:
        raise ValueError(f"the model '{name}' is of the package timm: pip install timm") from None
    plain = name.removeprefix(TIMM)
    known = timm.list_models()
    # Other names, as of the hub, would be looked for on the network.
    if plain not in known:
        raise ValueError(f"timm has no model '{plain}'{nearest(plain, known)}")
    return partial(_build_timm, plain)


def _build_timm(
    name: str, input_shape: Sequence[int] = (3, 224, 224), classes: int = 1000, **arguments: Any
) -> nn.Module:
    """A network of timm with fresh weights, for images of any number of channels.

    Raises:
        ValueError: an argument that is no number, or that would read a checkpoint; images that the network does not
            take.
    """
    import timm

    odd = [key for key, value in arguments.items() if not isinstance(value, (bool, int, float))]
    if odd := odd + [key for key in arguments if key.startswith(("pretrained", "checkpoint", "cache"))]:
        raise ValueError(f"timm:{name}: expected numbers or true or false for {', '.join(odd)}, and no checkpoint")
    if len(input_shape) != 3:
        raise ValueError(f"timm:{name} takes images, the data has shape {list(input_shape)}")
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        arguments = {"img_size": tuple(input_shape[1:]), **arguments}
    try:
        network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=input_shape[0], **arguments)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"timm:{name} cannot be built for images of {list(input_shape)}: {error}") from None
    return network


def _find_in_transformers(name: str) -> Callable[..., nn.Module]:
    try:
        import transformers
    except ImportError:
        raise ValueError(f"the model '{name}' is of the package transformers: pip install transformers") from None
    plain = name.removeprefix(TRANSFORMERS)
    found = getattr(transformers, plain, None) if plain.isidentifier() else None
    base = transformers.PreTrainedModel
    if not (isinstance(found, type) and issubclass(found, base)) or getattr(found, "config_class", None) is None:
        # `dir` lists what the package offers without importing it.
        known = [each for each in dir(transformers) if _TASK.search(each)]
        raise ValueError(f"transformers has no model '{plain}' with a configuration{nearest(plain, known)}")
    return partial(_build_transformer, found)


def _build_transformer(
    kind: Any, input_shape: Sequence[int] | Mapping[str, Any] = (64,), classes: int = 10, **arguments: Any
) -> nn.Module:
    """A network of transformers with fresh weights, from its configuration class.

    Of images [channels, height, width] the configuration is told the size, of tokens [length] the number of positions.
    A language model is told the vocabulary, any other the number of classes. What `arguments` say counts more.

    Args:
        kind: the class of the network.
        input_shape: of a sample, or by name the shapes of a sample that is several tensors: then that of `pixel_values`
            or `input_ids` counts.
        classes: how many there are, or the size of the vocabulary.
        arguments: of the configuration.

    Raises:
        ValueError: an argument that the configuration does not have, that is no plain value (see `_is_plain`), or with
            which no network can be built.
    """
    name = f"transformers:{kind.__name__}"
    if odd := [key for key, value in arguments.items() if key.startswith("_") or not _is_plain(key, value)]:
        raise ValueError(
            f"{name}: expected numbers, true or false, lists of numbers or an activation's name for {', '.join(odd)}"
        )
    offered = kind.config_class()
    known = {*offered.to_dict(), *offered.attribute_map}
    if refused := [key for key in arguments if key not in known]:
        hints = "".join(nearest(key, sorted(known)) for key in refused)
        raise ValueError(f"{name} has no configuration of {', '.join(refused)}{hints}")
    shape = _main_shape(input_shape)
    told: dict[str, Any] = {"num_labels": classes}
    if len(shape) == 3:
        told = {**told, "num_channels": shape[0], "image_size": shape[1]}
    elif len(shape) == 1:
        told["max_position_embeddings"] = shape[0]
    if _LANGUAGE.search(kind.__name__):
        # The marks of beginning and end are those of a vocabulary of its own.
        told = {**told, "vocab_size": classes, "bos_token_id": None, "eos_token_id": None}
    # A configuration has two names for some of its values, of which the one that comes last would win.
    same = offered.attribute_map
    asked = {same.get(key, key) for key in arguments}
    told = {
        key: value
        for key, value in told.items()
        if (key in known or key == "num_labels") and same.get(key, key) not in asked
    }
    try:
        network: nn.Module = kind(kind.config_class(**told, **arguments))
    except Exception as error:
        raise ValueError(f"{name} cannot be built: {type(error).__name__}: {error}") from None
    return network


def _main_shape(given: Any) -> tuple[int, ...]:
    """The shape of the images or of the tokens of a sample; empty where it has neither."""
    if isinstance(given, Mapping):
        given = next((given[name] for name in ("pixel_values", "input_ids") if name in given), ())
    return tuple(given) if all(isinstance(size, int) for size in given) else ()


def _is_plain(key: str, value: Any) -> bool:
    """Whether a file may tell a configuration this: nothing that names a file, code or a kernel."""
    if isinstance(value, str):
        return key.endswith(("act", "activation", "activation_function")) and value.isidentifier()
    if isinstance(value, list):
        return all(isinstance(each, (bool, int, float)) for each in value)
    return isinstance(value, (bool, int, float))
