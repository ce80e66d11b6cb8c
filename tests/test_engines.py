"""The engines of a sweep: the same tickets by all of them, lost workers, stopped sweeps, and what is wrong with a request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ticket_search import RequestError, RunError
from ticket_search.contract.stops import AGAIN, STOPPED
from ticket_search.runs.names import STATE, TICKET
from ticket_search.sweeps.engines import boxes, parcels
from ticket_search.sweeps.engines.names import ENGINES, check_engine, find_engine
from ticket_search.sweeps.engines.options import EngineOptions
from ticket_search.sweeps.file import make_sweep, read_sweep
from ticket_search.sweeps.progress import RUNNING, WAITING
from ticket_search.sweeps.sweep import plan_sweep, run_sweep

submitit = pytest.importorskip("submitit")
ray = pytest.importorskip("ray")
REPEATED = {"RAY_USAGE_STATS_ENABLED": "0"}
SMALL = {"epochs": 1, "train_size": 320, "model_args": ["width=0.1"]}
FEW = {
    "base": {**SMALL, "imp": {"fraction": 0.5}},
    "grid": {"method": ["random", "edge-popup", "imp"], "density": [0.5]},
}
MANY = {"seeds": "0-3", **FEW, "grid": {"method": ["random", "edge-popup", "imp"], "density": [0.25, 0.5]}}
ALL = [
    ("local", {}),
    ("slurm", {"cluster": "debug"}),
    ("slurm", {"cluster": "local"}),
    ("ray", {}),
    ("ray", {"folder": "own"}),
]


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this process: a sweep that finds one uses it, and leaves it."""
    os.environ.update(REPEATED)
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, before)  # Ray has taken it
    yield
    ray.shutdown()


def with_options(table: dict, engine: str, options: dict, tmp_path: Path) -> dict:
    if options.get("folder") == "own":
        options = {"folder": str(tmp_path / "workers"), "copy_every": 0.5}
    return {**table, "engine": {engine: options}} if options else table


def tickets_in(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob(f"*/{TICKET}")}


def check_all_engines(table: dict, tmp_path: Path, engines=tuple(ALL)) -> None:
    found = {}
    for engine, options in engines:
        sweep = make_sweep(with_options(table, engine, options, tmp_path), "mine")
        runs = tmp_path / f"{engine}-{'-'.join(options.values())}"
        result = run_sweep(sweep, runs, jobs=2, progress=False, engine=engine)
        assert (len(result.finished), result.failures, result.interrupted) == (len(sweep.runs), {}, False), runs
        found[runs.name] = tickets_in(runs / "mine")
        before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
        again = run_sweep(sweep, runs, jobs=2, progress=False, engine=engine)
        assert len(again.finished) == len(sweep.runs)
        assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before, "nothing is done twice"
        assert not [file for file in runs.rglob("*") if file.name == STATE]
    assert len(found["local-"]) == len(sweep.runs)
    for name, tickets in found.items():
        assert tickets == found["local-"], name
    left = [path for path in (tmp_path / "workers").rglob("*") if path.is_file()]
    assert left == [], "what was sent back is removed"


def test_all_engines_give_the_same_tickets(tmp_path, monkeypatch, forked, cluster):
    monkeypatch.chdir(tmp_path)
    # Each job of submitit's local executor imports PyTorch: the slow test has them.
    check_all_engines(FEW, tmp_path, [each for each in ALL if each[1] != {"cluster": "local"}])


@pytest.mark.slow
def test_all_engines_give_the_same_24_tickets(tmp_path, monkeypatch, forked, cluster):
    monkeypatch.chdir(tmp_path)
    check_all_engines(MANY, tmp_path)


LONG = {"seeds": "0-1", "base": {"method": "edge-popup", "epochs": 150, "model_args": ["width=0.2"], "batch_size": 64}}


def processes(words: str) -> list[int]:
    """The processes whose command begins with or holds some words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_toml(path: Path, table: dict) -> None:
    import tomli_w

    path.write_text(tomli_w.dumps(table))


def start(tmp_path: Path, table: dict, engine: str, *words: str) -> subprocess.Popen[str]:
    write_toml(tmp_path / "mine.toml", table)
    environment = {**os.environ, **REPEATED, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "ticket_search", "sweep", "mine.toml", "--engine", engine, *words]
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def rows_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


WORKER = {"slurm": "submitit.core._submit", "ray": "ray::_carry_out"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "options"),
    [("slurm", {"cluster": "local"}), ("ray", {}), ("ray", {"folder": "own"})],
    ids=["submitit", "ray", "ray with folders of workers"],
)
def test_a_worker_that_is_killed_is_tried_again_and_goes_on(engine, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = run_sweep(make_sweep(LONG, "mine"), "whole", jobs=2, progress=False)
    assert len(whole.finished) == 2
    others = set(processes(WORKER[engine]))
    process = start(tmp_path, with_options(LONG, engine, options, tmp_path), engine, "--jobs", "2")
    try:
        states = tmp_path / "runs/mine"
        wait_for(lambda: len(list(states.glob(f"*/{STATE}"))) == 2 or process.poll() is not None)
        ours = sorted(set(processes(WORKER[engine])) - others)
        assert ours, process.communicate()
        starts = {path: path.stat().st_mtime_ns for path in states.glob("*/events.*")}
        os.kill(ours[0], signal.SIGKILL)
        _, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "lost" in err and "it goes on in another one" in err, err
    assert tickets_in(states) == tickets_in(tmp_path / "whole/mine")
    # A run that goes on opens a second file of events, whose first point is not at the beginning.
    seconds = [path for path in states.glob("*/events.*") if path not in starts]
    assert len(seconds) == 1, seconds
    assert first_step(seconds[0]) > 0
    assert [rows_of(folder) for folder in sorted(states.iterdir())] == [
        rows_of(folder) for folder in sorted((tmp_path / "whole/mine").iterdir())
    ]


def first_step(events: Path) -> int:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return next(event.step for event in EventFileLoader(str(events)).Load() if event.HasField("summary"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "options"),
    [("slurm", {"cluster": "local"}), ("slurm", {"cluster": "debug"}), ("ray", {}), ("ray", {"folder": "own"})],
    ids=["submitit", "debug", "ray", "ray with folders of workers"],
)
def test_a_stopped_sweep_goes_on(engine, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Workers of a cluster begin one after another: the first run must last until the second has saved a state.
    long = {**LONG, "base": {**LONG["base"], "epochs": 500}}
    run_sweep(make_sweep(long, "mine"), "whole", jobs=2, progress=False)
    table = with_options(long, engine, options, tmp_path)
    process = start(tmp_path, table, engine, "--jobs", "2")
    try:
        states = tmp_path / "runs/mine"
        number = 1 if options.get("cluster") == "debug" else 2
        wait_for(lambda: len(list(states.glob(f"*/{STATE}"))) == number or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == STOPPED, err
    assert "stopped; continue with:" in err and "Traceback" not in err, err
    assert not list(states.glob("*/summary.json")), "stopped too late to tell anything"
    process = start(tmp_path, table, engine, "--jobs", "2")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert tickets_in(states) == tickets_in(tmp_path / "whole/mine")


@pytest.mark.parametrize(
    ("name", "address", "problem"),
    [
        ("slrum", None, "--engine 'slrum'; did you mean 'slurm'? The engines are local, ray, slurm"),
        ("local", "here:6379", "--address here:6379 goes with --engine ray, not local"),
    ],
)
def test_engines_that_are_none(name, address, problem):
    with pytest.raises(RequestError) as caught:
        check_engine(name, address)
    assert caught.value.problems == [problem]


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_that_is_not_installed_says_what_to_type(name, package, ticket, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    Path("mine.toml").write_text("[base]\nepochs = 1\n")
    found = ticket("sweep", "mine.toml", "--engine", name)
    assert (found.code, found.err) == (
        2,
        f'error: --engine {name} takes the package {package}: pip install "supermask[{name}]"\n',
    )
    assert f'{name} = ["{package}' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_every_engine_has_the_three_functions():
    for name in ENGINES:
        engine = find_engine(name)
        assert all(callable(getattr(engine, function)) for function in ("submit", "watch", "gather")), name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[engine.slrum]\ngpus = 1", "[engine]: unknown key 'slrum'; did you mean 'slurm'? The keys are ray, slurm"),
        ("[engine.slurm]\npartitoin = 'gpu'", "[engine.slurm]: unknown key 'partitoin'; did you mean 'partition'?"),
        ("[engine.slurm]\npartition = 'gpu; rm -rf'", "engine.slurm.partition 'gpu; rm -rf': expected a name of Slurm's, without spaces"),
        ("[engine.slurm]\ncluster = 'lokal'", "engine.slurm.cluster 'lokal': expected 'slurm', 'local' or 'debug'; did you mean 'local'?"),
        ("[engine.ray]\nfolder = 'here'", "engine.ray.folder 'here': expected the whole path of a folder"),
        ("[engine.ray]\naddress = 'x:1'", "[engine.ray]: unknown key 'address'"),
        ("[engine.ray]\ngpus = -1", "engine.ray.gpus -1: expected a number greater than or equal to 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_table_of_an_engine(text, problem, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        read_sweep(path)
    (found,) = caught.value.problems
    assert found.startswith(problem), found


def test_gpus_of_a_cluster_need_not_be_here(tmp_path):
    table = {"base": {"method": "random", "epochs": 1, "train_size": 320}, "engine": {"ray": {"gpus": 0.5}}}
    (here,) = plan_sweep(make_sweep(table, "mine"), tmp_path).runs
    (there,) = plan_sweep(make_sweep(table, "mine"), tmp_path, engine="ray").runs
    assert there.config.device == "cuda" and there.steps == here.steps
    table["base"]["precision"] = "auto"
    with pytest.raises(RequestError, match="--precision auto: a GPU of a cluster is not known here"):
        plan_sweep(make_sweep(table, "mine"), tmp_path, engine="ray")


def test_a_cluster_without_room_is_told_before_anything_is_written(tmp_path, cluster):
    sweep = make_sweep({"base": {"method": "random", **SMALL}, "engine": {"ray": {"cpus": 64}}}, "mine")
    with pytest.raises(RequestError, match="a run asks for 64 CPUs, and no machine of the cluster has more than 2"):
        run_sweep(sweep, tmp_path / "runs", progress=False, engine="ray")
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_does_not_answer():
    from ticket_search.sweeps.engines import ray_cluster

    with pytest.raises(RequestError, match="--address 127.0.0.1:1: no Ray cluster answers there, expected HOST:PORT"):
        ray_cluster.check_answers("127.0.0.1:1")
    with pytest.raises(RequestError, match="--address nowhere: no Ray cluster answers there"):
        ray_cluster.check_answers("nowhere")


@pytest.mark.slow
def test_a_cluster_that_is_not_there(ticket):
    Path("mine.toml").write_text("[base]\nmethod = 'random'\nepochs = 1\ntrain_size = 320\n")
    began = time.monotonic()
    environment = {**os.environ, **REPEATED, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [
        sys.executable,
        "-m",
        "ticket_search",
        "sweep",
        "mine.toml",
        "--engine",
        "ray",
        "--address",
        "127.0.0.1:1",
    ]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and time.monotonic() - began < 60
    assert answer.stderr.splitlines()[-1].startswith(
        "error: --address 127.0.0.1:1: no Ray cluster answers there, expected HOST:PORT"
    )
    assert not Path("runs").exists()


def test_a_box_tells_both_ways(tmp_path):
    box = boxes.Box(tmp_path)
    assert boxes.read_progress(tmp_path) is None and not box.stopping
    box.enter(0, RUNNING)
    box.move(0, 7)
    box.measure(0, 91.5)
    box.enter(0, WAITING)
    assert boxes.read_progress(tmp_path) == (WAITING, 7, 91.5)
    boxes.ask_to_stop(tmp_path, AGAIN)
    other = boxes.Box(tmp_path)
    wait_for(lambda: other.stopping, 5)
    assert other.stop_status == AGAIN


def test_a_parcel_has_all_of_a_run_and_leads_nowhere_else(tmp_path, quick):
    run = quick("imp", density=0.5)
    files = {
        path.relative_to(run.path): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    there = tmp_path / "there"
    there.mkdir()
    (there / "failure.txt").write_text("of before")
    parcels.unpack(parcels.pack(run.path), there)
    assert {path.relative_to(there): path.read_bytes() for path in there.rglob("*") if path.is_file()} == files
    import io
    import tarfile

    for name in ("../x", "/x", ".lock"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as parcel:
            parcel.addfile(tarfile.TarInfo(name))
        with pytest.raises(ValueError, match="is no file of a run"):
            parcels.unpack(buffer.getvalue(), there)


@pytest.mark.slow
def test_a_run_that_is_queued_already_is_not_queued_twice(tmp_path, monkeypatch):
    """The first command ends with its time over while a job goes on; the second finds it."""
    from ticket_search.sweeps.engines import slurm

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TICKET_STATE", str(tmp_path / "state"))
    table = {**LONG, "seeds": "0", "engine": {"slurm": {"cluster": "local"}}}
    told: list[str] = []
    monkeypatch.setattr("ticket_search.sweeps.progress.SweepProgress.say", lambda self, text: told.append(text))
    original = slurm.watch

    def leave(crew):
        crew.fill()
        wait_for(lambda: boxes.read_progress(crew.sent[0].box) is not None)
        crew.sent.clear()  # as a process that is killed leaves them
        raise RunError("gone")
        yield

    monkeypatch.setattr(slurm, "watch", leave)
    with pytest.raises(RunError, match="gone"):
        run_sweep(make_sweep(table, "mine"), "runs", progress=False, engine="slurm")
    (queued,) = json.loads(next((tmp_path / "state/slurm").glob("*/queued.json")).read_text()).values()
    monkeypatch.setattr(slurm, "watch", original)
    other = {**table, "base": {**table["base"], "lr": 0.2}}
    if not (tmp_path / "runs/mine").exists():
        with pytest.raises(RequestError, match="is queued with another configuration, as job"):
            run_sweep(make_sweep(other, "mine"), "runs", progress=False, engine="slurm")
    result = run_sweep(make_sweep(table, "mine"), "runs", progress=False, engine="slurm")
    assert len(result.finished) == 1 and told[0] == f"queued already, and watched from here: the jobs {queued['id']}"
    assert len(list(result.finished[0].glob("events.*"))) == 1, "one process has carried it out"


SLURM_MISSING = None if os.name != "posix" else __import__("slurm_here").missing()


@pytest.mark.slow
@pytest.mark.skipif(
    bool(SLURM_MISSING) or os.geteuid() != 0, reason=f"takes root, and Slurm: not installed are {SLURM_MISSING}"
)
def test_a_slurm_of_this_machine(tmp_path, monkeypatch):
    """Few runs, as by the local engine; a notice saves a run and queues it again; the partition that is not there."""
    import slurm_here

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TICKET_STATE", str(tmp_path / "state"))
    (tmp_path / "slurm").mkdir()
    with slurm_here.slurm(tmp_path / "slurm") as environment:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        for place, engine in (("here", "local"), ("there", "slurm")):
            result = run_sweep(make_sweep(FEW, "mine"), place, progress=False, engine=engine)
            assert (len(result.finished), result.failures) == (3, {}), place
        assert tickets_in(tmp_path / "there/mine") == tickets_in(tmp_path / "here/mine")
        wrong = {**FEW, "engine": {"slurm": {"partition": "gpu"}}}
        with pytest.raises(RequestError, match="Slurm does not take the runs: invalid partition specified: gpu"):
            run_sweep(make_sweep(wrong, "mine"), "wrong", progress=False, engine="slurm")

        run_sweep(make_sweep(LONG, "mine"), "whole", progress=False)
        process = start(tmp_path, LONG, "slurm")
        try:
            states = tmp_path / "runs/mine"
            wait_for(lambda: len(list(states.glob(f"*/{STATE}"))) == 2 or process.poll() is not None)
            answer = subprocess.run(
                ["squeue", "-h", "-t", "RUNNING", "-o", "%i"], capture_output=True, text=True, check=True
            )
            job = answer.stdout.split()[0]
            subprocess.run(["scancel", "--signal=USR1", job], check=True)
            # Slurm holds a job that is queued again for two minutes.
            _, err = process.communicate(timeout=400)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert tickets_in(states) == tickets_in(tmp_path / "whole/mine")
        assert sorted(len(list(folder.glob("events.*"))) for folder in states.iterdir()) == [1, 2], "one went on"


def test_the_options_are_empty_unless_given():
    assert EngineOptions() == EngineOptions.model_validate({"slurm": {}, "ray": {}})
    assert (EngineOptions().gpus("local"), EngineOptions().gpus("ray")) == (0.0, 0.0)


def test_while_slurm_is_silent_nothing_is_queued_twice(tmp_path, monkeypatch):
    """A run that was queued before may be there still: without an answer it is not queued again."""
    from ticket_search.sweeps.engines import slurm
    from ticket_search.sweeps.engines.engine import Order
    from ticket_search.sweeps.engines.jobs import Job
    from ticket_search.sweeps.progress import Board, SweepProgress

    monkeypatch.setenv("TICKET_STATE", str(tmp_path / "state"))
    (run,) = make_sweep({"base": {"method": "random"}}, "mine").runs
    job = Job(0, str(tmp_path / "runs/mine/one"), run.config)
    shows = SweepProgress(["one"], [1], Board(1), shown=False)
    crew = slurm._Crew(Order([job], None, Board(1), shows, tmp_path / "runs/mine"))
    crew._write({job.folder: {"id": "5_0", "box": "x", "digest": slurm._digest(job)}})
    answers = iter(
        [subprocess.CalledProcessError(1, "squeue", "", "slurm_load_jobs error: Unable to contact slurm controller")]
    )

    def answer(command, **options):
        failure = next(answers, None)
        if failure is not None:
            raise failure
        return subprocess.CompletedProcess(command, 0, "5_0|PENDING|QOSMaxCpuPerUserLimit\n", "")

    monkeypatch.setattr(slurm.subprocess, "run", answer)
    with pytest.raises(
        RequestError, match="Slurm does not answer: .*Unable to contact slurm controller; .* none is queued twice"
    ):
        crew.attach()
    crew._queue._asked = float("-inf")
    crew.attach()
    assert [sent.handle.job_id for sent in crew.sent] == ["5_0"] and crew.waiting == []
