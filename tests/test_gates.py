"""Gates over trained weights: their formulas, their gradients, the density they end with, and their method."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest
import torch
from products import combine
from torch import nn

import supermask
from supermask.live import program_of
from supermask.live.gates import GATES, Categorical, GumbelSigmoid, HardConcrete
from supermask.selection.top_k import count_kept
from ticket_search import Interrupted, RequestError, resume, search
from ticket_search.runs.progress import Progress

pytestmark = pytest.mark.quick
QUICK = {"epochs": 2, "threads": 1, "progress": False, "train_size": 320}
GATES_ASKED = {
    "hard-concrete": {"density": 0.3},
    "gumbel-sigmoid": {"density": 0.3, "allocation": "global"},
    "categorical": {"granularity": "2:4"},
}
each_gate = pytest.mark.parametrize("gate", GATES)


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def test_all_gates_are_tested():
    assert set(GATES_ASKED) == set(GATES)


# --- the formulas


def test_hard_concrete_at_fixed_noise_and_both_clamps():
    rule = HardConcrete()
    logits = np.array([-4.0, -1.0, 0.0, 0.3, 0.9, 5.0])
    noise = np.array([0.5, 0.4, 0.5, 0.7, 0.6, 0.9])
    soft = 1 / (1 + np.exp(-(np.log(noise) - np.log(1 - noise) + logits) / (2 / 3)))
    expected = np.minimum(1, np.maximum(0, soft * 1.2 - 0.1))
    assert expected[0] == 0 and expected[-1] == 1 and ((expected[1:-1] > 0) & (expected[1:-1] < 1)).all()
    given = torch.from_numpy(logits).requires_grad_()
    found = rule.gate(given, torch.from_numpy(noise))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)
    found.sum().backward()
    inside = 1.2 * soft * (1 - soft) / (2 / 3)
    inside[[0, -1]] = 0  # a gate that is cut off learns from no sample
    np.testing.assert_allclose(given.grad.numpy(), inside, rtol=1e-12)


@pytest.mark.parametrize("rule", [HardConcrete(), GumbelSigmoid()])
def test_the_expected_density_is_the_share_of_open_gates(rule):
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64)
    shift = (2 / 3) * math.log(0.1 / 1.1) if isinstance(rule, HardConcrete) else 0.0
    by_hand = [1 / (1 + math.exp(-(float(logit) - shift))) for logit in logits]
    np.testing.assert_allclose(rule.expected(logits).numpy(), by_hand, rtol=1e-12)
    many = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000  # every quantile of the noise
    open_gates = (rule.gate(logits[:, None].expand(7, 20000), many.expand(7, 20000)) > 0).double().mean(1)
    torch.testing.assert_close(open_gates, rule.expected(logits), atol=1e-4, rtol=0)


def test_gumbel_sigmoid_is_hard_forward_and_soft_backward():
    logits = torch.tensor([-2.0, -0.2, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.7, 0.6, 0.2, 0.5], dtype=torch.float64)
    gate = GumbelSigmoid().gate(logits, u)
    soft = [
        1 / (1 + math.exp(-(math.log(n) - math.log(1 - n) + x) * 1.5))
        for x, n in zip(logits.tolist(), u.tolist(), strict=True)
    ]
    assert gate.tolist() == [float(value > 0.5) for value in soft]
    gate.sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), [1.5 * value * (1 - value) for value in soft], rtol=1e-12)


def test_categorical_shares_temperatures_and_scales():
    rule = Categorical(steps=10)
    logits, u = torch.randn(6, 5).double() / 100, torch.rand(6, 5).double()
    for step, temperature, scale in [(0, 4.0, 100.0), (5, 2.025, 300.0), (10, 0.05, 500.0), (99, 0.05, 500.0)]:
        keys = (scale * logits.numpy() - np.log(-np.log(u.numpy()))) / temperature
        keys = np.exp(keys - keys.max(0, keepdims=True))
        found = rule.shares(logits, u, torch.tensor(step))
        np.testing.assert_allclose(found.numpy(), keys / keys.sum(0, keepdims=True), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("granularity", ["2:4", "1:4", "2:3"])
def test_patterns_begin_from_the_magnitude_and_groups_are_exact(granularity):
    kept, group = map(int, granularity.split(":"))
    model = nn.Sequential(nn.Conv2d(12, 4, 3), nn.Flatten(), nn.Linear(36, 6))
    supermask.learn(model, granularity=granularity, program=Categorical(), weights="keep")
    prior = supermask.prune(supermask.bake(model), kept / group, granularity=granularity)
    masks = supermask.masks_of(model)
    assert (masks & prior).kept > 0.8 * masks.kept
    logits = supermask.learned_of(model)["2.weight"]["logits"]
    assert logits.shape == (math.comb(group, kept), 6 * 36 // group)
    with torch.no_grad():
        for tensors in supermask.learned_of(model).values():
            tensors["logits"].normal_()
    masks = supermask.masks_of(model)
    assert (masks["0.weight"].movedim(1, -1).reshape(-1, group).sum(1) == kept).all()
    assert (masks["2.weight"].reshape(-1, group).sum(1) == kept).all()
    supermask.check(model)


@pytest.mark.parametrize("allocation", ["layerwise", "global"])
@pytest.mark.parametrize("rule", [HardConcrete, GumbelSigmoid])
def test_gates_begin_from_the_magnitude_or_from_the_density(rule, allocation):
    model = perceptron()
    expected = supermask.prune(model, 0.3, allocation=allocation)
    supermask.learn(model, 0.3, program=rule(), weights="keep", allocation=allocation)
    assert supermask.masks_of(model) == expected
    other = perceptron()
    supermask.learn(other, 0.3, program=rule(begin="random"), weights="keep", allocation=allocation)
    for tensors in supermask.learned_of(other).values():
        assert torch.allclose(rule().expected(tensors["logits"]), torch.tensor(0.3), atol=0.02)


@pytest.mark.parametrize("frozen", [True, False])
@each_gate
def test_training_ends_at_the_density_whatever_the_gates_have_learned(gate, frozen):
    model, x = perceptron(), torch.randn(40, 12)
    asked = GATES_ASKED[gate]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    supermask.learn(model, program=GATES[gate](frozen=frozen), weights="keep", **asked)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
    supermask.check(model)
    masks = supermask.masks_of(model)
    assert masks.kept == count_kept(asked.get("density", 0.5), masks.size)
    same = all(torch.equal(before[name], model.get_parameter(name)) for name in before)
    assert same == frozen
    baked = supermask.bake(model)
    assert sum(int(baked.get_parameter(name).count_nonzero()) for name in masks) == masks.kept


def test_what_gates_cannot_be():
    for make, message in [
        (lambda: HardConcrete(begin="zeros"), "magnitude or random, got begin='zeros'"),
        (lambda: Categorical(0), "steps of at least 1 .*got 0"),
        (lambda: supermask.learn(perceptron(), 0.5, program=Categorical()), "N of every M weights: learn.model, gran"),
        (lambda: supermask.learn(nn.Linear(32, 2), granularity="8:16", program="categorical"), "12,870 patterns"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


# --- the method


@combine(gate=GATES, freeze=[False, True])
def test_every_gate_is_stopped_and_resumed(gate, freeze, tmp_path, monkeypatch):
    asked = {**QUICK, **GATES_ASKED[gate], "gate": gate, "freeze": freeze}
    whole = search("gates", runs=tmp_path / "whole", **asked)
    steps = []

    def advance_to(self, step):
        steps.append(step)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance_to", advance_to)
    with pytest.raises(Interrupted) as stop:
        search("gates", runs=tmp_path / "stopped", **asked)
    run = resume(stop.value.path, progress=False)
    assert (run.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert whole.ticket.masks.kept == count_kept(whole.config.density, whole.ticket.masks.size)
    if freeze:
        for name, mask in whole.ticket.masks.items():
            start = whole.ticket.state_dict("start")[name]
            assert torch.equal(whole.ticket.state_dict("final")[name], torch.where(mask, start, 0.0))


def test_the_penalty_steers_the_expected_density(tmp_path, monkeypatch):
    from ticket_search.training.learned_gates import Steering

    seen = []
    on_epoch = Steering.on_epoch
    monkeypatch.setattr(
        Steering, "on_epoch", lambda self, *args: (seen.append(self.excess.abs().max().item()), on_epoch(self, *args))
    )
    search("gates", runs=tmp_path, density=0.2, begin="random", **{**QUICK, "epochs": 10, "train_size": None})
    assert seen[-1] < 0.02


def test_gates_over_the_weights_of_a_run(tmp_path):
    dense = search("dense", runs=tmp_path, **QUICK)
    run = search("gates", runs=tmp_path, weights=str(dense.path), density=0.1, freeze=True, **QUICK)
    trained = dense.ticket.state_dict("final")
    for name, mask in run.ticket.masks.items():
        assert torch.equal(run.ticket.state_dict("final")[name], torch.where(mask, trained[name], 0.0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gate": "categorical"}, "--gate categorical chooses N of every M weights: give --granularity, as 2:4"),
        ({"gate": "categorical", "granularity": "2:4", "penalty": 3.0}, "--penalty goes with --gate hard-concrete"),
        ({"granularity": "filter"}, "--granularity filter: expected weight, or N:M"),
        ({"freeze": True, "lr": 0.1}, "--freeze leaves no weight to train: leave --lr out"),
        ({"density": 1e-4}, "--density 0.0001 keeps none of fc3.weight"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        search("gates", runs=tmp_path, **QUICK, **flags)
    assert list(tmp_path.iterdir()) == []


def test_the_rule_counts_its_passes():
    model = perceptron()
    supermask.learn(model, 0.5, program="hard-concrete", weights="keep")
    model(torch.randn(2, 12))
    assert int(program_of(model).layers.step) == 1
