from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from torch import nn

import supermask
from supermask import Masks
from supermask.live.held import program_of
from ticket_search import Interrupted, controls, search
from ticket_search.contract.flags import make_config
from ticket_search.methods.imp import Config
from ticket_search.runs.first_layer import draw, kept_per_pixel, mask_grid, picture_first_layer
from ticket_search.runs.loggers import tensorboard
from ticket_search.runs.loggers.tensorboard import BUCKETS, HPARAMS, TAGS, EventFile, level_curve
from ticket_search.runs.progress import Progress
from ticket_search.runs.run import Run

IMP = {"density": 0.6, "epochs": 2, "threads": 1, "evaluate_every": "10it", "progress": False}
EDGE_POPUP = {"density": 0.5, "epochs": 3, "threads": 1, "progress": False}
STEPS = 42  # of one training: two epochs of 21 steps
LEVEL_ENDS = [STEPS * level for level in (1, 2, 3, 4)]
L = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]], bool)  # four rows, three columns
# What depends on when it is measured.
CLOCKS = ("speed/samples-per-second",)


def read(path: Path) -> EventAccumulator:
    kinds = ("scalars", "histograms", "images", "tensors")
    events = EventAccumulator(str(path), size_guidance=dict.fromkeys(kinds, 0))
    events.Reload()
    return events


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that is logged, by tag: steps and what is there, the clocks' numbers left out."""
    events = read(path)
    tags = events.Tags()
    found: dict[str, list[tuple[Any, ...]]] = {}
    for tag in tags["scalars"]:
        found[tag] = [(e.step, 0 if tag in CLOCKS else e.value) for e in events.Scalars(tag)]
    for tag in tags["histograms"]:
        found[tag] = [(e.step, e.histogram_value) for e in events.Histograms(tag)]
    for tag in tags["images"]:
        found[tag] = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
    return found | {tag: [(e.step,) for e in events.Tensors(tag)] for tag in tags["tensors"]}


@contextlib.contextmanager
def stopping_at(*counts: int) -> Iterator[None]:
    """A signal comes at these steps, counted over all trainings."""
    count = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Progress,
            "advance_to",
            lambda self, step: os.kill(os.getpid(), signal.SIGINT) if next(count) in counts else None,
        )
        yield


@pytest.fixture(autouse=True, scope="module")
def _painted() -> Iterator[None]:
    """The pictures as they are: elsewhere they stay blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "draw", draw)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Two methods, and a run that was stopped three times: in the first level, at once again, and in the third."""
    folder = tmp_path_factory.mktemp("tensorboard") / "runs"
    made = {
        "imp": search("imp", runs=folder, name="imp", **IMP),
        "edge-popup": search("edge-popup", runs=folder, name="edge-popup", **EDGE_POPUP),
    }
    with stopping_at(17, 20, 110):
        for _ in range(3):
            with pytest.raises(Interrupted):
                search("imp", runs=folder, name="stopped", **IMP)
        made["stopped"] = search("imp", runs=folder, name="stopped", **IMP)
    return made


@pytest.mark.parametrize("method", ["imp", "edge-popup"])
def test_every_tag_has_a_meaning_and_is_used(method, runs):
    events = read(runs[method].path)
    written = set()
    for plugin, meanings in TAGS.items():
        for tag in events.Tags()[plugin]:
            general = tag if tag in meanings else tag.partition("/")[0] + "/{}"
            assert events.SummaryMetadata(tag).summary_description == meanings[general] != ""
            assert events.SummaryMetadata(tag).plugin_data.plugin_name == plugin
            written.add(general)
    unused = {"memory/allocated-megabytes", "controls/{}"} | (
        {"scores/{}"} if method == "imp" else {tag for tag in TAGS["scalars"] if tag.startswith("level/")}
    )
    assert written == {tag for meanings in TAGS.values() for tag in meanings} - unused


def test_histograms_are_those_of_numpy(tmp_path):
    numbers = torch.randn(7, 90, generator=torch.Generator().manual_seed(0))
    file = EventFile(tmp_path)
    odd = torch.tensor([1.0, torch.inf, 3.0, torch.nan, -torch.inf])
    values = {"weights/a": numbers, "weights/b": numbers.bfloat16(), "weights/odd": odd, "weights/one": torch.ones(5)}
    file.write_histograms(3, {**values, "weights/none": torch.empty(0)})
    file.close()
    events = read(tmp_path)
    for tag, value in values.items():
        (event,) = events.Histograms(tag)
        found = event.histogram_value
        expected = value.double().numpy().ravel()
        expected = expected[np.isfinite(expected)]
        counts, edges = np.histogram(expected, BUCKETS)
        assert event.step == 3
        assert found.bucket == counts.tolist()
        assert np.allclose(found.bucket_limit, edges[1:])
        assert (found.min, found.max, found.num) == (expected.min(), expected.max(), expected.size)
        assert np.allclose([found.sum, found.sum_squares], [expected.sum(), (expected**2).sum()])
    (none,) = events.Histograms("weights/none")
    assert none.histogram_value.num == 0


def test_histograms_of_surviving_weights_after_each_training(runs):
    run = runs["imp"]
    tickets = [run.load_level(level) for level in range(4)]
    for name in tickets[0].masks:
        found = read(run.path).Histograms(f"weights/{name}")
        assert [event.step for event in found] == LEVEL_ENDS
        for event, ticket in zip(found, tickets, strict=True):
            kept = ticket.state_dict("final")[name][ticket.masks[name]].double().numpy()
            assert event.histogram_value.num == ticket.masks.kept_per_tensor[name]
            assert event.histogram_value.bucket == np.histogram(kept, BUCKETS)[0].tolist()
    edge_popup = runs["edge-popup"]
    (event,) = read(edge_popup.path).Histograms("weights/fc1.weight")
    mask = edge_popup.ticket.masks["fc1.weight"]
    assert event.histogram_value.num == int(mask.sum())
    assert set(np.nonzero(event.histogram_value.bucket)[0]) == {0, BUCKETS - 1}, "weights of one size and two signs"


def test_histograms_of_scores_once_an_epoch(runs):
    from ticket_search.training.learned_scores import MaskWatch

    run = runs["edge-popup"]
    for name, mask in run.ticket.masks.items():
        found = read(run.path).Histograms(f"scores/{name}")
        assert [event.step for event in found] == [10, 20, 30]
        assert {event.histogram_value.num for event in found} == {mask.numel()}
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    supermask.learn(model, 0.5)
    logged: list[Any] = []
    fake = SimpleNamespace(log=lambda *row: None, log_histograms=lambda *row: logged.append(row))
    MaskWatch(fake, model).on_epoch(5, model, None)
    ((step, scores),) = logged
    assert step == 5
    assert scores.keys() == {"scores/0.weight", "scores/1.weight"}
    assert torch.equal(scores["scores/1.weight"], program_of(model).score("1.weight"))


def test_kept_weights_per_pixel_lie_as_in_the_image():
    mask = np.stack([L.ravel(), L.ravel(), np.zeros(12, bool)])
    assert (kept_per_pixel(mask, (1, 4, 3)) == 2 * L).all()
    assert kept_per_pixel(mask, (1, 4, 3))[3].tolist() == [2, 2, 2], "the foot of the L is the last row"
    coloured = kept_per_pixel(np.concatenate([mask, ~mask], 1), (2, 4, 3))
    assert coloured.shape == (4, 7)
    assert (coloured[:, :3] == 2 * L).all()
    assert np.isnan(coloured[:, 3]).all()
    assert (coloured[:, 4:] == 3 - 2 * L).all()


def test_the_grid_shows_each_unit_as_the_image_is():
    masks = np.random.default_rng(0).random((70, 12)) < 0.5
    masks[9] = L.ravel()
    grid = mask_grid(masks, (1, 4, 3))
    assert grid.shape == (8 * 5 - 1, 8 * 4 - 1)
    for unit in range(64):
        row, column = divmod(unit, 8)
        cell = grid[row * 5 : row * 5 + 4, column * 4 : column * 4 + 3]
        assert (cell == masks[unit].reshape(4, 3)).all()
    assert (grid[5:9, 4:7] == L).all()
    assert np.isnan(grid[4]).all()
    assert np.isnan(grid[:, 3]).all()
    few = mask_grid(masks[:9], (1, 4, 3))
    assert few.shape == (9, 31)
    assert (few[5:, :3] == masks[8].reshape(4, 3)).all()
    assert np.isnan(few[5:, 3:]).all(), "no unit there"
    filters = mask_grid(masks[:2].reshape(2, 2, 2, 3), (2, 2, 3))
    assert filters.shape == (2, 7 + 2 + 7)
    assert (filters[:, 9 + 4 :] == masks[1, 6:].reshape(2, 3)).all()


def frame(png: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The numbers of a picture as grey levels, read from the middle of where each is drawn."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    scale = -(-360 // max(shape))
    left, top = (image.shape[1] - shape[1] * scale) // 2, (image.shape[0] - shape[0] * scale) // 2
    rows, columns = (np.arange(size) * scale + scale // 2 for size in shape)
    return image[top + rows][:, left + columns]


def test_a_picture_in_the_event_file_is_upright_and_labelled(tmp_path):
    digit = np.zeros((1, 8, 8), bool)
    digit[0, 2:6, 2:5] = L
    masks = Masks({"fc1.weight": torch.from_numpy(digit.reshape(1, 64))})
    pictures = picture_first_layer(masks, (1, 8, 8), 77)
    assert pictures.keys() == set(TAGS["images"])
    for picture in pictures.values():
        for word in ("fc1.weight", f"density {6 / 64:.4g}", "step 77"):
            assert word in picture.title
    file = EventFile(tmp_path)
    file.write_pictures(77, pictures)
    file.close()
    for tag in pictures:
        (event,) = read(tmp_path).Images(tag)
        png = event.encoded_image_string
        image = Image.open(io.BytesIO(png))
        assert (event.step, image.size, image.format) == (77, (event.width, event.height), "PNG")
        drawn = frame(png, (8, 8))
        assert ((drawn > 127) == digit[0]).all()
        grey = np.asarray(image.convert("L"))
        assert (grey[:50] < 128).any(), "a title"
        assert (grey[-50:] < 128).any() and (grey[:, :70] < 128).any(), "axes"


@pytest.mark.parametrize(("units", "channels", "size"), [(70, 3, 11), (3, 1, 28), (64, 1, 40)])
def test_every_mask_entry_is_drawn(units, channels, size):
    mask = torch.rand(units, channels * size * size, generator=torch.Generator().manual_seed(1)) < 0.3
    for picture in picture_first_layer(Masks({"w": mask}), (channels, size, size), 0).values():
        drawn = frame(draw(picture)[0], picture.pixels.shape)
        there = ~np.isnan(picture.pixels)
        if not picture.bar:
            assert (drawn[there] == 255 * picture.pixels[there]).all()
        order = np.argsort(picture.pixels[there], kind="stable")
        assert (np.diff(drawn[there][order].astype(int)) >= 0).all(), "brighter where more is kept"


def test_pictures_of_what_sees_the_image_only():
    filters = Masks({"conv.weight": torch.rand(96, 3, 5, 5) < 0.5, "fc.weight": torch.ones(10, 4) > 0})
    (tag,) = pictures = picture_first_layer(filters, (3, 32, 32), 0)
    assert tag == "first-layer/masks"
    assert "first 64 of 96 filters" in pictures[tag].title
    assert (pictures[tag].pixels[:5, 6:11] == filters["conv.weight"][0, 1].numpy()).all()
    for shape, other in [((3, 32, 32), (20, 75)), ((1, 8, 8), (6, 3, 3, 3)), ((12,), (5, 12)), ((4, 3), (5, 12))]:
        assert picture_first_layer(Masks({"w": torch.ones(other) > 0}), shape, 0) == {}


def test_pictures_after_each_training(runs):
    for method, steps in {"imp": LEVEL_ENDS, "edge-popup": [30]}.items():
        events = read(runs[method].path)
        for tag in TAGS["images"]:
            assert [event.step for event in events.Images(tag)] == steps
    ticket = runs["imp"].load_level(3)
    drawn = frame(read(runs["imp"].path).Images("first-layer/masks")[3].encoded_image_string, (71, 71))
    expected = mask_grid(ticket.masks["fc1.weight"].numpy(), (1, 8, 8))
    assert (drawn[~np.isnan(expected)] == 255 * expected[~np.isnan(expected)]).all()


def test_accuracies_by_kept_weights(runs):
    run = runs["imp"]
    rows = sorted(run.levels, key=lambda row: row["kept"])
    assert len(rows) == 4
    events = read(run.path)
    for tag, values in {
        "level/accuracy-test": [row["test_accuracy"] for row in rows],
        "level/accuracy-validation": [row["val_accuracy"] for row in rows],
        "level/accuracy-test-at-min-validation-loss": [row["min_validation_loss"]["test_accuracy"] for row in rows],
    }.items():
        assert [event.step for event in events.Scalars(tag)] == [row["kept"] for row in rows]
        assert np.allclose([event.value for event in events.Scalars(tag)], values)
    assert not [tag for tag in read(runs["edge-popup"].path).Tags()["scalars"] if tag.startswith("level/")]
    early = {"min_validation_loss": {"test_accuracy": 93.0}}
    made = [{"kept": kept, "test_accuracy": 91.0, "val_accuracy": 92.0, **early} for kept in (30, 20)]
    assert [kept for kept, _ in level_curve(made)] == [20, 30]
    assert list(level_curve(made)[0][1].values()) == [91.0, 92.0, 93.0]


@pytest.mark.parametrize("method", ["imp", "edge-popup"])
def test_what_the_hparams_tab_shows(method, runs):
    run = runs[method]
    events = read(run.path)
    found = {}
    for tag in events.Tags()["tensors"]:
        assert len(events.Tensors(tag)) == 1
        content = events.SummaryMetadata(tag).plugin_data.content
        found[tag] = plugin_data_pb2.HParamsPluginData.FromString(content)
    assert found.keys() == {
        metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG,
    }  # fmt: skip
    experiment = found[metadata.EXPERIMENT_TAG].experiment
    assert {info.name for info in experiment.hparam_infos} == set(HPARAMS)
    metrics = {info.display_name: info.name.tag for info in experiment.metric_infos}
    assert metrics.keys() == {"test_accuracy", "val_accuracy", "kept"}
    for name, tag in metrics.items():
        found_there = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found_there] == [0, run.summary["cost"]["steps"]]
        assert np.allclose([value for _, value in found_there], run.summary[name])
    start = found[metadata.SESSION_START_INFO_TAG].session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert values == {name: getattr(run.config, name) for name in HPARAMS}
    assert start.start_time_secs < found[metadata.SESSION_END_INFO_TAG].session_end_info.end_time_secs
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    assert {name for name, kind in kinds.items() if kind == 1} == {n for n, v in values.items() if isinstance(v, str)}


def test_gpu_memory_is_in_the_rows_of_the_loss_on_a_gpu_only(tmp_path, monkeypatch, runs):
    assert not [tag for run in runs.values() for tag in read(run.path).Tags()["scalars"] if tag.startswith("memory/")]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5_250_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    run = Run(tmp_path, make_config(Config, {"device": "cuda"}))
    with run.opened():
        run.log(1, {"loss/train": 1.0})
        run.log(1, {"density/total": 1.0})
    assert [row.get("memory/allocated-megabytes") for row in run.metrics] == [5.25, None]
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("memory/allocated-megabytes")] == [(1, 5.25)]


def test_a_stopped_run_logs_what_it_would_have(runs):
    whole, stopped = contents(runs["imp"].path), contents(runs["stopped"].path)
    assert len(list(runs["stopped"].path.glob("events.out.tfevents.*"))) > 1
    assert stopped.keys() == whole.keys()
    for tag, points in whole.items():
        assert stopped[tag] == points, tag


@pytest.mark.parametrize("name", ["imp", "edge-popup", "stopped"])
def test_no_step_twice_and_none_backwards(name, runs):
    for tag, points in contents(runs[name].path).items():
        steps = [point[0] for point in points]
        assert steps == sorted(set(steps)), tag


def test_a_run_killed_while_it_ends_logs_the_end_once(tmp_path, monkeypatch, runs):
    from ticket_search.runs import run as module

    def die(folder, name, value):
        if name == "summary.json":
            raise KeyboardInterrupt
        return write_record(folder, name, value)

    write_record = module.write_record
    monkeypatch.setattr(module, "write_record", die)
    with pytest.raises(KeyboardInterrupt):
        search("edge-popup", runs=tmp_path, **EDGE_POPUP)
    (folder,) = tmp_path.iterdir()
    assert "density/kept" in contents(folder)
    monkeypatch.undo()
    assert search("edge-popup", runs=tmp_path, **EDGE_POPUP).path == folder
    assert contents(folder) == contents(runs["edge-popup"].path)


def test_controls_are_in_the_entry_of_their_run(tmp_path):
    run = search("snip", runs=tmp_path, density=0.3, epochs=2, threads=1, evaluate_every="10it", progress=False)
    before = contents(run.path)
    with stopping_at(15, 16), pytest.raises(Interrupted):
        controls(run.path, ["reinit", "shuffle"], progress=False)
    controls(run.path, ["reinit", "shuffle"], progress=False)
    assert {path.parent for path in tmp_path.rglob("events.out.tfevents.*")} == {run.path}
    found = contents(run.path)
    assert {tag: found[tag] for tag in before} == before
    shown = {"loss-train", "loss-validation", "accuracy-train", "accuracy-validation", "accuracy-test"}
    assert found.keys() - before.keys() == {f"controls/{kind}/{tag}" for kind in ("reinit", "shuffle") for tag in shown}
    events = read(run.path)
    for kind in ("reinit", "shuffle"):
        control = Run(run.path / "controls" / kind, run.config)
        for tag in ("loss/train", "loss/validation", "accuracy/validation"):
            rows = [(row["step"], row[tag]) for row in control.metrics if tag in row]
            assert len(rows) >= 5
            tag = f"controls/{kind}/{tag.replace('/', '-')}"
            assert np.allclose([(event.step, event.value) for event in events.Scalars(tag)], rows)
            assert events.SummaryMetadata(tag).summary_description == TAGS["scalars"]["controls/{}"]
        ends = [(event.step, event.value) for event in events.Scalars(f"controls/{kind}/accuracy-test")]
        assert np.allclose(ends, [(end, control.summary["test_accuracy"]) for end in (0, STEPS)])


def test_controls_that_are_evaluated_are_in_the_entry_of_their_run(tmp_path, runs):
    folder = shutil.copytree(runs["edge-popup"].path, tmp_path / "run")
    for _ in range(2):
        (row,) = controls(folder, ["shuffle"], progress=False)
        (folder / "controls.json").unlink()
    ends = [(event.step, event.value) for event in read(folder).Scalars("controls/shuffle/accuracy-test")]
    assert np.allclose(ends, [(end, row["test_accuracy"]) for end in (0, runs["edge-popup"].summary["cost"]["steps"])])


class Server:
    """TensorBoard on a loopback port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, plugin: str, **arguments: str) -> Any:
        with self.opener.open(f"{self.address}/data/plugin/{plugin}?{urllib.parse.urlencode(arguments)}") as answer:
            return json.load(answer)

    def post(self, plugin: str, **content: Any) -> Any:
        request = urllib.request.Request(
            f"{self.address}/data/plugin/{plugin}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with self.opener.open(request) as answer:
            return json.load(answer)


# `auto` is what users get: another reader, which forgets a curve's points when its steps go back.
@pytest.fixture(scope="module", params=[pytest.param("false", marks=pytest.mark.slow), "auto"])
def server(request, runs, tmp_path_factory) -> Iterator[Server]:
    """A TensorBoard over the three runs, which has read them to their ends."""
    log = tmp_path_factory.mktemp("server") / "log"
    deadline = time.monotonic() + 120
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tensorboard.main", "--logdir", str(runs["imp"].path.parent), "--host", "127.0.0.1",
                "--port", "0", f"--load_fast={request.param}",
            ],
            stdout=stderr, stderr=stderr,
        )  # fmt: skip

    def wait_for(what: Any) -> Any:
        while not (found := what()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return found

    try:
        found = Server(wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()))[0])
        wait_for(lambda: sum("density/kept" in tags for tags in found.get("scalars/tags").values()) == len(runs))
        yield found
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_tensorboard_serves_every_run(server, runs):
    tags = server.get("scalars/tags")
    assert tags.keys() == runs.keys()
    for name, run in runs.items():
        assert {"accuracy/test", "accuracy/train", "accuracy/validation"} <= tags[name].keys()
        assert TAGS["scalars"]["accuracy/test"] in tags[name]["accuracy/test"]["description"]
        points = server.get("scalars/scalars", run=name, tag="accuracy/validation")
        rows = [row for row in run.metrics if "accuracy/validation" in row]
        assert [step for _, step, _ in points] == [row["step"] for row in rows]
        assert np.allclose([value for _, _, value in points], [row["accuracy/validation"] for row in rows])
    curve = server.get("scalars/scalars", run="imp", tag="level/accuracy-test")
    assert [step for _, step, _ in curve] == sorted(row["kept"] for row in runs["imp"].levels)
    (histogram,) = server.get("histograms/histograms", run="edge-popup", tag="weights/fc1.weight")
    assert sum(count for _, _, count in histogram[2]) == runs["edge-popup"].ticket.masks.kept_per_tensor["fc1.weight"]


def test_tensorboard_serves_the_hparams_columns(server, runs):
    experiment = server.post("hparams/experiment")
    columns = [info["name"] for info in experiment["hparamInfos"]]
    assert set(columns[:5]) == {"method", "model", "data", "density", "seed"}, "the columns that are seen at first"
    assert set(columns) == set(HPARAMS)
    metrics = {info["displayName"]: info["name"]["tag"] for info in experiment["metricInfos"]}
    groups = server.post(
        "hparams/session_groups", allowedStatuses=["STATUS_SUCCESS"], startIndex=0, sliceSize=10
    )["sessionGroups"]  # fmt: skip
    assert {group["name"] for group in groups} == runs.keys()
    for group in groups:
        run = runs[group["name"]]
        for name in ("method", "model", "data", "density", "seed"):
            assert group["hparams"][name] == run.summary[name]
        assert group["hparams"]["lr"] == run.config.lr
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        for name in ("test_accuracy", "val_accuracy", "kept"):
            assert np.isclose(values[metrics[name]], run.summary[name])


def test_tensorboard_serves_a_stopped_run_without_doubled_and_missing_steps(server):
    tags = server.get("scalars/tags")
    assert tags["stopped"].keys() == tags["imp"].keys()
    for tag in tags["stopped"]:
        stopped, whole = (server.get("scalars/scalars", run=name, tag=tag) for name in ("stopped", "imp"))
        assert [step for _, step, _ in stopped] == [step for _, step, _ in whole]
        assert tag in CLOCKS or [value for *_, value in stopped] == [value for *_, value in whole]
    every_ten = [*range(10, STEPS, 10), STEPS]
    found = server.get("scalars/scalars", run="stopped", tag="loss/validation")
    assert [step for _, step, _ in found] == [STEPS * level + step for level in range(4) for step in every_ten]
    for kind, plugin, route in (
        ("weights/fc1.weight", "histograms", "histograms"),
        ("first-layer/masks", "images", "images"),
    ):
        found = server.get(f"{plugin}/{route}", run="stopped", tag=kind, sample="0")
        assert [item["step"] if plugin == "images" else item[1] for item in found] == LEVEL_ENDS
