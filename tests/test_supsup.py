"""SupSup: several tasks over one network, in one file, switched in place and inferred; each beside something slower."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, Residual
from ticket_bytes import put_together, rewrite, tasks_ticket
from torch import nn

import supermask
from supermask import Masks, Ticket, TicketError, make_state
from supermask.choosing import allocation
from supermask.live import Superposition
from supermask.live.tasks import entropy, superfluous
from supermask.weights.fitting import state_of
from ticket_search import Interrupted, RequestError, controls, resume, search, train
from ticket_search.contract.flags import make_config
from ticket_search.data.sources import read_samples
from ticket_search.data.tasks import Tasks, read_tasks, through_task
from ticket_search.methods import supsup
from ticket_search.runs.progress import Progress
from ticket_search.training import loop
from ticket_search.training.evaluation import evaluate_ticket

pytestmark = pytest.mark.quick
QUICK = {"epochs": 1, "threads": 1, "progress": False, "decisions": 3, "model_args": ("width=0.2",)}


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def some_masks(model: nn.Module, number: int, density: float = 0.4) -> dict[str, Masks]:
    return {
        f"task {i}": supermask.prune(model, density, "random", allocation="layerwise", seed=i) for i in range(number)
    }


# --- inference: the gradient, and who is chosen by it


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()


def objective_slowly(weights: list, biases: list, masks: list, alphas: list, x: np.ndarray, real: int | None) -> float:
    """H or G of a network of two layers, from its alphas, image by image; the real outputs of `alphas_now` are fixed."""
    total = 0.0
    for image in x:
        hidden = image
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            mixed = np.zeros_like(weight)
            for alpha, each in zip(alphas, masks, strict=True):
                mixed += alpha * each[layer] * weight
            hidden = mixed @ hidden + bias
            hidden = np.tanh(hidden) if layer == 0 else hidden
        if real is None:
            p = np.exp(hidden - hidden.max())
            p /= p.sum()
            total += -sum(value * math.log(value) for value in p)
        else:
            total += hidden  # the logits: what is held constant is not known here
    return total / len(x) if real is None else total


def slow_gradient(model: nn.Module, masks: dict[str, Masks], x: torch.Tensor, real: int | None = None) -> list[float]:
    """Central differences of the alphas, one after the other."""
    names = ("0", "2")
    weights = [model.get_parameter(f"{name}.weight").detach().numpy().copy() for name in names]
    biases = [model.get_parameter(f"{name}.bias").detach().numpy().copy() for name in names]
    arrays = [[each[f"{name}.weight"].numpy() for name in names] for each in masks.values()]
    found = []
    for task in range(len(masks)):
        ends = []
        for step in (1e-5, -1e-5):
            alphas = [1 / len(masks)] * len(masks)
            alphas[task] += step
            if real is None:
                ends.append(objective_slowly(weights, biases, arrays, alphas, x.numpy(), None))
                continue
            values = []
            for image in x.numpy():
                here = objective_slowly(weights, biases, arrays, alphas, image[None], real)
                middle = objective_slowly(weights, biases, arrays, [1 / len(masks)] * len(masks), image[None], real)
                held = np.concatenate([middle[:real], here[real:]])
                values.append(math.log(sum(math.exp(value) for value in held)))
            ends.append(sum(values) / len(values))
        found.append((ends[0] - ends[1]) / 2e-5)
    return found


@pytest.mark.parametrize("real", [None, 2])
def test_the_gradient_of_the_alphas_is_that_written_out(real):
    model, x = perceptron(), torch.randn(7, 6, dtype=torch.float64)
    masks = some_masks(model, 4)
    expected = slow_gradient(model, masks, x, real)
    net = Superposition(model, state_of(model), masks)
    net.switch("task 3")  # what the model has been switched to changes nothing
    asked: dict[str, Any] = {} if real is None else {"objective": "superfluous", "real": real}
    found = net.gradient(x, **asked)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert len({round(value, 6) for value in expected}) == 4
    # Of some tasks only, each alpha is one over their number.
    some = {name: masks[name] for name in ("task 1", "task 3")}
    first = net.gradient(x, ("task 1", "task 3"), **asked)
    model = perceptron()
    model.load_state_dict(state_of(net.model) | {name: net._backbone[name] for name in net._backbone})
    assert first.tolist() == pytest.approx(slow_gradient(model, some, x, real), rel=1e-6)


def test_entropy_and_g_are_what_they_say():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    by_hand = []
    for row in logits.tolist():
        p = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        by_hand.append(-sum(value * math.log(value) for value in p))
    assert entropy(logits).item() == pytest.approx(sum(by_hand) / 2, rel=1e-12)
    value = superfluous(logits, 2)
    assert value.item() == pytest.approx(
        sum(math.log(sum(map(math.exp, row))) for row in logits.tolist()) / 2, rel=1e-12
    )
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[:, :2].any()
    assert torch.allclose(gradient[:, 2], logits.softmax(1)[:, 2].detach() / 2)


def test_so_many_images_decide_together_by_their_mean():
    model, x = perceptron(), torch.randn(10, 6, dtype=torch.float64)
    masks = some_masks(model, 5)
    copy = perceptron()
    copy.load_state_dict(model.state_dict())
    net, names = Superposition(model, state_of(model), masks), list(masks)

    def chosen(part: torch.Tensor) -> str:
        return names[int(np.argmin(slow_gradient(copy, masks, part)))]

    assert net.infer(x) == [chosen(x)]
    assert net.infer(x, images=1) == [chosen(x[i : i + 1]) for i in range(10)]
    assert net.infer(x, images=4) == [chosen(x[:4]), chosen(x[4:8]), chosen(x[8:])]
    assert len(set(net.infer(x, images=1))) > 1
    assert net.infer((x,), images=4) == net.infer({"input": x}, images=4) == net.infer(x, images=4)


def test_halving_leaves_out_the_half_of_the_highest_gradient():
    model, x = perceptron(), torch.randn(3, 6, dtype=torch.float64)
    masks, differs = some_masks(model, 7), 0
    copy = perceptron()
    copy.load_state_dict(model.state_dict())
    net = Superposition(model, state_of(model), masks)
    for image in x.split(1):
        left, rounds = dict(masks), []
        while len(left) > 1:
            found = dict(zip(left, slow_gradient(copy, left, image), strict=True))
            stay = sorted(found, key=found.__getitem__)[: math.ceil(len(left) / 2)]
            left = {name: mask for name, mask in left.items() if name in stay}
            rounds.append(len(left))
        assert rounds == [4, 2, 1]
        assert net.infer(image, search="halving") == list(left)
        differs += net.infer(image, search="halving") != net.infer(image)
    assert differs


def test_batch_norms_use_the_batch_and_keep_what_they_have():
    model, x = Residual().double().eval(), torch.randn(6, 1, 5, 5, dtype=torch.float64)
    masks = some_masks(model, 2)
    whole = state_of(model)
    own = {
        name: {
            "norm.running_mean": torch.full((8,), 5.0 + i).double(),
            "head.bias": torch.full((10,), 0.1 * i).double(),
        }
        for i, name in enumerate(masks)
    }
    backbone = {name: tensor for name, tensor in whole.items() if name not in own["task 0"]}
    net = Superposition(model, backbone, masks, own)
    before = state_of(net.model)
    found = net.gradient(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(net.model).items())
    assert not any(module.training for module in net.model.modules())
    # By hand: alphas as leaves, the mean of what is the tasks' own, batch norm in training mode, no dropout.
    slow = Residual().double().eval()
    slow.norm.train()
    alphas = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    mixed = {n: whole[n] * sum(a * m[n] for a, m in zip(alphas, masks.values(), strict=True)) for n in masks["task 0"]}
    logits = torch.func.functional_call(slow, whole | {"head.bias": torch.full((10,), 0.05).double()} | mixed, (x,))
    (expected,) = torch.autograd.grad(entropy(logits), alphas)
    assert torch.allclose(found, expected, rtol=1e-9)
    flat = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net = Superposition(flat, state_of(flat), some_masks(flat, 2))
    assert len(net.infer(torch.randn(4, 6), images=2)) == 2
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net.infer(torch.randn(2, 6), images=1)
    assert not flat[1].training and flat[1].track_running_stats


# --- switching


@pytest.mark.parametrize("network", NETWORKS)
def test_each_task_is_bit_equal_to_a_network_of_its_own(network):
    make, inputs = NETWORKS[network]
    model, x = make().eval(), inputs()
    state = state_of(model)
    masks = some_masks(model, 3)
    for mask in masks.values():
        name = next(iter(mask))
        state[name] = torch.where(mask[name], state[name], state[name].abs().neg())
    dropped = ~(masks["task 0"] | masks["task 1"] | masks["task 2"])[name]
    state[name][dropped] = math.nan  # no product with 0 would be 0
    tickets = {task: Ticket(mask, {"final": make_state(state, mask)}) for task, mask in masks.items()}
    net = Superposition(model, state, masks)
    places = {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()}
    for task in ("task 2", "task 0", "task 1", "task 2"):
        assert net.switch(task) is model and net.task == task
        expected = tickets[task].apply_to(make().eval())
        for n, tensor in expected.state_dict().items():
            assert tensor.numpy().tobytes() == model.state_dict()[n].numpy().tobytes(), n
        assert torch.equal(net(x), expected(x))
    assert {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()} == places, "in place"


def test_a_model_that_was_changed_in_between_is_switched_all_the_same():
    model = Residual().eval()
    state, masks = state_of(model), some_masks(model, 2)
    net = Superposition(model, state, masks)
    with torch.no_grad():
        model.stem.weight.fill_(7.0)
    net.switch("task 1")
    assert torch.equal(model.stem.weight, torch.where(masks["task 1"]["stem.weight"], state["stem.weight"], 0.0))
    model.to(memory_format=torch.channels_last).double()
    for task in masks:
        net.switch(task)
        for name, mask in masks[task].items():
            assert torch.equal(model.get_parameter(name), torch.where(mask, state[name].double(), 0.0))
    assert model.stem.weight.dtype == torch.float64
    assert net.gradient(torch.randn(4, 1, 5, 5).double()).dtype == torch.float64


def test_what_cannot_be_superposed_is_refused():
    model = perceptron().float()
    state, masks = state_of(model), some_masks(model, 2)
    with pytest.raises(ValueError, match="a superposition is of two tasks at least, got 1"):
        Superposition(model, state, {"one": masks["task 0"]})
    with pytest.raises(ValueError, match=r"the tasks have no tensor '2.bias'"):
        Superposition(model, {name: tensor for name, tensor in state.items() if name != "2.bias"}, masks)
    with pytest.raises(ValueError, match=r"there is no tensor '3.bias'; did you mean '2.bias'"):
        Superposition(model, {**state, "3.bias": torch.zeros(5)}, masks)
    net = Superposition(model, state, masks)
    with pytest.raises(ValueError, match="no task 'task 3'; did you mean 'task 1'"):
        net.switch("task 3")
    for asked, problem in {
        "images=0": {"images": 0},
        "unknown search 'binary'": {"search": "binary"},
        "unknown objective 'energy'": {"objective": "energy"},
        "goes with real=": {"objective": "superfluous"},
        "at least one must have no class": {"objective": "superfluous", "real": 5},
    }.items():
        with pytest.raises(ValueError, match=asked):
            net.infer(torch.randn(2, 6), **problem)
    supermask.hold(other := perceptron(), masks["task 0"])
    with pytest.raises(ValueError, match="carries masks"):
        Superposition(other, state, masks)
    words = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)))
    with pytest.raises(ValueError, match=r"logits \[n, outputs\]; the network gives \[2, 2, 2\]"):
        Superposition(words, state_of(words), some_masks(words, 2)).infer(torch.randn(2, 6))


# --- the ticket


def test_the_tasks_of_a_ticket_are_the_tickets_that_were_joined():
    model = Residual()
    draws = supermask.initialize(model, "kaiming-normal", seed=2)
    tickets = {}
    for number, (name, mask) in enumerate(some_masks(model, 3).items()):
        state = state_of(model)
        state["norm.running_mean"] = state["norm.running_mean"] + number
        states = {"start": make_state(state_of(model), mask, draws), "final": make_state(state, mask, draws)}
        tickets[name] = Ticket(mask, states, {"method": "m", "accuracy": {"final": {"test": 90.0 + number}}})
    joined = supermask.join_tasks(tickets)
    assert joined.tasks == tuple(tickets)
    assert joined.meta == {"method": "m"}
    for loaded in (joined, supermask.load(supermask.pack(joined))):
        assert loaded == joined
        for name, ticket in tickets.items():
            assert loaded.task(name) == ticket
            assert supermask.pack(loaded.task(name)) == supermask.pack(ticket)
    assert joined.density == pytest.approx(0.4, abs=0.01)
    assert joined.kept == tickets["task 0"].masks.kept
    union = tickets["task 0"].masks | tickets["task 1"].masks | tickets["task 2"].masks
    assert joined.masks == union and joined.masks.shapes == union.shapes and joined.masks.size == union.size
    other = supermask.join_tasks({**tickets, "task 2": tickets["task 1"]})
    said = joined.diff(other)
    assert said and {row.set for row in said.masks} == {"task 2"}
    assert set(said.states) == {"task 2/start", "task 2/final"}
    assert "tasks.task 2.accuracy.final.test" in said.meta


def test_a_ticket_of_several_tasks_says_what_it_needs():
    ticket = supermask.load(supermask.pack(tasks_ticket()))
    assert "3 tasks, density 0.4" in repr(ticket)
    for ask in (ticket.model, ticket.state_dict, ticket.compact, lambda: ticket.apply_to(Residual())):
        with pytest.raises(TicketError, match=r"of 3 tasks: choose one, as ticket.task\('0'\); there are 0, 1, two"):
            ask()
    with pytest.raises(TicketError, match="no task 'tow'; did you mean 'two'"):
        ticket.task("tow")
    with pytest.raises(TicketError, match="no task '0': the ticket is of one task"):
        ticket.task("0").model(task="0")
    with pytest.raises(TicketError, match="nothing to superpose"):
        ticket.task("0").superpose()
    with pytest.raises(ValueError, match="of 3 tasks"):
        supermask.foreign.to_open_lth(ticket)
    net = ticket.superpose(Residual())
    for name in ticket.tasks:
        net.switch(name)
        own = ticket.task(name).state_dict()
        assert all(torch.equal(tensor, own[key]) for key, tensor in state_of(net.model).items())


def test_tickets_that_share_no_weights_are_not_joined():
    model = perceptron().float()
    state, masks = state_of(model), some_masks(model, 2, 0.9)
    one, two = (Ticket(mask, {"final": make_state(state, mask)}) for mask in masks.values())
    with pytest.raises(ValueError, match="expected two tasks or more, got 1"):
        supermask.join_tasks({"a": one})
    trained = {**state, "0.weight": state["0.weight"] + 1}
    wrong = Ticket(masks["task 1"], {"final": make_state(trained, masks["task 1"])})
    both = int((masks["task 0"] & masks["task 1"])["0.weight"].sum())
    with pytest.raises(ValueError, match=rf"{both} weights of 0.weight are other ones in 'b' than in a task before"):
        supermask.join_tasks({"a": one, "b": wrong})
    with pytest.raises(ValueError, match="'b' has other states or tensors than 'a'"):
        supermask.join_tasks({"a": one, "b": Ticket(two.masks, {"start": two.states["final"]})})
    with pytest.raises(ValueError, match="'b' masks other tensors than 'a'"):
        supermask.join_tasks({"a": one, "b": Ticket(Masks({"0.weight": two.masks["0.weight"]}), two.states)})
    with pytest.raises(ValueError, match="'b' is of several tasks"):
        supermask.join_tasks({"a": one, "b": supermask.join_tasks({"c": one, "d": two})})
    with pytest.raises(ValueError, match="'a/b' is no name of a task"):
        supermask.pack(supermask.join_tasks({"a/b": one, "b": two}))
    joined = supermask.join_tasks({"a": one, "b": two})
    neither = ~(masks["task 0"] | masks["task 1"])["0.weight"]
    assert not joined.backbone.tensors({})["0.weight"][neither].any()
    whole = supermask.join_tasks({"a": one, "b": two}, state)
    assert torch.equal(whole.backbone.tensors({})["0.weight"], state["0.weight"])
    assert whole.task("a") == joined.task("a") == one


def test_a_file_of_many_tasks_costs_no_more_than_its_length():
    """Each task must not look at all tensors: 2,500 of both are read in seconds, and not in minutes."""
    count, one = 2500, "0" * 63 + "1"
    names = [f"w{i}" for i in range(count)]
    description = {
        "tensors": {name: {"shape": [1, 1]} for name in names},
        "sets": {f"t{i}": {"w0": {"kept": 1, "rice": [0, 0]}} for i in range(count)},
        "states": {},
        "backbone": {"fingerprint": one, "drawn": [{"init": "ones", "seed": 0, "scale": 1.0, "names": names}]},
        "tasks": {f"t{i}": {"states": {"start": {"fingerprint": one}}} for i in range(count)},
    }
    data = put_together({"bits": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, description, b"")
    began = time.perf_counter()
    ticket = supermask.load(data)
    assert len(ticket.tasks) == count and ticket.masks["w0"].all()
    assert time.perf_counter() - began < 4
    with pytest.raises(TicketError, match="describes 2,500 weights, more than 2,499"):
        supermask.load(data, max_weights=count - 1)


WRONG = {
    "a backbone and tasks go together": lambda d, o: d.pop("tasks"),
    "format: expected 2": lambda d, o: d.update(format=1),
    "task '0' has no set of masks": lambda d, o: d["sets"].pop("0"),
    "task '0': 'stem.weight' is not in the backbone": lambda d, o: d["backbone"]["drawn"][0]["names"].remove(
        "stem.weight"
    ),
    "task '1': unknown states, or others than those of the first task": lambda d, o: d["tasks"]["1"]["states"].pop(
        "start"
    ),
    "'head.bias' is in the backbone": lambda d, o: (
        d["backbone"]["stored"].update({"head.bias": "F32"})
        if "stored" in d["backbone"]
        else d["backbone"].update(stored={"head.bias": "F32"})
    ),
    "has masks and states of its tasks only": lambda d, o: d.update(states={"final": d["backbone"]}),
    "is no name of a task": lambda d, o: (
        d["tasks"].update({"a/b": d["tasks"]["0"]}) or d["sets"].update({"a/b": d["sets"]["0"]})
    ),
    "'tasks/0/final/norm.running_mean' is not there": lambda d, o: o.update(
        {"x": o.pop("tasks/0/final/norm.running_mean")}
    ),
}


@pytest.mark.parametrize("problem", WRONG)
def test_wrong_descriptions_of_tasks(problem):
    data = supermask.pack(tasks_ticket())
    with pytest.raises(TicketError, match=problem):
        supermask.unpack(rewrite(data, WRONG[problem]))


def test_a_task_whose_weights_are_not_those_that_were_saved_is_refused():
    data = rewrite(supermask.pack(tasks_ticket()), lambda d, o: d["backbone"]["drawn"][0].update(seed=9))
    ticket = supermask.load(data)
    with pytest.raises(TicketError, match="the final weights are not those that were saved"):
        ticket.task("1").state_dict()
    with pytest.raises(TicketError, match="weights are not those that were saved"):
        ticket.superpose(Residual())


# --- the tasks of a data set


@pytest.fixture(scope="module")
def digits():
    return read_samples("digits", None, 0)


def test_permuted_pixels_are_in_one_order_everywhere(digits):
    tasks = read_tasks("permuted:3", seed=4)
    orders = []
    for index in range(3):
        made = tasks.samples(digits, index)
        one = {round(float(v), 4): i for i, v in enumerate(torch.arange(64.0))}
        counted = (
            Tasks("permuted", 3, 4)
            .samples(
                type(digits)(
                    **{**vars(digits), "train_x": torch.arange(64.0).view(1, 1, 8, 8), "train_y": torch.zeros(1).long()}
                ),
                index,
            )
            .train_x.flatten()
        )
        order = [one[round(float(v), 4)] for v in counted]
        assert sorted(order) == list(range(64)) and order != list(range(64))
        for part in ("train", "validation", "test"):
            before, after = getattr(digits, f"{part}_x").flatten(1), getattr(made, f"{part}_x").flatten(1)
            for place in range(64):
                assert torch.equal(after[:, place], before[:, order[place]])
            assert torch.equal(getattr(made, f"{part}_y"), getattr(digits, f"{part}_y"))
        orders.append(tuple(order))
    assert len(set(orders)) == 3
    other = read_tasks("permuted:3", seed=5).samples(digits, 0).test_x
    assert not torch.equal(other, tasks.samples(digits, 0).test_x)
    assert torch.equal(read_tasks("permuted:9", seed=4).samples(digits, 2).test_x, tasks.samples(digits, 2).test_x)


def test_all_channels_of_a_pixel_stay_together(digits):
    colours = torch.stack([digits.test_x[:, 0], digits.test_x[:, 0] * 2 + 1], 1)
    both = type(digits)(**{**vars(digits), **{f"{p}_x": colours for p in ("train", "validation", "test")}, "mean": (0.1, 0.2), "std": (1.0, 2.0)})  # fmt: skip
    for text in ("permuted:2", "rotated:3"):
        made = read_tasks(text).samples(both, 1).test_x
        inside = made[:, 0] != -0.1 if text == "rotated:3" else torch.ones_like(made[:, 0], dtype=torch.bool)
        assert torch.equal((made[:, 0] * 2 + 1)[inside], made[:, 1][inside]), text
    outside = made[:, 0][~inside], made[:, 1][~inside]
    assert (
        len(outside[0])
        and torch.allclose(outside[0], torch.tensor(-0.1))
        and torch.allclose(outside[1], torch.tensor(-0.1))
    )


def test_images_are_turned_by_equal_angles(digits):
    tasks = read_tasks("rotated:8")
    x = digits.test_x[:20]
    for index in range(8):
        made = tasks.samples(digits, index).test_x[:20]
        if index % 2 == 0:
            assert torch.equal(made, torch.rot90(x, index // 2, (2, 3))), "counterclockwise, exactly"
            continue
        angle, black = math.radians(45.0 * index), -digits.mean[0] / digits.std[0]
        for row in range(8):
            for column in range(8):
                up, right = 3.5 - row, column - 3.5
                # Turned back by the angle: where this place was.
                was_right = math.cos(angle) * right + math.sin(angle) * up
                was_up = math.cos(angle) * up - math.sin(angle) * right
                i, j = round(3.5 - was_up), round(3.5 + was_right)
                expected = x[:, 0, i, j] if 0 <= i < 8 and 0 <= j < 8 else torch.full((20,), black)
                assert torch.allclose(made[:, 0, row, column], expected), (index, row, column)


def test_classes_are_split_and_numbered_from_0(digits):
    tasks = read_tasks("split:5")
    for index in range(5):
        made = tasks.samples(digits, index)
        assert made.classes == tasks.classes(digits) == 2
        for part in ("train", "validation", "test"):
            x, y = getattr(digits, f"{part}_x"), getattr(digits, f"{part}_y").tolist()
            rows = [i for i, label in enumerate(y) if label in (2 * index, 2 * index + 1)]
            assert torch.equal(getattr(made, f"{part}_x"), x[rows])
            assert getattr(made, f"{part}_y").tolist() == [y[i] - 2 * index for i in rows]


BAD = {
    "permuted:1": "a superposition is of two tasks at least, and of one there is nothing to infer",
    "permuted": "expected permuted:N, rotated:N or split:N",
    "turned:3": "expected permuted:N, rotated:N or split:N",
    "permuted:10001": "at most 10,000",
    "split:3": "the 10 classes of digits do not make 3 equal groups",
    "split:10": "do not make 10 equal groups",
}


@pytest.mark.parametrize("text", BAD)
def test_tasks_that_cannot_be_are_refused_with_the_reason(text, tmp_path):
    with pytest.raises(RequestError, match=BAD[text]):
        search("supsup", runs=tmp_path, tasks=text, **QUICK)
    assert not list(tmp_path.iterdir())


def test_flags_that_do_not_go_together_are_refused_at_once():
    with pytest.raises(RequestError) as caught:
        make_config(
            supsup.Config,
            {
                "tasks": "split:1",
                "rule": "threshold",
                "density": 0.3,
                "allocation": "er",
                "loss": "mse",
                "task_seed": 3,
            },
            {"tasks", "rule", "density", "allocation", "loss", "task_seed"},
        )
    assert len(caught.value.problems) == 4
    with pytest.raises(RequestError, match="--task-seed goes with --tasks permuted:N, not split:2"):
        make_config(supsup.Config, {"tasks": "split:2", "task_seed": 3}, {"task_seed"})
    numbers = np.random.default_rng(0).normal(size=(60, 5)).astype("float32")
    with pytest.raises(RequestError, match="turns images"):
        search("supsup", data=(numbers, numbers[:, :2].argmax(1)), tasks="rotated:2", **QUICK)
    with pytest.raises(RequestError, match="--crop and --flip"):
        search("supsup", tasks="permuted:2", crop=1, **QUICK)


def test_a_ticket_that_names_a_strange_task_is_refused(digits):
    assert through_task({}, digits) is digits
    good = {"kind": "permuted", "of": 2, "number": 1, "seed": 0}
    assert torch.equal(through_task({"task": good}, digits).test_x, read_tasks("permuted:2").samples(digits, 1).test_x)
    for strange in (3, [], {}, {**good, "kind": "os.system"}, {**good, "number": 2}, {**good, "of": 10**9}, {**good, "seed": -1}, {**good, "of": True}, {**good, "number": 0.5}):  # fmt: skip
        with pytest.raises(RequestError, match="names a task that is not known here"):
            through_task({"task": strange}, digits)


# --- the rules of learned masks


def test_the_threshold_keeps_scores_from_0_on_and_passes_the_gradient_straight():
    model, x = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(4, 7)
    supermask.learn(model, program="threshold", seed=1)
    learned = {name: each["scores"] for name, each in supermask.learned_of(model).items()}
    with torch.no_grad():
        learned["0.weight"][0, :3] = torch.tensor([0.0, -0.0, -1e-30])
    masks = supermask.masks_of(model)
    for name, scores in learned.items():
        assert torch.equal(masks[name], torch.from_numpy(scores.detach().numpy() >= 0))
    assert masks["0.weight"][0, :3].tolist() == [True, True, False]
    plain = [nn.Parameter(model.get_parameter(n).detach() * masks[n]) for n in learned]
    torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(x, plain[0])), plain[1]).square().sum().backward()
    model(x).square().sum().backward()
    for (name, scores), weight in zip(learned.items(), plain, strict=True):
        assert torch.allclose(scores.grad, weight.grad * model.get_parameter(name).detach(), atol=1e-6), name


@pytest.mark.parametrize("kind", ["er", "erk"])
def test_densities_by_inputs_and_outputs(kind):
    model = Residual()
    targets = supermask.find_targets(model)
    scores = {name: target.parameter for name, target in targets.items()}
    supermask.learn(model, 0.3, allocation=kind)
    expected = allocation.ALLOCATIONS[kind](scores, 0.3, targets)
    masks = supermask.masks_of(model)
    assert masks.kept_per_tensor == expected
    assert len({round(row.density, 3) for row in masks.report()}) > 1
    for name, each in supermask.learned_of(model).items():
        keys = each["scores"].detach().abs()
        assert keys[masks[name]].min() >= keys[~masks[name]].max()
    supermask.check(model)
    supermask.change_density(model, 0.2)
    assert supermask.masks_of(model).kept_per_tensor == allocation.ALLOCATIONS[kind](scores, 0.2, targets)
    before = supermask.masks_of(model)
    with pytest.raises(ValueError, match="density 0.001 keeps none of the weights of"):
        supermask.change_density(model, 0.001)
    assert supermask.masks_of(model) == before
    with pytest.raises(ValueError, match="keeps none of the weights of"):
        supermask.learn(Residual(), 0.001, allocation=kind)


# --- the method


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("supsup")
    return search("supsup", runs=folder, tasks="permuted:3", **{**QUICK, "epochs": 2, "model_args": ("classes=30",), "decisions": 10})  # fmt: skip


def test_the_run_reports_each_task_and_their_mean(run):
    summary, ticket = run.summary, run.ticket
    assert [row["task"] for row in summary["tasks"]] == ["0", "1", "2"]
    assert summary["test_accuracy"] == pytest.approx(sum(row["test_accuracy"] for row in summary["tasks"]) / 3)
    assert summary["kept"] == summary["tasks"][0]["kept"] == ticket.kept
    seen = {(row["images"], row["by"]) for row in summary["inference"]}
    assert seen == {(images, by) for images in (1, 16) for by in ("entropy", "superfluous")}
    assert all(row["decisions"] == 30 for row in summary["inference"])
    net = ticket.superpose()
    samples = {name: read_tasks("permuted:3").samples(run.data, i).test_x for i, name in enumerate(ticket.tasks)}
    order = torch.from_numpy(supermask.masks.random_numbers.permutation(len(samples["0"]), 0, "decisions"))
    right = sum(net.infer(x[order][16 * k : 16 * k + 16]) == [name] for name, x in samples.items() for k in range(10))
    assert {row["right"] for row in summary["inference"] if row["images"] == 16 and row["by"] == "entropy"} == {
        right / 0.3
    }
    assert summary["cost"]["steps"] == 3 * 20
    assert summary["cost"]["dense_trainings"] == 3
    assert [row["task"] for row in summary["tasks"] if "min_validation_loss" in row] == ["0", "1", "2"]
    masks = [ticket.sets[name] for name in ticket.tasks]
    assert masks[0].overlap(masks[1]) == pytest.approx(1 / 3, abs=0.1), "scores begin anew for each task"


def test_the_file_has_the_backbone_once_and_a_bit_for_each_weight_and_task(run):
    size = (run.path / "ticket.safetensors").stat().st_size
    ticket = run.ticket
    assert not ticket.backbone.stored
    entropies = [_entropy(ticket.sets[name]) for name in ticket.tasks]
    assert size <= sum(1.05 * each + 1000 for each in entropies) + 2500  # and what the run says of itself
    two = supermask.join_tasks({name: ticket.task(name) for name in ticket.tasks[:2]})
    more = size - len(supermask.pack(two))
    assert more <= 1.05 * entropies[2] + 1000


def _entropy(masks: Masks) -> float:
    total = 0.0
    for row in masks.report():
        total -= row.size / 8 * sum(p * math.log2(p) for p in (row.density, 1 - row.density) if p)
    return total


def test_each_task_gives_the_outputs_of_its_own_ticket(run):
    net, samples = run.ticket.superpose(), read_tasks("permuted:3")
    for index, name in enumerate(run.ticket.tasks):
        own = supermask.load(supermask.pack(run.ticket.task(name)))
        x = samples.samples(run.data, index).test_x
        expected = own.model()(x)
        assert torch.equal(net.switch(name)(x), expected)
        assert torch.equal(run.ticket.model(task=name)(x), expected)
        right = float((expected.argmax(1) == run.data.test_y).float().mean() * 100)
        assert right == pytest.approx(own.meta["accuracy"]["final"]["test"])
        assert own.meta["task"] == {"kind": "permuted", "of": 3, "number": index, "seed": 0}
        assert evaluate_ticket(own, "digits")["test_accuracy"] == own.meta["accuracy"]["final"]["test"]


FLAGS = {"tasks": "permuted:3", **QUICK, "epochs": 2}


@pytest.mark.parametrize("stops", [(5, 27, 50, 60), (20, 40)], ids=str)
def test_a_run_that_was_stopped_anywhere_has_the_same_bytes(stops, tmp_path, monkeypatch, whole):
    """In the middle of each task and before tasks are inferred; after a task's last step and before the next."""
    count, advance = 0, Progress.advance_to

    def advance_to(self: Progress, step: int) -> None:
        nonlocal count
        count += 1
        if count in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, step)

    monkeypatch.setattr(Progress, "advance_to", advance_to)
    folder: Path | None = None
    for _ in stops:
        with pytest.raises(Interrupted) as stop:
            resume(folder, progress=False) if folder else search("supsup", runs=tmp_path, **FLAGS)
        folder = Path(stop.value.path)
    again = resume(folder, progress=False)
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert again.summary["inference"] == whole.summary["inference"]
    assert [row["test_accuracy"] for row in again.summary["tasks"]] == [row["test_accuracy"] for row in whole.summary["tasks"]]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return search("supsup", runs=tmp_path_factory.mktemp("whole"), **FLAGS)


def test_a_trained_backbone_is_kept_and_stored_once(tmp_path):
    dense = search("dense", runs=tmp_path, epochs=2, threads=1, progress=False, model_args=("width=0.2",))
    flags = {**QUICK, "tasks": "rotated:2", "weights": str(dense.path), "density": 0.3}
    run = search("supsup", runs=tmp_path, **flags)
    trained = dense.ticket.state_dict()
    ticket = run.ticket
    assert set(ticket.masks) <= set(ticket.backbone.stored)
    shared = ticket.backbone.tensors({})
    for name in ticket.masks:
        assert torch.equal(shared[name], trained[name])
        for task in ticket.tasks:
            own = ticket.task(task)
            assert torch.equal(own.state_dict()[name], torch.where(own.masks[name], trained[name], 0.0))
            assert torch.equal(own.state_dict("start")[name], own.state_dict()[name])
    weights = 4 * ticket.masks.size
    size = (run.path / "ticket.safetensors").stat().st_size
    assert weights < size < weights + sum(1.05 * _entropy(ticket.sets[t]) + 1000 for t in ticket.tasks) + 4000
    half = search("supsup", runs=tmp_path / "half", **flags, dtype="bf16")
    assert size - (half.path / "ticket.safetensors").stat().st_size > 0.45 * weights


@pytest.mark.parametrize("flags", [{"tasks": "split:2", "rule": "threshold"}, {"tasks": "rotated:2", "allocation": "er"}, {"tasks": "permuted:2", "precision": "fp64"}], ids=str)  # fmt: skip
def test_other_tasks_and_rules(flags, tmp_path):
    run = search("supsup", runs=tmp_path, **QUICK, **flags)
    ticket = run.ticket
    assert evaluate_ticket(ticket, "digits")["test_accuracy"] == run.summary["test_accuracy"]
    densities = [ticket.sets[name].density for name in ticket.tasks]
    if "rule" in flags:
        assert densities[0] != densities[1] and all(0.4 < density < 0.6 for density in densities)
        assert run.summary["density"] == pytest.approx(sum(densities) / 2)
        sizes = [read_tasks("split:2").samples(run.data, index).train_size for index in range(2)]
        assert run.summary["cost"]["steps"] == sum(size // 128 for size in sizes)
        assert sum(sizes) == run.data.train_size
    else:
        assert densities == [0.5, 0.5] or densities == pytest.approx([0.5, 0.5], abs=1e-3)
    if "precision" in flags:
        assert ticket.backbone.stored["fc1.weight"].dtype == torch.float64


@pytest.mark.slow  # seconds
def test_a_network_with_batch_norm_has_statistics_for_each_task(tmp_path):
    run = search("supsup", runs=tmp_path, tasks="permuted:2", model="resnet20", epochs=1, train_size=128, batch_size=64, threads=1, progress=False, model_args=("width=0.25",), decisions=2)  # fmt: skip
    ticket, name = run.ticket, "norm.running_mean"
    name = next(key for key in ticket.parts["0"].states["final"].stored if key.endswith("running_mean"))
    one, two = (ticket.task(task).state_dict() for task in ticket.tasks)
    assert not torch.equal(one[name], two[name])
    assert name not in ticket.backbone.names
    net = ticket.superpose()
    for task in ticket.tasks:
        x = read_tasks("permuted:2").samples(run.data, int(task)).test_x[:16]
        assert torch.equal(net.switch(task)(x), ticket.model(task=task)(x))
    assert all("right" in row for row in run.summary["inference"])


def test_one_task_is_trained_and_controls_are_means_over_tasks(run, tmp_path):
    with pytest.raises(RequestError, match="of 3 tasks: choose one by --task, as --task 0"):
        train(run, runs=tmp_path, epochs=1, progress=False)
    trained = train(run, runs=tmp_path, task="2", epochs=3, optimizer="adam", lr=1e-3, progress=False)
    assert trained.ticket.masks == run.ticket.task("2").masks
    assert trained.ticket.meta["task"] == run.ticket.task("2").meta["task"]
    assert trained.summary["test_accuracy"] == evaluate_ticket(trained.ticket, "digits")["test_accuracy"]
    # It was trained on the pixels in the order of its task: in their own it knows nothing.
    plain = {key: value for key, value in trained.ticket.meta.items() if key != "task"}
    blind = evaluate_ticket(Ticket(trained.ticket.masks, trained.ticket.states, plain), "digits")["test_accuracy"]
    assert blind < 40 < trained.summary["test_accuracy"]
    (row,) = controls(run, kinds=["shuffle"], progress=False)
    each = []
    for name in run.ticket.tasks:
        own = run.ticket.task(name)
        masks = own.masks.shuffled(1_000_003)
        draws = dict(own.states["final"].drawn)
        moved = Ticket(
            masks, {"final": make_state({n: d.tensor(n) for n, d in draws.items()}, masks, draws)}, dict(own.meta)
        )
        each.append(evaluate_ticket(moved, "digits")["test_accuracy"])
    assert row["test_accuracy"] == pytest.approx(sum(each) / 3)
    assert row["kept"] == run.summary["kept"]
    with pytest.raises(RequestError, match="ticket train .* --task 0` trains one of them"):
        controls(run, survivors=True, progress=False)


def test_commands_take_one_task_or_say_that_they_need_one(run, ticket, tmp_path):
    path = str(run.path)
    shown = json.loads(ticket("inspect", path, "--json").out)
    assert [row["task"] for row in shown["tasks"]] == ["0", "1", "2"]
    assert shown["density"] == 0.5 and shown["mask_bytes"] == sum(row["mask_bytes"] for row in shown["tasks"])
    one = json.loads(ticket("inspect", path, "--task", "1", "--json").out)
    assert {row["name"] for row in one["layers"]} == set(run.ticket.masks) and "tasks" not in one
    assert "bytes of its masks" in ticket("inspect", path).out
    every = json.loads(ticket("evaluate", path, "--json").out)
    assert every["test_accuracy"] == run.summary["test_accuracy"] and list(every["tasks"]) == ["0", "1", "2"]
    single = json.loads(ticket("evaluate", path, "--task", "1", "--json").out)
    assert single["test_accuracy"] == every["tasks"]["1"]["test_accuracy"]
    assert ticket("evaluate", path).out.count("digits") == 4
    for words in (["export", path, "--to", "npz", "--output", "a.npz"], ["bench", path], ["train", path]):
        answer = ticket(*words)
        assert answer.code == 2 and "of 3 tasks: choose one by --task, as --task 0" in answer.err, words
    assert "no task '7'" in ticket("evaluate", path, "--task", "7").err
    assert ticket("export", path, "--task", "1", "--to", "npz", "--output", "a.npz").code == 0
    with np.load("a.npz") as arrays:
        own = run.ticket.task("1").state_dict()
        assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in own.items())
    refused = ticket("search", "--method", "dense", "--weights", path)
    assert refused.code == 2 and "the ticket is of 3 tasks; supermask.save(ticket.task('0'), FILE)" in refused.err
    compared = json.loads(ticket("compare", path, "--masks", "--json").out)
    assert compared["groups"][0]["mean"] == run.summary["test_accuracy"]
    assert len(compared["masks"][0]["labels"]) == 3


@pytest.mark.slow
def test_the_speed_of_one_task_is_measured_with_its_own_pixels(run, ticket):
    words = f"bench {run.path} --task 1 --engines eager --batch-sizes 8 --seconds 0.02 --json".split()
    rows = json.loads(ticket(*words).out)["rows"]
    expected = evaluate_ticket(run.ticket.task("1"), "digits")["test_accuracy"]
    assert {row["test_metric"] for row in rows if row["variant"] == "masked"} == {expected}


def test_each_task_has_an_order_of_its_own(monkeypatch, tmp_path):
    orders: dict[str, list[int]] = {}
    draw = loop.permutation

    def record(count: int, seed: int, name: str) -> Any:
        orders[name] = draw(count, seed, name).tolist()
        return draw(count, seed, name)

    monkeypatch.setattr(loop, "permutation", record)
    search("supsup", runs=tmp_path, tasks="permuted:2", **QUICK)
    assert list(orders) == ["order/0/0", "order/1/0"] and orders["order/0/0"] != orders["order/1/0"]
