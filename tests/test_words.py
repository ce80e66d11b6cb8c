"""Words of the field and of other tools: whatever is typed in place of a name, the right name is told."""

from __future__ import annotations

import re

import pytest
import torch

import supermask
from supermask.plugins.other_names import DROPPED, KEPT, meant_density, read_fraction
from ticket_search import RequestError, search
from ticket_search.cli import app
from ticket_search.cli.terminal import counted
from ticket_search.contract.errors import nearest_hint
from ticket_search.contract.flags import Config, public_fields
from ticket_search.contract.other_names import COMMANDS, FLAGS, METHODS
from ticket_search.methods import method_names, usable_methods
from ticket_search.running.request import LAUNCH_FLAGS, read_request
from ticket_search.sweeps.file import make_sweep

# What is typed, and what the answer has to name.
TYPED = {
    "search --density 20%": "did you mean 0.2?",
    "search --density 20": "did you mean 0.2?",
    "search --sparsity 80": "did you mean --sparsity 0.8, which is --density 0.2?",
    "search --sparsity 80%": "did you mean --sparsity 0.8, which is --density 0.2?",
    "search --pruning_rate 80": "did you mean --density 0.2,",
    "search --method imp --levels 80,50": "error: --levels 80,50: expected numbers less than 1; did you mean 0.8,0.5?",
    "search --method imp --levels 80%,50%": "did you mean 0.8,0.5?",
    "search --method imp --levels 0.5,1.5": "error: --levels 1.5: expected a number less than 1",
    "search --method imp --epochs 0 --weights net.pth": "this method trains. --method wanda --weights FILE, or sparsegpt, prunes",
    "search --method wanda --epochs 0 --weights net.pth": "with --weights nothing is trained before pruning: leave --epochs out",
    "search --momentum 90%": "did you mean 0.9?",
    "search --pruning-rate 0.8": "did you mean --density 0.2,",
    "search --pruning-rate 80%": "did you mean --density 0.2,",
    "search --amount 0.9": "did you mean --density 0.1,",
    "search --ratio 0.9": "did you mean --density 0.1,",
    "search --keep-ratio 0.2": "did you mean --density 0.2,",
    "search --learning-rate 0.1": "did you mean '--lr'?",
    "search --dataset digits": "did you mean '--data'?",
    "search --epoch 3": "did you mean '--epochs'?",
    "search --model resnet50": "did you mean 'torchvision:resnet50'?",
    "search --model lenet-5": "did you mean 'lenet-300-100'?",
    "search --method lottery": "did you mean 'imp'?",
    "search --method lth": "did you mean 'imp'?",
    "search --method LTH": "did you mean 'imp'?",
    "search --method magnitude": "did you mean 'one-shot' or 'gradual' or 'imp'?",
    "search --method edgepopup": "did you mean 'edge-popup'?",
    "search --method edge_popup": "did you mean 'edge-popup'?",
    "search --model mine:net": "no module mine: looked for mine.py and mine/ in the current folder, ",
    "search --model nets/mine.py:net": "did you mean 'nets.mine:net'?",
    "search --data cifar": "did you mean 'cifar10'?",
    "search --data mnist1": "did you mean 'mnist1d'?",
    "search --seed 0-4": "did you mean --seeds 0-4,",
    "search --seed 1,3": "did you mean --seeds 1,3,",
    "run --method imp": "did you mean 'search'?",
    "prune": "did you mean 'search'?",
    "list": "did you mean 'runs list'?",
    "serch": "did you mean 'search'?",
    "inspect mine.py": "mine.py is Python code: expected a ticket",
    "evaluate net.pth": "net.pth is a checkpoint: expected a ticket",
    "train net.pth": "`ticket search --weights net.pth` starts from its weights",
    "inspect results": "results is a folder of runs and no run: choose one, as results/imp-mine",
    "inspect empty": "empty is neither a ticket file nor a run",
}


@pytest.mark.parametrize("word", [*DROPPED, *KEPT])
@pytest.mark.parametrize("between", ["_", "-"])
def test_every_word_for_the_density_is_known_to_the_shell(word, between):
    density = meant_density(word, "80")
    with pytest.raises(RequestError, match=f"did you mean .*--density {density:g}"):
        read_request([f"--{word.replace('_', between)}", "80"])


def test_one_thing_has_no_plural():
    assert [counted(number, "more command") for number in (0, 1, 2, 1000)] == [
        "0 more commands",
        "1 more command",
        "2 more commands",
        "1,000 more commands",
    ]


@pytest.mark.parametrize("words", TYPED)
def test_the_right_name_is_told(words, ticket, tmp_path):
    (tmp_path / "mine.py").write_text("1 + 1")
    (tmp_path / "net.pth").write_bytes(b"PK")
    (tmp_path / "results" / "imp-mine").mkdir(parents=True)
    (tmp_path / "results" / "imp-mine" / "config.toml").write_text("method = 'imp'")
    (tmp_path / "empty").mkdir()
    if words.startswith("search --model mine"):
        (tmp_path / "mine.py").unlink()
    answer = ticket(*words.split())
    assert answer.code == 2
    assert TYPED[words] in answer.err
    assert answer.err.count("error: ") == 1 or "--density" in words, "what follows from a wrong value is not told"
    # What a search or a training is of may be told before.
    assert re.match(r"([^\n]+\n)?error: ", answer.err) and "Traceback" not in answer.err
    assert not (tmp_path / "runs").exists()


def test_several_seeds_and_the_sparsity_are_understood(ticket):
    for words in ("--seeds 3", "--sparsity 0.8"):
        planned = ticket("search", "--method", "snip", *words.split(), "--epochs", "1", "--dry-run")
        assert planned.code == 0, planned.err


@pytest.mark.parametrize("word", [*DROPPED, *KEPT])
def test_python_says_density_with_its_value(word):
    kept = 0.8 if word in KEPT else 0.2
    for function in (supermask.prune, supermask.learn):
        with pytest.raises(
            TypeError, match=rf"{function.__name__}\(\) has no argument '{word}': write density={kept},"
        ):
            function(torch.nn.Linear(2, 2), **{word: 0.8})
    with pytest.raises(RequestError, match=rf"did you mean --density {kept}, in Python density={kept}\?"):
        search("imp", **{word: 0.8})


def test_any_other_wrong_argument_is_told_as_ever():
    with pytest.raises(TypeError, match="unexpected keyword argument 'dense'"):
        supermask.prune(torch.nn.Linear(2, 2), 0.5, dense=0.8)


@pytest.mark.parametrize(
    ("value", "fraction"),
    [(0.8, 0.8), ("0.8", 0.8), ("80%", 0.8), ("80 %", 0.8), (80, 0.8), ("0%", 0.0), (1, 1.0), ("1%", 0.01), (101, None),
     (-1, None), ("-3%", None), ("many", None), (None, None), (float("nan"), None)],
)  # fmt: skip
def test_what_is_read_as_a_fraction(value, fraction):
    assert read_fraction(value) == fraction
    if fraction is not None:
        assert meant_density("sparsity", value) == pytest.approx(1 - fraction)
        assert meant_density("keep_ratio", value) == fraction
    assert meant_density("lr", value) is None


def test_what_a_word_stands_for_is_there_and_the_word_itself_is_no_name():
    flags = {f"--{name.replace('_', '-')}" for method in usable_methods()[0] for name in public_fields(method.Config)}
    flags |= LAUNCH_FLAGS.keys()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands} | {"runs"}
    for table, names in ((METHODS, {*method_names()}), (COMMANDS, commands), (FLAGS, flags)):
        for word, meant in table.items():
            assert {name.split()[0] for name in meant} <= names, word
            assert word not in names or meant == (word,)
            assert word == word.lower() and "_" not in word
    assert not {f"--{word.replace('_', '-')}" for word in (*DROPPED, *KEPT)} & flags - {"--sparsity"}
    assert "density" in Config.model_fields


@pytest.mark.parametrize("word", ["qqqq", "", "x", "zzz-zzz"])
def test_what_is_near_nothing_has_no_hint(word):
    assert nearest_hint(word, method_names()) == ""


@pytest.mark.parametrize("place", ["base", "choose"])
def test_what_a_sweep_says_of_a_method_without_runs_is_an_error(place):
    table = {"base": {"epochs": 1}, "grid": {"method": ["imp", "one-shot"]}}
    values = {"base": {"lr": 0.1}, "choose": {"lr": [0.1, 0.2]}}[place]
    table[place] = {**table.get(place, {}), "imp": values}
    make_sweep(table, "mine")
    table[place] = {**table[place], "snip": values}
    with pytest.raises(
        RequestError, match=re.escape(f"[{place}.snip]: there is no run of snip, the runs are of imp, one-shot")
    ):
        make_sweep(table, "mine")
    table[place]["gradual"] = table[place].pop("snip")
    table["grid"]["method"] = ["gradual"]
    with pytest.raises(
        RequestError, match=re.escape(f"[{place}.imp]: there is no run of imp, the runs are of gradual")
    ):
        make_sweep(table, "mine")
