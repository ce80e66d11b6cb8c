"""Edge-popup in a loop of your own: no weight is trained, scores choose which random weights are used.

Run: python examples/edge_popup_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import supermask

x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
x = x.float() / 16

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
supermask.learn(model, density=0.5, seed=0)
frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.endswith("_scores")}

scores = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.SGD(scores, lr=0.1, momentum=0.9)
for _ in range(6):
    for batch in torch.randperm(len(x)).split(60):
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

supermask.check(model)
assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in frozen.items())
net = supermask.bake(model)  # an ordinary module with zeros in it
assert torch.equal(net(x), model(x))
accuracy = (net(x).argmax(1) == y).float().mean()
print(f"accuracy on the training data {accuracy:.3f} with random weights and {supermask.masks_of(model)}")
