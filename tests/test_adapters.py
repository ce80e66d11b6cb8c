"""LoRA over held weights: what is merged has exactly the zeros of the mask, and computes what the adapters computed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from held import assert_held
from products import combine
from torch import nn

import supermask

# Long to import: not while tests are collected, which all processes do. What is loaded lazily pytest loads then.


def peft() -> ModuleType:
    return import_module("peft")


def transformers() -> ModuleType:
    return import_module("transformers")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gpt2() -> nn.Module:
    config = transformers().GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers().GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers().LlamaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=8,
    )  # fmt: skip
    return transformers().LlamaForCausalLM(config)


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
TOKENS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(1))


def config(make: Callable[[], nn.Module], **more: Any) -> Any:
    return peft().LoraConfig(**{"r": 3, "lora_alpha": 24, **LORA[make], **more})


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


def adapted(make: Callable[[], nn.Module], steps: int = 5, **more: Any) -> tuple[Any, nn.Module, supermask.Masks]:
    """The wrapper of peft with adapters that have been trained, the model inside, and the masks."""
    model, masks = masked(make)
    supermask.hold(model, masks)
    wrapped = peft().get_peft_model(model, config(make, **more))
    assert supermask.masked_adapters(wrapped)
    train(wrapped, steps)
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


VARIATIONS = {
    "plain": {},
    "rank stabilized": {"use_rslora": True},
    "biased": {"lora_bias": True, "init_lora_weights": False},
}


@combine(make=LORA, safe=[False, True])
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


@pytest.mark.parametrize("more", VARIATIONS.values(), ids=VARIATIONS)
def test_merged_and_unmerged_again_and_again(more):
    """Under every scale that peft has, with a bias of the adapters, and dropout that an evaluation leaves out."""
    wrapped, model, masks = adapted(gpt2, lora_dropout=0.5, **more)
    before = logits(wrapped)
    for _ in range(2):
        wrapped.merge_adapter()
        for name, mask in supermask.masks_of(model).items():
            assert not model.get_parameter(name)[~mask].view(torch.int32).any(), name
        torch.testing.assert_close(logits(wrapped), before, atol=1e-5, rtol=0)
        wrapped.unmerge_adapter()
        torch.testing.assert_close(logits(wrapped), before, atol=1e-5, rtol=0)
    supermask.check(wrapped)
    assert {name.replace(".base_layer", "") for name in supermask.masks_of(wrapped)} == set(masks)


def test_dropout_is_in_front_of_the_masked_update():
    wrapped, _, _ = adapted(llama, lora_dropout=0.5)
    layer = wrapped.base_model.model.model.layers[0].self_attn.q_proj.train()
    x = torch.randn(4, 8)
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    update = layer.lora_variant["default"].update(layer, "default")
    torch.testing.assert_close(found, layer.base_layer(x) + layer.lora_dropout["default"](x) @ update.T)
    assert not torch.equal(found, layer(x)), "other inputs are left out in the next pass"


ORDERS = ("masks before adapters", "masks while adapters are on", "pruned while adapters are on", "the wrapper of peft")


@pytest.mark.parametrize("order", ORDERS)
def test_either_order_gives_the_same(order):
    expected, inner, masks = adapted(llama)
    torch.manual_seed(0)
    model, _ = masked(llama)
    if order == "masks before adapters":
        supermask.hold(model, masks)
    wrapped = peft().get_peft_model(model, config(llama))
    object_ = wrapped if order == "the wrapper of peft" else model
    if order == "pruned while adapters are on":
        found = supermask.prune(object_, 0.4, allocation="layerwise")
        assert {name.replace(".base_layer", ""): mask.sum() for name, mask in found.items()} == {
            name: mask.sum() for name, mask in masks.items()
        }
        supermask.hold(object_, found)
    elif order != "masks before adapters":
        supermask.hold(object_, masks)
    supermask.masked_adapters(object_)
    torch.testing.assert_close(dict(supermask.masks_of(model)), dict(supermask.masks_of(inner)))
    wrapped.load_state_dict(expected.state_dict())
    torch.testing.assert_close(logits(wrapped.eval()), logits(expected))
    merged = wrapped.merge_and_unload()
    assert supermask.masks_of(merged) == masks, "the names are those of the plain model again"
    assert_held(merged, masks)


def test_adapters_are_no_targets_unless_included():
    model, _ = masked(gpt2)
    plain = supermask.find_targets(model)
    wrapped = peft().get_peft_model(model, config(gpt2))
    targets = supermask.find_targets(wrapped)
    assert [name.replace(".base_layer", "") for name in targets] == list(plain)
    assert targets.size == plain.size
    assert {entry.reason for name, entry in targets.left_out.items() if "lora_" in name} == {"adapter"}
    assert len(supermask.find_targets(wrapped, include="*lora_A*")) == 8


def test_several_adapters_and_those_that_come_later():
    wrapped, _, masks = adapted(gpt2)
    wrapped.add_adapter("second", config(gpt2, r=2, init_lora_weights=False))
    wrapped.set_adapter("second")
    torch.testing.assert_close(logits(wrapped), logits(by_hand(gpt2, wrapped, masks, ["second"])), atol=1e-5, rtol=0)
    both = by_hand(gpt2, wrapped, masks, ["default", "second"])
    wrapped.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(logits(wrapped), logits(both), atol=1e-5, rtol=0)
    with torch.no_grad(), wrapped.disable_adapter():
        plain = logits(wrapped)
    assert not torch.equal(plain, logits(wrapped))
    rows = ["default", "second", "__base__", "second"]
    mixed = wrapped(input_ids=TOKENS, adapter_names=rows).logits
    torch.testing.assert_close(mixed[2], plain[2], atol=1e-5, rtol=0)
    alone = logits(by_hand(gpt2, wrapped, masks, ["second"]))
    torch.testing.assert_close(mixed[[1, 3]], alone[[1, 3]], atol=1e-5, rtol=0)
    merged = wrapped.merge_and_unload(adapter_names=["default", "second"])
    torch.testing.assert_close(logits(merged), logits(both), atol=1e-5, rtol=0)
    assert_held(merged, masks)


def test_adapters_are_saved_and_read(tmp_path):
    wrapped, _, masks = adapted(llama)
    wrapped.save_pretrained(tmp_path)
    fresh, _ = masked(llama)
    supermask.hold(fresh, masks)
    read = peft().PeftModel.from_pretrained(fresh, tmp_path)
    with pytest.raises(ValueError, match="adapters add to dropped weights of .*q_proj.*masked_adapters"):
        supermask.check(read)
    supermask.masked_adapters(read)
    torch.testing.assert_close(logits(read.eval()), logits(wrapped))
    twin = copy.deepcopy(wrapped)
    assert_held(twin.merge_and_unload(), masks)
    supermask.check(wrapped)
    torch.testing.assert_close(logits(wrapped), logits(read))


def test_bfloat16_keeps_zeros_exactly():
    model, masks = masked(llama)
    model.to(torch.bfloat16)
    supermask.hold(model, masks)
    wrapped = peft().get_peft_model(model, config(llama), autocast_adapter_dtype=False)
    supermask.masked_adapters(wrapped)
    train(wrapped)
    before = logits(wrapped)
    merged = wrapped.merge_and_unload()
    assert_held(merged, masks)
    assert (logits(merged) - before).abs().max() < 0.05 * before.abs().max()


REFUSED = {
    "DoraLinearVariant": lambda: config(llama, use_dora=True),
    "loha.layer.Linear": lambda: peft().LoHaConfig(target_modules=["q_proj"]),
    "lokr.layer.Linear": lambda: peft().LoKrConfig(target_modules=["q_proj"]),
    "adalora.layer.SVDLinear": lambda: peft().AdaLoraConfig(target_modules=["q_proj"], total_step=9),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_adapters_are_refused_by_name(name):
    model, masks = masked(llama)
    supermask.hold(model, masks)
    wrapped = peft().get_peft_model(model, REFUSED[name]())
    with pytest.raises(ValueError, match=rf"layers.0.*{name}.*layers.1.*{name}.*expected"):
        supermask.masked_adapters(wrapped)
    with pytest.raises(ValueError, match="masked_adapters"):
        supermask.check(wrapped)


def test_what_cannot_be_masked_is_said():
    model, masks = masked(gpt2)
    with pytest.raises(ValueError, match=r"these are not there: supermask.hold\(model, masks\) first"):
        supermask.masked_adapters(model)
    supermask.hold(model, masks)
    with pytest.raises(ValueError, match="no adapter is over a weight with a mask.*transformer.h.0.attn.c_attn.weight"):
        supermask.masked_adapters(model)
    wrapped = peft().get_peft_model(model, config(gpt2))
    wrapped.merge_adapter()
    with pytest.raises(ValueError, match="default merged into it already: unmerge_adapter"):
        supermask.masked_adapters(wrapped)
    wrapped.unmerge_adapter()
    supermask.masked_adapters(wrapped)
    with pytest.raises(ValueError, match="'late' on .*c_attn.weight computes its update by DoraLinearVariant"):
        wrapped.add_adapter("late", config(gpt2, use_dora=True))
    learned = gpt2()
    supermask.learn(learned, 0.5)
    with pytest.raises(ValueError, match="these are learned"):
        supermask.masked_adapters(learned)


def test_scales_of_activations_need_no_mask():
    model, masks = masked(llama)
    supermask.hold(model, masks)
    wrapped = peft().get_peft_model(
        model, peft().IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    )
    supermask.check(wrapped)
    train(wrapped)
    before = logits(wrapped)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)
    assert_held(merged, masks)


@pytest.mark.parametrize(
    ("make", "steps"),
    [(gpt2, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((llama, 4), (gpt2, 200), (llama, 200)))],
)
def test_the_trainer_with_everything_on(make, steps, tmp_path):
    """bf16, gradient checkpointing and accumulation: after the merge exactly the zeros of the masks."""
    model, masks = masked(make)
    supermask.hold(model, masks)
    wrapped = peft().get_peft_model(model, config(make, lora_dropout=0.1))
    supermask.masked_adapters(wrapped)
    wrapped.enable_input_require_grads()
    data = [{"input_ids": x, "labels": x} for x in TOKENS.repeat(2, 1)]
    arguments = transformers().TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        gradient_checkpointing=True, bf16=True, use_cpu=True, learning_rate=0.02, lr_scheduler_type="constant",
        report_to="none", save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    # Of the model inside: the Trainer leaves the wrapper's passes in bf16.
    start = logits(model.eval()).clone()
    transformers().Trainer(wrapped, arguments, train_dataset=data).train()
    before = logits(model.eval())
    assert (before - start).abs().max() > 0.01
    merged = wrapped.merge_and_unload()
    assert_held(merged, masks)
    for name, mask in masks.items():
        assert int((merged.get_parameter(name) == 0).sum()) == int((~mask).sum()), name
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)


RANKS = 2


def work(rank: int, folder: str, steps: int) -> None:
    """Blocks shared out by `fully_shard`, which put their parameters together for a pass; held before, or after."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = {}
    for make in (gpt2, llama):
        for late in (False, True):
            model, masks = masked(make)
            if not late:
                supermask.hold(model, masks)
            wrapped = peft().get_peft_model(model, config(make))
            mesh = dist.init_device_mesh("cpu", (RANKS,))
            for block in model.transformer.h if make is gpt2 else model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            if late:
                supermask.hold(model, masks)
            supermask.masked_adapters(wrapped)
            train(wrapped, steps)
            supermask.check(model)
            before = logits(wrapped).detach().clone()
            for each in model.modules():
                getattr(each, "reshard", lambda: None)()
            merged = wrapped.merge_and_unload()
            supermask.check(merged)
            state = {
                name: getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)()
                for name, tensor in merged.state_dict().items()
            }
            found[f"{make.__name__}, late={late}"] = {"state": state, "masks": dict(masks), "before": before}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 200])
def test_sharded_parameters_with_adapters(steps, tmp_path, forkserver_with_torch):
    """Two processes that train on the same tokens learn what one does; what they merge together has the zeros."""
    torch.multiprocessing.start_processes(work, (str(tmp_path), steps), nprocs=RANKS, start_method="forkserver")
    for rank in range(RANKS):
        for key, found in torch.load(Path(tmp_path, f"{rank}.pt")).items():
            make = next(make for make in (gpt2, llama) if key.startswith(make.__name__))
            plain, masks = masked(make)
            assert all(torch.equal(mask, masks[name]) for name, mask in found["masks"].items())
            plain.load_state_dict(found["state"])
            torch.testing.assert_close(logits(plain.eval()), found["before"], atol=1e-5, rtol=1e-5)
            supermask.hold(plain, masks)
            for name, mask in masks.items():
                assert not found["state"][name][~mask].view(torch.int32).any(), name
            if steps < 10:
                _, alone, _ = adapted(make, steps)
                torch.testing.assert_close(logits(alone), found["before"], atol=1e-4, rtol=1e-4)
