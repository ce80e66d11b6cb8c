"""From a search to the export with networks, data and losses of one's own, from the shell, one task after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TASKS = {
    "regression": (["--model", "own_tasks:regression_net", "--data", "own_tasks:regression_data", "--loss", "mse"], "r2"),
    "several labels": (["--model", "own_tasks:labels_net", "--data", "own_tasks:labels_data", "--loss", "bce"], "accuracy"),
    "dictionaries of tokens": (["--model", "own_tasks:bert", "--data", "own_tasks:sentences"], "accuracy"),
    "two outputs": (["--model", "own_tasks:two_heads", "--loss", "own_tasks:joint_loss"], "accuracy"),
    "language": (["--model", "gpt-tiny", "--model-args", "width=16,depth=1,heads=2", "--data", "python-text", "--train-size", "200", "--metric", "perplexity"], "perplexity"),
}  # fmt: skip
QUICKLY = ("--engines", "eager,onnxruntime", "--seconds", "0.05", "--batch-sizes", "4")
METHODS = {"imp": ["--fraction", "0.5"], "edge-popup": [], "snip": []}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_from_the_shell(task, ticket, tmp_path, monkeypatch):
    words, metric = TASKS[task]
    shared = ["--density", "0.5", "--epochs", "1", "--batch-size", "32", "--threads", "1", "--lr", "0.01"]
    shared += ["--optimizer", "adam", "--init", "kaiming-normal"]

    def run(*words: str) -> str:
        answer = ticket(*words)
        assert answer.code == 0, (words, answer.out, answer.err)
        return answer.out

    for method, flags in METHODS.items():
        for seed in ("0", "1"):
            run("search", "--method", method, *words, *shared, *flags, "--seed", seed, "--name", f"{method}-{seed}")
    run("search", "--method", "dense", *words, *shared[2:], "--name", "dense-0")
    # From another folder than the one that the module lies in.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for method in METHODS:
        folder = f"../runs/{method}-0"
        summary = json.loads((Path(folder) / "summary.json").read_text())
        assert summary["metric"]["name"] == metric
        assert ("test_accuracy" in summary) == (metric == "accuracy")
        found = json.loads(run("evaluate", folder, "--json"))
        assert found["test_metric"] == pytest.approx(summary["test_metric"], rel=1e-4)
        rows = json.loads(run("controls", folder, "--json"))["rows"]
        assert {row["control"] for row in rows} >= {"reinit", "shuffle", "random"}
        run("inspect", folder)
        run("export", folder, "--to", "onnx", "--output", f"{method}.onnx")
        assert Path(f"{method}.onnx").stat().st_size > 1000
        rows = json.loads(run("bench", folder, *QUICKLY, "--json"))["rows"]
        assert {row["variant"] for row in rows if row["reason"] is None} >= {"dense", "masked"}
    run("train", "../runs/imp-0", "--seed", "1", "--runs", "../runs")
    table = run("compare", *sorted(map(str, Path("../runs").iterdir())))
    assert (metric if metric != "accuracy" else "%") in table
