"""A learned mask of your own: every weight has a gate, both train together, a gate that closes drops its weight.

Run: python examples/sigmoid_gate.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import supermask


class SigmoidGate(supermask.LearnedMask):
    """sigmoid(score) above 1/2 is an open gate, through which a weight passes whole; the gradient is the sigmoid's."""

    exact, frozen = False, False  # training decides how many gates stay open; the weights train too

    def start(self, layers, seed):
        return [{"scores": torch.ones(layer.shape)} for layer in layers]

    def choose(self, layers):
        return [layer["scores"] > 0 for layer in layers]

    def effective(self, layers):
        return [x.weight * supermask.straight_through(x["scores"] > 0, x["scores"].sigmoid()) for x in layers]


if __name__ == "__main__":
    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    supermask.learn(model, program=SigmoidGate(), weights="keep")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        open_gates = sum(learned["scores"].sigmoid().sum() for learned in supermask.learned_of(model).values())
        (nn.functional.cross_entropy(model(x.float() / 16), y) + 1e-4 * open_gates).backward()  # a gate has its price
        optimizer.step()
    supermask.check(model)
    accuracy = (supermask.bake(model)(x.float() / 16).argmax(1) == y).float().mean()  # an ordinary module, with zeros
    print(f"accuracy on the training data {accuracy:.3f} with {supermask.masks_of(model)}")
