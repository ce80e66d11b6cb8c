"""Updates written by hand, without an optimizer: the next forward pass, and what is saved, see 0 where masks drop.

Run: python examples/hand_written_update.py
"""

import torch
from torch import nn

import supermask

torch.manual_seed(0)
x = torch.randn(200, 20)
y = x[:, :3].argmax(1)
model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
masks = supermask.prune(model, density=0.2, allocation="layerwise")
supermask.hold(model, masks)

for _ in range(200):
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= 0.01 * gradient.sign()  # any rule

try:
    supermask.check(model)
except ValueError as error:
    print("just after an update:", error)
saved = model.state_dict()
assert not saved["0.weight"][~masks["0.weight"]].any()
model(x)
print(f"after the next forward pass all is well; the loss is {loss:.3f}")
supermask.check(model)
