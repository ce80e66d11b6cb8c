"""LoRA over held weights: what is merged has exactly the zeros of the mask, and computes what the adapters computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from held import assert_held
from torch import nn

import supermask


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Convolutions(nn.Module):
    """What else than linear layers has adapters: an embedding and convolutions, one of them grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.wide = nn.Conv1d(8, 8, 3, padding=1)
        self.single = nn.Conv1d(8, 8, 1)
        self.head = nn.Linear(8, 20)

    def forward(self, input_ids: Any) -> torch.Tensor:
        x = self.table(input_ids).mT
        return self.head(self.single(self.wide(x).tanh()).tanh().mT)


LORA = {
    gpt2: {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    llama: {"target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]},
    Convolutions: {"target_modules": ["table", "wide", "single", "head"]},
}
each_model = pytest.mark.parametrize("make", LORA, ids=lambda make: make.__name__)
TOKENS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(1))


def config(make: Callable[[], nn.Module], **more: Any) -> Any:
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 24, **LORA[make], **more})


def logits(model: nn.Module) -> torch.Tensor:
    out = model(input_ids=TOKENS)
    return getattr(out, "logits", out)


def masked(make: Callable[[], nn.Module]) -> tuple[nn.Module, supermask.Masks]:
    torch.manual_seed(0)
    model = make()
    include = "*.weight" if make is Convolutions else None
    return model, supermask.prune(model, 0.4, allocation="layerwise", include=include)


def train(model: nn.Module, steps: int = 5) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(model).flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()
    model.eval()


def adapted(make: Callable[[], nn.Module], **more: Any) -> tuple[Any, nn.Module, supermask.Masks]:
    """The wrapper of peft with adapters that have been trained, the model inside, and the masks."""
    model, masks = masked(make)
    supermask.hold(model, masks)
    wrapped = peft.get_peft_model(model, config(make, **more))
    assert supermask.masked_adapters(wrapped)
    train(wrapped)
    return wrapped, model, masks


def by_hand(make: Callable[[], nn.Module], wrapped: Any, masks: supermask.Masks, adapters=("default",)) -> nn.Module:
    """A plain network whose weights are the sum of the base and the masked product of the two small matrices."""
    plain, _ = masked(make)
    layers = dict(wrapped.base_model.model.named_modules())
    with torch.no_grad():
        for path, layer in plain.named_modules():
            other = layers[path]
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(getattr(getattr(other, "base_layer", other), name))
            for adapter in adapters if hasattr(other, "base_layer") else ():
                if isinstance(layer, nn.Embedding):
                    update = (other.lora_embedding_B[adapter] @ other.lora_embedding_A[adapter]).T
                else:
                    a, b = other.lora_A[adapter].weight, other.lora_B[adapter].weight
                    update = torch.einsum("or,ri...->oi...", b.flatten(1), a)
                    update = update.T if type(layer).__name__ == "Conv1D" else update
                if f"{path}.weight" in masks:
                    update = update * masks[f"{path}.weight"]
                layer.weight += other.scaling[adapter] * update
    return plain.eval()


VARIATIONS = {"plain": {}, "rank stabilized": {"use_rslora": True}, "biased": {"lora_bias": True, "init_lora_weights": False}}


@pytest.mark.parametrize("safe", [False, True])
@each_model
def test_a_merge_fills_no_zero_and_changes_no_output(make, safe):
    wrapped, model, masks = adapted(make)
    before = logits(wrapped)
    assert (before - logits(masked(make)[0].eval())).abs().max() > 0.01, "the adapters have learned something"
    torch.testing.assert_close(before, logits(by_hand(make, wrapped, masks)), atol=1e-5, rtol=0)
    assert_held(model, supermask.masks_of(model))
    merged = wrapped.merge_and_unload(safe_merge=safe)
    for name, mask in masks.items():
        assert not merged.get_parameter(name)[~mask].view(torch.int32).any(), name
        assert int(merged.get_parameter(name).count_nonzero()) == int(mask.sum()), name
    torch.testing.assert_close(before, logits(merged), atol=1e-5, rtol=0)
    supermask.check(merged)
    assert supermask.masks_of(merged) == masks
