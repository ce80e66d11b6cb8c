"""`ticket diagnose`: each rule on numbers that are planted, and the command on runs that are small."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import supermask
from supermask import Ticket
from ticket_search import RequestError, Run, diagnose, search
from ticket_search.analysis.intervals import confidence_interval, difference
from ticket_search.contract.flags import make_config
from ticket_search.contract.metric import ACCURACY, Metric
from ticket_search.questions import rules
from ticket_search.questions.evidence import Barrier, Curve, Evidence, Layer, Units
from ticket_search.questions.suggestions import change, in_words, slug
from ticket_search.questions.trials import Trial, best_of, correct
from ticket_search.running.read_config import find_kind
from ticket_search.runs.records import write_record

SMALL = {"epochs": 4, "lr": 1e-2, "threads": 1, "model_args": "width=0.2", "evaluate_every": "1ep"}


def config_of(method: str = "imp", **flags):
    return make_config(find_kind(method).Config, {"method": method, **flags})


def curve(values, losses=None, trained=None, validation_losses=None) -> Curve:
    """A training of 100 steps; it has fitted its data, and its validation loss has been lowest before the end."""
    number = len(values)
    steps = tuple(round(100 * (place + 1) / number) for place in range(number))
    falling = tuple(2.0 / (place + 1) for place in range(number))
    lowest_before = (*falling[:-2], falling[-1], falling[-2]) if number > 1 else falling
    return Curve(
        steps, losses or falling, trained or (100.0,) * number, validation_losses or lowest_before, tuple(values)
    )


GOOD = curve([90.0, 95.0, 97.0, 97.0, 97.0])
LAYERS = (
    Layer("fc1.weight", 2000, 20000, 300, 0),
    Layer("fc2.weight", 3000, 30000, 100, 10),
    Layer("fc3.weight", 100, 1000, 10, 0),
)


def plant(method: str = "imp", flags=None, **numbers) -> Evidence:
    """A run that is poor, 17 points below its dense network, and in which no number speaks for any cause."""
    values = {
        "path": "runs/x", "config": config_of(method, **{"rewind": "30it"} if method == "imp" else {}, **(flags or {})),
        "trains": find_kind(method).traits.trains_weights, "metric": ACCURACY, "delta": 0.5, "classes": 10,
        "samples": 1000, "level": 3, "density": 0.1, "value": 80.0, "densities": (0.8, 0.64, 0.512), "dense": 97.0,
        "dense_from": "level 0 of the search", "gaps": {0: 17.0}, "first_fall": (3, 0.512), "steps": 1200, "start": 30,
        "base": GOOD, "own": GOOD, "layers": LAYERS, "normalized": False, "usual_rate": 1.2e-3,
    }  # fmt: skip
    return Evidence(**{**values, **numbers})


LOST = curve([60.0, 60.0, 60.0, 60.0], losses=(2.0, 1.0, 1.1, 1.31), trained=(50.0,) * 4)
KEPT = curve([60.0, 60.0, 60.0, 60.0], losses=(2.0, 1.0, 1.1, 1.29), trained=(50.0,) * 4)
# From three quarters of the training to its end.
FALLS = curve(
    [50.0, 60.0, 61.0, 62.0], trained=(60.0,) * 4, validation_losses=(2.0, 1.5, 1.4, 1.4 - 0.051 * math.log2(4 / 3))
)
STAYS = curve(
    [50.0, 60.0, 61.0, 62.0], trained=(60.0,) * 4, validation_losses=(2.0, 1.5, 1.4, 1.4 - 0.049 * math.log2(4 / 3))
)
FITTED = replace(FALLS, trained=(95.0,) * 4)
ONE = curve([80.0], trained=(60.0,))
ONE_LATE = curve([80.0], trained=(77.0,))
CHANCE = curve([10.0, 11.0, 12.0, 12.0], trained=(11.0,) * 4)
ABOVE = curve([10.0, 11.0, 12.0, 13.0], trained=(11.0,) * 4)
CUT = (LAYERS[0], Layer("fc2.weight", 99, 30000, 100, 40), LAYERS[2])
NEARLY = (LAYERS[0], Layer("fc2.weight", 100, 30000, 100, 40), LAYERS[2])
EMPTIED = (replace(LAYERS[0], emptied=150), *LAYERS[1:])
SUPERMASK = {"trains": False, "level": None, "densities": (0.5,), "density": 0.5, "usual_rate": 0.1, "base": None}

# The rule, what is planted and found, what is planted and not found: just below the threshold.
PLANTED = {
    "the loss is lost": (rules.rate_too_high, {"base": LOST}, {"base": KEPT}),
    "near chance": (rules.rate_too_high, {"base": CHANCE}, {"base": ABOVE}),
    "a rate far from the usual": (
        rules.rate_too_high,
        {"base": KEPT, "flags": {"lr": 2.4e-2}},
        {"base": KEPT, "flags": {"lr": 2.3e-2}},
    ),
    "a rate far from the usual, and fitted": (
        rules.rate_too_high,
        {"base": replace(KEPT, trained=(94.9,) * 4), "flags": {"lr": 0.1}},
        {"base": replace(KEPT, trained=(95.0,) * 4), "flags": {"lr": 0.1}},
    ),
    "the loss still falls": (rules.too_few_epochs, {"base": FALLS}, {"base": STAYS}),
    "it has fitted its data": (rules.too_few_epochs, {"base": FALLS}, {"base": FITTED}),
    "its rate falls": (
        rules.too_few_epochs,
        {"base": FALLS},
        {"base": FALLS, "flags": {"schedule": "cosine"}},
    ),
    "a single evaluation": (rules.too_few_epochs, {"base": ONE}, {"base": ONE_LATE}),
    "the ticket's own training": (rules.epochs_of_ticket, {"own": FALLS}, {"own": FALLS, "value": 96.0}),
    "the ticket's own loss": (rules.rate_of_ticket, {"own": LOST}, {"own": KEPT}),
    "a layer is cut": (rules.collapse, {"layers": CUT}, {"layers": NEARLY}),
    "40 % at once": (rules.too_steep, {"densities": (0.8, 0.48)}, {"densities": (0.8, 0.49)}),
    "one-shot": (
        rules.too_steep,
        {"method": "one-shot", "densities": (0.6,)},
        {"method": "one-shot", "densities": (0.61,)},
    ),
    "before training": (rules.pruned_before_training, {"method": "snip"}, {"method": "imp"}),
    "not scaled": (
        rules.unscaled,
        {"method": "edge-popup", "flags": {"scaled": False}, **SUPERMASK},
        {"method": "edge-popup", "flags": {"scaled": False}, **SUPERMASK, "normalized": True},
    ),
    "normal weights": (
        rules.plain_init,
        {"method": "edge-popup", "flags": {"init": "kaiming-normal"}, **SUPERMASK},
        {"method": "edge-popup", **SUPERMASK},
    ),
    "layerwise": (
        rules.layerwise,
        {"flags": {"allocation": "layerwise"}},
        {"flags": {"allocation": "layerwise"}, "layers": (*LAYERS[:2], Layer("fc3.weight", 310, 3100, 10, 0))},
    ),
    "a barrier": (
        rules.rewind_later,
        {"barriers": (Barrier("ticket", 30, 2.0, 3),)},
        {"barriers": (Barrier("ticket", 30, 1.99, 3),)},
    ),
    "fresh weights tie": (rules.rewind_later, {"controls": {"reinit": 76.5}}, {"controls": {"reinit": 76.0}}),
    "a barrier, and no warm-up": (
        rules.warm_up,
        {"barriers": (Barrier("ticket", 30, 9.0, 3),)},
        {"barriers": (Barrier("ticket", 30, 9.0, 3),), "flags": {"warmup": "10it"}},
    ),
    "a shuffled mask ties": (rules.structure_alone, {"controls": {"shuffle": 76.5}}, {"controls": {"shuffle": 76.0}}),
    "units without input": (
        rules.emptied_units,
        {"layers": EMPTIED},
        {"layers": (replace(LAYERS[0], emptied=149), *LAYERS[1:])},
    ),
    "units that never act": (
        rules.dead_units,
        {"activity": (Units("relu1", 300, 3, 2), Units("relu2", 100, 50, 25))},
        {"activity": (Units("relu1", 300, 3, 2), Units("relu2", 100, 49, 20))},
    ),
    "units that never act in the dense network either": (
        rules.dead_units,
        {"activity": (Units("relu2", 100, 60, 30),)},
        {"activity": (Units("relu2", 100, 60, 31),)},
    ),
    "a supermask of few weights": (
        rules.density_range,
        {"method": "edge-popup", **SUPERMASK, "density": 0.29},
        {"method": "edge-popup", **SUPERMASK, "density": 0.3},
    ),
    "too few seeds": (
        rules.too_few_seeds,
        {"value": 96.0, "gaps": {0: 1.0, 1: 0.0}},
        {"value": 96.0, "gaps": dict.fromkeys(range(5), 1.0)},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_rule_finds_what_is_planted_and_not_what_is_just_below_its_threshold(name):
    rule, planted, below = PLANTED[name]
    found = rule(plant(**planted))
    assert found is not None
    assert found.hypothesis.endswith(".") and found.evidence and found.source[-4:].isdecimal()
    assert rule(plant(**below)) is None
    e = plant(**planted)
    if found.flags:
        changed = change(e.config, found.flags)
        assert all(getattr(changed, key) == value for key, value in found.flags.items() if value is not None)
        assert in_words(found.flags, e.config) and slug(found.flags)


def test_every_rule_is_planted():
    assert {rule for rule, _, _ in PLANTED.values()} == set(rules.RULES)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_no_rule_but_those_of_the_dense_training_finds_anything_where_the_ticket_is_as_good_as_dense(rule):
    for wrong in (LOST, FALLS, CHANCE):
        e = plant("imp", own=wrong, layers=CUT, controls={"reinit": 97.0, "shuffle": 97.0}, value=97.0)
        assert rule(e) is None


def test_one_of_a_thing_is_told_in_the_singular():
    one = rules.rewind_later(plant(barriers=(Barrier("ticket", 30, 9.0, 1),)))
    assert "9.0 pp (1 pair), stable" in one.evidence
    assert rules.too_few_epochs(plant("snip", base=FALLS, flags={"epochs": 1})).evidence.startswith("1 epoch of ")


def test_the_order_is_of_trainings_first_and_of_what_was_measured_before_what_was_not():
    e = plant("one-shot", base=LOST, layers=CUT, densities=(0.03,), start=0)
    kinds = [finding.kind for finding in rules.find(e)]
    assert kinds == ["rate-too-high", "collapse", "too-steep", "rewind-later", "warm-up"]
    measured = rules.find(replace(e, barriers=(Barrier("ticket", 0, 9.0, 1), Barrier("ticket", 40, 1.0, 1))))
    assert [finding.measured for finding in measured] == [True] * 5
    assert next(each for each in measured if each.kind == "rewind-later").flags == {"rewind": "40it"}


@pytest.mark.parametrize(
    ("gap", "samples", "poor"), [(0.4, 10**6, False), (0.6, 10**6, True), (1.8, 1000, True), (1.6, 1000, False)]
)
def test_a_gap_is_poor_beyond_the_margin_and_beyond_what_chance_explains(gap, samples, poor):
    """Of 1,000 samples at 97 % two standard errors of a difference are about 1.7 points."""
    assert plant(value=97.0 - gap, samples=samples).is_poor is poor


@pytest.mark.parametrize(("gaps", "poor"), [((1.5, 1.4, 1.6), True), ((1.5, 0.4, 2.6), False), ((1.5, 1.5), False)])
def test_a_small_gap_that_all_seeds_have_is_poor(gaps, poor):
    assert plant(value=95.5, gaps=dict(enumerate(gaps))).is_poor is poor
    assert not plant(value=96.6, gaps=dict(enumerate(gaps))).is_poor, "this run itself is within the margin"


@pytest.mark.parametrize(
    ("gaps", "found"), [({1: 3.0, 2: 3.5}, False), ({1: 9.0, 2: -4.0}, True), ({1: 9.0}, True), ({}, True)]
)
@pytest.mark.parametrize(("rule", "control"), [(rules.structure_alone, "shuffle"), (rules.rewind_later, "reinit")])
def test_a_control_that_ties_in_one_seed_is_judged_by_all_seeds_that_have_it(rule, control, gaps, found):
    """In this run the ticket is 3.4 points better, which chance alone would make; two seeds more settle it."""
    planted = plant(controls={control: 76.6}, control_gaps={control: gaps})
    finding = rule(planted)
    assert (finding is not None) == found
    if len(gaps) == 2:
        told = planted.beside(control, "it").told
        low, high = confidence_interval([3.4, *gaps.values()])
        assert f"over 3 seeds ({low:+.1f} to {high:+.1f})" in told
        assert not found or told.partition("better by ")[2] in finding.evidence
    elif found:
        assert "of one seed chance alone" in finding.evidence


def test_controls_of_other_seeds_are_used_where_this_run_has_none():
    others = {"random": {1: 0.4, 2: -0.3, 3: 0.1}}
    assert "over 3 seeds" in rules.structure_alone(plant(control_gaps=others)).evidence
    assert rules.structure_alone(plant(control_gaps={"random": {1: 0.4, 2: -0.3}})) is None, "two say next to nothing"


def test_the_noise_is_that_of_two_binomial_fractions():
    import numpy

    draw = numpy.random.default_rng(0).binomial(200, [[0.9], [0.8]], (2, 100_000)) / 2
    assert plant(samples=200).noise_of(90.0, 80.0) == pytest.approx(2 * (draw[0] - draw[1]).std(), rel=0.02)


def test_a_metric_of_which_lower_is_better_is_shown_as_it_is_measured():
    e = plant(metric=Metric("perplexity", "lower"), delta=None, value=-30.0, dense=-20.0)
    assert e.gap == 10.0 and not e.is_poor and e.show(e.value) == "30"
    assert replace(e, delta=1.0, own=None).is_poor


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of runs: a ticket that one-shot pruning has spoiled, one of half the weights, and others."""
    folder = tmp_path_factory.mktemp("diagnose") / "runs"
    flags = {**SMALL, "runs": folder, "progress": False}
    search("one-shot", name="spoiled", density=0.02, **flags)
    search("one-shot", name="half", density=0.5, **flags)
    search("edge-popup", name="alone", density=0.5, **{**flags, "epochs": 2, "lr": 0.1})
    search("dense", name="dense", **flags)
    (folder / "unfinished").mkdir()
    write_record(folder / "unfinished", "config.toml", {"method": "imp", "epochs": 2})
    (folder / "newer").mkdir()
    write_record(folder / "newer", "config.toml", {"method": "imp", "of_tomorrow": 2})
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("no run")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_spoiled_ticket_is_poor_and_nothing_on_disk_changes(made, ticket):
    before = everything(made)
    answer = ticket("diagnose", "spoiled", "--runs", str(made))
    assert answer.code == 0, answer.err
    first = answer.out.splitlines()[0]
    assert first.startswith("poor: ") and "below dense; most likely" in first
    assert "--method imp" in answer.out and "--fraction 0.2" in answer.out and "Frankle & Carbin" in answer.out
    assert f"ticket controls {made / 'spoiled'} --levels 1" in answer.out
    assert everything(made) == before
    found = json.loads(ticket("diagnose", "spoiled", "--runs", str(made), "--json").out)
    assert found["state"] == "poor" and found["trials"] == [] and found["winner"] is None
    assert "too-steep" in [finding["kind"] for finding in found["findings"]]


def test_units_that_have_died_are_counted_and_told(made, tmp_path):
    """Biases far below 0, weights left: the ReLU of the first layer is active on nothing. A dense network stands by."""
    folder = tmp_path / "dead"
    shutil.copytree(made / "half", folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["levels"][1] |= {"val_accuracy": 20.0, "val_metric": 20.0}
    write_record(folder, "summary.json", summary)
    path = folder / "levels" / "01" / "ticket.safetensors"
    ticket = supermask.load(path)
    model = ticket.model()
    model.fc1.bias.data.fill_(-1e4)
    states = {**ticket.states, "final": supermask.make_state(model.state_dict(), ticket.masks)}
    supermask.save(Ticket(ticket.masks, states, ticket.meta), path, overwrite=True)
    found = diagnose(folder, progress=False)
    (dead,) = [each for each in found.findings if each.kind == "dead-units"]
    units = supermask.activity(ticket.model(), [torch.zeros(1, 1, 8, 8)]).calls[0].units
    assert f"of the {units} ReLU units" in dead.evidence and dead.flags["lr"] < SMALL["lr"]
    assert "units that are never active on the data" not in dict(found.unmeasured)
    assert "dead-units" not in [each.kind for each in diagnose(made / "spoiled", progress=False).findings]


def test_a_healthy_run_is_told_in_a_line_without_a_finding(made, ticket):
    found = diagnose(made / "half", progress=False)
    assert found.state in ("healthy", "undecided") and not any(each.alarm for each in found.findings)
    healthy = diagnose(made / "half", delta=20, progress=False)
    assert healthy.state == "healthy" and healthy.findings == () and healthy.unmeasured == ()
    answer = ticket("diagnose", str(made / "half"), "--delta", "20")
    assert answer.code == 0 and answer.out.startswith("healthy: ") and len(answer.out.splitlines()) == 2


def test_without_a_dense_network_it_is_not_known_and_the_command_is_told(made, tmp_path):
    alone = search("edge-popup", runs=tmp_path, density=0.5, progress=False, **{**SMALL, "epochs": 1, "lr": 0.1})
    found = diagnose(alone, progress=False)
    assert found.state == "unknown" or found.findings[0].alarm
    what, command = found.unmeasured[0]
    assert "dense" in what and command.startswith("ticket search --method dense --model-args width=0.2")
    beside = diagnose(made / "alone", progress=False)
    assert "(" + str(made / "dense") + ")" in beside.explanation


def test_what_connect_and_controls_have_measured_is_read(made, tmp_path):
    """In the forms of `connect.json` and `controls.json`; pairs of other levels and arms are not this ticket's."""
    folder = tmp_path / "spoiled"
    shutil.copytree(made / "spoiled", folder)
    pair = {"arm": "ticket", "level": 1, "density": 0.02, "step": 0, "pair": 0, "order_seeds": [1, 2], "ends": [9, 9]}
    pair |= {"errors": [9, 9], "losses": [1, 1], "loss_barrier": 0.0}
    numbers = [(0, 1, 8.0), (0, 1, 6.0), (9, 1, 1.0), (4, 2, 0.0), (5, 1, 3.0)]
    rows = [{**pair, "step": step, "level": level, "barrier": barrier} for step, level, barrier in numbers]
    write_record(folder, "connect.json", {"metric": {}, "points": 2, "rows": rows})
    value = Run(folder, None).summary["val_metric"]
    control = {"trained": True, "data": "digits", "level": 1, "val_metric": value, "density": 0.02}
    control |= {"kept": 1, "test_metric": value}
    others = [{**control, "control": "random", "level": 7}, {**control, "control": "random", "data": "mnist"}]
    write_record(folder, "controls.json", {"rows": [{**control, "control": "shuffle"}, *others]})
    found = {finding.kind: finding for finding in diagnose(folder, progress=False).findings}
    assert found["rewind-later"].flags == {"rewind": "9it"} and found["rewind-later"].measured
    assert "7.0 pp (2 pairs)" in found["rewind-later"].evidence
    assert "shuffled within each layer" in found["structure-alone"].evidence
    write_record(folder, "connect.json", {"metric": {}, "points": 2, "rows": [{"arm": "ticket"}]})
    with pytest.raises(RequestError, match=r"connect.json is damaged"):
        diagnose(folder, progress=False)


def test_the_controls_of_the_same_recipe_beside_a_run_are_read(made, tmp_path):
    """Three more seeds, two of them with controls; a run of another recipe has controls of its own."""
    for seed in range(4):
        folder = tmp_path / f"s{seed}"
        shutil.copytree(made / "spoiled", folder)
        config = tomllib.loads((folder / "config.toml").read_text())
        write_record(folder, "config.toml", {**config, "seed": seed, "lr": 0.02 if seed == 3 else config["lr"]})
        value = Run(folder, None).summary["val_metric"]
        row = {"trained": True, "data": "digits", "level": 1, "density": 0.02, "control": "random"}
        row |= {"kept": 1, "test_metric": value}
        write_record(folder, "controls.json", {"rows": [{**row, "val_metric": value + seed - 1}]})
    finding = next(
        each for each in diagnose(tmp_path / "s0", progress=False).findings if each.kind == "structure-alone"
    )
    assert "a random mask of as many weights it is better by +0.0 pp over 3 seeds (-2.5 to +2.5)" in finding.evidence
    assert "over 3 seeds" in diagnose(tmp_path / "s0", progress=False).explanation
    (tmp_path / "s0" / "controls.json").unlink()
    (tmp_path / "s1" / "controls.json").unlink()
    told = dict(diagnose(tmp_path / "s0", progress=False).unmeasured)
    assert "fresh weights, shuffled and random masks" in told, "one seed beside it is too few"


@pytest.mark.parametrize("name", ["imp", "one-shot", "gradual", "edge-popup", "snip", "filters"])
def test_a_run_of_an_older_version_is_diagnosed(name):
    found = diagnose(Path(__file__).parent / "fixtures" / "runs-0.1.0" / "finished" / name, progress=False)
    if name == "edge-popup":  # its rate falls to the end; the dense network beside it is as bad
        assert found.state == "undecided" and found.findings[0].kind == "too-few-seeds"
    else:
        assert found.state == "poor" and found.findings[0].kind == "too-few-epochs", "of two epochs"


WRONG = {
    "unfinished": (["unfinished"], "is not finished; `ticket resume"),
    "dense": (["dense"], "is a dense run: it has no ticket that could be poor"),
    "newer": (["newer"], "unknown flag --of-tomorrow"),
    "no run": (["other"], "there is no run"),
    "level": (["spoiled", "--level", "2"], "--level 2: after the dense level 0 it has levels 1 to 1"),
    "no levels": (["alone", "--level", "1"], "it has no levels"),
    "one seed": (["spoiled", "--try", "--seeds", "1"], "one seed has no interval"),
    "no try": (["spoiled", "--seeds", "3"], "--seeds goes with --try"),
    "first": (["spoiled", "--try", "--first", "0"], "--first 0: expected"),
    "delta": (["spoiled", "--delta", "-1"], "--delta -1: expected 0 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told(name, made, ticket):
    words, told = WRONG[name]
    before = everything(made)
    answer = ticket("diagnose", *words, "--runs", str(made))
    assert answer.code == 2 and told in answer.err, answer.err
    assert everything(made) == before


def test_a_run_whose_model_has_no_name_is_diagnosed_and_tried_with_its_model(tmp_path):
    from supermask.weights.architectures import find_architecture

    def build():
        return find_architecture("lenet-300-100")(input_shape=[1, 8, 8], classes=10, width=0.2)

    flags = {key: value for key, value in SMALL.items() if key != "model_args"}
    run = search("one-shot", model=lambda: build(), runs=tmp_path, density=0.02, progress=False, **flags)
    found = diagnose(run, progress=False)
    assert found.findings
    assert found.findings[0].command.startswith("ticket_search.search(") and "model=..." in found.findings[0].command
    with pytest.raises(RequestError, match="model"):
        diagnose(run, tries=1, progress=False)
    assert not (run.path / "diagnosis").exists()


def test_suggestions_are_tried_beside_the_recipe_as_it_was_stopped_and_gone_on_with(made, ticket, monkeypatch):
    """Of one suggestion and two seeds there are three searches: the run itself is the recipe as it was, with its seed."""
    from ticket_search.questions import trials

    folder, seen, carry_out = made / "half", [], trials.carry_out

    def stop_at_the_second(run):
        seen.append(run.path.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return carry_out(run)

    monkeypatch.setattr(trials, "carry_out", stop_at_the_second)
    monkeypatch.setattr(rules, "find", lambda e: [rules.warm_up(replace(e, value=e.dense - 50, start=0))])
    with pytest.raises(KeyboardInterrupt):
        diagnose(folder, tries=1, seeds=2, progress=False)
    found = diagnose(folder, tries=3, seeds=2, progress=False)
    (trial,) = found.trials
    name = slug(found.findings[0].flags)
    assert name.startswith("warmup-")
    assert seen == ["original-s1", f"{name}-s0", f"{name}-s0", f"{name}-s1"], "what was finished is not made again"

    runs = {path.name: Run(path, None) for path in (folder / "diagnosis").iterdir()}
    assert trial.original == {0: Run(folder, None).summary["val_metric"], 1: runs["original-s1"].summary["val_metric"]}
    assert trial.validation == {seed: runs[f"{name}-s{seed}"].summary["val_metric"] for seed in (0, 1)}
    assert trial.difference == difference(trial.validation, trial.original)
    before = everything(folder)
    answer = ticket("diagnose", str(folder), "--try", "--first", "1", "--seeds", "2")
    assert answer.code == 0 and len(seen) == 4 and everything(folder) == before
    assert found.tell(trial) in answer.out and f"{trial.change} " in answer.out
    assert trial.change in found._repr_html_()
    told = json.loads(ticket("diagnose", str(folder), "--try", "--seeds", "2", "--json").out)
    assert told["trials"][0]["validation"] == {str(seed): value for seed, value in trial.validation.items()}
    assert told["winner"] == (trial.kind if trial.helped else None)


def trial_of(kind: str, gains: tuple[float, ...]) -> Trial:
    found = difference(dict(enumerate(gains)), dict.fromkeys(range(len(gains)), 0.0))
    return Trial(kind, f"--{kind}", {}, {}, {}, {}, found, None, None, False, "", {})


def test_a_suggestion_has_helped_where_its_interval_is_above_0_after_a_correction_for_all_that_were_tried():
    gains = (4.0, 6.0, 5.0)
    assert correct([trial_of("lr", gains)])[0].helped
    many = correct([trial_of("lr", gains), *(trial_of(f"x{n}", (1.0, -1.0, 0.1)) for n in range(9))])
    assert not many[0].helped and many[0].difference.interval[0] > 0 and many[0].p_holm == pytest.approx(0.13, abs=0.01)
    assert not correct([trial_of("lr", (-4.0, -6.0, -5.0))])[0].helped, "worse is no help"
    assert best_of(correct([trial_of("a", (4.0, 4.1, 4.2)), trial_of("b", (9.0, 9.1, 9.2))])).kind == "b"
    assert best_of(many) is None


def test_a_printed_command_names_its_seeds_once():
    from ticket_search.methods import find_method
    from ticket_search.questions.trials import command_of

    config = find_method("snip").Config(seed=3, density=0.2)
    words = command_of(config, [3], "runs", {"seed": 3, "density": 0.2}).split()
    assert words[-2:] == ["--seeds", "3"] and "--seed" not in words and words.count("--density") == 1
