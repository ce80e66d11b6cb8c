"""LoRA over a pruned GPT-2: what the adapters learn is merged, and as many weights are 0 as before.

Run: python examples/adapters.py          (pip install transformers peft)
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import supermask

torch.manual_seed(0)
size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
model = GPT2LMHeadModel(GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, **size))
masks = supermask.prune(model, density=0.3, allocation="layerwise")
supermask.hold(model, masks)

adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True))
supermask.masked_adapters(adapted)

tokens = torch.arange(12).repeat(8, 1) + torch.arange(8)[:, None]
optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.03)
losses = []
for _ in range(60):
    loss = adapted(input_ids=tokens, labels=tokens).loss
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

adapted.eval()
before = adapted(input_ids=tokens).logits
merged = adapted.merge_and_unload()
supermask.check(merged)
assert losses[-1] < losses[0]
assert torch.allclose(merged(input_ids=tokens).logits, before, atol=1e-5)
zeros = sum(int((merged.get_parameter(name) == 0).sum()) for name in masks)
assert zeros == masks.size - masks.kept
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; {zeros:,} of {masks.size:,} weights are 0 after the merge")
