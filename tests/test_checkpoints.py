"""Files of other programs that hold more, less or something else than a network's plain weights."""

from __future__ import annotations

import argparse

import pytest
import safetensors.torch
import torch
from test_fitting import NOT_PLAIN, Head, Scaled, ScaledByTensor
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrize import remove_parametrizations
from torch.optim.swa_utils import AveragedModel

import supermask
from supermask import Masks
from supermask.tickets import foreign
from supermask.tickets.checkpoint import find_state_dicts

quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def pruned() -> nn.Sequential:
    torch.manual_seed(0)
    model = net()
    supermask.hold(model, supermask.prune(model, 0.5, allocation="layerwise"))
    return model


def masks_in(state: dict) -> Masks:
    return Masks({name: tensor != 0 for name, tensor in state.items() if name.endswith("weight")})


# What is no weight.


def sparsified(model: nn.Sequential) -> None:
    sparsifier = WeightNormSparsifier(sparsity_level=0.8, sparse_block_shape=(1, 1), zeros_per_block=1)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


COMPUTED = {
    "weight norm": (
        lambda model: parametrizations.weight_norm(model[0]),
        "parametrizations.weight.original0 and 0.parametrizations.weight.original1",
        lambda model: remove_parametrizations(model[0], "weight"),
    ),
    "weight norm by a hook": (
        lambda model: nn.utils.weight_norm(model[0]), "weight_g and 0.weight_v",
        lambda model: nn.utils.remove_weight_norm(model[0]),
    ),
    "weight norm over all": (
        lambda model: nn.utils.weight_norm(model[0], dim=None), "weight_g and 0.weight_v",
        lambda model: nn.utils.remove_weight_norm(model[0]),
    ),
    "spectral norm": (
        lambda model: parametrizations.spectral_norm(model[0]), "parametrizations.weight.original and ",
        lambda model: remove_parametrizations(model[0], "weight"),
    ),
    "spectral norm by a hook": (
        lambda model: nn.utils.spectral_norm(model[0]), "weight_orig and 0.weight_u and 0.weight_v",
        lambda model: nn.utils.remove_spectral_norm(model[0]),
    ),
    "orthogonal": (
        lambda model: parametrizations.orthogonal(model[0]), "parametrizations.weight.original and ",
        lambda model: remove_parametrizations(model[0], "weight"),
    ),
    "a parametrization of one's own": (
        lambda model: nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled()),
        "parametrizations.weight.original ",
        lambda model: remove_parametrizations(model[0], "weight"),
    ),
    "torch.ao.pruning": (
        sparsified, "parametrizations.weight.original ", lambda model: remove_parametrizations(model[0], "weight"),
    ),
}  # fmt: skip


@quiet
@pytest.mark.parametrize("how", COMPUTED)
def test_parts_of_a_computed_weight_are_no_weights(how, tmp_path):
    compute, parts, make_plain = COMPUTED[how]
    model = pruned()
    supermask.detach(model)
    compute(model)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "computed.pt")
    for name, kind in (("computed.pt", None), ("computed.pt", "zeros")):
        with pytest.raises(
            ValueError, match=rf"computed.pt: weights that the network computes .*0.weight from .*{parts}"
        ):
            foreign.load(tmp_path / name, kind)
    with pytest.raises(ValueError, match="0.weight from"):
        foreign.load(tmp_path / "computed.pt", include="0*")
    other = foreign.load(tmp_path / "computed.pt", include="2")
    assert other.masks == Masks({"2.weight": model[2].weight != 0, "2.bias": model[2].bias != 0})
    make_plain(model)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    ticket = foreign.load(tmp_path / "plain.pt")
    assert ticket.masks == masks_in(model.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(ticket.apply_to(net())(x), model(x))


def two(*shape: int) -> torch.Tensor:
    return torch.ones(*shape or (4, 4))


NO_WEIGHTS = {
    "an equalized learning rate": ({"fc.weight_orig": two()}, "fc.weight from fc.weight_orig"),
    "an adapter alone": (
        {"m.q.lora_A.weight": two(2, 4), "m.q.lora_B.weight": two(4, 2)},
        "m.q.weight from m.q.lora_A.weight and m.q.lora_B.weight (model.merge_and_unload() of peft",
    ),
    "an adapter over its layer": (
        {"q.base_layer.weight": two(), "q.lora_A.default.weight": two(2, 4), "q.lora_B.default.weight": two(4, 2)},
        "q.weight from q.base_layer.weight and q.lora_A.default.weight",
    ),
    "an adapter beside its weight": (
        {"q.weight": two(), "q.lora_A": two(2, 4), "q.lora_B": two(4, 2)}, "q.weight from q.lora_A and q.lora_B",
    ),
    "packed integers": (
        {"q.qweight": two().int(), "q.scales": two(1, 4), "q.qzeros": two(1, 1).int()},
        "q.weight from q.qweight and q.scales and q.qzeros (dequantizing it",
    ),
    "packed integers of another kind": (
        {"q.weight_packed": two().int(), "q.weight_scale": two(4, 1)}, "q.weight from q.weight_packed and q.weight_scale",
    ),
    "four bits": (
        {"q.weight": two(8, 1).byte(), "q.weight.absmax": two(2), "q.weight.quant_state.x__nf4": two(9).byte()},
        "q.weight from q.weight.absmax and q.weight.quant_state.x__nf4",
    ),
    "eight bits": ({"q.weight": two().char(), "q.SCB": two(4), "e": two()}, "q.weight from q.SCB"),
    "learned scores": (
        {"0.weight": two(), "0.weight_scores": two()}, "0.weight from 0.weight and 0.weight_scores (supermask.bake(model)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_WEIGHTS)
def test_what_is_no_weight_is_named(what, tmp_path):
    state, message = NO_WEIGHTS[what]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError) as caught:
        foreign.load(tmp_path / "w.pt")
    assert message in str(caught.value)


def test_names_that_only_look_like_parts_are_weights():
    state = {"W_g": two(3, 4), "W_v": two(4, 4), "u_orig": two(), "scales": two(), "class_scores": two(), "x_u": two()}
    assert set(foreign.from_zeros(state).masks) == set(state)


def test_scales_of_float8_weights_carry_no_mask(tmp_path):
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    state = {"q.weight": weight.to(torch.float8_e4m3fn), "q.weight_scale_inv": two(1, 1)}
    torch.save(state, tmp_path / "w.pt")
    ticket = foreign.load(tmp_path / "w.pt")
    assert ticket.masks == Masks({"q.weight": weight != 0})
    assert set(ticket.state_dict()) == set(state)


def test_a_network_with_learned_scores_says_what_to_save(tmp_path):
    model = net()
    supermask.learn(model, 0.5)
    torch.save(model.state_dict(), tmp_path / "learned.pt")
    with pytest.raises(ValueError, match=r"0.weight from 0.weight and 0.weight_scores \(supermask.bake\(model\)"):
        foreign.load(tmp_path / "learned.pt")
    torch.save(supermask.bake(model).state_dict(), tmp_path / "baked.pt")
    assert foreign.load(tmp_path / "baked.pt").masks == supermask.masks_of(model)


def test_a_mask_on_a_part_of_a_computed_weight_is_refused(tmp_path):
    model = net()
    nn.utils.weight_norm(model[0])
    torch_prune.l1_unstructured(model[0], "weight_v", 0.5)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="0.weight from .*0.weight_v"):
        foreign.load(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["weight_mask", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8], ids=str)
def test_masks_beside_weights_are_read(name, dtype, tmp_path):
    """The weight below its mask need not be 0: the layers multiply them."""
    model, masks = net(), {}
    for layer in (model[0], model[2]):
        masks[layer] = torch.rand_like(layer.weight) < 0.4
        layer.register_buffer(name, masks[layer].to(dtype))
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "m.pt")
    ticket = foreign.load(tmp_path / "m.pt")
    assert ticket.meta["source"] == "masks"
    assert ticket.masks == Masks({"0.weight": masks[model[0]], "2.weight": masks[model[2]]})
    assert torch.equal(ticket.apply_to(net())[0].weight, model[0].weight * masks[model[0]])
    with pytest.raises(ValueError, match="no masks: expected tensors of 0 and 1"):
        foreign.from_masks({"a": two(), "a_mask": 0.5 * two(), "b_mask": two()})


# Tied tensors.


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("how", ["shared", "copied"])
def test_a_tied_weight_has_one_mask(how, heads, tmp_path):
    model = Head(heads)
    model.embedding.weight.data[:4] = 0
    state = model.state_dict()
    if how == "copied":
        safetensors.torch.save_file({name: t.clone() for name, t in state.items()}, tmp_path / "m.safetensors")
    else:
        torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "m.pt")
    ticket = foreign.load(next(tmp_path.iterdir()))
    assert len(ticket.masks) == (heads + 1 if how == "copied" else 1)
    again = ticket.apply_to(Head(heads))
    supermask.hold(again, ticket.masks)
    assert supermask.masks_of(again) == Masks({"embedding.weight": model.embedding.weight != 0})
    x = torch.tensor([[1, 5]])
    assert torch.equal(again(x), model(x))


def test_a_transposed_weight_in_a_file_is_not_tied(tmp_path):
    weight = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    torch.save({"a": weight, "b": weight.t()}, tmp_path / "m.pt")
    ticket = foreign.load(tmp_path / "m.pt")
    assert ticket.masks == Masks({"a": weight != 0, "b": weight.t() != 0})
    assert torch.equal(ticket.state_dict()["b"], weight.t())


def test_a_tie_of_which_one_end_is_pruned_is_two_weights(tmp_path):
    """`torch.nn.utils.prune` masks what the embedding reads, and the head still reads all of the weight."""
    model = Head()
    torch_prune.l1_unstructured(model.embedding, "weight", 0.5)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    ticket = foreign.load(tmp_path / "m.pt")
    assert ticket.masks == Masks({"embedding.weight": model.embedding.weight_mask != 0})
    state = ticket.state_dict()
    assert torch.equal(state["embedding.weight"], model.embedding.weight)
    assert torch.equal(state["heads.0.weight"], model.heads[0].weight)
    with pytest.raises(ValueError, match="are one tied tensor of the model, and differ in the ticket"):
        ticket.apply_to(Head())
    torch_prune.custom_from_mask(model.heads[0], "weight", model.embedding.weight_mask)
    torch.save(model.state_dict(), tmp_path / "both.pt")
    both = foreign.load(tmp_path / "both.pt")
    assert list(both.masks) == ["embedding.weight"]
    supermask.hold(both.apply_to(Head()), both.masks)


# Layouts.

LAYOUTS = {
    "coo": lambda w: w.to_sparse(),
    "coo with an entry twice": lambda w: torch.sparse_coo_tensor(
        torch.cat([w.to_sparse().indices()] * 2, 1), torch.cat([w.to_sparse().values() / 2] * 2), w.shape
    ),
    "csr": lambda w: w.to_sparse_csr(),
    "csc": lambda w: w.to_sparse_csc(),
    "bsr": lambda w: w.to_sparse_bsr((2, 4)),
    "bsc": lambda w: w.to_sparse_bsc((2, 4)),
    "hybrid": lambda w: w.to_sparse(1),
    "float8": lambda w: w.to(torch.float8_e5m2),
    "transposed": lambda w: w.t().contiguous().t(),
    "a parameter": nn.Parameter,
    "negated": lambda w: torch.complex(w, -w).conj().imag,
}


@quiet
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout, tmp_path):
    weight = torch.randn(6, 8).masked_fill(torch.rand(6, 8) < 0.6, 0).to(torch.float8_e5m2).float()
    torch.save({**net().state_dict(), "0.weight": LAYOUTS[layout](weight)}, tmp_path / "m.pt")
    ticket = foreign.load(tmp_path / "m.pt")
    assert torch.equal(ticket.masks["0.weight"], weight != 0)
    assert torch.equal(supermask.load(supermask.pack(ticket)).apply_to(net())[0].weight, weight)


@quiet
@pytest.mark.parametrize(
    "message", [message for message in NOT_PLAIN if "sparse" not in message and "lazy" not in message]
)
def test_what_a_file_cannot_give_is_named(message, tmp_path):
    torch.save({"0.weight": torch.eye(4), "odd": NOT_PLAIN[message](torch.eye(4))}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=rf"m.pt: tensors that are not plain numbers: odd .*{message}"):
        foreign.load(tmp_path / "m.pt")


@quiet
def test_a_file_takes_no_more_memory_than_its_size_explains(tmp_path):
    where, one = torch.tensor([[0], [0]]), torch.ones(1)
    for tensor in (torch.sparse_coo_tensor(where, one, (10**6, 10**6)), torch.zeros(1, 1).expand(10**6, 10**6)):
        torch.save({"w": tensor}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"describes 1,000,000,000,000 weights, which it does not hold"):
            foreign.load(tmp_path / "m.pt")
    torch.save({"w": torch.sparse_coo_tensor(where, one, (30, 30))}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="max_weights=900"):
        foreign.load(tmp_path / "m.pt", max_weights=899)
    assert foreign.load(tmp_path / "m.pt", max_weights=900).masks.kept == 1
    with torch.sparse.check_sparse_tensor_invariants(False):
        wrong = torch.sparse_csr_tensor([0, 1, 2], [0, 10**9], torch.ones(2), (2, 2))
    torch.save({"w": wrong}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        foreign.load(tmp_path / "m.pt")


# Several state dicts, wrappers, and other things in a file.


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel, torch.compile], ids=lambda wrap: wrap.__name__)
def test_wrappers_leave_no_trace(wrap, tmp_path):
    model = pruned()
    wrapped = wrap(model)
    for state in (wrapped.state_dict(), {"state_dict": AveragedModel(wrapped).state_dict()}):
        torch.save(state, tmp_path / "m.pt")
        ticket = foreign.load(tmp_path / "m.pt")
        assert ticket.masks == supermask.masks_of(model)
        ticket.apply_to(net())
        ticket.apply_to(wrap(net()))


def test_an_average_of_a_held_model_holds_under_the_names_of_the_model(tmp_path):
    model = pruned()
    masks, averaged = supermask.masks_of(model), AveragedModel(model)
    assert supermask.masks_of(averaged) == masks
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(torch.randn(3, 8)).sum().backward()
        optimizer.step()
        averaged.update_parameters(model)
    supermask.check(averaged)
    ticket = supermask.Ticket(masks, {"final": supermask.make_state(averaged.module.state_dict(), masks)})
    x = torch.randn(3, 8)
    for other in (net(), AveragedModel(net())):
        supermask.hold(ticket.apply_to(other), masks)
        assert torch.equal(other(x), averaged(x))
        supermask.detach(other)
        assert supermask.prune(other, previous=masks, density=0.2).within(masks)
    with pytest.raises(ValueError, match="there is no tensor of the mask '0.weight'; did you mean 'module.0.weight'"):
        supermask.make_state(averaged.state_dict(), masks)
    assert type(supermask.bake(averaged)) is AveragedModel


def average(model: nn.Module) -> dict:
    return {name: tensor + (tensor != 0) for name, tensor in model.state_dict().items()}


SEVERAL = {
    "timm": lambda m: {"state_dict": m.state_dict(), "state_dict_ema": average(m), "args": argparse.Namespace(lr=1)},
    "detr": lambda m: {"model": m.state_dict(), "model_ema": average(m), "epoch": 3},
    "wrapped": lambda m: {"state_dict": m.state_dict(), "averaged": AveragedModel(m).state_dict()},
    "lightning": lambda m: {"state_dict": average(m), "current_model_state": m.state_dict(), "averaging_state": {}},
    "nested": lambda m: {"model": {"state_dict": m.state_dict()}, "ema": {"shadow": average(m)}},
    "two networks": lambda m: {"generator": m.state_dict(), "discriminator": nn.Linear(3, 3).state_dict()},
}


@pytest.mark.parametrize("which", SEVERAL)
def test_several_state_dicts_are_a_choice(which, tmp_path):
    found = SEVERAL[which](pruned())
    torch.save(found, tmp_path / "m.pt")
    places = list(find_state_dicts(found))
    assert len(places) == 2
    with pytest.raises(
        ValueError, match=r"m.pt: it holds several state dicts, .*: choose one by its key, as key='"
    ) as caught:
        foreign.load(tmp_path / "m.pt")
    for place in places:
        assert f"{place} (" in str(caught.value)
        inside = found
        for key in place.split("/"):
            inside = inside[key]
        ticket = foreign.load(tmp_path / "m.pt", key=place)
        plain = {name.removeprefix("module."): tensor for name, tensor in inside.items() if name != "n_averaged"}
        assert ticket.state_dict().keys() == plain.keys()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in ticket.state_dict().items())
    with pytest.raises(ValueError, match=rf"holds no state dict '{places[0]}s'; did you mean '{places[0]}'\?; it has"):
        foreign.load(tmp_path / "m.pt", key=places[0] + "s")


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = pruned()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    return model, optimizer


def named_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """As `torch.distributed.checkpoint` has them: under the names of the parameters."""
    names = [name for name, _ in model.named_parameters()]
    state = optimizer.state_dict()
    return {"state": dict(zip(names, state["state"].values(), strict=True)), "param_groups": state["param_groups"]}


ONE = {
    "moments": lambda m, o: {"state_dict": m.state_dict(), "optimizer": o.state_dict(), "scheduler": {"a": two()}},
    "named moments": lambda m, o: {"model": m.state_dict(), "optim": named_moments(m, o), "train": named_moments(m, o)},
    "master copies": lambda m, o: {"model": m.state_dict(), "optimizer_states": {"fp32": m.state_dict()}},
    "random numbers": lambda m, o: {"net": m.state_dict(), "rng_state": {"torch": torch.get_rng_state()}},
    "statistics": lambda m, o: {"net": m.state_dict(), "history": {"loss": torch.ones(9)}, "best": torch.ones(2, 2)},
    "another network": lambda m, o: {"state_dict": m.state_dict(), "teacher": nn.Linear(3, 3).state_dict()},
    "inside": lambda m, o: {"state_dict": {"model": m.state_dict()}, "epoch": 3},
    "lightning": lambda m, o: {
        "state_dict": m.state_dict(), "optimizer_states": [o.state_dict()], "hyper_parameters": {"lr": 1e-3},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0)}}, "loops": {"fit": {}},
    },
}  # fmt: skip


@pytest.mark.parametrize("which", ONE)
def test_what_else_a_file_holds_is_no_choice(which, tmp_path):
    model, optimizer = trained()
    torch.save(ONE[which](model, optimizer), tmp_path / "m.pt")
    assert foreign.load(tmp_path / "m.pt").masks == supermask.masks_of(model)


def test_files_without_a_state_dict_say_what_they_hold(tmp_path):
    model, optimizer = trained()
    for content, message in (
        (
            optimizer.state_dict(),
            r"no state dict: expected names and tensors, got state \(dict\), param_groups \(list\)",
        ),
        (named_moments(model, optimizer), "no state dict"),
        ({**model.state_dict(), "epoch": 3}, r"expected names and tensors, got epoch \(int\)"),
        (two(), "expected names and tensors, got a Tensor"),
        (model, r"holds a torch.nn.modules.container.Sequential, and no code of a file is run; .*model.state_dict\(\)"),
    ):
        torch.save(supermask.bake(content) if isinstance(content, nn.Module) else content, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=message):
            foreign.load(tmp_path / "m.pt")
    supermask.save(supermask.Ticket(Masks({}), {}), tmp_path / "ticket.safetensors")
    with pytest.raises(ValueError, match="is a ticket: supermask.load reads it"):
        foreign.load(tmp_path / "ticket.safetensors")


def test_a_mapping_that_holds_itself_is_walked_once():
    inside: dict = {}
    for _ in range(8):
        inside = {str(number): inside for number in range(200)}
    inside["self"] = inside
    assert find_state_dicts(inside) == {}


@pytest.mark.parametrize("layer", [Scaled, ScaledByTensor])
def test_extra_state_in_a_file_is_left_out(layer, tmp_path):
    model = nn.Sequential(layer(8, 6), nn.ReLU(), layer(6, 4))
    supermask.hold(model, supermask.prune(model, 0.3))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.pt")
    ticket = foreign.load(tmp_path / "m.pt")
    assert ticket.masks == supermask.masks_of(model)
    x = torch.randn(3, 8)
    for other in (net(), nn.Sequential(layer(8, 6), nn.ReLU(), layer(6, 4))):
        assert torch.equal(ticket.apply_to(other)(x), model(x))
