"""Studies: every file that ships is whole, one runs to its page, and what is published stands beside what is measured."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ticket_search import RequestError, compare
from ticket_search.contract.metric import METRICS
from ticket_search.contract.recipes import find_study, studies
from ticket_search.sweeps.study import Published, compare_with_published, read_study

SMALL = """
title = "A small study"
paper = "Somebody, Something, 2020"
question = "Does it run?"
hours = 0.01
differs = ["One epoch."]
statements = ["Pruning is good."]

[[published]]
label = "dense"
method = "dense"
density = 1.0
accuracy = 90.0

[[published]]
label = "table 1"
method = "imp"
density = 0.5
accuracy = 10.0

[[published]]
label = "nowhere near"
method = "imp"
density = 0.01
accuracy = 50.0

[[published]]
label = "shuffled"
control = "shuffle"
density = 0.5
accuracy = 85.0

[sweep]
seeds = "0-1"
controls = ["shuffle"]

[sweep.base]
epochs = 1

[[sweep.runs]]
method = "imp"
density = 0.5
fraction = 0.5

[[sweep.runs]]
method = "dense"

[[sweep.predictions]]
text = "Half is nearly all."
better = {method = "imp"}
than = {method = "dense"}
"""


@pytest.mark.parametrize("name", studies())
def test_every_study_that_ships_is_whole(name):
    study = read_study(find_study(name))
    assert study.name == name
    assert study.statements and study.question.endswith("?")
    sweeps = study.parts.values() if study.parts else [study.sweep]
    seeds = {run.config.seed for sweep in sweeps for run in sweep.runs}
    assert len(seeds) > 1 or any("one seed" in line.lower() for line in study.differs)
    assert study.hours <= 24


def test_a_study_runs_to_its_page(ticket, tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    answer = ticket("study", "small.toml")
    assert answer.code == 0, answer.err
    page = (tmp_path / "results/small.md").read_text()
    assert "| unknown |" not in page, "what was not asked is no answer"
    for text in (
        "# A small study",
        "ticket study small",
        "One epoch.",
        "Pruning is good.",
        "| not measured |",
        "small.png",
        "| Half is nearly all. | 0.5 |",
    ):
        assert text in page, text
    told = re.search(r"Half is nearly all\. +0\.5 +([+-][\d.]+) +([+-][\d.]+ to [+-][\d.]+) +(yes|no)", answer.out)
    assert "| Half is nearly all. | 0.5 | {} | {} | {} |".format(*told.groups()) in page.replace("**", "")
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert lines["table 1"].endswith("| no |")
    assert "(at 0.5)" in lines["shuffled"]
    for suffix in ("png", "html", "csv"):
        assert (tmp_path / f"results/small.{suffix}").stat().st_size > 500
    again = ticket("study", "small.toml")
    assert again.code == 2 and "--overwrite" in again.err
    before = page
    assert ticket("study", "small.toml", "--overwrite").code == 0
    assert (tmp_path / "results/small.md").read_text() == before, "the same runs give the same page"


def test_published_numbers_beside_ours():
    one = {"method": "imp", "data": "digits", "density": 0.1, "seed": 0}
    rows = [{**one, "density": 1.0, "test_accuracy": 90.0}]
    for seed, (ticket, control) in enumerate(((79.0, 69.5), (82.5, 70.0), (80.0, 70.5))):
        rows.append({**one, "seed": seed, "test_accuracy": ticket})
        rows.append({**one, "seed": seed, "test_accuracy": control, "control": "reinit"})
    comparison = compare([], others=rows)
    cases = {
        "in": ({"method": "imp", "density": 0.11, "accuracy": 82.0}, True),
        "near": ({"method": "dense", "density": 1.0, "accuracy": 90.9}, True),
        "out": ({"method": "imp", "density": 0.1, "accuracy": 86.0}, False),
        "control": ({"control": "reinit", "density": 0.1, "accuracy": 70.5}, True),
        "other data": ({"control": "reinit", "data": "mnist", "density": 0.1, "accuracy": 70.5}, None),
        "other density": ({"method": "imp", "density": 0.3, "accuracy": 80.0}, None),
        "other method": ({"method": "snip", "density": 0.1, "accuracy": 80.0}, None),
    }
    rows = compare_with_published(comparison, [Published(label=key, **point) for key, (point, _) in cases.items()])
    assert {row["label"]: row["agrees"] for row in rows} == {key: agrees for key, (_, agrees) in cases.items()}
    losses = [replace(group, metric=METRICS["mse"]) for group in comparison.groups]
    others = compare_with_published(
        replace(comparison, groups=tuple(losses)), [Published(label="in", **cases["in"][0])]
    )
    assert others[0].ours is None, "an accuracy is beside accuracies only"


def test_everything_that_is_wrong_with_a_study_at_once(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(
        SMALL.replace("hours = 0.01", 'hours = "long"\nquestoin = "?"')
        .replace("fraction = 0.5", "fractoin = 0.5")
        .replace('title = "A small study"', "")
        .replace('label = "table 1"', 'label = "table 1"\nacuracy = 3')
    )
    with pytest.raises(RequestError) as error:
        read_study(path)
    text = str(error.value)
    wrong = (
        "hours 'long': expected a number",
        "title is missing",
        "published.1.acuracy: unknown key 'acuracy'; did you mean 'accuracy'",
    )
    assert len(error.value.problems) == len(wrong) + 2
    for part in (*wrong, "unknown key 'questoin'; did you mean 'question'", "--fractoin; did you mean '--fraction'"):
        assert part in text, text
    with pytest.raises(RequestError, match="frankle2018-lenet"):
        find_study("frankle")
