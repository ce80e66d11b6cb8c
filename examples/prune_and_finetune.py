"""Train, then prune a little and train again, several times: masks only shrink, and the optimizer may go on as it is.

Run: python examples/prune_and_finetune.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import supermask

x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
x = x.float() / 16

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(epochs: int) -> None:
    """A loop that knows nothing of masks."""
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(60):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


train(5)
masks = None
for density in (0.5, 0.2, 0.1, 0.05):
    masks = supermask.prune(model, density, previous=masks)
    supermask.hold(model, masks)
    train(3)
    supermask.check(model)
    print(f"density {density}: accuracy on the training data {(model(x).argmax(1) == y).float().mean():.3f}")
    supermask.detach(model)  # the next round puts on masks of its own
assert sum(int(model.get_parameter(name).count_nonzero()) for name in masks) <= masks.kept
