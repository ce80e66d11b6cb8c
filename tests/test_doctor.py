"""`ticket doctor`: what a machine has, and the checks of a device."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from supermask.kernels import build
from ticket_search.deploy import machine, self_check
from ticket_search.deploy.machine import look_at_machine


def of(facts, topic: str) -> str:
    return "\n".join(fact.what for fact in facts if fact.topic == topic)


def test_what_is_there_is_told_and_nothing_is_fetched(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a doctor downloads nothing")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    facts = look_at_machine(str(tmp_path / "not" / "there"))
    assert [*dict.fromkeys(fact.topic for fact in facts)] == [
        "versions", "processor", "device", "compilers", "packages", "data", "disk",
    ]  # fmt: skip
    assert torch.__version__ in of(facts, "versions") and "GB of memory are free" in of(facts, "processor")
    assert f"PyTorch uses {torch.get_num_threads()} threads" in of(facts, "processor")
    assert "digits" in of(facts, "data") and "GB free in" in of(facts, "disk")
    assert all(fact.state in ("good", "missing", "told") for fact in facts)
    assert not (tmp_path / "not").exists()


def test_what_is_missing_has_the_line_that_gets_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "_version_of", lambda package: "1.0" if package == "tensorboard" else "")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    build.build.cache_clear()
    try:
        missing = {fact.what: fact.mend for fact in look_at_machine() if fact.state == "missing"}
    finally:
        build.build.cache_clear()
    assert (
        missing["no GPU is used: this PyTorch is built for CPUs"] == "pip install --force-reinstall torch torchvision"
    )
    assert any("no C++ compiler" in what and mend.startswith("apt-get install g++") for what, mend in missing.items())
    assert any("--compile is refused" in what for what in missing)
    extras = {mend for what, mend in missing.items() if "is not installed, for" in what}
    assert extras == {
        f'pip install "supermask[{extra}]"' for extra in ("mnist1d", "onnx", "hub", "pandas", "mlflow", "wandb")
    }


def test_a_gpu_is_told_with_the_kernels_that_work_on_it(monkeypatch):
    class About:
        name, major, minor = "H100", 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: About)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (70e9, 80e9))
    monkeypatch.setattr(machine, "find", lambda name, device: object() if name == "radix" else None)
    facts = list(machine._gpu(0))
    assert facts[0].what == "GPU 0: H100, compute capability 9.0, 70.0 of 80.0 GB free"
    assert {fact.state for fact in facts if "radix" in fact.what or "select" in fact.what} == {"good"}
    (lacking,) = [fact for fact in facts if fact.state == "missing"]
    assert "draw noise on the GPU" in lacking.what and lacking.mend.startswith("pip install")


def test_checks_stand_by_themselves(monkeypatch):
    def fails(place):
        yield "one", "1", "ok"
        raise RuntimeError("of no use\nat all")

    monkeypatch.setattr(self_check, "_CHECKS", (self_check._selection, fails, self_check._agreement, fails))
    rows = list(self_check.check_device("cpu", quick=True))
    assert [row.verdict for row in rows if row.check == "fails"] == ["ok", "failed"] * 2
    assert [row.value for row in rows if row.verdict == "failed"] == ["RuntimeError: of no use"] * 2
    assert {row.verdict for row in rows if row.check == "agreement"} == {"ok"}
    assert rows[0].value == "0 wrong" and rows[0].verdict == "ok"
    late = list(self_check.check_device("cpu", quick=True, seconds=0.0))
    assert [row.what for row in late] == ["no time is left"] * 4


def test_a_wrong_mask_fails(monkeypatch):
    monkeypatch.setattr(self_check, "_CHECKS", (self_check._selection,))
    monkeypatch.setattr(self_check, "top_k", lambda keys, k: torch.zeros(keys.shape, dtype=torch.bool))
    first, *_ = self_check.check_device("cpu", quick=True)
    assert first.verdict == "failed" and not first.value.startswith("0 ")


@pytest.mark.slow
def test_what_is_run_beside_others_runs(tmp_path):
    code = self_check._RUN.replace("cuda", "cpu").replace("20_000", "200").replace("epochs=4", "epochs=1")
    done = subprocess.run(
        [sys.executable, "-c", code, "3", str(tmp_path / "runs")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_every_check_of_a_cpu():
    rows = list(self_check.check_device("cpu", quick=True))
    assert {row.verdict for row in rows} <= {"ok", "told", "skipped"}
    assert len({row.check for row in rows}) == len(self_check._CHECKS) == 9


def test_the_command(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_check, "_CHECKS", (self_check._selection,))
    answer = ticket("doctor", "--check", "--quick", "--output", "report.md")
    assert answer.code == 0 and "\nprocessor\n" in answer.out and "masks equal those of the CPU" in answer.out
    page = Path("report.md").read_text()
    assert "| selection |" in page and "0 wrong" in page and torch.__version__.split("+")[0] in page
    again = ticket("doctor", "--check", "--output", "report.md")
    assert again.code == 2 and "the file exists already" in again.err
    found = json.loads(ticket("doctor", "--check", "--quick", "--json").out)
    assert found.keys() == {"machine", "checks"} and found["checks"][0]["verdict"] == "ok"
    monkeypatch.setattr(self_check, "top_k", lambda keys, k: torch.zeros(keys.shape, dtype=torch.bool))
    failed = ticket("doctor", "--check", "--quick")
    assert failed.code == 1 and "1 check failed" in failed.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--output", "x.txt"], "--output x.txt: expected a file that ends in .md or .json"),
        (["--check", "--device", "cuda"], "PyTorch finds no GPU here"),
    ],
)
def test_what_it_refuses(words, told, ticket, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = ticket("doctor", *words)
    assert answer.code == 2 and told in " ".join(answer.err.split())
