"""Which tensor of a state dict is which of a model: ties, extra states, and what cannot take a value."""

from __future__ import annotations

import pytest
import torch
from networks import Residual
from torch import nn

import supermask
from supermask import Masks, Ticket, make_state
from supermask.weights.fitting import fit, merge_tied, set_state, state_of

pytestmark = pytest.mark.quick


class Head(nn.Module):
    """An embedding, one output layer or two, all of one weight."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 12, bias=False) for _ in range(heads))
        for head in self.heads:
            head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        return sum(head(x) for head in self.heads)


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


TIED = {
    "embedding and head": (Head, ["embedding.weight", "heads.0.weight"]),
    "three names": (lambda: Head(2), ["embedding.weight", "heads.0.weight", "heads.1.weight"]),
    "one layer twice": (Shared, ["first.weight", "second.weight"]),
}


def untied(state: dict) -> dict:
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("network", TIED)
def test_every_name_of_a_tied_tensor_is_that_of_the_tensor(network):
    build, names = TIED[network]
    model = build()
    state = model.state_dict()
    mask = torch.rand_like(state[names[0]]) < 0.4
    for chosen in (names, *([name] for name in names)):
        # As a file gives it that does not know of the tie, or that has one of the names alone.
        tensors = {name: tensor for name, tensor in untied(state).items() if name not in names or name in chosen}
        masks = Masks({name: mask.clone() for name in chosen})
        ticket = Ticket(masks, {"final": make_state(tensors, masks)})
        other = ticket.apply_to(build())
        targets = supermask.hold(other, ticket.masks)
        assert list(targets) == [names[0]]
        assert len(targets[names[0]].owners) == (1 if network == "one layer twice" else len(names))
        for name in names:
            assert torch.equal(other.get_parameter(name), state[names[0]].masked_fill(~mask, 0))
        assert supermask.masks_of(other) == Masks({names[0]: mask})
        ticket.apply_to(other)
        assert supermask.prune(build(), 0.2, previous=ticket.masks).within(Masks({names[0]: mask}))


def test_a_tied_tensor_is_given_once():
    model = Head(2)
    state = untied(model.state_dict())
    state["heads.1.weight"][0, 0] += 1
    ticket = Ticket(Masks({}), {"final": make_state(state, Masks({}))})
    assert len(ticket.state_dict()) == 3
    with pytest.raises(
        ValueError, match=r"embedding.weight and heads.1.weight are one tied tensor .* differ in the ti"
    ):
        ticket.apply_to(model)
    kept = torch.ones(12, 6, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"heads.0.weight and heads.1.weight are one tied tensor .* their masks differ"
    ):
        supermask.hold(model, {"heads.0.weight": kept, "heads.1.weight": ~kept})
    uncounted = merge_tied(Masks({"heads.0.weight": kept}, ["heads.0.weight"]), model).uncounted
    assert uncounted == {"embedding.weight"}


def test_a_transposed_weight_is_not_a_tie():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    state = model.state_dict()
    state["1.weight"] = state["0.weight"].t()
    ticket = Ticket(Masks({}), {"final": make_state(state, Masks({}))})
    other = ticket.apply_to(model)
    assert torch.equal(other[1].weight, other[0].weight.t())
    assert not torch.equal(other[1].weight, other[0].weight)


class Scaled(nn.Linear):
    """A layer with a state of its own, `scale`, which is saved by `get_extra_state`."""

    kind = staticmethod(lambda scale: {"scale": scale})

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale, self.given = 1.0, 0

    def get_extra_state(self):
        return self.kind(self.scale)

    def set_extra_state(self, state) -> None:
        self.given += 1


class ScaledByTensor(Scaled):
    kind = staticmethod(lambda scale: torch.full((2, 2), scale))


@pytest.mark.parametrize("layer", [Scaled, ScaledByTensor])
def test_extra_state_is_in_no_ticket_and_stays_the_models(layer):
    model = nn.Sequential(layer(20, 5), nn.ReLU(), layer(5, 3))
    model[0].scale = 2.0
    assert "0._extra_state" in model.state_dict()
    masks = supermask.prune(model, 0.3)
    ticket = Ticket(masks, {"final": make_state(model.state_dict(), masks)})
    assert set(ticket.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"} == set(state_of(model))
    other = nn.Sequential(layer(20, 5), nn.ReLU(), layer(5, 3))
    found = ticket.fit(other)
    assert found
    assert found.untouched == ("0._extra_state", "2._extra_state")
    assert str(found) == "all 4 tensors fit; 0._extra_state, 2._extra_state of the model stays as it is"
    again = supermask.load(supermask.pack(ticket)).apply_to(other)
    assert (again[0].scale, again[0].given) == (1.0, 0)
    supermask.hold(again, ticket.masks)
    supermask.check(again)
    supermask.bake(again)


def test_a_file_that_has_extra_state_among_its_tensors_is_applied():
    """As files were written before: what is restored by `set_extra_state` was stored and not restored."""
    model = nn.Sequential(ScaledByTensor(4, 3))
    state = make_state({"other": torch.ones(2, 2), **state_of(model)}, Masks({}))
    names = {"other": "0._extra_state"}
    stored = {names.get(name, name): tensor for name, tensor in state.stored.items()}
    drawn = {names.get(name, name): draw for name, draw in state.drawn.items()}
    tensors = supermask.State(stored, drawn, "").tensors({})
    old = supermask.State(stored, drawn, supermask.fingerprint(tensors))
    ticket = supermask.load(supermask.pack(Ticket(Masks({}), {"final": old})))
    assert "0._extra_state" in ticket.state_dict()
    assert ticket.apply_to(model)[0].given == 0


NOT_PLAIN = {
    "a lazy module": lambda w: nn.LazyLinear(3).weight,
    "nested tensor": lambda w: torch.nested.nested_tensor([w, w]),
    "nested": lambda w: torch.nested.nested_tensor([w, w], layout=torch.jagged),
    "on the meta device": lambda w: w.to("meta"),
    r"quantized \(qint8\): give tensor.dequantize": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    r"sparse \(sparse_coo\): give tensor.to_dense": lambda w: w.to_sparse(),
    r"sparse \(sparse_csr\)": lambda w: w.to_sparse_csr(),
    r"sparse \(sparse_bsc\)": lambda w: w.to_sparse_bsc((2, 2)),
}


@pytest.mark.filterwarnings("ignore:.*prototype.*", "ignore:.*beta state.*", "ignore:.*deprecated.*")
@pytest.mark.parametrize("message", NOT_PLAIN)
def test_what_is_no_plain_tensor_is_named(message):
    odd = NOT_PLAIN[message](torch.eye(4))
    with pytest.raises(ValueError, match=rf"no state can be made of the tensors: b .*{message}"):
        make_state({"a": torch.ones(3), "b": odd}, Masks({}))


def test_masks_must_fit_the_tensors():
    mask = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError) as caught:
        make_state({"module.a": torch.ones(3, 3), "b": torch.ones(3, 3)}, Masks({"a": mask, "b": mask}))
    for part in ("there is no tensor of the mask 'a'", "b has shape [3, 3], its mask [3, 1]"):
        assert part in str(caught.value)
    model = Head()
    with pytest.raises(ValueError, match=r"no tensor of the mask 'heads.0.weight' \(it is tied: embedding.weight\)"):
        make_state(model.state_dict(), Masks({"heads.0.weight": torch.ones(12, 6, dtype=torch.bool)}))


def test_learned_scores_are_no_tensors_of_the_network():
    model = Residual()
    supermask.learn(model, 0.5)
    masks = supermask.masks_of(model)
    ticket = Ticket(masks, {"final": make_state(state_of(model), masks)})
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(ticket.apply_to(Residual()).eval()(x), model.eval()(x))


def test_tensors_that_cannot_take_the_values_are_named():
    ticket = Ticket(Masks({}), {"final": make_state(Residual().state_dict(), Masks({}))})
    with pytest.raises(ValueError, match=r"the model's stem.weight has no values \(it is on the meta device\)"):
        ticket.apply_to(Residual().to("meta"))
    assert len(state_of(Residual().to("meta"))) == len(ticket.state_dict())
    whole = nn.Sequential(nn.Linear(3, 3))
    whole[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    halves = Ticket(Masks({}), {"final": make_state(nn.Sequential(nn.Linear(3, 3)).state_dict(), Masks({}))})
    with pytest.raises(ValueError, match=r"0.weight is of type torch.int8, the ticket's torch.float32"):
        halves.apply_to(whole)


def test_a_ticket_does_not_fit_tensors_over_one_memory_that_differ_in_it():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    ticket = Ticket(Masks({}), {"final": make_state(model.state_dict(), Masks({}))})
    model[1].weight = nn.Parameter(model[0].weight.detach().t())
    with pytest.raises(ValueError, match="0.weight and 1.weight of the model lie over the same memory"):
        ticket.apply_to(model)
    same = Ticket(Masks({}), {"final": make_state(model.state_dict(), Masks({}))})
    same.apply_to(model)
    model[1].weight = nn.Parameter(torch.randn(3, 1).expand(3, 3))
    with pytest.raises(ValueError, match="the model's 1.weight repeats its entries"):
        ticket.apply_to(model)


def test_of_many_tensors_that_do_not_fit_the_first_are_told_and_their_number():
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(9)))
    others = {f"{number}.weight": torch.zeros(3, 3) for number in range(9)}
    with pytest.raises(
        ValueError, match=r"^the ticket does not fit the model: 0\.weight .*; and 4 more of 9$"
    ) as caught:
        set_state(model, others)
    assert "4.weight" in str(caught.value) and "5.weight" not in str(caught.value)
    assert len(fit({name: (3, 3) for name in others}, model).problems) == 9, "all of them are to be had"
    masks = supermask.Masks({name: torch.ones(3, 3, dtype=torch.bool) for name in others})
    with pytest.raises(ValueError, match="; and 4 more of 9$"):
        masks.check(model)
