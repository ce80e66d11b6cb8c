"""The model card of a ticket, and what is said of a file that is larger than its dense network."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import safetensors
import torch
import yaml
from markdown_it import MarkdownIt
from ticket_bytes import full_ticket, tasks_ticket

import supermask
from supermask.tickets.hub import Place
from supermask.tickets.sizes import sizes_of
from ticket_search import controls, search
from ticket_search.analysis.card import make_card
from ticket_search.analysis.file_size import size_of_file
from ticket_search.running.request import read_request
from ticket_search.runs.records import write_record

SMALL = {"epochs": 1, "threads": 1, "model_args": ("width=0.2",), "progress": False}
TICKET = "ticket.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a ticket that stores both states, one with a control; one that stores nothing; a dense network."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        flags = {"density": 0.8, "rewind": "5it", "seed": seed, "name": f"imp-{seed}"}
        search("imp", runs=folder, **SMALL, **flags)
    controls(folder / "imp-0", ["reinit"])
    search("edge-popup", runs=folder, name="popup", **SMALL)
    search("edge-popup", runs=folder / "others", name="popup", mask_seed=1, **SMALL)
    search("dense", runs=folder, name="dense", **SMALL)
    return folder


def front_of(text: str) -> dict:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def parsed(text: str) -> list:
    return MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])


def kinds_of(text: str) -> list[str]:
    found = []
    for token in parsed(text):
        found += [token.type, *(child.type for child in token.children or ())]
    return found


def code_in(text: str, language: str) -> list[str]:
    return [token.content for token in parsed(text) if token.type == "fence" and token.info == language]


def test_a_card_tells_what_the_run_has_found(runs):
    card = make_card(runs / "imp-0" / TICKET, place=Place("me/digits"), license="apache-2.0")
    assert card.notes == ()
    ticket, summary = supermask.load(runs / "imp-0" / TICKET), json.loads((runs / "imp-0" / "summary.json").read_text())
    front = front_of(card.text)
    assert {key: front[key] for key in ("license", "library_name", "datasets", "metrics", "pipeline_tag")} == {
        "license": "apache-2.0", "library_name": "supermask", "datasets": ["digits"], "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
    }  # fmt: skip
    assert "imp" in front["tags"]
    (index,) = front["model-index"]
    test = index["results"][0]
    assert index["name"] == "digits" and test["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert test["metrics"][0]["value"] == pytest.approx(summary["test_accuracy"] / 100, abs=1e-6)
    assert f"**{summary['test_accuracy']:.2f} %**" in card.text
    for row in ticket.masks.report():
        assert f"| {row.name} | {'x'.join(map(str, row.shape))} | {row.size:,} | {row.kept:,} |" in card.text
    # Both seeds, the dense network that is their level 0, and the control.
    assert "**imp at 80 %: nothing is claimed on fewer than 5 seeds (" in card.text
    assert "From 2 seeds, compared with the dense network (level 0): imp-0, imp-1." in card.text
    assert "| reinit, trained |" in card.text
    assert "Linear Mode Connectivity" in card.text
    assert f"The search cost {summary['cost']['dense_trainings']:.1f} trainings" in card.text
    assert str(runs) not in card.text, "no path of the machine"
    (line,) = [line for block in code_in(card.text, "bash") for line in block.splitlines() if "search" in line]
    config = read_request(line.split()[2:]).config
    assert (config.rewind, config.density, config.epochs) == ("5it", 0.8, 1)


@pytest.mark.parametrize(
    ("model", "told"), [("torchvision:resnet18", True), ("timm:test_resnet", True), ("mine:network", False)]
)
def test_the_command_of_a_card_names_a_network_that_others_have(model, told, runs, tmp_path):
    folder = tmp_path / "popup"
    shutil.copytree(runs / "popup", folder)
    config = tomllib.loads((folder / "config.toml").read_text())
    write_record(folder, "config.toml", {**config, "model": model})
    text = make_card(folder / TICKET, companions=[]).text
    assert (f"--model {model}" in text) == told


def test_of_filters_the_smaller_network_is_told(tmp_path):
    run = search("filters", runs=tmp_path, density=0.5, **SMALL)
    card = make_card(run.path / TICKET).text
    compact = run.summary["compact"]
    assert f"has {compact['parameters']:,} parameters, {100 * compact['share_of_macs']:.3g} % of the mult" in card
    (code,) = code_in(card, "python")
    names = {}
    exec(code.replace(TICKET, str(run.path / TICKET)), names)
    assert sum(parameter.numel() for parameter in names["small"].parameters()) == compact["parameters"]


def test_the_command_of_a_card_has_the_seeds_of_the_run_and_a_place_for_the_data(runs, tmp_path):
    """Of an image folder there is no command without --data-dir; the folder itself is the machine's."""
    folder = tmp_path / "popup"
    shutil.copytree(runs / "others" / "popup", folder)
    (line,) = code_in(make_card(folder / TICKET, companions=[]).text, "bash")[-1].splitlines()
    assert read_request(line.split()[2:]).config.mask_seed == 1 and "--data-dir" not in line
    config = tomllib.loads((folder / "config.toml").read_text())
    write_record(folder, "config.toml", {**config, "data_dir": "/home/me/pictures"})
    text = make_card(folder / TICKET, companions=[]).text
    (line,) = code_in(text, "bash")[-1].splitlines()
    assert read_request(line.split()[2:]).config.data_dir == "DATA_DIR"
    assert "/home/me" not in text and "`DATA_DIR` is the folder that the data set is in." in text


def test_what_lies_beside_is_chosen_or_named(runs, tmp_path):
    alone = make_card(runs / "imp-0" / TICKET, companions=[]).text
    assert "From one seed, compared with the dense network (level 0): imp-0." in alone
    assert "compared with the dense network (dense): popup." in make_card(runs / "popup" / TICKET).text
    assert "not compared: there is no dense network" in make_card(runs / "popup" / TICKET, companions=[]).text
    assert "Not asked: it keeps every weight." in make_card(runs / "dense" / TICKET).text
    # A level of a run, and a file by itself.
    level = make_card(runs / "imp-0" / "levels" / "01" / TICKET).text
    assert "imp at 80 %" in level
    shutil.copy(runs / "popup" / TICKET, tmp_path / "mine.safetensors")
    card = make_card(tmp_path / "mine.safetensors")
    assert "Not known: the file does not lie in the folder of its run." in card.text
    assert "What the search has cost is not known." in card.text
    assert any("names no licence" in note for note in card.notes)
    assert "license" not in front_of(card.text) and "nobody but its author" in card.text


@pytest.mark.parametrize("name", ["imp-0", "popup", "theirs", "tasks"])
def test_the_python_of_a_card_runs(name, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if name == "tasks":
        pair = {str(n): supermask.load(runs / each / TICKET) for n, each in enumerate(("popup", "others/popup"))}
        supermask.save(supermask.join_tasks(pair), TICKET)
    elif name == "theirs":
        given = full_ticket()
        supermask.save(supermask.Ticket(given.masks, given.states, {"model": "their:net"}), TICKET)
    else:
        shutil.copy(runs / name / TICKET, TICKET)
    (code,) = code_in(make_card(Path(TICKET)).text, "python")
    with torch.random.fork_rng():
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    assert shown.startswith("Ticket(")
    assert ("torch.Size([1, 10])" in shown) == (name != "theirs")


EVIL = (
    "x\n---\nlicense: mit\n# y\n```\n<script>alert(1)</script> [a](http://b.c) ![a](d) **b** `c` | d | "
    "www.e.f \x1b[31m\u202e &lt; $x$ me@b.c __g__ ~~h~~ <http://i.j>"
)


def test_text_of_a_stranger_is_neither_markup_nor_yaml(tmp_path):
    given, harmless = full_ticket(), {}
    for name, word in (("evil", EVIL), ("mild", "x")):
        masks = supermask.Masks({word: torch.ones(3, 4, dtype=torch.bool), **given.masks})
        meta = {
            "method": word, "paper": word, "model": word, "data": word, "seed": word, "parameters": 10**5,
            "architecture": {"name": word, "arguments": {"input_shape": [word, True, -1]}}, "normalization": {"mean": word},
            "config": {"density": word, "granularity": word}, "accuracy": {"final": {"test": 50.0, "validation": word}},
        }  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        supermask.save(supermask.Ticket(masks, given.states, meta), folder / TICKET)
        harmless[name] = make_card(folder / TICKET, place=Place("me/x")).text
    evil, mild = harmless["evil"], harmless["mild"]
    assert kinds_of(evil) == kinds_of(mild), "the same paragraphs, tables and nothing else"
    assert not {"html_block", "html_inline", "link_open", "image"} & set(kinds_of(evil))
    assert front_of(evil).keys() | {"datasets"} == front_of(mild).keys(), "of a data set only a plain name"
    assert not any(not c.isprintable() for c in evil.replace("\n", ""))
    # Links that need no brackets: their signs are escaped.
    assert "http://" not in evil and "www.e" not in evil and "me@b" not in evil
    assert code_in(evil, "python") == code_in(mild, "python")


def test_a_metric_that_is_none_gives_no_result(tmp_path):
    given = full_ticket()
    for said in ({"name": "loss"}, {"name": "a b", "direction": "up"}, {"name": [], "values": 3}, []):
        meta = {"metric": said, "accuracy": {"final": {"test": "50"}}}
        supermask.save(supermask.Ticket(given.masks, given.states, meta), tmp_path / TICKET, overwrite=True)
        text = make_card(tmp_path / TICKET).text
        assert "does not say how good it is" in text and "model-index" not in front_of(text)


def test_the_command_writes_a_file_and_replaces_none(runs, ticket):
    shown = ticket("card", "popup", "hf:me/x", "--runs", str(runs), "--license", "mit")
    assert shown.code == 0 and 'supermask.load("hf:me/x")' in shown.out and shown.err == ""
    words = ("card", "imp-0", "--runs", str(runs), "--with", "imp-1", "--output", "README.md")
    assert ticket(*words).code == 0
    assert "imp-1" in Path("README.md").read_text()
    assert "exists already" in ticket(*words).err
    assert ticket(*words, "--overwrite").code == 0
    assert ticket("card", "popup", "--runs", str(runs), "--output", "no/README.md").code == 2
    assert "there is no run 'none'" in ticket("card", "popup", "--runs", str(runs), "--with", "none").err


def test_parts_of_a_file_are_what_is_in_it(runs):
    """Beside what the ticket itself holds."""
    for name in ("imp-0", "popup", "dense"):
        path = runs / name / TICKET
        ticket, sizes = supermask.load(path), sizes_of(path)
        for state, source in ticket.states.items():
            masked = sum(4 * int(ticket.masks[key].sum()) for key in source.stored if key in ticket.masks)
            rest = sum(4 * source.stored[key].numel() for key in source.stored if key not in ticket.masks)
            found = sizes.states.get(state)
            assert ((found.masked, found.unmasked) if found else (0, 0)) == (masked, rest)
        assert sizes.bits == ticket.masks.coded_bytes
        assert sizes == sizes_of(path.read_bytes())
        assert sizes.total == path.stat().st_size
    for each in (full_ticket(), tasks_ticket(), tasks_ticket(drawn=False)):
        data = supermask.pack(each)
        sizes = sizes_of(data)
        stored = sum(part.masked + part.unmasked for part in sizes.states.values())
        assert sizes.total == len(data) == sizes.bits + stored + sizes.description
        # As the library of the format reads it.
        there = [(name.removeprefix("tasks/"), len(read["data"])) for name, read in safetensors.deserialize(data)]
        for name, part in sizes.states.items():
            assert part.masked + part.unmasked == sum(size for other, size in there if other.startswith(f"{name}/"))
        assert sizes.bits == dict(there)["bits"]


def test_a_file_that_is_larger_than_its_dense_network_says_why(runs, ticket):
    path = runs / "imp-0" / TICKET
    found = size_of_file(path, supermask.load(path))
    kept, parameters = 4192, 5330
    assert found.larger_than == "fp32" and found.dense_bytes == 4 * parameters
    assert found.sizes.states["start"].masked == found.sizes.states["final"].masked == 4 * kept
    for part in (
        f"in fp32 (21,320 bytes): of {found.sizes.total:,} bytes 16,768 are start weights in fp32, 16,768 are final",
        "`--rewind 0` in place of step 5 (16,768 bytes less",
        "`--dtype bf16` (16,768 bytes less)",
    ):
        assert part in found.why
    shown = ticket("inspect", "imp-0", "--runs", str(runs))
    assert found.why[:60] in shown.out
    described = json.loads(ticket("inspect", "imp-0", "--runs", str(runs), "--json").out)
    assert described["larger_than"] == "fp32" and described["larger_because"] == found.why
    assert found.why in make_card(path).text
    # What is drawn from a seed takes no place.
    small = size_of_file(runs / "popup" / TICKET, supermask.load(runs / "popup" / TICKET))
    assert small.larger_than == small.why == ""
    assert "larger_than" not in json.loads(ticket("inspect", "popup", "--runs", str(runs), "--json").out)
    assert "is larger than" not in make_card(runs / "popup" / TICKET).text


def test_the_density_that_is_told_is_where_the_file_becomes_the_smaller_one(runs):
    """A ticket of that density, made of the same network, beside the dense one."""
    whole = supermask.load(runs / "dense" / TICKET)
    found = size_of_file(runs / "dense" / TICKET, whole)
    assert found.larger_than == "fp32"
    bound = float(found.why.partition("densities of at most ")[2].partition(" ")[0])
    net = whole.model()
    for density, smaller in ((bound - 0.03, True), (1.0, False)):
        masks = supermask.prune(net, density)
        state = supermask.make_state(net.state_dict(), masks)
        made = supermask.Ticket(masks, {"final": state}, whole.meta)
        assert (len(supermask.pack(made)) < found.dense_bytes) == smaller


def test_a_search_ends_with_the_size_of_its_file(ticket, tmp_path):
    words = (
        "search",
        "--method",
        "imp",
        "--levels",
        "0.8",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--model-args",
        "width=0.1",
    )
    shown = ticket(*words).out
    assert "ticket file" in shown and "larger than its dense network in fp32" in " ".join(shown.split())
