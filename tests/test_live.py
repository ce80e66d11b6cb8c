from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from networks import NETWORKS, Residual, perceptron
from processes import run_python
from torch import nn

import supermask
from supermask.live import held as live
from supermask.live.held import program_of

pytestmark = pytest.mark.quick

OPTIMIZERS = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


def step(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def dropped_bits(model: nn.Module, masks) -> torch.Tensor:
    """The bits of all dropped weights: exactly +0 or not."""
    return torch.cat([model.get_parameter(n).detach()[~m].view(torch.int32) for n, m in masks.items()])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_dropped_weights_are_exactly_zero_after_every_step(network, name):
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, x, optimizer)  # momentum that began before the mask
    masks = supermask.prune(model, 0.3)
    supermask.hold(model, masks)
    for _ in range(3):
        step(model, x, optimizer)
        assert not dropped_bits(model, masks).any()
        supermask.check(model)
    kept = torch.cat([model.get_parameter(n).detach()[m] for n, m in masks.items()])
    assert (kept != 0).any()


def test_without_hold_the_same_training_revives_dropped_weights():
    model, x = perceptron(), torch.randn(5, 12)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks = supermask.prune(model, 0.3)
    supermask.hold(model, masks)
    supermask.detach(model)
    step(model, x, optimizer)
    assert dropped_bits(model, masks).any()


def test_nan_infinity_and_negative_zero_become_zero():
    model = perceptron()
    masks = supermask.prune(model, 0.5)
    supermask.hold(model, masks)
    with torch.no_grad():
        for value in (torch.nan, torch.inf, -0.0):
            model[0].weight.data[~masks["0.weight"]] = value
            model(torch.randn(2, 12))
            assert not dropped_bits(model, masks).any()


def test_updates_written_by_hand_do_not_get_past_the_next_forward():
    model, x = perceptron(), torch.randn(5, 12)
    masks = supermask.prune(model, 0.5)
    supermask.hold(model, masks)
    expected = supermask.bake(model)(x)
    for parameter in model.parameters():
        kept = parameter.detach().clone()
        parameter.data += 1.0
        for name, mask in masks.items():
            if parameter is model.get_parameter(name):
                parameter.data[mask] = kept[mask]
        if parameter.dim() == 1:
            parameter.data.copy_(kept)
    with pytest.raises(ValueError, match=r"0.weight has \d+ of \d+ dropped weights different from 0"):
        supermask.check(model)
    assert torch.equal(model(x), expected)


def test_a_part_called_on_its_own_sees_the_masks():
    model = Residual()
    masks = supermask.prune(model, 0.2)
    supermask.hold(model, masks)
    model.block[0].weight.data += 1.0
    model.block(torch.randn(2, 8, 4, 4))
    assert not (model.block[0].weight[~masks["block.0.weight"]]).any()


def test_two_passes_before_one_backward():
    model, x = perceptron(), torch.randn(5, 12)
    supermask.hold(model, supermask.prune(model, 0.5))
    (model(x) + model(2 * x)).sum().backward()


def test_load_state_dict_and_assign():
    model = Residual()
    masks = supermask.prune(model, 0.2)
    supermask.hold(model, masks)
    fresh = Residual().state_dict()
    assert set(model.state_dict()) == set(fresh)
    model.load_state_dict(fresh)
    assert not dropped_bits(model, masks).any()
    model.load_state_dict({n: t.clone() for n, t in Residual().state_dict().items()}, assign=True)
    assert not dropped_bits(model, masks).any()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step(model, torch.randn(5, 1, 6, 6), optimizer)
    assert not dropped_bits(model, masks).any()


def test_deep_copy_holds_on_its_own():
    model, x = perceptron(), torch.randn(5, 12)
    masks = supermask.prune(model, 0.3)
    supermask.hold(model, masks)
    other = copy.deepcopy(model)
    before = model[0].weight.detach().clone()
    step(other, x, torch.optim.AdamW(other.parameters(), 0.1))
    assert not dropped_bits(other, masks).any()
    assert torch.equal(model[0].weight, before)
    supermask.detach(other)
    assert program_of(other) is None
    supermask.check(model)
    step(model, x, torch.optim.AdamW(model.parameters(), 0.1))
    assert not dropped_bits(model, masks).any()


@pytest.mark.parametrize("network", NETWORKS)
def test_bake_gives_an_ordinary_module_and_leaves_the_original_running(network):
    model, x = NETWORKS[network][0]().eval(), NETWORKS[network][1]()
    names, flags = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    supermask.hold(model, supermask.prune(model, 0.4))
    baked = supermask.bake(model)
    assert list(baked.state_dict()) == names
    assert [p.requires_grad for p in baked.parameters()] == flags
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in baked.modules())
    assert torch.equal(baked(x), model(x))
    model(x).square().mean().backward()
    assert supermask.masks_of(model).density == pytest.approx(0.4, abs=0.01)


def test_lower_precision_and_channels_last():
    model = Residual().to(torch.bfloat16).to(memory_format=torch.channels_last)
    masks = supermask.prune(model, 0.3)
    supermask.hold(model, masks)
    step(model, torch.randn(5, 1, 6, 6, dtype=torch.bfloat16), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    supermask.check(model)
    model.double()
    model.stem.weight.data += 1
    model(torch.randn(5, 1, 6, 6, dtype=torch.float64))
    supermask.check(model)


def test_holding_a_model_that_does_not_train_costs_no_other_optimizer():
    held, other = perceptron(), perceptron()
    supermask.hold(held, supermask.prune(held, 0.5))
    held[0].weight.data += 1.0
    step(other, torch.randn(5, 12), torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(ValueError, match="do not hold"):
        supermask.check(held)


def test_wrong_use_is_refused():
    model = perceptron()
    for call in (supermask.check, supermask.masks_of, supermask.bake, supermask.detach):
        with pytest.raises(ValueError, match="carries no masks"):
            call(model)
    masks = supermask.prune(model, 0.5)
    supermask.hold(model, masks)
    with pytest.raises(ValueError, match="carries masks already"):
        supermask.hold(model, masks)
    with pytest.raises(ValueError, match="carries masks already"):
        supermask.learn(model, 0.5)
    with pytest.raises(ValueError, match="there is no parameter 'x'"):
        supermask.hold(perceptron(), {"x": torch.ones(1, dtype=torch.bool)})
    model._is_replica = True
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        model(torch.randn(1, 12))


def test_a_pickled_model_holds_in_another_process(tmp_path, forkserver_with_torch):
    model = perceptron()
    supermask.hold(model, supermask.prune(model, 0.3))
    torch.save(model, tmp_path / "model.pt")
    code = f"""
import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
import supermask
optimizer = torch.optim.AdamW(model.parameters(), 0.1)
model(torch.randn(5, 12)).sum().backward()
optimizer.step()
supermask.check(model)
"""
    assert run_python(code) == (0, "", "")


def test_loading_a_part_of_a_held_model():
    model = Residual()
    masks = supermask.prune(model, 0.2)
    supermask.hold(model, masks)
    model.block.load_state_dict(Residual().block.state_dict())
    supermask.check(model)


def test_a_detached_model_is_left_alone():
    model = perceptron()
    masks = supermask.prune(model, 0.3)
    supermask.hold(model, masks)
    program = program_of(model)
    supermask.detach(model)
    step(model, torch.randn(5, 12), torch.optim.AdamW(model.parameters(), 0.1))
    assert dropped_bits(model, masks).any()
    assert program is not None


def test_a_model_that_calls_itself():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x, again=True):
            x = self(x, again=False) if again else x
            return self.a(x)

    model = Twice()
    supermask.learn(model, 0.3)
    baked, x = supermask.bake(model), torch.randn(2, 3)
    for _ in range(2):
        assert torch.equal(model(x), baked(x))
        assert torch.equal(model.a(x), baked.a(x))


def test_two_threads_on_one_model_are_refused():
    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            if x.sum() > 0:
                inside.set()
                assert leave.wait(10)
            return self.fc(x)

    model, inside, leave = Waiting(), threading.Event(), threading.Event()
    supermask.learn(model, 0.5)
    worker = threading.Thread(target=model, args=(torch.ones(1, 3),))
    worker.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError, match="two threads"):
        model(-torch.ones(1, 3))
    leave.set()
    worker.join()


def test_a_weight_that_is_turned_over_in_its_own_memory():
    """The same parameter, address and shape, other strides: what was known of it is not true any more."""
    model = nn.Linear(6, 6)
    masks = supermask.prune(model, 0.3, "random")
    supermask.hold(model, masks)
    for _ in range(3):
        model(torch.ones(1, 6))
        model.weight.data = model.weight.data.t()
        model.weight.data += 1.0
        expected = model.weight.detach().masked_fill(~masks["weight"], 0.0)
        model(torch.ones(1, 6))
        assert torch.equal(model.weight, expected)
        supermask.check(model)


def test_masks_on_a_model_that_is_gone_are_not_held_any_more(young_objects):
    model = nn.Linear(3, 3)
    supermask.hold(model, supermask.prune(model, 0.5))
    number = id(program_of(model))
    assert number in live._HELD
    del model
    gc.collect()
    assert number not in live._HELD
