"""What must always hold, over every method; its traits say which lines apply."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import supermask
import ticket_search.training.loop
from supermask.live.held import program_of
from supermask.live.learned import Learned
from supermask.selection.top_k import count_kept
from ticket_search import Interrupted, resume, search
from ticket_search.methods import find_method, method_names
from ticket_search.runs.progress import Progress

METHODS = method_names()
DENSITY = 0.3


def flags_of(name: str, **more) -> dict:
    flags = {"epochs": 2, "threads": 1, "evaluate_every": "15it", **more}
    flags |= {"retrain_epochs": 2} if name == "filters" else {}
    return flags if find_method(name).traits.dense else {"density": DENSITY, **flags}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = {}

    def get(name: str):
        if name not in runs:
            runs[name] = search(name, runs=folder, progress=False, **flags_of(name))
        return runs[name]

    return get


@pytest.mark.parametrize("name", METHODS)
def test_exact_density_to_the_unit(name, finished):
    method, run = find_method(name), finished(name)
    masks = run.ticket.masks
    density = 1.0 if method.traits.dense else DENSITY
    assert masks.size == 64 * 300 + 300 * 100 + 100 * 10
    if method.traits.exact_density:
        assert masks.kept == count_kept(density, masks.size)
        if run.config.model_dump().get("allocation") == "layerwise":
            assert masks.kept_per_tensor == {n: count_kept(density, m.numel()) for n, m in masks.items()}
    assert run.summary["kept"] == masks.kept
    assert run.summary["density"] == masks.density


@pytest.mark.parametrize("density", [1e-4, 1.0])
@pytest.mark.parametrize("name", [n for n in METHODS if not find_method(n).traits.dense])
def test_extreme_densities(name, density, tmp_path):
    config = find_method(name).Config
    flags = {"allocation": "global"} if "allocation" in config.model_fields else {}
    if (not find_method(name).traits.trains_weights) and density < 1:
        return  # a layer empties, which is refused: see test_requests
    if name == "filters" and density < 1:
        return  # no filter is left, which is refused: see test_filters
    flags |= {"fraction": 0.9} if "fraction" in config.model_fields else {}
    run = search(name, runs=tmp_path, progress=False, **{**flags_of(name, epochs=1), "density": density, **flags})
    assert run.ticket.masks.kept == count_kept(density, 50200)


@pytest.mark.parametrize("name", METHODS)
def test_dropped_weights_are_zero_after_every_step(name, tmp_path, monkeypatch):
    models: list[torch.nn.Module] = []
    make = ticket_search.training.loop.make_optimizer
    monkeypatch.setattr(
        ticket_search.training.loop,
        "make_optimizer",
        lambda model, *args: (models.append(model), make(model, *args))[1],
    )
    steps = []

    def after_step(optimizer, args, kwargs):
        model = models[-1]
        program = program_of(model)
        if program is None:
            assert name in ("dense", "imp", "one-shot", "gradual", "filters"), (
                "only a dense training goes without masks"
            )
            return
        masks = supermask.masks_of(model)
        net = supermask.bake(model) if isinstance(program, Learned) else model
        bits = [net.get_parameter(n).detach()[~m].view(torch.int32) for n, m in masks.items()]
        assert not torch.cat(bits).any()
        steps.append(masks.kept)

    handle = register_optimizer_step_post_hook(after_step)
    try:
        search(name, runs=tmp_path, progress=False, **flags_of(name, optimizer="adamw", lr=1e-3, weight_decay=0.1))
    finally:
        handle.remove()
    assert find_method(name).traits.dense or len(steps) > 10


@pytest.mark.parametrize("name", [n for n in METHODS if find_method(n).traits.nested])
def test_masks_only_shrink_over_levels_and_rewound_weights_are_the_stored_ones(name, finished):
    run = finished(name)
    tickets = [run.load_level(row["level"]) for row in run.levels]
    assert len(tickets) > 3
    dense_start = tickets[0].state_dict("start")
    for before, after in itertools.pairwise(tickets):
        assert after.masks.within(before.masks)
        assert after.masks.kept < before.masks.kept
    for ticket in tickets:
        for tensor_name, tensor in ticket.state_dict("start").items():
            mask = ticket.masks.get(tensor_name)
            expected = dense_start[tensor_name] if mask is None else torch.where(mask, dense_start[tensor_name], 0.0)
            assert torch.equal(tensor.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("name", [n for n in METHODS if not find_method(n).traits.trains_weights])
def test_frozen_weights_are_those_of_the_seed(name, finished):
    run = finished(name)
    ticket = run.ticket
    weights = {n: run.ticket.states["final"].drawn[n].tensor(n) for n in ticket.masks}
    assert supermask.fingerprint(weights) == ticket.meta["frozen_fingerprint"] == run.summary["frozen_fingerprint"]
    final = ticket.state_dict("final")
    for n, mask in ticket.masks.items():
        assert torch.equal(final[n], torch.where(mask, weights[n], 0.0))


@pytest.mark.parametrize("name", METHODS)
def test_same_command_same_bytes(name, finished, tmp_path):
    again = search(name, runs=tmp_path, progress=False, **flags_of(name))
    run = finished(name)
    assert (again.path / "ticket.safetensors").read_bytes() == (run.path / "ticket.safetensors").read_bytes()
    other = search(name, runs=tmp_path, progress=False, **flags_of(name, seed=1))
    assert other.ticket != run.ticket


@pytest.mark.parametrize("name", METHODS)
def test_the_ticket_gives_the_accuracy_that_was_reported(name, finished):
    run = finished(name)
    ticket = supermask.load(run.path / "ticket.safetensors")
    assert supermask.unpack(supermask.pack(ticket)) == ticket
    from ticket_search.training.evaluation import evaluate_ticket

    measured = evaluate_ticket(ticket, "digits")
    assert measured["test_accuracy"] == run.summary["test_accuracy"] == ticket.meta["accuracy"]["final"]["test"]
    assert measured["val_accuracy"] == run.summary["val_accuracy"]
    start = evaluate_ticket(ticket, "digits", state="start")["test_accuracy"]
    assert start == ticket.meta["accuracy"]["start"]["test"]
    if find_method(name).traits.trains_weights:
        assert start < measured["test_accuracy"]


@pytest.mark.parametrize("stop_at", [1, 23, 33])
@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_resumed_is_never_stopped(name, stop_at, finished, tmp_path, monkeypatch):
    steps = 0

    def advance_to(self, step):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance_to", advance_to)
    flags = flags_of(name, epochs=4 if name == "edge-popup" else 2)
    with pytest.raises(Interrupted) as stop:
        search(name, runs=tmp_path, progress=False, **flags)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    folder = Path(stop.value.path)
    assert (folder / "state.pt").exists()
    assert not (folder / "summary.json").exists()
    run = resume(folder, progress=False)
    steps = 10**9
    whole = search(name, runs=tmp_path / "whole", progress=False, **flags)
    assert (run.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert not (folder / "state.pt").exists()

    def comparable(rows):
        return [{key: value for key, value in row.items() if not key.startswith("speed")} for row in rows]

    assert comparable(run.metrics) == comparable(whole.metrics)
    same = set(run.summary) - {"seconds", "cost"}
    assert {key: run.summary[key] for key in same} == {key: whole.summary[key] for key in same}
    assert run.summary["cost"]["steps"] == whole.summary["cost"]["steps"]


@pytest.mark.parametrize("name", METHODS)
def test_test_data_chooses_nothing(name, tmp_path, monkeypatch):
    """With other test data, everything but the reported test accuracy is the same."""
    from ticket_search.data import sources

    plain = search(name, runs=tmp_path / "plain", progress=False, **flags_of(name))
    read = sources.read_arrays

    def scrambled(*args):
        arrays = read(*args)
        return type(arrays)(**{**vars(arrays), "test_y": (arrays.test_y + 1) % 10})

    monkeypatch.setattr(sources, "read_arrays", scrambled)
    other = search(name, runs=tmp_path / "other", progress=False, **flags_of(name))
    assert other.ticket.masks == plain.ticket.masks
    for state in ("start", "final"):
        assert other.ticket.states[state].fingerprint == plain.ticket.states[state].fingerprint
    assert other.summary["test_accuracy"] != plain.summary["test_accuracy"]
    for chosen in ("min_validation_loss", "best_validation"):
        assert other.summary[chosen]["step"] == plain.summary[chosen]["step"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_file_with_a_paper(name):
    method = find_method(name)
    assert len(method.idea) < 100
    assert method.paper.rstrip(".")[-4:].isdigit(), "the paper's year"
    assert method.Config().method == name
    assert all(
        field.description
        for field in method.Config.model_fields.values()
        if field is not method.Config.model_fields["method"]
    )
