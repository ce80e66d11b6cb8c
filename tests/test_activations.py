"""The activations of a ticket beside its dense network, from Python and on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import supermask
import ticket_search
from supermask.weights.fitting import set_state
from ticket_search import RequestError, activations
from ticket_search.questions.activations import LEVEL_0, RANDOM, START
from ticket_search.training.evaluation import read_data_of

OLD = Path(__file__).parent / "fixtures" / "runs-0.1.0" / "finished"
SMALL = {"epochs": 1, "threads": 1, "train_size": 320, "progress": False, "density": 0.2}
WIDTH = ("width=0.1",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs with a dense network, with weights that never train, with weights of their own, and without ReLU."""
    folder = tmp_path_factory.mktemp("runs")
    search = {**SMALL, "runs": folder, "model_args": WIDTH}
    ticket_search.search("imp", name="imp", levels=(0.2,), **search)
    ticket_search.search("edge-popup", name="frozen", activation="relu", **search)
    ticket_search.search("random", name="random", **search)
    ticket_search.search("random", name="gelu", activation="gelu", **search)
    shutil.copytree(folder / "imp", folder / "stopped")
    (folder / "stopped" / "ticket.safetensors").unlink()
    return folder


def inputs_of(ticket: supermask.Ticket, split: str = "validation") -> torch.Tensor:
    return torch.cat([x for x, _ in read_data_of(ticket, "digits").batches(split, 64)])


def test_a_ticket_beside_the_dense_network(runs):
    found = activations(runs / "imp")
    ticket = supermask.load(runs / "imp" / "ticket.safetensors")
    dense = supermask.load(runs / "imp" / "levels" / "00" / "ticket.safetensors")
    assert found.what == LEVEL_0
    for measured, each in ((found.ticket, ticket), (found.beside, dense)):
        net, x = each.model(), inputs_of(ticket)
        first = torch.relu(net.fc1(x.flatten(1)))
        second = torch.relu(net.fc2(first))
        shares = [(values > 0).float().mean(0) for values in (first, second)]
        assert [call.name for call in measured.calls] == ["activation", "activation, call 2"]
        for call, share in zip(measured.calls, shares, strict=True):
            torch.testing.assert_close(call.share, share)
        assert measured.density == each.density
    never = sum(int((share == 0).sum()) for share in (call.share for call in found.ticket.calls))
    assert f"{never} of 40 ReLU units are never active" in found.headline
    assert found.headline in repr(found)
    frame = found.frame()
    assert len(frame) == 40
    assert frame["never"].sum() == never
    assert list(frame["beside"][:30]) == pytest.approx(found.beside.calls[0].share.tolist())


@pytest.mark.parametrize(("name", "state", "what"), [("frozen", "final", RANDOM), ("random", "start", START)])
def test_without_a_dense_network_stands_what_the_seed_draws(runs, name, state, what):
    found = activations(name, runs=runs, split="test", inputs=70)
    ticket = supermask.load(runs / name / "ticket.safetensors")
    net = ticket.model()
    set_state(net, {each: draw.tensor(each) for each, draw in ticket.states[state].drawn.items()})
    share = (torch.relu(net.fc1(inputs_of(ticket, "test")[:70].flatten(1))) > 0).float().mean(0)
    torch.testing.assert_close(found.beside.calls[0].share, share)
    assert (found.what, found.beside.density, found.ticket.inputs) == (what, 1.0, 70)


def test_beside_another_run_and_beside_nothing(runs):
    found = activations(runs / "imp", beside=ticket_search.resume(runs / "random"))
    assert found.what == str(runs / "random")
    assert found.beside.density == pytest.approx(0.2, abs=0.001)
    ticket = supermask.load(runs / "imp" / "ticket.safetensors")
    tensors = ticket.state_dict("final")
    alone = supermask.Ticket(ticket.masks, {"final": supermask.make_state(tensors, ticket.masks)}, ticket.meta)
    found = activations(alone)
    assert found.beside is None
    assert found.remarks == [f"beside the ticket stands {found.what}"]
    assert found.to_dict()["beside"] is None


def test_an_older_version_and_a_network_of_a_function(runs, tmp_path):
    assert activations(OLD / "imp").what == LEVEL_0
    build = supermask.weights.architectures.find_architecture("lenet-300-100")
    model = lambda: build(input_shape=(1, 8, 8), width=0.1)  # noqa: E731
    run = ticket_search.search("random", model=model, runs=tmp_path, **SMALL)
    with pytest.raises(RequestError):
        activations(run)
    found = activations(run, model=model)
    assert found.ticket.units == 40
    assert found.beside is None, "the weights under the dropped ones come from the function and are not kept"


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("nothing", {}, "there is no run 'nothing'"),
        ("stopped", {}, "stopped is not finished; `ticket resume"),
        ("gelu", {}, "gelu calls no ReLU; its activations are gelu"),
        ("imp", {"split": "train"}, "unknown split 'train'"),
        ("imp", {"inputs": 0}, "inputs 0: expected a number of inputs, 1 or more"),
        ("imp", {"beside": "gelu"}, "the network of gelu has other ReLU units than that of imp"),
        ("imp", {"data": "no-data"}, "unknown data set 'no-data'"),
        ("imp", {"model": "conv2"}, "conv2: ValueError: the ticket does not fit the model"),
    ],
)
def test_what_cannot_be_answered(runs, name, flags, said):
    with pytest.raises(RequestError, match=said):
        activations(name, runs=runs, **flags)


def test_the_command(runs, ticket):
    place = ("--runs", str(runs))
    shown = ticket("inspect", "imp", *place, "--activations", "--plot", "units.png")
    assert shown.code == 0, shown.err
    assert " ".join(shown.out.split()).startswith(activations("imp", runs=runs).headline)
    for text in (LEVEL_0, "activation, call 2", "fc2.weight"):
        assert text in shown.out
    assert Path("units.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(ticket("inspect", "imp", *place, "--activations", "--inputs", "50", "--json").out)
    assert told["ticket"]["inputs"] == 50
    assert sum(call["units"] for call in told["ticket"]["calls"]) == told["ticket"]["units"] == 40
    refused = ticket("inspect", "imp", *place, "--inputs", "5", "--split", "test", "--plot", "x.png")
    assert refused.code == 2
    for name in ("--inputs", "--split", "--plot"):
        assert f"{name} goes with --activations" in refused.err
