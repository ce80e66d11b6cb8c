"""Held masks in every kind of training loop, beside loops that zero the dropped weights by hand."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from held import assert_equal, assert_held, assert_revival_is_noticed, batches, held_and_reference, loss_of, step, zero
from networks import Residual, perceptron
from products import thin
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import supermask

pytestmark = pytest.mark.quick

# Every optimizer of torch.optim but the one for sparse gradients; a new one is tested by being there.
OPTIMIZERS = {
    name: optimizer
    for name, optimizer in vars(torch.optim).items()
    if inspect.isclass(optimizer) and optimizer not in (torch.optim.Optimizer, torch.optim.SparseAdam)
}
SETTINGS = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "AdamW": [{"weight_decay": 0.5}, {"amsgrad": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "LBFGS": [{"max_iter": 3}, {"line_search_fn": "strong_wolfe"}],
}


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def optimizers():
    for name, optimizer in OPTIMIZERS.items():
        there = inspect.signature(optimizer).parameters
        for settings in SETTINGS.get(name, [{}]):
            yield name, settings
            yield from ((name, {**settings, kind: True}) for kind in ("foreach", "fused") if kind in there)


@pytest.mark.parametrize("optimizer", thin(optimizers(), 2), ids=str)
def test_every_optimizer_equals_a_loop_that_zeroes_by_hand(optimizer):
    name, settings = optimizer
    model = perceptron()
    reference, masks = copy.deepcopy(model), supermask.prune(model, 0.4)

    def make(net):
        # Muon is for matrices only.
        return OPTIMIZERS[name]([p for p in net.parameters() if name != "Muon" or p.dim() == 2], **settings)

    ours, theirs = make(model), make(reference)
    for batch in batches(2):  # momentum that began before the masks
        step(model, ours, batch)
        step(reference, theirs, batch)
    supermask.hold(model, masks)
    zero(reference, masks)
    for batch in batches():
        step(model, ours, batch)
        assert_held(model, masks)
        step(reference, theirs, batch, before=lambda: zero(reference, masks))
        zero(reference, masks)
        assert_equal(model, reference)
    assert_revival_is_noticed(model, masks)


def replace_parameters(model: nn.Module, rate: float) -> None:
    for layer in model:
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(parameter.detach() - rate * parameter.grad))


def write_vector(model: nn.Module, rate: float) -> None:
    gradient = parameters_to_vector([p.grad for p in model.parameters()])
    vector_to_parameters(parameters_to_vector(model.parameters()) - rate * gradient, model.parameters())


def each(update):
    @torch.no_grad()
    def all_of(model: nn.Module, rate: float) -> None:
        for parameter in model.parameters():
            update(parameter, rate)

    return all_of


HAND_WRITTEN = {
    "p -= lr * grad": each(lambda p, rate: p.sub_(rate * p.grad)),
    "p.copy_": each(lambda p, rate: p.copy_(p - rate * p.grad)),
    "p.data.add_": each(lambda p, rate: p.data.add_(p.grad, alpha=-rate)),
    "p.data = ...": each(lambda p, rate: setattr(p, "data", p.data - rate * p.grad)),
    "p.data = ... in another layout": each(lambda p, rate: setattr(p, "data", (p.data - rate * p.grad).T.clone().T)),
    "new parameters": replace_parameters,
    "one vector": write_vector,
}


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_updates_written_by_hand_are_zero_at_the_next_forward_and_in_what_is_saved(name):
    model, reference, masks = held_and_reference()
    for turn, batch in enumerate(batches()):
        for net in (model, reference):
            net.zero_grad()
            loss_of(net, batch).backward()
            HAND_WRITTEN[name](net, 0.5)
        with pytest.raises(ValueError, match=r"0.weight has \d+ of \d+ dropped weights different from 0; 2.weight has"):
            supermask.check(model)
        zero(reference, masks)
        if turn % 2:
            assert torch.equal(model[2].state_dict()["weight"], reference[2].weight)
            saved = model.state_dict()
            assert all(torch.equal(saved[key], value) for key, value in reference.state_dict().items())
        else:
            assert torch.equal(model(batch[0]), reference(batch[0]))
        assert_held(model, masks)
        assert_equal(model, reference)


def step_at_once(optimizer: torch.optim.Optimizer):
    def hook(parameter: torch.Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return hook


def test_an_optimizer_that_steps_inside_the_backward_pass():
    model, reference, masks = held_and_reference()
    for net in (model, reference):
        for parameter in net.parameters():
            optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
            parameter.register_post_accumulate_grad_hook(step_at_once(optimizer))
    for batch in batches():
        loss_of(model, batch).backward()
        assert_held(model, masks)
        loss_of(reference, batch).backward()
        zero(reference, masks)
        assert_equal(model, reference)


@pytest.mark.parametrize("assign", [False, True])
def test_training_goes_on_from_a_file(assign, tmp_path):
    """The state is also loaded into a model that holds masks over other weights."""
    model, _, masks = held_and_reference()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    first, *rest = batches()
    step(model, optimizer, first)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    other = perceptron()
    supermask.hold(other, masks)
    state = torch.load(tmp_path / "state.pt")
    other.load_state_dict(state["model"], assign=assign)
    optimizer_of_other = torch.optim.AdamW(other.parameters(), 0.1)
    optimizer_of_other.load_state_dict(state["optimizer"])
    for batch in rest:
        step(model, optimizer, batch)
        step(other, optimizer_of_other, batch)
        assert_held(other, masks)
        assert_equal(other, model)
    other.load_state_dict(perceptron().state_dict(), assign=assign)  # weights that no mask has touched
    assert_held(other, masks)
    assert_revival_is_noticed(other, masks)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
def test_accumulated_gradients_of_several_passes(autocast):
    model, reference, masks = held_and_reference()
    ours, theirs = (torch.optim.Adam(net.parameters(), 0.1) for net in (model, reference))
    for _ in range(3):
        for net, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            first, second, *rest = batches()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                together = loss_of(net, first) + loss_of(net, second)
            together.backward()
            for batch in rest:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = loss_of(net, batch)
                loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
        assert_held(model, masks)
        with torch.inference_mode():
            model(first[0])
        zero(reference, masks)
        assert_equal(model, reference)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "exponential"])
def test_averaged_weights_hold_too(average):
    model, reference, masks = held_and_reference()
    optimizer, averaged = torch.optim.SGD(model.parameters(), 0.5), AveragedModel(model, multi_avg_fn=average)
    by_hand = AveragedModel(reference, multi_avg_fn=average)
    for batch in batches():
        step(model, optimizer, batch)
        averaged.update_parameters(model)
        by_hand.update_parameters(model)
        assert_held(averaged.module, masks)
        assert_equal(averaged.module, by_hand.module)
    assert_revival_is_noticed(averaged.module, masks)
    assert torch.equal(averaged(batch[0]), by_hand(batch[0]))
    assert_held(averaged.module, masks)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model, reference, masks = held_and_reference()
    ours, theirs = (torch.optim.AdamW(net.parameters(), 0.1) for net in (model, reference))
    for batch in batches():
        x = batch[0].clone().requires_grad_()
        ours.zero_grad()
        hidden = checkpoint(model[:2], x, use_reentrant=reentrant)
        out = checkpoint(model[2:], hidden, use_reentrant=reentrant)
        nn.functional.cross_entropy(out, batch[1]).backward()
        ours.step()
        assert_held(model, masks)
        step(reference, theirs, batch)
        zero(reference, masks)
        assert_equal(model, reference)
        model[0].weight.data += 1.0  # written by hand, not seen by the parts
        reference[0].weight.data[masks["0.weight"]] += 1.0


def test_functional_call_reads_the_callers_weights_masked_and_leaves_them():
    model, _, masks = held_and_reference()
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weights = {name: torch.randn_like(tensor) for name, tensor in own.items()}
    before = {name: tensor.clone() for name, tensor in weights.items()}
    batch, plain = batches(1)[0], perceptron()

    def loss(net, given):
        return nn.functional.cross_entropy(functional_call(net, given, (batch[0],)), batch[1])

    def masked(given):
        return {name: tensor * masks[name] if name in masks else tensor for name, tensor in given.items()}

    found, expected = grad(lambda w: loss(model, w))(weights), grad(lambda w: loss(plain, masked(w)))(weights)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
        assert torch.equal(weights[name], before[name])
        assert torch.equal(model.get_parameter(name), own[name])
    nets = [perceptron() for _ in range(3)]
    stacked, _ = stack_module_state(nets)
    together = vmap(lambda w: functional_call(model, w, (batch[0],)))(stacked)
    for net, out in zip(nets, together, strict=True):
        zero(net, masks)
        torch.testing.assert_close(out, net(batch[0]))
    assert_held(model, masks)


def test_second_derivatives_through_an_inner_step():
    model, reference, masks = held_and_reference()
    batch = batches(1)[0]
    for net in (model, reference):
        weights = dict(net.named_parameters())
        inner = nn.functional.cross_entropy(functional_call(net, weights, (batch[0],)), batch[1])
        gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        fast = {name: weight - 0.5 * g for (name, weight), g in zip(weights.items(), gradients, strict=True)}
        if net is reference:
            fast = {name: weight * masks[name] if name in masks else weight for name, weight in fast.items()}
        nn.functional.cross_entropy(functional_call(net, fast, (batch[0],)), batch[1]).backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
    zero(reference, masks)
    assert_held(model, masks)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_part_that_a_keyboard_interrupt_has_broken_off_is_masked_again():
    model, interrupted = Residual(), [True]
    masks = supermask.prune(model, 0.2, allocation="layerwise")
    supermask.hold(model, masks)

    def interrupt(module, inputs):
        if interrupted.pop():
            raise KeyboardInterrupt

    handle = model.block[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.block(torch.randn(2, 8, 4, 4))
    handle.remove()
    model.block[0].weight.data += 1.0
    model.block(torch.randn(2, 8, 4, 4))
    assert_held(model, masks)


def test_layers_and_parameters_replaced_under_a_mask_are_refused():
    model, _, _ = held_and_reference()
    model[4] = nn.Linear(7, 3)
    with pytest.raises(ValueError, match=r"the masks of 4.weight are on layers that the model no longer has"):
        supermask.check(model)
    broken = {
        "0.weight .* is now no parameter": lambda net: nn.utils.parametrizations.weight_norm(net[0]),
        "2.weight .* is now of shape": lambda net: setattr(net[2], "weight", nn.Parameter(torch.zeros(8, 9))),
    }
    for message, change in broken.items():
        model, other, _ = held_and_reference()
        change(model)
        with pytest.raises(ValueError, match=message):
            model(batches(1)[0][0])
        step(other, torch.optim.SGD(other.parameters(), 0.1), batches(1)[0])  # another model's optimizer goes on
