"""torch.compile of a model that holds masks: one graph, in which dropped weights are zeroed too.

Run: python examples/compiled_step.py          (needs a C++ compiler, which PyTorch calls)
"""

import torch
from torch import nn

import supermask

torch.manual_seed(0)
x = torch.randn(200, 20)
y = x[:, :3].argmax(1)
model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
supermask.hold(model, supermask.prune(model, density=0.2, allocation="layerwise"))
compiled = torch.compile(model, fullgraph=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

for _ in range(100):
    loss = nn.functional.cross_entropy(compiled(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    supermask.check(compiled)

with torch.no_grad():
    for parameter in model.parameters():
        parameter += 0.1  # behind the optimizer's back: the compiled pass itself drops what is dropped
torch.testing.assert_close(compiled(x), supermask.bake(model)(x), rtol=1e-4, atol=1e-5)
print(f"loss {loss:.3f} with {supermask.masks_of(compiled)}")
supermask.check(compiled)
