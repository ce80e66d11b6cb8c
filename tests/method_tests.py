"""What must hold for every method, of whatever package; its traits say which lines apply.

    searches = Searches(tmp_path)
    for check in checks_of("my-method"):
        check("my-method", searches)

No check knows a method by its name: what a method is asked follows from its traits and from the flags that it has.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import supermask
from supermask.live.held import Hold, program_of
from supermask.selection.top_k import count_kept
from ticket_search import Interrupted, RequestError, Run, RunError, resume, search, train
from ticket_search.data import sources
from ticket_search.data.samples import whole_batches
from ticket_search.methods import find_method
from ticket_search.runs.progress import Progress
from ticket_search.training import loop
from ticket_search.training.evaluation import evaluate_ticket

DENSITY = 0.3
# What makes a search short, of the methods that have the flag: two levels below the dense network, a few rounds.
FEW = {"fraction": 0.45, "rounds": 5, "tasks": "permuted:2", "decisions": 5}


@dataclass
class Watched:
    """What the steps of a search were seen to do."""

    models: list[torch.nn.Module] = field(default_factory=list)
    steps: int = 0
    masked: int = 0
    unmasked: list[int] = field(default_factory=list)
    not_zero: list[str] = field(default_factory=list)

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        model = self.models[-1]
        program = program_of(model)
        if program is None:
            return
        net = model if isinstance(program, Hold) else supermask.bake(model)
        for name, mask in supermask.masks_of(model).items():
            if net.get_parameter(name).detach()[~mask].view(torch.int32).any():
                self.not_zero.append(f"{name} in the {self.masked + 1}th step under masks")
        self.masked += 1

    def advance_to(self, step: int) -> None:
        self.steps += 1
        if program_of(self.models[-1]) is None:
            self.unmasked.append(step)


@contextlib.contextmanager
def watch() -> Iterator[Watched]:
    """Look at the network after each step of what is searched meanwhile."""
    seen, make = Watched(), loop.make_optimizer
    # The first model that is held brings the hook that makes dropped weights 0: it comes before the one that looks.
    supermask.hold(layer := torch.nn.Linear(2, 2), supermask.prune(layer, 0.5))
    handle = register_optimizer_step_post_hook(seen.after_step)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                loop, "make_optimizer", lambda model, *args: (seen.models.append(model), make(model, *args))[1]
            )
            patch.setattr(Progress, "advance_to", lambda self, step: seen.advance_to(step))
            yield seen
    finally:
        handle.remove()


class Searches:
    """Short searches, each in a folder of its own; the one that most checks look at is made once for each method.

    What all of them are given besides, as a model and data, is said in the beginning.
    """

    def __init__(self, folder: Path, **flags: Any) -> None:
        self.folder, self.flags = folder, flags
        self._watched: dict[str, Watched] = {}
        self._runs: dict[str, Run] = {}
        self._folders = (folder / f"{number:02d}" for number in itertools.count())

    def finished(self, name: str) -> Run:
        """The run that `search(name)` makes."""
        if name not in self._runs:
            with watch() as self._watched[name]:
                self._runs[name] = self.search(name)
        return self._runs[name]

    def watched(self, name: str) -> Watched:
        """What the steps of that run were seen to do."""
        self.finished(name)
        return self._watched[name]

    def search(self, name: str, **flags: Any) -> Run:
        """A search of two epochs."""
        return search(name, runs=next(self._folders), progress=False, **self.flags_of(name, **flags))

    def flags_of(self, name: str, **flags: Any) -> dict[str, Any]:
        """What a search of the method is given."""
        method = find_method(name)
        few = {key: value for key, value in FEW.items() if key in method.Config.model_fields}
        if "rounds" in few:
            few["rounds"] = min(few["rounds"], method.Config().rounds)
        density = {} if method.traits.dense else {"density": DENSITY}
        # Moments and a decay that would move what is dropped.
        steps = {"epochs": 2, "threads": 1, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}
        return {**steps, "evaluate_every": "15it", **density, **few, **self.flags, **flags}


def tickets_of(run: Run) -> list[supermask.Ticket]:
    """The ticket of a run, or of several tasks that of each."""
    ticket = run.ticket
    return [ticket.task(name) for name in ticket.tasks] or [ticket]


def count_steps(patch: pytest.MonkeyPatch, *stops: int) -> itertools.count[int]:
    """Count the steps of what is searched from now on; at some of them this process is asked to stop."""
    count = itertools.count()

    def advance_to(self: Progress, step: int) -> None:
        if next(count) + 1 in stops:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Progress, "advance_to", advance_to)
    return count


def checks_of(name: str) -> list[Callable[[str, Searches], None]]:
    """The checks of a method: each takes its name and the searches."""
    traits = find_method(name).traits
    return [
        it_is_one_file_with_a_paper,
        the_density_is_that_asked,
        dropped_weights_are_zero_after_every_step,
        the_ticket_gives_the_accuracy_that_was_reported,
        another_seed_gives_another_ticket,
        stopped_and_resumed_is_never_stopped,
        the_test_data_choose_nothing,
        *([] if traits.dense else [extreme_densities_are_met_or_refused]),
        *([masks_only_shrink_and_rewound_weights_are_the_stored_ones] if traits.nested else []),
        *([] if traits.trains_weights else [untrained_weights_are_the_same_in_both_states]),
        *([untrained_weights_are_those_of_the_seed] if traits.weights == "frozen" else []),
    ]


def it_is_one_file_with_a_paper(name: str, searches: Searches) -> None:
    method = find_method(name)
    assert 0 < len(method.idea) < 100
    assert method.paper.rstrip(".")[-4:].isdigit(), "the paper's year"
    assert method.Config().method == name
    fields = {key: field for key, field in method.Config.model_fields.items() if key != "method"}
    assert [key for key, field in fields.items() if not field.description] == []


def the_density_is_that_asked(name: str, searches: Searches) -> None:
    traits, run = find_method(name).traits, searches.finished(name)
    density = 1.0 if traits.dense else DENSITY
    each = [ticket.masks for ticket in tickets_of(run)]
    for masks in each:
        assert masks.size == run.summary["weights"]
        if traits.exact_density:
            assert masks.kept == count_kept(density, masks.size)
            if run.config.model_dump().get("allocation") == "layerwise":
                assert masks.kept_per_tensor == {n: count_kept(density, m.numel()) for n, m in masks.items()}
    assert run.summary["kept"] == run.ticket.kept == round(sum(masks.kept for masks in each) / len(each))
    assert run.summary["density"] == run.ticket.density == sum(masks.density for masks in each) / len(each)


def extreme_densities_are_met_or_refused(name: str, searches: Searches) -> None:
    method = find_method(name)
    fields = method.Config.model_fields
    flags = {"epochs": 1, **({"allocation": "global"} if "allocation" in fields else {})}
    flags |= {"fraction": 0.99} if "fraction" in fields else {}
    one = 1 / searches.finished(name).summary["weights"]
    for density in (one, 1.0):
        each, refused = None, ""
        try:
            each = [ticket.masks for ticket in tickets_of(searches.search(name, density=density, **flags))]
        except (RequestError, RunError) as error:
            refused = str(error)
        if each is None:
            # A layer under learned masks that empties, a layer without a filter: there is no such ticket.
            held = method.traits.trains_weights and not method.traits.changes_masks
            assert density < 1 and not (method.traits.exact_density and held), refused
            assert "densit" in refused
        elif method.traits.exact_density:
            assert all(masks.kept == count_kept(density, masks.size) for masks in each)


def dropped_weights_are_zero_after_every_step(name: str, searches: Searches) -> None:
    run, seen = searches.finished(name), searches.watched(name)
    assert seen.not_zero == []
    method = find_method(name)
    per_epoch = whole_batches(run.data.train_size, run.config.batch_size)
    stages = method.plan(run.config, run.setup.targets(run.config, seen.models[-1]), per_epoch)
    assert seen.masked or not any(stage.steps for stage in stages if stage.density < 1)
    # Only the dense network goes without masks: nothing is dropped before such a step, nor at the next time that is told.
    told = [(row["step"], row["density/total"]) for row in run.metrics if "density/total" in row]
    for step in seen.unmasked:
        before = [density for at, density in told if at < step]
        after = [(at, density) for at, density in told if at >= step]
        assert before == [] or before[-1] == 1
        assert after[0][0] == step or after[0][1] == 1


def masks_only_shrink_and_rewound_weights_are_the_stored_ones(name: str, searches: Searches) -> None:
    run = searches.finished(name)
    tickets = [run.load_level(row["level"]) for row in run.levels]
    assert len(tickets) >= 3
    dense_start = tickets[0].state_dict("start")
    for before, after in itertools.pairwise(tickets):
        assert after.masks.within(before.masks)
        assert after.masks.kept < before.masks.kept
    for ticket in tickets:
        for tensor_name, tensor in ticket.state_dict("start").items():
            mask = ticket.masks.get(tensor_name)
            expected = dense_start[tensor_name] if mask is None else torch.where(mask, dense_start[tensor_name], 0.0)
            assert torch.equal(tensor.view(torch.int32), expected.view(torch.int32))


def untrained_weights_are_those_of_the_seed(name: str, searches: Searches) -> None:
    run = searches.finished(name)
    for ticket in tickets_of(run):
        weights = {n: ticket.states["final"].drawn[n].tensor(n) for n in ticket.masks}
        assert supermask.fingerprint(weights) == ticket.meta["frozen_fingerprint"] == run.summary["frozen_fingerprint"]
        final = ticket.state_dict("final")
        for n, mask in ticket.masks.items():
            assert torch.equal(final[n], torch.where(mask, weights[n], 0.0))


def untrained_weights_are_the_same_in_both_states(name: str, searches: Searches) -> None:
    """So that what survives can be trained from either: `ticket train RUN`."""
    run = searches.finished(name)
    for ticket in tickets_of(run):
        start, final = (ticket.state_dict(state) for state in ("start", "final"))
        assert all(torch.equal(start[n], final[n]) and final[n][mask].any() for n, mask in ticket.masks.items())
    flags = {
        "epochs": 1,
        "optimizer": "adam",
        "lr": 1e-3,
        **({"task": run.ticket.tasks[-1]} if run.ticket.tasks else {}),
    }
    trained = train(run, runs=run.path.parent / "trained", progress=False, **flags)
    assert trained.ticket.masks == ticket.masks
    for n, mask in trained.ticket.masks.items():
        weights = trained.ticket.state_dict("final")[n]
        assert not weights[~mask].any()
        assert not torch.equal(weights, final[n])


def the_ticket_gives_the_accuracy_that_was_reported(name: str, searches: Searches) -> None:
    run = searches.finished(name)
    ticket = supermask.load(run.path / "ticket.safetensors")
    assert supermask.unpack(supermask.pack(ticket)) == ticket
    measured = evaluate_ticket(ticket, run.config.data)
    assert measured["test_accuracy"] == run.summary["test_accuracy"] == ticket.meta["accuracy"]["final"]["test"]
    assert measured["val_accuracy"] == run.summary["val_accuracy"]
    for task in ticket.tasks:
        of_one = evaluate_ticket(ticket.task(task), run.config.data)
        assert of_one["test_accuracy"] == ticket.parts[task].meta["accuracy"]["final"]["test"]
    start = evaluate_ticket(ticket, run.config.data, state="start")["test_accuracy"]
    assert start == ticket.meta["accuracy"]["start"]["test"]
    if find_method(name).traits.trains_weights:
        assert start < measured["test_accuracy"]


def another_seed_gives_another_ticket(name: str, searches: Searches) -> None:
    assert searches.search(name, seed=1).ticket != searches.finished(name).ticket


def stopped_and_resumed_is_never_stopped(name: str, searches: Searches) -> None:
    """Stopped after the first step, in the middle and before the last step: the bytes of the same command."""
    whole = searches.finished(name)
    steps = searches.watched(name).steps
    stops = (1, steps // 2, steps - 1)
    folder = None
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, *stops)
        for _ in stops:
            with pytest.raises(Interrupted) as stop:
                resume(folder, progress=False) if folder else searches.search(name)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            folder = Path(stop.value.path)
            assert (folder / "state.pt").exists()
            assert not (folder / "summary.json").exists()
        run = resume(folder, progress=False)
    assert run.path == folder
    assert not (folder / "state.pt").exists()
    assert (folder / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()

    def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if not key.startswith("speed")} for row in rows]

    assert comparable(run.metrics) == comparable(whole.metrics)
    same = set(run.summary) - {"seconds", "cost"}
    assert {key: run.summary[key] for key in same} == {key: whole.summary[key] for key in same}
    assert run.summary["cost"]["steps"] == whole.summary["cost"]["steps"]


def the_test_data_choose_nothing(name: str, searches: Searches) -> None:
    """With other test data, everything but the reported test accuracy is the same."""
    plain, read = searches.finished(name), sources.read_arrays

    def scrambled(*args: Any) -> Any:
        arrays = read(*args)
        return type(arrays)(**{**vars(arrays), "test_y": (arrays.test_y + 1) % (int(arrays.test_y.max()) + 1)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read_arrays", scrambled)
        other = searches.search(name)
    assert other.ticket.masks == plain.ticket.masks
    for one, its in zip(tickets_of(plain), tickets_of(other), strict=True):
        assert its.masks == one.masks
        for state in ("start", "final"):
            assert its.states[state].fingerprint == one.states[state].fingerprint
    assert other.summary["test_accuracy"] != plain.summary["test_accuracy"]
    for chosen in ("min_validation_loss", "best_validation"):
        assert (chosen in other.summary) == (chosen in plain.summary)
        if chosen in plain.summary:  # not where nothing was trained after pruning
            assert other.summary[chosen]["step"] == plain.summary[chosen]["step"]
