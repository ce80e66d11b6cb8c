from __future__ import annotations

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from test_data_formats import write_set

import supermask
from supermask import Ticket, make_state
from supermask.tickets import foreign
from ticket_search import RequestError, controls, train
from ticket_search.data.dataset import from_arrays
from ticket_search.data.examples import random_samples, real_samples
from ticket_search.deploy.export import FORMATS, export
from ticket_search.models.lenet import lenet_300_100


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from ticket_search import search

    folder = tmp_path_factory.mktemp("found")
    return search("imp", runs=folder, progress=False, density=0.5, fraction=0.3, epochs=2, threads=1, train_size=320)


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
    assert more.summary["cost"]["steps"] == 5
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


def five_classes(shape: tuple[int, ...] = (1, 8, 8)):
    x = np.random.default_rng(0).normal(size=(450, *shape)).astype("float32")
    return x, np.arange(450) % 5


def test_another_number_of_classes_wants_a_fresh_output_layer(found, tmp_path):
    flags = {"runs": tmp_path, "progress": False, "threads": 1, "epochs": 1, "data": five_classes()}
    with pytest.raises(RequestError) as error:
        train(found.path, **flags)
    (problem,) = error.value.problems
    assert problem.startswith("the ticket was found on digits, 10 classes, arrays-")
    assert "has 5: --head fresh draws the output layer fc3 anew, without a mask" in problem
    run = train(found.path, head="fresh", **flags)
    masks, start, final = run.ticket.masks, run.ticket.state_dict("start"), run.ticket.state_dict()
    before = found.ticket.state_dict("start")
    assert masks == {name: mask for name, mask in found.ticket.masks.items() if name != "fc3.weight"}
    assert {name for name in start if start[name].shape != before[name].shape} == {"fc3.weight", "fc3.bias"}
    assert all(torch.equal(start[name], before[name]) for name in start if not name.startswith("fc3"))
    assert torch.equal(start["fc3.weight"], supermask.draw("kaiming-normal", (5, 100), 0, "fc3.weight"))
    assert not start["fc3.bias"].any() and final["fc3.weight"].all() and final["fc3.bias"].all()
    assert all(not final[name][~mask].any() for name, mask in masks.items())
    assert (run.summary["found_by"], run.summary["found_on"]) == ("imp", "digits")
    assert run.summary["data"].startswith("arrays-")
    assert run.ticket.model()(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    other = train(found.path, head="fresh", init_seed=3, **flags)
    assert not torch.equal(other.ticket.state_dict("start")["fc3.weight"], start["fc3.weight"])


def test_an_output_layer_without_a_mask_is_told_of_too(quick, tmp_path):
    run = quick("snip", density=0.2, exclude=["fc3"], epochs=1)
    flags = {"runs": tmp_path / "other", "progress": False, "threads": 1, "data": five_classes()}
    with pytest.raises(RequestError, match="10 classes, arrays-.* has 5: --head fresh"):
        train(run, **flags)
    assert train(run, head="fresh", **flags).ticket.masks == run.ticket.masks


def test_samples_of_another_shape_are_refused(found, tmp_path):
    flags = {"runs": tmp_path, "progress": False, "data": five_classes((1, 8, 16))}
    for head in ("ticket", "fresh"):
        with pytest.raises(RequestError) as error:
            train(found.path, head=head, **flags)
        (problem,) = error.value.problems
        assert re.fullmatch(
            r"the ticket does not fit (arrays-\w+): it was found on digits, samples of shape \[1, 8, 8\], and those of "
            r"\1 have shape \[1, 8, 16\]",
            problem,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["imp", "early-bird"])
def test_controls_on_data_of_other_classes(quick, method):
    few = {"fraction": 0.5} if method == "imp" else {"granularity": "weight"}
    run = (
        quick(method, density=0.3, epochs=2, rewind="3it", **few) if method == "imp" else quick(method, epochs=2, **few)
    )
    with pytest.raises(RequestError, match="--head fresh draws the output layer fc3 anew"):
        controls(run.path, elsewhere=five_classes(), progress=False)
    kinds = ["ticket", "dense", "reinit", "shuffle"] if method == "imp" else ["ticket", "reinit", "shuffle"]
    rows = {
        row["control"]: row for row in controls(run.path, kinds, elsewhere=five_classes(), head="fresh", progress=False)
    }
    tickets = {kind: supermask.load(run.path / row["path"] / "ticket.safetensors") for kind, row in rows.items()}
    assert all("fc3.weight" not in each.masks for each in tickets.values())
    kept = int(sum(run.ticket.masks[name].sum() for name in ("fc1.weight", "fc2.weight")))
    starts = {kind: each.state_dict("start") for kind, each in tickets.items()}
    for kind in kinds:
        assert rows[kind]["kept"] == (kept if kind != "dense" else tickets[kind].masks.size)
        assert torch.equal(starts[kind]["fc3.weight"], starts["ticket"]["fc3.weight"]) == (kind != "reinit")
    assert tickets["reinit"].masks == tickets["ticket"].masks != tickets["shuffle"].masks
    point = run.load_rewind_point().state_dict()
    mask = tickets["shuffle"].masks["fc1.weight"]
    assert torch.equal(starts["shuffle"]["fc1.weight"], torch.where(mask, point["fc1.weight"], 0.0))
    if method == "early-bird":
        with pytest.raises(RequestError, match="no dense network to train on other data"):
            controls(run.path, ["dense"], elsewhere=five_classes(), head="fresh", progress=False)


def test_head_goes_with_other_data(found):
    with pytest.raises(RequestError, match="--head fresh: expected fresh, on other data, or ticket"):
        controls(found.path, head="fresh", progress=False)


@pytest.mark.parametrize("method", ["early-bird", "imp"])
def test_transfer_from_the_shell_says_where_from_and_where_to(ticket, small_mnist1d, method):
    few = ["--fraction", "0.5", "--density", "0.3"] if method == "imp" else []
    answer = ticket("search", "--method", method, "--data", "mnist1d", "--epochs", "1", "--name", "first", *few)
    assert answer.code == 0, answer.err
    moved = ticket("train", "first", "--data", "mnist1d-fresh", "--name", "second")
    assert moved.code == 0, moved.err
    assert f"found by {method} on mnist1d, trained here on mnist1d-fresh" in moved.out
    shown = ticket("controls", "first", "--on", "mnist1d-fresh", "--controls", "ticket,reinit", "--json")
    rows = {row["control"]: row for row in json.loads(shown.out)["rows"]}
    assert {row["data"] for row in rows.values()} == {"mnist1d-fresh"}
    second = supermask.load("runs/second/ticket.safetensors")
    assert rows["ticket"]["test_accuracy"] == second.meta["accuracy"]["final"]["test"]
    refused = ticket("train", "first", "--data", "digits")
    assert refused.code == 2
    assert "it was found on mnist1d, samples of shape [40], and those of digits have shape [1, 8, 8]" in refused.err


def test_a_ticket_tells_what_a_sample_is_where_the_network_does_not(found, quick):
    assert "sample" not in found.ticket.meta
    shape = {"dtype": "float32", "shape": [1, 8, 8]}
    own = quick("dense", epochs=1, model=lambda: lenet_300_100((1, 8, 8), 10))
    assert own.ticket.meta["sample"] == shape
    x, y = np.arange(240).reshape(60, 4) % 7, np.arange(60) % 3
    tokens = lambda: torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Flatten(), torch.nn.Linear(16, 3))  # noqa: E731
    run = quick("dense", epochs=1, model=tokens, data=(x, y), batch_size=20, train_size=None)
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
    assert json.loads(plan.out)["steps"] == 10, plan.err
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
