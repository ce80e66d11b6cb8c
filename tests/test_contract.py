"""What a method is, and its way into the training: a method of a few lines for each hook, against a loop by hand."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_tests import FEW
from test_methods import some_searches
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import supermask
from supermask.weights.fitting import state_of
from ticket_search import Interrupted, Run, search
from ticket_search.contract.errors import RequestError
from ticket_search.contract.flags import Config, make_config, public_fields
from ticket_search.contract.method import Hook, Method, Stage, Traits, describe_method
from ticket_search.methods import dense, find_method, method_names, own_methods
from ticket_search.running.plan import make_plan
from ticket_search.running.search import carry_out
from ticket_search.runs.experiment import load_data, make_setup, resolve
from ticket_search.training import conclude, loop

FLAGS = {"epochs": 2, "threads": 1, "device": "cpu", "batch_size": 60, "optimizer": "sgd", "momentum": 0.0, "lr": 0.05}
SMALL = {"model_args": "width=0.1"}
STEPS = 2 * (1293 // 60)


def method_of(make_hook: Callable[[nn.Module, Run], Hook], hold: bool = False, **traits: Any) -> Method:
    """A method of one training that goes through the hook."""
    module = types.ModuleType("mine", "Go through a hook.\n\nNobody, Nothing, 2026.")

    def work(model: nn.Module, run: Run) -> supermask.Ticket:
        if hold:
            supermask.hold(model, supermask.prune(model, 0.5, "random"))
        return conclude.train_once(
            model, run, None if hold else conclude.keep_all(model, run.config), hook=make_hook(model, run)
        )

    module.Config, module.TRAITS, module.search = dense.Config, Traits(**{"dense": True, **traits}), work
    module.plan = lambda config, targets, per_epoch: [Stage("training", 1.0, config.epochs * per_epoch)]
    return describe_method("dense", module)


def start(method: Method, folder: Path, **flags: Any) -> Run:
    """A run of the method that has not been begun."""
    config = resolve(make_config(method.Config, {**FLAGS, **SMALL, **flags}))
    data = load_data(config.data, config)
    return Run(folder, config.model_copy(update={"data": data.name}), make_setup(method, config.model, data, config))


def carry(make_hook: Callable[[nn.Module, Run], Hook], folder: Path, hold: bool = False, **flags: Any) -> Run:
    return carry_out(start(method_of(make_hook, hold), folder, **flags))


def by_hand(run: Run, step: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor, torch.Tensor, int], None],
            groups: Callable[[nn.Module], Any]) -> dict[str, torch.Tensor]:  # fmt: skip
    """The same network on the same batches, trained by a loop that is written out."""
    from supermask.masks.random_numbers import permutation

    model = run.setup.make_model(run.config)
    optimizer = torch.optim.SGD(groups(model), lr=run.config.lr, momentum=run.config.momentum)
    number = 0
    for epoch in range(run.config.epochs):
        order = permutation(run.data.train_size, run.config.seeds["order"], f"order/0/{epoch}")
        for x, y in run.data.train_batches(order, run.config.batch_size, 0, epoch):
            optimizer.zero_grad()
            step(model, optimizer, x, y, number)
            number += 1
    return state_of(model)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def plain_step(model, optimizer, x, y, number):
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_no_hook_and_an_empty_one_are_the_same_training(tmp_path):
    run = carry(lambda model, run: Hook(), tmp_path / "empty")
    close(run.ticket.state_dict("final"), by_hand(run, plain_step, lambda model: model.parameters()))
    other = search("dense", runs=tmp_path, name="none", progress=False, **FLAGS, **SMALL)
    assert other.ticket.state_dict("final").keys() == run.ticket.state_dict("final").keys()
    for name, tensor in other.ticket.state_dict("final").items():
        assert torch.equal(tensor, run.ticket.state_dict("final")[name])


class Groups(Hook):
    """Biases twice as fast, the first layer's weight not at all but for its decay."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
        return [{"params": biases, "lr": 0.1}, {"params": [model.fc1.weight], "lr": 0.05, "weight_decay": 0.1}]


def test_groups_have_a_rate_and_a_decay_of_their_own(tmp_path):
    run = carry(lambda model, run: Groups(), tmp_path / "run", schedule="cosine")

    def groups(model):
        rest = [model.fc2.weight, model.fc3.weight]
        return [{"params": rest}, *Groups().groups(model)]

    def step(model, optimizer, x, y, number):
        factor = 0.5 * (1 + np.cos(np.pi * number / STEPS))
        for group, peak in zip(optimizer.param_groups, (0.05, 0.1, 0.05), strict=True):
            group["lr"] = peak * factor
        plain_step(model, optimizer, x, y, number)

    close(run.ticket.state_dict("final"), by_hand(run, step, groups))


class Clamp(Hook):
    """Weights are within a bound in every forward pass, however far a step takes them."""

    def __init__(self, model: nn.Module) -> None:
        self.weight, self.seen, self.steps = model.fc1.weight, [], []
        model.fc1.register_forward_pre_hook(
            lambda module, x: self.seen.append(float(module.weight.detach().abs().max()))
        )

    def before_forward(self, step: int) -> None:
        self.steps.append(step)
        self.weight.data.clamp_(-0.05, 0.05)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parameters_are_clamped_before_each_forward_pass(tmp_path, accumulate):
    hooks = []
    carry(lambda model, run: hooks.append(Clamp(model)) or hooks[0], tmp_path / "run", accumulate=accumulate)
    (hook,) = hooks
    assert hook.steps == list(range(STEPS)), "once a step, however many parts its batch has"
    training = hook.seen[: STEPS // 2 * accumulate]
    assert max(training) == pytest.approx(0.05, abs=1e-7)


class Penalty(Hook):
    """Half the squared weights: the gradient of weight decay."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def extra_loss(self) -> torch.Tensor:
        return 0.5 * 0.1 * torch.stack([(p**2).sum() for p in self.model.parameters()]).sum()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_penalty_is_added_once_a_step_and_not_logged(tmp_path, accumulate):
    run = carry(lambda model, run: Penalty(model), tmp_path / "penalty", accumulate=accumulate)
    decayed = carry(lambda model, run: Hook(), tmp_path / "decay", weight_decay=0.1, accumulate=accumulate)
    close(run.ticket.state_dict("final"), decayed.ticket.state_dict("final"))
    losses = [[row["loss/train"] for row in each.metrics if "loss/train" in row] for each in (run, decayed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class Skip(Hook):
    """Every other step is skipped; what the gradients of dropped weights are is kept."""

    def __init__(self) -> None:
        self.dense, self.told = [], []

    def before_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        mask = supermask.masks_of(model)["fc1.weight"]
        self.dense.append(int(torch.count_nonzero(model.fc1.weight.grad[~mask])))
        return step % 2 == 1

    def on_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.told.append(step)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_is_skipped_and_gradients_are_dense_before_it(tmp_path, clip):
    hook = Skip()
    run = carry(lambda model, run: hook, tmp_path / "run", hold=True, **({} if clip is None else {"clip": clip}))
    assert hook.told == list(range(1, STEPS + 1))
    assert min(hook.dense) > 100, "the gradient of dropped weights is there"

    def step(model, optimizer, x, y, number):
        if number == 0:
            supermask.hold(model, run.ticket.masks)
        nn.functional.cross_entropy(model(x), y).backward()
        if number % 2 == 1:
            if clip is not None:
                for name, mask in run.ticket.masks.items():
                    model.get_parameter(name).grad[~mask] = 0
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()

    close(run.ticket.state_dict("final"), by_hand(run, step, lambda model: model.parameters()))


class Counter(Hook):
    """Counts steps and epochs, and ends the training at its step 27."""

    def __init__(self) -> None:
        self.steps, self.epochs = 0, 0

    def on_step(self, step, model, optimizer) -> None:
        self.steps += 1

    def on_epoch(self, step, model, optimizer) -> None:
        self.epochs += 1

    def done(self) -> bool:
        return self.steps == 27

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.epochs = state["steps"], state["epochs"]


def test_a_hook_ends_the_training_and_survives_a_stop(tmp_path):
    whole = Counter()
    run = carry(lambda model, run: whole, tmp_path / "whole")
    assert (whole.steps, whole.epochs) == (27, 1)
    assert run.summary["cost"]["steps"] == 27

    class Stopping(Counter):
        def on_step(self, step, model, optimizer) -> None:
            super().on_step(step, model, optimizer)
            if self.steps == 23:
                stopped.stop()

    method = method_of(lambda model, run: Stopping())
    stopped = start(method, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        carry_out(stopped)
    last = Counter()
    again = carry(lambda model, run: last, tmp_path / "stopped")
    assert (last.steps, last.epochs) == (27, 1)
    for name, tensor in run.ticket.state_dict("final").items():
        assert torch.equal(tensor, again.ticket.state_dict("final")[name])


def test_what_a_training_begins_with_is_not_trained_on(tmp_path, monkeypatch):
    """Of a run rewound to step 3 every level begins with the moments of step 3, those of biases too."""
    given, load = [], loop.load_optimizer

    def record(optimizer, state):
        given.append(
            {key: {name: value.clone() for name, value in each.items()} for key, each in state["state"].items()}
        )
        load(optimizer, state)

    monkeypatch.setattr(loop, "load_optimizer", record)
    search(
        "imp", runs=tmp_path, progress=False, density=0.4, fraction=0.3, rewind="3it", rewind_optimizer="restore",
        epochs=1, threads=1, **SMALL,
    )  # fmt: skip
    assert len(given) == 3
    for level in given:
        assert [float(each["step"]) for each in level.values()] == [3.0] * 6
    for level in given[1:]:
        for index, each in level.items():
            for name, value in each.items():
                kept = value != 0  # more and more of them are dropped, and then 0
                assert torch.equal(value[kept], given[0][index][name][kept]), (index, name)
                assert value.dim() == 0 or kept.any()


@pytest.mark.parametrize("score", ["snip", "grasp", "taylor"])
def test_a_loss_of_ones_own_reaches_the_scores(score, tmp_path, monkeypatch):
    from supermask.choosing import pruning
    from ticket_search.training.at_init import score_batches

    (tmp_path / "losses.py").write_text(
        "import torch\n"
        "def squared(outputs, targets):\n"
        "    wanted = torch.nn.functional.one_hot(targets, outputs.shape[1]).float()\n"
        "    return ((outputs - wanted) ** 2).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "losses", raising=False)  # that of another case lies in another folder
    import losses

    flags = {"density": 0.2, "epochs": 1, "threads": 1, "loss": "losses:squared", **SMALL}
    method = "one-shot" if score == "taylor" else score
    flags |= {"score": score} if method == "one-shot" else {}
    run = search(method, runs=tmp_path, progress=False, **flags)
    if method == "one-shot":
        model = run.load_level(0).apply_to(run.setup.build())
    else:
        model = run.setup.make_model(run.config)
    batches = list(score_batches(run.data, run.config, run.config.samples_per_class))
    expected = pruning.prune(model, 0.2, score, batches=batches, loss=losses.squared, seed=0)
    assert run.ticket.masks == expected
    assert run.ticket.masks != pruning.prune(model, 0.2, score, batches=batches, seed=0)


class GlobalDraws(TorchDispatchMode):
    """The operations that draw from PyTorch's global stream."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.forked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [*args, *(kwargs or {}).values()]
        seeded = any(isinstance(value, torch.Generator) for value in given)
        if torch.Tag.nondeterministic_seeded in func.tags and not seeded and not self.forked:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def drawn_globally(work: Callable[[], Any]) -> list[str]:
    """What `work` draws from the global streams of PyTorch, NumPy and Python."""
    # The state of NumPy's holds its words and how many of them are used up.
    python, words, used = random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    fork = torch.random.fork_rng

    @contextlib.contextmanager
    def forked(*args, **flags):
        """What is seeded and put back draws from a stream of its own."""
        with fork(*args, **flags):
            mode.forked += 1
            yield
            mode.forked -= 1

    with GlobalDraws() as mode, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.random, "fork_rng", forked)
        work()
    found = list(mode.found)
    found += ["random"] if random.getstate() != python else []
    _, words_now, used_now, *_ = np.random.get_state()
    return found + (["numpy.random"] if used_now != used or not np.array_equal(words_now, words) else [])


@some_searches
def test_no_method_draws_from_the_global_stream(name, tmp_path):
    method = find_method(name)
    few = {key: value for key, value in FEW.items() if key in method.Config.model_fields}
    flags = {"density": 1.0 if method.traits.dense else 0.5, "optimizer": "adam", "momentum": 0.9, **few}
    run = start(method, tmp_path / "run", train_size=80, batch_size=20, **flags)
    model, built = run.setup.make_model(run.config), run.setup.build()
    # A network that is built draws its own first weights, from a seed that is set for it.
    run.setup.build = lambda: copy.deepcopy(built)
    with run.opened():
        assert drawn_globally(lambda: method.search(model, run)) == []


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), lambda: nn.Dropout()(torch.ones(3)), random.random, lambda: np.random.rand(1)]
)
def test_a_draw_from_the_global_stream_is_found(draw):
    np.random.rand(1)  # no new words at the next draw
    assert len(drawn_globally(draw)) == 1
    assert drawn_globally(lambda: torch.rand(1, generator=torch.Generator())) == []


def test_a_plan_times_the_methods_own_steps_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []

    class Told(Hook):
        def on_step(self, step, model, optimizer) -> None:
            told.append(step)

    run = start(method_of(lambda model, run: Told()), tmp_path / "run", epochs=500)
    plan = make_plan(run.config, run.setup)
    assert told == list(range(1, 13)), "a few steps, through the method's own hook"
    assert plan.seconds > 0
    assert [stage.steps for stage in plan.stages] == [500 * 21]
    assert list(tmp_path.iterdir()) == []


@some_searches
def test_a_plan_of_every_method(name):
    method = find_method(name)
    density = {} if method.traits.dense else {"density": 0.5}
    run = start(method, Path("unused"), **density, optimizer="adam", momentum=0.9, train_size=320)
    plan = make_plan(run.config, run.setup)
    assert 0 < plan.seconds < 300
    assert not Path("unused").exists()


def test_a_stopped_plan_is_a_keyboard_interrupt(tmp_path):
    class Stop(Hook):
        def before_forward(self, step) -> None:
            run_of[-1].stop()

    run_of = []
    run = start(method_of(lambda model, run: (run_of.append(run), Stop())[1]), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        make_plan(run.config, run.setup)


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_in_one_line_when_to_use_it(name):
    method = find_method(name)
    assert method.when == sys.modules[f"ticket_search.methods.{name.replace('-', '_')}"].WHEN
    assert re.fullmatch(r"[A-Z][^\n]{20,100}\.", method.when)
    others = [other.when for other in map(find_method, method_names()) if other.name != name]
    assert method.when not in others and method.when not in method.idea


@pytest.mark.parametrize("traits", [{"dense": True}, {"weights": "frozen"}, {}])
def test_a_method_that_does_not_say_when_to_use_it_has_the_usual_use_of_its_kind(traits):
    usual = [method_of(Hook, **{"dense": False, **each}).when for each in ({"dense": True}, {"weights": "frozen"}, {})]
    assert method_of(Hook, **{"dense": False, **traits}).when in usual
    assert len(set(usual)) == 3


def test_traits():
    assert Traits().trains_weights
    assert not Traits(weights="frozen").trains_weights
    assert not Traits(weights="redrawn").trains_weights
    assert issubclass(RequestError, ValueError)


@pytest.mark.parametrize("name", own_methods())
def test_a_flag_of_all_methods_means_the_same_in_each(name):
    """A method may have another default, but no flag of its own under the name of one of all: that is read as both."""
    shared, own = public_fields(Config), public_fields(find_method(name).Config)
    assert {key: own[key].annotation for key in shared} == {key: entry.annotation for key, entry in shared.items()}
