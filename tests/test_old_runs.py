"""Runs of released versions, finished and stopped: this version reads the ones and goes on with the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from products import thin

import supermask
from ticket_search import Run, compare, resume

VERSIONS = sorted((Path(__file__).parent / "fixtures").glob("runs-*"))
FINISHED = [path.parent for version in VERSIONS for path in sorted(version.glob("finished/*/config.toml"))]
STOPPED = [path.parent for version in VERSIONS for path in sorted(version.glob("stopped/*/config.toml"))]


def version_and_name(folder: Path) -> str:
    return f"{folder.parent.parent.name}-{folder.name}"


def test_there_is_a_run_of_every_method():
    from ticket_search.methods import method_names

    assert len(VERSIONS) >= 1
    first = {folder.name for folder in FINISHED if folder.parent.parent == VERSIONS[0]}
    assert first == {folder.name for folder in STOPPED if folder.parent.parent == VERSIONS[0]}
    assert len(first) == 11
    assert first <= set(method_names())


@pytest.mark.parametrize("folder", FINISHED, ids=version_and_name)
def test_a_finished_run_is_read(folder, ticket):
    summary = json.loads((folder / "summary.json").read_text())
    loaded = supermask.load(folder / "ticket.safetensors")
    assert loaded.masks.kept == summary["kept"]
    answer = ticket("evaluate", str(folder), "--json")
    assert answer.code == 0, answer.err
    # Another processor may round a logit otherwise, and so decide one of the 359 test images otherwise.
    assert json.loads(answer.out)["test_accuracy"] == pytest.approx(summary["test_accuracy"], abs=0.3)
    for level in summary.get("levels", []):
        path = folder / "levels" / f"{level['level']:02d}" / "ticket.safetensors"
        assert supermask.load(path).masks.kept == level["kept"]
    assert ticket("inspect", str(folder)).code == 0


def test_finished_runs_are_compared_with_their_controls():
    for version in VERSIONS:
        comparison = compare([path for path in FINISHED if path.parent.parent == version])
        groups = {group["method"]: group for group in comparison["groups"]}
        assert len(groups) == len([path for path in FINISHED if path.parent.parent == version])
        assert {row["control"] for row in groups["edge-popup"]["controls"]} == {"reinit", "shuffle", "random"}
        assert {row["control"] for row in groups["imp"]["controls"]} == {"reinit"}
        assert {row["control"] for row in groups["snip"]["controls"]} == {"reinit"}


QUESTIONS = {
    "diagnose RUN": "There are too few seeds",
    "signs RUN": "all layers",
    "inspect RUN --activations": "in effect",
    "connect RUN --rewind 0 --arms dense,ticket": "barrier",
}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("question", [*thin(QUESTIONS, 2)])
def test_a_finished_run_is_asked_what_is_asked_of_new_ones(question, version, ticket, tmp_path):
    shutil.copytree(version / "finished" / "imp", tmp_path / "imp")
    answer = ticket(*question.replace("RUN", str(tmp_path / "imp")).split())
    assert answer.code == 0, answer.err
    assert QUESTIONS[question] in answer.out


@pytest.mark.parametrize("folder", STOPPED, ids=version_and_name)
def test_a_stopped_run_is_resumed(folder, tmp_path):
    place = tmp_path / folder.name
    shutil.copytree(folder, place)
    run = resume(place, progress=False)
    assert isinstance(run, Run)
    assert run.finished
    assert not (place / "state.pt").exists()
    whole = folder.parent.parent / "finished" / folder.name
    expected = json.loads((whole / "summary.json").read_text())
    assert run.summary["kept"] == expected["kept"]
    assert run.summary["cost"]["steps"] == expected["cost"]["steps"]
    there = json.loads((whole / "environment.json").read_text())
    here = {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    if all(there[key] == value for key, value in {**here, "numpy": numpy.__version__}.items()):
        ticket, old = (supermask.load(path / "ticket.safetensors") for path in (run.path, whole))
        assert ticket.masks == old.masks
        for state in old.states:
            tensors = ticket.state_dict(state)
            for name, tensor in old.state_dict(state).items():
                assert torch.equal(tensors[name], tensor), f"{state} {name}"
