"""Controls of several runs by one command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import supermask
from ticket_search import RequestError, controls, train
from ticket_search.running.request import read_request
from ticket_search.sweeps.file import make_sweep

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
    from ticket_search import compare

    run = quick("snip", density=0.5, model_args=("width=0.2",), epochs=1, init_gain="tanh")
    plain = quick("snip", "others", density=0.5, model_args=("width=0.2",), epochs=1)
    controls(run, ["small-dense"], progress=False)
    small = supermask.load(run.path / "controls" / "small-dense" / "ticket.safetensors")
    scales = [ticket.states["start"].drawn["fc1.weight"].scale for ticket in (small, run.ticket, plain.ticket)]
    assert scales[0] == scales[1] != scales[2]
    assert len(compare([run.path, plain.path]).groups) == 2


KEEP = {"model_args": ("width=0.1",), "epochs": 1, "train_size": 320, "init": "keep"}


@pytest.fixture
def _untimed(monkeypatch):
    """A control that cannot be made is refused before anything is timed or trained."""
    for name in ("make_plan", "time_untrained", "prepare"):
        monkeypatch.setattr(f"ticket_search.running.controls.{name}", None)


def refusal(run, kinds=None):
    with pytest.raises(RequestError) as caught:
        controls(run, kinds, progress=True)
    return str(caught.value)


@pytest.mark.usefixtures("_untimed")
@pytest.mark.parametrize(("method", "flags"), [("imp", {"density": 0.5, "fraction": 0.5}), ("edge-popup", {})])
def test_controls_of_weights_that_were_kept_are_refused_at_once(method, flags, quick):
    run = quick(method, **flags, **KEEP)
    told = refusal(run)
    assert "starts from weights that no seed has drawn (--init keep)" in told
    assert all(kind in told for kind in ("reinit", "shuffle", "random"))
    assert not (run.path / "controls.json").exists() and not (run.path / "controls").exists()


def test_of_weights_that_were_kept_those_controls_are_made_that_can_be(quick, monkeypatch):
    run = quick("imp", density=0.5, fraction=0.5, rewind="1it", **KEEP)
    told = refusal(run)
    assert "reinit cannot be made" in told and "--controls shuffle,random makes the others" in told
    assert [row["control"] for row in controls(run, ["shuffle"], progress=False)] == ["shuffle"]
    # Its ticket, trained again, is of the same weights, of which only the file tells.
    again = train(run.path, runs=run.path.parent, name="again", threads=1, progress=False, train_size=320)
    monkeypatch.setattr("ticket_search.running.controls.make_plan", None)
    assert "come from elsewhere (a checkpoint, or the model itself with --init keep)" in refusal(again, ["reinit"])


@pytest.mark.usefixtures("_untimed")
def test_a_network_of_given_weights_has_no_smaller_one_and_that_is_said_at_once(quick):
    whole = quick("dense", **KEEP)
    run = quick("random", density=0.5, weights=str(whole.path), **KEEP)
    assert "a network that starts from a checkpoint has no smaller one" in refusal(run, ["small-dense"])


def test_a_sweep_and_several_seeds_refuse_the_controls_that_cannot_be_made():
    told = "starts from weights that no seed has drawn (--init keep)"
    table = {"controls": ["reinit"], "base": {"method": "imp", "init": "keep"}}
    with pytest.raises(RequestError, match=re.escape(told)):
        make_sweep(table, "x")
    with pytest.raises(RequestError, match=re.escape(told)):
        read_request(["--method", "imp", "--init", "keep", "--seeds", "0-1", "--controls", "reinit"])
