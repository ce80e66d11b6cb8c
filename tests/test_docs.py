"""The pages: what they link to, say of the code and show is there. Without mkdocs but for one test."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
import yaml

import supermask
import ticket_search
from ticket_search.cli import app, train
from ticket_search.contract.errors import Problems
from ticket_search.contract.flags import flag, public_fields
from ticket_search.methods import method_names, own_methods
from ticket_search.running.read_config import find_kind
from ticket_search.running.request import LAUNCH_FLAGS, read_flags, read_request
from ticket_search.sweeps import file as sweep_file
from ticket_search.sweeps import study as study_file

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))
import make_outputs  # noqa: E402
import site_files  # noqa: E402

PAGES = make_outputs.pages()
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
each_page = pytest.mark.parametrize("name", PAGES)


def prose_of(text: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(*languages: str) -> list[tuple[str, make_outputs.Block]]:
    return [(n, b) for n, text in TEXTS.items() for b in make_outputs.blocks_of(text) if b.language in languages]


def entries(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [path for part in (nav.values() if isinstance(nav, dict) else nav) for path in entries(part)]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    listed = entries(CONFIG["nav"])
    copied = {str(path.relative_to(ROOT)) for pattern in site_files.COPIED for path in ROOT.glob(pattern)}
    assert {path.name for path in DOCS.glob("*.md")} <= {*listed}
    assert [path for path in listed if path != "index.md" and not (DOCS / path).exists() and path not in copied] == []
    assert (ROOT / "README.md").exists()


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose_of(path.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("path", [*PAGES.values(), ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """To files that are there, and on the site too; to headings that are there; pictures are never another site's."""
    missing = []
    for picture, target in re.findall(r"(!?)\[[^]]*\]\(([^)\s]+)\)", prose_of(path.read_text())):
        if target.startswith("https://") and not picture:
            continue
        place, _, anchor = target.partition("#")
        found = (path.parent / place).resolve() if place else path
        inside = DOCS in found.parents or any(found.match(str(ROOT / pattern)) for pattern in site_files.COPIED)
        if not found.is_file() or not inside or (anchor and anchor not in anchors_of(found)):
            missing.append(target)
    assert missing == []


@each_page
def test_pages_are_short(name):
    """What one reads in five minutes: blocks and tables, which are looked at, are not counted, nor the references."""
    if name not in ("ticket_format", "flags"):
        assert len(re.sub(r"^\|.*\n", "", prose_of(TEXTS[name]), flags=re.MULTILINE).split()) <= 1000


COMMANDS = {
    f"{name}: {command}": (command, True)
    for name, block in blocks("bash", "before")
    for line in make_outputs.commands_of(block.code)
    for command in line.split(" && ")
    if command.startswith("ticket ")
}
# Of a command in a sentence names stand for what one types: RUN, FILE.
COMMANDS |= {
    f"{name}: `{command}`": (command, False)
    for name, text in TEXTS.items()
    for command in re.findall(r"`(ticket [^`|]+)`", prose_of(text))
}


def method_of(command: str, words: list[str]) -> str:
    """The method whose flags a search or a training takes; some method where NAME stands for one, or a recipe has it."""
    named = words[words.index("--method") + 1] if "--method" in words else ""
    return "train" if command == "train" else named if named in own_methods() else "imp"


@functools.cache
def built() -> dict[str, Any]:
    """The commands by name, which take longer to build than to try."""
    return typer.main.get_command(app).commands


def check_command(words: list[str], whole: bool) -> None:
    """Raise where a command is not what the command line takes; `whole`: with the values of a search."""
    name, *rest = words
    if name in ("search", "train"):
        problems = Problems()
        given = read_flags(rest if name == "search" else rest[1:], problems, method_of(name, rest))
        problems.raise_if_any()
        if name == "search" and whole and "--help" not in given:
            read_request(rest)
            return
        kinds = own_methods() if name == "search" else ["train"]
        known = {flag(key) for kind in kinds for key in public_fields(find_kind(kind).Config)}
        known |= {"--method", *(LAUNCH_FLAGS if name == "search" else train._LAUNCH)}
        assert set(given) <= known, set(given) - known
        return
    if name.startswith("--"):
        assert name == "--help"
        return
    command = built()[name]
    if not rest and not whole:
        return  # the name of a command in a sentence
    with command.make_context(name, list(rest)):
        pass


@pytest.mark.parametrize("asked", COMMANDS.values(), ids=list(COMMANDS))
def test_commands_are_commands(asked):
    check_command(shlex.split(asked[0])[1:], asked[1])


@pytest.mark.parametrize(
    "wrong",
    [
        "search --methd imp",
        "search --method imp --density 2",
        "train RUN --fraction 1",
        "compare runs/* --plt x.png",
        "serch",
    ],
)
def test_a_wrong_command_is_found(wrong):
    with pytest.raises(Exception, match=r"methd|density|fraction|plt|serch"):
        check_command(shlex.split(wrong), True)


@pytest.mark.parametrize("page", [f"{n}: {b.title}" for n, b in blocks("toml")])
def test_files_of_sweeps_are_right(page):
    (block,) = (block for name, block in blocks("toml") if f"{name}: {block.title}" == page)
    table = tomllib.loads(block.code)
    typed = {
        key: name for key, name in table["base"].items() if isinstance(name, str) and ":" in name
    }  # as the command on the page does
    sweep = sweep_file.make_sweep(table, Path(block.title).stem, code=typed)
    assert sweep.runs or sweep.search


def keys_under(heading: str) -> set[str]:
    """The keys in the tables between a heading of the page of sweeps and the next."""
    part = TEXTS["sweep-file"].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {key for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    ("headings", "model"),
    [
        (("Above the tables", "The tables"), sweep_file._File),
        (("A prediction",), sweep_file.Prediction),
        (("A study",), study_file._File),
    ],
)
def test_the_page_of_sweeps_has_every_key(headings, model):
    assert set().union(*map(keys_under, headings)) == set(model.model_fields)


def test_the_page_of_sweeps_says_what_a_published_number_has():
    sentence = re.search(r"^A published number has .*?\.", TEXTS["sweep-file"], re.DOTALL | re.MULTILINE)[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(study_file.Published.model_fields)


def test_every_method_can_be_chosen_by_a_question():
    table = TEXTS["choosing"].split("## By the question you have")[1].split("\n## ")[0]
    assert set(method_names()) <= set(re.findall(r"`([\w-]+)`", table))


@each_page
def test_outputs_belong_to_their_pages(name):
    """Of what is shown by commands that have changed since, `python docs/make_outputs.py NAME` makes it anew."""
    text = TEXTS[name]
    if make_outputs.shows_outputs(text):
        assert make_outputs.read_record()[name]["page"] == make_outputs.fingerprint_of(text)
    shown = [block for block in make_outputs.blocks_of(text) if block.place]
    assert [block.code for block in shown if not text[slice(*block.place)].strip()] == []


@each_page
def test_tables_are_those_of_the_code(name):
    assert make_outputs.fill_tables(TEXTS[name]) == TEXTS[name]


def test_a_changed_page_is_stale():
    text = TEXTS["first-ticket"]
    changed = text.replace("--levels 0.5,0.2 --seeds 0-4", "--levels 0.5,0.1 --seeds 0-4")
    assert changed != text
    assert make_outputs.fingerprint_of(changed) != make_outputs.fingerprint_of(text)
    assert make_outputs.fingerprint_of(text.replace("Two minutes", "Ten minutes")) == make_outputs.fingerprint_of(text)


def test_outputs_are_put_in_their_places(tmp_path, monkeypatch):
    """A page is carried out in order, in one folder; times alone are no change, and what is long is cut."""
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="six.py"\nsix = 6\n```\n\n```python\nfrom six import six\nprint(six, "x\\n" * 3)\n```\n\n'
        "<!-- shown: 2 lines -->\n```text\nold\n```\n\n```bash\necho took 0.3 s\n```\n\n```text\ntook 12 min 5 s\n```\n"
    )
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(make_outputs.os, "environ", dict(make_outputs.os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    make_outputs.make_page(page, tmp_path / "work")
    shown = [page.read_text()[slice(*b.place)] for b in make_outputs.blocks_of(page.read_text()) if b.place]
    assert shown == ["6 x\nx\n...\n", "took 12 min 5 s\n"]


@pytest.mark.slow
def test_the_walk_through_the_hypothesis_gives_what_it_says(tmp_path, monkeypatch):
    """Every command and every line of code of the page is carried out."""
    page = tmp_path / "page.md"
    page.write_text(TEXTS["lottery-ticket-chapter"])
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(make_outputs.os, "environ", dict(make_outputs.os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    make_outputs.make_page(page, tmp_path / "work")
    found = page.read_text()
    assert "kept weights start where the dense network started: True" in found
    assert "✓ imp at 20 %: a winning ticket" in found
    assert "poor: " in found and "1. The network is cut" in found
    assert re.search(r"of 400 ReLU units are never active", found)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("", "abcde"), ("2 lines", "ab."), ("5 lines", "abcde"), ("9 lines", "abcde"),
        ("2 lines, and from d", "ab.de"), ("2 lines, and from c", "abcde"), ("2 lines, and from a", "ab."),
    ],
)  # fmt: skip
def test_what_is_shown_of_an_output(shown, expected):
    cut = make_outputs.cut("a\nb\nc\nd\ne\n", shown)
    assert cut.replace("...", ".").replace("\n", "") == expected


@pytest.mark.parametrize("page", sorted({f"{name}" for name, _ in blocks("python")}))
def test_python_compiles(page):
    for block in (block for name, block in blocks("python") if name == page):
        ast.parse(block.code)


def test_the_loops_on_the_page_of_masks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for block in (block for name, block in blocks("python") if name == "masks"):
            exec(compile(block.code, "masks.md", "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("title", "model", "data"), [("mine.py", "make_model", "make_data"), ("curve.py", "net", "data")]
)
def test_the_files_on_the_pages_fit_together(title, model, data):
    (code,) = (block.code for _, block in blocks("python") if block.title == title)
    names: dict = {}
    exec(compile(code, title, "exec"), names)
    x, y = (torch.as_tensor(each[:8]) for each in names[data]())
    outputs = names[model]()(x)
    if "hinge" in names:
        names["hinge"](outputs, y).backward()
        assert names["margin"](outputs, y).shape == (8,)
    else:
        assert outputs.shape == y.shape


def documented(page: str) -> list[str]:
    return re.findall(r"^::: (\S+)$", TEXTS[page], re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "package"), [("python-supermask", supermask), ("python-ticket-search", ticket_search)]
)
def test_the_reference_has_every_public_name(page, package):
    listed = documented(page)
    assert len(listed) == len(set(listed))
    for path in listed:
        found: object = package
        for part in path.split(".")[1:]:
            found = getattr(found, part)
        assert found.__doc__, path
    names = {name for name in package.__all__ if not isinstance(getattr(package, name), ModuleType)}
    assert names - {"__version__"} <= {path.removeprefix(f"{package.__name__}.") for path in listed}


def test_nothing_is_loaded_from_elsewhere():
    """Where mkdocs is installed the test below looks at the built site."""
    assert CONFIG["theme"]["font"] is False
    assert "offline" in CONFIG["plugins"] and "repo_url" not in CONFIG and "analytics" not in CONFIG["extra"]
    for path in (*CONFIG["extra_css"], *CONFIG["extra"]["polyfills"]):
        code = (DOCS / path).read_text()
        assert not re.search(r"https?://", code), path


OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//"""
)


@pytest.mark.slow  # and mkdocs is no part of the extra `dev`
def test_the_site_is_built_and_needs_no_network(tmp_path, monkeypatch):
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build.build(load_config("mkdocs.yml", site_dir=str(tmp_path), strict=True))
    assert OUTSIDE.search('<link rel="preconnect" href="https://fonts.gstatic.com">')
    assert OUTSIDE.search('<script src="https://unpkg.com/x"></script>')
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > len(PAGES)
    for path in [*pages, *tmp_path.rglob("*.css")]:
        assert not OUTSIDE.search(path.read_text()), path
    assert (tmp_path / "search" / "search_index.js").exists()
    assert "iframe-worker.js" in (tmp_path / "index.html").read_text()
