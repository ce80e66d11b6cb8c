"""Parts of a model that carries masks: read, saved, copied and called by themselves."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from networks import Recurrent, Residual
from processes import run_python
from torch import nn
from torch.optim.swa_utils import AveragedModel

import supermask
from supermask import Masks, Ticket, make_state
from supermask.flow import flow
from supermask.live.link import link_of


class Whole(nn.Module):
    """An encoder of several layers, one of them tied, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        self.twin = nn.Linear(8, 8)
        self.twin.weight = self.encoder[0].weight
        self.head = Head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.twin(self.encoder(x)))


class Head(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 6_000)


def carrying(how: str) -> tuple[Whole, Masks]:
    torch.manual_seed(0)
    model = Whole()
    if how == "hold":
        masks = supermask.prune(model, 0.3, "random", allocation="layerwise", include="*")
        supermask.hold(model, Masks(masks, ["encoder.0.bias"]))
    else:
        supermask.learn(model, 0.3)
    return model, supermask.masks_of(model)


def own(masks: Masks, prefix: str) -> Masks:
    names = {name: name.removeprefix(prefix) if name.startswith(prefix) else None for name in masks}
    return masks.renamed(names)


def train(model: nn.Module) -> None:
    """A step of an optimizer that moves every weight."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()


def dropped(model: nn.Module, masks: Masks) -> torch.Tensor:
    return torch.cat([model.get_parameter(name).detach()[~mask] for name, mask in masks.items()])


def pickled(module: nn.Module) -> tuple[nn.Module, int]:
    file = io.BytesIO()
    torch.save(module, file)
    size = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=False), size


COPIES = {
    "deep copy": copy.deepcopy,
    "pickle": lambda part: pickled(part)[0],
    "average": lambda p: AveragedModel(p).module,
}
PARTS = ["encoder", "encoder.2", "encoder.0", "twin", "head"]


@pytest.mark.parametrize("how", ["hold", "learn"])
@pytest.mark.parametrize("path", PARTS)
def test_the_masks_of_a_part_are_those_of_its_parameters(path, how):
    model, masks = carrying(how)
    part, x = model.get_submodule(path), torch.randn(3, 8)
    found = supermask.masks_of(part)
    expected = own(masks, f"{path}.")
    if path == "twin":
        expected = Masks({**expected, "weight": masks["encoder.0.weight"]})
    assert found == expected
    assert found.uncounted == expected.uncounted
    assert (how == "learn") or found.uncounted == ({"encoder": {"0.bias"}, "encoder.0": {"bias"}}.get(path, set()))
    names = list(Whole().get_submodule(path).state_dict())
    baked = supermask.bake(part)
    assert list(baked.state_dict()) == names
    assert all(link_of(module) is None for module in baked.modules())
    assert not dropped(baked, found).any()
    assert torch.equal(baked(x), part(x))
    assert torch.equal(supermask.bake(model)(x), model(x))
    torch.export.export(baked.eval(), (x,))
    supermask.check(part)
    saved = part.state_dict()
    if how == "hold":
        assert list(saved) == names
        part.get_parameter(names[0]).data += 1.0
        assert all(
            not saved_again[~found[name]].any() for name, saved_again in part.state_dict().items() if name in found
        )
    else:
        assert [name for name in saved if not name.endswith("_scores")] == names


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("path", PARTS)
def test_a_copy_of_a_part_holds_its_masks_without_the_model(path, how):
    model, _ = carrying("hold")
    part = model.get_submodule(path)
    masks, before = supermask.masks_of(part), {n: t.clone() for n, t in model.state_dict().items()}
    other = COPIES[how](part)
    for _ in range(2):
        train(other)
        assert not dropped(other, masks).any()
    assert supermask.masks_of(other) == masks
    assert supermask.masks_of(other).uncounted == masks.uncounted
    supermask.check(other)
    supermask.detach(other)
    train(other)
    assert dropped(other, masks).any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    train(model)
    supermask.check(model)


def test_a_copy_of_a_part_takes_nothing_else_along(young_objects):
    model, _ = carrying("hold")
    gc.collect()
    heads = sum(type(thing) is Head for thing in gc.get_objects())
    assert heads == 1
    other = copy.deepcopy(model.encoder)
    gc.collect()
    assert sum(type(thing) is Head for thing in gc.get_objects()) == heads
    part, whole = pickled(model.encoder)[1], pickled(model)[1]
    assert part < 50_000 < 180_000 < whole
    supermask.check(other)


@pytest.mark.slow
def test_a_part_that_is_saved_holds_in_another_process(tmp_path, forkserver_with_torch):
    model = Residual()
    supermask.hold(model, supermask.prune(model, 0.3))
    torch.save(model.block, tmp_path / "block.pt")
    code = f"""
import torch
block = torch.load({str(tmp_path / "block.pt")!r}, weights_only=False)
optimizer = torch.optim.AdamW(block.parameters(), 0.1)
block(torch.randn(2, 8, 4, 4)).sum().backward()
optimizer.step()
import supermask
supermask.check(block)
print(supermask.masks_of(block).kept)
"""
    assert int(run_python(code).stdout) == supermask.masks_of(model.block).kept


@pytest.mark.parametrize("how", COPIES)
def test_before_a_copy_is_called_it_saves_and_loads_zeros(how):
    model, _ = carrying("hold")
    masks = supermask.masks_of(model.encoder)
    other, fresh = COPIES[how](model.encoder), Whole().encoder
    other[0].weight.data += 1.0
    assert not other.state_dict()["0.weight"][~masks["0.weight"]].any()
    other.load_state_dict(fresh.state_dict())
    assert not dropped(other, masks).any()
    again = copy.deepcopy(pickled(other)[0])
    train(again)
    assert not dropped(again, masks).any()


def test_a_copy_whose_parts_are_called_first():
    model, _ = carrying("hold")
    masks = supermask.masks_of(model.encoder)
    other = copy.deepcopy(model.encoder)
    train(other[2])
    assert supermask.masks_of(other[2]) == own(masks, "2.")
    train(other)
    assert not dropped(other, masks).any()
    assert supermask.masks_of(other) == masks
    assert supermask.masks_of(other[2]) == own(masks, "2.")


def test_what_holds_a_part_and_its_model_is_copied_whole():
    model, masks = carrying("hold")
    for order in (["encoder", "model"], ["model", "encoder"]):
        both = {"encoder": model.encoder, "model": model}
        other = copy.deepcopy({name: both[name] for name in order})
        assert other["encoder"] is other["model"].encoder
        train(other["model"])
        supermask.check(other["model"])
        assert supermask.masks_of(other["model"]) == masks
        assert supermask.masks_of(other["encoder"]) == supermask.masks_of(model.encoder)
        loaded = pickled(nn.ModuleDict({name: both[name] for name in order}))[0]
        train(loaded["model"])
        supermask.check(loaded["model"])


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_part_whose_masks_are_learned_is_no_dense_layer(how):
    model, masks = carrying("learn")
    x = torch.randn(3, 8)
    other = COPIES[how](model.encoder)
    for call in (
        lambda: other(x),
        lambda: other[0](x),
        lambda: supermask.masks_of(other),
        lambda: supermask.bake(other),
    ):
        with pytest.raises(RuntimeError, match=r"was copied or saved without the model .* supermask.bake\(model\)"):
            call()
    assert list(other.state_dict()) == list(model.encoder.state_dict())
    assert torch.equal(supermask.bake(model.encoder)(x), model.encoder(x))
    whole = COPIES[how](model)
    assert torch.equal(whole(x), model(x))
    assert supermask.masks_of(whole) == masks


@pytest.mark.parametrize("how", ["hold", "learn"])
def test_a_part_has_no_masks_beside_those_of_its_model(how):
    model, masks = carrying(how)
    for call in (
        lambda: supermask.hold(model.encoder, supermask.masks_of(model.encoder)),
        lambda: supermask.hold(model.encoder[2], {"0.weight": torch.ones(8, 8, dtype=torch.bool)}),
        lambda: supermask.learn(model.encoder, 0.5),
    ):
        with pytest.raises(ValueError, match="the model is a part of one that carries masks"):
            call()
    with pytest.raises(ValueError, match="supermask.detach the whole model"):
        supermask.detach(model.encoder)
    assert supermask.masks_of(model) == masks


def test_a_model_has_no_masks_beside_those_of_its_parts():
    model, masks = Whole(), {"0.weight": torch.ones(8, 8, dtype=torch.bool)}
    supermask.hold(model.encoder, masks)
    for call in (lambda: supermask.hold(model, supermask.prune(model, 0.5)), lambda: supermask.learn(model, 0.5)):
        with pytest.raises(
            ValueError, match=r"parts of the model carry masks already: supermask.detach\(model.encoder\)"
        ):
            call()
    with pytest.raises(ValueError, match="the model carries no masks: its parts encoder do"):
        supermask.masks_of(model)
    with pytest.raises(ValueError, match="the model carries no masks: supermask.hold"):
        supermask.masks_of(model.head)
    supermask.hold(model.head, supermask.prune(model.head, 0.5))
    train(model)
    for part in (model.encoder, model.head):
        supermask.check(part)
    supermask.detach(model.encoder)
    supermask.detach(model.head)
    supermask.hold(model, supermask.prune(model, 0.5))


def test_a_ticket_of_a_part():
    model, _ = carrying("hold")
    masks = supermask.masks_of(model.encoder)
    ticket = Ticket(masks, {"final": make_state(model.encoder.state_dict(), masks)})
    again = ticket.apply_to(Whole().encoder)
    x = torch.randn(3, 8)
    assert torch.equal(again(x), model.encoder(x))
    ticket.apply_to(model.encoder)
    others = Ticket(~masks, {"final": make_state(Whole().encoder.state_dict(), ~masks)})
    for target in (model.encoder, carrying("learn")[0].encoder):
        with pytest.raises(ValueError, match="carries other masks"):
            others.apply_to(target)


@pytest.mark.parametrize("how", ["hold", pytest.param("learn", marks=pytest.mark.slow)])
def test_what_makes_something_of_a_part_sees_its_masks(how):
    model, x = carrying(how)[0], torch.ones(2, 8)
    expected = model.encoder(x)
    quick = supermask.accelerate(model.encoder, example_input=x)
    torch.testing.assert_close(quick(x), expected)
    supermask.compact(model.encoder, example_input=x)
    masks = supermask.masks_of(model.encoder)
    assert flow(model.encoder, masks, x) == flow(supermask.bake(model.encoder), masks, x)
    if how == "hold":
        for score in ("synflow", "magnitude"):
            assert supermask.prune(model.encoder, 0.1, score, example_input=x, previous=masks).within(masks)
    torch.testing.assert_close(model.encoder(x), expected)


def test_a_part_that_is_recurrent():
    model, x = Recurrent(), torch.randn(2, 3, 5)
    supermask.hold(model, supermask.prune(model, 0.3))
    masks, other = supermask.masks_of(model.lstm), copy.deepcopy(model.lstm)
    assert torch.equal(other(x)[0], model.lstm(x)[0])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1.0
    other(x)
    assert not dropped(other, masks).any()
