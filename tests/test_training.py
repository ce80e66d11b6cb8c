from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ticket_search import search
from ticket_search.contract.errors import RunError
from ticket_search.contract.flags import make_config, steps_of
from ticket_search.data.dataset import split
from ticket_search.data.samples import whole_batches
from ticket_search.data.sources import read_arrays
from ticket_search.methods import find_method
from ticket_search.models.lenet import lenet_300_100
from ticket_search.training.evaluation import evaluate
from ticket_search.training.optimization import learning_rate, make_optimizer

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden"


def config(method: str = "dense", **flags):
    return make_config(find_method(method).Config, flags)


def test_schedules():
    constant = config(lr=0.5)
    assert [learning_rate(constant, s, 100, 10) for s in (0, 50, 99)] == [0.5, 0.5, 0.5]
    cosine = config(lr=0.5, schedule="cosine")
    assert learning_rate(cosine, 0, 100, 10) == 0.5
    assert learning_rate(cosine, 50, 100, 10) == pytest.approx(0.25)
    assert 0 < learning_rate(cosine, 99, 100, 10) < 1e-3
    steps = config(lr=1.0, schedule="step", milestones="3,5", drop=0.1)
    assert [learning_rate(steps, s, 100, 10) for s in (29, 30, 49, 50)] == [1.0, 0.1, 0.1, pytest.approx(0.01)]
    warm = config(lr=1.0, warmup="4it", schedule="cosine")
    assert [learning_rate(warm, s, 14, 10) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(warm, 9, 14, 10) == pytest.approx(0.5)


def test_durations():
    assert [steps_of(text, 30) for text in ("0", "500it", "2ep", "0ep")] == [0, 500, 60, 0]


def test_epochs_are_whole_batches_of_distinct_samples():
    assert [whole_batches(n, 60) for n in (55_000, 60, 59, 1)] == [916, 1, 1, 1]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_equal_those_of_pytorch(name):
    reference = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, weight_decay=0.01, nesterov=True, foreach=False),
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01, foreach=False),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01, foreach=False),
    }[name]
    nets = [nn.Linear(4, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0].bias.requires_grad_(False)
    nets[1].bias.requires_grad_(False)
    ours = make_optimizer(
        nets[0], config(optimizer=name, lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=name == "sgd")
    )
    theirs = reference([nets[1].weight])
    x = torch.randn(5, 4)
    for _ in range(4):
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


def test_evaluation_equals_the_mean_over_single_samples():
    data = split("digits", read_arrays("digits"), 0)
    model = lenet_300_100((1, 8, 8), 10)
    model.train()
    found = evaluate(model, data, "test")
    logits = torch.cat([model(data.test_x[i : i + 1]) for i in range(len(data.test_y))]).detach()
    losses = -torch.log_softmax(logits.double(), 1)[range(len(logits)), data.test_y]
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-6)
    assert found.value == pytest.approx(100 * (logits.argmax(1) == data.test_y).double().mean().item())
    assert model.training


def test_training_equals_a_loop_written_by_hand(quick):
    run = quick(
        "dense",
        epochs=2,
        train_size=None,
        batch_size=100,
        optimizer="sgd",
        lr=0.05,
        schedule="cosine",
        init="kaiming-normal",
    )
    import supermask
    from supermask.masks.random_numbers import permutation

    torch.set_num_threads(1)
    data = split("digits", read_arrays("digits"), 0)
    model = lenet_300_100((1, 8, 8), 10)
    supermask.initialize(model, "kaiming-normal", 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    total = 2 * 12
    for step in range(total):
        order = torch.from_numpy(permutation(len(data.train_y), 0, f"order/0/{step // 12}"))
        index = order[(step % 12) * 100 : (step % 12 + 1) * 100]
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / total))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train_x[index]), data.train_y[index]).backward()
        optimizer.step()
    for name, tensor in run.ticket.state_dict().items():
        torch.testing.assert_close(tensor, model.get_parameter(name).detach(), rtol=1e-4, atol=1e-6)
    assert run.summary["test_accuracy"] == evaluate(model, data, "test").value


@pytest.mark.parametrize("method", ["dense", "edge-popup"])
def test_loss_that_is_no_number_stops_with_advice(method, quick):
    with pytest.raises(RunError, match=r"the (training loss is NaN|weights of .* are NaN).*: lower --lr"):
        quick(method, optimizer="sgd", lr=1e38, weight_decay=1e4, epochs=3)


def test_moments_are_those_of_the_logged_curve(quick):
    run = quick("dense", epochs=40, optimizer="adam", lr=0.01, evaluate_every="10it", train_size=400)
    rows = [row for row in run.metrics if "loss/validation" in row]
    losses, accuracies = ([row[tag] for row in rows] for tag in ("loss/validation", "accuracy/validation"))
    early, best = run.summary["min_validation_loss"], run.summary["best_validation"]
    assert early["step"] == rows[int(np.argmin(losses))]["step"]
    assert early["val_loss"] == min(losses)
    assert best["step"] == rows[int(np.argmax(accuracies))]["step"]
    assert best["val_accuracy"] == max(accuracies)
    assert early["step"] < rows[-1]["step"], "a learning rate this high overfits, so that the choice matters"
    assert rows[-1]["accuracy/validation"] == run.summary["val_accuracy"]


def test_dropout_does_not_touch_the_callers_random_numbers(tmp_path):
    def with_dropout(input_shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(0.5), nn.Linear(20, classes))

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    runs = [search("dense", with_dropout, runs=tmp_path, progress=False, epochs=1, threads=1) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert runs[0].path != runs[1].path
    assert runs[0].ticket == runs[1].ticket


@pytest.mark.parametrize("method", ["dense", "imp", "edge-popup"])
def test_golden_curves(method, quick):
    """Loss over training as recorded; other processors round otherwise, so within a few percent."""
    flags = {} if method == "dense" else {"density": 0.5}
    run = quick(method, epochs=4, train_size=None, evaluate_every="7it", **flags)
    curve = [row["loss/train"] for row in run.metrics if "loss/train" in row]
    path = GOLDEN / f"{method}.json"
    recorded = json.loads(path.read_text())
    assert len(curve) == len(recorded)
    assert np.allclose(curve, recorded, rtol=0.05, atol=0.01), np.abs(np.array(curve) - recorded).max()
