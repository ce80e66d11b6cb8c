"""Controls of several runs by one command."""

from __future__ import annotations

import json
from pathlib import Path

import supermask

SMALL = ("--epochs", "1", "--threads", "1", "--train-size", "320", "--model-args", "width=0.1")


def test_several_runs_are_controlled_by_one_command_and_nothing_is_done_where_one_is_wrong(ticket, tmp_path: Path):
    for seed in ("0", "1"):
        made = ticket(
            "search", "--method", "edge-popup", "--density", "0.5", "--seed", seed, "--name", f"s{seed}", *SMALL
        )
        assert made.code == 0, made.err
    assert ticket("search", "--method", "dense", "--name", "dense", *SMALL).code == 0
    wrong = ticket("controls", "s0", "dense", "s2", "--controls", "reinit")
    assert wrong.code == 2
    assert "runs/dense is a dense run: it has no mask to control" in wrong.err
    assert "s2" in wrong.err, "the name of no run is told too"
    assert not (tmp_path / "runs" / "s0" / "controls.json").exists()

    shown = ticket("controls", "runs/s0", "s1", "s0", "--controls", "reinit")
    assert shown.code == 0, shown.err
    places = [f"runs/{name}" for name in ("s0", "s1")]
    assert [line for line in shown.out.splitlines() if line.startswith("runs")] == places
    assert shown.out.count("reinit, not trained") == 2
    rows = json.loads(ticket("controls", "s0", "s1", "--controls", "reinit", "--json").out)["runs"]
    assert rows == {place: json.loads((Path(place) / "controls.json").read_text()) for place in places}


def test_a_smaller_network_is_drawn_with_the_gain_of_the_run_and_other_gains_are_another_recipe(quick):
    from ticket_search import compare, controls

    run = quick("snip", density=0.5, model_args=("width=0.2",), epochs=1, init_gain="tanh")
    plain = quick("snip", "others", density=0.5, model_args=("width=0.2",), epochs=1)
    controls(run, ["small-dense"], progress=False)
    small = supermask.load(run.path / "controls" / "small-dense" / "ticket.safetensors")
    scales = [ticket.states["start"].drawn["fc1.weight"].scale for ticket in (small, run.ticket, plain.ticket)]
    assert scales[0] == scales[1] != scales[2]
    assert len(compare([run.path, plain.path]).groups) == 2
