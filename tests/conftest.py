from __future__ import annotations

import atexit
import copy
import functools
import gc
import math
import multiprocessing
import multiprocessing.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# Before PyTorch is imported, here and in what tests start: two processes of tests have a core each, and threads that wait
# for one another take the time of the other process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Imported where they are used: the process that hands the tests out uses none of them.
if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ticket_search.runs.run import Run

# Runs are synced to the disk at each save, and their folders removed in the end: a tenth of the time of all tests. Where
# the machine lends enough memory as a file system, that is where they go.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Files of long tests, and those that would come last.
FIRST = ("test_notebooks.py", "test_house.py", "test_tensorboard.py", "test_trust.py", "test_study.py", "test_text.py")

# Small enough that a search takes half a second, large enough that a tensor has ties, levels and more than one batch.
FAST = {"epochs": 3, "threads": 1, "train_size": 320}


@pytest.fixture
def quick(tmp_path: Path):
    """Search on some of the digits in half a second: `quick("imp", density=0.5)`."""

    def run(method: str, folder: str = "runs", **flags) -> Run:
        import ticket_search

        return ticket_search.search(method, runs=tmp_path / folder, progress=False, **{**FAST, **flags})

    return run


@pytest.fixture
def small_mnist1d(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers in the shape of MNIST-1D, which takes seconds to generate."""

    def generate(seed: int) -> dict[str, np.ndarray]:
        import numpy as np

        draw = np.random.default_rng(seed)
        sizes = {"": 600, "_test": 100}
        x = {f"x{part}": draw.standard_normal((size, 40)) for part, size in sizes.items()}
        return x | {f"y{part}": np.arange(size) % 10 for part, size in sizes.items()}

    monkeypatch.setattr("ticket_search.data.mnist1d._generate", generate)


@pytest.fixture(autouse=True)
def _own_threads():
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that marks runs is one of the tests, not the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKET_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _blank_pictures() -> Iterator[None]:
    """The pictures of first layers stay blank; test_tensorboard.py has them painted."""
    from pictures import leave_blank

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ticket_search.runs.loggers.tensorboard.draw", leave_blank)
        yield


@pytest.fixture(autouse=True, scope="session")
def _computed_once() -> Iterator[None]:
    """The digits are read once, and small tensors of weights drawn once: a short search would do so again and again."""
    from supermask.weights import inits
    from ticket_search.data import digits

    read, draw = functools.cache(digits.read), inits.draw
    drawn = functools.lru_cache(maxsize=400)(draw)

    @functools.wraps(draw)
    def draw_once(init: str, shape: Iterable[int], seed: int, name: str, scale: float = 1.0) -> Tensor:
        sizes = tuple(int(size) for size in shape)
        if math.prod(sizes) > 2**16:
            return draw(init, sizes, seed, name, scale)
        return drawn(init, sizes, seed, name, scale).clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "read", lambda *args: copy.deepcopy(read(*args)))
        patch.setattr(inits, "draw", draw_once)
        yield


@pytest.fixture
def young_objects() -> Iterator[None]:
    """The garbage collector looks at what the test makes, and not for a second at all that has been imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _unannounced() -> Iterator[dict[str, Any]]:
    """Searches and controls of the shell begin at once; with `announced` steps are timed before, to say how long."""
    from ticket_search.cli import search
    from ticket_search.running import controls

    timed = {
        "ticket_search.cli.search._carry_out_announced": search._carry_out_announced,
        "ticket_search.running.controls._announce": controls._announce,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_carry_out_announced", lambda run: search.running.search.carry_out(run))
        patch.setattr(controls, "_announce", lambda *_: None)
        yield timed


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch, _unannounced: dict[str, Any]) -> None:
    """Searches and controls of the shell say how long they take."""
    for name, function in _unannounced.items():
        monkeypatch.setattr(name, function)


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[Any]:
    """A dry run tells of some memory; with `measured` it is that of the search, whose small batches take seconds."""
    from ticket_search.running import memory

    parts = {"parameters": 4_000_000, "gradients": 4_000_000, "data": 1_000_000, "a batch": 2_000_000}
    plan_memory, some = memory.plan_memory, memory.Memory(9_000_000, parts, 1_000_000, 128, 16, 5_000_000, 5_100_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "plan_memory", lambda *_: some)
        yield plan_memory


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, _unmeasured: Any) -> None:
    """A dry run measures small batches."""
    monkeypatch.setattr("ticket_search.running.memory.plan_memory", _unmeasured)


@pytest.fixture(scope="session")
def forkserver_with_torch() -> None:
    """Processes that are started by `forkserver` are forked from one that has imported what forked.py says."""
    multiprocessing.set_forkserver_preload(["forked"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, forkserver_with_torch: None) -> None:
    """The processes of a sweep are forked: spawned ones import PyTorch each."""
    get_context = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda method=None: get_context("forkserver" if method == "spawn" else method)
    )


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def ticket(capsys, monkeypatch, tmp_path):
    """Run `ticket WORDS` in an empty folder."""
    from ticket_search.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["ticket", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Answer(code, *capsys.readouterr())

    return run


# A module of checks without a test's name, imported after this one: its assertions tell their values too.
pytest.register_assert_rewrite("method_tests")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: looking for garbage among it takes a third of the collection, and more in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        # Searches make many objects and hardly any cycles: to look for these more seldom saves a fourteenth of the time.
        gc.set_threshold(200_000, 20, 100)
        gc.enable()


def pytest_unconfigure() -> None:
    """A process of tests ends when all is told and its children are gone: to take apart what it holds takes ten seconds.

    Nor is what it holds gone through twice more for garbage, as pytest would: that takes four.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        gc.freeze()
        atexit.register(_end)


def _end() -> None:
    multiprocessing.util._exit_function()
    os._exit(0)


def asks_for_quick_ones(config: pytest.Config) -> bool:
    return config.option.markexpr == "quick"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick` files without such tests are not imported: some of them import what takes longer than their tests."""
    if asks_for_quick_ones(config) and collection_path.name.startswith("test_"):
        return "pytest.mark.quick" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files of the end come first: there one process of tests would wait for the other.

    Of the tests of a quick file, those that are slow, need what is not everywhere or start a process are not quick.
    """
    items.sort(key=lambda item: item.path.name not in FIRST)
    if asks_for_quick_ones(config):
        quick = [item for item in items if not is_long(item)]
        config.hook.pytest_deselected(items=[item for item in items if is_long(item)])
        items[:] = quick


def is_long(item: pytest.Item) -> bool:
    others = map(item.get_closest_marker, ("slow", "gpu", "data", "browser"))
    return any(others) or "forkserver_with_torch" in item.fixturenames
