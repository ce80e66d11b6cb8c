"""Which ReLU units are active and which weights take part, against a loop over inputs, outputs and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import supermask
from supermask import Masks, activity

pytestmark = pytest.mark.quick


class Functional(nn.Module):
    """A linear network whose one function is called twice, in place, on the output of the layer itself."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.relu = relu
        self.first, self.second, self.last = nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.second(self.relu(self.first(x)))))


class Block(nn.Module):
    """A residual block with norms, one module for both its ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 4, 1)
        self.norm, self.shortcut = nn.BatchNorm2d(6), nn.Conv2d(4, 4, 1, 2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.outer(self.relu(self.norm(self.inner(x)))) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """A layer that is used twice, and one that sees several positions of each input."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.step(x).relu()
        return self.head(x).flatten(1)


def images() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.ReLU6(), nn.Conv2d(4, 3, 3, padding="same"), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3))


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, dilation=2), nn.ReLU(), nn.ConvTranspose1d(4, 2, 2), nn.ReLU(), nn.Flatten()
    )


NETWORKS = {
    "functional": (lambda: Functional(torch.relu_), (6,)),
    "block": (Block, (2, 4, 4)),
    "images": (images, (2, 5, 5)),
    "sequence": (sequence, (3, 7)),
    "shared": (Shared, (3, 4)),
}


def made(name: str, inputs: int = 6, density: float = 0.5) -> tuple[nn.Module, Tensor, Masks]:
    """A network with dropped weights, inputs some of whose numbers are 0, and the masks."""
    build, shape = NETWORKS[name]
    torch.manual_seed(3)
    model = build().double().eval()
    masks = supermask.prune(model, density, "random", seed=1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in masks:
                parameter.mul_(masks[parameter_name])
    x = torch.randn(inputs, *shape).double()
    return model, x * (torch.rand_like(x) < 0.8), masks


def by_hand(model: nn.Module, x: Tensor, masks: Masks) -> dict[str, Tensor]:
    """For each kept weight the share of inputs for which some output has a derivative by it that is not 0."""
    # Each use of a tensor is told apart, so that two of them cannot cancel.
    shares = {name: torch.zeros_like(masks[name], dtype=torch.float64) for name in masks}
    parameters = dict(model.named_parameters())
    for one in x.split(1):
        taking = {name: torch.zeros_like(masks[name]) for name in masks}
        for output in model(one).flatten():
            for name in masks:
                (slope,) = torch.autograd.grad(output, parameters[name], retain_graph=True, allow_unused=True)
                if slope is not None:
                    taking[name] |= slope.abs() > 1e-13
        for name in masks:
            shares[name] += taking[name] & masks[name]
    return {name: share / len(x) for name, share in shares.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weight_takes_part_where_an_output_changes_with_it(name):
    model, x, masks = made(name)
    expected = by_hand(model, x, masks)
    found = activity(model, [x[:4], x[4:]], masks)
    assert found.inputs == 6
    assert {part.name for part in found.layers} == set(masks)
    for part in found.layers:
        torch.testing.assert_close(part.share.double(), expected[part.name], atol=1e-6, rtol=0)
    assert found.density == masks.density
    total = sum(float(share.sum()) for share in expected.values())
    assert found.in_effect == pytest.approx(total / masks.size)
    assert 0 < found.in_effect < found.density, "some kept weight takes no part: the test says something"


@pytest.mark.parametrize("name", NETWORKS)
def test_units_against_hooks_on_functions(name, monkeypatch):
    """The outputs of the ReLUs, caught by other means: every function is replaced by one that keeps what it gives."""
    model, x, masks = made(name)
    kept = []

    def keep(function):
        def called(*args, **kwargs):
            output = function(*args, **kwargs)
            kept.append(output.detach().clone())
            return output

        return called

    found = activity(model, [x], masks)
    for place, function in ((F, "relu"), (F, "hardtanh"), (Tensor, "relu")):
        monkeypatch.setattr(place, function, keep(getattr(place, function)))
    if isinstance(model, Functional):
        model.relu = keep(model.relu)
    model(x)
    assert len(kept) == len(found.calls) > 1
    for call, output in zip(found.calls, kept, strict=True):
        units = output.movedim(-1 if name in ("functional", "shared") else 1, -1).reshape(len(x), -1, call.units)
        for unit in range(call.units):
            active = [[bool(value > 0) for value in one] for one in units[..., unit]]
            assert float(call.share[unit]) == pytest.approx(sum(map(any, active)) / len(x))
            assert float(call.positions[unit]) == pytest.approx(sum(map(sum, active)) / units[..., unit].numel())
            assert bool(call.never[unit]) == (not any(map(any, active)))
            assert bool(call.always[unit]) == all(map(all, active))


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": Tensor.relu,
    "Tensor.relu_": Tensor.relu_,
    "F.relu6": F.relu6,
    "ReLU6": nn.ReLU6(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "clamp_": lambda x: x.clamp_(0),
}


@pytest.mark.parametrize("relu", RELUS)
def test_every_relu_is_seen_and_named_by_who_calls_it(relu):
    model = Functional(RELUS[relu])
    found = activity(model, [torch.randn(4, 6)])
    module = isinstance(model.relu, nn.Module)
    own = "relu" if module else "Functional"
    assert [call.name for call in found.calls] == [own, f"{own}, call 2"]
    assert [call.layers for call in found.calls] == [("first.weight",), ("second.weight",)]
    assert [call.units for call in found.calls] == [7, 5]


@pytest.mark.parametrize("other", [F.leaky_relu, F.gelu, torch.tanh, lambda x: x.clamp(min=-1), lambda x: x])
def test_what_is_no_relu_is_not_counted(other):
    found = activity(Functional(other), [torch.randn(4, 6)])
    assert found.calls == ()
    assert found.units == found.never == 0
    assert found.others == ((other.__name__,) if other in (F.leaky_relu, F.gelu, torch.tanh) else ())


def test_outputs_that_are_opposite_cancel_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[2].weight[1] = -model[2].weight[0]
        model[0].bias.fill_(10.0)
    assert activity(model, [torch.ones(2, 3)]).in_effect == 1.0


def test_planted_units():
    model = Functional(F.relu)
    masks = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    masks = {name: mask for name, mask in masks.items() if name.endswith("weight")}
    masks["first.weight"][2] = False  # no weight in
    masks["second.weight"][:, 3] = False  # no weight out
    masks["last.weight"][:, 4] = False
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
        model.first.bias[0], model.first.bias[1], model.first.bias[2] = -1e3, 1e3, -1.0
    found = activity(model, [torch.randn(50, 6)], masks)
    first, second = found.calls
    assert first.emptied.nonzero().flatten().tolist() == [2, 3]
    assert second.emptied.nonzero().flatten().tolist() == [4]
    assert first.never.nonzero().flatten().tolist() == [0, 2]
    assert 1 in first.always.nonzero().flatten().tolist()
    assert (found.emptied, found.never_and_emptied) == (3, 1 + int(second.never[4]))


class Skip(nn.Module):
    """A ReLU of a residual sum whose other term is what came before the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.inner(x) + x).relu())


@pytest.mark.parametrize(
    ("model", "kept", "layers", "emptied"),
    [
        (Block(), ("stem", "shortcut", "head"), [("stem",), ("inner",), ("outer", "shortcut")], [0, 6, 0]),
        (Block(), ("stem", "head"), [("stem",), ("inner",), ("outer", "shortcut")], [4, 6, 4]),
        (Skip(), ("stem", "head"), [("stem",), ("inner",)], [0, 0]),
    ],
    ids=["through the shortcut", "through neither", "past the layer"],
)
def test_a_residual_sum_is_emptied_where_all_of_its_terms_are(model, kept, layers, emptied):
    masks = supermask.prune(model, 1.0)
    masks = Masks({name: mask & (name.partition(".")[0] in kept) for name, mask in masks.items()})
    shape = (2, 4, 4) if isinstance(model, Block) else (3,)
    found = activity(model, [torch.randn(5, *shape)], masks)
    assert [call.layers for call in found.calls] == [tuple(f"{name}.weight" for name in names) for names in layers]
    assert [int(call.emptied.sum()) for call in found.calls] == emptied


def test_held_masks_are_those_that_count_and_the_model_stays_as_it_is():
    model, x, masks = made("functional")
    expected = activity(model, [x], masks)
    torch.nn.init.normal_(model.first.weight)
    model.load_state_dict(made("functional")[0].state_dict())
    held = copy.deepcopy(model)
    supermask.hold(held, masks)
    held.train()
    held.first.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in held.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in held.modules()]
    found = activity(held, [x])
    assert [part.kept for part in found.layers] == [part.kept for part in expected.layers]
    assert found.in_effect == expected.in_effect
    assert held.training and not held.first.weight.requires_grad and held.first.weight.grad is None
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in held.modules()]
    assert all(torch.equal(tensor, state[name]) for name, tensor in held.state_dict().items())


class Moody(nn.Module):
    """Calls one ReLU or two, by the size of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x).relu()
        return x.relu() if len(x) > 2 else x


def turned() -> nn.Module:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[:1]).relu()

    return Turned()


@pytest.mark.parametrize(
    ("model", "batches", "said"),
    [
        (Functional(F.relu), [], "there are no inputs"),
        (Functional(F.relu), ["a"], "a batch is str, expected a tensor"),
        (Moody(), [torch.ones(2, 3), torch.ones(3, 3)], "calls 1 ReLUs on one batch and 2 on another"),
        (turned(), [torch.ones(2, 3)], "sees 1 rows of 2 inputs: expected batch first"),
    ],
    ids=["nothing", "no tensors", "changing", "another batch axis"],
)
def test_what_cannot_be_measured(model, batches, said):
    with pytest.raises(ValueError, match=said):
        activity(model, batches)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
