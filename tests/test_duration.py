"""How long searches take: the arithmetic with times that are given, and what is announced beside what it takes."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ticket_search.cli.sweep import print_plan
from ticket_search.contract.method import Stage
from ticket_search.deploy import machine_load
from ticket_search.running import plan
from ticket_search.running.duration import Costs, makespan
from ticket_search.running.request import read_request
from ticket_search.running.search import prepare
from ticket_search.runs import rehearsal
from ticket_search.runs.folders import FolderState
from ticket_search.runs.records import write_record
from ticket_search.runs.rehearsal import Rehearsal, Rehearsed
from ticket_search.sweeps.file import make_sweep
from ticket_search.sweeps.sweep import plan_sweep

COSTS = Costs(
    loading=3.0, preparation=2.0, step=0.1, held_step=0.2, evaluation=1.0, ending=5.0, finish=0.5, first=4.0, untrained=0.7
)  # fmt: skip


def by_hand(stages: list[Stage], evaluate_every: int) -> float:
    """The same by going through every step."""
    seconds = COSTS.preparation
    for number, stage in enumerate(stages):
        for step in range(1, stage.steps + 1):
            seconds += COSTS.held_step if number and stage.density < 1 else COSTS.step
            seconds += COSTS.evaluation if step % evaluate_every == 0 else 0
        seconds += COSTS.evaluation + COSTS.ending
    return seconds + COSTS.finish


@pytest.mark.parametrize("densities", [[0.5], [1.0, 0.8, 0.5], [1.0, 1.0]])
@pytest.mark.parametrize("evaluate_every", [1, 7, 100, 1000])
def test_a_search_takes_what_its_parts_take(densities, evaluate_every):
    stages = [Stage(f"{number}", density, 100) for number, density in enumerate(densities)]
    assert COSTS.search(stages, evaluate_every) == pytest.approx(by_hand(stages, evaluate_every))


def test_a_control_is_a_run_of_its_own():
    assert COSTS.control(100, 50) == pytest.approx(3.0 + 100 * 0.2 + 3 * 1.0 + 5.0 + 0.5)


@pytest.mark.parametrize(
    ("seconds", "jobs", "whole"),
    [([], 2, 0), ([5], 3, 5), ([1, 1, 1], 1, 3), ([1, 1, 1], 2, 2), ([4, 1, 1, 1], 2, 4), ([1, 1, 4], 2, 5), ([2] * 7, 3, 6)],
)  # fmt: skip
def test_jobs_take_the_next_run_when_they_are_free(seconds, jobs, whole):
    assert makespan(seconds, jobs) == whole


def test_a_signal_that_no_step_hears_ends_the_timing(monkeypatch, tmp_path):
    request = read_request(["--method", "dense", "--epochs", "1", "--train-size", "320", "--threads", "1"])
    config, setup = prepare(request)
    conclude = plan.conclude

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return conclude(*args)

    monkeypatch.setattr(plan, "conclude", signalled)
    with pytest.raises(KeyboardInterrupt):
        plan.make_plan(config, setup)


class Clock:
    """Time that passes by given amounts, one for each look."""

    def __init__(self, amounts) -> None:
        self.now, self.amounts = 0.0, iter(amounts)

    def perf_counter(self) -> float:
        self.now += next(self.amounts)
        return self.now


def rehearsed(monkeypatch, amounts) -> Rehearsal:
    monkeypatch.setattr(rehearsal, "time", Clock(itertools.chain([0.0], amounts)))
    found = Rehearsal("cpu")
    with pytest.raises(Rehearsed):
        for _ in range(1000):
            found.tick()
    return found


def test_steps_are_timed_without_the_first_and_without_what_is_none(monkeypatch):
    # The first step compiles, the fifth is followed by an evaluation, the others take 0.1 s and 0.2 s in turn.
    amounts = [7.0, 1.0, *([0.1, 0.2] * 2), 1.0, *([0.1, 0.2] * 20)]
    found = rehearsed(monkeypatch, amounts)
    assert len(found.ends) == 12
    assert found.step == pytest.approx(0.15, rel=0.1)
    assert found.preparation == pytest.approx(7.0 - found.step)


def test_of_steps_that_take_long_fewer_are_timed(monkeypatch):
    found = rehearsed(monkeypatch, [4.0] * 10)
    assert len(found.ends) == 3 and found.step == pytest.approx(4.0)


@pytest.mark.parametrize(("cores", "stretch"), [(1, 2.0), (2, 1.0)])
def test_sharing_is_how_much_less_each_thread_does(cores, stretch, monkeypatch):
    """Of a machine whose cores are told by what its threads have done."""

    def work_done(threads: int) -> float:
        return 100.0 * min(1.0, cores / threads)

    monkeypatch.setattr(machine_load, "_work_done", work_done)
    assert machine_load.measure_sharing(1, 2) == stretch
    assert machine_load.measure_sharing(2, 2) == 1.0


def test_threads_work_at_the_same_time(monkeypatch):
    monkeypatch.setattr(machine_load, "_SECONDS", 0.1)
    who: list[int] = []
    hashed = machine_load.hashlib.sha256
    monkeypatch.setattr(
        machine_load.hashlib, "sha256", lambda data: (who.append(threading.get_ident()), hashed(data))[1]
    )
    assert machine_load._work_done(3) == len(who) / 3
    assert len(set(who)) == 3 and len(set(who[: len(who) // 2])) == 3, "in turns, and not one after another"


# --- a sweep, by costs that are given


# Batches of 60 of the digits; IMP is evaluated every 100 steps.
PER_EPOCH = 21
SWEEP = {
    "seeds": "0-2",
    "controls": ["reinit", "shuffle"],
    "base": {"epochs": 1, "model_args": "width=0.1"},
    "grid": {"method": ["imp", "edge-popup"], "density": [0.5]},
    "runs": [{"method": "dense"}],
    "choose": {"dense": {"lr": [0.1, 0.2]}},
}


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """The plan of a sweep whose runs are not timed."""

    def plan(jobs: int = 1, starting: float = 0.0, stretch: float = 1.0, **table):
        monkeypatch.setattr("ticket_search.sweeps.sweep.time_run", lambda *_: COSTS)
        monkeypatch.setattr("ticket_search.sweeps.sweep.measure_sharing", lambda one, several: stretch)
        return plan_sweep(make_sweep({**SWEEP, **table}, "mine"), tmp_path, jobs, {}, starting)

    return plan


def test_a_sweep_counts_runs_controls_and_starts(planned):
    plan = planned(starting=10.0)
    imp, edge_popup, dense = (run for run in plan.runs if run.config.seed == 0)
    levels = [Stage("", density, PER_EPOCH) for density in (1.0, 0.8, 0.64, 0.512, 0.5)]
    assert imp.steps == 5 * PER_EPOCH and imp.seconds == pytest.approx(3.0 + COSTS.search(levels, 100))
    assert imp.control_seconds == pytest.approx(2 * COSTS.control(PER_EPOCH, 100)), "of the last level"
    assert edge_popup.control_seconds == pytest.approx(3.0 + 2 * 0.7), "evaluated, not trained"
    assert dense.control_seconds == 0
    each = sum(run.seconds + run.control_seconds for run in (imp, edge_popup, dense))
    assert plan.seconds == pytest.approx(10 + 3 * each)
    assert 3600 * plan.hours == pytest.approx(plan.seconds)
    assert plan.settled == pytest.approx(dense.seconds / (3 * each))


def test_controls_that_a_finished_run_lacks_count(planned, monkeypatch):
    monkeypatch.setattr("ticket_search.sweeps.sweep.inspect_folder", lambda folder, *_: FolderState(folder, "finished"))
    imp = next(run for run in planned().runs if run.config.method == "imp")
    assert imp.seconds == 0 and imp.control_seconds == pytest.approx(2 * COSTS.control(PER_EPOCH, 100))
    imp.folder.mkdir(parents=True)
    monkeypatch.setattr(
        "ticket_search.sweeps.engines.jobs.read_record", lambda *_: {"levels": [{"level": 0}, {"level": 1}]}
    )
    measured = {"density": 0.5, "kept": 1, "test_accuracy": 90.0, "val_accuracy": 90.0}
    shared = {**measured, "trained": True, "data": imp.config.data, "level": 1}
    rows = [{"control": kind, **shared} for kind in planned().sweep.controls]
    for there, missing in ((rows[:1], True), (rows, False)):
        write_record(imp.folder, "controls.json", {"rows": there})
        left = next(run for run in planned().runs if run.folder == imp.folder)
        assert (left.control_seconds > 0) == missing


def test_jobs_share_the_work_and_the_cores(planned):
    plan = planned(jobs=2, starting=10.0, stretch=1.5)
    alone = [run.seconds + run.control_seconds for run in plan.runs]
    assert 3600 * plan.hours == pytest.approx(1.5 * (10 + makespan(alone, 2)))
    assert plan.seconds == pytest.approx(10 + sum(alone)), "one after another nothing is shared"


@pytest.mark.parametrize(("levels", "number"), [([1, 3], 2), ([2], 1), ([7], 0), ([1, 7], 1)])
def test_controls_of_levels(levels, number, planned):
    imp = planned(control_levels=levels).runs[0]
    assert imp.control_seconds == pytest.approx(number * 2 * COSTS.control(PER_EPOCH, 100))


def test_controls_on_other_data_train_the_ticket_and_the_dense_network_too(planned):
    imp = planned(controls_on="digits").runs[0]
    assert imp.control_seconds == pytest.approx((2 + 4) * COSTS.control(PER_EPOCH, 100))


def test_the_trials_come_on_top_but_for_the_best(planned, capsys):
    plan, first = planned(), planned(choose={})
    print_plan(plan, True, False, first)
    hours = first.hours + plan.hours * (1 - plan.settled)
    said = re.search(r"In all about (\d+) min (\d+) s, from now to the end", capsys.readouterr().out)
    assert 60 * int(said[1]) + int(said[2]) == pytest.approx(3600 * hours, abs=1)


# --- what is announced and what it takes, measured


PLANS = {
    "a search of several trainings": "search --method imp --density 0.4 --epochs 3 --threads 1",
    "a search of one training": "search --method snip --model conv2 --epochs 3 --threads 1",
    "several seeds": "search --method edge-popup --epochs 12 --seeds 0-2 --jobs 2",
    "controls": "controls search --controls reinit,shuffle,random",
    "a sweep": "sweep sweep.toml --jobs 2",
    "a study": "study study.toml",
}
TABLE = "seeds = '0-1'\n{controls}[{of}base]\nepochs = 3\n[{of}grid]\nmethod = [{methods}]\n"


@pytest.mark.slow  # minutes
@pytest.mark.parametrize("plan", PLANS)
def test_what_is_announced_is_right_within_a_factor_of_two(plan, tmp_path):
    """Measured from the announcement to the end. Six plans of some seconds, on whatever machine this is."""
    (tmp_path / "sweep.toml").write_text(
        TABLE.format(of="", controls="controls = ['reinit', 'shuffle']\n", methods="'imp', 'edge-popup'")
    )
    (tmp_path / "study.toml").write_text(
        "title = 't'\npaper = 'p'\nquestion = 'q'\nhours = 1\n[sweep]\n"
        + TABLE.format(of="sweep.", controls="", methods="'dense', 'snip'")
        + "[sweep.choose]\nlr = [0.05, 0.1]\n"
    )
    if plan == "controls":
        run(f"{PLANS['a search of several trainings']} --name search".split(), tmp_path)
    said, took, first = run(PLANS[plan].split(), tmp_path)
    assert took / 2 <= said <= 2 * took, f"announced {said:.1f} s, took {took:.1f} s"
    assert first < 10


def run(words: list[str], folder: Path) -> tuple[float, float, float]:
    """The seconds that `ticket WORDS` announces, those it takes from then on, and those until its first line."""
    command = [sys.executable, "-m", "ticket_search", *words]
    began, said, at, first = time.monotonic(), 0.0, 0.0, 0.0
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            first = first or time.monotonic() - began
            found = re.search(
                r"(?:trainings|steps|In all|trained|evaluated)[,:]? about (?:(\d+) min )?([\d.]+) s", line
            )
            if found and not at:
                said, at = 60 * int(found[1] or 0) + float(found[2]), time.monotonic()
    assert process.returncode == 0
    assert at, "nothing was announced"
    return said, time.monotonic() - at, first
