from __future__ import annotations

import itertools
import json
import os
import signal
import time
import tomllib
from multiprocessing.process import BaseProcess
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from processes import start_python
from products import combine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_selection import sorted_top_k
from torch import nn

import supermask
from ticket_search import Interrupted, RequestError, resume, search
from ticket_search.methods.imp import Config, level_counts
from ticket_search.runs.folders import find_run
from ticket_search.runs.loggers.tensorboard import METRICS, TAGS


def test_the_folder_of_a_finished_run(quick):
    run = quick("imp", density=0.6, evaluate_every="4it")
    assert run.path.name == "imp-lenet-300-100-digits-d0.6-s0"
    files = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    levels = {f"levels/{level:02d}/ticket.safetensors" for level in range(4)}
    assert files - events == levels | {
        "checksums.json", "config.toml", "environment.json", "inputs.json", "metrics.jsonl", "summary.json", "ticket.safetensors",
    }  # fmt: skip
    assert len(events) == 1
    config = tomllib.loads((run.path / "config.toml").read_text())
    assert config["threads"] == 1
    assert config["device"] == "cpu"
    assert config["density"] == 0.6
    for key in (
        "method",
        "model",
        "data",
        "seed",
        "density",
        "test_accuracy",
        "val_accuracy",
        "parameters",
        "kept",
        "seconds",
    ):
        assert key in run.summary
    assert run.summary["cost"]["dense_trainings"] == 4.0
    assert run.summary["cost"]["steps"] == 4 * 3 * (320 // 60)
    forward = 2 * 50200
    assert run.summary["cost"]["flops"] == 3 * forward * 60 * run.summary["cost"]["steps"]
    assert [row["level"] for row in run.levels] == [0, 1, 2, 3]
    assert run.levels[0]["density"] == 1.0
    assert run.levels[-1]["test_accuracy"] == run.summary["test_accuracy"]


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("method", ["dense", "imp", "edge-popup"])
def test_tensorboard_and_metrics_hold_the_same_numbers(method, quick):
    flags = {"dense": {}, "imp": {"density": 0.5, "fraction": 0.5}, "edge-popup": {"density": 0.5}}[method]
    run = quick(method, evaluate_every="2it" if method == "imp" else "1ep", **flags)
    at_the_end = {*METRICS.values(), *(tag for tag in TAGS["scalars"] if tag.startswith("level/"))}
    written = {tag: points for tag, points in scalars(run.path).items() if tag not in at_the_end}
    rows: dict[str, list[tuple[int, float]]] = {}
    for row in run.metrics:
        for tag, value in row.items():
            if tag not in ("step", "stage"):
                rows.setdefault(tag, []).append((row["step"], value))
    assert written.keys() == rows.keys()
    for tag, points in rows.items():
        assert [s for s, _ in points] == [s for s, _ in written[tag]]
        assert np.allclose([v for _, v in points], [v for _, v in written[tag]], rtol=1e-6)
    expected = {
        "loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "accuracy/test", "learning-rate",
        "density/total", "density/fc1.weight", "density/fc2.weight", "density/fc3.weight", "speed/samples-per-second",
    }  # fmt: skip
    expected |= {"mask/changed"} if method != "dense" else set()
    assert set(rows) == expected
    elsewhere = {"mask/changed", "density/{}", "memory/allocated-megabytes", "controls/{}"}
    assert {tag for tag in expected if not tag.startswith("density/fc")} | elsewhere == set(
        TAGS["scalars"]
    ) - at_the_end
    assert rows["loss/train"][-1][0] == run.summary["cost"]["steps"]
    steps = [step for step, _ in rows["loss/validation"]]
    assert steps == sorted(set(steps)), "no step twice"


def test_a_resumed_run_has_no_doubled_and_no_missing_steps(tmp_path, monkeypatch):
    from ticket_search.runs.progress import Progress

    count = 0

    def advance_to(self, step):
        nonlocal count
        count += 1
        if count in (7, 22, 40):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "advance_to", advance_to)
    flags = {"density": 0.6, "epochs": 3, "threads": 1, "train_size": 320, "runs": tmp_path, "progress": False}
    flags["evaluate_every"] = "4it"
    for _ in range(3):
        with pytest.raises(Interrupted):
            search("imp", **flags)
    run = search("imp", **flags)
    written = scalars(run.path)["loss/validation"]
    stages = {row["stage"] for row in run.metrics}
    assert len(stages) == 4
    per_level = [4, 8, 12, 15]
    assert [s for s, _ in written] == [15 * level + s for level in range(4) for s in per_level]
    assert run.summary["cost"]["steps"] == 4 * 15


def test_names_taken_and_numbers(quick, tmp_path):
    first = quick("dense")
    second = quick("dense")
    assert (first.path.name, second.path.name) == (
        "dense-lenet-300-100-digits-d1-s0",
        "dense-lenet-300-100-digits-d1-s0-2",
    )
    assert quick("dense", name=first.path.name).path == first.path
    with pytest.raises(RequestError, match="seed 0 there, 1 here.*choose another name"):
        quick("dense", name=first.path.name, seed=1)
    (tmp_path / "runs" / "mine").mkdir()
    assert quick("dense", name="mine").path.name == "mine"
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "runs" / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(RequestError, match="is not a run"):
        quick("dense", name="photos")
    for name in ("../x", "a/b", "", ".."):
        with pytest.raises(RequestError, match="expected the name of a folder"):
            quick("dense", name=name)


def test_an_unfinished_run_of_another_configuration_is_left_alone(quick, monkeypatch):
    from ticket_search.runs.progress import Progress

    monkeypatch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as stop:
        quick("dense")
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"is another one \(--lr 0.0012 there, 0.01 here\)"):
        quick("dense", lr=0.01, name=Path(stop.value.path).name)
    other = quick("dense", lr=0.01)
    assert other.path.name.endswith("-2")
    assert str(quick("dense").path) == stop.value.path


def test_two_processes_do_not_work_on_one_run(quick, tmp_path):
    folder = tmp_path / "runs" / "dense-lenet-300-100-digits-d1-s0"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(RequestError, match="another process is working"):
        quick("dense", name=folder.name)
    assert quick("dense").path == folder


def test_find_run_names_the_nearest(quick, tmp_path):
    run = quick("dense")
    assert find_run(str(run.path)) == run.path
    assert find_run(run.path.name, tmp_path / "runs") == run.path
    with pytest.raises(RequestError, match="did you mean 'dense-lenet-300-100-digits-d1-s0'"):
        find_run("dense-lenet-digits", tmp_path / "runs")


class Mine(nn.Module):
    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.layers(x)


def make_mine() -> Mine:
    return Mine()


def own_data(kind=np.asarray):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 5)).astype(np.float32)
    return kind(x), kind((x @ generator.normal(size=(5, 3))).argmax(1))


@combine(method=["imp", "edge-popup", "dense"], kind=[np.asarray, torch.as_tensor])
def test_ones_own_model_and_data(method, kind, tmp_path):
    flags = {"dense": {}, "imp": {"density": 0.5, "fraction": 0.5}, "edge-popup": {"density": 0.5}}[method]
    run = search(
        method, make_mine, own_data(kind), runs=tmp_path, progress=False, epochs=8, batch_size=20, lr=0.01, **flags
    )
    assert run.summary["test_accuracy"] > 50
    x, y = (torch.as_tensor(part) for part in own_data())
    net = run.ticket.apply_to(Mine()).eval()
    assert (net(x).argmax(1) == y).float().mean() > 0.5
    with pytest.raises(ValueError, match="not known here by name"):
        run.ticket.model()
    start = run.ticket.state_dict("start")
    if method != "edge-popup":
        torch.manual_seed(0)
        mine = Mine()
        for name, mask in run.ticket.masks.items():
            assert torch.equal(start[name], torch.where(mask, mine.get_parameter(name).detach(), 0.0)), (
                "weights as they came"
            )


def test_resuming_ones_own_needs_the_same_objects(tmp_path, monkeypatch):
    from ticket_search.runs.progress import Progress

    monkeypatch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as stop:
        search("dense", make_mine, own_data(), runs=tmp_path, progress=False, epochs=2, batch_size=20)
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"resume\(.*model=\.\.\., data=\.\.\.\) goes on"):
        resume(stop.value.path, progress=False)
    x, y = own_data()
    with pytest.raises(RequestError, match="started otherwise: --data arrays"):
        resume(stop.value.path, make_mine, (x + 1, y), progress=False)
    assert resume(stop.value.path, make_mine, (x, y), progress=False).finished


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (3, "expected \\(x, y\\)"),
        ((np.zeros((20, 3)), np.zeros(20)), "y is 0.0 in every sample, so that there is nothing to learn"),
        ((np.zeros((20, 3)), np.zeros(20, int)), "y has the class 0 only, expected two classes or more"),
        ((np.zeros((20, 5)), np.arange(20) / 7), "the targets are floats: name the loss, --loss mse"),
        (
            (np.zeros((20, 3), int), np.zeros(19, int)),
            "x has shape \\(20, 3\\) and y has shape \\(19,\\), expected .* of one n",
        ),
        ((np.full((20, 3), np.nan), np.zeros(20, int)), "60 values that are NaN"),
        ((np.zeros((20, 3)), np.arange(20) - 5), "class number -5"),
        ((np.zeros((5, 3)), np.zeros(5, int)), "5 samples, expected at least 10"),
    ],
)
def test_data_that_is_none(data, problem, tmp_path):
    with pytest.raises(RequestError, match=problem):
        search("dense", make_mine, data, runs=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_lambda_says_what_to_call(tmp_path, monkeypatch):
    from ticket_search.runs.progress import Progress

    def make(input_shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    monkeypatch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as stop:
        search("dense", make, runs=tmp_path, progress=False, epochs=2)
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"resume\(.*model=\.\.\., data=\.\.\.\) goes on"):
        resume(stop.value.path, progress=False)
    assert resume(stop.value.path, make, progress=False).finished


def test_models_that_are_none(tmp_path):
    with pytest.raises(RequestError, match="expected a name or a callable"):
        search("dense", Mine(), own_data(), runs=tmp_path, progress=False)
    with pytest.raises(RequestError, match="gave int, expected a torch.nn.Module"):
        search("dense", lambda: 3, own_data(), runs=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_python_reports_every_problem(tmp_path):
    with pytest.raises(RequestError) as caught:
        search("imp", "lenet", "digts", runs=tmp_path, progress=False, density=2, epochs=0, frobnicate=1, scaled=True)
    assert len(caught.value.problems) == 6
    assert list(tmp_path.iterdir()) == []


def levels_of(density: float, **flags) -> list[dict[str, int]]:
    model = nn.Sequential(nn.Conv2d(1, 10, 3, bias=False), nn.Linear(50, 20), nn.Linear(20, 10))
    return level_counts(Config(density=density, **flags), supermask.find_targets(model))


def test_levels_follow_the_rates_and_end_on_the_density():
    counts = levels_of(0.3, allocation="layerwise", fraction=0.2, conv_fraction=0.15, output_fraction=0.1)
    sizes = {"0.weight": 90, "1.weight": 1000, "2.weight": 200}
    rates = {"0.weight": 0.15, "1.weight": 0.2, "2.weight": 0.1}
    for level, row in enumerate(counts[:-1], start=1):
        assert row == {n: int(sizes[n] * (1 - rates[n]) ** level + 0.5) for n in sizes}
    assert sum(counts[-1].values()) == int(0.3 * 1290 + 0.5)
    assert all(a[n] >= b[n] for a, b in itertools.pairwise(counts) for n in sizes)
    assert [sum(row.values()) for row in levels_of(0.512)] == [1032, 826, 660]
    assert len(levels_of(0.51)) == 3, "a last step of a twentieth of a level is joined to the one before"
    assert len(levels_of(0.45)) == 4
    assert levels_of(0.99999) == []
    with pytest.raises(RequestError, match="keeps none of the 1,290 weights"):
        levels_of(1e-5)
    with pytest.raises(RequestError, match="90 units are in tensors of rate 0"):
        levels_of(0.05, allocation="layerwise", conv_fraction=0.0)
    assert levels_of(0.1, allocation="layerwise", conv_fraction=0.0)[-1]["0.weight"] == 90


def test_weights_and_biases_of_a_module_are_ranked_together(tmp_path):
    """The notebook of MNIST-1D does so: a bias tensor ranked by itself keeps too much of it."""
    flags = {"include": ("*",), "allocation": "module", "fraction": 0.5, "output_fraction": 0.2}
    run = search("imp", runs=tmp_path, density=0.2, epochs=1, threads=1, train_size=320, progress=False, **flags)
    assert len(run.levels) > 2
    for level in range(1, len(run.levels)):
        trained = run.load_level(level - 1)
        now, before, final = run.load_level(level).masks, trained.masks, trained.state_dict()
        for layer, rate in (("fc1", 0.5), ("fc2", 0.5), ("fc3", 0.2)):
            names = [f"{layer}.weight", f"{layer}.bias"]
            sizes = {name: now[name].numel() for name in names}
            kept = sum(int(now[name].sum()) for name in names)
            if level < len(run.levels) - 1:
                assert abs(kept - sum(sizes.values()) * (1 - rate) ** level) <= len(names)
            keys = torch.cat([torch.where(before[n], final[n].abs(), -1.0).flatten() for n in names])
            expected = sorted_top_k(keys.numpy(), kept)
            assert np.array_equal(torch.cat([now[n].flatten() for n in names]).numpy(), expected)


def test_the_output_is_the_models_last_linear_layer_and_rates_need_their_layers():
    model = nn.Sequential(nn.Linear(50, 20), nn.Linear(20, 10))
    config = Config(allocation="layerwise", output_fraction=0.1, conv_fraction=0.1)
    with pytest.raises(
        RequestError, match="--output-fraction: the last linear layer carries no mask.*--conv-fraction: no conv"
    ):
        level_counts(config, supermask.find_targets(model, exclude="1"))


def test_a_model_of_other_random_numbers_does_not_resume(tmp_path, monkeypatch):
    from ticket_search.contract.errors import RunError
    from ticket_search.runs.progress import Progress

    def unseeded():
        model = Mine()
        with torch.no_grad():
            model.layers[0].weight.copy_(torch.from_numpy(np.random.default_rng().normal(size=(16, 5))))
        return model

    count = iter(range(10**6))
    monkeypatch.setattr(
        Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT) if next(count) == 30 else None
    )
    flags = {"runs": tmp_path, "progress": False, "epochs": 2, "batch_size": 20}
    with pytest.raises(Interrupted):
        search("imp", unseeded, own_data(), **flags)
    with pytest.raises(RunError, match="built with other weights"):
        search("imp", unseeded, own_data(), **flags)


def test_what_a_killed_process_leaves_is_cleared(quick, tmp_path):
    folder = tmp_path / "runs" / "dense-lenet-300-100-digits-d1-s0"
    folder.mkdir(parents=True)
    (folder / ".config.toml.k3x_9abz").write_bytes(b"half")
    run = quick("dense")
    assert run.path == folder
    assert sorted(p.name for p in folder.glob(".*")) == [".lock"]
    assert (folder / "environment.json").exists()


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(quick):
    from ticket_search.running.request import check_request
    from ticket_search.running.search import carry_out, prepare
    from ticket_search.runs.run import Run

    run = quick("dense")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    config, setup = prepare(
        check_request("dense", "lenet-300-100", "digits", {"epochs": 3, "threads": 1, "train_size": 320})
    )
    with pytest.raises(RequestError, match="has finished"):
        carry_out(Run(run.path, config, setup))
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_rewinding_restores_the_step_and_the_schedule(quick):
    run = quick(
        "imp", density=0.6, rewind="4it", schedule="cosine", epochs=2, rewind_optimizer="restore", data_order="same"
    )
    point = run.load_rewind_point()
    assert point.meta["step"] == 4
    late, initial = point.state_dict("final"), point.state_dict("start")
    assert not torch.equal(late["fc1.weight"], initial["fc1.weight"])
    for level in (1, 2, 3):
        ticket = run.load_level(level)
        for name, mask in ticket.masks.items():
            assert torch.equal(ticket.state_dict("start")[name], torch.where(mask, late[name], 0.0))
    assert torch.equal(run.load_level(0).state_dict("start")["fc1.weight"], initial["fc1.weight"])
    rows = [row for row in run.metrics if "learning-rate" in row]
    assert len({row["learning-rate"] for row in rows if row["stage"] == "level-00"}) == 1
    assert rows[-1]["learning-rate"] == rows[0]["learning-rate"], "the last step's rate is the schedule's end again"
    assert run.summary["cost"]["steps"] == 10 + 3 * 6


def test_restored_moments_of_dropped_weights_are_zero():
    from ticket_search.training.rewinding import mask_moments

    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    masks = supermask.prune(model, 0.5)
    moments = mask_moments(optimizer.state_dict(), model, masks)["state"]
    assert not moments[0]["exp_avg"][~masks["weight"]].any()
    assert moments[0]["exp_avg"][masks["weight"]].any()
    assert torch.equal(moments[1]["exp_avg"], optimizer.state_dict()["state"][1]["exp_avg"])
    assert moments[0]["step"] == 1


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"rewind": "3ep"}, "less than the 3 epochs"),
        ({"rewind": "15it"}, "less than the 15 steps"),
        ({"rewind": "soon"}, "expected steps or epochs"),
        ({"rewind": "5"}, "expected steps or epochs"),
        ({"rewind_optimizer": "restore"}, "needs --rewind"),
        ({"output_fraction": 0.1}, "goes with --allocation layerwise"),
    ],
)
def test_rewind_points_that_are_none(flags, problem, quick, tmp_path):
    with pytest.raises(RequestError, match=problem):
        quick("imp", **flags)
    assert not (tmp_path / "runs").exists()


def wait_for(condition, process: BaseProcess, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), Path("stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stage_started(run: Path, stage: str):
    rows = run / "metrics.jsonl"
    events = run / "state.pt"
    return lambda: events.exists() and (f'"{stage}"' in rows.read_text())


_KILLED_IMP = ("imp", {"density": 0.5, "epochs": 5, "fraction": 0.3, "evaluate_every": "1ep"}, "level-02")
_KILLED_EDGE_POPUP = (
    "edge-popup",
    {"density": 0.5, "epochs": 20, "train_size": 640, "evaluate_every": "1ep"},
    "training",
)


@pytest.mark.parametrize(
    ("method", "flags", "stage", "number"),
    [
        pytest.param(*_KILLED_IMP, signal.SIGTERM, marks=pytest.mark.slow),
        (*_KILLED_EDGE_POPUP, signal.SIGKILL),
        pytest.param(*_KILLED_IMP, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(*_KILLED_IMP, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(*_KILLED_EDGE_POPUP, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(*_KILLED_EDGE_POPUP, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_resumes_to_the_same_bytes(
    method, flags, stage, number, tmp_path, ticket, forkserver_with_torch
):
    Path("slowly").touch()
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["search", "--method", method, "--runs", tmp_path, "--threads", "1", *words]
    process = start_python(tmp_path, "import slowly; slowly.main()", *words)
    run = tmp_path / f"{method}-lenet-300-100-digits-d0.5-s0"
    # Rows are written when the state is, so the stage is under way; then into the middle of it.
    wait_for(stage_started(run, stage), process)
    time.sleep(0.3)
    os.kill(process.pid, number)
    process.join(60)
    err = Path("stderr").read_text()
    assert not (run / "summary.json").exists(), "killed too late to tell anything"
    if number == signal.SIGKILL:
        assert process.exitcode == -signal.SIGKILL
    else:
        assert process.exitcode == 130, err
        assert f"ticket resume {run}" in err
    Path("slowly").unlink()
    again = ticket("resume", str(run), "--json")
    assert again.code == 0, again.err
    whole = search(method, runs="whole", threads=1, progress=False, **flags)
    assert (run / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert json.loads(again.out)["test_accuracy"] == whole.summary["test_accuracy"]
