"""Masks on a model that is not on the CPU: all that is made for it is made where it is, and comes out the same."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from networks import start_of
from products import thin
from second_device import SECOND, second_device
from torch import Tensor, nn

import supermask
from supermask.choosing.allocation import ALLOCATIONS
from supermask.choosing.coupling import couple
from supermask.choosing.scores import SCORES
from supermask.live.held import mask_gradients
from supermask.masks.targets import find_targets
from ticket_search.methods import early_bird
from ticket_search.training.units import find_filters


@pytest.fixture(autouse=True)
def _device():
    torch.set_num_threads(1)
    with second_device():
        yield


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8),
        nn.Sigmoid(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 4),
    )  # fmt: skip
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    return net


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 4, 4, 4, generator=generator), torch.arange(6) % 4) for _ in range(2)]


def there(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).to(SECOND)


def test_devices_are_not_mixed():
    net, x = there(network()), batches()[0][0]
    assert {parameter.device for parameter in net.parameters()} == {SECOND}
    assert net(x.to(SECOND)).device == SECOND and net(x.to(SECOND)).cpu().device.type == "cpu"
    for wrong in (
        lambda: net(x),
        lambda: net[0].weight * torch.ones(8, 1, 1, 1),
        lambda: torch.cat([net[0].bias, torch.zeros(1)]),
        lambda: torch.where(torch.ones(8, dtype=torch.bool), net[0].bias, 0.0),
    ):
        with pytest.raises(RuntimeError, match="on the same device"):
            wrong()
    (net(x.to(SECOND)).sum() * torch.tensor(2.0)).backward()
    assert net[0].weight.grad.device == SECOND
    torch.testing.assert_close(net[9].weight.cpu(), network()[9].weight)


SHAPES = ("weight", "filter", "channel", "block:2x2", "2:4", "coupled")


# In the ordinary run every shape and every second score: the device is none of a score's business.
@pytest.mark.parametrize("case", thin(itertools.product(SCORES, SHAPES), 13), ids="-".join)
def test_the_same_masks_are_chosen_there(case):
    score, granularity = case
    net, found = network().eval(), []
    exclude = None if granularity in ("weight", "filter", "channel", "coupled") else "3"
    for model, device in ((net, "cpu"), (there(net), SECOND)):
        data = [(x.to(device), y.to(device)) for x, y in batches()]
        ask = {"batches": data, "example_input": data[0][0] if granularity != "filter" else None, "exclude": exclude}
        ask["start"] = start_of(net)
        if granularity == "filter" and score in ("synflow", "bn-scale"):
            ask["example_input"] = data[0][0]
        shape = "filter" if granularity == "coupled" else granularity
        allocation = "layerwise" if granularity == "2:4" else None
        rounds = 1 if granularity == "2:4" else 2
        masks = supermask.prune(model, 0.5, score, allocation, shape, rounds=rounds, **ask)
        again = masks if granularity == "2:4" else supermask.prune(model, 0.4, score, previous=masks, rounds=1, **ask)
        assert {mask.device.type for mask in masks.values()} <= {torch.device(device).type}
        assert again.within(masks)
        found.append((masks, again))
    assert found[0][0] == found[1][0].to("cpu")
    assert found[0][1].density == found[1][1].density


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_densities_are_shared_out_there(allocation):
    net = network()
    expected = supermask.prune(net, 0.3, "random", allocation, floor=0.05)
    assert supermask.prune(there(net), 0.3, "random", allocation, floor=0.05).to("cpu") == expected


def test_masks_of_masks_there():
    masks = supermask.prune(there(network()), 0.5)
    others = supermask.prune(there(network(1)), 0.5).to("cpu")
    assert 0 < masks.overlap(others) < 1 and 0 < masks.changed(others) < 1
    assert (masks & others).within(masks) and masks.shuffled(0).kept == masks.kept


def train(net: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, momentum=0.9, weight_decay=0.01)
    device = next(net.parameters()).device
    for _ in range(steps):
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x.to(device)), y.to(device)).backward()
            optimizer.step()


@pytest.mark.parametrize("where", ["cpu", SECOND], ids=str)
def test_held_masks_hold_there(where):
    net = there(network())
    masks = supermask.prune(net, 0.3, granularity="filter", example_input=batches()[0][0].to(SECOND)).to(where)
    supermask.hold(net, masks)
    train(net)
    supermask.check(net)
    for name, mask in masks.items():
        weight = net.get_parameter(name).detach()
        assert weight.device == SECOND and not weight.cpu()[~mask.cpu()].any() and weight.cpu()[mask.cpu()].any()
    assert supermask.masks_of(net).to("cpu") == masks.to("cpu")
    mask_gradients(net)
    assert not any(module._forward_hooks for module in supermask.bake(net).modules())
    supermask.detach(net)


@pytest.mark.parametrize("allocation", ["layerwise", "global"])
def test_masks_are_learned_there(allocation):
    here, far = network(), there(network())
    for net in (here, far):
        supermask.learn(net, 0.5, allocation=allocation)
    assert supermask.masks_of(far).to("cpu") == supermask.masks_of(here)
    before = supermask.masks_of(far)
    train(far)
    supermask.check(far)
    assert supermask.masks_of(far) != before
    net = supermask.bake(far)
    assert net[0].weight.device == SECOND


@pytest.mark.parametrize("where", [pytest.param(where, marks=pytest.mark.slow) for where in ("cpu", SECOND)], ids=str)
def test_a_smaller_network_there(where):
    net, x = network().eval(), batches()[0][0]
    masks = supermask.prune(net, 0.5, granularity="filter", example_input=x)
    expected = supermask.shrink(net, masks, x)
    far, x = there(net), x.to(SECOND)
    assert (
        couple(far, find_targets(far), x).groups.keys() == couple(net, find_targets(net), batches()[0][0]).groups.keys()
    )
    found = supermask.shrink(far, masks.to(where), x)
    assert found.removed == expected.removed and found.changes == expected.changes
    assert {parameter.device for parameter in found.model.parameters()} == {SECOND}
    torch.testing.assert_close(found.model(x).cpu(), expected.model(x.cpu()))
    # A constant that is folded into a bias, behind a sigmoid.
    constant = {"3.weight": torch.ones(8, 4, 3, 3, dtype=torch.bool)}
    constant["3.weight"][[0, 5]] = False
    assert supermask.shrink(far, constant, x).removed == {"3.weight": (0, 5)}


def test_an_early_ticket_is_the_same_there():
    """The scales are ranked on the CPU, whatever device the network is on."""
    found = []
    for model, device in ((network(), "cpu"), (there(network()), SECOND)):
        data = type(
            "Samples", (), {"batches": lambda self, split, size, d=device: iter([[batches()[0][0].to(d), None]])}
        )()
        config = early_bird.Config(density=0.4)
        filters = find_filters(model, data, config, normed=True)
        masks = early_bird.choose(model, config, filters)
        found.append((masks, early_bird.flatten(filters)(masks)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
