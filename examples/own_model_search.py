"""The search for a lottery ticket in your own model and arrays; the ticket is then loaded and trained once more.

Run: python examples/own_model_search.py [FOLDER OF RUNS]
"""

import sys

import numpy as np
import torch
from torch import nn

import supermask
from ticket_search import search

x = np.random.default_rng(0).normal(size=(1000, 20)).astype("float32")
y = x[:, :3].argmax(1)


def make_model() -> nn.Module:
    """Any function that builds a module."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))


folder = sys.argv[1] if len(sys.argv) > 1 else "runs"
run = search("imp", make_model, (x, y), density=0.4, epochs=10, seed=0, threads=1, runs=folder, progress=False)
levels = {round(level["density"], 2): round(level["val_accuracy"], 2) for level in run.levels}
print("accuracy by density", levels, "in", run.path)

net = run.ticket.apply_to(make_model())
supermask.hold(net, run.ticket.masks)
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
for _ in range(100):
    loss = nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{run.ticket.masks}, loss {loss:.3f}")
supermask.check(net)
