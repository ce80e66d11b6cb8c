"""[search] in the file of a sweep: what is proposed, that validation chooses, and that nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ticket_search import RequestError
from ticket_search.runs.names import SUMMARY
from ticket_search.sweeps import tuning
from ticket_search.sweeps.file import make_sweep, read_sweep
from ticket_search.sweeps.sweep import SweepResult, run_sweep
from ticket_search.sweeps.tuning import RECORD, run_search

pytest.importorskip("optuna")
SEARCH = {
    "trials": 7,
    "batch": 3,
    "lr": {"low": 1e-3, "high": 10.0, "log": True},
    "density": [0.5, 0.25],
    "epochs": {"low": 1, "high": 3},
}
TABLE = {"seeds": [0, 3], "base": {"method": "edge-popup"}, "search": SEARCH}


@pytest.fixture
def carried_out(monkeypatch):
    """Runs are not carried out but written: validation and test say what `measure(config)` says. What was done is told."""
    done: list[str] = []

    def install(measure, direction: str = "higher", fails=lambda config: False, stop_after: int = 10**6):
        def carry_out(plan, progress=True, address=None):
            failures = {}
            todo = [run for run in plan.runs if not (run.folder / SUMMARY).exists()]
            for run in todo:
                if len(done) >= stop_after:
                    return SweepResult([], failures, interrupted=True)
                done.append(run.folder.name)
                if fails(run.config):
                    failures[run.folder.name] = "no"
                    continue
                run.folder.mkdir(parents=True)
                validation, test = measure(run.config)
                metric = {"name": "it", "direction": direction, "unit": ""}
                row = {"val_metric": validation, "test_metric": test, "metric": metric}
                (run.folder / SUMMARY).write_text(json.dumps(row))
            return SweepResult([run.folder for run in plan.runs], failures)

        monkeypatch.setattr(tuning, "run_plan", carry_out)
        monkeypatch.setattr(tuning, "plan_sweep", fake_plan)
        monkeypatch.setattr(tuning, "is_finished", lambda folder: (folder / SUMMARY).exists())
        monkeypatch.setattr(tuning, "read_record", lambda folder, name: json.loads((folder / name).read_text()))
        return done

    def fake_plan(sweep, runs, jobs=None, timed=None, starting=0.0, engine="local"):
        from ticket_search.sweeps.sweep import PlannedRun, SweepPlan

        planned = tuple(PlannedRun(run.config, Path(runs) / sweep.name / run.name, "new") for run in sweep.runs)
        return SweepPlan(sweep, planned, (), jobs)

    return install


def by_rate(config) -> tuple[float, float]:
    """Validation is best at a rate of 0.1; what test says is the opposite, which must not matter. A seed shifts both."""
    import math

    off = abs(math.log10(config.lr) + 1) + config.seed / 100
    return -off, off


def test_validation_chooses_and_test_is_only_told(carried_out, tmp_path):
    done = carried_out(by_rate)
    found = run_search(make_sweep(TABLE, "mine"), tmp_path, progress=False)
    assert len(found.trials) == 7 and len(done) == len(set(done)) <= 14
    means = [trial.validation for trial in found.trials]
    assert found.best == means.index(max(means))
    for trial in found.trials:
        rows = [json.loads((folder / SUMMARY).read_text()) for folder in trial.folders]
        assert [folder.name.split("-s")[1][0] for folder in trial.folders] == ["0", "3"]
        assert trial.validation == pytest.approx(sum(row["val_metric"] for row in rows) / 2)
        assert trial.test == pytest.approx(sum(row["test_metric"] for row in rows) / 2)
        assert 1e-3 <= trial.values["lr"] <= 10 and trial.values["density"] in (0.5, 0.25)
        assert trial.values["epochs"] in (1, 2, 3) and isinstance(trial.values["epochs"], int)
        assert all(
            f"-lr-{trial.values['lr']}-epochs-{trial.values['epochs']}" in folder.name for folder in trial.folders
        )


def test_of_a_metric_that_is_better_lower_the_lowest_is_the_best(carried_out, tmp_path):
    carried_out(lambda config: (config.lr, 0.0), direction="lower")
    found = run_search(make_sweep(TABLE, "mine"), tmp_path, progress=False)
    rates = [trial.values["lr"] for trial in found.trials]
    assert found.best == rates.index(min(rates))


def test_the_sampler_goes_by_validation(carried_out, tmp_path):
    """Once it may, it proposes what is near the best more often than a sampler that draws blindly."""
    carried_out(by_rate)
    means = {}
    for sampler in ("tpe", "random"):
        table = {**TABLE, "seeds": [0], "search": {"trials": 40, "batch": 1, "sampler": sampler, "lr": SEARCH["lr"]}}
        found = run_search(make_sweep(table, f"by-{sampler}"), tmp_path, progress=False)
        late = [trial.validation for trial in found.trials[20:]]
        means[sampler] = sum(late) / len(late)
    assert means["tpe"] > means["random"] + 0.2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_stopped_search_goes_on_to_the_same_trials(sampler, carried_out, tmp_path):
    table = {**TABLE, "search": {**SEARCH, "sampler": sampler, "seed": 5}}
    carried_out(by_rate)
    whole = run_search(make_sweep(table, "mine"), tmp_path / "whole", progress=False)
    done = carried_out(by_rate, stop_after=(before := len(carried_out(by_rate))) + 9)
    stopped = run_search(make_sweep(table, "mine"), tmp_path / "parts", progress=False)
    assert stopped.interrupted and len(stopped.trials) < 7
    carried_out(by_rate)
    again = run_search(make_sweep(table, "mine"), tmp_path / "parts", progress=False)
    assert [(t.values, t.validation) for t in again.trials] == [(t.values, t.validation) for t in whole.trials]
    parts = done[before:]
    assert sorted(parts) == sorted(set(parts)), "nothing is done twice"
    assert (tmp_path / "parts/mine" / RECORD).read_bytes() == (tmp_path / "whole/mine" / RECORD).read_bytes()


def test_a_failed_run_fails_its_trial_and_is_tried_again_only_in_the_last_batch(carried_out, tmp_path):
    done = carried_out(by_rate, fails=lambda config: config.density == 0.25 and config.seed == 3)
    found = run_search(make_sweep(TABLE, "mine"), tmp_path, progress=False)
    failed = [trial for trial in found.trials if trial.validation is None]
    assert failed and all(trial.values["density"] == 0.25 for trial in failed)
    assert found.trials[found.best].validation is not None and found.failures
    number = len(done)
    again = run_search(make_sweep(TABLE, "mine"), tmp_path, progress=False)
    assert [trial.values for trial in again.trials] == [trial.values for trial in found.trials]
    assert len(done) - number <= 1


def test_other_ranges_do_not_go_on_with_a_search(carried_out, tmp_path):
    done = carried_out(by_rate)
    run_search(make_sweep(TABLE, "mine"), tmp_path, progress=False)
    number = len(done)
    for change in ({"lr": {"low": 1e-4, "high": 1.0, "log": True}}, {"seed": 1}):
        with pytest.raises(
            RequestError, match=r"trial 1 in .*search.json was lr=.* is proposed now: \[search\] or Optuna"
        ):
            run_search(make_sweep({**TABLE, "search": {**SEARCH, **change}}, "mine"), tmp_path, progress=False)
    (tmp_path / "mine" / RECORD).write_text("{")
    with pytest.raises(RequestError, match=r"search.json is damaged .*: remove it"):
        run_search(make_sweep(TABLE, "mine"), tmp_path, progress=False)
    assert len(done) == number


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ("lr = [0.1, 0.2]", "search.trials is missing"),
        ("trials = 0\nlr = [0.1, 0.2]", "search.trials 0: expected a whole number, 1 or more"),
        ("trials = 3\nsampler = 'tpa'\nlr = [0.1, 0.2]", "search.sampler: unknown sampler 'tpa'; did you mean 'tpe'?"),
        ("trials = 3", "[search] names no flag to search"),
        ("trials = 3\nlr = 0.1", "search.lr 0.1: expected a range"),
        ("trials = 3\nlr = {low = 1.0, high = 0.1}", "search.lr: low 1.0 is not below high 0.1"),
        ("trials = 3\nlr = {low = 0.0, high = 0.1, log = true}", "search.lr: a logarithmic scale begins above 0"),
        ("trials = 3\nlr = {low = 0.1, hihg = 0.2}", "search.lr: unknown key 'hihg'; did you mean 'high'?"),
        ("trials = 3\nlr = {low = -1.0, high = 0.2}", "--lr -1.0: expected"),
        ("trials = 3\nrate = [0.1, 0.2]", "unknown flag --rate"),
        ("trials = 3\nepochs = [1, 2]", "epochs is in [base] and in [search]: give one of them"),
        ("trials = 3\nlr = [0.1, 0.2]\n[grid]\ndensity = [0.1]", "grid does not go with [search]"),
        ("trials = 3\nlr = [0.1, 0.2]\n[choose]\nclip = [0.1, 0.2]", "choose does not go with [search]"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_search(search, problem, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"[base]\nepochs = 1\n[search]\n{search}\n")
    with pytest.raises(RequestError) as caught:
        read_sweep(path)
    assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def test_optuna_that_is_not_installed_says_what_to_type(ticket, monkeypatch):
    Path("mine.toml").write_text("[search]\ntrials = 2\nlr = [0.1, 0.2]\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    found = ticket("sweep", "mine.toml")
    assert (found.code, found.err.splitlines()[-1]) == (
        2,
        'error: [search] takes the package optuna: pip install "supermask[optuna]"',
    )


def test_a_search_by_the_command(ticket, forked):
    Path("mine.toml").write_text(
        "[base]\nmethod = 'random'\nepochs = 1\ntrain_size = 320\nmodel_args = ['width=0.1']\n"
        "[search]\ntrials = 3\nbatch = 2\nlr = {low = 0.01, high = 1.0}\n"
    )
    plan = ticket("sweep", "mine.toml", "--dry-run")
    assert plan.code == 0 and "the first of 3 trials" in plan.out and not Path("runs").exists()
    done = ticket("sweep", "mine.toml")
    assert done.code == 0, done.err
    rows = json.loads(Path("runs/mine/search.json").read_text())["trials"]
    assert len(rows) == 3 and done.out.count("best") == 1 and f"lr {rows[0]['values']['lr']}" in done.out
    again = json.loads(ticket("sweep", "mine.toml", "--json").out)
    best = max(range(3), key=lambda place: rows[place]["validation"])
    assert again["best"] == best and [row["values"] for row in again["trials"]] == [row["values"] for row in rows]
    with pytest.raises(RequestError, match=r"the sweep mine has \[search\]"):
        run_sweep(read_sweep("mine.toml"))
