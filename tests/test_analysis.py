"""Intervals, verdicts, comparisons, controls and mask geometry, beside SciPy's tests and sums written out."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch

import supermask
from supermask import Masks
from ticket_search import RequestError, compare, controls, search, train
from ticket_search.analysis import geometry
from ticket_search.analysis.findings import Delay, Level, to_dict
from ticket_search.analysis.intervals import (
    Difference,
    chance_of_none,
    confidence_interval,
    difference,
    holm,
    seeds_to_find,
)
from ticket_search.analysis.tables import read_csv, to_csv
from ticket_search.analysis.verdict import answer_better, answer_in_order, answer_levels, answer_not_worse, judge

SEEDS = range(5)
QUICK = {"epochs": 1, "threads": 1, "progress": False, "train_size": 320}


def test_intervals_and_tests_are_those_of_scipy():
    stream = np.random.default_rng(0)
    for n in (2, 3, 5, 30):
        ones, others = stream.normal(90, 1, n), stream.normal(89.5, 1, n)
        found = difference(dict(enumerate(ones)), dict(enumerate(others)))
        theirs = scipy.stats.ttest_rel(ones, others)
        assert found.n == n
        assert found.mean == pytest.approx(np.mean(ones - others))
        assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
        assert chance_of_none(found) == pytest.approx(theirs.pvalue)
        assert confidence_interval(list(ones)) == pytest.approx(
            scipy.stats.t.interval(0.95, n - 1, np.mean(ones), scipy.stats.sem(ones))
        )
        flipped = difference(dict(enumerate(others)), dict(enumerate(ones)))
        assert (-found).interval == pytest.approx(flipped.interval)
    assert difference({1: 2.0}, {2: 1.0}) is None
    assert difference({1: 2.0, 3: 9.0}, {1: 1.0}) == Difference(1, 1.0)
    assert confidence_interval([1.0]) is None
    assert chance_of_none(Difference(1, 3.0)) is None
    assert chance_of_none(difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})) == 1.0


def test_holm_is_the_stepwise_procedure():
    """A finding is one exactly where the procedure, written out, rejects."""
    stream = np.random.default_rng(1)
    for _ in range(200):
        chances = {str(i): float(p) for i, p in enumerate(stream.uniform(0, 0.1, stream.integers(1, 6)))}
        adjusted = holm(chances)
        rejected = set()
        for rank, (name, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
            if chance > 0.05 / (len(chances) - rank):
                break
            rejected.add(name)
        assert {name for name, chance in adjusted.items() if chance <= 0.05} == rejected


def test_as_many_seeds_find_the_effect():
    """With the number that is asked for the test has its power, with one fewer it has not."""
    for std, n in ((0.2, 5), (0.5, 5), (1.0, 20)):
        seeds = seeds_to_find(0.5, std, n)
        likely = std * math.sqrt((n - 1) / scipy.stats.chi2.ppf(0.2, n - 1))

        def power(m, likely=likely):
            return scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, m - 1), m - 1, 0.5 * math.sqrt(m) / likely)

        assert power(seeds) >= 0.8
        assert seeds == 2 or power(seeds - 1) < 0.8
    assert seeds_to_find(0.5, 0.0, 5) == 2
    assert seeds_to_find(0.001, 50.0, 5) is None
    assert seeds_to_find(0.0, 1.0, 5) is None


def spread(mean, std, n):
    """A difference of n pairs."""
    values = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
    values = mean + (values * std / values.std(ddof=1) if n > 1 else values)
    return difference(dict(enumerate(values)), dict.fromkeys(range(n), 0.0))


@pytest.mark.parametrize(
    ("mean", "std", "n", "answer"),
    [
        (0.0, 0.1, 5, "yes"), (0.3, 0.5, 5, "yes"), (-0.45, 0.01, 5, "yes"), (-1.0, 0.1, 5, "no"),
        (-0.5, 0.1, 5, "undecided"), (0.0, 1.0, 5, "undecided"), (0.0, 0.1, 4, "undecided"),
        (-5.0, 0.1, 4, "no"), (0.0, 0.0, 1, "undecided"),
    ],
)  # fmt: skip
def test_not_worse(mean, std, n, answer):
    found = answer_not_worse("?", spread(mean, std, n), 0.5)
    assert found.answer == answer
    if answer != "undecided" or "too noisy" in found.because:
        assert found.more_seeds is None
    else:
        assert n + found.more_seeds >= 5
        assert found.more_seeds > 0


def test_better_than_a_control():
    assert answer_better("?", spread(2.0, 0.5, 5), 0.001, 0.5).answer == "yes"
    assert answer_better("?", spread(-2.0, 0.5, 5), 0.001, 0.5).answer == "no"
    assert answer_better("?", spread(0.0, 0.2, 5), 1.0, 0.5).answer == "no"
    assert answer_better("?", spread(0.6, 1.0, 5), 0.3, 0.5).answer == "undecided"
    assert answer_better("?", spread(2.0, 0.1, 3), 0.001, 0.5).answer == "undecided"
    assert answer_better("?", None, None, 0.5).answer == "unknown"


def test_levels_are_tested_downward_to_the_first_that_fails():
    words = [answer_not_worse("?", spread(mean, 0.1, 5), 0.5) for mean in (0.0, 0.0, -1.0, 0.0, 0.0)]
    names = [f"density {0.8**level:.4g}" for level in range(1, 6)]
    tested = answer_in_order(words, names)
    assert [answer.answer for answer in tested] == ["yes", "yes", "no", "unknown", "unknown"]
    assert [answer.tested for answer in tested] == [True, True, True, False, False]
    assert all("the answer at density 0.512 is no" in answer.because for answer in tested[3:])
    unsure = answer_in_order([answer_not_worse("?", spread(0.0, 0.6, 5), 0.5), words[0]], names)
    assert [answer.answer for answer in unsure] == ["undecided", "undecided"]
    assert unsure[1].more_seeds == unsure[0].more_seeds
    assert f"the answer at density 0.8 is undecided ({unsure[0].more_seeds} more seed" in unsure[1].because
    assert unsure[1].in_words() == "not tested"
    assert unsure[0].in_words().startswith(f"undecided ({unsure[0].more_seeds} more seed")
    assert tested[0].in_words() == "yes"


DENSE = Level(
    level=0, density=1.0, kept=100, n=5, seeds=(0, 1, 2, 3, 4), values=(90.0,) * 5, mean=90.0, std=0.0,
    interval=(90.0, 90.0), early_step=None, early_steps=None, early_mean=None, dense_trainings=1.0, difference=None,
)  # fmt: skip


def level(density, difference, step, dense_step, n=5, at_end=0, retrained=False):
    """A level of a search, of seeds that differ by little."""
    later = Delay(**vars(spread(step - dense_step, 1.0, n)), dense=dense_step, at_end=at_end)
    gap = spread(difference, 0.1, n)
    return replace(DENSE, level=1, density=density, difference=gap, later=later, retrained=retrained)


@pytest.mark.parametrize(
    ("row", "answer", "because"),
    [
        (level(0.5, 0.0, 100, 200), "yes", "+100.00 steps sooner over 5 seeds"),
        (level(0.5, 0.0, 300, 200), "no", "-100.00 steps sooner"),
        # The minimum may come later yet: as early as the last measurement is no step at all.
        (level(0.5, 0.0, 200, 200, at_end=5), "unknown", "in 5 of 5 seeds the minimum is the last measurement"),
        (level(0.5, 0.0, 100, 200, at_end=1), "unknown", "in 1 of 5 seeds"),
        (level(0.5, 0.0, 300, 200, at_end=5), "no", "-100.00 steps sooner"),
        (level(0.5, 0.0, 10, 200, retrained=True), "unknown", "its training continues from trained weights"),
    ],
)
def test_as_early_as_the_dense_network(row, answer, because):
    found = judge(answer_levels([DENSE, row], 0.5), [], {}, 0.5).as_early
    assert found.answer == answer
    assert because in found.because


@pytest.mark.parametrize(
    ("changes", "frozen", "because"),
    [
        ({"early_step": None}, False, "the steps of minimum validation loss are not known"),
        ({"early_step": 90.0}, True, "its steps train scores over frozen weights"),
        ({"early_step": 90.0}, False, "the steps of minimum validation loss of the dense network are not known"),
        ({"early_step": 90.0, "difference": None}, True, "there is no run with the same seeds to compare with"),
    ],
)  # fmt: skip
def test_why_it_is_not_known_whether_it_is_as_early_is_what_is_so(changes, frozen, because):
    row = replace(level(0.5, 0.0, 100, 200), later=None, **changes)
    found = judge(answer_levels([DENSE, row], 0.5), [], {}, 0.5, frozen=frozen).as_early
    assert found.answer == "unknown" and found.because.startswith(because)


def test_without_a_margin_each_level_says_so_itself():
    rows = answer_levels([DENSE, level(0.5, 0.0, 100, 200), level(0.1, -3.0, 100, 200)], None)
    for row, gap in zip(rows[1:], ("+0.00", "-3.00"), strict=True):
        assert row.matching.answer == "unknown"
        assert row.matching.because.startswith(f"{gap} pp over 5 seeds")
        assert "no margin was given: --delta" in row.matching.because


def test_positions_are_not_asked_of_whole_filters():
    rows = answer_levels([DENSE, level(0.5, 0.0, 100, 200)], 0.5)
    for whole, missing in ((False, "`ticket controls` has not been run"), (True, "not asked where whole filters")):
        found = judge(rows, [], {}, 0.5, whole)
        assert found.positions.answer == "unknown" and missing in found.positions.because
        assert "`ticket controls` has not been run" in found.init.because
        assert ("not asked where whole filters" in found.trivial.because) == whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five seeds of a search with levels, of dense training, two of edge-popup, and the controls of the first."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for seed in SEEDS:
        made["imp", seed] = search("imp", runs=folder, density=0.3, fraction=0.45, seed=seed, **QUICK)
        made["dense", seed] = search("dense", runs=folder, seed=seed, **QUICK)
        controls(made["imp", seed].path, ["reinit", "shuffle", "random"], progress=False)
    for seed in range(2):
        made["edge-popup", seed] = search("edge-popup", runs=folder, seed=seed, **QUICK)
    return made


def of(found, method):
    return next(group for group in found["groups"] if group["method"] == method)


def test_levels_and_controls_are_compared_seed_by_seed(runs):
    found = compare([run.path for run in runs.values()])
    plain = to_dict(found)
    assert json.loads(json.dumps(plain)) == json.loads(json.dumps(plain, allow_nan=False))
    group, dense = of(found, "imp"), of(found, "dense")
    assert group["n"] == 5 and group["seeds"] == tuple(SEEDS)
    assert group["baseline"] == "level 0" and dense["baseline"] is None and dense["verdict"] is None
    rows = [[run.levels[level] for (method, _), run in runs.items() if method == "imp"] for level in range(3)]
    for level, row in enumerate(group["levels"]):
        accuracies = [own["test_accuracy"] for own in rows[level]]
        assert row["values"] == tuple(accuracies)
        assert row["mean"] == pytest.approx(np.mean(accuracies))
        assert row["early_steps"] == tuple(own["min_validation_loss"]["step"] for own in rows[level])
        assert row["dense_trainings"] == level + 1
        if level:
            gaps = np.subtract(accuracies, [own["test_accuracy"] for own in rows[0]])
            assert row["difference"]["mean"] == pytest.approx(gaps.mean())
            assert row["matching"]["answer"] in ("yes", "no", "undecided", "unknown")
        else:
            assert row["difference"] is None and row["matching"] is None
    assert {row["control"] for row in group["controls"]} == {"reinit", "shuffle", "random"}
    raw = {}
    for row in group["controls"]:
        assert row["n"] == 5 and row["level"] == 2 and row["kept"] == group["kept"]
        gaps = np.subtract([own["test_accuracy"] for own in rows[2]], row["values"])
        assert row["difference"]["mean"] == pytest.approx(gaps.mean())
        raw[row["control"]] = scipy.stats.ttest_1samp(gaps, 0).pvalue
    adjusted = holm(raw)
    assert {row["control"]: row["p_holm"] for row in group["controls"]} == pytest.approx(adjusted)
    assert all(group["verdict"][key]["answer"] != "unknown" for key in ("init", "positions", "trivial"))
    last = runs["imp", 0].summary["cost"]["steps"] // 3
    matching = [row for row in group["levels"][1:] if row["matching"]["answer"] == "yes"]
    asked = (matching or group["levels"])[-1]["level"]
    ends = sum(own["min_validation_loss"]["step"] == last for own in rows[asked])
    assert (f"in {ends} of 5 seeds" in group["verdict"]["as_early"]["because"]) == (ends > 0)


MEASURED = "n seeds values mean std interval early_step early_steps early_mean"
KEYS = {
    "comparison": "delta groups left_out notes",
    "group": "label method model data precision density kept n seeds mean std interval dense_trainings val_mean seconds "
    "runs baseline levels controls verdict metric delta differs start recipe given curve id",
    "level": f"level density kept {MEASURED} dense_trainings difference retrained guessing later matching",
    "control": f"control trained data level density kept {MEASURED} difference p_holm",
    "verdict": "matching sparsest_matching controls_at as_early init positions trivial",
    "answer": "question answer because more_seeds tested density",
    "difference": "n mean std interval",
    "later": "n mean std interval dense at_end",
}


def test_json_has_the_keys_that_programs_read(runs):
    """`ticket compare --json` and `to_dict`: what reads them must not break."""
    comparison = compare([run.path for run in runs.values()])
    found = to_dict(comparison)
    group, dense = of(found, "imp"), of(found, "dense")
    last, control, verdict = group["levels"][-1], group["controls"][0], group["verdict"]
    rows = {
        "comparison": found, "group": group, "level": last, "control": control, "verdict": verdict,
        "answer": verdict["init"], "difference": control["difference"], "later": last["later"],
    }  # fmt: skip
    assert {name: " ".join(row) for name, row in rows.items()} == KEYS
    # A dense network is not asked whether it matches one.
    assert " ".join(dense["levels"][0]) == KEYS["level"].removesuffix(" matching")
    assert dense["verdict"] is None


def test_brackets_read_what_attributes_are(runs):
    found = compare([run.path for run in runs.values()])
    group = of(found, "imp")
    assert group["verdict"]["init"]["answer"] == group.verdict.init.answer
    assert group["levels"][1]["difference"]["mean"] == group.levels[1].difference.mean
    with pytest.raises(KeyError, match="Group has no attribute 'verdct'; did you mean 'verdict'"):
        group["verdct"]


def test_untrained_tickets_are_compared_with_dense_training_and_it_is_said_how_that_differs(runs):
    found = compare([run.path for run in runs.values()])
    group = of(found, "edge-popup")
    assert group["baseline"] == "dense" and group["levels"][0]["difference"]["n"] == 2
    assert group["verdict"]["matching"]["answer"] != "yes", "two seeds are too few"
    assert any("another recipe: --batch-size" in note for note in found["notes"])
    assert group["levels"][0]["early_step"] is not None
    assert "train scores over frozen weights" in group["verdict"]["as_early"]["because"]
    alone = compare([runs["edge-popup", 0].path])
    assert alone["groups"][0]["verdict"]["matching"]["answer"] == "unknown"
    assert alone["groups"][0]["std"] is None and alone["groups"][0]["interval"] is None


def test_like_is_compared_with_like(runs, tmp_path):
    ticket = train(runs["imp", 0].path, runs=tmp_path, **QUICK)
    other = search("dense", runs=tmp_path, lr=5e-3, **QUICK)
    fine = search("dense", runs=tmp_path, precision="bf16", **QUICK)
    found = compare([ticket.path, other.path, fine.path])
    group = of(found, "train")
    assert group["baseline"] is None
    assert any(
        "is not the dense baseline of" in note and "--lr 0.005 there, 0.0012 here" in note for note in found["notes"]
    )
    assert any("2 tasks" in note for note in found["notes"])
    with_own = compare([ticket.path, other.path, runs["dense", 0].path])
    assert of(with_own, "train")["baseline"] == "dense"


def test_a_tickets_seeds_are_those_of_its_own_weights(runs, tmp_path):
    """One ticket trained in five orders is one draw of weights: not five seeds beside five dense networks."""
    again = [train(runs["imp", 0].path, runs=tmp_path, seed=seed, **QUICK) for seed in range(3)]
    found = compare([*(run.path for run in again), *(runs["dense", seed].path for seed in SEEDS)])
    group = of(found, "train")
    assert group["n"] == 3
    assert group["levels"][0]["difference"]["n"] == 1, "only the dense network of its weights and order is its pair"


def test_masks_that_differ_alone_are_not_more_seeds(tmp_path):
    runs = [search("random", runs=tmp_path, density=0.3, mask_seed=seed, **QUICK) for seed in range(3)]
    found = compare([run.path for run in runs])
    assert found["groups"][0]["n"] == 1
    assert len([line for line in found["left_out"] if "differs in the mask seed only" in line]) == 2


def test_untrained_weights_are_nobodys_baseline(tmp_path):
    whole = search("edge-popup", runs=tmp_path, density=1.0, **QUICK)
    half = search("edge-popup", runs=tmp_path, density=0.5, **QUICK)
    found = compare([whole.path, half.path])
    assert [group["baseline"] for group in found["groups"]] == [None, None]
    assert all(
        group["verdict"]["matching"] is None or group["verdict"]["matching"]["answer"] == "unknown"
        for group in found["groups"]
    )


def test_levels_of_others_are_joined_by_density():
    rows = [
        {"method": "mine", "seed": seed, "density": density, "test_accuracy": 90.0 + seed - (1 - density)}
        for seed, densities in ((0, (1.0, 0.5, 0.2)), (1, (1.0, 0.2)), (2, (0.5, 0.2)))
        for density in densities
    ]
    levels = compare([], others=rows)["groups"][0]["levels"]
    assert [(row["density"], row["n"]) for row in levels] == [(1.0, 2), (0.5, 2), (0.2, 3)]
    assert levels[2]["difference"]["n"] == 2
    assert levels[2]["difference"]["mean"] == pytest.approx(-0.8)


def test_a_control_elsewhere_is_compared_with_nothing_here():
    own = {"method": "mine", "data": "a", "density": 0.5}
    rows = [
        row
        for seed in SEEDS
        for row in (
            {**own, "seed": seed, "test_accuracy": 90.0},
            {**own, "seed": seed, "test_accuracy": 50.0, "control": "reinit", "data": "b"},
        )
    ]
    control = compare([], others=rows)["groups"][0]["controls"][0]
    assert control["difference"] is None and control["p_holm"] is None


def test_controls_have_the_runs_own_metric(tmp_path):
    (tmp_path / "own_metric.py").write_text("def hits(y, t):\n    return (y.argmax(1) == t).float() * 0.5\n")
    sys.path.insert(0, str(tmp_path))
    try:
        run = search("snip", runs=tmp_path, density=0.3, metric="own_metric:hits", dtype="bf16", **QUICK)
        row = controls(run.path, ["shuffle"], progress=False)[0]
    finally:
        sys.path.remove(str(tmp_path))
    assert run.summary["metric"] == {"name": "hits", "direction": "higher", "unit": ""}
    assert run.summary["test_metric"] <= 0.5 and row["test_metric"] <= 0.5
    structured = search("one-shot", runs=tmp_path, density=0.5, granularity="2:4", **QUICK)
    with pytest.raises(RequestError, match="keeps units of 2:4: shuffle would move single weights"):
        controls(structured.path, ["reinit", "shuffle"])
    assert [row["control"] for row in controls(structured.path, progress=False)] == ["reinit"]


def test_what_is_no_run_or_says_what_is_not_so_is_left_out(runs, tmp_path):
    liar = tmp_path / "liar"
    shutil.copytree(runs["imp", 0].path, liar)
    summary = json.loads((liar / "summary.json").read_text())
    summary["levels"][-1]["test_accuracy"] = 99.9
    (liar / "summary.json").write_text(json.dumps(summary))
    (liar / "checksums.json").unlink()
    fewer = tmp_path / "fewer"
    shutil.copytree(runs["dense", 0].path, fewer)
    summary = json.loads((fewer / "summary.json").read_text())
    (fewer / "summary.json").write_text(json.dumps({**summary, "kept": 17}))
    (fewer / "checksums.json").unlink()
    found = compare([runs["imp", 0].path, liar, fewer, tmp_path])
    assert len(found["left_out"]) == 3
    assert any("refused: its ticket was measured at" in line for line in found["left_out"])
    assert any("its summary says 17" in line for line in found["left_out"])
    with pytest.raises(RequestError, match="not a run"):
        compare([tmp_path])


def test_numbers_of_others_stand_beside_ours(runs):
    ours = [runs["dense", seed].path for seed in SEEDS]
    base = {"model": "lenet-300-100", "data": "digits"}
    others = [
        {"method": "mine", "density": 0.1, "seed": seed, "test_accuracy": 30.0 + seed, "early_step": 10, **base}
        for seed in SEEDS
    ]
    found = compare(ours, others=others)
    group = of(found, "mine")
    gaps = [30.0 + seed - runs["dense", seed].summary["test_accuracy"] for seed in SEEDS]
    assert group["levels"][0]["difference"]["mean"] == pytest.approx(np.mean(gaps))
    assert group["verdict"]["matching"]["answer"] == "no"
    own_dense = [
        {"method": "mine", "density": density, "seed": seed, "test_accuracy": value, "control": control}
        for seed in SEEDS
        for density, value, control in ((1.0, 90 + seed, ""), (0.5, 90.1 + seed, ""), (0.5, 80.0, "reinit"))
    ]
    group = of(compare([], others=own_dense), "mine")
    assert group["baseline"] == "level 0"
    assert group["verdict"]["matching"]["answer"] == "yes"
    assert group["verdict"]["sparsest_matching"] == 0.5
    assert group["verdict"]["init"]["answer"] == "yes"


def test_a_levels_ticket_trained_with_its_own_seed_is_that_level_again(runs, tmp_path):
    run = runs["imp", 1]
    for level in (1, 2):
        again = train(run.path / "levels" / f"{level:02d}" / "ticket.safetensors", runs=tmp_path, seed=1, **QUICK)
        assert again.summary["test_accuracy"] == run.levels[level]["test_accuracy"]
        final, same = again.ticket.state_dict(), run.load_level(level).state_dict()
        assert all(torch.equal(final[name], same[name]) for name in same)


def test_controls_are_kept_and_not_made_again(runs):
    path = runs["imp", 0].path
    before = {file: file.stat().st_mtime_ns for file in path.glob("controls/*/summary.json")}
    assert len(before) == 3
    rows = controls(path, ["shuffle"], levels=[1], progress=False)
    assert len(rows) == 4
    assert {(row["control"], row["level"]) for row in rows} == {
        ("reinit", 2), ("shuffle", 2), ("random", 2), ("shuffle", 1),
    }  # fmt: skip
    (path / "controls.json").unlink()
    assert len(controls(path, progress=False)) == 3
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_controls_after_rewinding_start_from_the_step_rewound_to(tmp_path):
    run = search("imp", runs=tmp_path, density=0.4, fraction=0.6, rewind="7it", batch_size=32, **QUICK)
    whole = run.load_rewind_point().state_dict()
    rows = controls(run.path, ["shuffle", "reinit", "random-erk"], progress=False)
    assert {row["kept"] for row in rows} == {run.ticket.masks.kept}
    for kind in ("shuffle", "random-erk"):
        ticket = supermask.load(run.path / f"controls/{kind}-level-01/ticket.safetensors")
        start = ticket.state_dict("start")
        assert all(torch.equal(start[name], torch.where(mask, whole[name], 0.0)) for name, mask in ticket.masks.items())
    reinit = supermask.load(run.path / "controls/reinit-level-01/ticket.safetensors").state_dict("start")
    first = run.load_level(0).state_dict("start")
    assert not any(torch.equal(reinit[name], first[name]) for name in run.ticket.masks)
    steps = {
        p.name: json.loads((p / "summary.json").read_text())["cost"]["steps"] for p in (run.path / "controls").iterdir()
    }
    assert steps["reinit-level-01"] - steps["shuffle-level-01"] == 7


def test_controls_of_frozen_weights_fall_to_chance(tmp_path):
    run = search("edge-popup", runs=tmp_path, epochs=8, threads=1, progress=False)
    assert run.summary["test_accuracy"] > 80
    rows = controls(run.path, progress=False)
    assert {row["control"] for row in rows} == {"reinit", "shuffle", "random"}
    assert all(row["test_accuracy"] < 40 and not row["trained"] for row in rows)
    rows = controls(run.path, survivors=True, progress=False)
    trained = {row["control"]: row for row in rows if row["trained"]}
    assert set(trained) == {"ticket", "reinit", "shuffle"}
    assert all(row["test_accuracy"] > 80 for row in trained.values())
    group = of(compare([run.path]), "edge-popup")
    assert len(group["controls"]) == 6
    assert group["verdict"]["as_early"]["answer"] == "unknown"


def test_fresh_weights_are_fresh_in_layers_without_a_mask_too(tmp_path):
    run = search("snip", runs=tmp_path, density=0.3, exclude=("fc3",), **QUICK)
    controls(run.path, ["reinit"], progress=False)
    fresh = supermask.load(run.path / "controls/reinit/ticket.safetensors").state_dict("start")
    own = run.ticket.state_dict("start")
    assert not any(torch.equal(fresh[name], own[name]) for name in ("fc1.weight", "fc2.weight", "fc3.weight"))


def test_controls_that_cannot_be_are_all_named_at_once(runs):
    with pytest.raises(RequestError) as error:
        controls(runs["imp", 0].path, ["reinnit", "shufle"], levels=[0, 9], survivors=True)
    assert len(error.value.problems) == 5
    assert "did you mean 'reinit'" in str(error.value)
    with pytest.raises(RequestError, match="no mask to control"):
        controls(runs["dense", 0].path)
    with pytest.raises(RequestError, match="other data goes with"):
        controls(runs["edge-popup", 0].path, elsewhere="digits")


def test_controls_on_other_data(tmp_path, small_mnist1d):
    flags = {"density": 0.4, "fraction": 0.6, "model_args": "width=0.1", **QUICK, "train_size": None}
    run = search("imp", "mnist1d-mlp", "mnist1d", runs=tmp_path, **flags)
    rows = controls(run.path, elsewhere="mnist1d-fresh", progress=False)
    assert [row["control"] for row in rows] == ["ticket", "dense", "reinit", "shuffle", "random"]
    assert {row["data"] for row in rows} == {"mnist1d-fresh"}
    assert rows[1]["density"] == 1
    group = compare([run.path])["groups"][0]
    by_name = {row["control"]: row for row in group["controls"]}
    gap = by_name["ticket"]["mean"] - by_name["shuffle"]["mean"]
    assert by_name["shuffle"]["difference"]["mean"] == pytest.approx(gap)
    assert group["verdict"]["init"]["answer"] == "unknown", "controls on other data say nothing of this one"
    table = tmp_path / "all.csv"
    table.write_text(to_csv(compare([run.path])))
    again = compare([], others=read_csv(table))["groups"][0]
    for row, same in zip(group["controls"], again["controls"], strict=True):
        for key in ("control", "data", "level", "density", "values", "difference"):
            assert row[key] == same[key], key


def test_overlap_by_chance_is_the_mean_over_random_masks():
    generator = torch.Generator().manual_seed(0)
    shapes, densities = {"a": (40, 50), "b": (30, 30)}, ({"a": 0.1, "b": 0.6}, {"a": 0.3, "b": 0.5})

    def draw(densities):
        return Masks({n: torch.rand(s, generator=generator) < densities[n] for n, s in shapes.items()})

    pairs = [(draw(densities[0]), draw(densities[1])) for _ in range(200)]
    measured = np.mean([one.overlap(other) for one, other in pairs])
    expected = np.mean([geometry.overlap_by_chance(one, other) for one, other in pairs])
    assert measured == pytest.approx(expected, abs=0.002)
    one, _ = pairs[0]
    assert geometry.overlap_by_chance(one, one) < one.overlap(one) == 1


def test_geometry_of_runs(runs):
    tickets = geometry.load_tickets([runs["imp", seed].path for seed in range(3)])
    found = geometry.compare_masks(tickets)
    masks = [ticket.masks for ticket in tickets.values()]
    for i, j in itertools.product(range(3), repeat=2):
        assert found["overlap"][i][j] == pytest.approx(masks[i].overlap(masks[j]))
    assert all(
        0.5 < c / o < 1.5
        for i in range(3)
        for j in range(i)
        for o, c in [(found["overlap"][i][j], found["chance"][i][j])]
    )
    assert found["densities"][1] == [masks[1].densities[name] for name in found["layers"]]
    levels = geometry.compare_levels(runs["imp", 0].path)
    assert [row["level"] for row in levels] == [0, 1, 2]
    assert all(row["nested"] for row in levels[1:])
    assert levels[1]["overlap"] == pytest.approx(levels[1]["density"])
    with pytest.raises(RequestError, match="neither a ticket file nor"):
        geometry.load_tickets(["nowhere"])
    with pytest.raises(RequestError, match="no levels"):
        geometry.compare_levels(runs["dense", 0].path)


def test_the_small_dense_control_has_as_many_weights_and_the_same_training(tmp_path, monkeypatch):
    run = search("imp", runs=tmp_path, density=0.2, fraction=0.8, batch_size=32, **QUICK)
    (row,) = controls(run.path, ["small-dense"], progress=False)
    assert row["control"] == "small-dense" and row["density"] == row["kept"] / run.summary["weights"]
    # 64 pixels, 300 w and 100 w units, 10 classes, by brute force over the numbers that rounding can give.
    possible = {
        64 * a + a * b + b * 10 for a, b in ((round(300 * w / 4000), round(100 * w / 4000)) for w in range(40, 4001))
    }
    kept = run.ticket.masks.kept
    assert abs(row["kept"] - kept) == min(abs(size - kept) for size in possible)
    summary = json.loads((run.path / row["path"] / "summary.json").read_text())
    assert summary["cost"]["steps"] * 2 == run.summary["cost"]["steps"]
    assert controls(run.path, ["small-dense"], progress=False) == [row]
    (run.path / "controls.json").unlink()
    monkeypatch.setattr("ticket_search.running.small_dense.carry_out", None)
    assert controls(run.path, ["small-dense"], progress=False) == [row]


def test_the_small_dense_control_needs_a_width(tmp_path):
    def make():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    run = search("imp", model=make, runs=tmp_path, density=0.5, fraction=0.5, **QUICK)
    with pytest.raises(RequestError, match="needs a network that takes an argument width.*takes none"):
        controls(run.path, ["small-dense"], model=make, progress=False)


def test_masks_are_shown_level_by_level_and_as_heat_maps(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = search("imp", density=0.25, fraction=0.5, batch_size=32, **QUICK)
    (compared,) = geometry.compare_runs_masks(compare([run.path]))
    (levels,) = compared["levels"].values()
    assert levels == geometry.compare_levels(run.path)
    layers, by_level = geometry.heat_maps(compared)
    assert (layers.values, by_level.rows) == (compared["densities"], ["level 0", "level 1", "level 2"])
    assert by_level.values[2] == layers.values[0] and by_level.values[0] == [1.0, 1.0, 1.0]
    shown = ticket("compare", f"runs/{run.path.name}", "--masks", "--heat-map", "map.png", "--html", "page.html")
    assert shown.code == 0 and "entries changed" in shown.out and Path("map.png").read_bytes()[1:4] == b"PNG"
    assert "Density of each layer" in Path("page.html").read_text()
    again = ticket("compare", f"runs/{run.path.name}", "--heat-map", "map.png")
    assert again.code == 2 and "--heat-map map.png: the file exists already" in again.err
    search("dense", batch_size=32, **QUICK)
    none = ticket("compare", "runs/dense-lenet-300-100-digits-d1-s0", "--heat-map", "other.png")
    assert none.code == 2 and "none of the runs has a mask" in none.err


def test_controls_of_a_one_shot_ticket_start_from_the_step_rewound_to(tmp_path):
    run = search("one-shot", runs=tmp_path, density=0.4, rewind="7it", batch_size=32, **QUICK)
    whole = run.load_rewind_point().state_dict()
    assert run.ticket.meta["rewound_to"] == 7
    (row,) = controls(run.path, ["shuffle"], progress=False)
    ticket = supermask.load(run.path / row["path"] / "ticket.safetensors")
    start = ticket.state_dict("start")
    assert all(torch.equal(start[name], torch.where(mask, whole[name], 0.0)) for name, mask in ticket.masks.items())
    again = train(run.path, runs=tmp_path, name="again", progress=False)
    assert again.summary["cost"]["steps"] == 3 == run.summary["cost"]["steps"] - 10
