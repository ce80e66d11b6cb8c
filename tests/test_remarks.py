"""What is said of a model's tensors before it is pruned: of each that is left out, shared, frozen, computed or not read."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import supermask
from supermask.choosing.remarks import sentences


class Everything(nn.Module):
    """A tensor of each kind of which something is said, and plain layers of which nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.plain = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.computed = parametrizations.weight_norm(nn.Linear(6, 6))
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.unreached = nn.Linear(6, 6)
        self.mixing = nn.Parameter(torch.randn(6, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.memory = nn.LSTM(6, 6, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.plain(self.table(tokens)))
        x = self.second(self.first(self.computed(self.frozen(x)))) @ self.mixing
        return self.memory(self.attention(x, x, x)[0])[0]


TOKENS = torch.arange(10).reshape(2, 5)
EXPECTED = {
    "table.weight": "carries no mask: it is an embedding",
    "mixing": "carries no mask: no layer that is known reads it",
    "computed.parametrizations.weight.original0": "carries no mask: a parametrization computes",
    "computed.parametrizations.weight.original1": "carries no mask: a parametrization computes",
    "frozen.weight": "it is frozen",
    "first.weight": "first and second share it",
    "unreached.weight": "no pass of the example input reads it",
}


@pytest.mark.parametrize("training", [True, False])
def test_everything_is_named_and_nothing_else(training):
    model = Everything().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = supermask.remarks(model, example_input=TOKENS)
    assert set(found) == set(EXPECTED)
    for name, said in EXPECTED.items():
        assert found[name].startswith(said), found[name]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training is training and not model.frozen.weight.requires_grad
    assert set(supermask.remarks(model)) == set(EXPECTED) - {"unreached.weight"}, "without an input nothing is run"


def test_several_things_are_said_of_one_tensor():
    model = Everything()
    model.first.requires_grad_(False)
    said = supermask.remarks(model, supermask.find_targets(model, exclude="plain"), TOKENS)
    assert "share it" in said["first.weight"] and "; it is frozen" in said["first.weight"]
    assert said["plain.weight"] == "carries no mask: excluded"
    lines = sentences(said, limit=1)
    assert sum(line.startswith("computed.parametrizations.weight.original0 and 1 more: carries") for line in lines) == 1
    assert len(lines) == len(set(said.values()))
    with pytest.raises(ValueError, match="does not take the example input: IndexError"):
        supermask.remarks(model, example_input=torch.full((1, 2), 99))


def test_a_search_says_it_before_it_begins(ticket, tmp_path, monkeypatch):
    (tmp_path / "shared_network.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)\n"
        "        self.b.weight, self.unused = self.a.weight, torch.nn.Linear(3, 3)\n"
        "        self.head = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.b(self.a(x.flatten(1)).relu()).relu())\n"
        "def make(): return Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        "search",
        "--method",
        "one-shot",
        "--model",
        "shared_network:make",
        "--density",
        "0.5",
        "--epochs",
        "1",
        "--runs",
        "runs",
    ]
    planned = ticket(*words, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    remarks = json.loads(planned.out)["remarks"]
    assert [line.partition(":")[0] for line in remarks] == ["a.weight", "unused.weight"]
    done = ticket(*words)
    assert done.code == 0, done.err
    told = " ".join(done.err.split())
    for line in remarks:
        assert line in told
