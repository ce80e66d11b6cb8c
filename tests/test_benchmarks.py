"""The benchmarks run and write what they say; what they measure is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def selection(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("benchmarks") / "selection.json"
    command = [sys.executable, FOLDER / "selection.py", "--quick", "--sizes", "1e4", "--threads", "1", "--json", path]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return {"printed": answer.stdout, **json.loads(path.read_text())}


def test_selection_has_a_row_for_all_keys_and_densities(selection):
    rows = selection["rows"]
    assert {(row["size"], row["keys"], row["density"]) for row in rows} == {
        (10_000, keys, density) for keys in ("normal", "uniform") for density in (0.5, 0.1, 0.01)
    }
    for row in rows:
        times = [row[f"{rival}_ns"] for rival in ("ours", "partition", "topk", "kthvalue", "sort")]
        assert all(time > 0 for time in times)
        assert row["ratio"] == pytest.approx(row["ours_ns"] / row["partition_ns"])


def test_selection_says_where_it_was_measured(selection):
    assert selection["benchmark"] == "selection"
    assert selection["threads"] == 1
    for fact in ("cpu", "numpy", "torch", "python", "date", "numpy_simd"):
        assert selection[fact], fact


def test_no_verdict_on_a_busy_machine(selection):
    assert (selection["verdict"] is None) == selection["load"]["busy"]
    assert ("no verdict: the machine is busy" in selection["printed"]) == selection["load"]["busy"]


@pytest.mark.parametrize(
    ("average", "stretch", "waited", "busy"),
    [(0.1, 1.02, 0.0, False), (None, 1.0, 0.0, False), (1.5, 1.0, 0.0, True), (0.1, 1.3, 0.0, True), (0, 1, 0.2, True)],
)
def test_what_counts_as_busy(average, stretch, waited, busy, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import load

    measured = load.Load(average, cores=4, stretch=stretch, waited=waited)
    assert measured.busy == busy == measured.as_dict()["busy"]
    assert "4 cores" in str(measured)
