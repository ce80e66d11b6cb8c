"""Tickets on the hub, against a stand-in for it on loopback: sent, loaded by name, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub import READ_ONLY, Hub, Repository
from huggingface_hub import constants

import supermask
from supermask import HubError, TicketError
from supermask.tickets.hub import Place, read_place
from ticket_search import search
from ticket_search.runs.run import Run

SMALL = {"epochs": 1, "threads": 1, "model_args": ("width=0.2",), "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return search("edge-popup", runs=tmp_path_factory.mktemp("runs"), name="mine", **SMALL)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, where `me` is logged in and has nothing in the cache."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "token-of-me")
    yield server
    server.close()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def _own_session() -> Iterator[None]:
    """A session remembers whether it may ask anybody."""
    yield
    huggingface_hub.close_session()


def answer(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Somebody sits at the terminal and types a word."""
    monkeypatch.setattr("ticket_search.cli.push.sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: word == "y")


def test_a_ticket_is_sent_and_loaded(hub, run, ticket, monkeypatch):
    sent = ticket("push", str(run.path), "hf:me/digits", "--license", "mit", "--message", "the first")
    assert sent.code == 0, sent.err
    there = hub.repositories["me/digits"]
    assert there.messages[-1] == "the first" and not there.private
    content = (run.path / "ticket.safetensors").read_bytes()
    assert there.commits[-1][1]["ticket.safetensors"] == content
    assert b"license: mit" in there.commits[-1][1]["README.md"]
    found = supermask.load("hf:me/digits")
    assert found == run.ticket and supermask.pack(found) == content
    measured = json.loads(ticket("evaluate", "hf:me/digits", "--json").out)
    assert measured["test_accuracy"] == run.summary["test_accuracy"]
    # Another ticket beside it, and the first commit still by its name.
    first = re.search(r"hf:me/digits@([0-9a-f]{40})", sent.out)[1]
    assert first == there.commits[-1][0]
    other = supermask.pack(supermask.Ticket(found.masks, found.states, {"method": "other"}))
    Path("other.safetensors").write_bytes(other)
    done = json.loads(ticket("push", "other.safetensors", "hf:me/digits", "--overwrite", "--json").out)
    assert done["commit"] == there.commits[-1][0] and done["files"]["ticket.safetensors"] == len(other)
    assert supermask.load("hf:me/digits").meta == {"method": "other"}
    assert supermask.load(f"hf:me/digits@{first}") == run.ticket
    words = ("push", str(run.path), "hf:me/digits:seeds/one.safetensors", "--card", "none")
    assert ticket(*words).code == 0
    assert supermask.load("hf:me/digits:seeds/one.safetensors") == run.ticket
    # Without a network, all that was loaded; the newest of a name is the newest that was loaded.
    hub.close()
    for offline in (False, True):
        if offline:
            go_offline(monkeypatch)
        assert supermask.load("hf:me/digits").meta == {"method": "other"}
        assert supermask.load(f"hf:me/digits@{first}") == run.ticket
        assert ticket("inspect", "hf:me/digits").code == 0
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and the cache does not have it"):
        supermask.load("hf:me/nothing")


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "hf:you/theirs", "--json"),
        ("evaluate", "hf:you/theirs", "--json"),
        ("card", "hf:you/theirs"),
        ("push", "hf:you/theirs", "hf:me/mine", "--card", "none"),
        ("export", "hf:you/theirs", "--to", "npz", "--output", "net.npz"),
        ("train", "hf:you/theirs", "--epochs", "1", "--json"),
        ("search", "--weights", "hf:you/theirs", "--method", "dense", "--dry-run", "--model-args", "width=0.2"),
        pytest.param(("bench", "hf:you/theirs", "--engines", "eager", "--batch-sizes", "1"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_takes_a_ticket_takes_one_of_the_hub(words, hub, run, ticket):
    there = hub.repositories["you/theirs"] = Repository()
    there.commit({"ticket.safetensors": (run.path / "ticket.safetensors").read_bytes()}, "theirs")
    done = ticket(*words)
    assert done.code == 0, done.err
    if words[0] == "train":
        # Where the ticket comes from is in the configuration, and resuming reads it from there.
        config = next(Path("runs").glob("train*/config.toml")).read_text()
        assert "models--you--theirs" in config and there.commits[0][0] in config


def test_a_broken_ticket_is_named_as_it_was_given(hub, run, ticket):
    whole = (run.path / "ticket.safetensors").read_bytes()
    hub.repositories["you/theirs"] = Repository()
    hub.repositories["you/theirs"].commit({"ticket.safetensors": whole[: len(whole) // 2]}, "half")
    for words in (("search", "--weights", "hf:you/theirs", "--method", "dense"), ("inspect", "hf:you/theirs")):
        told = ticket(*words)
        assert told.code == 2 and "hf:you/theirs" in told.err and "snapshots" not in told.err, told.err


@pytest.mark.parametrize(
    "text", ["hf:a/b", "hf:a/b@v1", "hf:a/b:c/d.safetensors", "hf:a_1/b.c-d@refs/pr/1:x.safetensors"]
)
def test_a_place_is_read_as_it_is_written(text):
    assert str(read_place(text)) == text


def test_nothing_is_replaced_unless_it_is_asked_for(hub, run, ticket, monkeypatch):
    words = ("push", str(run.path), "hf:me/digits")
    assert ticket(*words, "--private").code == 0
    there = hub.repositories["me/digits"]
    assert there.private
    number = len(there.commits)
    refused = ticket(*words)
    assert refused.code == 2 and "has ticket.safetensors and README.md already: --overwrite" in refused.err
    Path("own.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    answer(monkeypatch, "n")
    assert ticket(*words, "--card", "own.md").code == 1
    assert len(there.commits) == number
    answer(monkeypatch, "y")
    assert ticket(*words, "--card", "own.md").code == 0
    assert there.commits[-1][1]["README.md"] == Path("own.md").read_bytes()
    # Somebody else sends something while we are asked.
    monkeypatch.setattr("typer.confirm", lambda *_, **__: bool(there.commit({"new": b""}, "meanwhile")))
    late = ticket(*words)
    assert late.code == 1 and "has changed meanwhile, and nothing was sent" in late.err
    assert there.messages[-1] == "meanwhile"
    there.private = False
    private = ticket(*words, "--private", "--overwrite")
    assert private.code == 2 and "everybody can see it" in private.err


def test_a_dry_run_asks_nobody_and_sends_nothing(hub, run, ticket, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    told = ticket("push", str(run.path), "hf:me/digits", "--dry-run")
    assert told.code == 0 and "Nothing was sent" in told.out
    assert f"{(run.path / 'ticket.safetensors').stat().st_size:,}" in told.out and "README.md" in told.out
    assert hub.asked == [] and hub.repositories == {}


def unreachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.close()


def out(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def only_reads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)


def of_you(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["you/theirs"] = Repository()
    hub.repositories["you/theirs"].commit({"README.md": b"", "model.bin": b""}, "")


def hidden(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["me/digits"] = Repository()
    hub.hidden.add("me/digits")


def several(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["you/theirs"] = Repository()
    hub.repositories["you/theirs"].commit({"b.safetensors": b"", "a.safetensors": b""}, "")


def damaged(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["you/theirs"] = Repository()
    hub.repositories["you/theirs"].commit({"ticket.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "}, "")


def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)


def in_maintenance(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken = 503


def not_installed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


PUSH = ("push", "RUN", "hf:me/digits")
BAD: dict[str, tuple[Callable[[Hub, pytest.MonkeyPatch], None] | None, tuple[str, ...], int, str]] = {
    "one word": (None, ("inspect", "hf:name"), 2, "'hf:name' is no name of a ticket on the hub: expected hf:USER/NAME, or"),
    "three words": (None, ("push", "RUN", "hf:a/b/c"), 2, "'hf:a/b/c' is no name of a ticket on the hub"),
    "a file after a slash": (None, ("inspect", "hf:a/b/c.safetensors"), 2, "did you mean hf:a/b:c.safetensors?"),
    "an address": (None, ("train", "hf://a/b"), 2, "did you mean hf:a/b?"),
    "out of the repository": (None, ("inspect", "hf:a/b:../c.safetensors"), 2, "is no name of a ticket on the hub"),
    "to a revision": (None, ("push", "RUN", "hf:me/digits@v1"), 2, "leave out @v1"),
    "no such licence": (None, (*PUSH, "--license", "Apache 2.0"), 2, "did you mean 'apache-2.0'?"),
    "no such card": (None, (*PUSH, "--card", "none.md"), 2, "--card none.md cannot be read"),
    "no such ticket": (None, ("push", "nothing", "hf:me/digits"), 2, "neither a ticket file nor a run"),
    "not there": (None, ("evaluate", "hf:you/nothing"), 1, "hf:you/nothing: there is no such repository, or it is private"),
    "not there, not logged in": (out, ("evaluate", "hf:you/nothing"), 1, "`hf auth login` logs in, or HF_TOKEN holds a token"),
    "unreachable to load": (unreachable, ("evaluate", "hf:you/theirs"), 1, "the hub cannot be reached"),
    "unreachable to push": (unreachable, PUSH, 1, "hf:me/digits: the hub cannot be reached"),
    "in maintenance": (in_maintenance, PUSH, 1, "the hub answered with status 503 (in maintenance); try again later"),
    "in maintenance, load": (in_maintenance, ("inspect", "hf:you/theirs"), 1, "hf:you/theirs: the hub answered with status 503"),
    "offline": (offline, ("inspect", "hf:you/theirs"), 1, "load it once without HF_HUB_OFFLINE"),
    "offline to push": (offline, PUSH, 1, "hf:me/digits: nothing can be sent while HF_HUB_OFFLINE is set"),
    "no token": (out, PUSH, 1, "the hub takes files only from those who are logged in"),
    "a token that reads": (only_reads, PUSH, 1, "is not yours to write to, or your token may only read"),
    "a name of another": (None, ("push", "RUN", "hf:you/new"), 1, "the name is not yours to write to"),
    "a repository of another": (of_you, ("push", "RUN", "hf:you/theirs", "--overwrite"), 1, "the name is not yours to write to"),
    "a name that is taken": (hidden, PUSH, 1, "the name is taken by a repository that is not shown to you"),
    "no ticket in it": (of_you, ("inspect", "hf:you/theirs"), 1, "nor another .safetensors file: it holds no ticket"),
    "several in it": (several, ("inspect", "hf:you/theirs"), 1, "its files are hf:you/theirs:a.safetensors, hf:you/theirs:b"),
    "no such revision": (of_you, ("inspect", "hf:you/theirs@v9"), 1, "the repository has no revision 'v9'"),
    "damaged": (damaged, ("evaluate", "hf:you/theirs"), 2, "hf:you/theirs: not a ticket file"),
    "weights": (damaged, ("search", "--method", "dense", "--weights", "hf:you/theirs", "--dry-run"), 2, "--weights"),
    "weights not there": (None, ("search", "--method", "dense", "--weights", "hf:a/b", "--dry-run"), 2, "no such repository"),
    "not installed": (not_installed, ("inspect", "hf:you/theirs"), 1, 'pip install "supermask[hub]"'),
    "not installed, card": (not_installed, ("card", "RUN"), 2, 'pip install "supermask[hub]"'),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_goes_wrong_is_one_line_that_says_what_to_do(what, hub, run, ticket, monkeypatch):
    prepare, words, code, told = BAD[what]
    if prepare is not None:
        prepare(hub, monkeypatch)
    found = ticket(*(str(run.path) if word == "RUN" else word for word in words))
    lines = [line for line in found.err.splitlines() if not line.startswith("note: ")]
    assert found.code == code, found
    # What a search or a training is of may be told before.
    *beginning, error = lines
    assert len(beginning) <= 1 and error.startswith("error: "), found.err
    assert told in error
    assert "token-of-me" not in found.err


def test_in_python_an_error_is_of_our_own():
    with pytest.raises(TicketError, match="is no name of a ticket on the hub"):
        supermask.load("hf:name")
    assert issubclass(HubError, OSError)
    assert Place("a/b") == read_place("hf:a/b")


@pytest.mark.slow
def test_a_process_of_its_own_with_the_variables_of_the_environment(hub, run, tmp_path):
    """Where nothing has been imported, and no constant was replaced: from the hub, and without it from the cache."""
    hub.repositories["you/theirs"] = Repository()
    hub.repositories["you/theirs"].commit({"ticket.safetensors": (run.path / "ticket.safetensors").read_bytes()}, "")
    code = """
import supermask
print(supermask.load("hf:you/theirs"))
from huggingface_hub import close_session, constants
close_session()
constants.HF_HUB_OFFLINE = True
print(supermask.load("hf:you/theirs"))
"""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("density 0.5") == 2
    asked = [line.partition(" ")[0] for line in hub.asked if "/resolve/" in line]
    assert asked == ["HEAD", "HEAD", "GET"]
