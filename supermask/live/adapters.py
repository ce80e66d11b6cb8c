"""Low-rank adapters (LoRA) over held weights: the update is multiplied by the mask, so that a merge fills no zero.

Adapters are those of peft, known by what they have; nothing of it is imported. Its layers ask what stands under an
adapter's name in `lora_variant` for the pass and for the merge, and do it all themselves where nothing stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..masks.targets import is_adapted, unwrap
from .program import Program, program_of
from .zeroing import masked_part

# Where these are defined: other kinds of adapters have layers of the same names.
_LORA = "peft.tuners.lora.layer"
_LAYERS = frozenset({"Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d"})
# Scales of inputs or outputs: what they are merged into stays 0 where it is 0.
_SCALES = "peft.tuners.ia3.layer"


class MaskedUpdate:
    """What a LoRA layer does with its update: the mask times it, in the pass, the merge and the unmerge."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def init(self, layer: Any, adapter_name: str, **_: Any) -> None:
        """Called for an adapter that comes later."""

    def update(self, layer: Any, adapter: str) -> Tensor:
        """The update of the weight, exactly 0 where the mask drops; differentiable."""
        whole: Tensor = layer.get_delta_weight(adapter)
        return masked_part(whole, self.mask, layer.get_base_layer().weight)

    def forward(self, layer: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The base layer's result, and what the masked update gives of the same input behind the adapter's dropout."""
        base, update = layer.get_base_layer(), self.update(layer, active_adapter)
        if isinstance(base, nn.Embedding):
            scale, given = getattr(base, "embed_scale", None), F.embedding(x, update)
            return result + (given if scale is None else given * scale)
        x = layer.lora_dropout[active_adapter](x)
        bias = layer.lora_B[active_adapter].bias
        if bias is not None:
            bias = bias * layer.scaling[active_adapter]
        if isinstance(base, nn.modules.conv._ConvNd):
            given = base._conv_forward(x, update, bias)
        else:  # transformers' Conv1D has its weight the other way round
            given = F.linear(x, update.T if layer.fan_in_fan_out else update, bias)
        return result + given

    @torch.no_grad()
    def merge_safe(self, layer: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the masked update, a new tensor."""
        return orig_weight + self._mine(layer, active_adapter, orig_weight)

    @torch.no_grad()
    def merge_unsafe(self, layer: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the masked update to the weight, in place."""
        orig_weight.data += self._mine(layer, active_adapter, orig_weight)

    @torch.no_grad()
    def unmerge(self, layer: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without the masked update."""
        return orig_weight.data - self._mine(layer, active_adapter, orig_weight)

    def supports_lora_conversion(self) -> bool:
        """Whether a LoRA of low rank says the same: not with a mask over it."""
        return False

    def _mine(self, layer: Any, adapter: str, weight: Tensor) -> Tensor:
        return self.update(layer, adapter).to(weight.dtype)


class MaskedUpdates(dict[str, Any]):
    """`lora_variant` of a layer with a held weight: one mask for every adapter, also for those that come later."""

    def __init__(self, name: str, update: MaskedUpdate) -> None:
        super().__init__()
        self.name, self.masked = name, update

    def __reduce__(self) -> Any:
        return type(self), (self.name, self.masked)

    def __contains__(self, adapter: object) -> bool:
        return True

    def __getitem__(self, adapter: str) -> MaskedUpdate:
        return self.masked

    def get(self, adapter: str, default: Any = None) -> Any:
        """The masked update, of every adapter."""
        return self.masked

    def __setitem__(self, adapter: str, variant: Any) -> None:
        raise ValueError(_variant(self.name, adapter, variant))


def _variant(name: str, adapter: str, variant: Any) -> str:
    return (
        f"adapter '{adapter}' on {name} computes its update by {getattr(variant, '__name__', type(variant).__name__)}: "
        "expected a plain LoRA, whose update can be multiplied by the mask"
    )


def masked_adapters(model: nn.Module) -> tuple[str, ...]:
    """Multiply the update of each LoRA adapter over a held weight by its mask, in the pass and in a merge.

        supermask.hold(model, masks)
        adapted = peft.get_peft_model(model, peft.LoraConfig(...))
        supermask.masked_adapters(adapted)
        ...any training loop...
        merged = adapted.merge_and_unload()          # as many zeros as before; `supermask.check(merged)`

    The layer then computes with W + mask * (scale * B A), not W + scale * B A, so that outputs are the same before and
    after a merge. It costs a matrix of the weight's size for each adapted layer and pass. Adapters added later are
    masked too; `merge_adapter`, `unmerge_adapter`, several adapters, rank stabilization and dropout work as they are.
    Whether the masks are held before or after `get_peft_model` is the same. A model that is read with its adapters,
    by `PeftModel.from_pretrained`, has them masked by calling this once more.

    Args:
        model: one that holds masks, with adapters of peft on it; the model itself or peft's wrapper of it.

    Returns:
        The names of the weights whose updates are masked.

    Raises:
        ValueError: no masks are held, or no adapter is over a held weight; or one is that is merged already or no plain
            LoRA (DoRA, LoHa, ...), all of them named.
    """
    program = program_of(model)
    if program is None or program.alone:
        said = "are learned" if program is not None else "are not there: supermask.hold(model, masks) first"
        raise ValueError(f"adapters are masked by masks that a model holds, and these {said}")
    found = {name: (layer, update) for name, layer, update in _adapted(program)}
    problems = [problem for name, (layer, _) in found.items() for problem in _problems(name, layer)]
    if problems:
        raise ValueError("the adapters cannot be masked: " + "; ".join(problems))
    if not found:
        raise ValueError(
            "no adapter is over a weight with a mask: expected peft.get_peft_model(model, config) with target_modules "
            f"among {', '.join(program.owners)}"
        )
    for name, (layer, update) in found.items():
        layer.lora_variant = MaskedUpdates(name, update)
    return tuple(found)


def unmasked_adapters(program: Program) -> list[str]:
    """The held weights over which there are adapters whose update is not masked."""
    return [
        name
        for name, layer, _ in _adapted(program)
        if type(layer).__module__ != _SCALES and not isinstance(getattr(layer, "lora_variant", None), MaskedUpdates)
    ]


def under_adapters(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, str]:
    """`{name of a mask: name of the weight}` for layers that have moved below their adapters since."""
    names: dict[str, str] = {}
    for path, module in unwrap(model).named_modules():
        if is_adapted(module):
            base = f"{path}.base_layer"
            names |= {name: f"{base}.{name.rpartition('.')[2]}" for name in masks if name.rpartition(".")[0] == path}
    return names


def _adapted(program: Program) -> Iterator[tuple[str, Any, MaskedUpdate]]:
    """Layers with adapters over a held weight."""
    layers = {id(module._modules["base_layer"]): module for module in program.root.modules() if is_adapted(module)}
    masks = program.masks() if layers else {}
    for name, owners in program.owners.items():
        for module, attribute in owners:
            # A mask of a bias is no matter of adapters but for `lora_bias`, which peft adds itself.
            if attribute == "weight" and id(module) in layers:
                yield name, layers[id(module)], MaskedUpdate(masks[name])


def _problems(name: str, layer: Any) -> list[str]:
    """Why the adapters of a layer cannot be masked."""
    kind = type(layer)
    if kind.__module__ == _SCALES:
        return []
    if (kind.__module__, kind.__name__ in _LAYERS) != (_LORA, True):
        return [f"{name} is under {kind.__module__}.{kind.__name__}: expected a LoRA layer of a linear layer, a "
                "convolution or an embedding"]  # fmt: skip
    if isinstance(layer.lora_variant, MaskedUpdates):
        return []
    problems = [_variant(name, adapter, variant) for adapter, variant in layer.lora_variant.items()]
    if merged := list(layer.merged_adapters):
        problems.append(f"{name} has {', '.join(merged)} merged into it already: unmerge_adapter() first")
    return problems
