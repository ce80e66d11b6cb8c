from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import check_not_imported
from products import thin
from test_data_formats import write_set
from ticket_bytes import full_ticket

import supermask
import ticket_search
from supermask.weights.architectures import find_architecture
from ticket_search.cli import app
from ticket_search.contract.flags import Config, flag, public_fields
from ticket_search.contract.recipes import recipes
from ticket_search.methods import find_method, method_names
from ticket_search.running import plan as plan_module

EDGE_POPUP = "edge-popup-lenet-300-100-digits-d0.5-s0"


def test_help_gives_no_default_that_another_method_or_the_ticket_sets(ticket):
    for words in (("search", "--help"), ("train", "--help")):
        shown = ticket(*words).out
        assert "--epochs" in shown and "; default" not in shown
    assert "default 60" in ticket("search", "--method", "edge-popup", "--help").out


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
def test_a_table_loses_nothing_on_a_narrow_terminal(width, monkeypatch, capsys):
    from rich.console import Console

    from ticket_search.cli import terminal

    monkeypatch.setattr(terminal, "output", lambda: Console(width=width))
    columns = ("method", "on", "density", "kept", "95 % interval", "dense trainings", "time", "test % there")
    rows = [("edge-popup d0.5", "lenet-300-100 digits", "0.5", 25_100, "92.87 to 93.51", "1.0", "3.2 s", "93.20")] * 2
    terminal.print_table(columns, rows)
    shown = capsys.readouterr().out
    words = [word for text in (*columns, *map(terminal._text, rows[0])) for word in text.split()]
    assert all(word in shown for word in words), shown
    assert max(map(len, shown.splitlines())) <= width


LONG_NAMES = [f"edge-popup-wide-resnet-28-10-fashion-mnist-d0.5-s{seed}" for seed in range(3)]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_names_of_runs_are_whole_and_a_table_is_no_list_of_records(width, monkeypatch, capsys):
    from rich.console import Console

    from ticket_search.cli import terminal

    monkeypatch.setattr(terminal, "output", lambda: Console(width=width))
    columns = ("run", "density", "test", "validation", "time")
    terminal.print_table(columns, [(name, "0.5", "98.33 %", "97.22 %", "2 h 5 min") for name in LONG_NAMES])
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    for name in LONG_NAMES:
        assert sum(name in line for line in lines) == (2 if width == 40 else 1), "whole, in each part of the table"
    assert all(text.count(column) == 1 for column in columns if column != "run"), text
    assert all(len(line) <= width or line in LONG_NAMES for line in lines)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A folder with a run of several levels and one without, and the controls of both."""
    folder = tmp_path_factory.mktemp("two") / "runs"
    flags = {"runs": folder, "progress": False, "epochs": 1, "threads": 1, "train_size": 320, "model_args": "width=0.1"}
    for method in ("imp", "edge-popup"):
        run = ticket_search.search(method, density=0.7, name=f"{method}-of-a-network-with-a-long-name-d0.7-s0", **flags)
        ticket_search.controls(run, progress=False)
    return folder


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "words", ["runs list", "inspect RUN", "evaluate RUN", "controls RUN", "resume RUN", "models", "methods", "data", "search --help"]
)  # fmt: skip
def test_what_a_command_shows_fits_the_terminal(words, width, two_runs, ticket, monkeypatch):
    from rich.console import Console

    from ticket_search.cli import terminal

    monkeypatch.setattr(terminal, "output", lambda: Console(width=width, emoji=False))
    for run in sorted(two_runs.iterdir())[: None if "RUN" in words else 1]:
        shown = ticket(*[str(run) if word == "RUN" else word for word in words.split()],
                       *(["--runs", str(two_runs)] if "RUN" in words or words == "runs list" else []))  # fmt: skip
        assert shown.code == 0, shown.err
        # Paths and commands are whole, on lines as long as they are: a terminal folds them and they can be copied.
        long = [line for line in shown.out.splitlines() if len(line) > width]
        assert all(str(two_runs) in line or line.startswith(("Flags", "recipes", "`ticket")) for line in long), long
        assert "…" not in shown.out and not re.search(r"\w\.\.\.(\s|$)", shown.out.replace("A,B,...", ""))
    if words == "runs list":
        names = [run.name for run in two_runs.iterdir()]
        assert [sum(name in line for line in shown.out.splitlines()) for name in names] == [1, 1]


def test_models_have_their_size_and_methods_their_use(ticket):
    models = {row["name"]: row for row in json.loads(ticket("models", "--json").out)["models"]}
    assert (models["lenet-300-100"]["parameters"], models["lenet-300-100"]["input_shape"]) == (266_610, [1, 28, 28])
    for name, row in models.items():
        with torch.device("meta"):
            network = find_architecture(name)(input_shape=tuple(row["input_shape"]))
        assert row["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    shown = ticket("models").out
    assert re.search(r"lenet-300-100 +266,610 +1x28x28", shown)
    methods = json.loads(ticket("methods", "--json").out)["methods"]
    text = " ".join(ticket("methods").out.split())
    for row in methods:
        assert row["when"] in text and row["idea"] in text and row["paper"] in text


FIRST = """
import sys, time
from ticket_search import cli
from ticket_search.cli import search

def stop(*words):
    print("torch" in sys.modules, file=sys.stderr)
    sys.exit(7)

search.carry_out = stop
sys.argv = ["ticket", "search", "--method", "imp", "--density", "0.2", "--seed", "3"]
cli.main()
"""


def test_the_first_line_of_a_search_comes_before_torch():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stderr.splitlines() == ["imp on lenet-300-100 and digits, density 0.2, seed 3", "False"]


def test_a_search_says_how_long_it_takes(ticket, announced):
    words = "search --method imp --density 0.7 --epochs 1 --train-size 320 --threads 1 --name x"
    done = ticket(*words.split())
    assert done.code == 0, done.err
    first, second = done.err.splitlines()[:2]
    assert first == "imp on lenet-300-100 and digits, density 0.7, seed 0"
    assert re.fullmatch(r"15 steps in 3 trainings, about \d.* s: runs/x", second)
    assert "about" in ticket("controls", "x").err
    # What is there is not announced again.
    assert "about" not in ticket("controls", "x").err


def test_search_inspect_evaluate_compare_and_remove(ticket, capsys):
    short = ("--epochs", "1", "--train-size", "320", "--threads", "1")
    done = ticket("search", "--method", "edge-popup", *short)
    assert done.code == 0, done.err
    assert "test accuracy" in done.out
    for line in (f"ticket inspect runs/{EDGE_POPUP}", "ticket compare runs/*", "tensorboard --logdir runs"):
        assert line in done.out
    code = done.out.partition('python -c "')[2].partition('"\n')[0]
    exec(code, {})
    assert "density 0.5" in capsys.readouterr().out

    assert ticket("search", *short, "--seed", "1").code == 0
    assert ticket("search", "--method", "dense", *short).code == 0
    found = json.loads(ticket("compare", *(f"runs/{p.name}" for p in Path("runs").iterdir()), "--json").out)
    assert [(g["method"], g["density"], g["n"]) for g in found["groups"]] == [("dense", 1.0, 1), ("edge-popup", 0.5, 2)]
    pair = found["groups"][1]
    runs = [json.loads((Path(r) / "summary.json").read_text())["test_accuracy"] for r in pair["runs"]]
    assert pair["mean"] == pytest.approx(sum(runs) / 2)
    assert pair["std"] == pytest.approx(abs(runs[0] - runs[1]) / 2**0.5)
    half = 12.706204736 * pair["std"] / 2**0.5
    assert pair["interval"] == pytest.approx([pair["mean"] - half, pair["mean"] + half])
    assert found["groups"][0]["std"] is None
    assert ticket("search", *short, "--name", "again").code == 0
    again = json.loads(ticket("compare", EDGE_POPUP, f"runs/{EDGE_POPUP}", "again", "--json").out)
    assert again["groups"][0]["n"] == 1
    assert again["left_out"] == [f"runs/again: repeats the seeds of runs/{EDGE_POPUP}"]
    Path("runs/again/config.toml").write_text("method = ")
    assert "damaged" in ticket("runs", "list").out
    assert ticket("compare", "again", EDGE_POPUP).code == 0
    assert ticket("runs", "rm", "again", "--yes").code == 0
    table = ticket("compare", f"runs/{EDGE_POPUP}", "runs/none")
    assert "one seed" in table.out
    assert "left out: runs/none: not a run" in table.err.replace("\n", " ")

    evaluated = json.loads(ticket("evaluate", EDGE_POPUP, "--json").out)
    assert (
        evaluated["test_accuracy"] == json.loads(Path(f"runs/{EDGE_POPUP}/summary.json").read_text())["test_accuracy"]
    )
    inspected = json.loads(ticket("inspect", f"runs/{EDGE_POPUP}/ticket.safetensors", "--json").out)
    assert [layer["kept"] for layer in inspected["layers"]] == [9600, 15000, 500]
    assert inspected["times_smaller"] > 15
    assert "signed-constant (seed 0, scale 1.414)" in ticket("inspect", EDGE_POPUP).out

    listed = json.loads(ticket("runs", "list", "--json").out)["runs"]
    assert [row["state"] for row in listed] == ["finished"] * 3
    assert ticket("runs", "rm", EDGE_POPUP, "nothing", "--yes").code == 2
    assert Path(f"runs/{EDGE_POPUP}").exists(), "a wrong name removes nothing"
    assert ticket("runs", "rm", EDGE_POPUP, "--yes").code == 0
    assert not Path(f"runs/{EDGE_POPUP}").exists()


def test_json_is_one_object_and_nothing_else(ticket):
    summary = json.loads(ticket("search", "--json", "--epochs", "1", "--density=0.3", "--no-scaled").out)
    assert summary["density"] == pytest.approx(0.3, abs=1e-4)
    for kind in ("methods", "models", "data"):
        assert json.loads(ticket(kind, "--json").out)[kind]


def test_sparsity_is_one_minus_density(ticket):
    plan = json.loads(ticket("search", "--sparsity", "0.9", "--dry-run", "--json").out)
    assert plan["config"]["density"] == 0.1


@pytest.fixture(scope="module")
def endings():
    """What was timed of the endings of trainings, by the network: they are the same for every method."""
    return {}


@pytest.mark.parametrize("method", thin(method_names(), 3))
def test_dry_run_tells_and_writes_nothing(method, ticket, tmp_path, endings, monkeypatch):
    plans, make_plan = [], plan_module.make_plan

    def make(config, setup):
        """The plan is made for the text, and told again for JSON."""
        if not plans:
            plans.append(make_plan(config, setup, endings.get(config.model)))
            endings[config.model] = plans[0].costs
        return plans[0]

    monkeypatch.setattr(plan_module, "make_plan", make)
    told = ticket("search", "--method", method, "--dry-run")
    assert told.code == 0, told.err
    # A layer with a batch norm behind it has no bias.
    biases = {"lenet-300-100": "410 entries of 3 tensors (bias)", "lenet-300-100-bn": "10 entries of 1 tensor (bias)"}
    left_out = biases[find_method(method).Config().model]
    for part in ("fc1.weight", "19,200", left_out, "steps", "Nothing was written"):
        assert part in told.out
    plan = json.loads(ticket("search", "--method", method, "--dry-run", "--json").out)
    assert plan["steps"] == sum(stage["steps"] for stage in plan["stages"])
    assert plan["seconds"] > 0
    assert plan["weights"] == 50200
    assert list(tmp_path.iterdir()) == []


BAD = {
    "method": (["--method", "edge-pop"], ["unknown method 'edge-pop'; did you mean 'edge-popup'?"]),
    "model": (["--model", "lenet"], ["unknown model 'lenet'; did you mean 'lenet-300-100'?"]),
    "data": (["--data", "fashion"], ["unknown data set 'fashion'; did you mean 'fashion-mnist'?"]),
    "density 0": (["--density", "0"], ["--density 0: expected a number greater than 0"]),
    "density 0.0": (["--density", "0.0"], ["--density 0.0: expected a number greater than 0\n"]),
    "density 1.5": (["--density", "1.5"], ["--density 1.5: expected a number less than or equal to 1"]),
    "density half": (["--density", "half"], ["--density half: expected a number"]),
    "density nan": (["--density", "nan"], ["--density nan: expected"]),
    "density and sparsity": (["--density", "0.5", "--sparsity", "0.5"], ["--density 0.5 and --sparsity 0.5: give one"]),
    "sparsity 1": (["--sparsity", "1"], ["--sparsity 1: expected a number in [0, 1)"]),
    "epochs": (["--epochs", "0"], ["--epochs 0: expected a number greater than or equal to 1"]),
    "another method's flag": (["--rewind", "2ep"], ["--rewind is a flag of imp, one-shot, not of edge-popup"]),
    "unknown flag": (["--densty", "0.5"], ["unknown flag --densty; did you mean '--density'?"]),
    "no value": (["--epochs", "--seed", "1"], ["--epochs needs a value"]),
    "no flag": (["fast"], ["'fast' is not a flag"]),
    "twice": (["--seed", "1", "--seed", "2"], ["--seed is given twice: 1 and 2"]),
    "recipe": (["--config", "lenet-imp"], ["unknown recipe 'lenet-imp'; did you mean 'lenet-imp-2018'?"]),
    "schedule": (["--schedule", "step"], ["--schedule step needs --milestones"]),
    "choice": (["--optimizer", "adm"], ["--optimizer adm: expected 'sgd', 'adam' or 'adamw'; did you mean 'adam'?"]),
    "glob": (["--exclude", "fc9"], ["no parameter fits 'fc9'"]),
    "too few": (["--density", "0.0001"], ["keeps none of fc3.weight"]),
    "include a bias": (["--include", "fc1"], ["--include takes fc1.bias too"]),
    "nothing kept": (["--density", "1e-9", "--allocation", "global"], ["keeps none of the 50,200 weights"]),
    "idle momentum": (["--optimizer", "adam", "--momentum", "0.5"], ["--momentum goes with --optimizer sgd"]),
    "idle drop": (["--drop", "0.5"], ["--drop goes with --schedule step"]),
    "idle seed": (["--method", "dense", "--mask-seed", "1"], ["--mask-seed goes with methods that draw"]),
    "idle scale": (["--init", "keep", "--no-scaled"], ["--scaled goes with weights that are drawn"]),
    "late milestones": (["--schedule", "step", "--milestones", "30,60"], ["--milestones 30,60: expected epochs before 60"]),
    "long warmup": (["--warmup", "600it"], ["--warmup 600it: expected less than the 600 steps"]),
    "values and combinations": (
        ["--epochs", "0", "--optimizer", "adam", "--nesterov"], ["--epochs 0", "--nesterov needs --optimizer sgd"],
    ),
    "unknown method and flag": (
        ["--method", "impp", "--frobnicate", "3"], ["unknown method 'impp'", "unknown flag --frobnicate"],
    ),
    "a switch with a value": (["--dry-run=false"], ["--dry-run takes no value"]),
    "idle workers": (["--workers", "2"], ["--workers goes with --data imagefolder"]),
    "idle image size": (["--image-size", "64"], ["--image-size goes with --data imagefolder"]),
    "image mean": (
        ["--data", "imagefolder", "--image-mean", "0.5,0.5", "--image-std", "0.5,0.5,0"],
        ["--image-mean 0.5,0.5: expected three numbers", "--image-std 0: expected a number greater than 0"],
    ),
    "idle image mean": (["--image-mean", "0,0,0"], ["--image-mean goes with --data imagefolder"]),
    "idle flip": (
        ["--data", "imagefolder", "--flip"], ["--flip goes with data in memory"],
    ),
    "device": (["--device", "mps"], ["--device mps: this machine has cpu"]),
    "name": (["--name", "a/b"], ["--name 'a/b': expected the name of a folder"]),
    "everything at once": (
        ["--method", "imp", "--model", "lnet", "--data", "x", "--density", "2", "--sparsity", "0.5", "--epochs", "-1", "--scaled", "--foo", "1"],
        ["unknown model", "unknown data set", "--density 2:", "give one of them", "--epochs -1", "--scaled is a flag of biprop, edge-popup", "unknown flag --foo"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_exits_2_names_every_problem_and_writes_nothing(case, ticket, tmp_path):
    words, problems = BAD[case]
    answer = ticket("search", *words)
    assert answer.code == 2
    assert answer.out == ""
    for problem in problems:
        assert problem in answer.err
    assert answer.err.count("error: ") == len(problems)
    assert list(tmp_path.iterdir()) == []


def test_recipe_files_are_checked(ticket, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'method = "imp"\nfractoin = 0.2\nepochs = "many"\nlr = [1]\nseed = true\ndensity = "0.5"\nsparsity = 0.1\n'
    )
    answer = ticket("search", "--config", str(recipe))
    assert answer.code == 2
    for problem in (
        "unknown flag --fractoin; did you mean '--fraction'",
        "--epochs 'many'",
        "--lr [1]",
        "--seed true",
        "--density '0.5'",
        "did you mean --density 0.9, in Python density=0.9?",
    ):
        assert problem in answer.err
    recipe.write_text("epochs = = 3")
    assert "cannot be read as TOML" in ticket("search", "--config", str(recipe)).err
    assert "cannot be read" in ticket("search", "--config", "none.toml").err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_a_flag_beside_a_recipe_wins(ticket, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('method = "imp"\ndensity = 0.2\nepochs = 7\n')
    plan = json.loads(ticket("search", "--config", str(recipe), "--epochs", "2", "--dry-run", "--json").out)
    assert (plan["config"]["method"], plan["config"]["density"], plan["config"]["epochs"]) == ("imp", 0.2, 2)


def test_a_recipes_value_may_lose_its_effect_and_a_typed_flag_may_not(ticket):
    words = (
        "search",
        "--config",
        "lenet-edge-popup",
        "--data",
        "digits",
        "--optimizer",
        "adam",
        "--lr",
        "0.01",
        "--dry-run",
    )
    assert ticket(*words).code == 0
    refused = ticket(*words, "--momentum", "0.9")
    assert refused.code == 2
    assert "--momentum goes with --optimizer sgd" in refused.err


def test_a_taken_name(ticket):
    words = ("search", "--method", "dense", "--epochs", "1", "--name", "mine")
    assert ticket(*words).code == 0
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")}
    assert "the run runs/mine is finished already; --again makes another" in ticket(*words).out
    other = ticket(*words, "--again", "--seed", "1")
    assert other.code == 2
    assert "the run runs/mine is another one (--seed 0 there, 1 here); choose another name" in " ".join(
        other.err.split()
    )
    assert {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*")} == before
    assert ticket(*words, "--again").code == ticket(*words, "--again").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine", "mine-2", "mine-3"]


def test_ticket_files_that_are_none(ticket, tmp_path):
    write_set(tmp_path / "fashion")
    assert ticket("search", "--epochs", "1").code == 0
    whole = (Path("runs") / EDGE_POPUP / "ticket.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    (tmp_path / "none").write_bytes(b"hello")
    (tmp_path / "newer").write_bytes(whole.replace(b'\\"format\\":1,', b'\\"format\\":9,'))
    for command in ("inspect", "evaluate"):
        for name, problem in {
            "cut": "not a whole ticket file", "none": "not a whole ticket file: it has 5 bytes", "newer": "format 9, this version reads up to 2",
            "nothing": "neither a ticket file nor a run", EDGE_POPUP[:-3]: f"did you mean '{EDGE_POPUP}'",
        }.items():  # fmt: skip
            answer = ticket(command, name)
            assert answer.code == 2, (command, name)
            assert problem in answer.err, (command, name)
    refused = ticket("evaluate", EDGE_POPUP, "--data", "fashion-mnist", "--data-dir", str(tmp_path / "fashion"))
    assert refused.code == 2
    assert "the ticket's network does not fit fashion-mnist: it was built for input_shape [1, 8, 8]" in refused.err
    assert "unknown state 'begin'" in ticket("evaluate", EDGE_POPUP, "--state", "begin").err
    assert "unknown data set 'digit'" in ticket("evaluate", EDGE_POPUP, "--data", "digit").err
    ours = supermask.load(tmp_path / "runs" / EDGE_POPUP / "ticket.safetensors")
    foreign = supermask.Ticket(ours.masks, ours.states, {"architecture": {"name": "a:b"}, "data": "digits"})
    supermask.save(foreign, tmp_path / "foreign")
    assert "supermask.load(path).apply_to(your_model)" in ticket("evaluate", str(tmp_path / "foreign")).err


def test_unfinished_runs_are_said_to_be(ticket):
    from ticket_search.runs.progress import Progress

    with pytest.MonkeyPatch.context() as patch:

        def stop(self, step):
            # Not in the steps that are timed before the run.
            if self.shown:
                raise KeyboardInterrupt

        patch.setattr(Progress, "advance_to", stop)
        assert ticket("search").code == 130
    assert json.loads(ticket("runs", "list", "--json").out)["runs"][0]["state"] == "unfinished"
    assert f"ticket resume runs/{EDGE_POPUP}` goes on" in ticket("inspect", EDGE_POPUP).err
    compared = ticket("compare", f"runs/{EDGE_POPUP}")
    assert compared.code == 2
    assert "not finished" in compared.err


@pytest.mark.parametrize("method", [None, *method_names()])
def test_help_shows_every_flag_and_the_paper(method, ticket):
    answer = ticket("search", *(["--method", method] if method else []), "--help")
    assert answer.code == 0
    for name in public_fields(find_method(method).Config if method else Config):
        assert flag(name) in answer.out
    if method:
        assert find_method(method).paper in " ".join(answer.out.split())
    for name in recipes():
        assert name in answer.out


def test_every_command_has_help(ticket):
    commands = [command.name for command in app.registered_commands]
    assert sorted(commands) == [
        "bench",
        "card",
        "compare",
        "connect",
        "controls",
        "data",
        "diagnose",
        "doctor",
        "evaluate",
        "export",
        "inspect",
        "methods",
        "models",
        "push",
        "resume",
        "search",
        "signs",
        "study",
        "sweep",
        "train",
    ]
    listed = ticket("--help").out
    for command in [*commands, "runs"]:
        assert ticket(command, "--help").code == 0
        assert command in listed


def test_version(ticket):
    assert ticket("--version").out == f"supermask {supermask.__version__}\n"


def test_wrong_words_for_other_commands(ticket):
    assert ticket("serch").code == 2
    assert ticket("inspect").code == 2
    assert ticket("resume", "nothing").code == 2
    assert ticket("methods", "--jsn").code == 2


def test_help_and_errors_do_not_wait_for_torch():
    commands = [["--help"], ["search", "--method", "imp", "--help"], ["search", "--density", "7"], ["methods"]]
    began = time.perf_counter()
    check_not_imported("torch", commands)
    assert time.perf_counter() - began < 20


def test_inspect_shows_a_strangers_ticket_and_builds_nothing(ticket, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("built, or decoded")

    evil = "\x1b[2J[red]x[/red]\u202e" + "y" * 1000
    given = full_ticket()
    masks = supermask.Masks({evil: torch.zeros(3, 4, dtype=torch.bool), **given.masks})
    meta = {
        "method": evil, "architecture": {"name": "os:system", "arguments": {"depth": 3}}, "accuracy": [1], "seed": None,
        "parameters": True, "model": {"deep": [evil]}, "paper": [], "data": {"a": {"b": 1}},
    }  # fmt: skip
    supermask.save(supermask.Ticket(masks, given.states, meta, given.sets, given.levels), tmp_path / "theirs")
    supermask.save(given, tmp_path / "fine")
    monkeypatch.setattr("supermask.tickets.ticket.find_architecture", refuse)
    monkeypatch.setattr("supermask.tickets.bit_coding.decode", refuse)
    shown = ticket("inspect", "theirs")
    assert shown.code == 0, shown.err
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
    assert r"\x1b[2J[red]x[/red]\u202e" in shown.out
    assert "warning: the mask keeps no weight of" in shown.out
    assert "name os:system, arguments depth 3" in shown.out
    assert json.loads(ticket("inspect", "theirs", "--json").out)["method"] == evil
    found = json.loads(ticket("inspect", "fine", "--json").out)
    assert found["dense_bytes"] == 8000
    assert found["file_bytes"] == (tmp_path / "fine").stat().st_size
    assert 0 < found["mask_bytes"] < found["file_bytes"]
    assert found["mask_sets"] == ["task-1", "task-2"]
    assert found["levels"] == ["stem.weight"]
    assert "signs: 1 tensor;" in found["final_weights"]
    assert {row["name"] for row in found["layers"]} == {row.name for row in given.masks.report()}
    assert "kaiming-normal (seed 3, scale 1)" in ticket("inspect", "fine").out


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"),
    [("bf16", torch.bfloat16), pytest.param("fp16", torch.float16, marks=pytest.mark.slow)],
)
def test_kept_weights_are_rounded_on_request(dtype, torch_dtype, ticket):
    words = "--method imp --epochs 1 --train-size 320 --fraction 0.5 --density 0.25 --threads 1"
    flags = words.split()
    assert ticket("search", *flags, "--name", "whole").code == 0
    assert ticket("search", *flags, "--name", "rounded", "--dtype", dtype).code == 0
    whole, rounded = (supermask.load(f"runs/{name}/ticket.safetensors") for name in ("whole", "rounded"))
    # What a level is pruned by is what was trained, not what is left of it after rounding.
    assert whole.masks == rounded.masks
    for name, tensor in whole.state_dict().items():
        expected = tensor.to(torch_dtype).float() if name in whole.masks else tensor
        assert torch.equal(rounded.state_dict()[name], expected)
    sizes = [Path(f"runs/{name}/ticket.safetensors").stat().st_size for name in ("whole", "rounded")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * whole.masks.kept, abs=200)
    measured = json.loads(ticket("evaluate", "rounded", "--json").out)
    assert measured["test_accuracy"] == json.loads(Path("runs/rounded/summary.json").read_text())["test_accuracy"]


@pytest.mark.parametrize("name", [[], ["--name", "mine"]])
def test_the_same_command_again_shows_the_run_and_trains_nothing(name, ticket, tmp_path):
    words = ["search", "--method", "snip", "--epochs", "1", "--train-size", "320", "--threads", "1", *name]
    first, before = ticket(*words), {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.*")}
    again = ticket(*words)
    assert first.code == again.code == 0, again.err
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 1
    assert f"the run runs/{folders[0].name} is finished already; --again makes another" in again.out
    assert first.out in again.out
    assert json.loads(ticket(*words, "--json").out) == json.loads((folders[0] / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.*")} == before
    other = ticket(*words, "--lr", "0.5")
    assert (other.code, len(list((tmp_path / "runs").iterdir()))) == ((2, 1) if name else (0, 2)), other.err
    if not name:
        assert ticket(*words, "--again").code == 0
        assert (tmp_path / "runs" / f"{folders[0].name}-3").exists()


def test_a_training_typed_again_is_shown_and_made_another_by_the_same_flag(ticket, tmp_path):
    assert ticket("search", "--method", "snip", "--epochs", "1", "--train-size", "320", "--name", "found").code == 0
    assert ticket("train", "found", "--name", "first").code == 0
    assert (
        "the run runs/first is finished already; --again makes another"
        in ticket("train", "found", "--name", "first").out
    )
    assert ticket("train", "found").code == ticket("train", "found", "--again").code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 4
    refused = ticket("search", "--method", "snip", "--seeds", "0-1", "--again")
    assert refused.code == 2 and "--again is about one run" in refused.err


@pytest.mark.parametrize("config", ["name = 1", "method = "], ids=["another program's", "damaged"])
def test_a_ticket_is_measured_beside_a_file_that_is_no_configuration_of_a_run(config, ticket, tmp_path):
    assert ticket("search", "--method", "snip", "--epochs", "1", "--train-size", "320", "--name", "found").code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text(config)
    path = (tmp_path / "runs" / "found" / "ticket.safetensors").rename(tmp_path / "other" / "ticket.safetensors")
    assert ticket("evaluate", str(path)).code == 0
