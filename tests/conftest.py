from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ticket_search import search
from ticket_search.runs import Run

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
