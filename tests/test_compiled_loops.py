"""Held masks in loops that torch.compile has compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from held import assert_held, assert_revival_is_noticed, batches, held_and_reference, loss_of, step, zero
from networks import perceptron
from torch import nn

import supermask
from ticket_search.training.precision import compile_whole


@pytest.fixture(autouse=True)
def _from_the_start():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_close(model: nn.Module, reference: nn.Module) -> None:
    torch.testing.assert_close(list(model.parameters()), list(reference.parameters()), rtol=1e-4, atol=1e-5)


def write_by_hand(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model(backend):
    model, reference, masks = held_and_reference()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ours, theirs = (torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in (model, reference))
    for batch in batches(3):
        step(compiled, ours, batch)
        assert_held(model, masks)
        supermask.check(compiled)
        step(reference, theirs, batch)
        zero(reference, masks)
        assert_close(model, reference)
        write_by_hand(model)
        write_by_hand(reference)
        zero(reference, masks)
        torch.testing.assert_close(compiled(batch[0]), reference(batch[0]), rtol=1e-4, atol=1e-5)
        assert_held(model, masks)
    assert_revival_is_noticed(model, masks)


@pytest.mark.slow
def test_a_compiled_step_with_an_optimizer():
    """Not one graph: PyTorch breaks it at `backward` and in `Optimizer.step`, masks or not."""
    model, reference, masks = held_and_reference()
    ours, theirs = (torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5) for net in (model, reference))

    @torch.compile(backend="aot_eager")
    def whole_step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        ours.step()
        ours.zero_grad()

    for batch in batches(3):
        whole_step(*batch)
        assert_held(model, masks)
        step(reference, theirs, batch)
        zero(reference, masks)
        assert_close(model, reference)


def test_a_step_written_by_hand_in_one_graph(monkeypatch):
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this PyTorch cannot trace torch.autograd.grad")
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    model, reference, masks = held_and_reference()

    def hand_written(net, batch):
        gradients = torch.autograd.grad(loss_of(net, batch), list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient

    compiled = torch.compile(hand_written, fullgraph=True, backend="aot_eager")
    for batch in batches(3):
        compiled(model, batch)
        hand_written(reference, batch)
        zero(reference, masks)
        torch.testing.assert_close(model(batch[0]), reference(batch[0]))
        assert_held(model, masks)


def test_masks_put_on_after_the_model_was_compiled():
    """Round after round, as in iterative pruning: what was compiled without masks is not run, nor compiled again."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, batch = perceptron(), batches(1)[0]
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(batch[0])
    for seed in range(4):
        masks = supermask.prune(model, 0.4, "random", seed=seed)
        supermask.hold(model, masks)
        for _ in range(2):
            write_by_hand(model)
            expected = supermask.bake(model)(batch[0])
            torch.testing.assert_close(compiled(batch[0]), expected)
            assert_held(model, masks)
        supermask.detach(model)
        write_by_hand(model)
        torch.testing.assert_close(compiled(batch[0]), model(batch[0]))
    assert len(graphs) == 2


@pytest.mark.slow
def test_masks_learned_over_frozen_weights_that_were_compiled_before():
    model, batch = perceptron().requires_grad_(False), batches(1)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(batch[0])
    supermask.learn(model, 0.5, weights="keep")
    torch.testing.assert_close(compiled(batch[0]), supermask.bake(model)(batch[0]))


def test_deep_copies_of_a_compiled_model_hold_each_on_its_own():
    model, _, masks = held_and_reference()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(batches(1)[0][0])
    before, other = copy.deepcopy(model.state_dict()), copy.deepcopy(compiled)
    for net in (other, compiled):
        assert all(torch.equal(tensor, before[name]) for name, tensor in net._orig_mod.state_dict().items())
        optimizer = torch.optim.AdamW(net.parameters(), 0.1)
        for batch in batches(2):
            step(net, optimizer, batch)
            assert_held(net._orig_mod, masks)
            write_by_hand(net)
            net(batch[0])
            assert_held(net._orig_mod, masks)


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dense", "hold")), "learn"])
def test_many_models_of_a_kind_are_compiled_a_few_times_at_most(kind, monkeypatch):
    """Of one piece of code PyTorch keeps eight versions, then runs it uncompiled: runs of one process must share."""
    graphs, real = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=backend))
    batch = batches(1)[0]
    for seed in range(12):
        model = perceptron()
        if kind == "hold":
            supermask.hold(model, supermask.prune(model, 0.5, "random", seed=seed))
        elif kind == "learn":
            supermask.learn(model, 0.5, seed=seed)
        torch.testing.assert_close(compile_whole(model)(batch[0]), model(batch[0]))
    assert 1 <= len(graphs) <= 3
