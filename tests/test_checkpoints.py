"""Files of other programs that hold more, less or something else than a network's plain weights."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from method_tests import count_steps
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
from ticket_search import Interrupted, RequestError, Run, RunError, resume, search, train
from ticket_search.analysis.comparison import compare
from ticket_search.analysis.read_runs import read_members
from ticket_search.running.read_config import read_config
from ticket_search.runs.earlier_run import read_weights
from ticket_search.runs.records import read_record, write_record

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
    # PyTorch 2.15 makes nested ones by functions that a file may not name.
    told = (
        rf"m.pt(: tensors that are not plain numbers: odd .*{message}| cannot be read: it holds a torch\S*_rebuild_n)"
    )
    with pytest.raises(ValueError, match=told):
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


@pytest.mark.parametrize(
    "wrap",
    [AveragedModel, nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)],
    ids=lambda wrap: wrap.__name__,
)
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


# The weights that a run of ours has trained (`--weights`), and what they have cost.

SMALL = {"model_args": "width=0.1", "train_size": 256, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """A dense run of 2 epochs of 4 steps, `imp` of 1 epoch of 8 steps from it, and `one-shot` from that."""
    runs = tmp_path_factory.mktemp("chain")
    base = search("dense", runs=runs, name="base", epochs=2, batch_size=64, **SMALL)
    short = {"runs": runs, "epochs": 1, "batch_size": 32, **SMALL}
    second = search("imp", name="second", weights=base, density=0.25, fraction=0.5, **short)
    search("one-shot", name="third", weights=second.path, density=0.5, **short)
    return runs


@pytest.fixture
def runs(chain, tmp_path) -> Path:
    """A copy of the three runs, to be moved and damaged."""
    shutil.copytree(chain, tmp_path / "runs")
    return tmp_path / "runs"


def found(path: Path) -> Run:
    return Run(path, read_config(path))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_search_starts_from_the_final_weights_of_a_run(chain):
    base, second, third = (found(chain / name) for name in ("base", "second", "third"))
    assert same(second.load_level(0).state_dict("start"), base.ticket.state_dict("final"))
    pruned = third.load_level(0).state_dict("start")
    assert same(pruned, second.ticket.state_dict("final"))
    assert (pruned["fc1.weight"][~second.ticket.masks["fc1.weight"]] == 0).all()
    final = second.ticket.states["final"].fingerprint
    assert third.ticket.meta["parent"] == {"fingerprint": final, "state": "final", "density": 0.25}
    assert "parent" not in base.ticket.meta and "weights" not in third.ticket.meta["config"]
    assert "weights" not in base.summary["cost"]


def test_each_seed_starts_from_a_run_of_its_own_and_they_are_one_group(tmp_path, ticket):
    short = {"epochs": 1, "batch_size": 64, "runs": tmp_path, **SMALL}
    bases = [search("dense", name=f"base-s{seed}", seed=seed, **short) for seed in (0, 1)]
    for runs, given in ((tmp_path, "base-s{seed}"), (tmp_path / "others", f"{tmp_path}/base-s{{seed}}")):
        own = [search("snip", weights=given, seed=seed, density=0.3, **{**short, "runs": runs}) for seed in (0, 1)]
        for run, base in zip(own, bases, strict=True):
            start = run.ticket.state_dict("start")
            for name, mask in run.ticket.masks.items():
                assert torch.equal(start[name][mask], base.ticket.state_dict("final")[name][mask])
            assert run.summary["cost"]["weights"]["run"] == base.path.name
            assert run.config.weights.endswith("base-s{seed}")
    compared = ticket("compare", *(str(run.path) for run in own), "--json")
    assert compared.code == 0, compared.err
    (group,) = json.loads(compared.out)["groups"]
    assert group["seeds"] == [0, 1]
    with pytest.raises(RequestError, match="base-s7"):
        search("snip", weights=f"{tmp_path}/base-s{{seed}}", seed=7, density=0.3, **short)


def test_scores_at_initialization_are_of_the_final_weights_too(runs, ticket):
    """By the name that the run has among the others."""
    words = "search --method magnitude-at-init --weights second --allocation global --name scored --batch-size 32"
    flags = "--density 0.2 --epochs 1 --train-size 256 --model-args width=0.1 --threads 1"
    answer = ticket(*words.split(), *flags.split())
    assert answer.code == 0, answer.err
    assert "its ticket keeps 580 of 2,320 weights (density 0.25); the other 1,740 start at zero" in answer.err
    assert re.search("of that, the weights +5.0 dense trainings, 32 steps, .*: the run second", answer.out)
    assert found(runs / "scored").ticket.masks.within(found(runs / "second").ticket.masks)


def test_costs_add_up_along_a_chain_in_trainings_of_each_search(chain):
    base, second, third = (found(chain / name).summary["cost"] for name in ("base", "second", "third"))
    assert base["dense_trainings"] == 1 and base["steps"] == 8
    # 2 epochs of the samples are twice a training of 1 epoch, in however many steps.
    assert second["weights"] == {
        "run": "base",
        **{key: base[key] for key in ("steps", "flops", "seconds")},
        "dense_trainings": 2.0,
    }
    assert (second["dense_trainings"], second["steps"]) == (2 + 3, 8 + 3 * 8)
    assert third["weights"] == {"run": "second", **{key: second[key] for key in base}}
    assert (third["dense_trainings"], third["steps"]) == (2 + 3 + 2, 8 + 24 + 16)
    for key in ("flops", "seconds"):
        assert third[key] > third["weights"][key] == second[key] > second["weights"][key] == base[key] > 0


def test_a_comparison_counts_them_when_the_earlier_runs_are_gone(runs):
    shutil.rmtree(runs / "base")
    (runs / "second").rename(runs / "elsewhere")
    comparison = compare([runs / "elsewhere", runs / "third"])
    levels = {group.method: [level.dense_trainings for level in group.levels] for group in comparison.groups}
    assert levels == {"imp": [3, 4, 5], "one-shot": [6, 7]}
    told = [note for note in comparison.notes if "started from" in note]
    assert len(told) == 2 and "of its 7.0 dense trainings 5.0 are theirs" in told[1]
    rows = read_members([runs / "third"])[0][0].rows
    assert [row["min_validation_loss"]["at_end"] for row in rows] == [
        row["min_validation_loss"]["step"] == 8 for row in rows
    ]


def test_the_cost_of_a_level_and_of_a_trained_ticket(runs):
    def cost_of(path: Path) -> tuple | str:
        _, earlier = read_weights(str(path))
        return earlier.cost if isinstance(earlier.cost, str) else earlier.cost.steps

    levels = [cost_of(runs / "second" / "levels" / f"0{level}" / "ticket.safetensors") for level in range(3)]
    assert levels == [8 + 8, 8 + 16, 8 + 24]
    again = train(runs / "second", runs=runs, epochs=1, name="again", progress=False)
    assert cost_of(again.path) == 32 + again.summary["cost"]["steps"]
    shutil.rmtree(runs / "second")
    assert "does not lie in the folder of a finished run" in cost_of(again.path)
    config = {**read_record(again.path, "config.toml"), "ticket": str(again.path / "ticket.safetensors")}
    write_record(again.path, "config.toml", config)
    assert "trains its own ticket" in cost_of(again.path)


def test_a_ticket_by_itself_says_no_cost(runs, tmp_path):
    path = shutil.copy(runs / "second" / "ticket.safetensors", tmp_path / "bare.safetensors")
    flags = {"runs": runs, "epochs": 1, **SMALL}
    run = search("dense", weights=path, name="from-file", **flags)
    assert same(run.ticket.state_dict("start"), found(runs / "second").ticket.state_dict())
    assert run.summary["cost"]["weights"] is None and run.summary["cost"]["dense_trainings"] == 1
    assert any("without that of the weights" in note for note in compare([run]).notes)
    _, earlier = read_weights(str(run.path))
    assert "started from weights of which it is not known" in earlier.remarks()[0]
    _, earlier = read_weights(str(path))
    assert "is not known, and so not counted" in earlier.remarks()[1]
    torch.save(run.ticket.state_dict(), tmp_path / "foreign.pt")
    assert "weights" not in search("dense", weights=tmp_path / "foreign.pt", **flags).summary["cost"]


def test_a_run_that_someone_sent_gives_its_tensors_only(runs, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    base = runs / "base"
    ticket = supermask.load(base / "ticket.safetensors")
    code = dict.fromkeys(("model", "data", "loss", "metric"), "evil:function")
    meta = {**ticket.meta, **code, "architecture": {"name": "evil:function", "arguments": {}}}
    supermask.save(supermask.Ticket(ticket.masks, ticket.states, meta), base / "ticket.safetensors", overwrite=True)
    write_record(base, "config.toml", {**read_record(base, "config.toml"), **code})
    run = search("dense", weights=base, runs=runs, epochs=1, **SMALL)
    assert same(run.ticket.state_dict("start"), ticket.state_dict()) and "evil" not in sys.modules


def test_what_gives_no_final_weights_is_refused(runs, tmp_path):
    (runs / "third" / "summary.json").unlink()
    ticket = found(runs / "base").ticket
    only = supermask.Ticket(ticket.masks, {"start": ticket.states["start"]})
    supermask.save(only, tmp_path / "start.safetensors")
    data = (runs / "second" / "ticket.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-9])
    (tmp_path / "flipped.safetensors").write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    cost = read_record(runs / "base", "summary.json")["cost"]
    write_record(runs / "base", "summary.json", {**found(runs / "base").summary, "cost": {**cost, "flops": -1}})
    (runs / "second" / "ticket.safetensors").unlink()
    refused = {
        runs / "third": "third: the run is not finished, .*`ticket resume .*third` goes on",
        runs: "holds other files.*; in it there are runs, as --weights .*base",
        tmp_path / "start.safetensors": "has no final weights, which a search starts from; its states: start",
        tmp_path / "cut.safetensors": "cut.safetensors",
        tmp_path / "flipped.safetensors": "flipped.safetensors",
        runs / "base": r"summary.json is damaged: cost.flops -1: ",
        runs / "second": "second/ticket.safetensors cannot be read: No such file",
        f"{runs / 'base'}#start": r"expected --weights .*base$",
    }
    for path, message in refused.items():
        with pytest.raises(RequestError, match=message):
            search("dense", weights=path, runs=tmp_path / "new", **SMALL)
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_network_is_told_tensor_by_tensor(runs, tmp_path):
    with pytest.raises(RequestError) as caught:
        search("imp", weights=runs / "base", runs=tmp_path / "new", **{**SMALL, "model_args": "width=0.2"})
    assert "--weights base: fc1.weight has shape [30, 64], the model's [60, 64]" in caught.value.problems
    with pytest.raises(RequestError, match="--init kaiming-normal would draw over it"):
        search("imp", weights=runs / "base", runs=tmp_path / "new", init="kaiming-normal", **SMALL)


def test_a_stopped_search_goes_on_from_what_it_started_from(runs, monkeypatch):
    flags = {"runs": runs, "weights": runs / "base", "epochs": 1, "batch_size": 32, "density": 0.5, "fraction": 0.5}
    whole = search("imp", name="whole", **flags, **SMALL)
    with monkeypatch.context() as patch:
        count_steps(patch, 12)
        with pytest.raises(Interrupted):
            search("imp", name="stopped", **flags, **SMALL)
    (runs / "base").rename(runs / "gone")
    with pytest.raises(RequestError, match="base cannot be read: No such file"):
        resume(runs / "stopped", progress=False)
    shutil.copytree(runs / "second", runs / "base")
    with pytest.raises(RunError, match=r"--weights .*base has others than when the run .*stopped was started"):
        resume(runs / "stopped", progress=False)
    shutil.rmtree(runs / "base")
    (runs / "gone").rename(runs / "base")
    run = resume(runs / "stopped", progress=False)
    assert run.ticket == whole.ticket
    costs = [{key: value for key, value in each.summary["cost"].items() if key != "seconds"} for each in (run, whole)]
    assert costs[0] == costs[1] and costs[0]["weights"]["run"] == "base"


def test_the_weights_may_be_gone_when_the_search_ends(runs, monkeypatch):
    def remove(self: Run, ticket: supermask.Ticket) -> None:
        shutil.rmtree(runs / "base", ignore_errors=True)
        supermask.save(ticket, self.path / "ticket.safetensors", overwrite=True)

    monkeypatch.setattr(Run, "save_ticket", remove)
    run = search("dense", weights=runs / "base", runs=runs, epochs=1, **SMALL)
    assert run.summary["cost"]["weights"]["run"] == "base" and not (runs / "base").exists()
