from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Where PyTorch calls a C++ compiler.
SLOW = {"compiled_step.py"}
# What starts processes of its own, which import the file that they were started by.
STARTS_PROCESSES = {"ddp.py"}
# What imports as much as test_trainers.py has imported: they run there.
TRAINERS = {"adapters.py", "hugging_face_trainer.py", "lightning_trainer.py"}
PATHS = sorted((ROOT / "examples").glob("*.py"))
EXAMPLES = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
    for path in PATHS
    if path.name not in STARTS_PROCESSES | TRAINERS
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_example_is_short_and_checks_itself(path):
    code = path.read_text()
    assert len(code.splitlines()) <= 40
    assert f"Run: python examples/{path.name}" in code
    assert "assert" in code or "supermask.check(" in code


def run_example(name: str, tmp_path, monkeypatch, capsys) -> None:
    """As a script, in a folder of its own; not each in a process of its own, which would import PyTorch once more."""
    path = str(ROOT / "examples" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path])
    with torch.random.fork_rng():
        runpy.run_path(path, run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", EXAMPLES)
def test_every_example_runs(path, tmp_path, monkeypatch, capsys):
    run_example(path.name, tmp_path, monkeypatch, capsys)


@pytest.mark.slow  # three times the time to import PyTorch; test_distributed_loops.py has what it shows
@pytest.mark.parametrize("name", sorted(STARTS_PROCESSES))
def test_an_example_that_starts_processes_runs(name, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, ROOT / "examples" / name], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.strip()
