"""What is looked at while a network trains: each watch fires on a run that is made to show it."""

import math
import re
import shutil
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import supermask
from ticket_search import Interrupted, RunError, resume, search
from ticket_search.data.dataset import from_arrays
from ticket_search.runs import states
from ticket_search.training import loop, watch
from ticket_search.training.evaluation import Evaluation
from ticket_search.training.objective import CLASSIFICATION
from ticket_search.training.running_mean import Tally

BAD_AT = 23


@pytest.fixture
def bad_loss(monkeypatch):
    """The samples of one step in the middle of an epoch are no numbers."""
    train_on = loop._Loop._train_on

    def poison(self, x, y):
        train_on(self, x * (math.nan if self.step == BAD_AT - 1 else 1.0), y)

    monkeypatch.setattr(loop._Loop, "_train_on", poison)


@pytest.mark.parametrize("evaluate_every", ["1it", "7it", "1ep", "3ep"])
@pytest.mark.parametrize("method", ["dense", "edge-popup"])
def test_the_step_is_named_at_which_a_loss_is_no_number(method, evaluate_every, bad_loss, quick, monkeypatch):
    monkeypatch.setattr("ticket_search.runs.run._SECONDS_BETWEEN_STATES", (0.0, 0.0))
    steps = []
    add = Tally.add
    monkeypatch.setattr(Tally, "add", lambda *args: (steps.append(1), add(*args))[1])
    with pytest.raises(RunError, match=rf"NaN or infinite at step {BAD_AT} of training: lower --lr .* is kept"):
        quick(method, evaluate_every=evaluate_every, batch_size=32)
    assert len(steps) <= BAD_AT + 10, "within an epoch of ten steps"


def test_the_state_from_before_is_kept_and_not_a_bad_one(bad_loss, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("ticket_search.runs.run._SECONDS_BETWEEN_STATES", (0.0, 0.0))
    with pytest.raises(RunError):
        quick("dense", batch_size=32, evaluate_every="3ep")
    folder = next((tmp_path / "runs").iterdir())
    for name in ("state.pt", "state-before.pt"):
        training = states.read_state(folder / name)["training"]
        assert training["step"] < BAD_AT
        assert all(tensor.isfinite().all() for tensor in training["model"].values())


def test_weights_that_are_no_numbers_are_found_before_they_are_saved(quick, tmp_path, monkeypatch):
    train_on = loop._Loop._train_on

    def poison(self, x, y):
        train_on(self, x, y)
        if self.step == BAD_AT - 1:
            self.model.fc2.weight.data[0, 0] = math.inf
            self.run.stop()

    monkeypatch.setattr(loop._Loop, "_train_on", poison)
    with pytest.raises(
        RunError, match=rf"the weights of fc2.weight are NaN or infinite after step {BAD_AT} of training"
    ):
        quick("dense", batch_size=32)


@pytest.mark.parametrize("bad", [0, 1, 63, 64, 100, 129, None])
@pytest.mark.parametrize("summed_at_once", [1, 64])
def test_the_first_bad_loss_is_that_of_a_loop_over_losses(bad, summed_at_once, monkeypatch):
    monkeypatch.setattr(Tally, "STEPS", summed_at_once)
    tally = Tally(CLASSIFICATION, torch.device("cpu"))
    for _ in range(2):  # read in between: counted anew
        for number in range(130):
            loss = torch.tensor(math.nan if bad is not None and number >= bad else 1.0)
            tally.add(loss, torch.zeros(2, 3), torch.tensor([0, 1]), 1.0)
        again = Tally(CLASSIFICATION, torch.device("cpu"))
        if bad is None:
            again.load_state_dict(tally.state_dict())
            assert again.first_bad() is None and again.summed == tally.summed
        assert tally.first_bad() == bad
        tally.read()


@pytest.mark.parametrize("method", ["one-shot", "edge-popup"])
def test_a_dead_network_is_told_once_and_kept_in_the_summary(method, quick, monkeypatch, capsys):
    """A network whose hidden units are all negative."""

    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 30), nn.Linear(30, 10)

        def forward(self, x):
            return self.b((self.a(x.flatten(1)) - 1e6).relu())

    run = quick(method, model=lambda: Dead(), density=0.5, epochs=3)
    stages = ["level-00", "level-01"] if method == "one-shot" else ["training"]
    for told, stage in zip(run.summary["warnings"], stages, strict=True):
        assert re.match(rf"the network is dead at step \d of {stage}: it gives every sample the same output", told)
    assert "that of guessing among 10 classes is 2.3026" in told
    assert run.summary["test_accuracy"] < 20


@pytest.mark.parametrize("method", ["dense", "imp", "edge-popup", "one-shot"])
def test_a_network_that_learns_is_not_told_of(method, quick):
    flags = {} if method == "dense" else {"density": 0.5}
    assert "warnings" not in quick(method, epochs=1, train_size=64, **flags).summary


def test_one_output_is_that_of_all_samples():
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    data, classify = from_arrays((x.numpy(), y.numpy()), 0), CLASSIFICATION
    assert not watch.gives_one_output(nn.Linear(4, 3), data, classify)
    constant = nn.Linear(4, 3)
    nn.init.zeros_(constant.weight)
    assert watch.gives_one_output(constant, data, classify)
    alike = from_arrays((x[:1].expand(60, 4).numpy(), y.numpy()), 0)
    assert not watch.gives_one_output(constant, alike, classify), "samples that are all the same say nothing"


@pytest.mark.parametrize(
    ("loss", "value", "near"), [(2.30, 60.0, True), (0.5, 12.0, True), (0.5, 60.0, False), (9.0, 60.0, False)]
)
def test_what_is_near_guessing(loss, value, near):
    assert watch.is_near_guessing(CLASSIFICATION, Evaluation(loss, value), 10) == near
    assert not watch.is_near_guessing(CLASSIFICATION, Evaluation(loss, value), 1)
    assert not watch.is_near_guessing(types.SimpleNamespace(kind="mse"), Evaluation(loss, value), 10)


def test_masks_that_do_not_hold_are_found_within_the_epoch(quick, monkeypatch):
    """In the second of three epochs of the second training; the first one has no masks."""

    def check(model):
        checked.append(model)
        if len(checked) == 2:
            raise ValueError("the masks do not hold: fc1.weight")

    checked = []
    monkeypatch.setattr(supermask, "check", check)
    with pytest.raises(RunError, match=r"the masks do not hold: fc1.weight \(at step 20\)"):
        quick("one-shot", density=0.9, batch_size=32)


def test_frozen_weights_that_moved_are_found_within_the_epoch(quick, monkeypatch):
    train_on = loop._Loop._train_on

    def move(self, x, y):
        train_on(self, x, y)
        if self.step == 4:
            program = supermask.live.program.program_of(self.model)
            next(iter(program.weights().values())).data.view(-1)[7] += 1e-3

    monkeypatch.setattr(loop._Loop, "_train_on", move)
    with pytest.raises(RunError, match=r"frozen.*\(at step 10\)"):
        quick("edge-popup", batch_size=32)


def test_a_disk_with_little_room_is_told_before_and_a_full_one_keeps_the_state(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ticket_search.runs.run._SECONDS_BETWEEN_STATES", (0.0, 0.0))
    room, usage = [], shutil.disk_usage
    monkeypatch.setattr(
        "ticket_search.runs.states.shutil.disk_usage",
        lambda path: usage(path)._replace(free=room[0] if room else 1 << 40),
    )
    train_on = loop._Loop._train_on

    def fill(self, x, y):
        train_on(self, x, y)
        room[:] = {12: [2_500_000], 22: [1000]}.get(self.step, room)

    monkeypatch.setattr(loop._Loop, "_train_on", fill)
    flags = {"batch_size": 32, "train_size": 320, "epochs": 3, "threads": 1, "runs": tmp_path / "runs"}
    with pytest.raises(
        RunError, match=r"takes 1\.\d MB, and 0\.0 MB are free on its disk; make room, then `ticket resume"
    ):
        search("dense", **flags)
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"takes 1\.\d MB, and 2\.5 MB are free on its disk: make room while the run goes on", told)
    monkeypatch.undo()
    folder = next((tmp_path / "runs").iterdir())
    assert 12 <= states.read_state(folder / "state.pt")["training"]["step"] <= 22
    whole = quick("dense", "whole", batch_size=32)
    assert resume(folder, progress=False).ticket.meta == whole.ticket.meta


@pytest.mark.parametrize(
    ("machine", "group", "told"),
    [
        ((5_000, 10_000), None, ""),
        ((100, 10_000), None, "100 of 10,000 MB"),
        ((5_000, 10_000), (4_000, 3_990, 0), "10 of 4,000 MB"),
        ((5_000, 10_000), (4_000, 3_990, 2_000), ""),
        ((100, 10_000), (4_000, 10, 0), "100 of 10,000 MB"),
        (None, None, ""),
    ],
)
def test_memory_near_its_end(machine, group, told, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(watch, "_CGROUP", tmp_path)
    if machine is not None:
        free, whole = (number * 10**6 // 1024 for number in machine)
        (tmp_path / "meminfo").write_text(f"MemTotal: {whole} kB\nMemFree: 1 kB\nMemAvailable: {free} kB\n")
    if group is not None:
        for name, number in zip(("memory.max", "memory.current"), group, strict=False):
            (tmp_path / name).write_text(f"{number * 10**6}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {group[2] * 10**6}\nactive_file 0\n")
    said = watch.describe_memory()
    assert (told in said and "killed" in said) if told else said == ""


def test_memory_of_this_machine_is_read():
    if Path("/proc/meminfo").exists():
        free, whole = watch._of_the_machine()
        assert 0 < free <= whole


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
)
def test_running_out_of_memory_is_told_with_what_to_do(error, quick, monkeypatch):
    def fail(self, x, y):
        raise error

    monkeypatch.setattr(loop._Loop, "_train_on", fail)
    with pytest.raises(RunError, match=r"out of memory: .*--batch-size \(now 60\).*--accumulate N.*`ticket resume "):
        quick("dense")


def test_other_errors_of_a_network_stay_what_they_are(quick, monkeypatch):
    def fail(self, x, y):
        raise RuntimeError("something else")

    monkeypatch.setattr(loop._Loop, "_train_on", fail)
    with pytest.raises(RuntimeError, match="^something else$"):
        quick("dense")


def test_a_stopped_run_tells_of_a_dead_network_once(quick, tmp_path, monkeypatch):
    train_on = loop._Loop._train_on

    def stop(self, x, y):
        train_on(self, x, y)
        if self.step == 4:
            self.run.stop()

    model = types.FunctionType(
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Threshold(1e9, 0.0))).__code__, globals()
    )
    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_train_on", stop)
        with pytest.raises(Interrupted):
            quick("dense", model=model, name="dead")
    run = quick("dense", model=model, name="dead")
    assert len(run.summary["warnings"]) == 1
