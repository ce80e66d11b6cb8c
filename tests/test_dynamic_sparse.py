"""SET and RigL: what is dropped and grown, what a weight that moves brings along, and the training around it."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch import nn

import supermask
from supermask.live.regrowth import drop_and_grow
from supermask.masks.random_numbers import permutation, random_words
from supermask.weights.fitting import state_of
from ticket_search import RequestError, RunError, search

FLAGS = {"threads": 1, "device": "cpu", "progress": False, "density": 0.1, "model_args": "width=0.1"}


def slowly(mask: list[bool], magnitude: list[float], growth: list[float], count: int) -> list[bool]:
    """One weight after the other: the smallest leaves, the largest of those that are away comes."""
    mask = list(mask)
    for _ in range(count):
        kept = [place for place, is_kept in enumerate(mask) if is_kept]
        # Of equal ones the first stay.
        mask[min(kept, key=lambda place: (magnitude[place], -place))] = False
    away = [place for place, is_kept in enumerate(mask) if not is_kept]
    for place in sorted(away, key=lambda place: (-growth[place], place))[:count]:
        mask[place] = True
    return mask


@pytest.mark.parametrize("seed", range(30))
def test_the_smallest_leave_and_the_largest_of_all_others_come(seed):
    draw = random.Random(seed)
    size = draw.randint(1, 40)
    mask = [draw.random() < 0.5 for _ in range(size)]
    magnitude, growth = ([draw.choice([0.0, 0.5, 1.0, draw.random()]) for _ in range(size)] for _ in range(2))
    count = draw.randint(0, sum(mask))
    found = drop_and_grow(torch.tensor(mask), torch.tensor(magnitude), torch.tensor(growth), sum(mask), count)
    assert found.tolist() == slowly(mask, magnitude, growth, count)
    assert int(found.sum()) == sum(mask)


def one_layer(weight: list[float], mask: list[bool], gradient: list[float], kind: str) -> tuple:
    """A layer that holds a mask, one step behind it, and what the optimizer remembers of its weights."""
    model = nn.Linear(len(weight), 1, bias=False)
    supermask.hold(model, {"weight": torch.tensor([mask])})
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=0.0)}
    optimizer = make[kind](model.parameters())
    model.weight.data.copy_(torch.tensor([weight]))
    model.weight.grad = torch.ones(1, len(weight))
    optimizer.step()
    model.weight.grad = torch.tensor([gradient])
    return model, optimizer


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_weight_dropped_and_grown_at_once_keeps_its_value_and_its_momentum(kind):
    weight = [3.0, -0.5, 2.0, 0.25, 0.0, 0.0, 0.0]
    model, optimizer = one_layer(weight, [True] * 4 + [False] * 3, [0, 9.0, 0, 1.0, -2.0, 0.1, 0], kind)
    remembered = {
        key: value.clone()
        for key, value in optimizer.state[model.weight].items()
        if isinstance(value, torch.Tensor) and value.shape == model.weight.shape
    }
    assert remembered, "the optimizer remembers something"
    # Half of four go: the second and the fourth. The second has the largest gradient of all and comes back, and the
    # fifth, whose gradient is larger than that of the fourth, is new.
    masks = supermask.regrow(model, 0.5, optimizer)
    assert masks["weight"].tolist() == [[True, True, True, False, True, False, False]]
    assert supermask.masks_of(model) == masks
    assert model.weight.tolist() == [[3.0, -0.5, 2.0, 0.0, 0.0, 0.0, 0.0]]
    for key, value in remembered.items():
        now = optimizer.state[model.weight][key]
        assert torch.equal(now[0, :4], value[0, :4]), "what was there keeps its momentum, the one that came back too"
        assert now[0, 4] == 0 and value[0, 4] != 0, "what is new has none"


@pytest.mark.parametrize(
    ("fraction", "kept", "moved"), [(0.3, 9, 2), (0.3, 3, 0), (0.5, 5, 2), (1.0, 4, 4), (0.0, 4, 0)]
)
def test_how_many_move_is_rounded_down(fraction, kept, moved):
    size = 20
    mask = torch.tensor([[place < kept for place in range(size)]])
    gradient = [0.0] * kept + [float(place + 1) for place in range(size - kept)]
    model, _ = one_layer(
        [1.0 + place for place in range(kept)] + [0.0] * (size - kept), mask[0].tolist(), gradient, "sgd"
    )
    masks = supermask.regrow(model, fraction)
    assert int((masks["weight"] & ~mask).sum()) == moved
    assert masks.kept == kept


def test_random_growth_follows_from_its_seed():
    found = []
    for seed in (1, 1, 2):
        model, _ = one_layer([1.0] * 50 + [0.0] * 50, [True] * 50 + [False] * 50, [0.0] * 100, "sgd")
        found.append(supermask.regrow(model, 0.5, grow="random", seed=seed))
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_regrown():
    model = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="holds no masks to regrow"):
        supermask.regrow(model)
    supermask.hold(model, supermask.prune(model, 0.5))
    with pytest.raises(ValueError, match="weight has no gradient to grow by"):
        supermask.regrow(model)
    model.weight.grad = torch.full_like(model.weight, torch.nan)
    broken = copy.deepcopy(model)
    broken.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="weight has values that are not finite"):
        supermask.regrow(broken, grow="random")
    with pytest.raises(ValueError, match="the gradient of weight is not finite"):
        supermask.regrow(model)
    with pytest.raises(ValueError, match="unknown growth 'gradients'"):
        supermask.regrow(model, grow="gradients")
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        supermask.regrow(model, 1.5)
    supermask.regrow(model, grow="random")


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_training_is_that_of_a_loop_by_hand(method, optimizer, tmp_path):
    """Masks as 0 and 1 beside the weights, and the optimizers' formulas written out."""
    flags = {"epochs": 2, "batch_size": 100, "optimizer": optimizer, "lr": 0.01, "regrow_every": "3it",
             "regrow_until": "13it", **({"momentum": 0.9} if optimizer == "sgd" else {})}  # fmt: skip
    run = search(method, runs=tmp_path, **FLAGS, **flags)
    torch.set_num_threads(1)
    model = run.setup.make_model(run.config)
    drawn = supermask.prune(model, 0.1, "random", "erk", seed=run.config.seeds["mask"])
    masks = {name: mask.float() for name, mask in drawn.items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, name in names.items():
        parameter.data *= masks.get(name, torch.ones(()))
    first, second = ({name: torch.zeros_like(parameter) for parameter, name in names.items()} for _ in range(2))
    steps = ages = 0

    def step(parameter: nn.Parameter, name: str) -> None:
        gradient = parameter.grad
        if optimizer == "sgd":
            first[name] = gradient.clone() if ages == 1 else 0.9 * first[name] + gradient
            change = 0.01 * first[name]
        else:
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            root = (second[name] / (1 - 0.999**ages)).sqrt() + 1e-8
            change = 0.01 * first[name] / (1 - 0.9**ages) / root
        parameter.data -= change
        parameter.data *= masks.get(name, torch.ones(()))

    def move(number: int) -> None:
        seed = int(random_words(1, run.config.seeds["mask"], f"regrow/{number}")[0]) >> 1
        fraction = 0.3 * 0.5 * (1 + math.cos(math.pi * number / 13))
        for parameter, name in names.items():
            if name not in masks:
                continue
            growth = parameter.grad.abs() if method == "rigl" else uniform_of(name, parameter, seed)
            before = masks[name].bool().flatten().tolist()
            after = slowly(before, parameter.abs().flatten().tolist(), growth.flatten().tolist(),
                           int(fraction * sum(before)))  # fmt: skip
            new = torch.tensor([there and not was for there, was in zip(after, before, strict=True)]).view_as(parameter)
            masks[name] = torch.tensor(after).view_as(parameter).float()
            parameter.data *= masks[name]
            for memory in (first, second):
                memory[name] = memory[name].masked_fill(new, 0)

    for epoch in range(2):
        order = permutation(run.data.train_size, run.config.seeds["order"], f"order/0/{epoch}")
        for x, y in run.data.train_batches(order, 100, 0, epoch):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if method == "rigl" and steps % 3 == 0 and steps <= 13:
                move(steps)
            else:
                ages += 1
                for parameter, name in names.items():
                    step(parameter, name)
            steps += 1
            if method == "set" and steps % 3 == 0 and steps <= 13:
                move(steps)
    assert {name: mask.bool().tolist() for name, mask in masks.items()} == {
        name: mask.tolist() for name, mask in run.ticket.masks.items()
    }
    for name, tensor in state_of(model).items():
        torch.testing.assert_close(run.ticket.state_dict("final")[name], tensor, rtol=1e-4, atol=1e-6)


def uniform_of(name: str, parameter: nn.Parameter, seed: int) -> torch.Tensor:
    from supermask.masks.random_numbers import uniform

    return torch.from_numpy(uniform(parameter.numel(), seed, "regrow/" + name)).view(parameter.shape)


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_masks_move_until_they_stay_and_every_tensor_keeps_its_number(method, tmp_path):
    run = search(method, runs=tmp_path, epochs=3, regrow_every="5it", regrow_until="40it", **FLAGS)
    rows = [row for row in run.metrics if "mask/changed" in row]
    assert [row["step"] for row in rows] == [*range(0 if method == "rigl" else 5, 41, 5)]
    moved = [row["mask/changed"] for row in rows]
    assert moved[0] > 0 and moved[-1] == 0, "the fraction falls to nothing"
    assert run.summary["regrown"] == {"every": 5, "until": 40}
    drawn = supermask.prune(run.setup.make_model(run.config), 0.1, "random", "erk", seed=run.config.seeds["mask"])
    assert run.ticket.masks.kept_per_tensor == drawn.kept_per_tensor
    assert run.ticket.masks != drawn
    assert run.summary["min_validation_loss"]["step"] > 40, "an earlier network has other masks"
    again = search(method, runs=tmp_path, name="none", epochs=3, regrow_fraction=0, **FLAGS)
    assert again.ticket.masks == drawn, "what moves nothing is a random mask"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"regrow_every": "0"}, "--regrow-every 0"),
        ({"regrow_until": "2ep"}, "--regrow-every, --regrow-until"),
        ({"regrow_every": "100it"}, "updated every 100 steps until step 31"),
        ({"granularity": "2:4", "density": 0.5}, "rigl drops and grows single weights"),
    ],
)
def test_what_goes_not_together(flags, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        search("rigl", runs=tmp_path, **{**FLAGS, "epochs": 2, **flags})


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_numbers_that_are_not_finite_end_the_run_in_a_sentence(method, tmp_path):
    with pytest.raises(RunError, match=r"not finite.* lower --lr"):
        search(method, runs=tmp_path, epochs=2, lr=1e30, optimizer="sgd", **FLAGS)
