"""The headline of each method and density: what is said of planted results, and what is to be typed next."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy

from ticket_search import compare, diagnose, search
from ticket_search.analysis.commands import search_command
from ticket_search.analysis.comparison import RECIPE, TASK
from ticket_search.analysis.headlines import headline, headlines
from ticket_search.analysis.intervals import Difference, holm
from ticket_search.analysis.verdict import LEAST_SEEDS, MOST_ASKED, ONCE, answer_levels, plainly_worse
from ticket_search.contract.metric import is_guessing
from ticket_search.running.request import read_request
from ticket_search.runs.experiment import resolve

NOISE = np.array([0.1, -0.1, 0.05, -0.05, 0.0, 0.08, -0.08])


def rows_of(gaps, seeds=5, controls=(), noise=1.0, method="mine"):
    """Dense networks of about 95 %, tickets that are so much better at each density, and controls."""
    rows = []
    for seed in range(seeds):
        base = 95.0 + 3 * NOISE[seed % 7]
        at = {"method": method, "seed": seed}
        rows.append({**at, "density": 1.0, "test_accuracy": base})
        for density, gap in gaps.items():
            accuracy = base + gap + noise * NOISE[(3 * seed + 1) % 7]
            rows.append({**at, "density": density, "test_accuracy": accuracy})
            for kind, worse in dict(controls).items():
                control = accuracy - worse + 0.5 * NOISE[(2 * seed + 3) % 7]
                rows.append({**at, "density": density, "control": kind, "test_accuracy": control})
    return rows


def told(start="initialization", runs=("runs/a b",), **planted):
    found = compare([], others=rows_of(**planted))
    groups = tuple(replace(group, start=start, runs=runs) for group in found.groups)
    return headlines(replace(found, groups=groups))


@pytest.mark.parametrize(
    ("planted", "kind", "text"),
    [
        ({"gaps": {0.03: 0.3}, "controls": {"reinit": 5, "shuffle": 3}}, "good", "a winning ticket (+0.3 pp, 5 seeds)"),
        ({"gaps": {0.03: 0.3}, "controls": {"reinit": 5, "shuffle": 3}, "start": "later"}, "good", "a matching ticket, rewound to a later step (+0.3 pp, 5 seeds)"),
        ({"gaps": {0.03: 0.3}}, "good", "matches the dense network (+0.3 pp, 5 seeds; controls missing)"),
        ({"gaps": {0.03: 0.3}, "controls": {"shuffle": 3}}, "good", "matches the dense network (+0.3 pp, 5 seeds; controls missing)"),
        ({"gaps": {0.03: 0.3}, "controls": {"reinit": 0, "shuffle": 3}}, "bad", "matches the dense network (+0.3 pp, 5 seeds), but so do fresh weights: no winning ticket"),
        ({"gaps": {0.03: 0.3}, "start": "frozen"}, "good", "matches the dense network, and no weight was trained (+0.3 pp, 5 seeds)"),
        ({"gaps": {0.03: 0.3}, "start": "moving"}, "good", "matches the dense network (+0.3 pp, 5 seeds)"),
        ({"gaps": {0.03: -18.9}}, "bad", "no (-18.9 pp, 5 seeds)"),
        ({"gaps": {0.03: -18.9}, "seeds": 2}, "bad", "no (-18.9 pp, 2 seeds)"),
        ({"gaps": {0.03: -18.9}, "seeds": 1}, "open", "nothing is claimed on fewer than 5 seeds (-19.0 pp, 1 seed)"),
        ({"gaps": {0.03: 0.1}, "seeds": 3}, "open", "nothing is claimed on fewer than 5 seeds (+0.1 pp, 3 seeds)"),
        ({"gaps": {0.03: -0.4}, "noise": 3.0}, "open", "not decided yet (-0.5 pp, 5 seeds): 2 more seeds"),
        ({"gaps": {0.03: -0.5}, "noise": 60.0}, "open", "too noisy to decide at a margin of 0.5 pp"),
    ],
)  # fmt: skip
def test_what_is_said(planted, kind, text):
    (line,) = told(**planted)
    assert line.subject == "mine at 3 %"
    assert line.kind == kind
    assert line.text.startswith(text), line.text


def test_the_controls_that_are_missing_are_named_as_a_command():
    (line,) = told(gaps={0.03: 0.3})
    assert shlex.split(line.command) == ["ticket", "controls", "runs/a b"]


def test_what_is_plainly_worse_is_no_wherever_it_stands():
    lines = told(gaps={0.5: -0.5, 0.3: -0.2, 0.1: -9.0}, noise=4.0)
    assert [line.kind for line in lines] == ["open", "open", "bad"]
    assert lines[1].text.startswith("not claimed, as a denser level is not decided")
    assert lines[2].text.startswith("no (-9")
    failed = told(gaps={0.5: -9.0, 0.3: -0.2}, noise=0.5)[1].text
    assert failed.startswith("not claimed, as a denser level does not match")
    (group,) = compare([], others=rows_of({0.5: -0.5, 0.3: -0.2, 0.1: -9.0}, noise=4.0)).groups
    assert "Holm p = " in group.levels[-1].matching.because
    assert [row.matching.answer for row in group.levels[1:]] == ["undecided", "undecided", "no"]


def test_the_chance_of_being_worse_is_that_of_a_one_sided_test():
    stream = np.random.default_rng(0)
    gaps = {name: stream.normal(mean, 0.6, 6) for name, mean in {"a": 0.0, "b": -0.9, "c": -1.4}.items()}
    found = {name: Difference(6, float(gap.mean()), float(gap.std(ddof=1)), (0.0, 0.0)) for name, gap in gaps.items()}
    theirs = {name: scipy.stats.ttest_1samp(gap, -0.5, alternative="less").pvalue for name, gap in gaps.items()}
    for name, chance in plainly_worse({**found, "none": None}, 0.5).items():
        assert chance == (None if name == "none" else pytest.approx(holm(theirs)[name]))
    same = {"worse": Difference(5, -0.6, 0.0, (-0.6, -0.6)), "not": Difference(5, -0.4, 0.0, (-0.4, -0.4))}
    assert plainly_worse(same, 0.5) == {"worse": 0.0, "not": 1.0}


@pytest.mark.parametrize("mean", [-0.5, pytest.param(-0.45, marks=pytest.mark.slow)])
def test_a_level_that_is_not_worse_than_the_margin_is_seldom_called_worse(mean):
    """At the margin itself, out of order, with seven other levels: at most one experiment of forty says no by chance."""
    stream, wrong, number = np.random.default_rng(1), 0, 400
    dense, *_ = compare([], others=rows_of({0.5: 0.0})).groups[0].levels
    quantile = float(scipy.stats.t.ppf(0.975, 4))
    for _ in range(number):
        rows = [dense]
        for place in range(8):
            values = stream.normal(mean, 0.7, 5)
            center, std = float(values.mean()), float(values.std(ddof=1))
            wide = quantile * std / 5**0.5
            gap = Difference(5, center, std, (center - wide, center + wide))
            rows.append(replace(dense, level=place + 1, density=0.9 - place / 10, difference=gap))
        judged = answer_levels(rows, 0.5)
        out_of_order = [row.matching for row in judged[1:] if "Holm" in row.matching.because]
        wrong += bool(out_of_order)
    # 2.5 % are allowed; of 400 experiments more than 20 would be seen once in a thousand times.
    assert wrong <= 20


def test_nobody_is_asked_for_more_seeds_than_anybody_trains():
    (group,) = compare([], others=rows_of({0.03: -0.5}, noise=60.0)).groups
    answer = group.levels[-1].matching
    assert (answer.answer, answer.more_seeds) == ("undecided", None)
    assert f"more than {MOST_ASKED} seeds more" in answer.because
    assert answer.in_words() == "undecided (too noisy)"


def test_of_many_levels_those_are_told_where_something_changes():
    gaps = {0.8: 0.1, 0.6: 0.1, 0.4: 0.1, 0.3: -3.0, 0.2: -5.0, 0.1: -9.0}
    assert [line.subject for line in told(gaps=gaps)] == ["mine at 40 %", "mine at 30 %", "mine at 10 %"]


def test_a_dense_network_has_none():
    dense = [row for row in rows_of({}) if row["density"] == 1]
    assert headlines(compare([], others=dense)) == []


QUICK = {"epochs": 1, "threads": 1, "progress": False, "model_args": "width=0.1", "evaluate_every": "1ep"}


def test_the_command_adds_seeds_to_the_very_experiment(tmp_path):
    run = search("imp", runs=tmp_path, density=0.3, fraction=0.45, exclude="fc3.weight", nesterov=False, **QUICK)
    search("dense", runs=tmp_path, **QUICK)
    found = compare(tmp_path.iterdir())
    lines = {line.subject.partition(" ")[0]: line for line in headlines(found)}
    assert set(lines) == {"imp"}
    words = shlex.split(lines["imp"].command)
    assert words[:2] == ["ticket", "search"]
    assert words[-2:] == ["--seeds", "1-4"]
    config = resolve(read_request(words[2:]).config)  # as the search settles it on this machine
    own = run.config.model_dump(exclude={"threads", "device"})
    assert {key: value for key, value in config.model_dump().items() if key in own} == own


def test_the_dense_network_gets_the_seeds_that_it_lacks(tmp_path):
    for seed in range(2):
        search("snip", runs=tmp_path, density=0.3, seed=seed, **QUICK)
    search("edge-popup", runs=tmp_path, density=0.3, **QUICK)
    search("dense", runs=tmp_path, **QUICK)
    snip, popup = (
        next(line for line in headlines(compare(tmp_path.iterdir())) if line.subject.startswith(name))
        for name in ("snip", "edge-popup")
    )
    # One pair of two is not two seeds.
    assert "1 of 2 seeds" in snip.text or snip.text.startswith("no (")
    words = shlex.split(snip.command)
    assert (words[3], words[-1]) == ("dense", "0-1") and "&&" not in words
    dense, own = popup.command.split(" && ")
    assert shlex.split(own)[-2:] == ["--seeds", "1-4"] and shlex.split(dense)[-2:] == ["--seeds", "0-4"]
    # Of a dense network no flag is one of scores.
    request = read_request(shlex.split(dense)[2:])
    assert (request.config.optimizer, request.config.init) == ("adam", "kaiming-normal")
    for command in (dense, own, snip.command):
        assert "channels-last" not in command


def test_a_ticket_without_a_dense_network_says_how_to_train_one(tmp_path):
    search("snip", runs=tmp_path, density=0.3, lr=0.01, **QUICK)
    (line,) = headlines(compare(tmp_path.iterdir()))
    assert line.text.startswith("not compared")
    request = read_request(shlex.split(line.command)[2:])
    assert (request.config.method, request.config.lr, request.launch["--seeds"]) == ("dense", 0.01, "0")


GIVEN = {"optimizer": "sgd", "lr": 0.05, "batch_size": 60, "schedule": "cosine", "train_size": 320, "precision": "fp64"}


@pytest.mark.parametrize("method", ["snip", "edge-popup"])
def test_what_is_suggested_can_be_typed_and_is_of_the_same_recipe(method, tmp_path, monkeypatch):
    """With the folder of the data, and beside the other runs, where the next comparison finds it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    run = search(method, runs="runs/one", density=0.3, data_dir=str(tmp_path / "my data"), **QUICK, **GIVEN)
    (line,) = headlines(compare([run.path]))
    request = read_request(shlex.split(line.command)[2:])
    assert (request.method.name, request.launch["--runs"], request.launch["--seeds"]) == ("dense", "runs/one", "0")
    # Of scores only the task is that of a dense network.
    keys = {*TASK, "data_dir", *(RECIPE if method == "snip" else ())} & vars(request.config).keys()
    assert {key: getattr(request.config, key) for key in keys} == {key: getattr(run.config, key) for key in keys}
    assert dict(diagnose(run, progress=False).unmeasured)["the dense network of the same task"] == line.command


def test_arrays_and_functions_of_a_script_are_given_in_python():
    """No command line names them: `--data arrays-...` is refused."""
    recipe = {"method": "imp", "model": "__main__:net", "data": "arrays-1a2b", "density": 0.2, "levels": []}
    one, two = (search_command(recipe, seeds) for seeds in ([3], [3, 4]))
    assert one == "ticket_search.search('imp', model=..., data=..., density=0.2, seed=3)"
    assert two == "[ticket_search.search('imp', model=..., data=..., density=0.2, seed=seed) for seed in (3, 4)]"


def test_random_masks_are_not_asked_whether_random_masks_match(tmp_path):
    search("random", runs=tmp_path, density=0.3, **QUICK)
    (group,) = compare(tmp_path.iterdir()).groups
    assert group.verdict.trivial is None
    assert "trivial" not in group.verdict.answers


def test_compare_prints_them_first(ticket, tmp_path, monkeypatch):
    search("snip", runs=tmp_path / "runs", density=0.3, **QUICK)
    monkeypatch.chdir(tmp_path)
    shown = ticket("compare", str(next((tmp_path / "runs").iterdir())))
    assert shown.code == 0, shown.err
    first, second, *_ = shown.out.splitlines()
    assert first.startswith("? snip at 30 %: not compared")
    assert second.strip().startswith("ticket search --method dense")


def test_numbers_of_another_program_have_no_command():
    assert search_command({"method": "theirs", "model": "x"}, [1]) == ""
    (group,) = compare([], others=rows_of({0.03: 0.1}, seeds=2)).groups
    assert headline(group, group.levels[-1]).command == ""


def test_a_command_says_the_densities_once():
    recipe = {"method": "imp", "model": "lenet-300-100", "density": 0.2, "levels": [0.5, 0.2]}
    assert search_command(recipe, [1, 2]) == "ticket search --method imp --levels 0.5,0.2 --seeds 1-2"
    assert "--density 0.3" in search_command({**recipe, "density": 0.3, "levels": []}, [1])


def test_more_seeds_come_with_the_controls_that_the_others_have():
    """Else the new seeds would lack them, and the next verdict would ask for controls again."""
    found = compare([], others=rows_of({0.5: -0.4, 0.1: -0.4}, controls={"reinit": 3, "shuffle": 3}, noise=3.0))
    recipe = {"method": "imp", "model": "lenet-300-100", "levels": [0.5, 0.1]}
    group = replace(found.groups[0], start="initialization", runs=tuple(f"runs/{n}" for n in range(5)), recipe=recipe)
    line = headline(group, group.levels[1])
    assert "more seeds" in line.text
    request = read_request(shlex.split(line.command)[2:])
    assert request.launch["--seeds"].startswith("5-")
    assert request.launch["--controls"] == "reinit,shuffle"
    assert request.launch["--control-levels"] == "1,2", "at every level that has some"
    last = replace(group, controls=tuple(row for row in group.controls if row.level == 2))
    assert headline(last, last.levels[1]).command.endswith("--controls reinit,shuffle"), "the last needs no number"
    none = replace(group, controls=())
    assert "--controls" not in headline(none, none.levels[1]).command


def test_seeds_are_added_once_and_a_second_time_is_not_asked_for_without_a_word():
    first, second = (told(gaps={0.03: -0.4}, noise=noise, seeds=seeds)[0] for seeds, noise in ((5, 3.0), (7, 4.0)))
    assert "more seed" in first.text and ONCE not in first.text
    assert second.text.endswith(f", {ONCE}")
    (group,) = compare([], others=rows_of({0.03: -0.4}, noise=4.0, seeds=7)).groups
    answer = group.levels[-1].matching
    assert answer.more_seeds and answer.because.endswith(f"more seeds, {ONCE}")
    (group,) = compare([], others=rows_of({0.03: 0.3}, controls={"reinit": 3, "shuffle": 3}, seeds=7)).groups
    unsure = Difference(7, 0.3, 0.5, (-0.16, 0.76))
    rows = tuple(replace(row, difference=unsure, p_holm=0.2) for row in group.controls)
    beside = headline(replace(group, start="initialization", controls=rows), group.levels[-1])
    assert "a shuffled mask is not decided yet: " in beside.text and beside.text.endswith(f"more seeds, {ONCE}")


@pytest.mark.parametrize(
    ("flags", "kinds", "text"),
    [
        ({"granularity": "filter"}, (), "controls missing"),
        ({"granularity": "filter"}, ("reinit",), "matches the dense network (+0.3 pp, 5 seeds), and is better than fresh weights"),
        ({"rewind_optimizer": "restore", "rewind": "5it"}, (), "no control of it can be made"),
    ],
)  # fmt: skip
def test_no_control_is_asked_for_that_cannot_be_made(flags, kinds, text):
    """Whole filters have no shuffled mask, and a ticket whose optimizer goes on has no control at all."""
    (group,) = compare([], others=rows_of({0.03: 0.3}, controls=dict.fromkeys(kinds, 5))).groups
    recipe = {"method": "imp", "model": "lenet-300-100", "density": 0.03, **flags}
    line = headline(replace(group, start="initialization", runs=("runs/a",), recipe=recipe), group.levels[-1])
    assert line.kind == "good" and text in line.text
    assert bool(line.command) == ("missing" in text)


def test_nothing_matches_a_dense_network_that_has_learned_nothing(tmp_path, monkeypatch):
    """Tried: five seeds of IMP at a learning rate of 3000 were said to match a dense network at 9.67 %."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [
            search("imp", levels=(0.5, 0.2), lr=3000.0, seed=seed, runs="runs", **QUICK) for seed in range(LEAST_SEEDS)
        ]
    found = compare(run.path for run in runs)
    dead = sum(bool(run.levels[0].get("learned_nothing")) for run in runs)
    assert dead > 0
    (group,) = found.groups
    assert [level.guessing for level in group.levels] == [dead] * 3
    for level in group.levels[1:]:
        assert level.matching.answer == "unknown"
    for line in headlines(found):
        assert line.kind == "open"
        assert (
            line.text
            == f"the dense network is no better than guessing in {dead} of 5 seeds: nothing can be compared with it"
        )
    assert any("the network is dead" in note for note in found.notes)
    lost = next(run for run in runs if run.levels[0].get("learned_nothing"))
    told = diagnose(lost.path)
    assert told.state == "unknown" and "no better than guessing" in told.headline


@pytest.mark.parametrize(
    ("accuracy", "classes", "guessing"),
    [
        (10.0, 10, True),
        (14.4, 10, True),
        (14.6, 10, False),
        (52.4, 2, True),
        (52.6, 2, False),
        (0.14, 1000, True),
        (0.16, 1000, False),
    ],
)
def test_what_is_no_better_than_guessing(accuracy, classes, guessing):
    assert is_guessing(accuracy, classes) == guessing
