"""Files of other programs, made here in their layout; each is read by what that program does with it."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from networks import Residual
from torch import nn
from torch.nn.utils import prune as torch_prune

import supermask
from supermask import Masks, Ticket, make_state
from supermask.tickets import foreign

pytestmark = pytest.mark.quick


def make_ticket(density=0.3, **how) -> tuple[Residual, Ticket]:
    torch.manual_seed(1)
    model = Residual()
    masks = supermask.prune(model, density, **how)
    return model, Ticket(masks, {"final": make_state(model.state_dict(), masks)})


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_torch_prune_is_read(tmp_path):
    model = net()
    torch_prune.l1_unstructured(model[0], "weight", amount=7)
    torch_prune.random_unstructured(model[0], "bias", amount=2)
    torch_prune.ln_structured(model[2], "weight", amount=1, n=2, dim=0)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "m.pt")
    ticket = foreign.load(tmp_path / "m.pt")
    assert ticket.meta["source"] == "torch-prune"
    assert ticket.masks.kept_per_tensor == {"0.bias": 3, "0.weight": 23, "2.weight": 10}
    x = torch.randn(4, 6)
    assert torch.equal(ticket.apply_to(net())(x), model(x))
    for layer, name in ((model[0], "weight"), (model[0], "bias"), (model[2], "weight")):
        torch_prune.remove(layer, name)
    torch.save(model.state_dict(), tmp_path / "removed.pt")
    zeros = foreign.load(tmp_path / "removed.pt")
    assert zeros.meta["source"] == "zeros"
    assert zeros.masks == Masks({name: ticket.masks[name] for name in ("0.weight", "2.weight")})
    assert torch.equal(zeros.apply_to(net())(x), model(x))


def test_torch_prune_is_written():
    model, ticket = make_ticket()
    other = Residual()
    for name in ticket.masks:
        layer, _, attribute = name.rpartition(".")
        torch_prune.identity(other.get_submodule(layer), attribute)
    other.load_state_dict(foreign.to_torch_prune(ticket))
    x = torch.randn(2, 1, 8, 8)
    supermask.hold(model, ticket.masks)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert foreign.from_torch_prune(other.state_dict()).masks == ticket.masks


def test_zeros(tmp_path):
    _, ticket = make_ticket()
    safetensors.torch.save_file(ticket.state_dict(), tmp_path / "m.safetensors")
    again = foreign.load(tmp_path / "m.safetensors")
    assert again.masks == ticket.masks
    again.apply_to(Residual())
    one = foreign.from_zeros(ticket.state_dict(), include="block.*.weight")
    assert set(one.masks) == {name for name in ticket.masks if name.startswith("block.")}
    with pytest.raises(ValueError, match="no tensor to mask among a"):
        foreign.from_zeros({"a": torch.zeros(3)})


class GetSubnet(torch.autograd.Function):
    """The masking of hidden-networks in our words: sort all scores, drop the first (1 - k) n."""

    @staticmethod
    def forward(ctx, scores, k):
        order = scores.flatten().sort().indices
        mask = torch.ones(scores.numel())
        mask[order[: int((1 - k) * scores.numel())]] = 0
        return mask.reshape(scores.shape)


class SubnetLinear(nn.Linear):
    """A layer of hidden-networks: a parameter `scores` beside the weight."""

    k = 0.37

    def __init__(self, *args):
        super().__init__(*args, bias=False)
        self.scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * GetSubnet.apply(self.scores.abs(), self.k))


def test_hidden_networks_is_read(tmp_path):
    torch.manual_seed(0)
    theirs = nn.Sequential(SubnetLinear(6, 50), nn.BatchNorm1d(50), nn.ReLU(), SubnetLinear(50, 3))
    theirs(torch.randn(64, 6))
    wrapped = nn.DataParallel(theirs)
    path = tmp_path / "model_best.pth"
    torch.save(
        {
            "epoch": 2, "arch": "cResNet18", "state_dict": wrapped.state_dict(), "best_acc1": np.float64(88.1),
            "best_train_acc5": np.float32(1.0), "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1)}]},
            "curr_acc1": torch.tensor(3.0), "last_epoch": np.int64(2),
        },
        path,
    )  # fmt: skip
    ticket = foreign.load(path, density=0.37)
    assert ticket.masks.kept_per_tensor == {"0.weight": 300 - int(0.63 * 300), "3.weight": 150 - int(0.63 * 150)}
    ours = nn.Sequential(nn.Linear(6, 50, bias=False), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 3, bias=False))
    x = torch.randn(9, 6)
    assert torch.equal(ticket.apply_to(ours).eval()(x), theirs.eval()(x))
    with pytest.raises(ValueError, match="give density=, its prune_rate"):
        foreign.load(path)
    with pytest.raises(ValueError, match=r"expected a fraction in \(0, 1\]"):
        foreign.load(path, density=1.5)


@pytest.mark.parametrize("density", [0.013, 0.3, 0.5, 0.999, 1.0])
def test_hidden_networks_is_written(density):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 50, bias=False), nn.ReLU(), nn.Linear(50, 3, bias=False))
    masks = supermask.prune(ours, density, "random", allocation="layerwise")
    ticket = Ticket(masks, {"final": make_state(ours.state_dict(), masks)})
    checkpoint = foreign.to_hidden_networks(ticket)
    theirs = nn.DataParallel(nn.Sequential(SubnetLinear(6, 50), nn.ReLU(), SubnetLinear(50, 3)))
    theirs.load_state_dict(checkpoint["state_dict"])
    for layer in (theirs.module[0], theirs.module[2]):
        layer.k = checkpoint["prune_rate"]
    x = torch.randn(9, 6)
    supermask.hold(ours, masks)
    assert torch.equal(theirs.module(x), ours(x))
    assert foreign.from_hidden_networks(checkpoint, checkpoint["prune_rate"]).masks == masks


def test_hidden_networks_has_one_density():
    _, ticket = make_ticket()
    with pytest.raises(ValueError, match=r"one density for all layers; this ticket has stem.weight 0\.\d+, "):
        foreign.to_hidden_networks(ticket)


def write_level(folder, ticket, model, masks=None):
    """The files of a level of open_lth, as its Mask.save and Model.save write them."""
    folder.mkdir(parents=True)
    torch.save(masks or {name: mask.cpu().int() for name, mask in ticket.masks.items()}, folder / "mask.pth")
    start = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    torch.save(start, folder / "model_ep0_it0.pth")
    torch.save({name: tensor * 2 for name, tensor in start.items()}, folder / "model_ep9_it0.pth")
    torch.save(ticket.state_dict(), folder / "model_ep10_it5.pth")
    (folder / "sparsity_report.json").write_text("{}")


def test_open_lth_is_read_and_written(tmp_path):
    model, ticket = make_ticket()
    folder = tmp_path / "replicate_1" / "level_3" / "main"
    write_level(folder, ticket, model)
    for path in (folder, folder / "mask.pth"):
        again = foreign.load(path, "open-lth")
        assert again.masks == ticket.masks
        assert again.states.keys() == {"start", "final"}
        final, start = again.state_dict(), again.state_dict("start")
        assert all(torch.equal(final[name], tensor) for name, tensor in ticket.state_dict().items())
        assert torch.equal(start["stem.weight"] != 0, ticket.masks["stem.weight"])
    written = foreign.to_open_lth(ticket)
    assert all(mask.dtype == torch.int32 for mask in written.values())
    assert foreign.from_open_lth(written, model.state_dict()).masks == ticket.masks
    with pytest.raises(ValueError, match=r"has no mask.pth; there is one in level_3/main"):
        foreign.load(tmp_path / "replicate_1")
    with pytest.raises(ValueError, match="masks without weights: other"):
        foreign.from_open_lth({"other": torch.ones(3)}, model.state_dict())
    with pytest.raises(ValueError, match=r"masks of other shapes than their weights: stem.weight"):
        foreign.from_open_lth({"stem.weight": torch.ones(3)}, model.state_dict())
    for model_file in folder.glob("model*"):
        model_file.unlink()
    with pytest.raises(ValueError, match=r"no model_ep\*_it\*.pth"):
        foreign.load(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("content", [{"a": Evil()}, Evil(), {"state_dict": {"a": Evil()}}])
def test_no_code_is_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "evil.pt")
    with open("plain.pkl", "wb") as file:
        pickle.dump(content, file)
    for name in ("evil.pt", "plain.pkl"):
        with pytest.raises(ValueError, match="cannot be read"):
            foreign.load(name)
    assert not os.path.exists("evil")


def test_what_is_none_of_them(tmp_path):
    for name, content, message in (
        ("list.pt", [1, 2], "no state dict"),
        ("numbers.pt", {"a": 1}, "no state dict"),
        ("empty.pt", {}, "no tensor to mask among none"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            foreign.load(tmp_path / name)
    torch.save(net().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="did you mean 'torch-prune'"):
        foreign.load(tmp_path / "net.pt", "torch-prun")
    with pytest.raises(ValueError, match="nothing was pruned by torch.nn.utils.prune"):
        foreign.load(tmp_path / "net.pt", "torch-prune")
    with pytest.raises(ValueError, match="no scores"):
        foreign.load(tmp_path / "net.pt", "hidden-networks", density=0.5)
    with pytest.raises(ValueError, match="density= goes with hidden-networks, this is zeros"):
        foreign.load(tmp_path / "net.pt", density=0.5)
    with pytest.raises(FileNotFoundError):
        foreign.load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder"):
        foreign.load(tmp_path, "zeros")
