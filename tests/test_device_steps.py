"""Searches on a device that is not the CPU: they run, and no step, evaluation or augmentation waits for the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from method_tests import Searches
from products import thin
from second_device import SECOND, counting_waits, letting_the_host_wait, refusing_the_host, second_device

from ticket_search.methods import method_names
from ticket_search.running import search as searching
from ticket_search.runs import experiment
from ticket_search.training import evaluation, loop

METHODS = method_names()


@dataclass
class Seen:
    """What a search did on the device: steps, updates of masks that waited, waits of each evaluation and its batches."""

    steps: int = 0
    updates: int = 0
    evaluations: list[tuple[int, int]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch) -> Iterator[Seen]:
    """Runs resolve to the second device, and each training step is refused whatever the host would wait for."""
    found, resolve, make = Seen(), experiment.resolve, loop.make_optimizer
    train_on, run_to_end, validate = loop._Loop._train_on, loop._Loop.run_to_end, loop._Loop._validate
    all_batches = loop._Loop._batches_of

    def guarded(self, x, y):
        found.steps += 1
        with refusing_the_host():
            return train_on(self, x, y)

    def guarded_batches(self, *args):
        batches = iter(all_batches(self, *args))
        yield next(batches)  # the epoch's order and random numbers come with the first one
        while True:
            with refusing_the_host():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def with_watched_hook(self):
        on_step, before_step = self.hook.on_step, self.hook.before_step

        def watched(call, *args):
            with letting_the_host_wait(), counting_waits() as waits:
                result = call(*args)
            found.updates += bool(waits)
            return result

        self.hook.on_step = partial(watched, on_step)
        self.hook.before_step = partial(watched, before_step)
        return run_to_end(self)

    def counted(self):
        batches = -(-self.data.held_out_size("validation") // evaluation.BATCH)
        with counting_waits() as waits:
            result = validate(self)
        found.evaluations.append((len(waits), batches))
        return result

    def without_fused_steps(*args):
        optimizer = make(*args)
        for group in optimizer.param_groups:
            group["fused"] = False  # which PyTorch has for devices that it knows
        return optimizer

    monkeypatch.setattr(searching, "resolve", lambda config: resolve(config).model_copy(update={"device": SECOND.type}))
    monkeypatch.setattr(loop._Loop, "_train_on", guarded)
    monkeypatch.setattr(loop._Loop, "_batches_of", guarded_batches)
    monkeypatch.setattr(loop._Loop, "run_to_end", with_watched_hook)
    monkeypatch.setattr(loop._Loop, "_validate", counted)
    monkeypatch.setattr(loop, "make_optimizer", without_fused_steps)
    with second_device():
        yield found


# What moves masks now and then, and then reads how many have moved.
UPDATES = {"gradual": 2, "rigl": 3, "set": 2, "iterand": 16, "gem-miner": 1, "early-bird": 1}
OFTEN = {"gradual": {"prune_every": "4it"}}


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_host(method, seen, tmp_path):
    searches = Searches(tmp_path, model_args="width=0.2", train_size=640, batch_size=80)
    run = searches.search(method, **OFTEN.get(method, {}))
    assert seen.steps >= 16 and run.summary["kept"] > 0
    assert seen.updates == UPDATES.get(method, 0), "between its updates a hook waits for nothing"
    assert {waits for waits, _ in seen.evaluations} == {2}, "the sums of loss and metric"


TRAINED = {
    "augmented": {"crop": 1, "flip": True},
    "in parts": {"clip": 0.5, "accumulate": 2, "label_smoothing": 0.1},
    "channels last": {"channels_last": True, "optimizer": "sgd"},
}
MASKED = {
    "global": {"allocation": "global"},
    "2:4": {"granularity": "2:4", "exclude": ("features.0", "classifier.4"), "density": 0.5},
    "trained norms": {"train_norms": True},
}
CASES = [(method, case) for case in TRAINED for method in ("dense", "edge-popup", "gradual", "biprop", "imp")]
CASES += [(method, case) for case in MASKED for method in ("edge-popup", "biprop")]


@pytest.mark.parametrize("case", thin(CASES, 2), ids="-".join)
def test_no_step_of_a_convolutional_network_waits(case, seen, tmp_path):
    method, flags = case
    searches = Searches(tmp_path, model="conv2", model_args="width=0.125", train_size=320, batch_size=80, epochs=1)
    searches.search(method, **{**TRAINED, **MASKED}[flags])
    assert seen.steps >= 4 and {waits for waits, _ in seen.evaluations} == {2}


def test_the_waits_of_an_evaluation_do_not_grow_with_its_batches(seen, tmp_path, monkeypatch):
    searches = Searches(tmp_path, model_args="width=0.2", train_size=160, batch_size=80, epochs=1)
    for size in (16, 1024):
        monkeypatch.setattr(evaluation, "BATCH", size)
        searches.search("edge-popup")
    (few_waits, many), *_, (waits, one) = seen.evaluations
    assert many > 5 and one == 1 and few_waits == waits


def test_what_waits_is_seen():
    with second_device():
        x = torch.arange(4.0).to(SECOND)
        for wait in (
            lambda: x.sum().item(), lambda: x.cpu(), lambda: x.nonzero(), lambda: x[x > 1], lambda: torch.ones(3).to(SECOND),
            lambda: bool((x > 1).any()), lambda: x.tolist(), lambda: x.copy_(torch.zeros(4)), lambda: x[torch.tensor([1])],
        ):  # fmt: skip
            with counting_waits() as waits:
                wait()
            assert len(waits) == 1
            with refusing_the_host(), pytest.raises(AssertionError, match="the host waits for the device"):
                wait()
        with refusing_the_host():
            torch.ones(4).to(SECOND, non_blocking=True).add_(x).sum()
