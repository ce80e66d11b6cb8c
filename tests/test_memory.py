"""The memory that a search is planned to take, against what it takes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ticket_search import search
from ticket_search.running import memory
from ticket_search.running.request import check_request
from ticket_search.running.search import prepare
from ticket_search.training.allocated import Allocated, bytes_of


def make_images(count: int = 300) -> dict[str, Any]:
    stream = np.random.default_rng(0)
    sizes = {"train": count, "test": count // 5}
    return {
        split: (stream.normal(size=(n, 3, 32, 32)).astype(np.float32), stream.integers(0, 10, n))
        for split, n in sizes.items()
    }


def wide(input_shape, classes):
    """3 MB of weights: more than all that a batch makes of them."""
    layers = [nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "imp": {"density": 0.5, "fraction": 0.5},
    "edge-popup": {},
}


def flags_of(method: str, **more: Any) -> dict[str, Any]:
    return {"epochs": 2, "batch_size": 32, "threads": 1, **METHODS[method], **more}


def plan(method: str, model: Any, data: Any, **more: Any) -> memory.Memory:
    request = check_request(method, model, data, flags_of(method, **more), model_name=getattr(model, "__name__", None))
    return UNMEASURED(*prepare(request))


UNMEASURED = memory.plan_memory  # before the tests of the shell replace it


def test_bytes_are_counted_while_they_are_there():
    there = torch.ones(1000)
    with Allocated("cpu") as counted:
        one = torch.ones(1000)  # 4,000 bytes
        two = one.view(10, 100) + there.view(10, 100)  # 8,000: a view has no bytes of its own
        del one
        three = two.mul_(2).t()  # in place
        there.add_(1)
        four = torch.ones(500)  # 6,000, for the first is gone
    assert counted.now == 6000
    assert counted.peak == 8000
    assert bytes_of([two, three, four]) == 6000


def test_what_a_backward_pass_keeps_is_counted():
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Tanh(), nn.Linear(100, 100, bias=False))
    x = torch.randn(50, 100)
    with Allocated("cpu") as counted:
        loss = model(x).sum()
        before = counted.now
        loss.backward()
    weights, outputs = 4 * 100 * 100, 4 * 50 * 100
    assert before == pytest.approx(outputs, abs=100), "the output of the tanh; sums need only their shapes"
    assert counted.now == pytest.approx(2 * weights, abs=100), "the gradients"


def test_a_batch_of_any_size_follows_from_two():
    # A step of two moments: weights and little of the batch, then much of the batch and few weights.
    few, many = [0, 1000 + 4 * 10, 100 + 4 * 50], [0, 1000 + 8 * 10, 100 + 8 * 50]
    for batch in (4, 8, 16, 22, 23, 1000):
        expected = max(1000 + 10 * batch, 100 + 50 * batch)
        assert memory._at([few, many], (4, 8), batch) == expected
    assert memory._growth([few, many], (4, 8), 100) == 5000
    assert memory._at([few, few], (4, 4), 8) == 2 * max(few), "of one size all is the batch's"


# Each of what dominates: images, or weights.
CASES = [("edge-popup", "conv4"), ("dense", wide), ("edge-popup", wide), ("imp", wide)]
MORE = [(method, model) for method in METHODS for model in ("conv4", "resnet20") if (method, model) not in CASES]


@pytest.fixture
def usual_collection() -> Iterator[None]:
    """Garbage that refers to itself is looked for as often as in a program: other tests do so less."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.collect()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(("method", "model"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)])
def test_a_search_takes_what_was_planned(method, model, tmp_path, usual_collection):
    data = make_images()
    planned = plan(method, model, data)
    assert planned.is_right, planned
    with Allocated("cpu") as counted:
        search(method, model, data, runs=tmp_path, progress=False, **flags_of(method))
    assert planned.peak == pytest.approx(counted.peak, rel=memory.TOLERANCE)


def test_the_parts_are_the_bytes_of_what_they_are():
    count = 3072 * 256 + 256 * 256 + 256 * 10
    biases, data = 256 + 256 + 10, make_images(60)
    for kind, size in (("fp32", 4), ("bf16", 2)):
        parts = plan("edge-popup", wide, data, score_dtype=kind).parts
        assert parts["parameters"] == 4 * (count + biases)
        assert parts["scores"] == parts["gradients"] == parts["moments"] == size * count
        assert parts["effective weights"] == 4 * count
        assert parts["masks"] == parts["the level before"] == 0
        assert parts["data"] == sum(4 * x.size + 8 * y.size for x, y in data.values())
    held = plan("imp", wide, data, optimizer="adam")
    assert held.parts["masks"] == count
    assert held.parts["moments"] == 2 * held.parts["gradients"] == 8 * (count + biases)
    assert held.per_weight["moments"] == pytest.approx(8)
    assert "data" not in held.per_weight


def test_a_dry_run_tells_of_it(measured, ticket, tmp_path):
    words = ("search", "--method", "edge-popup", "--epochs", "2", "--threads", "1", "--dry-run")
    told = ticket(*words)
    assert told.code == 0, told.err
    assert "memory: about" in told.out
    for part in ("parameters", "scores", "gradients", "moments", "effective weights", "a batch", "bytes per weight"):
        assert part in told.out
    found = json.loads(ticket(*words, "--json").out)["memory"]
    assert found["bytes_per_weight"]["scores"] == pytest.approx(4, rel=0.01)
    assert found["small_run"]["planned"] == pytest.approx(found["small_run"]["measured"], rel=memory.TOLERANCE)
    assert found["peak"] > found["parts"]["parameters"]
    assert not list(tmp_path.iterdir())


CHILD = """
import resource, sys
import torch
from test_memory import METHODS, flags_of, make_images, plan, wide
from ticket_search import search
from pathlib import Path
method, model, folder = sys.argv[1], sys.argv[2], sys.argv[3]
model = {"wide": wide}.get(model, model)
data, more = make_images(2000), {"batch_size": 256}
# What is loaded and compiled once is no part of a search.
search(method, model, make_images(60), runs=folder + "/first", progress=False, **flags_of(method, batch_size=4, epochs=1))
page = resource.getpagesize()
before = int(Path("/proc/self/statm").read_text().split()[1]) * page
search(method, model, data, runs=folder + "/second", progress=False, **flags_of(method, **more))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(after - before, plan(method, model, data, **more).peak)
"""


def test_a_search_that_does_not_fit_is_not_timed(ticket, monkeypatch):
    monkeypatch.setattr("ticket_search.training.watch.free_memory", lambda device: 8_000_000)
    monkeypatch.setattr("ticket_search.running.plan.make_plan", lambda *_: pytest.fail("timed"))
    answer = ticket("search", "--method", "dense", "--train-size", "320", "--dry-run")
    assert answer.code == 2
    assert "memory: about 9 MB of tensors on cpu at the most" in answer.out
    as_json = ticket("search", "--method", "dense", "--train-size", "320", "--dry-run", "--json")
    assert (as_json.code, as_json.out) == (2, ""), "no table where JSON was asked for"
    assert answer.err.splitlines()[-1] == (
        "error: the search takes 9 MB on cpu at most, and 8 MB are free there: a smaller --batch-size (now 60), or "
        "--accumulate N, which passes a batch in N parts, takes less. Nothing was timed"
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the memory of a process is told by Linux")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["conv4", "resnet20"])
def test_a_process_grows_by_what_was_planned(method, model, tmp_path):
    """By the system's own count: with what libraries take for themselves, of networks whose images dominate."""
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, method, model, str(tmp_path)],
        # Otherwise glibc keeps large blocks that were freed, and a process grows by a third more than it uses.
        env={**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "65536"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    grown, planned = map(int, answer.stdout.split())
    print(
        f"{method} {model}: grown by {grown / 1e6:.1f} MB, planned {planned / 1e6:.1f} MB, {planned / grown - 1:+.0%}"
    )
    assert planned == pytest.approx(grown, rel=memory.TOLERANCE)
