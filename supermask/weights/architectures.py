"""Networks by name: what installed packages declare, and those of torchvision. A file that names one runs no code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..masks.targets import nearest
from ..plugins.entry_points import MODELS, declarations

TORCHVISION = "torchvision:"

# What a ticket file may pass on to torchvision: sizes and rates, nothing that reads a file or the network.
TORCHVISION_ARGUMENTS = frozenset(
    {
        "attention_dropout", "dropout", "groups", "growth_rate", "init_weights", "memory_efficient",
        "stochastic_depth_prob", "transform_input", "width_mult", "width_per_group", "zero_init_residual",
    }
)  # fmt: skip


def architecture_names() -> list[str]:
    """The names that installed packages declare; those of torchvision come beside them as `torchvision:NAME`."""
    return sorted(declarations(MODELS))


def find_architecture(name: str) -> Callable[..., nn.Module]:
    """The factory of a network's name, called with `input_shape`, `classes` and its own arguments.

    Raises:
        ValueError: nothing of that name is known here; the nearest name is given. Or a name that is declared and cannot
            be used, with the reason.
    """
    if name.startswith(TORCHVISION):
        return _find_in_torchvision(name)
    declared = declarations(MODELS)
    if name in declared:
        return declared[name].load_function()
    known = architecture_names()
    raise ValueError(
        f"the model '{name}' is not known here by name{nearest(name, known)}; known are {', '.join(known) or 'none'}. "
        "Build it yourself and call ticket.apply_to(model)"
    )


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
