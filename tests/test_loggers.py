from __future__ import annotations

import importlib.util
import json
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_tensorboard import CLOCKS, stopping_at

from ticket_search import Interrupted, RequestError, controls, resume, search
from ticket_search.runs.loggers import recipients
from ticket_search.runs.loggers.journal import Journal
from ticket_search.runs.loggers.logger import PACKAGES, numbers_of
from ticket_search.runs.names import SENT_TO
from ticket_search.runs.progress import Progress
from ticket_search.runs.run import Run

LOGGERS = ["mlflow", "wandb"]
IMP = {
    "density": 0.6, "fraction": 0.3, "epochs": 2, "threads": 1, "evaluate_every": "10it", "progress": False,
}  # fmt: skip
Scalars = dict[str, list[tuple[int, float]]]


def test_every_logger_is_tested():
    assert sorted(LOGGERS) == sorted(PACKAGES) == sorted(SENT_TO) == sorted(recipients._BEGIN)


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory) -> Iterator[Path]:
    """Trackers that need no server: a database for MLflow, and the files that wandb writes offline."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "tickets")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_X_DISABLE_STATS", "true")
        # A new experiment's artifacts lie where the process is.
        patch.chdir(folder)
        yield folder


def read_events(run: Run) -> EventAccumulator:
    events = EventAccumulator(str(run.path), size_guidance=dict.fromkeys(("scalars", "histograms", "images"), 0))
    events.Reload()
    return events


def scalars_of(run: Run) -> Scalars:
    events = read_events(run)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_mlflow(run: Run, folder: Path) -> SimpleNamespace:
    from mlflow import MlflowClient

    client = MlflowClient()
    name = Journal(run.path / SENT_TO["mlflow"]).id
    found = client.get_run(name)
    same = client.search_runs([found.info.experiment_id], f"attributes.run_name = '{run.path.name}'")
    histories = {tag: client.get_metric_history(name, tag) for tag in found.data.metrics}
    points = {tag: [(metric.step, metric.value) for metric in history] for tag, history in histories.items()}
    images = [path.path for path in client.list_artifacts(name, "images") if path.path.endswith(".png")]
    # Older versions have other signs between the words.
    words = [re.split(r"[+%]", Path(path).name)[:3] for path in images]
    return SimpleNamespace(
        scalars={tag: values for tag, values in points.items() if not tag.startswith("summary/")},
        summary={tag: values[-1][1] for tag, values in points.items() if tag.startswith("summary/")},
        config=found.data.params,
        pictures=sorted((re.sub("[~#]", "/", tag), int(step)) for tag, _, step in words),
        histograms={},
        done=found.info.status == "FINISHED",
        runs=len(same),
    )


def records(path: Path) -> list[Any]:
    """The records of a file of wandb, once its writer, a process of wandb's own, has closed it."""
    until = time.monotonic() + 20
    while True:
        found = list(records_so_far(path))
        if (found and found[-1].WhichOneof("record_type") == "exit") or time.monotonic() > until:
            return found
        time.sleep(0.05)


def records_so_far(path: Path) -> Iterator[Any]:
    """The file is a log of LevelDB: blocks of 32 KiB, and parts of records in them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        if place + 7 + size > len(data):
            return  # its writer is in the middle of it
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def as_object(items: Any) -> dict[str, Any]:
    """The value of each key, and of each that is a path."""
    found: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def read_wandb(run: Run, folder: Path) -> SimpleNamespace:
    name = Journal(run.path / SENT_TO["wandb"]).id
    rows, summary, config, starts, codes, counts = [], {}, {}, [], [], []
    for path in sorted((folder / "wandb").glob(f"offline-run-*-{name}/*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                rows.append(as_object(record.history.item))
                counts.append(record.history.step.num)
            elif kind == "summary":
                summary |= as_object(record.summary.update)
            elif kind == "run":
                starts.append((record.run.run_id, record.run.display_name))
                config |= {item.key: item.value_json for item in record.run.config.update}
            elif kind == "exit":
                codes.append(record.exit.exit_code)
    assert counts == sorted(set(counts)), "wandb takes its own step upwards only"
    found = SimpleNamespace(scalars={}, pictures=[], histograms={}, config=config, runs=len(set(starts)))
    for row in rows:
        for tag, value in row.items():
            if not isinstance(value, dict):
                if not tag.startswith("_") and tag != "step":
                    found.scalars.setdefault(tag, []).append((row["step"], value))
            elif value["_type"] == "histogram":
                found.histograms.setdefault(tag, []).append((row["step"], value["values"], value["bins"]))
            else:
                found.pictures.append((tag, row["step"]))
    found.pictures.sort()
    found.summary = {tag: value for tag, value in summary.items() if tag.startswith("summary/")}
    found.done = codes[-1] == 0
    return found


READ: dict[str, Callable[[Run, Path], SimpleNamespace]] = {"mlflow": read_mlflow, "wandb": read_wandb}


def clockless(scalars: Scalars) -> dict[str, list[Any]]:
    """As TensorBoard has them, in 32 bits; of what is measured by the clock the steps."""
    return {
        tag: [(step, 0 if tag in CLOCKS else np.float32(value)) for step, value in values]
        for tag, values in scalars.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, store) -> dict[str, Run]:
    """A search that logs to all, and the same that logs nowhere else."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        "logged": search("imp", runs=folder / "logged", name="whole", log=",".join(LOGGERS), **IMP),
        "bare": search("imp", runs=folder / "bare", name="run", **IMP),
    }


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_receives_what_tensorboard_receives(name, whole, store):
    run = whole["logged"]
    found, events = READ[name](run, store), read_events(run)
    assert found.scalars.keys() > {"loss/train", "accuracy/validation", "density/fc1.weight", "accuracy/final-test"}
    assert {tag: [(s, np.float32(v)) for s, v in values] for tag, values in found.scalars.items()} == {
        tag: [(s, np.float32(v)) for s, v in values] for tag, values in scalars_of(run).items()
    }
    assert found.pictures == sorted((tag, e.step) for tag in events.Tags()["images"] for e in events.Images(tag)) != []
    config = run.config.model_dump(mode="json", exclude_none=True)
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    read = found.config if name == "mlflow" else {key: json.loads(value) for key, value in found.config.items()}
    assert {key: read[key] for key in config} == (words if name == "mlflow" else config)
    assert found.summary == numbers_of(run.summary)
    assert found.summary["summary/test_accuracy"] == run.summary["test_accuracy"]
    assert found.done
    assert found.runs == 1


def test_wandb_has_the_histograms(whole, store):
    run = whole["logged"]
    found, events = read_wandb(run, store).histograms, read_events(run)
    assert found.keys() == set(events.Tags()["histograms"]) != set()
    for tag, made in found.items():
        for (step, counts, ends), event in zip(made, events.Histograms(tag), strict=True):
            assert step == event.step
            assert counts == event.histogram_value.bucket
            assert np.allclose(ends[1:], event.histogram_value.bucket_limit)
            assert np.isclose(ends[0], event.histogram_value.min)


def test_where_a_run_is_logged_is_no_part_of_it(whole, tmp_path):
    logged, bare = whole["logged"], whole["bare"]
    tickets = [(run.path / "ticket.safetensors").read_bytes() for run in (logged, bare)]
    assert tickets[0] == tickets[1]
    for level in range(3):
        one, other = (run.path / "levels" / f"{level:02d}" / "ticket.safetensors" for run in (logged, bare))
        assert one.read_bytes() == other.read_bytes()
    again = search("imp", runs=logged.path.parent, name="whole", **IMP)
    assert again.path == logged.path
    assert search("imp", runs=bare.path.parent, name="run", log="wandb", **IMP).path == bare.path
    assert not (bare.path / SENT_TO["wandb"]).exists(), "a finished run is shown as it is"


def begin_and_stop(folder: Path, *at: int, **flags: Any) -> None:
    with stopping_at(*at):
        for _ in at:
            with pytest.raises(Interrupted):
                search("imp", runs=folder, name=folder.name, **IMP, **flags)


class CrashError(Exception):
    """A process dies."""


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_that_was_stopped_goes_on_there(name, whole, store, tmp_path):
    begin_and_stop(tmp_path, 17, 20, 70, log=name)
    folder = tmp_path / tmp_path.name
    assert not READ[name](Run(folder, whole["logged"].config), store).done
    run = resume(folder, progress=False)
    found = READ[name](run, store)
    assert clockless(found.scalars) == clockless(scalars_of(whole["bare"]))
    assert found.pictures == READ[name](whole["logged"], store).pictures
    assert {tag: [step for step, *_ in made] for tag, made in found.histograms.items()} == {
        tag: [step for step, *_ in made] for tag, made in READ[name](whole["logged"], store).histograms.items()
    }
    assert found.done
    assert found.runs == 1


@pytest.mark.parametrize("name", LOGGERS)
def test_what_was_sent_after_the_saved_state_is_not_sent_twice(name, whole, store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        count = iter(range(10**6))
        patch.setattr(Progress, "advance_to", lambda *_: next(count) < 70 or (_ for _ in ()).throw(CrashError))
        with pytest.raises(CrashError):
            search("imp", runs=tmp_path, name="run", log=name, **IMP)
    before = READ[name](Run(tmp_path / "run", whole["logged"].config), store)
    assert max(step for step, _ in before.scalars["loss/train"]) > 42, "beyond the state, which is the first level's"
    with (tmp_path / "run" / SENT_TO[name]).open("a") as file:
        file.write('{"step": 9')  # a process was killed while it wrote
    run = resume(tmp_path / "run", progress=False)
    assert clockless(READ[name](run, store).scalars) == clockless(scalars_of(whole["bare"]))


@pytest.mark.parametrize("name", LOGGERS)
def test_one_that_is_asked_for_later_gets_all_numbers(name, whole, store, tmp_path):
    begin_and_stop(tmp_path, 60)
    begin_and_stop(tmp_path, 20, log=name)
    run = resume(tmp_path / tmp_path.name, progress=False)  # which goes on as it was asked for last
    assert clockless(READ[name](run, store).scalars) == clockless(scalars_of(whole["bare"]))


@pytest.mark.parametrize("name", LOGGERS)
def test_one_that_fails_does_not_end_the_run(name, whole, store, tmp_path, monkeypatch):
    calls: list[int] = []

    def fail(self: Any, row: int, step: int, values: Any) -> None:
        calls.append(step)
        if len(calls) > 4:
            raise ConnectionError("the server is gone\nand more")
        works(self, row, step, values)

    def begin(*args: Any) -> Any:
        nonlocal works
        logger = made(*args)
        works = type(logger).log
        monkeypatch.setattr(type(logger), "log", fail)
        return logger

    works: Any = None
    made = recipients._BEGIN[name]
    monkeypatch.setitem(recipients._BEGIN, name, begin)
    told = f"--log {name} has failed, and nothing more is sent there: ConnectionError: the server is gone;"
    with pytest.warns(UserWarning, match=told) as caught:
        run = search("imp", runs=tmp_path, name="run", log=name, **IMP)
    assert len(caught) == len(run.summary["warnings"]) == 1
    assert len(calls) == 5, "one that has failed is not asked again"
    assert clockless(scalars_of(run)) == clockless(scalars_of(whole["bare"]))
    assert (run.path / "ticket.safetensors").read_bytes() == (whole["bare"].path / "ticket.safetensors").read_bytes()


@pytest.mark.parametrize("name", LOGGERS)
def test_what_a_failure_has_left_out_is_sent_by_a_resume(name, whole, store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(recipients._BEGIN, name, lambda *_: 1 / 0)
        with pytest.warns(UserWarning, match="has failed"):
            begin_and_stop(tmp_path, 60, log=name)
    run = resume(tmp_path / tmp_path.name, progress=False)
    assert clockless(READ[name](run, store).scalars) == clockless(scalars_of(whole["bare"]))


def test_a_server_that_is_not_there_is_told_of(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match=r"--log mlflow has failed.*127\.0\.0\.1"):
        run = search("imp", runs=tmp_path, name="run", log="mlflow", **IMP)
    assert run.finished


def test_controls_are_tags_of_their_run(whole, store):
    run = whole["logged"]
    before = {name: READ[name](run, store).scalars for name in LOGGERS}
    controls(run.path, kinds=["reinit"], progress=False)
    for name in LOGGERS:
        found = READ[name](run, store)
        new = found.scalars.keys() - before[name].keys()
        assert new == {tag for tag in found.scalars if tag.startswith("controls/reinit")} != set()
        assert clockless(found.scalars) == clockless(scalars_of(run))
        assert found.summary == numbers_of(run.summary), "the control's are none of the run"
        assert found.done
        assert found.runs == 1


@pytest.mark.parametrize("name", LOGGERS)
def test_controls_that_are_not_trained_are_tags_too(name, store, tmp_path):
    flags = {"epochs": 2, "threads": 1, "progress": False, "log": name}
    run = search("edge-popup", runs=tmp_path, name=tmp_path.name, **flags)
    controls(run.path, kinds=["reinit", "shuffle"], progress=False)
    found = READ[name](run, store).scalars
    assert found.keys() >= {"controls/reinit/accuracy-test", "controls/shuffle/accuracy-test"}
    assert clockless(found) == clockless(scalars_of(run))


@pytest.mark.parametrize("name", LOGGERS)
def test_a_dry_run_sends_nothing(name, ticket, monkeypatch):
    monkeypatch.setitem(recipients._BEGIN, name, lambda *_: pytest.fail("nothing is to be sent"))
    answer = ticket("search", "--method", "dense", "--epochs", "1", "--log", name, "--dry-run")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("name", LOGGERS)
def test_one_that_is_not_installed_is_told_before_anything_is_written(name, ticket, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    lacking = PACKAGES[name][-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *more: None if each == lacking else find(each, *more))
    answer = ticket("search", "--epochs", "1", "--log", name)
    assert answer.code == 2
    assert f'--log {name} needs a package that is not installed: pip install "supermask[{name}]"' in answer.err
    assert not list(tmp_path.iterdir())


def test_an_unknown_one_is_told_with_the_nearest_name(tmp_path):
    with pytest.raises(RequestError, match=r"--log .*expected 'mlflow' or 'wandb'; did you mean 'wandb'"):
        search("dense", runs=tmp_path, log="wand", progress=False)


@pytest.mark.parametrize("text", ["[]\n", '{"id": 1, "step"\n', '{"id": "a"}\n{"step": "x", "tags": []}\n'])
def test_a_journal_that_is_damaged_says_so(text, tmp_path):
    path = tmp_path / "wandb.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"wandb\.jsonl is damaged"):
        Journal(path)
