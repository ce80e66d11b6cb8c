"""The example of a learned mask on networks that know nothing of it."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from rules import SigmoidGate
from torch import nn

import supermask


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.body(self.embedding(x)).mean(1))


NETWORKS = {
    "perceptron": (perceptron, lambda: torch.randn(8, 12)),
    "convolutions with batch norm": (convolutions, lambda: torch.randn(8, 3, 8, 8)),
    "transformer": (Transformer, lambda: torch.randint(0, 20, (8, 5))),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=4), lambda: torch.randn(4, 3, 32, 32)),
}
# Those that take seconds to compile, or to train.
LARGE = {"resnet18", "transformer"}
each_network = pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS]
)


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def loss_of(model, x, y):
    price = sum(learned["scores"].sigmoid().mean() for learned in supermask.learned_of(model).values())
    return nn.functional.cross_entropy(model(x), y) + 3 * price


def train(model, run, x, y, steps: int = 4) -> float:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    with torch.no_grad():  # some gates are about to close, some stay far from it
        for learned in supermask.learned_of(model).values():
            learned["scores"].fill_(3.0).view(-1)[::2] = 0.4
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(run, x, y)
        loss.backward()
        optimizer.step()
    return loss.item()


@each_network
def test_weights_and_gates_train_and_what_is_baked_is_an_ordinary_network(network):
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    y = torch.arange(len(x)) % 4
    names = list(model.state_dict())
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    targets = supermask.learn(model, program=SigmoidGate(), weights="keep")
    assert all(torch.equal(parameter, values[n]) for n, parameter in model.named_parameters() if n in values)
    other = copy.deepcopy(model)
    train(model, model, x, y)
    supermask.check(model)
    assert [n for n, p in model.named_parameters() if n in values and torch.equal(p, values[n])] == []
    masks = supermask.masks_of(model)
    assert list(masks) == list(targets)
    assert all(0 < density < 1 for density in masks.densities.values()), masks.densities
    model.eval()
    baked = supermask.bake(model)
    assert list(baked.state_dict()) == names
    assert all(p.requires_grad for p in baked.parameters())
    torch.testing.assert_close(baked(x), model(x), rtol=1e-4, atol=1e-5)
    for name, mask in masks.items():
        assert not baked.get_parameter(name)[~mask].any()
        assert torch.equal(baked.get_parameter(name)[mask], model.get_parameter(name)[mask])
    assert supermask.masks_of(other).density == 1.0, "a copy made before has gates of its own"
    train(other, other, x, y)
    assert supermask.masks_of(other) == masks, "and learns the same"


@pytest.mark.parametrize(
    "network", [next(iter(NETWORKS)), *(pytest.param(name, marks=pytest.mark.slow) for name in [*NETWORKS][1:])]
)
def test_compiled_it_trains_as_it_does_eager(network):
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    y = torch.arange(len(x)) % 4
    supermask.learn(model, program=SigmoidGate(), weights="keep")
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    graph = torch.compile(twin, fullgraph=True, backend="aot_eager")
    loss = loss_of(model, x, y)
    found = loss_of(graph, x, y)
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-5)
    loss.backward()
    found.backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-4, msg=name)
    copied = copy.deepcopy(graph)
    torch.testing.assert_close(copied.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert supermask.masks_of(copied) == supermask.masks_of(model)
