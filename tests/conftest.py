from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Before PyTorch is imported, here and in what tests start: two processes of tests have a core each, and threads that wait
# for one another take the time of the other process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from ticket_search import search
from ticket_search.cli import main
from ticket_search.runs import tensorboard
from ticket_search.runs.run import Run

# Small enough that a search takes a second, large enough that a tensor has ties, levels and more than one batch.
FAST = {"epochs": 3, "threads": 1}


@pytest.fixture
def quick(tmp_path: Path):
    """Search on the digits in a second: `quick("imp", density=0.5)`."""

    def run(method: str, folder: str = "runs", **flags) -> Run:
        return search(method, runs=tmp_path / folder, progress=False, **{**FAST, **flags})

    return run


@pytest.fixture(autouse=True)
def _own_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# A white pixel.
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63f80f0001010100b138f6140000000049454e44ae426082"
)


@pytest.fixture(autouse=True, scope="session")
def _blank_pictures() -> Iterator[pytest.MonkeyPatch]:
    """The pictures of first layers are not painted: that takes longer than all else of a short search.

    `painted` in test_tensorboard.py has them painted.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "draw", lambda picture: (_PNG, 1, 1))
        yield patch


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def ticket(capsys, monkeypatch, tmp_path):
    """Run `ticket WORDS` in an empty folder."""
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
