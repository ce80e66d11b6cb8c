"""Learned masks under gradient checkpointing: the same gradients as without, whatever part runs again."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from products import combine, thin
from rules import RULES, learn
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

import supermask
from supermask.live import program_of, recomputation

run_again = partial(checkpoint, use_reentrant=False)


def run_to_the_end(function, x):
    """The same, but what is run again does not end where all has been made that is needed."""
    with set_checkpoint_early_stop(False):
        return run_again(function, x)


PASSES = {
    "none": lambda net, x: net.c(net.b(net.a(x))),
    "one module": lambda net, x: net.c(net.b(run_again(net.a, x))),
    "the last": lambda net, x: run_again(net.c, net.b(net.a(x))),
    "several": lambda net, x: run_again(net.c, run_again(net.b, run_again(net.a, x))),
    "one of several modules": lambda net, x: net.c(run_again(lambda x: net.b(net.a(x)), x)),
    "work around the module": lambda net, x: net.c(run_again(lambda x: (net.b(net.a(x) * 2)).tanh() * x.sum(), x)),
    "nested": lambda net, x: run_again(lambda x: net.c(run_again(net.b, run_again(net.a, x))), x),
    "nested in a module": lambda net, x: net.c(run_again(net.inner, x)),
    "all of it": lambda net, x: run_again(lambda x: net.c(net.b(net.a(x))), x),
    "sequential": lambda net, x: checkpoint_sequential(nn.Sequential(net.a, net.b, net.c), 2, x, use_reentrant=False),
    "no early stop": lambda net, x: net.c(run_to_the_end(lambda x: net.b(net.a(x)), x)),
    "twice": lambda net, x: net.c(run_again(net.b, run_again(net.b, net.a(x)))),
    "reentrant": lambda net, x: net.c(checkpoint(net.b, net.a(x), use_reentrant=True)),
    "reentrant several": lambda net, x: checkpoint(
        net.c, checkpoint(net.b, net.a(x), use_reentrant=True), use_reentrant=True
    ),
}
# The same function where nothing runs again.
PLAIN = {
    "work around the module": lambda net, x: net.c((net.b(net.a(x) * 2)).tanh() * x.sum()),
    "twice": lambda net, x: net.c(net.b(net.b(net.a(x)))),
}


class Inner(nn.Module):
    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b
        self.checkpointed = True

    def forward(self, x):
        return self.b(run_again(self.a, x) if self.checkpointed else self.a(x))


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8)
        self.c = nn.Linear(8, 4)
        self.inner = Inner(self.a, self.b)
        self.way = PASSES[way]

    def forward(self, x):
        return self.way(self, x)


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pair(rule: str, way: str):
    """A network that runs parts again, and its twin that does not."""
    net = Net(way)
    learn(net, rule)
    twin = copy.deepcopy(net)
    twin.way = PLAIN.get(way, PASSES["none"])
    twin.inner.checkpointed = False
    return net, twin


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found


def assert_same_gradients(net, twin) -> None:
    ours, theirs = gradients(net), gradients(twin)
    # Of the tasks only the one in use learns.
    learning = [n for n, p in twin.named_parameters() if p.requires_grad and not n.endswith(("scores1", "scores2"))]
    assert list(ours) == list(theirs) == learning
    torch.testing.assert_close(ours, theirs)


# Each rule in one of the ways, and each way with one rule at least.
@combine(rule=RULES, way=PASSES)
def test_gradients_are_those_of_a_pass_that_keeps_everything(rule, way):
    net, twin = pair(rule, way)
    ours, theirs = (torch.optim.SGD([p for p in n.parameters() if p.requires_grad], 0.1) for n in (net, twin))
    for _ in range(3):
        x = torch.randn(5, 8)
        outputs = [n(x) for n in (net, twin)]
        torch.testing.assert_close(*outputs)
        for out in outputs:
            out.square().sum().backward()
        ours.step(), theirs.step()
        assert_same_gradients(net, twin)
    torch.testing.assert_close(dict(net.state_dict()), dict(twin.state_dict()))
    supermask.check(net)
    assert net.b.weight is program_of(net).parameter("b.weight")


@pytest.mark.parametrize("rule", thin(RULES, 2))
def test_a_part_on_its_own_runs_again(rule):
    """The checkpoint is around the outermost pass, which the model does not know."""
    net, twin = pair(rule, "none")
    x = torch.randn(5, 8)
    for _ in range(2):
        run_again(net.c, run_again(net.b, net.a(x))).square().sum().backward()
        twin.c(twin.b(twin.a(x))).square().sum().backward()
        assert_same_gradients(net, twin)
        run_again(net, x).square().sum().backward()
        twin(x).square().sum().backward()
        assert_same_gradients(net, twin)


@combine(
    ("bernoulli",),
    rule=["edge-popup", "bernoulli", "patterns", "gates", "clamped"],
    order=["both at once", "the first first", "the last first", "twice"],
)
def test_several_passes_before_a_backward_pass(rule, order):
    """Each has drawn its own noise, and its parts must see that again."""
    net, twin = pair(rule, "work around the module")
    for n in (net, twin):
        torch.manual_seed(1)
        first, second, third = (n(torch.randn(5, 8)).square().sum() for _ in range(3))
        if order == "both at once":
            (first + 2 * second + 3 * third).backward()
        else:
            losses = [first, second, third]
            for loss in reversed(losses) if order == "the last first" else losses:
                loss.backward(retain_graph=order == "twice")
            if order == "twice":
                first.backward()
    assert_same_gradients(net, twin)


def test_without_knowing_which_pass_noise_would_be_that_of_another():
    """What the test before this one would see."""
    net, twin = pair("bernoulli", "one module")
    program_of(net)._reach = lambda step, gradient: None
    losses = []
    for n in (net, twin):
        torch.manual_seed(1)
        losses.append([n(torch.randn(5, 8)).square().sum() for _ in range(2)])
    for loss in losses[0], losses[1]:
        loss[0].backward()
    assert not torch.allclose(net.a[0].weight_logits.grad, twin.a[0].weight_logits.grad)


@pytest.mark.parametrize("rule", thin(RULES, 2, 1))
def test_in_autocast(rule):
    net, twin = pair(rule, "several")
    x = torch.randn(5, 8)
    for n in (net, twin):
        with torch.autocast("cpu", torch.bfloat16):
            out = n(x)
        out.float().square().sum().backward()
    assert_same_gradients(net, twin)


def test_an_optimizer_in_the_backward_pass():
    net, twin = pair("edge-popup", "several")
    for n in (net, twin):
        for parameter in (p for p in n.parameters() if p.requires_grad):
            optimizer = torch.optim.SGD([parameter], 0.5)
            parameter.register_post_accumulate_grad_hook(
                lambda p, optimizer=optimizer: None if optimizer.step() else optimizer.zero_grad()
            )
    for _ in range(3):
        x = torch.randn(5, 8)
        for n in (net, twin):
            n(x).square().sum().backward()
        torch.testing.assert_close(dict(net.state_dict()), dict(twin.state_dict()))


tells_its_hooks = pytest.mark.skipif(recomputation._top_hooks is None, reason="a PyTorch that does not tell its hooks")


@tells_its_hooks
@pytest.mark.parametrize("rule", ["edge-popup", "bernoulli"])
def test_the_effective_weights_are_made_once_for_all_parts(rule):
    net, _ = pair(rule, "several")
    program, calls = program_of(net), []
    effective = program.rule.effective
    program.rule.effective = lambda layers: calls.append(1) or effective(layers)
    for step in range(3):
        net(torch.randn(5, 8)).square().sum().backward()
        assert len(calls) == 2 * (step + 1)


@pytest.mark.parametrize("way", [way for way in PASSES if way != "none"])
def test_a_pytorch_that_does_not_tell_its_hooks(way, monkeypatch):
    monkeypatch.setattr(recomputation, "_top_hooks", None)
    for rule in ("edge-popup", "bernoulli", "gates"):
        net, twin = pair(rule, way)
        x = torch.randn(5, 8)
        for n in (net, twin):
            n(x).square().sum().backward()
        assert_same_gradients(net, twin)


def test_saved_tensors_are_still_watched_under_hooks_of_others():
    net, _ = pair("edge-popup", "none")
    with torch.autograd.graph.save_on_cpu():
        out = net(torch.randn(5, 8))
    with torch.no_grad():
        net.c.weight_scores.add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place since the forward pass"):
        out.sum().backward()


def test_nothing_is_kept_alive_by_a_pass_that_is_over(young_objects):
    """An operation that saves its own output must not keep itself alive, hooks or not."""
    import gc
    import weakref

    net, _ = pair("sigmoid gate", "none")

    class Token:
        pass

    def run() -> weakref.ref[Token]:
        token = Token()

        def mark(module, inputs, out):
            nodes = [module.weight.grad_fn]
            while nodes[-1].name() != "SigmoidBackward0":  # it saves its output
                nodes.append(next(node for node, _ in reversed(nodes[-1].next_functions) if node is not None))
            nodes[-1].metadata["token"] = token

        with torch.autograd.graph.save_on_cpu():
            handle = net.c.register_forward_hook(mark)
            net(torch.randn(5, 8))
        handle.remove()
        return weakref.ref(token)

    reference = run()
    gc.collect()
    assert reference() is None


@tells_its_hooks
def test_what_a_backward_pass_has_filled_in_is_not_copied():
    net, _ = pair("edge-popup", "several")
    net(torch.randn(5, 8)).sum().backward()
    assert program_of(net).again is not None
    assert program_of(copy.deepcopy(net)).again is None
    net(torch.randn(5, 8))
    assert program_of(net).again is None


@pytest.mark.slow  # the trainer of test_adapters.py does so in every run
def test_networks_of_others_that_checkpoint_themselves():
    import transformers

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    for options in ({"use_reentrant": False}, {"use_reentrant": True}):
        for rule in ("edge-popup", "bernoulli"):
            net = transformers.BertForSequenceClassification(config)
            learn(net, rule)
            twin = copy.deepcopy(net)
            net.gradient_checkpointing_enable(options)
            tokens, labels = torch.randint(0, 30, (2, 5)), torch.tensor([0, 1])
            for n in (net, twin):
                n.train()
                n(input_ids=tokens, labels=labels).loss.backward()
            assert_same_gradients(net, twin)
