from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ticket_search import search
from ticket_search.cli import main
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
