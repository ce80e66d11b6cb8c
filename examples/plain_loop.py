"""Prune a model, hold the masks, and train it in a loop of your own: dropped weights stay exactly 0.

Run: python examples/plain_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import supermask

x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
x = x.float() / 16

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
masks = supermask.prune(model, density=0.2, allocation="layerwise")
supermask.hold(model, masks)  # that is all; the loop knows nothing of masks

optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(5):
    for batch in torch.randperm(len(x)).split(60):
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

net = supermask.bake(model)  # a copy as an ordinary module
accuracy = (net(x).argmax(1) == y).float().mean()
print(f"{masks.kept} of {masks.size} weights, accuracy on the training data {accuracy:.3f}")
supermask.check(model)  # raises if a dropped weight is not 0
