"""Iterative magnitude pruning: the densities of its levels, and what comes after each pruning."""

from __future__ import annotations

import pytest
import torch

import supermask
from supermask.selection.top_k import count_kept
from ticket_search import RequestError, compare, resume, search
from ticket_search.contract.flags import make_config
from ticket_search.methods.imp import Config
from ticket_search.runs.progress import Progress

LEVELS = (0.51, 0.13, 0.049)
SHORT = {"epochs": 2, "levels": LEVELS, "optimizer": "sgd", "lr": 0.1, "train_size": 600}


@pytest.mark.parametrize("allocation", ["global", "layerwise", "module"])
def test_each_level_has_exactly_the_density_asked(allocation, quick):
    run = quick("imp", **SHORT, allocation=allocation, include=["*weight"] if allocation == "module" else [])
    tickets = [run.load_level(level) for level in range(1, 4)]
    for density, before, ticket in zip(LEVELS, [run.load_level(0), *tickets], tickets, strict=False):
        masks = ticket.masks
        if allocation == "layerwise":
            assert all(int(mask.sum()) == count_kept(density, mask.numel()) for mask in masks.values())
        else:
            assert masks.kept == count_kept(density, masks.size)
        assert not any((mask & ~before.masks[name]).any() for name, mask in masks.items()), "levels only shrink"
        # The largest of what was trained are kept: none that is dropped here is larger than one that is kept.
        trained = before.state_dict("final")
        if allocation == "global":
            kept = torch.cat([trained[name][mask].abs() for name, mask in masks.items()])
            gone = torch.cat([trained[name][before.masks[name] & ~mask].abs() for name, mask in masks.items()])
            assert kept.min() >= gone.max()
    assert [row["density"] for row in run.levels[1:]] == [ticket.masks.density for ticket in tickets]


def trained(quick, then: str, **flags):
    flags = {**SHORT, "epochs": 3, "levels": (0.5, 0.2), "rewind": "0", **flags}
    return quick("imp", then=then, folder=then, **flags)


def test_the_three_ways_are_the_same_or_not_by_the_schedule(quick):
    constant = {then: trained(quick, then) for then in ("rewind", "lr-rewind", "fine-tune")}
    one, two = (constant[then].ticket for then in ("lr-rewind", "fine-tune"))
    assert one.masks == two.masks
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert constant["rewind"].ticket.masks != one.masks
    falling = {"schedule": "step", "milestones": (2,), "name": "falling"}
    found = [trained(quick, then, **falling).ticket for then in ("rewind", "lr-rewind", "fine-tune")]
    assert len({supermask.fingerprint(ticket.state_dict()) for ticket in found}) == 3


@pytest.mark.parametrize("then", ["lr-rewind", "fine-tune"])
def test_a_level_starts_from_what_was_trained(then, quick):
    run = trained(quick, then)
    for level in (1, 2):
        before, ticket = run.load_level(level - 1), run.load_level(level)
        end, start = before.state_dict("final"), ticket.state_dict("start")
        for name, tensor in start.items():
            mask = ticket.masks.get(name)
            assert torch.equal(tensor, end[name] if mask is None else end[name] * mask), name
        assert run.levels[level]["retrained"]
    answer = compare([run.path]).groups[0].verdict.as_early
    assert answer.answer == "unknown" and "continues from trained weights" in answer.because


def test_a_stopped_one_goes_on_as_if_it_had_not_been(quick, monkeypatch):
    flags = {"schedule": "step", "milestones": (2,), "retrain_epochs": 2}
    whole = trained(quick, "fine-tune", name="whole", **flags)
    count = iter(range(10**6))

    def stop(self, step):
        if next(count) == 40:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance_to", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(quick, "fine-tune", name="stopped", **flags)
    again = resume(whole.path.parent / "stopped", progress=False)
    assert again.ticket.masks == whole.ticket.masks
    assert supermask.fingerprint(again.ticket.state_dict()) == supermask.fingerprint(whole.ticket.state_dict())


def test_ways_are_told_apart_by_name(quick):
    runs = [trained(quick, then) for then in ("rewind", "lr-rewind")]
    labels = {group.label for group in compare([run.path for run in runs]).groups}
    assert labels == {"imp then=rewind", "imp then=lr-rewind"}, "the default, which no record names, has its name"


def test_what_does_not_go_together_is_said_at_once(tmp_path):
    flags = {
        "levels": (0.1, 0.3), "density": 0.2, "fraction": 0.5, "then": "lr-rewind", "retrain_lr": 0.1,
        "rewind_optimizer": "restore", "rewind": "5it",
    }  # fmt: skip
    with pytest.raises(RequestError) as error:
        search("imp", runs=tmp_path, progress=False, **flags)
    text = str(error.value)
    for part in (
        "--fraction and --levels 0.1,0.3: the levels say what is dropped",
        "--density 0.2 and --levels 0.1,0.3: the last level is the density",
        "--levels 0.1,0.3: expected each density below the one before",
        "--retrain-lr goes with --then fine-tune",
        "--rewind-optimizer restore goes with --then rewind",
    ):
        assert part in text, text
    assert make_config(Config, {"levels": "0.5,0.1"}).density == 0.1
    with pytest.raises(RequestError, match="give --retrain-lr"):
        make_config(Config, {"then": "fine-tune", "schedule": "cosine"})


def test_a_density_that_keeps_nothing_is_refused(tmp_path):
    with pytest.raises(RequestError, match="keeps none of the 50,200 weights"):
        search("imp", levels=(0.5, 1e-7), runs=tmp_path, progress=False)
