from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from test_data_formats import write_set

import supermask
from supermask import Ticket, make_state
from supermask.tickets import foreign
from ticket_search import RequestError, train
from ticket_search.data.dataset import from_arrays
from ticket_search.data.examples import random_samples, real_samples
from ticket_search.deploy.export import FORMATS, export
from ticket_search.models.lenet import lenet_300_100


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from ticket_search import search

    folder = tmp_path_factory.mktemp("found")
    return search("imp", runs=folder, progress=False, density=0.5, fraction=0.3, epochs=2, threads=1)


def test_the_same_training_again_gives_the_same_network(found, tmp_path):
    """The winning start, trained as the last level was, is the ticket."""
    level = len(found.levels) - 1
    again = train(found.path, runs=tmp_path, progress=False, threads=1)
    assert again.ticket.masks == found.ticket.masks
    start = again.ticket.state_dict("start")
    assert all(torch.equal(tensor, start[name]) for name, tensor in found.ticket.state_dict("start").items())
    assert again.ticket.states["start"].drawn.keys() == found.ticket.states["start"].drawn.keys()
    assert abs(again.summary["test_accuracy"] - found.levels[level]["test_accuracy"]) < 3
    assert again.ticket.meta["parent"]["fingerprint"] == found.ticket.states["start"].fingerprint
    assert again.config.epochs == 2
    assert again.config.optimizer == "adam"
    assert str(tmp_path) not in json.dumps(dict(again.ticket.meta))


def test_another_order_another_network_and_continuing(found, tmp_path):
    one, other = (train(found.path, runs=tmp_path, progress=False, threads=1, seed=seed) for seed in (1, 2))
    assert one.ticket != other.ticket
    assert one.ticket.states["start"].fingerprint == other.ticket.states["start"].fingerprint
    more = train(found.path / "ticket.safetensors", runs=tmp_path, progress=False, threads=1, state="final", epochs=1)
    assert more.ticket.states["start"].fingerprint == found.ticket.states["final"].fingerprint
    assert more.summary["cost"]["steps"] == 21
    for run in (one, other, more):
        final = run.ticket.state_dict()
        assert all(not final[name][~mask].any() for name, mask in found.ticket.masks.items())


def test_transfer_to_other_data_of_the_same_shape(tmp_path):
    from ticket_search import search

    write_set(tmp_path / "fashion-mnist")
    write_set(tmp_path / "KMNIST" / "raw")
    flags = {"runs": tmp_path / "runs", "progress": False, "epochs": 1, "batch_size": 9, "data_dir": str(tmp_path)}
    flags["threads"] = 1
    run = search("imp", data="fashion-mnist", density=0.5, fraction=0.5, model_args="width=0.1", **flags)
    moved = train(run.path, data="kmnist", **flags)
    assert moved.summary["data"] == "kmnist"
    assert moved.ticket.masks == run.ticket.masks
    x = np.random.default_rng(0).normal(size=(100, 1, 28, 28)).astype("float32")
    arrays = train(run.path, data=(x, np.arange(100) % 10), **flags)
    assert arrays.summary["data"].startswith("arrays-")
    with pytest.raises(RequestError, match="does not fit"):
        train(run.path, data="digits", **flags)


def test_a_ticket_tells_what_a_sample_is_where_the_network_does_not(found, quick):
    assert "sample" not in found.ticket.meta
    shape = {"dtype": "float32", "shape": [1, 8, 8]}
    own = quick("dense", epochs=1, model=lambda: lenet_300_100((1, 8, 8), 10))
    assert own.ticket.meta["sample"] == shape
    x, y = np.arange(240).reshape(60, 4) % 7, np.arange(60) % 3
    tokens = lambda: torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Flatten(), torch.nn.Linear(16, 3))  # noqa: E731
    run = quick("dense", epochs=1, model=tokens, data=(x, y), batch_size=20)
    assert run.ticket.meta["sample"] == {"dtype": "int64", "shape": [4], "range": [0, 6]}
    drawn = random_samples(run.ticket.meta["sample"])(500)
    assert drawn.shape == (500, 4) and drawn.unique().tolist() == list(range(7))
    few = from_arrays((x, y), 0)
    assert torch.equal(real_samples(few)(9), few.validation_x[torch.arange(9) % len(few.validation_x)])


def test_a_ticket_of_other_targets_than_the_default(quick, tmp_path):
    run = quick("imp", density=0.5, fraction=0.5, epochs=1, include=["fc1", "fc2.weight"])
    assert "fc1.bias" in run.ticket.masks
    again = train(run.path, runs=tmp_path / "runs", progress=False, threads=1)
    assert again.ticket.masks == run.ticket.masks


def test_training_an_untrained_ticket(quick, tmp_path):
    untrained = quick("edge-popup", density=0.5)
    trained = train(
        untrained.path,
        runs=tmp_path / "runs",
        progress=False,
        threads=1,
        epochs=4,
        optimizer="adam",
        lr=1e-3,
        batch_size=60,
    )
    assert trained.summary["test_accuracy"] >= untrained.summary["test_accuracy"]
    assert trained.ticket.masks == untrained.ticket.masks


def test_train_from_the_shell(ticket, found, tmp_path):
    done = ticket("train", str(found.path), "--seed", "4", "--epochs", "1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["seed"] == 4
    assert (tmp_path / "runs" / "train-lenet-300-100-digits-d0.5-s4" / "ticket.safetensors").exists()
    plan = ticket("train", str(found.path), "--epochs", "2", "--dry-run", "--json")
    assert json.loads(plan.out)["steps"] == 42, plan.err
    help_text = ticket("train", "--help").out
    assert "--state" in help_text
    assert "The Lottery Ticket Hypothesis" in help_text
    for words, problem in [
        (["nothing"], "neither a ticket file nor a run"),
        (["--seed", "1"], "expected the ticket first"),
        ([str(found.path), "--density", "0.1"], "--density is the ticket's own"),
        ([str(found.path), "--weights", "net.pt"], "--weights is the ticket's own"),
        ([str(found.path), "--exclude", "fc3"], "--exclude is the ticket's own"),
        ([str(found.path), "--config", "x"], "--config is a flag of ticket search"),
        ([str(found.path), "--state", "begin"], "unknown state 'begin'"),
        ([str(found.path), "--epochs", "0", "--fraction", "0.5"], "--fraction is a flag of imp"),
    ]:
        wrong = ticket("train", *words)
        assert wrong.code == 2
        assert problem in wrong.err


@pytest.mark.parametrize("state", ["start", "final"])
@pytest.mark.parametrize("to", FORMATS)
def test_exported_files_hold_the_masked_network(to, state, found, tmp_path):
    # What hidden-networks can hold: one density for all layers.
    masks = supermask.prune(found.ticket.apply_to(lenet_300_100((1, 8, 8), 10)), 0.3, allocation="layerwise")
    even = Ticket(masks, {each: make_state(found.ticket.state_dict(each), masks) for each in ("start", "final")})
    chosen = even if to == "hidden-networks" else found.ticket
    path = export(chosen, to, tmp_path / "net", state)
    expected = chosen.state_dict(state)
    if to in ("torch-prune", "hidden-networks", "open-lth"):
        read_back = {
            "torch-prune": foreign.from_torch_prune,
            "hidden-networks": lambda file: foreign.from_hidden_networks(file, file["prune_rate"]),
            "open-lth": lambda file: foreign.from_open_lth(file, expected),
        }[to](torch.load(path, weights_only=True))
        assert read_back.masks == chosen.masks
        read = read_back.state_dict()
    elif to == "npz":
        with np.load(path) as arrays:
            read = {name: torch.from_numpy(arrays[name]) for name in arrays.files if not name.startswith("mask/")}
            masks = {
                name.removeprefix("mask/"): torch.from_numpy(arrays[name])
                for name in arrays.files
                if name.startswith("mask/")
            }
        assert found.ticket.masks == masks
    elif to == "compact":
        # Not the same tensors, by design: tests/test_compaction.py has the rest.
        x = torch.rand(3, 1, 8, 8)
        expected_outputs, outputs = chosen.model(state)(x), supermask.load_compact(path)(x)
        torch.testing.assert_close(outputs, expected_outputs)
        return
    elif to == "safetensors":
        read = safetensors.torch.load_file(path)
    else:
        read = torch.load(path, weights_only=True)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    model = lenet_300_100((1, 8, 8), 10)
    model.load_state_dict(read)
    supermask.hold(model, chosen.masks)
    supermask.check(model)


def test_export_overwrites_nothing_and_names_every_problem(ticket, found, tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(RequestError) as caught:
        export(found.ticket, "safetensor", tmp_path / "there", "end")
    assert len(caught.value.problems) == 3
    assert "did you mean 'safetensors'" in str(caught.value)
    assert (tmp_path / "there").read_text() == "mine"
    done = ticket("export", str(found.path), "--to", "npz", "--output", "net.npz")
    assert done.code == 0, done.err
    assert "wrote net.npz" in done.out
    assert ticket("export", str(found.path), "--to", "npz", "--output", "net.npz").code == 2
    assert ticket("export", str(found.path), "--to", "npz", "--output", "no/net.npz").code == 2
    odd = ticket("export", str(found.path), "--to", "hidden-networks", "--output", "hn.pt")
    assert odd.code == 2
    assert "hidden-networks has one density for all layers" in odd.err
